"""Execution: who is called with which rows, what that costs, and that it equals the simulation bit for bit."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade import Cascade, Policy, Prediction, StagePolicy, simulate
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


class Stored:
    """A stage that looks its answers up: ``x`` holds row numbers. Notes which rows every call saw."""

    def __init__(self, value: Any, name: str, macs: float | None = None) -> None:
        self.value, self.name, self.macs = value, name, macs
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.drops: tuple[str, ...] = ()
        self.calls: list[list[int]] = []

    def __call__(self, x: np.ndarray, carry: Any) -> tuple[Any, dict[str, Any]]:
        assert dict(carry) == {}
        self.calls.append(x.tolist())
        return (tuple(part[x] for part in self.value) if isinstance(self.value, tuple) else self.value[:, x]), {}

    @property
    def seen(self) -> list[int]:
        return sorted(row for call in self.calls for row in call)


def stored(outputs: Outputs, macs: tuple[float | None, ...] | None = None) -> list[Stored]:
    return [Stored(v, n, m) for v, n, m in zip(outputs.values, outputs.names, macs or (None,) * outputs.stages, strict=True)]


def drawn(seed: int, n: int = 60, stages: int = 3, classes: int = 3, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    values = [(rng.normal(size=(1 + k % 2, n, classes)) * 3).astype(np.float32) for k in range(stages)]
    return Outputs(values, **({"costs": [1.0, 10.0, 100.0, 1000.0][:stages]} | options))


def windows(outputs: Outputs, name: str, low: float, high: float) -> list[tuple[float, float]]:
    """At every stage but the last the same quantiles of that stage's own scores."""
    found = [np.quantile(uncertainty_of(outputs, name, k), [low, high]) for k in range(1, outputs.stages)]
    return [(float(a), float(b)) for a, b in found]


def assert_same(a: Prediction, b: Prediction, rows: Any = slice(None)) -> None:
    """a's rows equal b's ``rows``, bit for bit."""
    for name in ("label", "uncertainty", "accepted", "stage", "macs"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[rows], err_msg=name)
    assert (a.probs is None) == (b.probs is None)
    if a.probs is not None and b.probs is not None:
        np.testing.assert_array_equal(a.probs, b.probs[rows])
    assert a.names == b.names


# --- executed equals simulated ---------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    stages=st.integers(1, 4),
    name=st.sampled_from(["msp", "entropy", "margin", "energy", "max_logit", "variation_ratio"]),
    combine=st.sampled_from(["probs", "logits", "last"]),
    batch_size=st.sampled_from([1, 7, 256]),
    chunk=st.sampled_from([None, 1, 16, 1000]),
    ends=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    join=st.sampled_from(["mean", "replace"]),
)
def test_stages_see_just_the_rows_that_go_on_and_say_what_was_simulated(
    seed: int, stages: int, name: str, combine: Any, batch_size: int, chunk: int | None, ends: list[float], join: Any
) -> None:
    outputs = drawn(seed, 45, stages, combine=combine)
    if name == "variation_ratio":  # needs two members from the first stage on
        outputs = Outputs([np.concatenate([v, -v]) for v in outputs.values], combine=combine, costs=outputs.costs)
    temperature = 1.5 if name in ("msp", "entropy", "margin") else 1.0
    made = Policy.of(outputs, windows(outputs, name, *ends), [0.3] * stages, name)
    join = "replace" if combine == "last" else join
    policy = Policy(
        tuple(StagePolicy(s.name, join, temperature, s.window, s.tau, s.cost) for s in made.stages), name, "logits", combine
    )
    simulated = simulate(policy, outputs)
    order = np.random.default_rng(seed).permutation(outputs.n)
    members = stored(outputs)
    executed = Cascade(members, policy, batch_size, chunk).predict(order)
    assert_same(executed, simulated, order)
    for k, member in enumerate(members):
        assert member.seen == np.flatnonzero(simulated.stage >= k).tolist()
        assert all(0 < len(call) <= batch_size for call in member.calls)
    np.testing.assert_array_equal(simulated.macs, np.cumsum([1, 10, 100, 1000])[simulated.stage])


def test_survivors_are_gathered_into_full_batches_and_chunks_bound_what_is_carried() -> None:
    outputs = drawn(0, 100, 2)
    policy = Policy.of(outputs, windows(outputs, "msp", 0.25, 0.75))
    whole, bounded = stored(outputs), stored(outputs)
    Cascade(whole, policy, batch_size=10, chunk=100).predict(np.arange(100))
    assert [len(call) for call in whole[1].calls] == [10] * 5
    Cascade(bounded, policy, batch_size=10, chunk=20).predict(np.arange(100))
    assert [call[0] // 20 for call in bounded[0].calls] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert all(len({row // 20 for row in call}) == 1 for call in bounded[1].calls)
    assert bounded[1].seen == whole[1].seen


def test_an_open_window_is_the_full_ensemble_bit_for_bit() -> None:
    for combine in ("probs", "logits"):
        outputs = drawn(1, combine=combine)
        for policy in (Policy.of(outputs), Policy.of(outputs, [(None, 1e9), (-1e9, None)])):
            p = Cascade(stored(outputs), policy, 7).predict(np.arange(60))
            np.testing.assert_array_equal(p.probs, outputs.probs())
            np.testing.assert_array_equal(p.label, outputs.predictions())
            np.testing.assert_array_equal(p.uncertainty, uncertainty_of(outputs))
            np.testing.assert_array_equal(p.macs, 111)
            assert (p.reach, p.mean_macs, p.accepted.all()) == ((1, 1, 1), 111, True)


def test_an_empty_window_is_the_first_stage_bit_for_bit_and_calls_no_other() -> None:
    outputs = drawn(2)
    for window in (None, (-2.0, -1.0)):
        members = stored(outputs)
        p = Cascade(members, Policy.of(outputs, [window, (None, None)]), 7).predict(np.arange(60))
        np.testing.assert_array_equal(p.probs, outputs.probs(1))
        np.testing.assert_array_equal(p.uncertainty, uncertainty_of(outputs, stop=1))
        np.testing.assert_array_equal(p.macs, 1)
        assert [len(member.calls) for member in members] == [9, 0, 0]


def test_an_open_upper_end_is_the_cascade_with_one_threshold() -> None:
    outputs = drawn(3, 200, 2)
    first, threshold = uncertainty_of(outputs, stop=1), 0.2
    p = Cascade(stored(outputs), Policy.of(outputs, [(threshold, None)])).predict(np.arange(200))
    leaves = first < threshold  # "exit when confident"
    np.testing.assert_array_equal(p.stage, np.where(leaves, 0, 1))
    np.testing.assert_array_equal(p.label, np.where(leaves, outputs.predictions(1), outputs.predictions()))
    np.testing.assert_array_equal(p.uncertainty, np.where(leaves, first, uncertainty_of(outputs)))


def test_equal_costs_and_shrinking_reach_add_up() -> None:
    p = np.concatenate([np.zeros(80), np.full(15, 0.2), np.full(5, 0.5)])
    outputs = Outputs([np.stack([p, 1 - p], -1)] * 3, kind="probs", costs=[1, 1, 1])
    policy = Policy.of(outputs, [(0.1, None), (0.4, None)])
    for prediction in (simulate(policy, outputs), Cascade(stored(outputs), policy).predict(np.arange(100))):
        assert prediction.reach == (1.0, 0.2, 0.05)
        assert prediction.mean_macs == pytest.approx(1.25, abs=1e-12)


def test_no_rows_call_nothing() -> None:
    members = stored(drawn(0))
    p = Cascade(members, Policy.of(drawn(0))).predict(np.arange(0))
    assert (len(p), p.probs, p.mean_macs, p.reach) == (0, None, 0.0, (0.0, 0.0, 0.0))
    assert not any(member.calls for member in members)


def test_top1_stages_and_a_stages_own_costs() -> None:
    rng = np.random.default_rng(0)
    outputs = Outputs(
        [(rng.integers(0, 9, 50), rng.random(50).astype(np.float32)) for _ in range(3)], kind="top1", costs=[1, 2, 3]
    )
    policy = Policy.of(outputs, [(0.2, 0.8), (0.4, 0.6)], [0.5, 0.5, 0.5])
    members = stored(outputs, macs=(None, 7, None))
    executed = Cascade(members, policy, 7).predict(np.arange(50))
    assert_same(executed, simulate(policy.with_costs([1, 7, 3]), outputs))
    assert executed.probs is None
    assert members[2].seen == np.flatnonzero(executed.stage == 2).tolist()


def test_replace_forgets_and_a_temperature_moves_no_label() -> None:
    outputs = drawn(4, 300)
    stages = [
        StagePolicy("stage0", window=(None, None)),
        StagePolicy("stage1", "replace", window=(None, None)),
        StagePolicy("stage2"),
    ]
    p = simulate(Policy(tuple(stages)), outputs)
    np.testing.assert_array_equal(p.probs, Outputs(outputs.values[1:]).probs())
    sharp, flat = (
        simulate(Policy((StagePolicy("stage0", temperature=t),)), outputs) for t in (1.0, 1e17)
    )  # fmt: skip
    np.testing.assert_array_equal(flat.label, sharp.label)
    np.testing.assert_allclose(flat.probs, 1 / 3, rtol=1e-9)


def test_simulation_takes_stages_by_name_and_goes_through_many_blocks() -> None:
    outputs = drawn(5, 70_000, 3)
    swapped = Outputs(outputs.values[::-1], names=outputs.names[::-1])
    policy = Policy.of(outputs, windows(outputs, "msp", 0.4, 0.6))
    assert_same(simulate(policy, swapped), simulate(policy, outputs))
    rows = np.array([0, 65_535, 65_536, 69_999])
    assert_same(simulate(policy, outputs.rows(rows)), simulate(policy, outputs), rows)


def test_memory_is_bounded_on_large_outputs() -> None:
    outputs = drawn(0, 300_000, 2, 10)
    outputs = Outputs([v[:1] for v in outputs.values])
    for policy in (Policy.of(outputs), Policy.of(outputs, [(0.2, 0.5)])):
        tracemalloc.start()
        simulate(policy, outputs)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= 4 * sum(v.nbytes for v in outputs.values)


# --- what stages carry -----------------------------------------------------------------------------------------------


class Carrying:
    """A stage that checks that all it reads belongs to its rows: every carried array holds the row numbers."""

    def __init__(
        self, name: str, value: np.ndarray, reads: str = "", writes: str = "", drops: str = "", tensor: Any = None
    ) -> None:
        self.name, self.value, self.macs, self.tensor = name, value, 1.0, tensor
        self.reads, self.writes, self.drops = tuple(reads), tuple(writes), tuple(drops)
        self.got: list[set[str]] = []

    def __call__(self, x: Any, carry: Any) -> tuple[Any, dict[str, Any]]:
        rows = np.asarray(x)[:, 0].astype(int)
        self.got.append(set(carry))
        for array in carry.values():
            assert isinstance(array, np.ndarray) == (self.tensor is None)
            np.testing.assert_array_equal(np.asarray(array)[:, 0, 0], rows)
        made = np.broadcast_to(rows[:, None, None], (len(rows), 2, 3)).astype(np.float32)
        return self.value[:, rows], {name: made if self.tensor is None else self.tensor(made.copy()) for name in self.writes}


def check_carrying(tensor: Any, x: Any) -> None:
    outputs = drawn(6, 90, 4)
    stages = [
        Carrying("stage0", outputs.values[0], writes="ab", tensor=tensor),
        Carrying("stage1", outputs.values[1], reads="b", writes="c", drops="b", tensor=tensor),
        Carrying("stage2", outputs.values[2], reads="ca", writes="ab", drops="c", tensor=tensor),
        Carrying("stage3", outputs.values[3], reads="ba", drops="ab", tensor=tensor),
    ]
    policy = Policy.of(outputs, windows(outputs, "msp", 0.2, 0.9))
    for batch_size, chunk in ((1, None), (7, 30), (256, None)):
        assert_same(Cascade(stages, policy, batch_size, chunk).predict(x), simulate(policy.with_costs([1] * 4), outputs))
    for stage, reads in zip(stages, ("", "b", "ca", "ba"), strict=True):
        assert stage.got
        assert all(got == set(reads) for got in stage.got)


def test_carried_arrays_stay_with_their_rows() -> None:
    check_carrying(None, np.arange(90.0)[:, None])


@pytest.mark.extras
def test_carried_tensors_stay_with_their_rows() -> None:
    torch = pytest.importorskip("torch")
    check_carrying(torch.from_numpy, torch.arange(90.0)[:, None])


# --- real networks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 256])
@pytest.mark.extras
def test_real_networks_differ_only_where_rounding_can_turn_a_decision(batch_size: int) -> None:
    torch = pytest.importorskip("torch")
    from quorate.ensemble import DeepEnsemble, collect, stages

    torch.manual_seed(0)
    nets = [torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.ReLU(), torch.nn.Linear(64, 5)) for _ in range(3)]
    ensemble, x = DeepEnsemble(nets), torch.randn(300, 20)
    outputs = collect(ensemble, torch.utils.data.TensorDataset(x), batch_size=300)
    policy = Policy.of(outputs, windows(outputs, "msp", 0.3, 0.8), [0.4, 0.5, 0.6])
    simulated = simulate(policy, outputs)
    order = np.random.default_rng(0).permutation(300)
    executed = Cascade(stages(ensemble), policy, batch_size).predict(x[order])
    near = np.zeros(300, bool)
    for k, stage in enumerate(policy.stages):
        ends = [end for end in (*(stage.window or ()), stage.tau) if end is not None]
        near |= np.abs(uncertainty_of(outputs, stop=k + 1)[:, None] - ends).min(-1) < 1e-6
    assert near.sum() <= 3
    far = ~near[order]
    for name in ("label", "stage", "accepted", "macs"):
        np.testing.assert_array_equal(getattr(executed, name)[far], getattr(simulated, name)[order][far])
    np.testing.assert_allclose(executed.probs[far], simulated.probs[order][far], atol=1e-6)


def test_stages_that_depend_on_their_predecessors_are_used_from_the_first_on() -> None:
    rng = np.random.default_rng(0)
    outputs = Outputs([rng.normal(size=(1, 5, 3)) for _ in range(3)], ordered=True)
    assert simulate(Policy.of(outputs.prefix(2)), outputs).names == ("stage0", "stage1")
    stages = Policy.of(outputs).stages
    skipping = Policy((stages[0], stages[2]))
    with pytest.raises(ValueError, match=r"\['stage0', 'stage2'\] are not a prefix"):
        simulate(skipping, outputs)
