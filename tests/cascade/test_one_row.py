"""A single row takes a shorter way through the executor: its results, counts and what is learnt are those of the long way, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, StagePolicy, Watch

pytestmark = pytest.mark.deciding

NEVER = 1e30  # a cap that nothing reaches takes the long way


class Table:
    """A stage that looks its members up by the row's number, and carries the number on."""

    def __init__(self, name: str, values: Any, reads: tuple[str, ...] = ()) -> None:
        self.name, self.values, self.reads, self.macs = name, values, reads, None
        self.writes: tuple[str, ...] = ("seen",)
        self.drops: tuple[str, ...] = ()

    def __call__(self, x: Any, carry: Any) -> Any:
        seen = carry.get("seen", np.zeros(len(x))) + 1
        at = x.astype(int)
        if isinstance(self.values, tuple):
            return tuple(value[at] for value in self.values), {"seen": seen}
        return self.values[:, at], {"seen": seen}


@given(
    seed=st.integers(0, 10_000),
    uncertainty=st.sampled_from(["msp", "entropy", "margin", "energy", "max_logit", "mutual_information", "variation_ratio"]),
    combine=st.sampled_from(["probs", "logits", "last"]),
    temperature=st.sampled_from([1.0, 0.7]),
    rate=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_a_row_alone_is_what_it_is_the_long_way(
    seed: int, uncertainty: str, combine: Any, temperature: float, rate: bool
) -> None:
    assume(not (combine == "logits" and uncertainty == "mutual_information"))
    rng = np.random.default_rng(seed)
    stages = [Table(f"s{k}", rng.normal(size=(2, 9, 4)).astype(np.float32), ("seen",) if k else ()) for k in range(3)]
    scaled = uncertainty in ("msp", "entropy", "margin")
    join = "replace" if combine == "last" else "mean"
    low, high = np.sort(rng.normal(size=2))
    how: dict[str, Any] = {"rate": 0.5, "seed": seed} if rate else {"window": (float(low), float(high) + 1)}
    rules = [
        StagePolicy(
            f"s{k}", join, temperature if scaled else 1.0, tau=float(rng.normal()), cost=k + 1.0, **(how if k < 2 else {})
        )
        for k in range(3)
    ]
    policy = Policy(tuple(rules), uncertainty, "logits", combine)
    short, long = Cascade(stages, policy, memory=5), Cascade(stages, policy, memory=5, cap=NEVER)
    for i in range(9):
        x = np.array([float(i)])
        one, other = short.predict(x), long.predict(x)
        for key in ("label", "probs", "uncertainty", "accepted", "stage", "macs"):
            a, b = getattr(one, key), getattr(other, key)
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        assert one.names == other.names
    assert [(s.rows, s.calls, s.exits, s.accepted) for s in short.counters.stages] == [
        (s.rows, s.calls, s.exits, s.accepted) for s in long.counters.stages
    ]
    for a, b in zip(short._recent.scores(), long._recent.scores(), strict=True):  # type: ignore[union-attr]
        np.testing.assert_array_equal(a, b)


def test_labels_with_one_probability_and_the_watch() -> None:
    rng = np.random.default_rng(0)
    stages = [Table(f"s{k}", (rng.integers(0, 3, 20), rng.random(20))) for k in range(2)]
    policy = Policy(
        (StagePolicy("s0", "replace", window=(0.2, 0.6), tau=0.5), StagePolicy("s1", "replace")), kind="top1", combine="last"
    )
    watches = [Watch.of_counts(["s0"], [100], [40]) for _ in range(2)]
    short, long = Cascade(stages, policy, watch=watches[0]), Cascade(stages, policy, watch=watches[1], cap=NEVER)
    for i in range(20):
        one, other = short.predict(np.array([float(i)])), long.predict(np.array([float(i)]))
        assert one.probs is None
        assert (one.label, one.uncertainty, one.accepted, one.stage) == (
            other.label,
            other.uncertainty,
            other.accepted,
            other.stage,
        )
    assert watches[0].to_dict() == watches[1].to_dict()


def test_what_a_stage_does_wrong_is_told_of_a_row_alone_too() -> None:
    values = np.full((1, 3, 2), np.nan)
    cascade = Cascade([Table("s0", values)], Policy((StagePolicy("s0"),)))
    with pytest.raises(ValueError, match="stage 's0' has NaN or infinite values in rows 0"):
        cascade.predict(np.zeros(1))
