"""Any prefix of a staged ensemble is an answer: which one, that it equals the stored ensemble's, what it costs, what is kept for it."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given
from hypothesis import strategies as st

from quorate.cascade import Anytime, Policy, Step, fit_temperature, simulate
from quorate.cascade.temperature import TemperatureBoundWarning
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.metrics import mixture_moments
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


class Stored:
    """A stage that looks its answers up: ``x`` holds row numbers. Notes how many rows every call saw."""

    def __init__(self, value: Any, name: str, macs: float | None = None) -> None:
        self.value, self.name, self.macs = value, name, macs
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.drops: tuple[str, ...] = ()
        self.calls: list[int] = []

    def __call__(self, x: np.ndarray, carry: Any) -> tuple[Any, dict[str, Any]]:
        assert dict(carry) == {}
        self.calls.append(len(x))
        return self.value[:, x], {}


class Carrying:
    """A stage that only carries: it writes new arrays of the names it declares, which ``made`` does not keep alive."""

    def __init__(self, name: str, reads: str = "", writes: str = "", drops: str = "") -> None:
        self.name, self.macs = name, 1.0
        self.reads, self.writes, self.drops = tuple(reads), tuple(writes), tuple(drops)
        self.got: list[str] = []
        self.made: dict[str, weakref.ref[np.ndarray]] = {}

    def __call__(self, x: np.ndarray, carry: Any) -> tuple[Any, dict[str, Any]]:
        self.got = sorted(carry)
        written = {name: np.full((len(x), 2), ord(name), float) for name in self.writes}
        self.made = {name: weakref.ref(array) for name, array in written.items()}
        return np.zeros((1, len(x), 2)), written


def drawn(seed: int = 0, n: int = 30, stages: int = 3, classes: int = 3, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    values = [(rng.normal(size=(1 + k % 2, n, classes)) * 3).astype(np.float32) for k in range(stages)]
    labels = np.where(rng.random(n) < 0.7, sum(value.mean(0) for value in values).argmax(-1), rng.integers(0, classes, n))
    return Outputs(values, **({"costs": [1.0, 10.0, 100.0, 1000.0][:stages], "labels": labels} | options))


def stored(outputs: Outputs) -> list[Stored]:
    costs = outputs.costs or [None] * outputs.stages
    return [Stored(value, name, cost) for value, name, cost in zip(outputs.values, outputs.names, costs, strict=True)]


def anytime(outputs: Outputs, **options: Any) -> tuple[Anytime, list[Stored]]:
    members = stored(outputs)
    return Anytime(members, outputs.kind, outputs.combine, **options), members


def assert_same(a: Step, b: Step) -> None:
    for name in ("label", "probs", "uncertainty", "values", "variance"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert (a.stage, a.name, a.macs, a.late, len(a)) == (b.stage, b.name, b.macs, b.late, len(b))


# --- what a prefix says ----------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 10**6),
    stages=st.integers(1, 4),
    n=st.integers(1, 40),
    combine=st.sampled_from(["probs", "logits", "last"]),
    name=st.sampled_from(["msp", "entropy", "margin", "energy", "max_logit"]),
    temperature=st.sampled_from([1.0, 0.5, 3.0]),
)
def test_every_prefix_is_the_stored_and_the_simulated_one_bit_for_bit(
    seed: int, stages: int, n: int, combine: Any, name: str, temperature: float
) -> None:
    outputs = drawn(seed, n, stages, combine=combine)
    scaled = name in ("msp", "entropy", "margin")
    temperatures = [temperature + k if scaled else 1.0 for k in range(stages)]
    made, _ = anytime(outputs, temperatures=temperatures, uncertainty=name)
    for k, step in enumerate(made.steps(np.arange(n))):
        assert (step.stage, step.name, step.late, len(step)) == (k, outputs.names[k], False, n)
        assert step.probs is not None
        assert step.values is step.variance is None
        prefix = outputs.prefix(k + 1)
        np.testing.assert_array_equal(step.label, prefix.predictions())
        np.testing.assert_array_equal(step.uncertainty, uncertainty_of(prefix, name, temperature=temperatures[k]))
        said = simulate(Policy.of(prefix, uncertainty=name, temperatures=temperatures[: k + 1]), prefix)
        for field in ("label", "probs", "uncertainty"):
            np.testing.assert_array_equal(getattr(step, field), getattr(said, field), err_msg=field)
        if temperatures[k] == 1.0:
            np.testing.assert_array_equal(step.probs, outputs.probs(k + 1))
        assert step.macs == said.macs[0]
        assert_same(made.predict(np.arange(n), stages=k + 1), step)
    assert_same(made.predict(np.arange(n)), step)


@given(seed=st.integers(0, 10**6), stages=st.integers(1, 9), n=st.integers(1, 9))
def test_a_prefix_is_the_offline_mean_of_logits_and_of_values(seed: int, stages: int, n: int) -> None:
    members = np.random.default_rng(seed).normal(size=(stages, n, 4)) * 5
    parts = [Stored(member[None], f"f{k}") for k, member in enumerate(members)]
    x = np.arange(n)
    mean = np.zeros((n, 4))
    for k, (logits, values) in enumerate(
        zip(Anytime(parts, "logits", "logits").steps(x), Anytime(parts, "values").steps(x), strict=True)
    ):
        mean += (members[k] - mean) / (k + 1)  # the streaming form
        np.testing.assert_allclose(values.values, members[: k + 1].mean(0), atol=1e-12)
        np.testing.assert_allclose(values.values, mean, atol=1e-12)
        np.testing.assert_allclose(logits.probs, scipy.special.softmax(members[: k + 1].mean(0), -1), atol=1e-12)
        assert values.label is values.probs is values.uncertainty is values.variance is values.macs is None
        assert len(values) == n


def test_regression_mixtures_and_the_last_stage_alone() -> None:
    members = np.random.default_rng(1).normal(size=(3, 2, 5, 4))
    parts = [Stored(member, f"f{k}") for k, member in enumerate(members)]
    for k, step in enumerate(Anytime(parts, "gaussian").steps(np.arange(5))):
        joined = members[: k + 1].reshape(-1, 5, 4)
        mean, variance = mixture_moments(joined[..., :2], np.exp(joined[..., 2:]))
        np.testing.assert_allclose(step.values, mean, rtol=1e-14)
        np.testing.assert_allclose(step.variance, variance, rtol=1e-14)
        stored_mean, stored_variance = Outputs(list(members), kind="gaussian").gaussian(k + 1)
        np.testing.assert_array_equal(step.values, stored_mean)
        np.testing.assert_array_equal(step.variance, stored_variance)
    for k, step in enumerate(Anytime(parts, "values", "last").steps(np.arange(5))):
        np.testing.assert_allclose(step.values, members[k].mean(0), rtol=1e-14)
    with pytest.raises(ValueError, match=r"gaussian members have 3 columns: expected 2·D"):
        Anytime([Stored(np.zeros((1, 5, 3)), "f")], "gaussian").predict(np.arange(5))
    with pytest.raises(ValueError, match=r"a member has shape \(5, 2\) where the earlier ones have \(5, 4\)"):
        Anytime([parts[0], Stored(np.zeros((1, 5, 2)), "g")], "values").predict(np.arange(5))


def test_measures_that_need_two_members_and_those_that_no_temperature_moves() -> None:
    values = np.random.default_rng(0).normal(size=(2, 2, 6, 3))
    parts = [Stored(value, f"f{k}") for k, value in enumerate(values)]
    step = Anytime(parts, uncertainty="mutual_information").predict(np.arange(6))
    np.testing.assert_array_equal(step.uncertainty, uncertainty_of(Outputs(list(values)), "mutual_information"))
    energies = [Anytime(parts, uncertainty="energy", temperatures=[1, t]).predict(np.arange(6)) for t in (1.0, 2.0)]
    np.testing.assert_array_equal(energies[0].uncertainty, energies[1].uncertainty)
    assert (energies[0].probs != energies[1].probs).all()  # but it calibrates the probabilities
    np.testing.assert_array_equal(energies[0].label, energies[1].label)
    with pytest.raises(ValueError, match="needs two or more members"):
        next(Anytime([Stored(values[0][:1], "f")], uncertainty="variation_ratio").steps(np.arange(6)))


@pytest.mark.parametrize("combine", ["probs", "logits"])
def test_calibration_fits_every_prefix(combine: Any) -> None:
    outputs = drawn(4, 400, combine=combine, costs=None)
    made = Anytime.calibrated(stored(outputs), outputs, uncertainty="entropy")
    assert made.temperatures == tuple(fit_temperature(outputs, k) for k in (1, 2, 3))
    assert len(set(made.temperatures)) == 3
    assert (made.kind, made.combine, made.uncertainty, made.macs) == ("logits", combine, "entropy", None)
    outputs = drawn(4, 400, combine=combine)
    costs = {"own": (1, 11, 111), "theirs": (1, 11, 111), "given": (2, 4, 6)}
    for name, expected in costs.items():
        stages = stored(outputs)
        if name == "theirs":
            stages[1].macs = None
        assert Anytime.calibrated(stages, outputs, costs=[2, 2, 2] if name == "given" else None).macs == expected
    with pytest.raises(ValueError, match=r"the Outputs hold \['stage0', 'stage1'\]"):
        Anytime.calibrated(stored(outputs), outputs.prefix(2))
    with pytest.raises(ValueError, match="no labels"):
        Anytime.calibrated(stored(outputs), drawn(labels=None))
    right = Outputs([np.eye(3)[None]], labels=[0, 1, 2])
    with pytest.warns(TemperatureBoundWarning):
        Anytime.calibrated(stored(right), right)


# --- limits ----------------------------------------------------------------------------------------------------------


def test_steps_run_a_stage_only_when_it_is_asked_for() -> None:
    made, members = anytime(drawn())
    steps = made.steps(np.arange(7))
    assert [member.calls for member in members] == [[], [], []]
    next(steps)
    made.predict(np.arange(2), stages=1)  # an open iterator locks nobody out
    next(steps)
    assert [member.calls for member in members] == [[7, 2], [7], []]
    steps.close()
    assert [member.calls for member in members] == [[7, 2], [7], []]


@pytest.mark.parametrize(
    ("limit", "run"),
    [
        ({}, 3),
        ({"stages": 1}, 1),
        ({"stages": np.int64(2)}, 2),
        ({"macs": 1}, 1),
        ({"macs": 10.9}, 1),
        ({"macs": 11}, 2),
        ({"macs": 1e9}, 3),
    ],
)
def test_stages_beyond_the_limit_are_not_called(limit: dict[str, Any], run: int) -> None:
    outputs = drawn()
    made, members = anytime(outputs)
    step = made.predict(np.arange(30), **limit)
    assert [len(member.calls) for member in members] == [1] * run + [0] * (3 - run)
    assert (step.stage, step.macs) == (run - 1, [1, 11, 111][run - 1])
    assert step.seconds > 0
    np.testing.assert_array_equal(step.probs, outputs.probs(run))


@given(st.integers(1, 30), st.sampled_from([1, 4, 7, 30, 100]), st.sampled_from(["logits", "values"]))
def test_batches_change_nothing(n: int, batch_size: int, kind: Any) -> None:
    outputs = drawn(5, 30)
    made = Anytime(stored(outputs), kind)
    parts = made.predict(np.arange(n), batch_size=batch_size)
    assert_same(parts, made.predict(np.arange(n)))
    assert sorted(made.stages[2].calls)[-1] == n  # type: ignore[attr-defined]
    assert max(made.stages[0].calls[: -(-n // batch_size)]) <= batch_size  # type: ignore[attr-defined]


def test_one_row_and_no_row() -> None:
    outputs = drawn()
    made, members = anytime(outputs)
    np.testing.assert_array_equal(made.predict(np.arange(1)).probs, outputs.probs()[:1])
    for x in (np.arange(0), 3, None):
        for call in (made.steps, made.predict):
            with pytest.raises(ValueError, match="expected an array or tensor of at least one row"):
                call(x)
    assert [len(member.calls) for member in members] == [1, 1, 1]


# --- what is carried -------------------------------------------------------------------------------------------------


def chain() -> list[Carrying]:
    return [
        Carrying("first", writes="abu"),  # nobody reads u
        Carrying("second", reads="a", writes="c", drops="a"),
        Carrying("third", reads="bc", writes="b"),  # b is written anew
        Carrying("fourth", reads="b", writes="a"),
    ]


def test_only_what_a_later_stage_reads_is_kept_and_the_rest_is_freed() -> None:
    stages = chain()
    steps = Anytime(stages).steps(np.zeros(3))
    alive = [[], ["a", "b"], ["b", "c"], ["b"], []]
    for k in range(4):
        next(steps)
        live = {id(array): name for stage in stages for name, ref in stage.made.items() if (array := ref()) is not None}
        assert sorted(live.values()) == alive[k + 1], k
        del live
    assert [stage.got for stage in stages] == [[], ["a"], ["b", "c"], ["b"]]
    assert stages[0].made["b"]() is None  # the first b went when the third stage had written its own
    with pytest.raises(StopIteration):
        next(steps)
    short = chain()
    seen: list[list[str]] = []
    inner = short[1].__class__.__call__

    class Watching(Carrying):
        def __call__(self, x: np.ndarray, carry: Any) -> tuple[Any, dict[str, Any]]:
            seen.append(sorted(name for name, ref in short[0].made.items() if ref() is not None))
            return inner(self, x, carry)

    short[1] = Watching("second", reads="a", writes="c", drops="a")
    Anytime(short).predict(np.zeros(3), stages=2)
    assert seen == [["a"]]  # b is for a stage that will not run


# --- refusals --------------------------------------------------------------------------------------------------------


def test_construction_refuses() -> None:
    good = stored(drawn())
    for options, message in [
        ({"stages": []}, "expected at least one"),
        ({"stages": [good[0], good[0]]}, "each with a name of its own"),
        ({"stages": chain()[1:]}, "reads .*, which no earlier stage writes"),
        ({"kind": "top1", "combine": "last"}, "kind='top1': expected one of 'logits', 'probs', 'values', 'gaussian'"),
        ({"kind": "scores"}, "kind='scores': expected one of"),
        ({"combine": "sum"}, "combine='sum': expected one of"),
        ({"kind": "probs", "combine": "logits"}, "combine='logits' needs members of kind 'logits'"),
        ({"kind": "values", "combine": "sum"}, "combine='sum': expected one of"),
        ({"uncertainty": "doubt"}, "uncertainty 'doubt': expected one of"),
        ({"uncertainty": "msp", "kind": "values"}, "is for classification"),
        ({"uncertainty": "mutual_information", "combine": "logits"}, "use entropy"),
        ({"uncertainty": "energy", "kind": "probs"}, "is a score of logits"),
        ({"costs": [1, 2]}, "expected 3 finite numbers ≥ 0"),
        ({"costs": [1, -2, 3]}, "expected 3 finite numbers ≥ 0"),
        ({"costs": [1, None, 3]}, "expected 3 finite numbers ≥ 0"),
        ({"temperatures": [1, 2]}, "expected 3 finite numbers > 0, one per prefix"),
        ({"temperatures": [1, 0, 1]}, "expected 3 finite numbers > 0"),
        ({"temperatures": [1, np.nan, 1]}, "expected 3 finite numbers > 0"),
        ({"temperatures": [1, 2, 1], "kind": "values"}, "do not act on regression"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            Anytime(**({"stages": good} | options))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_limits_refuse() -> None:
    made, members = anytime(drawn())
    for limits, message in [
        ({"stages": 1, "macs": 5}, "limits stages, macs: expected one at most"),
        ({"seconds": 1, "deadline": 5}, "limits seconds, deadline: expected one at most"),
        ({"stages": 0}, "stages=0: expected 1 … 3"),
        ({"stages": 4}, "stages=4: expected 1 … 3"),
        ({"stages": True}, "stages=True: expected 1 … 3"),
        ({"stages": 1.5}, "stages=1.5: expected 1 … 3"),
        ({"macs": 0.5}, "macs=0.5: expected at least 1, the cost per row of 'stage0' alone"),
        ({"macs": np.nan}, "macs=nan: expected at least 1"),
        ({"seconds": 0}, "seconds=0: expected a finite number > 0"),
        ({"seconds": np.inf}, "seconds=inf: expected a finite number > 0"),
        ({"deadline": np.nan}, "deadline=nan: expected a value of time.monotonic"),
        ({"batch_size": 0}, "batch_size=0: expected at least 1 row"),
        ({"batch_size": 4, "seconds": 1}, "none under a time limit"),
        ({"batch_size": 4, "deadline": 1}, "none under a time limit"),
    ]:
        with pytest.raises(ValueError, match=message) as caught:
            made.predict(np.arange(4), **limits)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="costs are not known: give costs="):
        anytime(drawn(costs=None))[0].predict(np.arange(4), macs=5)
    assert [member.calls for member in members] == [[], [], []]


@pytest.mark.parametrize("block", [2, 3, 65_536])
def test_what_a_stage_does_wrong_is_named(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate._validation.BLOCK", block)
    outputs = drawn()
    made, members = anytime(outputs)
    members[1].value = np.where(np.isin(np.arange(30), [4, 8])[:, None], [np.nan, 0, np.inf], members[1].value)
    for call in (made.predict, lambda x: list(made.steps(x))):
        with pytest.raises(ValueError, match="stage 'stage1' has NaN or infinite values in rows 2, 6: mend"):
            call(np.arange(2, 9))
    assert made.predict(np.arange(2, 9), stages=1).stage == 0  # the lock was given back
    silent = Stored(np.zeros((1, 30, 2)), "silent")
    silent.writes = ("a",)
    with pytest.raises(ValueError, match=r"stage 'silent' wrote \[\], it declares \['a'\]"):
        Anytime([silent]).predict(np.arange(3))
    with pytest.raises(ValueError, match=r"a member has shape \(3, 2\) where the earlier ones have \(3, 3\)"):
        Anytime([members[0], Stored(np.zeros((1, 30, 2)), "narrow")]).predict(np.arange(3))
