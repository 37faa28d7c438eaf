"""Hugging Face data sets saved to disk: images, arrays, labels of every kind, groups, and what is refused."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from quorate.data import Augmentation
from quorate.data.dataset import Data
from quorate.data.hub import hub
from quorate.data.hub_columns import image_reader
from quorate.data.images.decoding import Decoding
from quorate.data.partition import partition
from quorate.data.store import Unreadable

datasets = pytest.importorskip("datasets")

RNG = np.random.default_rng(0)
N = 45
IMAGES = RNG.integers(0, 256, (N, 4, 5, 3)).astype(np.uint8)
BYTES = RNG.integers(0, 256, (N, 2, 3)).astype(np.uint8)
FLOATS = RNG.standard_normal((N, 4)).astype(np.float32)
LABELS = np.arange(N) % 3
WORDS = np.array(["pear", "apple", "fig"])[LABELS]
GROUPS = np.arange(N) // 5
TARGETS = RNG.standard_normal((N, 2)).astype(np.float32)


def encoded(pixels: np.ndarray) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def table(rows: Any = slice(None), **changes: tuple[Any, Any]) -> Any:
    """Rows of all columns; changes: {column: (values, feature)}."""
    f = datasets
    columns = {
        "image": ([encoded(i) for i in IMAGES[rows]], f.Image()),
        "bytes": (BYTES[rows].tolist(), f.Array2D((2, 3), "uint8")),
        "floats": (FLOATS[rows].tolist(), f.Sequence(f.Value("float32"))),
        "ints": ((BYTES[rows, 0].astype(int) - 9).tolist(), f.Sequence(f.Value("int64"))),
        "label": (LABELS[rows].tolist(), f.ClassLabel(names=["x", "y", "z"])),
        "number": (LABELS[rows].tolist(), f.Value("int32")),
        "word": (WORDS[rows].tolist(), f.Value("string")),
        "who": ([f"p{g}" for g in GROUPS[rows]], f.Value("string")),
        "value": (TARGETS[rows, 0].tolist(), f.Value("float64")),
        "pair": (TARGETS[rows].tolist(), f.Sequence(f.Value("float32"))),
        "flag": ((LABELS[rows] > 0).tolist(), f.Value("bool")),
        **changes,
    }
    return f.Dataset.from_dict(
        {k: v for k, (v, _) in columns.items()}, features=f.Features({k: t for k, (_, t) in columns.items()})
    )


@pytest.fixture(autouse=True)
def _quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    datasets.disable_progress_bars()


def saved(path: Path, **splits: Any) -> Path:
    """A `DatasetDict` on disk; without splits one data set of all rows."""
    (datasets.DatasetDict(splits) if splits else table()).save_to_disk(str(path))
    return path


def halves(path: Path, **changes: Any) -> Path:
    return saved(path, train=table(slice(0, 30), **changes), test=table(slice(30, None)))


def check(data: Data, x: np.ndarray, y: np.ndarray) -> None:
    """Ids number the rows of x and y."""
    for split in data.splits().values():
        np.testing.assert_array_equal(split.x[:], x[split.ids])
        np.testing.assert_array_equal(split.y, y[split.ids])


def test_images_and_class_labels(tmp_path: Path) -> None:
    data = hub(halves(tmp_path / "d"), "image", "label", fractions=(0.5, 0.25, 0.25), seed=2, augmentation=Augmentation(pad=1))
    check(data, IMAGES.transpose(0, 3, 1, 2), LABELS)
    rows = partition(LABELS[:30], [0.5, 0.25, 0.25], 2)
    for split, chosen in zip((data.train, data.validation, data.calibration), rows, strict=True):
        np.testing.assert_array_equal(split.ids, chosen)
    np.testing.assert_array_equal(data.test.ids, np.arange(30, 45))
    assert (data.classes, data.name, data.augmentation) == (("x", "y", "z"), "hub", Augmentation(pad=1))
    grey = hub(str(tmp_path / "d"), "image", "label", size=2, channels=1, resize="stretch")
    wanted = Image.fromarray(IMAGES[30]).convert("L").resize((2, 2), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(grey.test.x[:][0, 0], np.asarray(wanted))
    assert grey.preprocessing is not None
    assert {"size": 2, "channels": 1, "resize": "stretch", "unreadable": {}}.items() <= grey.preprocessing.items()


def test_arrays_of_every_layout_and_type(tmp_path: Path) -> None:
    path = halves(tmp_path / "d")
    check(hub(path, "bytes", "label", layout="nhw"), BYTES[:, None], LABELS)
    check(hub(path, "bytes", "label", layout="nlc"), BYTES.transpose(0, 2, 1), LABELS)
    check(hub(path, "bytes", "label", layout="ncl", dtype="float32"), BYTES.astype(np.float32), LABELS)
    check(hub(path, "floats", "label", layout="features"), FLOATS, LABELS)
    check(hub(path, "ints", "label", layout="features", dtype="float32"), BYTES[:, 0].astype(np.float32) - 9, LABELS)
    with pytest.raises(ValueError, match=r"hub, train: 'ints' holds int64, and inputs are uint8 or float32: say which by dtype="):
        hub(path, "ints", "label", layout="features")
    with pytest.raises(ValueError, match=r"none of 30 rows can be read \(row 0: not whole numbers in 0\.\.255\)"):
        hub(path, "floats", "label", layout="features", dtype="uint8")
    with pytest.raises(ValueError, match=r"layout 'features' has 2 axes, got shape \(1, 2, 3\)"):
        hub(path, "bytes", "label", layout="features")


def test_text_and_integer_labels_and_targets(tmp_path: Path) -> None:
    path = halves(tmp_path / "d")
    words = hub(path, "floats", "word", layout="features")
    check(words, FLOATS, np.array([2, 0, 1])[LABELS])
    assert words.classes == ("apple", "fig", "pear")
    numbers = hub(path, "floats", "number", layout="features")
    check(numbers, FLOATS, LABELS)
    assert numbers.classes == ("0", "1", "2")
    one = hub(path, "floats", "value", layout="features", task="regression")
    check(one, FLOATS, TARGETS[:, :1])
    assert one.targets == ("value",)
    two = hub(path, "floats", "pair", layout="features", task="regression", targets=("u", "v"))
    check(two, FLOATS, TARGETS)
    assert two.targets == ("u", "v")
    check(hub(path, "floats", "number", layout="features", task="regression"), FLOATS, LABELS[:, None].astype(np.float32))


def test_splits_by_name_or_cut(tmp_path: Path) -> None:
    parts = {"fit": slice(0, 12), "val": slice(12, 18), "hold": slice(18, 24), "end": slice(24, 30)}
    path = saved(tmp_path / "d", **{name: table(rows) for name, rows in parts.items()})
    names = {"train": "fit", "test": "end", "validation": "val", "calibration": "hold"}
    data = hub(path, "floats", "label", layout="features", **names)
    order = np.r_[0:12, 24:30, 12:24]  # train, test, validation, calibration
    check(data, FLOATS[order], LABELS[order])
    assert {part: len(split) for part, split in data.splits().items()} == {
        "train": 12,
        "validation": 6,
        "calibration": 6,
        "test": 6,
    }
    whole = saved(tmp_path / "one")
    data = hub(whole, "floats", "label", layout="features", test=None, fractions=(0.4, 0.2, 0.2, 0.2))
    check(data, FLOATS, LABELS)
    assert [len(split) for split in data.splits().values()] == [18, 9, 9, 9]
    with pytest.raises(ValueError, match=r"is one data set without splits, got names of splits for test: pass None"):
        hub(whole, "floats", "label", layout="features")
    with pytest.raises(ValueError, match=r"got 'fit', 'test'; it has 'fit', 'val', 'hold', 'end': name these"):
        hub(path, "floats", "label", layout="features", train="fit")
    with pytest.raises(ValueError, match="a split for each of train, test, … that is named, got 'fit', 'fit'"):
        hub(path, "floats", "label", layout="features", train="fit", test="fit")


def test_groups(tmp_path: Path) -> None:
    whole = saved(tmp_path / "one")
    data = hub(whole, "floats", "label", layout="features", test=None, groups="who", fractions=(0.4, 0.2, 0.2, 0.2))
    seen = [set(GROUPS[split.ids].tolist()) for split in data.splits().values()]
    assert sum(map(len, seen)) == 9
    assert all(split.groups is not None and (split.groups == GROUPS[split.ids]).all() for split in data.splits().values())
    path = saved(tmp_path / "d", train=table(slice(0, 18)), test=table(slice(18, None)))
    with pytest.raises(ValueError, match=r"a group of 'who' may be in one part only, got 1 in both train and test, such as 'p3'"):
        hub(path, "floats", "label", layout="features", groups="who")
    with pytest.raises(ValueError, match="the groups in 'value' must be integers or text, got Value"):
        hub(path, "floats", "label", layout="features", groups="value")


def test_the_second_start_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = halves(tmp_path / "d")
    first = hub(path, "image", "label", size=3, cache=tmp_path / "c")
    assert not (tmp_path / "xdg").exists()
    import quorate.data.hub_columns as columns

    read, plain = [], columns.decode
    monkeypatch.setattr(columns, "decode", lambda *args: (read.append(1), plain(*args))[1])
    second = hub(path, "image", "label", size=3, cache=tmp_path / "c", ood={"far": path})
    assert first.test.x[:].tolist() == second.ood["far"].x[:].tolist()
    assert len(read) == 3  # the first row of each for its shape
    hub(path, "image", "label", size=3, channels=1, cache=tmp_path / "c")
    assert len(read) == 3 + 45 + 2
    assert hub(path, "floats", "word", layout="features", ood={"far": saved(tmp_path / "one")}).ood["far"].x.shape == (45, 4)


def test_images_by_path(tmp_path: Path) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    paths = [{"bytes": None, "path": str(tmp_path / name)} for name in ("a.png", "none.png")]
    read = image_reader(table(slice(0, 2), image=(paths, datasets.Image())), "image", Decoding(), "here")
    np.testing.assert_array_equal(read(0), IMAGES[0].transpose(2, 0, 1))
    with pytest.raises(ValueError, match=r"^here, row 1: .*none.png cannot be read: No such file or directory: mend") as caught:
        read(1)
    assert not isinstance(caught.value, Unreadable)


def test_unreadable_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [encoded(i) for i in IMAGES[:30]]
    images[3] = {"bytes": images[3]["bytes"][:40], "path": None}
    images[7] = None  # type: ignore[call-overload]
    path = halves(tmp_path / "d", image=(images, datasets.Image()))
    with pytest.raises(ValueError, match=r"2 of 30 rows cannot be read: row 3 \(.*row 7 \(missing\): mend"):
        hub(path, "image", "label")
    data = hub(path, "image", "label", unreadable="skip")
    assert capsys.readouterr().err.count("left out") == 1
    check(data, IMAGES.transpose(0, 3, 1, 2), LABELS)
    assert set(np.concatenate([s.ids for s in data.splits().values()]).tolist()) == set(range(45)) - {3, 7}
    assert data.preprocessing is not None
    assert list(data.preprocessing["unreadable"]) == ["train, row 3", "train, row 7"]
    floats = FLOATS[:30].tolist()
    floats[5][1], floats[6], floats[9][0] = None, None, float("inf")
    path = halves(tmp_path / "f", floats=(floats, datasets.Sequence(datasets.Value("float32"))))
    with pytest.raises(
        ValueError, match=r"row 5 \(a missing value or NaN\), row 6 \(a missing value or NaN\), row 9 \(NaN or inf"
    ):
        hub(path, "floats", "label", layout="features")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"x": "picture"},
            r"expected the columns 'picture', 'label', got none called 'picture'; there are 'image', 'bytes', .*'flag'",
        ),
        ({"y": "class"}, "got none called 'class'"),
        ({"groups": "patient"}, "got none called 'patient'"),
        ({"x": "word"}, "hub, train: 'word' must hold images, or lists or arrays of numbers, got Value"),
        ({"x": "value"}, "'value' must hold images, or lists"),
        ({"x": "floats"}, "'floats' holds numbers, whose layout must be one of features, .* got None"),
        ({"x": "floats", "layout": "nf"}, "got 'nf'"),
        ({"x": "floats", "layout": "features", "size": 3}, "'floats' holds numbers, got size=3, which is for images"),
        ({"x": "floats", "layout": "features", "dtype": "int8"}, "dtype must be 'uint8', 'float32' or None, got 'int8'"),
        ({"layout": "nhwc"}, "'image' holds images, got layout='nhwc' and dtype=None, which are for numbers"),
        (
            {"y": "value"},
            r"'value' must hold class labels, integers or text for classification, got Value.*pass task='regression'",
        ),
        ({"y": "flag"}, "'flag' must hold class labels"),
        ({"y": "pair"}, "'pair' must hold class labels"),
        ({"y": "word", "task": "regression"}, "'word' must hold numbers, or lists of as many numbers"),
        ({"y": "label", "task": "regression"}, "'label' must hold numbers"),
        ({"y": "pair", "task": "regression", "targets": ["one"]}, "targets must name the 2 columns of 'pair'"),
        ({"targets": ["one"]}, r"targets are for regression, got \['one'\]"),
        ({"task": "ranking"}, "task must be 'classification' or 'regression', got 'ranking'"),
        ({"unreadable": "ignore"}, "unreadable must be"),
        ({"config": "en"}, "is a data set saved on disk, which has no config='en' or revision=None"),
        ({"ood": {"far": "PATH"}, "test": None, "train": "none"}, "it has 'train', 'test'"),
        ({"fractions": (0.5, 0.5)}, "fractions must be 3"),
    ],
)
def test_refuses(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = halves(tmp_path / "d")
    with pytest.raises(ValueError, match=said) as caught:
        hub(path, **{"x": "image", "y": "label", **options})
    assert "\n" not in str(caught.value)


def test_refuses_values(tmp_path: Path) -> None:
    f = datasets
    ragged = [[1.0, 2.0], [1.0], *[[1.0, 2.0]] * 28]
    nested = [[[1.0], [2.0]], [[1.0], [2.0, 3.0]], *[[[1.0], [2.0]]] * 28]
    sizes = [encoded(i) for i in IMAGES[:29]] + [encoded(IMAGES[29][:3])]
    cases: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"floats": (ragged, f.Sequence(f.Value("float32")))}, {}, r"one shape, got \(2,\) in row 0 and \(1,\) in row 1"),
        (
            {"floats": (nested, f.Sequence(f.Sequence(f.Value("float32"))))},
            {"layout": "ncl"},
            "row 1: 'floats' must hold lists of equal",
        ),
        (
            {"image": (sizes, f.Image())},
            {"x": "image", "layout": None},
            r"got \(3, 4, 5\) in row 0 and \(3, 3, 5\) in row 29: pass size=",
        ),
        (
            {"word": ([None, *WORDS[1:30]], f.Value("string"))},
            {"y": "word"},
            "'word' must have a value in every row, got none in row 0",
        ),
        (
            {"label": ([-1, *LABELS[1:30]], f.ClassLabel(names=["x", "y", "z"]))},
            {},
            "^hub, train: labels must be at least 0, got -1 in row 0",
        ),
        ({"pair": (ragged, f.Sequence(f.Value("float32")))}, {"y": "pair", "task": "regression"}, "as many numbers in every row"),
    ]
    for number, (changes, options, said) in enumerate(cases):
        path = saved(tmp_path / str(number), train=table(slice(0, 30), **changes))
        with pytest.raises(ValueError, match=said) as caught:
            hub(path, **{"x": "floats", "y": "label", "layout": "features", "test": None, **options})
        assert "\n" not in str(caught.value)


def test_parts_of_different_types(tmp_path: Path) -> None:
    other = table(slice(30, None), label=(LABELS[30:].tolist(), datasets.ClassLabel(names=["y", "x", "z"])))
    path = saved(tmp_path / "d", train=table(slice(0, 30)), test=other)
    with pytest.raises(
        ValueError, match=r"'label' must have one type in all parts, got .*'x', 'y', 'z'.* in train and .*in test"
    ):
        hub(path, "floats", "label", layout="features")
    check(hub(path, "floats", "number", layout="features"), FLOATS, LABELS)


@pytest.mark.parametrize("path", ["./nosuch", "../no/such", "~/nosuch", "/nosuch/folder", "a/b/c"])
def test_what_can_only_be_a_folder_is_not_asked_for(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(FileNotFoundError, match=f"^found no folder at {path}: expected one of save_to_disk, or a name"):
        hub(path, "x", "y")


def test_retries_are_not_logged(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]

    def retry(*_: Any, **__: Any) -> None:
        for logger in loggers:
            monkeypatch.setattr(logger, "propagate", True)
            logger.getChild("http").critical("Retrying in 1s [Retry 1/5].")
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", retry)
    with pytest.raises(ValueError, match="cannot be loaded: no network"):
        hub("some/name", "x", "y")
    assert caplog.records == []
    assert [logger.level for logger in loggers] == levels


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: (_ for _ in ()).throw(ConnectionError("no\nnetwork")))
    with pytest.raises(
        ValueError, match="'some/name' cannot be loaded: no network: expected a name on the hub or a folder"
    ) as caught:
        hub("some/name", "x", "y")
    assert "\n" not in str(caught.value)
    asked: list[Any] = []
    whole = datasets.load_from_disk(str(halves(tmp_path / "d")))
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: (asked.append((args, options)), whole)[1])
    check(hub("some/name", "floats", "label", layout="features", config="en", revision="v1"), FLOATS, LABELS)
    assert asked == [(("some/name", "en"), {"revision": "v1", "keep_in_memory": False})]
    whole = datasets.DatasetDict(train=table(), test=table())
    with pytest.raises(ValueError, match="hub, train lies in memory, expected files"):
        hub("some/name", "floats", "label", layout="features")
    (tmp_path / "d" / "dataset_dict.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded"):
        hub(tmp_path / "d", "x", "y")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"quorate.data.hub needs datasets.*quorate\[hub\]"):
        hub("some/name", "x", "y")
