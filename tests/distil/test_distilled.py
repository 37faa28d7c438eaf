"""Students as one ensemble: the contract, prefixes against closed forms, what is carried, and that every block runs once."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ensemble_contract import check_ensemble
from quorate import Cascade, collect, cost, stages
from quorate.cascade import Anytime, Policy, simulate
from quorate.distil.early import early_students
from quorate.distil.ensemble import Distilled
from quorate.distil.matching import feature_tap, first_features, joints
from quorate.distil.student import ChainStudent, Joint
from quorate.ensemble import stage_macs
from quorate.graphs.segments import chain
from quorate.outputs import Outputs
from user_architectures import TwoBranches, stirred

X = torch.randn(6, 4, 30, generator=torch.Generator().manual_seed(3))
WIDTHS = (8, 8, 12)


def _prototypes() -> list[ChainStudent]:
    """Three students: alone, linked to all of the first, started from the second's first features and linked to the first."""
    torch.manual_seed(0)
    chains = [chain(TwoBranches(width), X) for width in WIDTHS]
    taps = [made.boundaries for made in chains]
    second = ChainStudent(
        chains[1], 1, joints("all", taps[1], taps[:1], [feature_tap(chains[0])], feature_tap(chains[1])), None, taps
    )
    start = first_features(chains[2], taps[:2], [0, 0])
    return [ChainStudent(chains[0], 0), second, ChainStudent(chains[2], 2, [Joint(1, 0, 1)], start, taps)]


PROTOTYPES, SEEDS = _prototypes(), itertools.count()


def linked() -> list[nn.Module]:
    return [stirred(copy.deepcopy(student), next(SEEDS)) for student in PROTOTYPES]


class Alone(nn.Module):
    """A student without links; notes how often it ran."""

    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()

    def __init__(self, name: str, outputs: int = 3) -> None:
        super().__init__()
        self.name, self.layer = name, stirred(nn.Sequential(nn.Flatten(), nn.Linear(120, outputs)), next(SEEDS))

    def forward(self, x: Tensor, _: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.layer(x), {}


def alone(count: int = 3, outputs: int = 3) -> list[nn.Module]:
    return [Alone(f"student{k + 1}", outputs) for k in range(count)]


def parts() -> list[nn.Module]:
    return [stirred(s, next(SEEDS)) for s in early_students((4, 30), 3, fractions=(0.3, 1.0), hidden=(6, 8), pool="running")]


MAKES: dict[str, Callable[[], Distilled]] = {
    "linked": lambda: Distilled(linked()),
    "unlinked": lambda: Distilled(alone()),
    "one": lambda: Distilled(alone(1)),
    "linked, weighted": lambda: Distilled(linked(), weights=[0.0, 2.0, 1.0]),
    "unlinked, weighted": lambda: Distilled(alone(), weights=[1.0, 0.5, 2.0]),
    "values": lambda: Distilled(linked(), "values"),
    "gaussian": lambda: Distilled(alone(2, 4), "gaussian", [1.0, 3.0]),
    "parts": lambda: Distilled(parts()),
    "parts, weighted": lambda: Distilled(parts(), weights=[1.0, 2.0]),
}


@pytest.mark.parametrize("name", ["linked", "linked, weighted", "unlinked", "gaussian", "parts, weighted"])
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
@pytest.mark.slow
def test_it_keeps_the_contract_of_ensembles(name: str) -> None:
    check_ensemble(lambda: MAKES[name]().requires_grad_(True), X)


# — prefixes —


def closed_form(each: np.ndarray, weights: list[float] | None) -> np.ndarray:
    """The mean of every prefix, (T, N, L) float64."""
    w = np.ones(len(each)) if weights is None else np.array(weights)
    found = []
    for t in range(1, len(each) + 1):
        share = w[:t] if w[:t].sum() > 0 else np.ones(t)
        found.append(np.tensordot(share / share.sum(), each[:t].astype(np.float64), 1))
    return np.stack(found)


def each_of(ensemble: Distilled) -> np.ndarray:
    with torch.no_grad():
        return Distilled(ensemble.students, "logits")(X).numpy()  # type: ignore[arg-type, no-any-return]


@pytest.mark.parametrize("name", MAKES)
def test_the_streaming_prefix_is_the_offline_mean(name: str) -> None:
    ensemble = MAKES[name]()
    expected = closed_form(each_of(ensemble), None if ensemble.weights is None else list(ensemble.weights))
    outputs = collect(ensemble, list(X), batch_size=4)
    found = list(Anytime(stages(ensemble), outputs.kind, outputs.combine).steps(X))
    assert len(found) == len(expected) == outputs.stages
    for stop, (step, mean) in enumerate(zip(found, expected, strict=True), 1):
        if ensemble.kind == "logits":
            assert step.probs is not None
            wanted = torch.from_numpy(mean).softmax(1).numpy()
            np.testing.assert_allclose(step.probs, wanted, atol=1e-6)
            np.testing.assert_allclose(outputs.probs(stop), wanted, atol=1e-6)
        else:
            width = 2 if ensemble.kind == "gaussian" else mean.shape[1]
            assert step.values is not None
            np.testing.assert_allclose(step.values, mean[:, :width], atol=1e-6)
    if ensemble.combine == "logits":
        with torch.no_grad():
            assert np.array_equal(ensemble(X).numpy(), each_of(ensemble))  # members in order, each its own row
    else:
        np.testing.assert_allclose(np.concatenate(outputs.values), expected, atol=1e-6)


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0, 1e-6, 1e6]), min_size=n, max_size=n)))
@settings(max_examples=60)
def test_weighted_prefixes_are_the_closed_form_whatever_the_weights(weights: list[float]) -> None:
    if not sum(weights):
        weights[-1] = 1.0
    ensemble = Distilled([Alone(f"s{k}") for k in range(len(weights))], weights=weights)
    with torch.no_grad():
        np.testing.assert_allclose(ensemble(X), closed_form(each_of(ensemble), weights), atol=1e-5)


def test_prefixes_worked_by_hand() -> None:
    class Constant(Alone):
        def forward(self, x: Tensor, _: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return torch.full((len(x), 2), float(self.name)), {}

    def prefixes(*weights: float) -> list[float]:
        students = [Constant(str(value), 2) for value in (1, 4, 10, -5)]
        return Distilled(students, weights=weights or None)(X)[:, 0, 0].tolist()

    assert prefixes() == [1, 4, 10, -5]  # members, not means
    assert prefixes(1, 1, 1, 1) == [1, 2.5, 5, 2.5]
    assert prefixes(0, 0, 2, 2) == [1, 2.5, 10, 2.5]  # without any weight the plain mean; then these do not count
    assert prefixes(1, 0, 2, 0) == [1, 1, 7, 7]
    assert prefixes(0, 3, 0, 0) == [1, 4, 4, 4]
    assert Distilled([Constant("7", 2)], weights=[0.3])(X)[0, 0].tolist() == [7, 7]


def test_rows_leave_in_a_cascade_as_stored_outputs_say() -> None:
    x = torch.randn(40, 4, 30, generator=torch.Generator().manual_seed(9))
    for name in ("linked", "linked, weighted"):
        ensemble = MAKES[name]()
        outputs = collect(ensemble, list(x), batch_size=16)
        limits = [float(np.median(1 - outputs.probs(stop).max(-1))) for stop in (1, 2)]
        policy = Policy.of(outputs, [(limit, None) for limit in limits])
        for size in (1, 7, 40):
            said, stored = Cascade(stages(ensemble), policy, batch_size=size).predict(x), simulate(policy, outputs)
            assert (said.stage == stored.stage).all()
            np.testing.assert_allclose(said.probs, stored.probs, atol=1e-6)  # type: ignore[arg-type]
        assert len(np.unique(said.stage)) == 3


# — what is carried, and what runs —


def test_only_what_a_later_student_reads_is_carried_and_no_longer_than_that() -> None:
    ensemble = Distilled(linked())
    found = ensemble.stages()
    one, two, three = PROTOTYPES
    assert [s.name for s in found] == ["student1", "student2", "student3"]
    assert found[0].writes == tuple(n for n in one.writes if n in {*two.reads, *three.reads})
    assert found[1].reads == two.reads
    assert set(found[1].drops) == set(two.reads) - set(three.reads)
    assert found[1].writes == tuple(n for n in two.writes if n in three.reads) == ("student2.tap0",)
    assert set(found[2].drops) == set(three.reads) == {"student1.tap1", "student2.tap0"}
    sizes = [
        {
            f"student{s + 1}.tap{t}": 4 * int(np.prod(b.shape))
            for s, p in enumerate(PROTOTYPES)
            for t, b in enumerate(p.boundaries)
        }
    ]
    expected = [sum(sizes[0][n] for n in two.reads), sizes[0]["student1.tap1"] + sizes[0]["student2.tap0"], 0]
    assert ensemble.carried_bytes(X) == ensemble.carried_bytes(X[:1]) == expected
    weighted = Distilled(linked(), weights=[1.0, 1.0, 2.0])
    assert weighted.carried_bytes(X) == [expected[0] + 12, expected[1] + 12, 0]  # the mean so far, 3 float32 logits
    assert Distilled(alone()).carried_bytes(X) == [0, 0, 0]
    assert found[0].student is ensemble.students[0]


class Passing(Alone):
    """Reads and writes by names that are said."""

    def __init__(self, name: str, reads: str, writes: str) -> None:
        super().__init__(name)
        self.reads, self.writes = tuple(reads), tuple(writes)

    def forward(self, x: Tensor, carry: Any) -> tuple[Tensor, dict[str, Tensor]]:
        assert set(self.reads) <= set(carry)
        return self.layer(x) + sum(carry[n].mean() for n in self.reads), {n: x + ord(n) for n in self.writes}


def test_a_name_that_is_written_anew_is_not_carried_until_then() -> None:
    ensemble = Distilled([Passing("1", "", "ab"), Passing("2", "b", "c"), Passing("3", "c", "a"), Passing("4", "a", "a")])
    one, two, three, four = ensemble.stages()
    assert (one.writes, one.drops) == (("b",), ())
    assert (two.writes, two.drops) == (("c",), ("b",))
    assert (three.writes, three.drops) == (("a",), ("c",))
    assert (four.writes, four.drops) == ((), ("a",))
    assert [size > 0 for size in ensemble.carried_bytes(X)] == [True, True, True, False]
    assert collect(ensemble, list(X)).stages == 4


def counted(ensemble: Distilled, run: Callable[[], object]) -> Counter[str]:
    """How often each layer was called."""
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in ensemble.named_modules()
        if isinstance(module, nn.Conv1d | nn.Linear)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return calls


def test_every_block_runs_once_however_the_ensemble_is_run() -> None:
    ensemble = Distilled(linked())
    layers = [name for name, module in ensemble.named_modules() if isinstance(module, nn.Conv1d | nn.Linear)]
    assert any("project" in name for name in layers)
    wrapped = stages(ensemble)
    outputs = collect(ensemble, list(X), costs=[1.0] * 3)
    policy = Policy.of(outputs)
    anytime = Anytime(wrapped, outputs.kind, outputs.combine)

    def in_turn() -> None:
        carry: dict[str, Tensor] = {}
        for stage in ensemble.stages():
            carry |= stage(X, carry)[1]

    for run in (
        lambda: ensemble(X),
        in_turn,
        lambda: collect(ensemble, list(X), costs=[1.0] * 3),
        lambda: list(anytime.steps(X)),
        lambda: anytime.predict(X),
        lambda: Cascade(wrapped, policy).predict(X),
    ):
        assert counted(ensemble, run) == Counter(layers)
    first = counted(ensemble, lambda: anytime.predict(X, stages=1))
    assert set(first) == {name for name in layers if name.startswith("students.0.")}


def test_macs_of_the_stages_are_those_that_hooks_count() -> None:
    ensemble = Distilled(linked(), weights=[1.0, 2.0, 1.0])
    macs: list[int] = []

    def hook(module: Any, _: Any, out: Tensor) -> None:
        per_output = (
            module.in_features if isinstance(module, nn.Linear) else module.in_channels * module.kernel_size[0] // module.groups
        )
        macs.append(out.numel() * per_output)

    for module in ensemble.modules():
        if isinstance(module, nn.Conv1d | nn.Linear):
            module.register_forward_hook(hook)
    ensemble(X[:1])
    total = sum(macs)
    found = stage_macs(ensemble, X[:1])
    assert total == sum(found) == cost.macs(ensemble, X[:1])
    assert [stage.macs for stage in stages(ensemble, X[:2])] == found
    assert collect(ensemble, list(X)).costs == tuple(found)


# — a module like any other —


def test_students_stay_in_eval_mode_and_buffers_as_they_are() -> None:
    ensemble = Distilled([s.train() for s in linked()])
    assert not any(p.requires_grad for p in ensemble.parameters())
    buffers = {name: tensor.clone() for name, tensor in ensemble.named_buffers()}
    assert any("running_mean" in name for name in buffers)
    assert ensemble.train() is ensemble
    assert not any(module.training for module in ensemble.modules())
    found = ensemble(X)
    assert all(torch.equal(buffers[name], tensor) for name, tensor in ensemble.named_buffers())
    assert torch.equal(found, ensemble.eval()(X))
    assert not any(stage.student.training for stage in ensemble.stages())


def test_weights_go_into_a_rebuilt_one_and_devices_move() -> None:
    one, two = MAKES["linked, weighted"](), MAKES["linked, weighted"]()
    assert not torch.equal(one(X), two(X))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(X), two(X))
    meta = copy.deepcopy(one).to("meta")
    assert meta(X.to("meta")).shape == (3, 6, 3)
    assert one.double()(X.double()).dtype == torch.float64
    assert one.carried_bytes(X.double())[0] > two.carried_bytes(X)[0]


def test_which_parameters_reach_several_rows() -> None:
    assert Distilled(alone()).shared == ()
    names = {name.split(".")[1] for name in Distilled(linked()).shared}
    assert names == {"0", "1"}
    assert {name.split(".")[1] for name in Distilled(alone(), weights=[1.0, 1.0, 1.0]).shared} == {"0", "1"}


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Distilled([]), "expected at least one student"),
        (lambda: Distilled(alone(), "top1"), "expected 'logits', 'values' or 'gaussian'"),  # type: ignore[arg-type]
        (lambda: Distilled(linked()[1:]), "student2 reads .* which no earlier student writes"),
        (lambda: Distilled([*alone(2), Alone("student1")]), "two students are called 'student1'"),
        (lambda: Distilled([nn.Linear(2, 2)]), "a Linear is no student"),
        (lambda: Distilled([lambda x: x]), "a function is no student"),  # type: ignore[list-item]
        (lambda: Distilled([Passing("1", "", ("prefix",))]), "writes 'prefix'"),  # type: ignore[arg-type]
        *((lambda w=w: Distilled(alone(), weights=w), "expected 3 finite numbers") for w in (  # type: ignore[misc]
            [1.0, 2.0], [1.0, -0.1, 1.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 1.0], [1.0, float("inf"), 1.0],
        )),
    ],
)  # fmt: skip
def test_what_is_no_ensemble_of_students_is_refused(make: Callable[[], object], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_it_can_be_stored_with_outputs_of_a_single_row() -> None:
    outputs = collect(MAKES["linked"](), list(X[:1]))
    assert isinstance(outputs, Outputs)
    assert outputs.ordered
    assert [np.asarray(v).shape for v in outputs.values] == [(1, 1, 3)] * 3
