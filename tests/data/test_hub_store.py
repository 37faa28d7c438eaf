"""What a hub data set's store on disk depends on, and what it never remembers."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quorate.data.dataset import Data
from quorate.data.hub import hub
from quorate.data.images.decoding import Decoding, decode

datasets = pytest.importorskip("datasets")

N = 30
IMAGES = np.random.default_rng(0).integers(0, 256, (N, 4, 6, 3)).astype(np.uint8)
FLOATS = np.random.default_rng(1).standard_normal((N, 4)).astype(np.float32)


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def table(images: list[Any] | None = None, floats: np.ndarray = FLOATS, label: Any = None, note: str = "") -> Any:
    f = datasets
    labels = np.arange(N) % 2 if label is None else label
    columns = {
        "image": ([{"bytes": png(i), "path": None} for i in IMAGES] if images is None else images, f.Image()),
        "floats": (floats.tolist(), f.Sequence(f.Value("float32"))),
        "label": (labels.tolist(), f.Value("float32" if labels.dtype.kind == "f" else "int64")),
        "who": ([f"p{i // 3:02d}" for i in range(N)], f.Value("string")),
        "note": ([note] * N, f.Value("string")),
    }
    return f.Dataset.from_dict({k: v for k, (v, _) in columns.items()}, f.Features({k: t for k, (_, t) in columns.items()}))


def save(path: Path, rows: Any) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    rows.save_to_disk(str(path))
    return path


def load(path: Path, x: str, **options: Any) -> Data:
    return hub(path, x, options.pop("y", "label"), test=None, layout="features" if x == "floats" else None, **options)


def check(data: Data, x: np.ndarray) -> None:
    for split in data.splits().values():
        np.testing.assert_array_equal(split.x[:], x[split.ids])


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    datasets.disable_progress_bars()


def test_sixteen_bits_are_told_at_the_first_reading(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((4, 5), 2570, np.uint16)).save(stream, "PNG")
    path = save(tmp_path / "d", table([{"bytes": stream.getvalue(), "path": None}] * N))
    for said in ("hub, train: images become 8-bit: 16-bit values are divided by 257", ""):
        check(load(path, "image"), np.full((N, 3, 4, 5), 10, np.uint8))
        assert capfd.readouterr().err.strip() == said


def test_settings_of_one_shape(tmp_path: Path) -> None:
    path = save(tmp_path / "d", table())
    for options in ({}, {"resize": "stretch"}, {"resize": "pad"}, {"resize": "pad", "background": (9, 8, 7)}):
        decoding = Decoding(size=3, **options)  # type: ignore[arg-type]
        check(load(path, "image", size=3, **options), np.stack([decode(png(i), decoding) for i in IMAGES]))


def test_a_file_that_changed(tmp_path: Path) -> None:
    path = save(tmp_path / "d", table())
    (file,) = path.glob("*.arrow")
    check(load(path, "floats"), FLOATS)
    before = file.stat()
    save(path, table(floats=FLOATS + 1))
    assert file.stat().st_size == before.st_size
    os.utime(file, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    check(load(path, "floats"), FLOATS + 1)
    save(path, table(floats=FLOATS + 2, note="longer"))
    assert file.stat().st_size != before.st_size
    os.utime(file, ns=(before.st_mtime_ns + 1, before.st_mtime_ns + 1))
    check(load(path, "floats"), FLOATS + 2)


def test_two_parts_of_one_size_in_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table().to_parquet(str(tmp_path / "a.parquet"))
    files, slices = {"data_files": str(tmp_path / "a.parquet"), "cache_dir": str(tmp_path / "c")}, ["train[:50%]", "train[50%:]"]
    halves = datasets.load_dataset("parquet", split=slices, **files)
    assert halves[0].cache_files == halves[1].cache_files
    parts = datasets.DatasetDict(train=halves[0], test=halves[1])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: parts)
    data = hub("some/name", "floats", "label", layout="features")
    check(data, FLOATS)
    np.testing.assert_array_equal(data.test.ids, np.arange(N // 2, N))


def test_groups_where_rows_are_skipped(tmp_path: Path) -> None:
    images: list[Any] = [{"bytes": png(i), "path": None} for i in IMAGES]
    images[4] = images[11] = None
    data = load(save(tmp_path / "d", table(images)), "image", groups="who", unreadable="skip")
    check(data, IMAGES.transpose(0, 3, 1, 2))
    ids = np.concatenate([split.ids for split in data.splits().values()])
    assert sorted(ids.tolist()) == sorted(set(range(N)) - {4, 11})
    for split in data.splits().values():
        np.testing.assert_array_equal(split.groups, split.ids // 3)


def test_a_passing_failure_names_the_row_and_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, bad = save(tmp_path / "d", table()), png(IMAGES[7])

    def short_of_memory(stream: io.BytesIO, *args: Any, **options: Any) -> Any:
        if stream.getvalue() == bad:
            raise MemoryError
        return plain(stream, *args, **options)

    plain = Image.open
    monkeypatch.setattr(Image, "open", short_of_memory)
    said = "^hub, train, row 7: the image cannot be read: MemoryError: mend that and start again$"
    with pytest.raises(ValueError, match=said):
        load(path, "image", unreadable="skip")
    monkeypatch.undo()
    check(load(path, "image", unreadable="skip", cache=tmp_path / "xdg" / "quorate"), IMAGES.transpose(0, 3, 1, 2))


def test_errors_name_data_set_part_and_row(tmp_path: Path) -> None:
    labels = np.arange(N) % 2
    labels[20] = -1
    images: list[Any] = [{"bytes": png(i), "path": None} for i in IMAGES]
    images[4] = None
    path = tmp_path / "d"
    datasets.DatasetDict(train=table(), test=table(images, label=labels)).save_to_disk(str(path))
    with pytest.raises(ValueError, match=r"^mine, test: labels must be at least 0, got -1 in row 20: "):
        hub(path, "image", "label", unreadable="skip", name="mine")
    values = FLOATS[:, 0].copy()
    values[3] = np.inf
    with pytest.raises(ValueError, match=r"^hub, train: targets must be finite in float32, got NaN or infinity in row 3: "):
        load(save(path, table(label=values)), "floats", task="regression")
    with pytest.raises(ValueError, match=r"^targets must be .* got the one string 'price'"):
        load(save(path, table(label=FLOATS[:, 0])), "floats", task="regression", targets="price")
    with pytest.raises(ValueError, match=r"^unreadable must be 'error' or 'skip', got 'no'$"):
        hub("nowhere", "x", "y", unreadable="no")  # type: ignore[arg-type]  # before anything is loaded
