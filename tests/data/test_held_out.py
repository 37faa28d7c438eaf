"""Held-out classes: who stays under which number, who leaves, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quorate.data.held_out import hold_out, kept_classes


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.sets(st.integers(0, 6)))
def test_against_a_loop(labels: list[int], out: set[int]) -> None:
    assume(len(out) <= 5)
    kept = kept_classes(sorted(out, reverse=True), 7)
    rows, new, others = hold_out(np.array(labels, np.int64), kept)
    assert kept == [c for c in range(7) if c not in out]
    assert rows.tolist() == [i for i, c in enumerate(labels) if c not in out]
    assert new.tolist() == [kept.index(c) for c in labels if c not in out]
    assert others.tolist() == [i for i, c in enumerate(labels) if c in out]


@pytest.mark.parametrize(
    ("held_out", "count", "said"),
    [
        ((3,), 3, r"different classes in 0\.\.2, got \[3\]"),
        ((-1,), 3, r"got \[-1\]"),
        ((1, 1), 5, r"different classes .* got \[1, 1\]"),
        ((True,), 5, r"got \[True\]"),
        ((0.5,), 5, r"got \[0.5\]"),
        ((0, 1), 3, "at least two of 3 classes must be kept, .* leaves 1"),
    ],
)
def test_refuses(held_out: tuple, count: int, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        kept_classes(held_out, count)
    assert "\n" not in str(caught.value)
