"""Masks: exact counts, bits as NumPy packs them, application bit for bit, hashes and overlaps against plain loops, each error."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from quorate.tickets import masks as m

INTEGER = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}
SPECIAL = [0.0, -0.0, 1e-45, -1e-45, 5e-324, float("inf"), -float("inf"), float("nan"), 1.5, -2.0]
shapes = st.lists(st.integers(1, 7), min_size=2, max_size=4).map(tuple)


@given(shapes, st.integers(0, 2**32 - 1), st.data())
def test_draws_have_the_count_and_follow_the_seed(shape: tuple[int, ...], seed: int, data: st.DataObject) -> None:
    live = data.draw(st.integers(0, int(np.prod(shape))))
    mask = m.draw(shape, live, np.random.default_rng(seed))
    assert mask.dtype == torch.bool
    assert mask.shape == shape
    assert int(mask.sum()) == live
    assert torch.equal(mask, m.draw(shape, live, np.random.default_rng(seed)))


def test_every_mask_of_a_count_is_equally_likely() -> None:
    rng = np.random.default_rng(3)
    counts: dict[bytes, int] = {}
    for _ in range(3000):
        bits = m.pack_bits(m.draw((2, 3), 2, rng)).numpy().tobytes()
        counts[bits] = counts.get(bits, 0) + 1
    assert len(counts) == 15
    assert chisquare(list(counts.values())).pvalue > 0.01


@pytest.mark.parametrize("live", [-1, 7])
def test_a_count_that_does_not_fit(live: int) -> None:
    with pytest.raises(ValueError, match=rf"^{live} live weights were asked of shape \(2, 3\): expected 0 … 6$"):
        m.draw((2, 3), live, np.random.default_rng(0))


def test_bits_by_hand() -> None:
    mask = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
    assert m.pack_bits(mask).tolist() == [0b10001001, 0b1]
    assert torch.equal(m.unpack_bits(torch.tensor([0b10001001, 0b1], dtype=torch.uint8), (2, 5)), mask)


@given(shapes, st.integers(0, 2**32 - 1))
def test_bits_there_and_back(shape: tuple[int, ...], seed: int) -> None:
    mask = torch.from_numpy(np.random.default_rng(seed).random(shape) < 0.4)
    if len(shape) == 4:
        mask = mask.to(memory_format=torch.channels_last)
    bits = m.pack_bits(mask)
    assert bits.dtype == torch.uint8
    assert bits.numel() == -(-mask.numel() // 8)
    assert torch.equal(m.unpack_bits(bits, shape), mask)


@pytest.mark.parametrize(
    ("bits", "match"),
    [
        (
            torch.zeros(2, dtype=torch.uint8),
            r"packed bits are torch.uint8 of shape \(2,\): expected uint8 \(1,\) for shape \(2, 3\)",
        ),
        (torch.zeros(1), r"torch.float32 of shape \(1,\)"),
        (torch.tensor([64], dtype=torch.uint8), r"set beyond the 6 places of shape \(2, 3\)"),
    ],
)
def test_bits_that_are_damaged(bits: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        m.unpack_bits(bits, (2, 3))


def test_only_bool_is_packed() -> None:
    with pytest.raises(ValueError, match=r"mask is torch.float32 of shape \(3,\): expected bool"):
        m.pack_bits(torch.ones(3))


@pytest.mark.parametrize("dtype", INTEGER)
def test_dead_become_plus_zero_and_live_keep_their_bits(dtype: torch.dtype) -> None:
    values = torch.tensor([v for v in SPECIAL for _ in (0, 1)], dtype=torch.float64).to(dtype)
    mask = torch.tensor([False, True] * len(SPECIAL))
    weight = torch.nn.Parameter(values.clone())
    m.apply_([weight], [mask])
    bits, before = weight.detach().view(INTEGER[dtype]), values.view(INTEGER[dtype])
    assert torch.equal(bits[mask], before[mask])
    assert not bits[~mask].any()


@given(st.lists(shapes, max_size=4), st.integers(0, 2**32 - 1), st.sampled_from([*INTEGER, torch.complex64]))
def test_applying_is_masked_fill(several: list[tuple[int, ...]], seed: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(seed)
    weights = [torch.from_numpy(rng.normal(size=shape)).to(dtype) for shape in several]
    weights = [w.to(memory_format=torch.channels_last) if w.ndim == 4 else w for w in weights]
    masks = [torch.from_numpy(rng.random(w.shape) < 0.5) for w in weights]
    wanted = [w.masked_fill(~mask, 0) for w, mask in zip(weights, masks, strict=True)]
    ready = m.Multipliers(weights, masks)
    for _ in range(2):
        ready.apply_(weights)
        assert all(torch.equal(w, x) for w, x in zip(weights, wanted, strict=True))


@pytest.mark.parametrize("dtype", INTEGER)
def test_gradients_and_states_are_masked_whatever_the_width_of_the_weight(dtype: torch.dtype) -> None:
    gradient = torch.tensor([v for v in SPECIAL for _ in (0, 1)], dtype=torch.float64).to(dtype)
    mask = torch.tensor([False, True] * len(SPECIAL))
    ready = m.Multipliers([torch.zeros(2, 1), torch.zeros(len(mask))], [torch.ones(2, 1, dtype=torch.bool), mask])
    before = gradient.view(INTEGER[dtype]).clone()
    ready.mask_(1, gradient)
    bits = gradient.view(INTEGER[dtype])
    assert torch.equal(bits[mask], before[mask])
    assert not bits[~mask].any()


def test_autograd_notices_and_a_transposed_weight_is_masked_in_place() -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4).t())
    loss = (weight**2).sum()
    m.apply_([weight], [torch.eye(4, 3, dtype=torch.bool)])
    assert int(weight.count_nonzero()) == 3
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_masks_that_do_not_belong_to_the_weights() -> None:
    weight, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="there are 2 masks for 1 weights"):
        m.Multipliers([weight], [mask, mask])
    with pytest.raises(ValueError, match=r"mask 1 is torch.bool of shape \(3, 2\): expected bool \(2, 3\), as the weight"):
        m.apply_([weight, weight], [mask, mask.t()])
    with pytest.raises(ValueError, match=r"mask 0 is torch\.float32"):
        m.apply_([weight], [mask.float()])
    with pytest.raises(ValueError, match="2 weights came: expected 1, one per mask"):
        m.Multipliers([weight], [mask]).apply_([weight, weight])


def test_the_digest_by_hand() -> None:
    a, b = torch.tensor([[True, False]]), torch.tensor([[False], [True]])
    by_hand = hashlib.sha256(b"1:a(1, 2)" + bytes([1]) + b"1:b(2, 1)" + bytes([2])).hexdigest()
    assert m.digest({"b": b, "a": a}) == m.digest({"a": a, "b": b}) == by_hand
    others = [{"a": a}, {"a": a, "c": b}, {"a": ~a, "b": b}, {"a": a, "b": b.t()}]
    assert len({m.digest(other) for other in others} | {by_hand}) == 5


@given(st.integers(0, 2**32 - 1))
def test_overlap_is_the_jaccard_index_of_all_weights_together(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = ({k: torch.from_numpy(rng.random(s) < 0.4) for k, s in (("u", (3, 4)), ("v", (2, 2, 3)))} for _ in range(2))
    ours = {(k, i) for k, mask in a.items() for i, on in enumerate(mask.flatten().tolist()) if on}
    theirs = {(k, i) for k, mask in b.items() for i, on in enumerate(mask.flatten().tolist()) if on}
    assert m.overlap(a, b) == m.overlap(b, a) == pytest.approx(len(ours & theirs) / max(len(ours | theirs), 1))
    assert m.overlap(a, a) == 1.0


def test_overlap_at_its_ends_and_of_masks_that_differ() -> None:
    none, left = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[True, True, False, False]])
    assert m.overlap({"w": none}, {"w": none}) == 1.0
    assert m.overlap({"w": left}, {"w": ~left}) == 0.0
    with pytest.raises(ValueError, match=r"masks differ in weight 'v' \(1 in all\)"):
        m.overlap({"w": left}, {"w": left, "v": left})
    with pytest.raises(ValueError, match=r"mask 'w' is torch.bool of shape \(4, 1\): expected bool \(1, 4\)"):
        m.overlap({"w": left}, {"w": left.t()})
