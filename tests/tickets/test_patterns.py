"""Moves of masks: hand-worked tables, plain loops as reference, exact counts and forms for any shape and rate, ties, each error."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from quorate.tickets.patterns import NM, Blocks, Pattern, Unstructured
from quorate.tickets.selection import count_of, highest, highest_among, highest_of_rows

seeds = st.integers(0, 2**32 - 1)
rates = st.one_of(st.sampled_from([0.0, 0.07, 0.3, 0.5, 1.0]), st.floats(0, 1))
PATTERNS = [Unstructured(), NM(2, 4), NM(1, 3), Blocks(2, 3), Blocks(1, 4)]


def example(pattern: Pattern, seed: int, coarse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """A weight with its mask and scores, of a random shape that fits; coarse values make many ties."""
    rng = np.random.default_rng(seed)
    out, inp = int(rng.integers(1, 4)) * 2, int(rng.integers(1, 4)) * 12
    shape = (out, inp, *[(), (3,), (2, 2)][rng.integers(3)])
    wanted = {NM: Fraction(getattr(pattern, "n", 1), getattr(pattern, "m", 1))}.get(
        type(pattern), Fraction(int(rng.integers(1, 100)), 100)
    )
    live = pattern.live("w", shape, max(round(wanted * math.prod(shape)), 1))
    mask = pattern.draw(shape, live, rng)
    weight, score = torch.from_numpy(rng.normal(size=shape)), torch.from_numpy(rng.random(shape))
    if coarse:
        weight, score = weight.round(), score.round()
    if len(shape) == 4 and rng.random() < 0.5:
        weight, score = (t.to(memory_format=torch.channels_last) for t in (weight, score))
    return weight.masked_fill(~mask, 0), mask, score


def ceil(rate: float, count: int) -> int:
    return min(math.ceil(Fraction(rate) * count - Fraction(1, 10**6)), count)


def reference(
    weight: list[float], mask: list[bool], rate: float, score: list[float], groups: list[int] | None = None
) -> list[bool]:
    """One move by sorting pairs of value and index; with groups, each grows as many as it lost."""
    live = [i for i, on in enumerate(mask) if on]
    gone = sorted(live, key=lambda i: (abs(weight[i]), i))[: ceil(rate, len(live))]
    kept = set(live) - set(gone)
    of = groups or [0] * len(mask)
    for group in set(of):
        dead = sorted((i for i in range(len(mask)) if of[i] == group and i not in kept), key=lambda i: (-score[i], i))
        kept |= set(dead[: sum(of[i] == group for i in gone)])
    return [i in kept for i in range(len(mask))]


def test_the_update_of_the_specification() -> None:
    weight, score = torch.tensor([[4.0, 3, 2, 1, 0, 0]]), torch.tensor([[0.0, 0, 0, 0, 5, 9]])
    mask = torch.tensor([[True] * 4 + [False] * 2])
    assert Unstructured().move(weight, mask, 0.5, score).flatten().nonzero().flatten().tolist() == [0, 1, 4, 5]
    even = [Unstructured().move(weight, mask, 0.5, torch.ones(1, 6)) for _ in range(2)]
    assert even[0].tolist() == even[1].tolist() == [[True] * 4 + [False] * 2]  # the lowest of the dead 2, 3, 4, 5


def test_more_to_grow_than_were_dead() -> None:
    weight, mask = torch.tensor([[1.0, 2, 3, 4, 5]]), torch.tensor([[True, True, True, True, False]])
    moved = Unstructured().move(weight, mask, 0.75, torch.tensor([[1.0, 5, 4, 9, 2]]))
    assert moved.tolist() == [[False, True, True, True, True]]


def test_two_of_four_by_hand() -> None:
    weight = torch.tensor([[1.0, 2, 0, 0, 0, 8, 9, 0]])
    mask = weight != 0
    score = torch.tensor([[0.0, 1, 3, 2, 7, 7, 7, 9]])
    moved = NM(2, 4).move(weight, mask, 0.5, score)  # 1 and 2 are dropped: their group grows the scores 3 and 2
    assert moved.int().tolist() == [[0, 0, 1, 1, 0, 1, 1, 0]]
    assert NM(2, 4).move(weight, mask, 0.75, score).int().tolist() == [[0, 0, 1, 1, 0, 0, 1, 1]]


def test_groups_of_a_convolution_run_over_inputs() -> None:
    mask = torch.zeros(1, 4, 1, 2, dtype=torch.bool)
    mask[0, :2, 0, 0] = mask[0, 2:, 0, 1] = True
    assert NM(2, 4).fits(mask)
    assert not NM(1, 2).fits(mask)
    mask[0, 2] = torch.tensor([[True, False]])  # two in each four of row-major order, but three at the first position
    assert mask.reshape(2, 4).sum(1).tolist() == [2, 2]
    assert not NM(2, 4).fits(mask)


def test_blocks_by_hand() -> None:
    weight = torch.tensor([[3.0, -3, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]])
    mask = Blocks(2, 2)._spread(torch.tensor([[True, True], [False, False]]))
    score = torch.zeros(4, 4)
    score[2, 0], score[2:, 2:], score[0, 2] = 5, 2, 1  # the sums: lower left 5, lower right 8, upper right 1
    moved = Blocks(2, 2).move(weight, mask, 0.5, score)
    assert moved.int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]


def test_sums_of_blocks_are_taken_in_float32() -> None:
    weight = torch.tensor([[256.0, 1, 128, 128, 0, 0]], dtype=torch.bfloat16)  # in bfloat16 both sums would be 256
    moved = Blocks(1, 2).move(weight, weight != 0, 0.5, torch.tensor([[0, 0, 0, 0, 1.0, 1]]))
    assert moved.int().tolist() == [[1, 1, 0, 0, 1, 1]]


@given(seeds, rates, st.booleans())
def test_unstructured_and_nm_against_plain_loops(seed: int, rate: float, coarse: bool) -> None:
    for pattern in (Unstructured(), NM(1, 4)):
        weight, mask, score = example(pattern, seed, coarse)
        groups = None
        if isinstance(pattern, NM):
            index = torch.arange(mask.numel()).reshape(mask.movedim(1, -1).shape) // 4
            groups = index.movedim(-1, 1).flatten().tolist()
        moved = pattern.move(weight, mask, rate, score)
        assert moved.flatten().tolist() == reference(
            weight.flatten().tolist(), mask.flatten().tolist(), rate, score.flatten().tolist(), groups
        )


@settings(max_examples=40)
@given(seeds, rates, st.booleans())
def test_blocks_against_plain_loops(seed: int, rate: float, coarse: bool) -> None:
    pattern = Blocks(2, 3)
    weight, mask, score = example(pattern, seed, coarse)
    weight, score = (weight * 8).round(), (score * 8).round()  # sums without rounding, whatever their order
    blocks: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for at in np.ndindex(*mask.shape):
        blocks.setdefault((at[0] // 2, at[1] // 3, *at[2:]), []).append(at)
    keys = sorted(blocks)
    sums = [[float(sum(t[at] for at in blocks[key])) for key in keys] for t in (weight.abs(), score)]
    wanted = reference(sums[0], [bool(mask[blocks[key][0]]) for key in keys], rate, sums[1])
    moved = pattern.move(weight, mask, rate, score)
    assert all(bool(moved[at]) == on for key, on in zip(keys, wanted, strict=True) for at in blocks[key])


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=40)
@given(
    seed=seeds,
    rate=rates,
    coarse=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_form_and_count_hold(pattern: Pattern, seed: int, rate: float, coarse: bool, dtype: torch.dtype) -> None:
    weight, mask, score = example(pattern, seed, coarse)
    weight, before, live = weight.to(dtype), mask.clone(), int(mask.sum())
    assert live == pattern.live("w", mask.shape, live)
    assert pattern.fits(mask)
    for _ in range(3):
        moved = pattern.move(weight, mask, rate, score, live=live)
        assert moved.dtype == torch.bool
        assert moved.shape == mask.shape
        assert int(moved.sum()) == live
        assert pattern.fits(moved)
        assert torch.equal(moved, pattern.move(weight, mask, rate, score))
        n = ceil(rate, live) if not isinstance(pattern, Blocks) else ceil(rate, live // (pattern.rows * pattern.columns))
        assert int((mask & ~moved).sum()) <= n * (pattern.rows * pattern.columns if isinstance(pattern, Blocks) else 1)
        mask, weight, score = moved, weight.masked_fill(~moved, 0), score.flip(0)
    assert torch.equal(before, example(pattern, seed, coarse)[1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_nothing_moves_at_rate_zero_or_where_all_is_live(pattern: Pattern) -> None:
    weight, mask, score = example(pattern, 1)
    still = pattern.move(weight, mask, 0, score)
    assert torch.equal(still, mask)
    assert still is not mask
    full = pattern.draw(mask.shape, mask.numel(), np.random.default_rng(0))
    assert bool(full.all())
    assert pattern.live("w", mask.shape, mask.numel()) == mask.numel()
    assert pattern.move(weight, full, 0.5, score, live=mask.numel()) is full


@pytest.mark.parametrize("pattern", PATTERNS)
def test_draws_follow_the_seed_and_reach_every_place(pattern: Pattern) -> None:
    shape = (4, 12, 2)
    live = pattern.live("w", shape, {NM(2, 4): 48, NM(1, 3): 32}.get(pattern, 36))
    drawn = [pattern.draw(shape, live, np.random.default_rng(s)) for s in (*range(60), 7)]
    assert torch.equal(drawn[7], drawn[60])
    assert {int(mask.sum()) for mask in drawn} == {live}
    share = torch.stack(drawn).double().mean(0)
    assert 0.0 < float(share.min()) < live / 96 < float(share.max()) < 1.0


def test_infinite_live_weights_are_the_last_to_go() -> None:
    weight, mask = torch.tensor([[torch.inf, 0.0, -torch.inf, 1.0]]), torch.tensor([[True, False, True, True]])
    assert Unstructured().move(weight, mask, 0.3, torch.tensor([[0.0, torch.inf, 0, 1]])).tolist() == [[True, True, True, False]]


def test_legal_counts() -> None:
    assert [Blocks(2, 3).live("w", (4, 12), k) for k in (1, 8, 9, 10, 47, 48)] == [6, 6, 12, 12, 48, 48]
    assert NM(2, 4).live("w", (3, 8, 3, 3), 108) == 108
    assert [Unstructured().live("w", (4, 12), k) for k in (1, 7, 48)] == [1, 7, 48]


@pytest.mark.parametrize(
    ("pattern", "shape", "wanted", "match"),
    [
        (
            NM(2, 4),
            (8, 3, 3, 3),
            36,
            r"weight 'stem' of shape \(8, 3, 3, 3\) has 3 inputs: expected a multiple of 4 for NM\(n=2, m=4\), or pass",
        ),
        (
            NM(1, 4),
            (8, 8),
            20,
            r"'stem' is to keep 20 of 64 weights: NM\(n=1, m=4\) keeps 16, ask for the uniform density 0.25, or pass 'stem' in",
        ),
        (
            Blocks(4, 4),
            (6, 8),
            20,
            r"multiples of 4 outputs and 4 inputs, Blocks\(2, 4\) would fit, or pass 'stem' in dense=\[...\]",
        ),
        (Unstructured(), (6, 8), 0, r"weight 'stem' of shape \(6, 8\) is to keep 0 live weights: expected 1 … 48"),
        (Blocks(1, 1), (6, 8), 49, "expected 1 … 48"),
        (Unstructured(), (6,), 3, r"weight 'stem' has shape \(6,\): expected \(out, in, …\)"),
    ],
)
def test_shapes_and_counts_that_cannot_be(pattern: Pattern, shape: tuple[int, ...], wanted: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pattern.live("stem", shape, wanted)


def test_a_count_that_is_not_legal_is_not_drawn() -> None:
    with pytest.raises(
        ValueError,
        match=r"Blocks\(rows=4, columns=4\) can't have 20 live weights in shape \(8, 8\): the nearest legal count is 16",
    ):
        Blocks().draw((8, 8), 20, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("make", "match"), [(lambda: NM(4, 4), "expected 0 < n < m"), (lambda: NM(0, 2), "NM"), (lambda: Blocks(0, 2), "at least 1")]
)
def test_patterns_that_cannot_be(make: type, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_moves_that_cannot_be() -> None:
    pattern, weight = Unstructured(), torch.ones(2, 4)
    mask, score = weight == torch.tensor([1.0, 1, 0, 0]), torch.ones(2, 4)
    for given_, match in [
        ((weight, mask.t(), 0.5, score), r"mask is torch.bool of shape \(4, 2\)"),
        ((weight, mask.float(), 0.5, score), "mask is torch.float32"),
        ((weight, mask, 1.1, score), r"rate=1.1: expected the share of live weights to drop, in \[0, 1\]"),
        ((weight, mask, math.nan, score), "rate=nan"),
        ((weight, mask, 0.5, score[:1]), r"score has shape \(1, 4\): expected \(2, 4\)"),
        ((weight, mask, 0.5, score * math.nan), "score has NaN or values below 0"),
        ((weight, mask, 0.5, -score), "score has NaN or values below 0"),
        ((weight * math.nan, mask, 0.5, score), "weight has NaN"),
    ]:
        with pytest.raises(ValueError, match=match):
            pattern.move(*given_)
    with pytest.raises(ValueError, match=r"mask has 4 live weights: expected live=5, counts never change"):
        pattern.move(weight, mask, 0.5, score, live=5)
    for wrong in (NM(1, 4), Blocks(1, 4), Blocks(4, 2), NM(2, 3)):
        with pytest.raises(ValueError, match="has not the form of"):
            wrong.move(weight, mask, 0.5, score)


def test_a_share_is_rounded_up_but_not_for_the_rounding_of_a_product() -> None:
    assert 0.07 * 100 > 7
    assert [count_of(*case) for case in ((0.07, 100), (0.5, 5), (0.001, 5), (0.0, 5), (1.0, 5))] == [7, 3, 1, 0, 5]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=30), st.data())
def test_selection_prefers_the_lowest_index(values: list[int], data: st.DataObject) -> None:
    n = data.draw(st.integers(0, len(values)))
    tensor, indices = torch.tensor(values, dtype=torch.float32), range(len(values))
    assert highest(tensor, n).nonzero().flatten().tolist() == sorted(sorted(indices, key=lambda i: (-values[i], i))[:n])
    places = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values))), dtype=torch.bool)
    among = [i for i in indices if places[i]]
    k = data.draw(st.integers(0, len(among)))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        chosen = highest_among(tensor.to(dtype), places, k).nonzero().flatten().tolist()
        assert chosen == sorted(sorted(among, key=lambda i: (-values[i], i))[:k])
    rows = torch.stack([tensor, -tensor])
    both = highest_of_rows(rows, torch.tensor([[n], [len(values) - n]]))
    assert torch.equal(both[0], highest(tensor, n))
    assert torch.equal(both[1], highest(-tensor, len(values) - n))
