"""Drop rates against their formulas; the timeline against the paper's schedules, and its phases for any numbers."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorate.tickets import Timeline, drop_rate

CIFAR = Timeline(450, 3, 150)


@pytest.mark.parametrize(
    ("decay", "rate", "values"),
    [
        ("constant", 0.5, (0.5, 0.5, 0.5, 0.5)),
        ("cosine", 0.5, (0.5, 0.005 + 0.495 * (1 + math.sqrt(0.5)) / 2, 0.2525, 0.005)),
        ("cosine", 0.005, (0.005, 0.005, 0.005, 0.005)),
        ("rigl", 0.3, (0.3, 0.15 * (1 + math.sqrt(0.5)), 0.15, 0.0)),
    ],
)
def test_drop_rates(decay: Any, rate: float, values: tuple[float, ...]) -> None:
    for progress, value in zip((0.0, 0.25, 0.5, 1.0), values, strict=True):
        assert drop_rate(decay, rate, progress) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("linear", 0.5, 0.0), "decay='linear': expected one of constant, cosine, rigl"),
        (("constant", 1.1, 0.0), r"rate=1.1: expected a share of the live weights in \[0, 1\]"),
        (("rigl", math.nan, 0.0), r"rate=nan: expected a share of the live weights in \[0, 1\]"),
        (("cosine", 0.004, 0.0), r"rate=0.004: expected a share of the live weights in \[0.005, 1\]"),
        (("rigl", 0.5, 1.01), r"progress=1.01: expected a share of the phase in \[0, 1\]"),
        (("rigl", 0.5, math.nan), "progress=nan"),
    ],
)
def test_rates_that_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drop_rate(*arguments)


def test_the_paper_on_cifar() -> None:
    assert CIFAR.refinement == 100
    assert CIFAR.ends == [150, 250, 350, 450]
    assert CIFAR.events() == [
        (250, "ticket", 0),
        (250, "escape", 0),
        (350, "ticket", 1),
        (350, "escape", 1),
        (450, "ticket", 2),
    ]
    rates = [0.1 * CIFAR.lr_factor(epoch) for epoch in range(450)]
    expected = [0.1] * 150 + 3 * ([0.01] * 50 + [0.001] * 50)
    assert rates == pytest.approx(expected, rel=1e-12)
    assert CIFAR.lr_factor(450) == 0.01
    assert [CIFAR.phase(epoch) for epoch in (0, 149, 150, 249, 250, 349, 350, 449, 450, 999)] == [
        *2 * [(-1, 0, 150)],
        *2 * [(0, 150, 250)],
        *2 * [(1, 250, 350)],
        *4 * [(2, 350, 450)],
    ]


def test_the_paper_with_seven_tickets_and_on_imagenet() -> None:
    seven = Timeline(850, 7, 150)
    assert seven.refinement == 100
    assert [event.epoch for event in seven.events() if event.kind == "escape"] == [250, 350, 450, 550, 650, 750]
    assert [event.epoch for event in seven.events() if event.kind == "ticket"] == [250, 350, 450, 550, 650, 750, 850]
    imagenet = Timeline(310, 4, 30)
    assert imagenet.ends == [30, 100, 170, 240, 310]
    assert [tuple(event) for event in imagenet.events()] == [
        *[(end, kind, m) for m, end in enumerate((100, 170, 240)) for kind in ("ticket", "escape")],
        (310, "ticket", 3),
    ]


def test_an_exploration_of_a_third_is_the_default() -> None:
    assert Timeline(450, 3).exploration == 150
    assert Timeline(450, 3) == CIFAR
    assert Timeline(850, 7).exploration == 850 - 7 * 80
    assert Timeline(2, 1, factors=(0.1,)).ends == [1, 2]
    with pytest.raises(
        ValueError, match=r"epochs=4 with a third for the exploration leave 2 for 3 refinements: expected .*, epochs ≥ 5"
    ):
        Timeline(4, 3)


@given(st.integers(1, 12), st.integers(1, 5), st.one_of(st.none(), st.integers(1, 9)), st.integers(1, 4), st.integers(1, 3))
def test_phases_tile_the_epochs(refinement: int, members: int, exploration: int | None, parts: int, steps: int) -> None:
    parts = min(parts, refinement)
    epochs = -(-members * refinement * 3 // 2) if exploration is None else exploration + members * refinement
    factors = tuple(0.5**k for k in range(1, parts + 1))
    timeline = Timeline(epochs, members, exploration, factors)
    events = timeline.events()
    assert [event.member for event in events if event.kind == "ticket"] == list(range(members))
    assert [event.member for event in events if event.kind == "escape"] == list(range(members - 1))
    assert [event.epoch for event in events] == sorted(event.epoch for event in events)
    assert len(timeline.ends) == members + 1
    assert timeline.ends[-1] == epochs
    assert timeline.exploration is not None
    if exploration is None:
        assert 3 * timeline.exploration >= epochs
        assert 3 * (timeline.exploration - members) < epochs
    first = 0
    for m, end in enumerate(timeline.ends, -1):
        assert end > first
        assert all(timeline.phase(epoch) == (m, first, end) for epoch in range(first, end))
        first = end
    for step in range(epochs * steps):
        into = step - timeline.exploration * steps
        part = into % (timeline.refinement * steps) * parts // (timeline.refinement * steps)
        assert timeline.lr_factor(Fraction(step, steps)) == (1.0 if into < 0 else factors[part])


@pytest.mark.parametrize("seed", range(3))
def test_parts_that_end_inside_an_epoch_are_exact(seed: int) -> None:
    timeline = Timeline(101 + seed + 2 * 4, 2, 101 + seed, (0.5, 0.25, 0.125))
    for step in range(4 * 3):  # 4 epochs of 3 steps, in three parts of 4 steps
        assert timeline.lr_factor(Fraction((101 + seed) * 3 + step, 3)) == 0.5 ** (1 + step // 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 0, 4), "members=0: expected at least 1 ticket"),
        ((10, True, 4), "members=True: expected an integer"),
        ((10.0, 2, 4), "epochs=10.0: expected an integer"),
        ((10, 2, 4.0), "exploration=4.0: expected an integer"),
        ((10, 2, 0), "exploration=0: expected at least one epoch before the first refinement"),
        ((10, 2, 9), "epochs=10 with exploration=9 leave 1 for 2 refinements: expected at least one each, epochs ≥ 11"),
        ((10, 2, 12), "epochs=10 with exploration=12 leave 0 for 2 refinements: expected at least one each, epochs ≥ 14"),
        ((10, 3, 3), "leave 7 for 3 equal refinements: expected epochs=9 or 12, or an exploration of 4"),
        ((10, 2, 4, ()), r"factors=\(\): expected a finite factor > 0"),
        ((10, 2, 4, (0.1, 0.0)), r"factors=\(0.1, 0.0\): expected a finite factor > 0"),
        ((10, 2, 4, (math.inf,)), r"factors=\(inf,\): expected a finite factor > 0"),
        ((10, 2, 4, (True,)), r"factors=\(True,\): expected a finite factor > 0"),
        ((10, 2, 4, 0.1), "factors=0.1: expected a finite factor > 0"),
        ((10, 2, 4, "0.1"), "factors='0.1': expected a finite factor > 0"),
        ((10, 2, 6, (0.1, 0.01, 0.001)), "a refinement of 2 epochs can't have 3 parts: expected as many epochs as"),
    ],
)
def test_timelines_that_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Timeline(*arguments)
    assert "\n" not in str(refusal.value)
