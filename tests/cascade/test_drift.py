"""The drift watch: its bounds and wealth against other formulas, how often it is wrong, how soon it is right."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from quorate.cascade import Policy, simulate
from quorate.cascade.drift import STAKES, Watch, interval, log_wealth, restart
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def known(low: float, high: float, delta: float = 0.05) -> Watch:
    """A watch whose null is given, not estimated."""
    data = Watch.of_counts(["a"], [10], [5], delta).to_dict()
    data["stages"][0] |= {"low": low, "high": high}
    return Watch.from_dict(data)


def alarmed(watch: Watch, passed: np.ndarray, batch: int) -> bool:
    for s in passed:
        watch.update_("a", batch, int(s))
    return bool(watch.alarms)


# --- the bounds and the wealth ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("passed", "reached"), [(0, 1), (0, 40), (7, 40), (40, 40), (200, 1000)])
@pytest.mark.parametrize("delta", [0.05, 0.2])
def test_the_interval_is_clopper_and_pearsons(passed: int, reached: int, delta: float) -> None:
    other = binomtest(passed, reached).proportion_ci(1 - delta, "exact")
    assert interval(passed, reached, delta) == pytest.approx((other.low, other.high), abs=1e-12)


def test_a_stage_without_rows_can_have_any_rate() -> None:
    watch = Watch.of_counts(["a"], [0], [0])
    assert watch.intervals == {"a": (0.0, 1.0)}
    watch.update_("a", 10**6, 10**6)
    assert watch.wealth["a"] <= 1
    assert watch.alarms == ()


def row_by_row(x: np.ndarray, low: float, high: float, starts: list[int]) -> float:
    """W with every bet placed on every row, in whole fractions."""
    lo, hi = Fraction(low), Fraction(high)
    weights = [Fraction(1, 2)] + [Fraction(1, 2 * (j + 1) * (j + 2)) for j in range(len(starts))]
    total = 1 - sum(weights)
    for weight, start in zip(weights, [0, *starts], strict=True):
        for f in map(Fraction, STAKES.tolist()):
            up = down = Fraction(1)
            for row in map(Fraction, x[start:].tolist()):
                up *= 1 + f / hi * (row - hi)
                down *= 1 - f / (1 - lo) * (row - lo)
            total += weight / (2 * len(STAKES)) * (up + down)
    return float(total)


@given(x=st.lists(st.integers(0, 1), max_size=30), low=st.floats(0, 0.4), high=st.floats(0.45, 1), at=st.integers(0, 30))
def test_the_wealth_is_what_bets_on_every_row_make(x: list[int], low: float, high: float, at: int) -> None:
    rows, starts = np.array(x, int), sorted({min(at, len(x)), len(x) // 2})
    counts = [(t, int(rows[:t].sum())) for t in starts]
    found = log_wealth(len(x), int(rows.sum()), low, high, counts)
    assert math.exp(found) == pytest.approx(row_by_row(rows, low, high, starts), rel=1e-9)


@pytest.mark.parametrize(
    ("p", "low", "high"), [(0.2, 0.2, 0.25), (0.25, 0.2, 0.25), (0.22, 0.2, 0.25), (0.0, 0.0, 0.1), (1, 0.9, 1)]
)
def test_the_mean_wealth_is_at_most_one_under_the_null_exactly(p: float, low: float, high: float) -> None:
    n, cut = 60, 25
    mean = 0.0
    for before in range(cut + 1):
        for after in range(n - cut + 1):
            weight = binom.pmf(before, cut, p) * binom.pmf(after, n - cut, p)
            if weight > 0:
                mean += weight * math.exp(log_wealth(n, before + after, low, high, [(cut, before)]))
    assert mean <= 1 + 1e-12


# --- how often it is wrong -------------------------------------------------------------------------------------------


def false_alarms(delta: float, estimated: bool, runs: int = 250, validation: int = 2000, rows: int = 100_000) -> float:
    """Share of runs with an alarm in ``rows`` inputs without drift; validation data are drawn anew in every run."""
    rng, batch, alarms = np.random.default_rng(0), 1000, 0
    for _ in range(runs):
        seen = int(rng.binomial(validation, 0.2))
        watch = (
            known(seen / validation, seen / validation, delta)
            if estimated
            else Watch.of_counts(["a"], [validation], [seen], delta)
        )
        alarms += alarmed(watch, rng.binomial(batch, 0.2, rows // batch), batch)
    return alarms / runs


@pytest.mark.slow
def test_false_alarms_are_rare_but_not_with_the_estimated_rate_as_the_null() -> None:
    delta = 0.2
    assert false_alarms(delta, estimated=False) <= delta
    assert false_alarms(delta, estimated=True) >= 0.5


@pytest.mark.slow
def test_false_alarms_of_a_thousand_runs() -> None:
    for delta in (0.05, 0.2):
        assert false_alarms(delta, estimated=False, runs=1000) <= delta
        assert false_alarms(delta, estimated=True, runs=300) >= 0.5


# --- how soon it is right --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "most"), [(0, 0.3, 1500), (0, 0.12, 1500), (200_000, 0.4, 8000), (200_000, 0.05, 8000)]
)
def test_a_shift_is_found_soon_also_after_a_long_quiet_time(before: int, after: float, most: int) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        watch = Watch.of_counts(["a"], [5000], [1000])
        assert not alarmed(watch, rng.binomial(500, 0.2, before // 500), 500)
        assert alarmed(watch, rng.binomial(100, after, most // 100), 100)


def test_without_restarts_the_same_shift_would_stay_unseen() -> None:
    n, s, more, after = 200_000, 40_000, 6000, 2400
    low, high = interval(1000, 5000, 0.025)
    assert log_wealth(n + more, s + after, low, high) < math.log(40)
    starts = [(restart(j), restart(j) // 5) for j in range(24)]
    assert log_wealth(n + more, s + after, low, high, starts) > math.log(40)


def test_alarms_stay_until_reset() -> None:
    watch = known(0.1, 0.3)
    watch.update_("a", 500, 400)
    assert watch.alarms == ("a",)
    watch.update_("a", 4000, 480)
    assert watch.wealth["a"] < 40
    assert watch.alarms == ("a",)
    watch.reset_()
    assert (watch.alarms, watch.rates, watch.intervals) == ((), {"a": None}, {"a": (0.1, 0.3)})
    assert watch.wealth == {"a": pytest.approx(1)}


# --- counts in batches -----------------------------------------------------------------------------------------------


@given(cuts=st.lists(st.integers(1, 999), max_size=8), seed=st.integers(0, 99))
def test_batches_split_elsewhere_change_nothing(cuts: list[int], seed: int) -> None:
    x = np.random.default_rng(seed).random(1562) < 0.3
    assert [restart(j) for j in range(3)] == [1000, 1250, 1562]
    whole, split = known(0.1, 0.3), known(0.1, 0.3)
    for watch, more in ((whole, []), (split, cuts)):
        ends = sorted({0, 1000, 1250, 1562, *more})
        for start, end in itertools.pairwise(ends):
            watch.update_("a", end - start, int(x[start:end].sum()))
    assert whole.log_wealth == split.log_wealth
    assert whole.rates == split.rates == {"a": x.mean()}


def test_ten_million_rows_are_no_matter_for_the_numbers() -> None:
    quiet, loud = known(0.1, 0.3), known(0.1, 0.3)
    for _ in range(100):
        quiet.update_("a", 10**5, 2 * 10**4)
        loud.update_("a", 10**5, 10**5)
    assert 0 < quiet.wealth["a"] < 1
    assert (loud.wealth["a"], loud.alarms, quiet.alarms) == (math.inf, ("a",), ())
    best = 1e7 * math.log1p(0.5 * 0.7 / 0.3) + math.log(0.5 / 24)
    assert loud.log_wealth["a"] == pytest.approx(best, rel=1e-12)


def test_a_restart_begins_with_the_first_update_from_its_row_on() -> None:
    watch = known(0.1, 0.3)
    for reached, passed in ((999, 200), (1, 1), (700, 140), (5, 0)):
        watch.update_("a", reached, passed)
    assert watch.to_dict()["stages"][0]["starts"] == [[1000, 201], [1700, 341], [1700, 341]]


def test_the_counts_are_those_of_the_policy_and_the_delta_is_shared() -> None:
    rng = np.random.default_rng(0)
    outputs = Outputs([(rng.normal(size=(1, 400, 3)) * 3) for _ in range(3)])
    policy = Policy.of(outputs, [(0.1, 0.5), (0.2, 0.5)])
    stage = simulate(policy, outputs).stage
    reach = [int((stage >= k).sum()) for k in range(3)]
    for delta, each in ((0.1, [0.05, 0.05]), ([0.02, 0.2], [0.02, 0.2])):
        watch = Watch.of(policy, outputs, delta)
        assert watch.names == ("stage0", "stage1")
        for k, name in enumerate(watch.names):
            other = binomtest(reach[k + 1], reach[k]).proportion_ci(1 - each[k] / 2, "exact")
            assert watch.intervals[name] == pytest.approx((other.low, other.high), abs=1e-12)
        assert [s["delta"] for s in watch.to_dict()["stages"]] == each


def test_it_goes_on_from_json() -> None:
    watch = Watch.of_counts(["a", "b"], [500, 100], [100, 50])
    watch.update_("a", 3000, 650)
    watch.update_("b", 650, 600)
    again = Watch.from_dict(json.loads(json.dumps(watch.to_dict(), allow_nan=False)))
    for one in (watch, again):
        one.update_("a", 3000, 640)
        one.update_("b", 50, 1)
    assert again.to_dict() == watch.to_dict()
    assert again.alarms == watch.alarms == ("b",)


# --- what it refuses -------------------------------------------------------------------------------------------------

GOOD = Watch.of_counts(["a"], [10], [5]).to_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Watch.of_counts([], [], []), "0 names, 0 and 0 counts: expected one each per stage but the last, at least one"),
        (lambda: Watch.of_counts(["a"], [10, 2], [5]), "1 names, 2 and 1 counts"),
        (lambda: Watch.of_counts(["a", "a"], [10, 2], [5, 2]), "2 names, 2 and 2 counts"),
        (lambda: Watch.of_counts(["a"], [10], [11]), "stage 'a': 11 of 10 rows went on, expected whole numbers with 0 ≤ passed"),
        (lambda: Watch.of_counts(["a"], [10], [2.5]), "stage 'a': 2.5 of 10 rows"),
        (lambda: Watch.of_counts(["a"], [10], [5], 0), "delta=0: expected a probability in"),
        (lambda: Watch.of_counts(["a"], [10], [5], "x"), "delta='x': expected a probability in"),
        (lambda: Watch.of_counts(["a"], [10], [5], [0.1, 1.0]), r"delta=\[0.1, 1.0\]: expected a probability in"),
        (lambda: Watch.of_counts(["a"], [10], [5], [0.1, 0.1]), "2 deltas for 1 stages: expected one per stage but the last"),
        (lambda: known(0.1, 0.3).update_("b", 1, 1), "stage 'b' is not watched: expected one of a"),
        (lambda: known(0.1, 0.3).update_("a", -1, -1), "stage 'a': -1 of -1 rows"),
        (lambda: Watch.from_dict([]), r"not a watch: \[\], expected 'quorate-watch/1' as Watch.to_dict gives it"),
        (lambda: Watch.from_dict(GOOD | {"format": "x"}), "not a watch: .*, expected 'quorate-watch/1'"),
        (lambda: Watch.from_dict(GOOD | {"stages": [{"name": "a"}]}), "not a stage's watch: {'name': 'a'}, expected alarm, delta"),
        (lambda: known(0.4, 0.3), "not a stage's watch: {'name': 'a', 'low': 0.4, .*…, expected what Watch.to_dict gives"),
        (lambda: known("x", 0.3), "not a stage's watch"),  # type: ignore[arg-type]
        (lambda: Watch.from_dict(GOOD | {"stages": [GOOD["stages"][0] | {"starts": [[1, 2]]}]}), "stage 'a': 2 of 1 rows"),
    ],
)  # fmt: skip
def test_what_it_refuses(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
