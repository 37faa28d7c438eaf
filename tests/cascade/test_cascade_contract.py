"""What the executor refuses: stages that break their contract, cascades that cannot run, inputs that are none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quorate.cascade import Cascade, Policy, Stage, StagePolicy, simulate
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

TWO = Outputs((np.random.default_rng(0).normal(size=(2, 1, 10, 3)) * 3).astype(np.float32), costs=[1, 10])
POLICY = Policy.of(TWO)


def stage(answer: Any, name: str = "stage0", **declared: Any) -> Any:
    def call(x: Any, carry: Any) -> Any:  # noqa: ARG001
        return answer(x) if callable(answer) else answer

    for key, value in ({"reads": (), "writes": (), "drops": (), "macs": None} | declared).items():
        setattr(call, key, value)
    call.name = name  # type: ignore[attr-defined]
    return call


def zeros(x: np.ndarray) -> np.ndarray:
    return np.zeros((1, len(x), 3), np.float32)


def nan_at(*bad: int) -> Any:
    return lambda x: (np.where(np.isin(x, bad)[:, None], np.nan, zeros(x)), {})


@pytest.mark.parametrize(
    ("answer", "declared", "message"),
    [
        (lambda x: zeros(x), {}, r"stage 'stage0' returned ndarray: expected \(members, dict of what it writes\)"),
        (lambda x: (zeros(x), None), {}, "returned tuple: expected"),
        (lambda x: (zeros(x), {}, 1), {}, "returned tuple: expected"),
        (lambda x: (zeros(x)[0], {}), {}, r"stage 'stage0' has shape \(4, 3\): expected \(members, 4, classes\)"),
        (lambda x: (zeros(x)[:, :2], {}), {}, r"has shape \(1, 2, 3\): expected \(members, 4, classes\)"),
        (lambda x: (zeros(x)[:0], {}), {}, r"has shape \(0, 4, 3\): expected \(members, 4, classes\)"),
        (lambda x: (zeros(x).astype(int), {}), {}, "stage 'stage0' has dtype int64: expected float16"),
        (lambda x: (zeros(x), {"h": x}), {}, r"wrote \['h'\], it declares \[\]: return what is declared"),
        (lambda x: (zeros(x), {}), {"writes": ["h"]}, r"wrote \[\], it declares \['h'\]"),
        (lambda x: (zeros(x), {"h": x[:1]}), {"writes": ["h"]}, r"wrote 'h' of type ndarray, shape \(1,\), for 4 rows: carried"),
        (lambda x: (zeros(x), {"h": x.tolist()}), {"writes": ["h"]}, r"wrote 'h' of type list, shape \(\), for 4 rows"),
        (nan_at(105), {}, "stage 'stage0' has NaN or infinite values in rows 5: mend or drop these rows"),
    ],
)  # fmt: skip
def test_stages_that_break_their_contract(answer: Any, declared: dict[str, Any], message: str) -> None:
    cascade = Cascade([stage(answer, **declared), stage(lambda x: (zeros(x), {}), "stage1")], POLICY, batch_size=4)
    with pytest.raises(ValueError, match=message) as caught:
        cascade.predict(np.arange(100, 110))
    assert "\n" not in str(caught.value)


def test_nan_names_the_callers_rows_at_a_later_stage() -> None:
    first = uncertainty_of(TWO, stop=1)
    on = np.argsort(first)[[8, 3, 9, 5]]
    ranked = np.empty_like(TWO.values[0])
    ranked[:] = [0.0, 0, 0]
    ranked[:, np.setdiff1d(np.arange(10), on)] = [9, 0, 0]
    policy = Policy.of(TWO, [(0.5, None)])
    cascade = Cascade([stage(lambda x: (ranked[:, x], {})), stage(nan_at(*on[:2].tolist()), "stage1")], policy)
    rows = ", ".join(map(str, sorted(on[:2].tolist())))
    with pytest.raises(ValueError, match=f"stage 'stage1' has NaN or infinite values in rows {rows}: mend"):
        cascade.predict(np.arange(10))


def test_other_kinds_are_checked_as_stored_ones_are() -> None:
    probs = Policy((StagePolicy("stage0"),), kind="probs")
    with pytest.raises(ValueError, match="stage 'stage0' is not probabilities in rows 0, 1"):
        Cascade([stage(lambda x: (zeros(x), {}))], probs).predict(np.arange(2))
    top1 = Policy((StagePolicy("stage0", "replace"),), kind="top1", combine="last")
    cases: list[tuple[Any, str]] = [
        (np.zeros((2, 3)), "of kind 'top1' is ndarray: expected a pair"),
        (
            (np.zeros(2, int), np.zeros(3)),
            r"int64 labels \(2,\) and float64 probabilities \(3,\): expected integers \(2,\) and floats",
        ),
        ((np.zeros(3, int), np.zeros(3)), r"expected integers \(2,\) and floats \(2,\)"),
        ((np.zeros(2), np.zeros(2)), "float64 labels"),
        ((np.zeros(2, int), np.array([0.5, np.nan])), r"probabilities outside \[0, 1\] in rows 1: mend"),
        ((np.array([-1, 0]), np.ones(2)), "labels below 0 .* in rows 0"),
    ]
    for answer, message in cases:
        with pytest.raises(ValueError, match=message):
            Cascade([stage((answer, {}))], top1).predict(np.arange(2))


def test_members_with_other_classes() -> None:
    def members(count: int) -> Any:
        return lambda x: (np.eye(count)[x % 2][None] * 9, {})

    with pytest.raises(ValueError, match=r"a member has shape \(4, 4\) where the earlier ones have \(4, 3\): members must agree"):
        Cascade([stage(members(3)), stage(members(4), "stage1")], POLICY).predict(np.arange(4))
    replaced = Policy((StagePolicy("stage0", window=(0.01, None)), StagePolicy("stage1", "replace")))
    mixed = stage(lambda x: (np.where((x % 2)[:, None], [9.0, 0, 0], 0)[None], {}))
    with pytest.raises(ValueError, match="stage 'stage1' gives 4 classes, rows before had 3: use one set"):
        Cascade([mixed, stage(members(4), "stage1")], replaced).predict(np.arange(4))


FIRST, SECOND = stage(None, writes=["h"]), stage(None, "stage1", reads=["h"])


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        (
            [FIRST],
            {},
            r"stages are \['stage0'\], the policy is for \['stage0', 'stage1'\]: give the policy's stages in its order",
        ),
        ([SECOND, FIRST], {}, r"stages are \['stage1', 'stage0'\]"),
        (
            [stage(None), SECOND],
            {},
            r"stage 'stage1' reads \['h'\], which no earlier stage writes \(carried: \[\]\): mend the stages",
        ),
        ([stage(None, writes="hg", drops="h"), SECOND], {}, r"\(carried: \['g'\]\)"),
        ([FIRST, SECOND], {"batch_size": 0}, "batch_size=0, chunk=None: expected at least 1 row each"),
        ([FIRST, SECOND], {"chunk": 0}, "batch_size=256, chunk=0: expected at least 1 row each"),
        ([FIRST, stage(None, "stage1", macs=-1)], {}, r"costs \[1.0, -1.0\]: expected 2 finite numbers ≥ 0, one per stage"),
    ],
)
def test_cascades_that_cannot_run(stages: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cascade(stages, POLICY, **options)


@pytest.mark.parametrize("x", [[1, 2, 3], 3, np.float64(3), "abc"])
def test_inputs_without_rows(x: Any) -> None:
    with pytest.raises(ValueError, match=f"x is {type(x).__name__}: expected an array or tensor with the rows first"):
        Cascade([FIRST, SECOND], POLICY).predict(x)


def test_simulation_refuses_outputs_of_another_pool() -> None:
    with pytest.raises(ValueError, match=r"stages \['stage1'\] are not among \['stage0'\]: use the policy with its own pool"):
        simulate(POLICY, TWO.prefix(1))
    with pytest.raises(
        ValueError, match="the policy is for logits combined by probs, these Outputs hold logits combined by logits"
    ):
        simulate(POLICY, Outputs(TWO.values, combine="logits"))


def test_carried_objects_that_cannot_be_joined() -> None:
    class Odd:
        def __init__(self, n: int) -> None:
            self.shape = (n,)

        def __getitem__(self, at: Any) -> Odd:
            return Odd(len(range(*at.indices(self.shape[0]))) if isinstance(at, slice) else len(at))

    first = stage(lambda x: (zeros(x), {"h": Odd(len(x))}), writes=["h"])
    with pytest.raises(
        ValueError, match="a stage carries a Odd: expected NumPy arrays, tensors, or arrays of the Python array API"
    ):
        Cascade([first, SECOND], POLICY, batch_size=2).predict(np.arange(4))


def test_what_is_dropped_is_forgotten_at_once() -> None:
    class Large:
        shape = (4,)

        def __getitem__(self, at: Any) -> Any:
            raise AssertionError("rows of a dropped array were taken")

    first = stage(lambda x: (zeros(x), {"h": Large()}), writes=["h"], drops=["h"])
    p = Cascade([first, stage(lambda x: (zeros(x), {}), "stage1")], POLICY).predict(np.arange(4))
    assert p.reach == (1, 1)


def test_a_stage_is_anything_with_the_parts_of_one() -> None:
    assert isinstance(FIRST, Stage)
    assert not isinstance(len, Stage)
