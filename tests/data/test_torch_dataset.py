"""Map-style datasets of every kind of item, in memory and on disk, against the arrays they hold."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from quorate.data import Augmentation, arrays
from quorate.data.dataset import Data
from quorate.data.store import Stored
from quorate.data.torch_dataset import from_datasets

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (60, 3, 4, 5)).astype(np.uint8)
Y = np.arange(60) % 3
TARGETS = RNG.standard_normal((60, 2)).astype(np.float32)
FAR = RNG.integers(0, 256, (7, 3, 4, 5)).astype(np.uint8)


class Rows(Dataset):
    """Items x[i], y[i] as they are, counted, and never two at a time."""

    def __init__(self, x: Any, y: Any) -> None:
        self.x, self.y, self.asked = x, y, []
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Any, Any]:
        assert self._turn.acquire(blocking=False), "a dataset was called from two threads"
        try:
            self.asked.append(i)
            return self.x[i], self.y[i]
        finally:
            self._turn.release()


def same(data: Data, other: Data) -> None:
    for (part, split), expected in zip(data.splits().items(), other.splits().values(), strict=True):
        np.testing.assert_array_equal(split.x[:], expected.x[:], err_msg=part)
        np.testing.assert_array_equal(split.y, expected.y, err_msg=part)
        np.testing.assert_array_equal(split.ids, expected.ids, err_msg=part)
    assert (data.mean, data.classes, data.targets) == (other.mean, other.classes, other.targets)
    assert (data.train.x.dtype, data.target_std) == (other.train.x.dtype, other.target_std)


def test_equals_arrays() -> None:
    options: dict[str, Any] = {"fractions": (0.5, 0.3, 0.2), "seed": 4, "name": "n"}
    options |= {"groups": {"test": [f"h{i // 5}" for i in range(15)], "train": [f"g{i // 5}" for i in range(45)]}}
    options |= {"classes": ("a", "b", "c"), "augmentation": Augmentation(pad=1)}
    expected = arrays((X[:45], Y[:45]), (X[45:], Y[45:]), ood={"far": FAR}, **options)
    train = Rows(torch.from_numpy(X[:45]), Y[:45].tolist())
    data = from_datasets(train, list(zip(X[45:], Y[45:], strict=True)), ood={"far": Rows(FAR, ["no label"] * 7)}, **options)
    assert data.fingerprint() == expected.fingerprint()
    assert train.asked == list(range(45))
    assert data.ood["far"].y is None
    assert data.augmentation == Augmentation(pad=1)
    parts = [(X[a:b], Y[a:b]) for a, b in ((0, 30), (30, 40), (40, 50), (50, 60))]
    tensors = [TensorDataset(torch.from_numpy(x), torch.from_numpy(y)) for x, y in parts]
    same(from_datasets(*tensors), arrays(*parts))


@pytest.mark.parametrize(
    "convert",
    [torch.from_numpy, lambda x: torch.from_numpy(x).double(), lambda x: x.astype(np.float32), lambda x: x.astype(np.float16)],
)
def test_types_of_x(convert: Any) -> None:
    wanted = X if convert(X).dtype in (torch.uint8,) else X.astype(np.float32)
    same(from_datasets(Rows(convert(X), Y)), arrays((wanted, Y)))
    half = Rows(torch.from_numpy(X).bfloat16(), Y)
    same(from_datasets(half), arrays((half.x.float().numpy(), Y)))


def test_images() -> None:
    rgb = [Image.fromarray(x.transpose(1, 2, 0)) for x in X]
    same(from_datasets(Rows(rgb, Y)), arrays((X, Y)))
    grey = [Image.fromarray(x[0]) for x in X]
    same(from_datasets(Rows(grey, Y)), arrays((X[:, :1], Y)))
    rgb[7] = rgb[7].convert("CMYK")
    with pytest.raises(ValueError, match=r"train, item 7: an image must have mode 'L' or 'RGB', got 'CMYK': use image.convert"):
        from_datasets(Rows(rgb, Y))


@pytest.mark.parametrize("y", [TARGETS[:, 0].tolist(), TARGETS, torch.from_numpy(TARGETS[:, 1]), TARGETS.astype(np.float64)])
@pytest.mark.parametrize("on_disk", [False, True])
def test_regression(tmp_path: Path, y: Any, on_disk: bool) -> None:
    targets = ("u", "v")[: np.asarray(y).reshape(60, -1).shape[1]]
    key = {"cache": tmp_path, "cache_key": "t"} if on_disk else {}
    same(from_datasets(Rows(X, y), targets=targets, **key), arrays((X, np.asarray(y)), targets=targets))
    with pytest.raises(ValueError, match=r"y holds floats, .* name them \(targets=…\)"):
        from_datasets(Rows(X, y), **key)


def test_on_disk_the_second_start_reads_one_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    expected = arrays((X[:45], Y[:45]), (X[45:], Y[45:]))
    for start in range(3):
        train, test, far = Rows(X[:45], Y[:45]), Rows(X[45:], torch.from_numpy(Y[45:])), Rows(FAR, Y[:7])
        data = from_datasets(train, test, ood={"far": far}, cache_key="v1")
        same(data, expected)
        assert isinstance(data.train.x, Stored)
        assert sorted(train.asked) == ([0, *range(45)] if start == 0 else [0])
        assert sorted(far.asked) == ([0, *range(7)] if start == 0 else [0])
        np.testing.assert_array_equal(data.ood["far"].x[:], FAR)
    changed = Rows(255 - X[:45], Y[:45])
    same(from_datasets(changed, Rows(X[45:], Y[45:]), cache_key="v1"), expected)  # the key is the user's word
    other = from_datasets(changed, Rows(X[45:], Y[45:]), cache_key="v2")
    np.testing.assert_array_equal(other.train.x[:], 255 - X[other.train.ids])
    assert (tmp_path / "quorate").is_dir()
    for store in (tmp_path / "quorate").iterdir():
        if np.load(store / "x.npy").shape[1:] == (8,):  # the labels alone are lost: they are read again
            for file in store.iterdir():
                file.unlink()
            store.rmdir()
    same(from_datasets(Rows(X[:45], Y[:45]), Rows(X[45:], Y[45:]), cache_key="v1"), expected)


class Endless(IterableDataset):
    def __iter__(self) -> Iterator[tuple[np.ndarray, int]]:
        return iter([(X[0], 0)])


class NoLength(Dataset):
    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return X[i], 0


def changed(values: Any, at: int, value: Any) -> list[Any]:
    copied = list(values)
    copied[at] = value
    return copied


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (Endless(), r"train must be a map-style dataset, got the IterableDataset Endless, .*collect it first \(list\(dataset\)"),
        (NoLength(), "train must be a map-style dataset, with a length and numbered items, got NoLength"),
        ({0: (X[0], 0)}, "with a length and numbered items, got dict"),
        (3, "with a length and numbered items, got int"),
        ([], "train must hold at least one item, got an empty list"),
        (X, r"train, item 0: a dataset must return pairs \(x, y\), got ndarray"),
        ([(X[0], 0, 1)], r"pairs \(x, y\), got tuple"),
        (
            Rows(changed(X, 9, X[0, :, :2]), Y),
            r"all x must have one shape and type, got \(3, 4, 5\) uint8 in item 0 and \(3, 2, 5\)",
        ),
        (Rows(changed(X, 9, X[0].astype(float)), Y), r"uint8 in item 0 and \(3, 4, 5\) float32 in item 9: resize, pad"),
        (
            Rows(X, changed(Y, 9, 0.5)),
            r"all y must have one shape and type, got \(\) int64 in item 0 and \(1,\) float32 in item 9",
        ),
        (Rows(X, changed(TARGETS, 9, TARGETS[0, :1])), r"got \(2,\) float32 in item 0 and \(1,\) float32 in item 9"),
        (
            Rows(X.astype(np.int32), Y),
            "item 0: x must be a tensor or array of uint8 or floats, or a PIL image, got an array of int32",
        ),
        (Rows(torch.from_numpy(X).int(), Y), r"x must be uint8 or floating point, got torch.int32: convert it"),
        (Rows(["text"] * 60, Y), "got str"),
        (Rows([np.float32(1)] * 60, Y), "or a PIL image, got float32"),
        (Rows([torch.tensor(1.0)] * 60, Y), r"at least one axis and one value, got shape \(\)"),
        (Rows([X[0, :0]] * 60, Y), r"at least one axis and one value, got shape \(0, 4, 5\)"),
        (
            Rows(X, [True] * 60),
            r"y must be an integer label, or a float or a vector of floats to predict, got shape \(\) of bool",
        ),
        (Rows(X, ["cat"] * 60), "y must be an integer label"),
        (Rows(X, [[0, 1]] * 60), r"got shape \(2,\) of int64"),
        (Rows(X, [[[0.5]]] * 60), r"got shape \(1, 1\) of float64"),
        (Rows(X, Y - 1), "train: labels must be at least 0, got -1 in row"),
        (Rows(changed(X / 255, 8, X[0] * np.nan), Y), r"must be finite.*, got NaN or infinity in row 8: drop or impute"),
        (Rows(changed(X / 255, 8, X[0] * 1e300), Y), r"must be finite.*, got NaN or infinity in row 8: drop or impute"),
        (Rows(X, changed(TARGETS, 8, TARGETS[0] * np.inf)), r"must be finite.*, got NaN or infinity in row 8: drop"),
    ],
)
def test_refuses(tmp_path: Path, rows: Any, said: str, on_disk: bool) -> None:
    key = {"cache": tmp_path, "cache_key": "t"} if on_disk else {}
    with pytest.raises(ValueError, match=said) as caught:
        from_datasets(rows, targets=("u", "v") if isinstance(rows, Rows) and np.ndim(rows.y[0]) == 1 else (), **key)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("options", [{"cache": "here"}, {"cache_key": ""}, {"cache_key": 3}, {"cache": "here", "cache_key": ""}])
def test_a_cache_needs_a_key(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a cache needs cache_key=, text that names this data and changes whenever the data do"):
        from_datasets(Rows(X, Y), **options)


def test_parts_are_named_in_errors() -> None:
    good = Rows(X, Y)
    with pytest.raises(ValueError, match="test must be a map-style dataset"):
        from_datasets(good, Endless())
    with pytest.raises(ValueError, match=r"ood 'far', item 0: a dataset must return pairs"):
        from_datasets(good, ood={"far": FAR})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="groups of train must name each of the 60 rows' group"):
        from_datasets(good, groups=["a"] * 59)
    with pytest.raises(ValueError, match=r"^train must be a map-style dataset, .* got NoneType"):
        from_datasets(None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^targets must be .* got the one string 'price'"):
        from_datasets(Rows(X, TARGETS[:, :1]), targets="price")


def test_groups(tmp_path: Path) -> None:
    who = [f"p{i // 4:02d}" for i in range(60)]
    for key in ({}, {"cache": tmp_path, "cache_key": "t"}):
        data = from_datasets(Rows(X, Y), groups=who, **key)  # type: ignore[arg-type]
        for split in data.splits().values():
            np.testing.assert_array_equal(split.groups, split.ids // 4)
    halves, parts = (Rows(X[:40], Y[:40]), Rows(X[40:], Y[40:])), {"train": who[:40], "test": np.array(who[40:])}
    data = from_datasets(*halves, groups=parts)
    for split in data.splits().values():
        np.testing.assert_array_equal(split.groups, split.ids // 4)
    asked = len(halves[0].asked)
    for groups, said in (
        ({**parts, "test": ["p03", *who[41:]]}, r"a group may be in one split only, got \['p03'\] in both train and test"),
        ({"train": who[:40]}, "groups must be given for all of train, test, got train"),
        (who[:40], "groups must be given for all of train, test, got train"),
        ({**parts, "val": who[40:]}, "groups must be given for all of train, test, got train, test, val"),
    ):
        with pytest.raises(ValueError, match=said):
            from_datasets(*halves, groups=groups)
    assert len(halves[0].asked) == asked  # refused before anything is read


def test_parts_of_one_size_are_stored_apart(tmp_path: Path) -> None:
    parts = [Rows(X[start : start + 15], Y[start : start + 15]) for start in (0, 15, 30, 45)]
    data = from_datasets(*parts, ood={"far": Rows(255 - X[:15], Y[:15])}, cache=tmp_path, cache_key="t")
    for split, (start, labels) in zip(
        data.splits().values(), ((0, Y[:15]), (30, Y[30:45]), (45, Y[45:]), (15, Y[15:30])), strict=True
    ):
        np.testing.assert_array_equal(split.x[:], X[start : start + 15])
        np.testing.assert_array_equal(split.y, labels)
    np.testing.assert_array_equal(data.ood["far"].x[:], 255 - X[:15])
    bytes_like_a_label = X.reshape(60, -1)[:, :8]
    same(from_datasets(Rows(bytes_like_a_label, Y), cache=tmp_path, cache_key="u"), arrays((bytes_like_a_label, Y)))
