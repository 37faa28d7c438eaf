"""Crop and flip against a loop over pixels; the same whatever the batch; offsets uniform and independent."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.data.augment import Augmentation, crop_flip, uniforms

DTYPES = [torch.uint8, torch.float32, torch.float64, torch.float16]


def by_pixel(x: np.ndarray, pad: int, fill: float, dy: list[int], dx: list[int], flipped: list[bool]) -> np.ndarray:
    """Pixel by pixel: where it comes from, or the fill."""
    out = np.empty_like(x)
    batch, channels, height, width = x.shape
    for b in range(batch):
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    row = i + dy[b] - pad
                    column = (width - 1 - j if flipped[b] else j) + dx[b] - pad
                    inside = 0 <= row < height and 0 <= column < width
                    out[b, c, i, j] = x[b, c, row, column] if inside else fill
    return out


def expected(x: np.ndarray, aug: Augmentation, seed: int, epoch: int, ids: np.ndarray) -> np.ndarray:
    u = [uniforms(seed, epoch, ids, draw) for draw in range(3)]
    dy, dx = ([math.floor(v * (2 * aug.pad + 1)) for v in w] for w in u[:2])
    return by_pixel(x, aug.pad, aug.fill, dy, dx, [aug.flip and v < 0.5 for v in u[2]])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_against_the_loop(data: st.DataObject) -> None:
    batch, channels = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 3))
    height, width = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    aug = Augmentation(
        pad=data.draw(st.integers(0, min(height, width) - 1)),
        flip=data.draw(st.booleans()),
        fill=data.draw(st.integers(0, 255)),
    )
    dtype = data.draw(st.sampled_from(DTYPES))
    seed, epoch = data.draw(st.integers(0, 2**64 - 1)), data.draw(st.integers(0, 1000))
    ids = np.array(data.draw(st.lists(st.integers(-5, 10**12), min_size=batch, max_size=batch)), np.int64)
    x = torch.randint(0, 255, (batch, channels, height, width), generator=torch.Generator().manual_seed(1)).to(dtype)
    before = x.clone()
    out = aug.apply(x, seed, epoch, ids)
    assert out.dtype is dtype
    assert out.is_contiguous()
    np.testing.assert_array_equal(out.numpy(), expected(x.numpy(), aug, seed, epoch, ids))
    assert torch.equal(x, before)


def test_every_offset_and_flip_by_hand() -> None:
    x = torch.tensor([[[[1, 2, 3], [4, 5, 6]]]], dtype=torch.uint8)

    def crop(dy: int, dx: int, flipped: bool) -> list[list[int]]:
        return crop_flip(x, 1, 9, torch.tensor([dy]), torch.tensor([dx]), torch.tensor([flipped]))[0, 0].tolist()

    assert crop(1, 1, False) == [[1, 2, 3], [4, 5, 6]]
    assert crop(0, 0, False) == [[9, 9, 9], [9, 1, 2]]
    assert crop(2, 2, False) == [[5, 6, 9], [9, 9, 9]]
    assert crop(1, 1, True) == [[3, 2, 1], [6, 5, 4]]
    assert crop(1, 0, True) == [[2, 1, 9], [5, 4, 9]]


def test_new_tensor_even_when_nothing_is_to_do() -> None:
    x = torch.arange(8, dtype=torch.uint8).reshape(2, 1, 2, 2)
    out = Augmentation().apply(x, 0, 0, np.arange(2))
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


def test_the_same_in_any_batch_and_order_and_new_in_every_epoch() -> None:
    aug = Augmentation(pad=4, flip=True)
    x = torch.randint(0, 256, (64, 3, 9, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids = np.arange(1000, 1064)
    whole = aug.apply(x, 3, 5, ids)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(aug.apply(x[order], 3, 5, ids[order.numpy()]), whole[order])
    assert torch.equal(torch.cat([aug.apply(x[i : i + 1], 3, 5, ids[i : i + 1]) for i in range(64)]), whole)
    for seed, epoch, other in ((4, 5, ids), (3, 6, ids), (3, 5, ids + 64)):
        assert (aug.apply(x, seed, epoch, other) != whole).flatten(1).any(1).float().mean() > 0.9


def test_offsets_and_flips_are_uniform_and_independent() -> None:
    # The position of the one bright pixel in a 5×5 image tells the offsets, the value of its neighbour the flip.
    n, pad = 20_000, 2
    x = torch.zeros(n, 1, 5, 5, dtype=torch.uint8)
    x[:, 0, 2, 1:4] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    for epoch in (0, 1):
        out = Augmentation(pad=pad, flip=True).apply(x, 11, epoch, np.arange(n))[:, 0]
        at = (out == 2).flatten(1).int().argmax(1).numpy()
        padded = torch.nn.functional.pad(out, (1, 1))
        left = padded[torch.arange(n), torch.from_numpy(at // 5), torch.from_numpy(at % 5)]
        right = padded[torch.arange(n), torch.from_numpy(at // 5), torch.from_numpy(at % 5 + 2)]
        flipped = ((left == 3) | (right == 1)).numpy()
        counts = np.bincount(at * 2 + flipped, minlength=50)
        assert stats.chisquare(counts).pvalue > 1e-3  # rows × columns × flip, all at once


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu() -> None:
    aug, ids = Augmentation(pad=2, flip=True, fill=7), np.arange(32)
    for dtype in DTYPES:
        x = torch.randint(0, 255, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
        out = aug.apply(x.cuda(), 1, 2, ids)
        assert out.is_cuda
        assert torch.equal(out.cpu(), aug.apply(x, 1, 2, ids))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pad": -1}, "pad must be an integer in"),
        ({"pad": 1.5}, "got 1.5"),
        ({"flip": 1}, "flip must be True or False, got 1"),
        ({"fill": math.nan}, "fill must be a finite number"),
        ({"fill": "0"}, "got '0'"),
        ({"fill": True}, "got True"),
    ],
)
def test_refuses_settings(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        Augmentation(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("aug", "x", "ids", "said"),
    [
        (Augmentation(), torch.zeros(2, 3), np.arange(2), r"shape \(C, H, W\), got \(3,\): use augmentation=None"),
        (Augmentation(pad=3), torch.zeros(1, 1, 3, 9), np.arange(1), "pad=3 for 3×9 images"),
        (Augmentation(), torch.zeros(2, 1, 3, 3), np.arange(3), r"shape \(2,\), got shape \(3,\)"),
        (Augmentation(), torch.zeros(2, 1, 3, 3), np.zeros((2, 1), int), r"got shape \(2, 1\)"),
        (Augmentation(), torch.zeros(2, 1, 3, 3), np.zeros(2), "1-D integer array"),
        (Augmentation(fill=256), torch.zeros(1, 1, 3, 3, dtype=torch.uint8), np.arange(1), "0..255 .* got 256"),
        (Augmentation(fill=0.5), torch.zeros(1, 1, 3, 3, dtype=torch.uint8), np.arange(1), "0..255 .* got 0.5"),
        (Augmentation(), torch.zeros(1, 1, 3, 3, dtype=torch.int64), np.arange(1), "uint8 or floating .* torch.int64"),
    ],
)
def test_refuses_inputs(aug: Augmentation, x: torch.Tensor, ids: np.ndarray, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        aug.apply(x, 0, 0, ids)
    assert "\n" not in str(caught.value)


def test_numpy_and_torch_paths_agree() -> None:
    """bfloat16 takes the tensor path (as a GPU does), float32 NumPy's."""
    x = torch.randint(0, 256, (40, 3, 7, 9), generator=torch.Generator().manual_seed(0)).float()
    aug = Augmentation(pad=2, flip=True, fill=17)
    ids = np.arange(100, 140)
    assert torch.equal(aug.apply(x.bfloat16(), 3, 4, ids).float(), aug.apply(x, 3, 4, ids))
