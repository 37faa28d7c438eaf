"""Splits: what a row, a batch and a subset are, what is converted, and everything that is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from quorate.data.split import Split, name_rows


def make(n: int = 6, dtype: type = np.uint8, labelled: bool = True) -> Split:
    x = (np.arange(n * 12) % 251).reshape(n, 3, 2, 2).astype(dtype)
    return Split(x, np.arange(n) % 3 if labelled else None, np.arange(n) + 100)


@pytest.mark.parametrize(("dtype", "tensor"), [(np.uint8, torch.uint8), (np.float32, torch.float32)])
@pytest.mark.parametrize("labelled", [True, False])
def test_rows_and_batches(dtype: type, tensor: torch.dtype, labelled: bool) -> None:
    split = make(dtype=dtype, labelled=labelled)
    assert len(split) == 6
    assert split.shape == (3, 2, 2)
    for rows in ([4, 0, 4], np.array([4, 0, 4], np.uint8), torch.tensor([4, 0, 4]), (4, 0, 4)):
        x, y = split.batch(rows)
        assert x.dtype is tensor
        assert x.shape == (3, 3, 2, 2)
        np.testing.assert_array_equal(x.numpy(), split.x[[4, 0, 4]])
        assert y.dtype is torch.int64
        assert y.tolist() == ([1, 0, 1] if labelled else [-1, -1, -1])
    for i in (0, 5, -1, np.int64(2)):
        x, y = split[i]
        assert x.dtype is tensor
        assert torch.equal(x, torch.from_numpy(split.x[i].copy()))
        assert y.dtype is torch.int64
        assert y.shape == ()
        assert y.item() == ((i % 6) % 3 if labelled else -1)
    x, y = split.batch([])
    assert x.shape == (0, 3, 2, 2)
    assert y.shape == (0,)


def test_iterates_and_loads_as_a_dataset() -> None:
    split = make()
    assert len(list(split)) == 6  # IndexError ends the iteration
    batches = list(DataLoader(split, batch_size=4))
    assert torch.equal(torch.cat([x for x, _ in batches]), split.batch(np.arange(6))[0])
    assert torch.equal(torch.cat([y for _, y in batches]), split.batch(np.arange(6))[1])
    again = copy.deepcopy(split)  # by the protocol that hands it to worker processes
    np.testing.assert_array_equal(again.x, split.x)
    assert len(again) == 6


def test_batches_are_copies_and_arrays_are_read_only() -> None:
    split = make()
    before = split.x.copy()
    split.batch([0])[0].zero_()
    split[1][0].zero_()
    np.testing.assert_array_equal(split.x, before)
    for array in (split.x, split.y, split.ids):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    mine = np.zeros((2, 3), np.uint8)
    assert np.shares_memory(Split(mine, None, np.arange(2)).x, mine)
    mine[0] = 1  # the caller's own array stays writable


def test_subset_keeps_order_and_ids() -> None:
    split = make()
    part = split.subset([5, 1])
    assert part.ids.tolist() == [105, 101]
    assert part.y is not None
    assert part.y.tolist() == [2, 1]
    np.testing.assert_array_equal(part.x, split.x[[5, 1]])
    assert make(labelled=False).subset(torch.tensor([2])).y is None


@pytest.mark.parametrize(
    "x",
    [
        np.arange(24, dtype=np.float64).reshape(2, 3, 2, 2),
        np.arange(24, dtype=">f4").reshape(2, 3, 2, 2),
        np.moveaxis(np.arange(24, dtype=np.float32).reshape(2, 2, 2, 3), -1, 1),
        np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)[::-1],
        np.moveaxis(np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3), -1, 1),
    ],
    ids=["float64", "big-endian", "channel last", "reversed", "channel last bytes"],
)
def test_converts_precision_byte_order_and_layout_only(x: np.ndarray) -> None:
    split = Split(x, None, np.arange(2))
    assert split.x.dtype == (np.uint8 if x.dtype == np.uint8 else np.float32)
    assert split.x.dtype.isnative
    assert split.x.flags.c_contiguous
    np.testing.assert_array_equal(split.x, x)
    np.testing.assert_array_equal(split.batch([1, 0])[0].numpy(), x[[1, 0]])


def test_integer_labels_and_ids_become_int64() -> None:
    for dtype in (np.uint8, np.int32, ">i8", np.uint64):
        split = Split(np.zeros((2, 1), np.uint8), np.array([1, 0], dtype), np.array([9, 3], dtype))
        assert split.y is not None
        assert split.y.dtype == split.ids.dtype == np.int64
        assert split.y.dtype.isnative
        assert split.y.tolist() == [1, 0]
        assert split.ids.tolist() == [9, 3]


def test_says_what_it_is() -> None:
    assert repr(make()) == "Split(6 rows of (3, 2, 2) uint8, labelled)"
    assert repr(make(labelled=False)) == "Split(6 rows of (3, 2, 2) uint8, without labels)"


def test_names_rows() -> None:
    assert name_rows(np.array([3])) == "row 3"
    assert name_rows(np.array([3, 7])) == "rows 3, 7"
    assert name_rows(np.arange(45)) == "rows 0, 1, 2, 3, 4 and 40 more"


def spoilt(rows: list[int], value: float, dtype: type = np.float32) -> np.ndarray:
    x = np.zeros((9, 2, 2), dtype)
    x[rows, 1, 0] = value
    return x


U8 = np.zeros((3, 2), np.uint8)
IDS = np.arange(3)


@pytest.mark.parametrize(
    ("x", "y", "ids", "said"),
    [
        (U8.astype(np.int64), None, IDS, "uint8, float32 or float64, got int64"),
        (U8.astype(np.float16), None, IDS, "got float16"),
        (U8.astype(object), None, IDS, "got object"),
        (U8.astype(bool), None, IDS, "got bool"),
        (U8[:, 0], None, IDS, r"\(N, \*shape\) .* got shape \(3,\)"),
        (U8[:0], None, IDS[:0], r"at least one row .* got shape \(0, 2\)"),
        (U8[:, :0], None, IDS, r"got shape \(3, 0\)"),
        (spoilt([2, 5], np.nan), None, np.arange(9), "NaN or infinity in rows 2, 5"),
        (spoilt([1], -np.inf), None, np.arange(9), "NaN or infinity in row 1:"),
        (spoilt(list(range(8)), np.nan, np.float64), None, np.arange(9), "rows 0, 1, 2, 3, 4 and 3 more"),
        (spoilt([4], 1e39, np.float64), None, np.arange(9), "finite in float32, .* in row 4"),
        (U8, np.arange(2), IDS, r"y must be .* shape \(3,\), got shape \(2,\)"),
        (U8, np.zeros((3, 1), int), IDS, r"y must be .* got shape \(3, 1\)"),
        (U8, np.zeros(2), IDS, r"targets must be .* 3 rows of x, got shape \(2,\)"),
        (U8, np.zeros((3, 0)), IDS, r"targets must be .* got shape \(3, 0\)"),
        (U8, np.array([0, np.nan, 1]), IDS, "targets must be finite .* in row 1:"),
        (U8, np.array([0, 1, 1e39]), IDS, "targets must be finite .* in row 2:"),
        (U8, np.zeros(3, bool), IDS, "y must be .* of bool"),
        (U8, np.array([0, -1, -2]), IDS, "at least 0, got -1 in rows 1, 2.*pass y=None"),
        (U8, np.array([0, 1, 2**63], np.uint64), IDS, "y must fit int64"),
        (U8, None, np.arange(4), r"ids must be .* got shape \(4,\)"),
        (U8, None, np.array([7, 8, 7]), "unique, got id 7 again in row 2"),
        (U8, None, np.array([7, 7, 7]), "id 7 again in rows 1, 2"),
    ],
)
def test_refuses(x: np.ndarray, y: np.ndarray | None, ids: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Split(x, y, ids)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([0, 6], r"rows must be in 0\.\.5, got 0\.\.6"),
        ([-1], r"got -1\.\.-1"),
        ([0.0], "integers, got .* of float64"),
        ([True] * 6, "of bool: turn a mask into rows"),
        ([[0]], r"1-D sequence of integers, got shape \(1, 1\)"),
    ],
)
def test_refuses_rows(rows: list, said: str) -> None:
    for method in (make().batch, make().subset):
        with pytest.raises(ValueError, match=said):
            method(rows)


def test_refuses_empty_or_repeating_subsets_and_rows_outside() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        make().subset([])
    with pytest.raises(ValueError, match="ids must be unique"):
        make().subset([1, 1])
    for i in (6, -7):
        with pytest.raises(IndexError, match=rf"0\.\.5, got {i}"):
            make()[i]
