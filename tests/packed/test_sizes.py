"""Sizes that are partly unknown are numbers with names; regrouping is what a reshape does, shown with NumPy."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.packed.sizes import BATCH, Size, product, regroup

NAMES = {"batch": 7, "conv.2": 3, "conv.3": 11}  # primes, so that different products differ
sizes = st.builds(
    lambda n, names: Size(n, tuple(sorted(names))), st.integers(1, 12), st.lists(st.sampled_from(list(NAMES)), max_size=2)
)


def value(size: Size) -> int:
    return int(np.prod([size.number, *(NAMES[name] for name in size.unknown)]))


@given(sizes, sizes, st.fractions(Fraction(1, 6), 6, max_denominator=6))
def test_arithmetic_is_that_of_the_values(a: Size, b: Size, ratio: Fraction) -> None:
    assert value(a * b) == value(a) * value(b)
    assert a * b == b * a
    assert (a * b).over(b) == a
    quotient = a.over(b)
    assert quotient is None or (quotient * b == a and value(quotient) * value(b) == value(a))
    if a.known and b.known:
        assert (quotient is None) == (a.number % b.number != 0)
    scaled = a.times(ratio)
    assert (scaled is None) == ((a.number * ratio).denominator != 1)
    assert scaled is None or value(scaled) == value(a) * ratio
    assert product([a, b, Size()]) == a * b


def test_words() -> None:
    assert [str(s) for s in (Size(), Size(64), Size(1, (BATCH,)), Size(4, ("a", "b")))] == ["1", "64", "batch", "4 · a · b"]
    assert Size(3).known
    assert not Size(3, (BATCH,)).known
    assert Size(0).over(Size(0)) is None
    assert product([]) == Size()


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[list[Size], list[Size]]:
    """Two ways to cut one list of factors into dimensions, ones put in anywhere."""
    factors = draw(
        st.lists(
            st.one_of(st.sampled_from([Size(2), Size(3), Size(5)]), st.sampled_from([Size(1, (n,)) for n in NAMES])),
            min_size=1,
            max_size=5,
        )
    )

    def cut() -> list[Size]:
        dims, todo = [], list(factors)
        while todo:
            take = draw(st.integers(1, len(todo)))
            dims.append(product(todo[:take]))
            todo = todo[take:]
        for _ in range(draw(st.integers(0, 2))):
            dims.insert(draw(st.integers(0, len(dims))), Size())
        return dims

    return cut(), cut()


@settings(max_examples=300, deadline=None)
@given(reshapes())
def test_groups_are_what_a_reshape_turns_into_one_another(drawn: tuple[list[Size], list[Size]]) -> None:
    before, after = drawn
    groups = regroup(before, after)
    assert groups is not None
    assert [i for left, _ in groups for i in left] == list(range(len(before)))
    assert [j for _, right in groups for j in right] == list(range(len(after)))
    for left, right in groups:
        assert product(before[i] for i in left) == product(after[j] for j in right)
    old, new = [value(d) for d in before], [value(d) for d in after]
    index = np.arange(int(np.prod(old))).reshape(old)
    for left, right in groups:  # where we are in a group before tells where we are in it after, whatever the others are
        inside = [old[i] for i in left]
        place = np.indices(old)[left[0] : left[-1] + 1].reshape(len(left), -1)
        flat = np.ravel_multi_index(tuple(place), inside)
        there = np.indices(new)[right[0] : right[-1] + 1].reshape(len(right), -1)
        assert np.array_equal(flat[index.reshape(-1)], np.ravel_multi_index(tuple(there), [new[j] for j in right]))


@given(st.lists(sizes, min_size=1, max_size=4), st.lists(sizes, min_size=1, max_size=4))
def test_groups_exist_only_for_equal_totals(before: list[Size], after: list[Size]) -> None:
    if regroup(before, after) is not None:
        assert product(before) == product(after)


def test_groups_by_hand() -> None:
    batch, pixels = Size(1, (BATCH,)), Size(1, ("n",))
    assert regroup([batch, Size(6), pixels], [batch, Size(2), Size(3), pixels]) == [([0], [0]), ([1], [1, 2]), ([2], [3])]
    assert regroup([batch, Size(4), Size(6)], [batch, Size(8), Size(3)]) == [([0], [0]), ([1, 2], [1, 2])]
    assert regroup([batch, Size(4)], [batch * Size(4)]) == [([0, 1], [0])]
    assert regroup([batch], [batch, Size()]) == [([0], [0, 1])]
    assert regroup([batch, Size(4)], [batch, Size(5)]) is None
    assert regroup([batch, Size(4)], [batch]) is None
    assert regroup([], []) == []
