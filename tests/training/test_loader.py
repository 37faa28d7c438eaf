"""The loader: each epoch's rows once, orders of (seed, epoch) alone, and the same batches from any point it is stopped at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quorate.data import Augmentation, Split
from quorate.training import Loader


def split(rows: int) -> Split:
    """Images whose pixels all hold the row's number; ids are not row numbers."""
    x = np.broadcast_to(np.arange(rows, dtype=np.uint8)[:, None, None, None], (rows, 1, 4, 4))
    return Split(x, np.arange(rows) % 3, np.arange(rows)[::-1] + 100)


def rows_of(loader: Loader) -> list[list[int]]:
    """The rows of one epoch's batches."""
    return [x[:, 0, 2, 2].tolist() for x, _ in loader]


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_an_epoch_in_order_is_complete(rows: int, size: int, seed: int) -> None:
    loader = Loader(split(rows), size, seed)
    for _ in range(2):
        batches = rows_of(loader)
        assert list(itertools.chain(*batches)) == list(range(rows))
        assert len(batches) == len(loader) == -(-rows // size)
        assert all(len(batch) == size for batch in batches[:-1])


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 9))
def test_a_shuffled_epoch_has_each_row_at_most_once_in_full_batches(rows: int, size: int, seed: int) -> None:
    loader = Loader(split(rows), size, seed, shuffle=True)
    batches = rows_of(loader)
    seen = list(itertools.chain(*batches))
    assert len(batches) == len(loader) == max(1, rows // size)
    assert len(set(seen)) == len(seen) == (rows // size * size or rows)
    assert all(len(batch) == min(size, rows) for batch in batches)


def test_orders_differ_by_epoch_and_seed_and_repeat_with_them() -> None:
    loader, again, other = Loader(split(30), 10, 1, True), Loader(split(30), 10, 1, True), Loader(split(30), 10, 2, True)
    epochs = [rows_of(loader) for _ in range(3)]
    assert epochs == [rows_of(again) for _ in range(3)]
    everything = [tuple(itertools.chain(*epoch)) for epoch in [*epochs, rows_of(other)]]
    assert len(set(everything)) == 4
    assert all(sorted(rows) == list(range(30)) for rows in everything)
    assert loader.order(2).tolist() == list(everything[2])


def test_labels_go_with_their_rows() -> None:
    for x, y in Loader(split(20), 6, shuffle=True):
        assert (x[:, 0, 0, 0] % 3 == y).all()
        assert (x.dtype, y.dtype) == (torch.uint8, torch.int64)


@given(st.integers(0, 14), st.booleans())
def test_from_any_point_the_same_batches_follow(stop: int, augmented: bool) -> None:
    def make() -> Loader:
        return Loader(split(23), 5, 3, True, Augmentation(pad=1, fill=200) if augmented else None)

    def endless(loader: Loader) -> list[list[int]]:
        epochs = itertools.chain.from_iterable(iter(loader) for _ in range(5))
        return [x.flatten().tolist() for x, _ in itertools.islice(epochs, 15 - stop if loader is resumed else 15)]

    resumed = make()
    whole = endless(make())
    first = make()
    for _ in itertools.islice(itertools.chain.from_iterable(iter(first) for _ in range(5)), stop):
        pass
    state = first.state_dict()
    assert set(state) == {"epoch", "step"}
    resumed.load_state_dict(state)
    assert endless(resumed) == whole[stop:]


def test_augmentation_depends_on_seed_epoch_and_id() -> None:
    data, augmentation = split(12), Augmentation(pad=2, flip=True, fill=255)
    loader = Loader(data, 4, 5, True, augmentation)
    for epoch in range(2):
        for start, (x, _) in zip((0, 4, 8), loader, strict=True):
            rows = loader.order(epoch)[start : start + 4]
            assert torch.equal(x, augmentation.apply(data.batch(rows)[0], 5, epoch, data.ids[rows]))


@pytest.mark.parametrize(
    ("size", "seed", "message"), [(0, 0, "batch_size=0, seed=0: expected"), (1, -1, "batch_size=1, seed=-1")]
)
def test_it_refuses(size: int, seed: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loader(split(3), size, seed)
