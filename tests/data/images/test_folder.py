"""Image folders of both layouts: what is read, cut, cached, left out and refused."""

from __future__ import annotations

import builtins
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile

from quorate.data import Augmentation
from quorate.data.dataset import PARTS, Data
from quorate.data.images.decoding import Decoding, decode
from quorate.data.images.folder import image_folder
from quorate.data.partition import partition

CLASSES = ("cat", "dog", "emu")


def picture(key: int, shape: tuple[int, ...] = (4, 5, 3)) -> np.ndarray:
    return np.random.default_rng(key).integers(0, 256, shape).astype(np.uint8)


def put(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def flat(root: Path, per_class: int = 10, shape: tuple[int, ...] = (4, 5, 3)) -> Path:
    """root/class/image; picture(label · per_class + i) is file number i of a class."""
    for label, name in enumerate(CLASSES):
        for i in range(per_class):
            suffix = (".png", ".PNG", ".bmp")[i % 3]
            put(root / name / f"p{i % 4}_{i:02d}{suffix}", picture(label * per_class + i, shape))
    return root


def paths(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("p*_*") if p.is_file())


def expected(root: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(root / p)).transpose(2, 0, 1) for p in paths(root)])


def rows(data: Data) -> np.ndarray:
    return np.concatenate([split.ids for split in data.splits().values()])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.mark.parametrize("size", [None, 4])
def test_sixteen_bits_are_told_once_and_at_the_first_reading_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], size: int | None
) -> None:
    root = flat(tmp_path / "root", shape=(4, 4, 3))
    image_folder(root, size=size)
    assert capfd.readouterr().err == ""
    for name in CLASSES:
        for path in (root / name).iterdir():
            path.unlink()
        for i in range(10):
            put(root / name / f"p{i}.png", np.full((4, 4), 257 * (i + 1), np.uint16))
    data = image_folder(root, size=size)
    assert int(data.train.x[:].max()) <= 10
    assert capfd.readouterr().err == "image_folder: images become 8-bit: 16-bit values are divided by 257\n"
    image_folder(root, size=size)
    decode(root / "cat" / "p0.png", Decoding())
    assert capfd.readouterr().err == ""


def test_one_folder_is_cut_into_four(tmp_path: Path) -> None:
    root = flat(tmp_path / "root")
    fractions = (0.4, 0.2, 0.1, 0.3)
    data = image_folder(str(root), fractions=fractions, seed=5, augmentation=Augmentation(pad=1), name="zoo")
    x = expected(root)
    y = np.array([CLASSES.index(p.split("/")[0]) for p in paths(root)])
    parts = partition(y, dict(zip(PARTS, fractions, strict=True)), 5)
    for part, split in data.splits().items():
        np.testing.assert_array_equal(split.ids, parts[part])
        np.testing.assert_array_equal(split.x[:], x[parts[part]])
        np.testing.assert_array_equal(split.y, y[parts[part]])
    assert (data.classes, data.name, data.augmentation) == (CLASSES, "zoo", Augmentation(pad=1))
    assert len(rows(image_folder(root))) == 30
    assert (tmp_path / "xdg" / "quorate").is_dir()


def test_parts_are_used_as_they_are(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for part, count in (("train", 10), ("test", 2), ("val", 3)):
        flat(root / part, count)
    data = image_folder(root, fractions=(0.5, 0.5))
    assert {part: len(split) for part, split in data.splits().items()} == dict(zip(PARTS, (15, 9, 15, 6), strict=True))
    np.testing.assert_array_equal(data.test.x[:], expected(root / "test"))
    np.testing.assert_array_equal(data.validation.x[:], expected(root / "val"))
    assert len(np.unique(rows(data))) == 45
    flat(root / "cal", 1)
    every = image_folder(root)
    np.testing.assert_array_equal(every.train.x[:], expected(root / "train"))
    np.testing.assert_array_equal(every.calibration.x[:], expected(root / "cal"))


def test_size_channels_resize_and_background(tmp_path: Path) -> None:
    root = flat(tmp_path / "root", 6)
    whole = {p: Image.open(io.BytesIO((root / p).read_bytes())) for p in paths(root)}
    data = image_folder(root, size=4, channels=1, resize="stretch")
    assert data.shape == (1, 4, 4)
    for i, image in zip(data.train.ids, data.train.x[:], strict=True):
        grey = whole[paths(root)[i]].convert("L").resize((4, 4), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image[0], np.asarray(grey))
    data = image_folder(root, size=5, resize="pad", background=(1, 2, 3))
    np.testing.assert_array_equal(data.test.x[:][:, :, 4, 0], np.broadcast_to([1, 2, 3], (len(data.test), 3)))
    assert data.preprocessing is not None
    settings = {"size": 5, "channels": 3, "resize": "pad", "background": [1, 2, 3], "unreadable": {}}
    assert settings.items() <= data.preprocessing.items()
    put(root / "dog" / "p9_odd.png", picture(1, (6, 5, 3)))
    with pytest.raises(
        ValueError, match=r"one shape, got \(3, 4, 5\) in .*p0_00.png and \(3, 6, 5\) in .*p9_odd.png: pass size="
    ) as caught:
        image_folder(root)
    assert "\n" not in str(caught.value)
    assert image_folder(root, size=5).shape == (3, 5, 5)


def test_the_second_start_opens_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, cache = flat(tmp_path / "root"), tmp_path / "own"
    first = image_folder(root, size=4, cache=cache, ood={"far": root / "emu"})
    assert not (tmp_path / "xdg").exists()
    opened: list[str] = []
    plain, low = io.open, os.open

    def spy(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return plain(path, *args, **kwargs)

    def low_spy(path: Any, *args: Any, **kwargs: Any) -> Any:
        opened.append(str(path))
        return low(path, *args, **kwargs)

    monkeypatch.setattr(io, "open", spy)
    monkeypatch.setattr(builtins, "open", spy)
    monkeypatch.setattr(os, "open", low_spy)
    second = image_folder(root, size=4, cache=cache, ood={"far": root / "emu"})
    assert opened  # the store's files
    assert not [path for path in opened if str(root) in path]
    assert first.fingerprint() == second.fingerprint()
    target = root / "cat" / "p0_00.png"
    put(target, 255 - picture(0))
    os.utime(target, ns=(1, 1))
    opened.clear()
    third = image_folder(root, size=4, cache=cache)
    assert len([path for path in opened if str(root) in path]) == 30
    assert third.fingerprint() != first.fingerprint()
    assert image_folder(root, size=4, channels=1, cache=cache).shape == (1, 4, 4)


def test_unreadable_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = flat(tmp_path / "root")
    whole, numbers = image_folder(root), {path: i for i, path in enumerate(paths(root))}
    content = (root / "dog" / "p1_01.PNG").read_bytes()
    (root / "dog" / "p1_01.PNG").write_bytes(content[: len(content) // 2])
    (root / "cat" / "p0_00.png").write_bytes(b"")
    (root / "cat" / "p0_04.PNG").unlink()
    (root / "cat" / "p0_04.PNG").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"3 of 30 files cannot be read: 'cat/p0_00.png' \(not an image .*'dog/p1_01.PNG' \("
    ) as caught:
        image_folder(root)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().err == ""
    data = image_folder(root, unreadable="skip")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "3 of 30 files cannot be read" in said
    assert data.preprocessing is not None
    left_out = data.preprocessing["unreadable"]
    assert list(left_out) == ["cat/p0_00.png", "cat/p0_04.PNG", "dog/p1_01.PNG"]
    assert left_out["cat/p0_04.PNG"] == "empty, or a link to nothing"
    assert set(rows(data).tolist()) == set(range(30)) - {numbers[path] for path in left_out}
    before = {int(i): x for split in whole.splits().values() for i, x in zip(split.ids, split.x[:], strict=True)}
    for split in data.splits().values():
        for i, x in zip(split.ids, split.x[:], strict=True):
            np.testing.assert_array_equal(x, before[int(i)])
    for path in root.rglob("p*_*"):
        path.unlink()
        path.write_bytes(b"nothing")
    for size in (None, 4):
        with pytest.raises(ValueError, match=r"none of \d+ rows can be read|\d+ of \d+ files cannot be read"):
            image_folder(root, size=size, unreadable="skip")


@pytest.mark.parametrize(
    "failure", [PermissionError(13, "Denied"), FileNotFoundError(2, "Denied"), OSError(5, "Denied"), MemoryError("Denied")]
)
def test_a_failure_that_may_pass_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    root, plain = flat(tmp_path / "root"), Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.name == "p1_01.PNG":
            raise failure
        return plain(path)

    monkeypatch.setattr(Path, "read_bytes", refused)
    with pytest.raises(ValueError, match=r"p1_01.PNG cannot be read: Denied: mend that and start again"):
        image_folder(root, size=4, unreadable="skip")
    monkeypatch.undo()
    assert len(rows(image_folder(root, size=4, cache=tmp_path / "xdg" / "quorate"))) == 30


def test_the_store_depends_on_all_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flat(tmp_path / "root")
    for options in ({}, {"resize": "stretch"}, {"resize": "pad"}, {"resize": "pad", "background": (9, 8, 7)}):
        data, decoding = image_folder(root, size=3, **options), Decoding(size=3, **options)  # type: ignore[arg-type]
        for i, x in zip(data.train.ids, data.train.x[:], strict=True):
            np.testing.assert_array_equal(x, decode(root / paths(root)[i], decoding))
    put(root / "cat" / "p9_99.png", picture(7, (40, 30, 3)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(rows(image_folder(root, size=3, unreadable="skip"))) == 30
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert len(rows(image_folder(root, size=3, unreadable="skip"))) == 31
    path = root / "cat" / "p9_99.png"
    path.write_bytes(path.read_bytes()[:-2000])
    assert len(rows(image_folder(root, size=3, unreadable="skip"))) == 30
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert len(rows(image_folder(root, size=3, unreadable="skip"))) == 31


def test_a_link_to_nothing_may_be_the_first_file(tmp_path: Path) -> None:
    root = flat(tmp_path / "root")
    (root / "cat" / "p0_-1.png").symlink_to(tmp_path / "later.png")
    data = image_folder(root, unreadable="skip")
    assert data.preprocessing is not None
    assert data.preprocessing["unreadable"] == {"cat/p0_-1.png": "empty, or a link to nothing"}
    put(tmp_path / "later.png", picture(99))
    assert len(rows(image_folder(root))) == 31


def test_groups_stay_whole(tmp_path: Path) -> None:
    root = flat(tmp_path / "root", 24)
    data = image_folder(root, groups=r"/(p\d)_", fractions=(0.25, 0.25, 0.25, 0.25))
    seen = [{paths(root)[i].split("/")[1][:2] for i in split.ids} for split in data.splits().values()]
    assert sorted(map(len, seen)) == [1, 1, 1, 1]
    assert set().union(*seen) == {"p0", "p1", "p2", "p3"}
    with pytest.raises(ValueError, match=r"groups='/\(q\)' must find a group in every path"):
        image_folder(root, groups="/(q)")
    flat(tmp_path / "parts" / "train", 4)
    flat(tmp_path / "parts" / "test", 4)
    with pytest.raises(ValueError, match=r"a group may have files in one part only, got 4 in both train and test, such as 'p0'"):
        image_folder(tmp_path / "parts", groups=r"/(p\d)_")


def test_ood_and_passed_over_files(tmp_path: Path) -> None:
    root = flat(tmp_path / "root")
    put(tmp_path / "far" / "deep" / "er" / "p0_1.png", picture(77))
    put(tmp_path / "far" / "p0_0.jpg", np.full((4, 5, 3), 128, np.uint8))
    (root / "cat" / "notes.txt").write_text("hello")
    (root / "cat" / ".hidden.png").write_bytes(b"")
    data = image_folder(root, ood={"far": str(tmp_path / "far")}, classes=("emu", "cat"))
    far = data.ood["far"]
    assert far.y is None
    found = {tuple(x[:, 0, 0]): x for x in far.x[:]}
    np.testing.assert_array_equal(found[tuple(picture(77)[0, 0])], picture(77).transpose(2, 0, 1))
    assert len(far) == 2
    assert data.classes == ("emu", "cat")
    assert data.preprocessing is not None
    assert data.preprocessing["passed_over"] == {"count": 1, "such_as": ["cat/notes.txt"]}
    put(tmp_path / "far" / "p0_2.png", picture(3, (9, 9, 3)))
    with pytest.raises(ValueError, match=r"got \(3, 4, 5\) in .* and \(3, 9, 9\) in .*p0_2.png"):
        image_folder(root, ood={"far": tmp_path / "far"})


def test_nested(tmp_path: Path) -> None:
    root = flat(tmp_path / "root", 6)
    put(root / "cat" / "more" / "p0_99.png", picture(5))
    with pytest.raises(ValueError, match="pass nested=True"):
        image_folder(root)
    assert len(rows(image_folder(root, nested=True))) == 19


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (lambda root: shutil.rmtree(root / "dog"), {"classes": CLASSES}, "every class needs a folder"),
        (lambda root: [shutil.rmtree(root / c) for c in ("dog", "emu")], {}, "at least two class folders"),
        (lambda root: (root / "owl").mkdir(), {}, "every class needs a file"),
        (lambda root: flat(root / "train"), {}, "either part folders or class folders"),
        (lambda root: put(root / "stray.png", picture(0)), {}, "must lie in a class folder"),
        (lambda root: (root / "cat" / "loop").symlink_to(root), {"nested": True}, "joined by a symbolic link"),
        (None, {"unreadable": "ignore"}, "unreadable must be 'error' or 'skip', got 'ignore'"),
        (None, {"channels": 2}, "channels must be 1"),
        (None, {"fractions": (0.5, 0.5)}, "fractions must be 4"),
        (None, {"ood": {"a b": "."}}, "must hold files with"),
    ],
)
def test_refuses(tmp_path: Path, spoil: Any, options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = flat(tmp_path / "root", 5)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    if spoil is not None:
        spoil(root)
    with pytest.raises(ValueError, match=said) as caught:
        image_folder(root, **options)
    assert "\n" not in str(caught.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder, found none"):
        image_folder(tmp_path / "none")
