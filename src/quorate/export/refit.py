"""Stages at a lower precision, with a policy that was fitted to what they now say, and what that changed.

Lower precision moves every uncertainty a little; thresholds that were fitted before no longer do what they were fitted for, and a
certificate is about other numbers. So the programs are run by ONNX Runtime on validation rows before and after, and

- with a target, windows are searched anew for it at no more than the mean cost that the policy had on these rows, and so are the
  thresholds (:func:`quorate.cascade.solving.within_cost`, the search of ``Policy.fit(window="optimal")``). Order, joins, uncertainty and
  costs of errors stay. Where a window has a centre, windows are moved, so that they can still follow a stream, and thresholds fitted;
- without a target, for ``fpr@tpr``, a mix with OOD rows, and rows sent on at random, windows and thresholds are moved
  (:mod:`quorate.export.moving`): the same shares go on and are accepted.

Temperatures that are not 1 are fitted anew. The old certificate is dropped; a new one comes from calibration rows alone.
Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3, for windows and thresholds.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.cascade import simulate
from quorate.cascade.exits import Exits
from quorate.cascade.fitting import policy_of
from quorate.cascade.guarantee import Certificate, certify_policy
from quorate.cascade.policy import Policy, StagePolicy
from quorate.cascade.solving import preferred, under_windows, within_cost
from quorate.cascade.stage import run_stage
from quorate.cascade.task import make_task
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.uncertainty import MEASURES
from quorate.export.moving import moved
from quorate.export.precision import BATCHED, lower
from quorate.outputs import Outputs
from quorate.runtime.collecting import collect
from quorate.runtime.measuring import figures
from quorate.runtime.program import Program
from quorate.runtime.session import OnnxStage, open_session

TIMED = (1, 32)  # rows in the calls that are timed
CALLS = 15
SCALES = 512  # validation rows that scales are found on where no calibration rows are given

Labelled = tuple[Any, ArrayLike]


@dataclass(frozen=True)
class Lowered:
    """Programs at a lower precision, and what goes with them.

    Attributes:
        programs: in order; those not named are as they were.
        policy: fitted to them.
        change: JSON values for the manifest and the model card: per stage ``precision, bytes_before, bytes_after, latency_ms_before,
            latency_ms_after`` (median by rows in a call, one thread); per split ``rows, before, after`` (figures of
            :func:`quorate.runtime.measuring.figures`) and ``agreement``, the share of rows with the label of before; test None without
            test rows.
        atol: how far golden outputs may be off elsewhere: twice the largest difference between a lowered stage and its fp32 program on
            the same inputs. Any right execution is about as far from fp32 as this one; two of them at most twice as far from each other.
    """

    programs: tuple[Program, ...]
    policy: Policy
    change: dict[str, Any]
    atol: float


def lowered(
    programs: Sequence[Program],
    policy: Policy,
    precision: str | Mapping[str, str],
    *,
    x: NDArray[Any],
    labels: ArrayLike | None = None,
    calibration: NDArray[Any] | None = None,
    cal: Labelled | None = None,
    test: Labelled | None = None,
    delta: float | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> Lowered:
    """The programs at a lower precision and the policy refitted to them.

    Args:
        programs: fp32, one per stage of the policy, in its order.
        policy: of a classification.
        precision: one for all stages, or by the names of some; see :mod:`quorate.export.precision`.
        x: (N, *shape) validation rows; labels: (N,) their classes, needed for a target that counts errors.
        calibration: rows that int8-static finds its scales on; by default the first 512 validation rows.
        cal: (rows, labels) that chose nothing, for a new certificate. test: (rows, labels), measured and used for nothing else.
        delta: of the new certificate; by default the old one's, else .05.
        batch_size: rows in one call.
        seed: of the search.

    Raises:
        ValueError: programs that are not the policy's, stages or precisions that are unknown or can't be had (as ``lower``), missing
            labels, rows that play two parts, a target that the lowered stages miss, or a certificate that can't be: for int8-dynamic,
            for a mix with OOD rows, or as ``certify_policy``.
    """
    wanted = _wanted(programs, policy, precision)
    _check_rows(policy, wanted, x, labels, cal, test)
    made, stages, atol = _made(programs, wanted, x[:SCALES] if calibration is None else calibration, batch_size)
    counted = [program.ports.macs for program in programs]
    unpriced = not any(stage.cost for stage in policy.stages) and None not in counted
    costs = [macs or 0.0 for macs in counted] if unpriced else [stage.cost for stage in policy.stages]

    def run(rows: Any, truth: ArrayLike | None) -> tuple[Outputs, Outputs]:
        """Outputs before and after."""
        kinds = [stage.kind or policy.kind for stage in policy.stages]
        one, other = (
            collect(chain, rows, truth, kind=policy.kind, combine=policy.combine, costs=costs, batch_size=batch_size, kinds=kinds)
            for chain in stages
        )
        return one, other

    validation = run(x, labels)
    own = None if policy.certificate is None else Certificate.from_dict(policy.certificate)
    level = delta if delta is not None else own.delta if own is not None and own.delta is not None else 0.05
    priced = replace(policy.with_costs(costs), certificate=None)
    warm = _warmed(priced, validation[1])
    found, how = _fitted(priced, warm, *validation, own, None if cal is None else len(cal[0]), level, seed)
    if cal is not None:
        terms: dict[str, Any] = {} if own is None else {"costs": own.costs, "limits": _limits(own)}
        found = certify_policy(found, run(*cal)[1], delta=level, **terms)
    change = {
        "stages": _told(programs, made, wanted, stages, x),
        "policy": how,
        "validation": _compared(priced, found, *validation),
        "test": None if test is None else _compared(priced, found, *run(*test)),
        "atol": atol,
    }
    return Lowered(tuple(made), found, change, atol)


# --- programs ---


def _wanted(programs: Sequence[Program], policy: Policy, precision: str | Mapping[str, str]) -> dict[str, str]:
    names, theirs = [program.ports.stage for program in programs], [stage.name for stage in policy.stages]
    if names != theirs:
        raise ValueError(f"programs are {names}, the policy is for {theirs}: give the policy's stages in its order")
    if isinstance(precision, str):
        return dict.fromkeys(names, precision)
    unknown = sorted(set(precision) - set(names))
    if unknown or not precision:
        raise ValueError(f"precision names {unknown or 'no stage'}: expected one precision, or some of the stages {names}")
    return dict(precision)


def _check_rows(
    policy: Policy, wanted: Mapping[str, str], x: Any, labels: Any, cal: Labelled | None, test: Labelled | None
) -> None:
    if labels is None and policy.target is not None and targets.parse(policy.target).figure != "fpr":
        raise ValueError(f"target {policy.target} counts errors: give the labels of the validation rows")
    roles = {"validation": x, "calibration": None if cal is None else cal[0], "test": None if test is None else test[0]}
    given = [(name, rows) for name, rows in roles.items() if rows is not None]
    for at, (name, rows) in enumerate(given):
        for other, others in given[:at]:
            if rows is others:
                raise ValueError(f"the {name} rows are the {other} rows: give others, rows that chose nothing")
    batched = [name for name, precision in wanted.items() if precision in BATCHED]
    if cal is not None and batched:
        raise ValueError(
            f"int8-dynamic of {batched}: a row's answer depends on its neighbours in the batch, a certificate is about rows on their "
            "own; take int8-static, or leave cal out"
        )
    kind = None if policy.certificate is None else policy.certificate.get("kind")
    if cal is not None and kind == "scod":
        raise ValueError(
            "the policy's certificate is of a mix with OOD rows, which are not at hand here: leave cal out and certify it after"
        )


def _made(
    programs: Sequence[Program], wanted: Mapping[str, str], x: NDArray[Any], batch_size: int
) -> tuple[list[Program], tuple[list[OnnxStage], list[OnnxStage]], float]:
    """The lowered programs, each with its scales from what the lowered ones before it wrote; both chains; twice the largest difference."""
    made: list[Program] = []
    stages: tuple[list[OnnxStage], list[OnnxStage]] = [], []
    carry, worst = dict[str, NDArray[Any]](), 0.0
    for program in programs:
        ports, precision = program.ports, wanted.get(program.ports.stage)
        feeds = {port.name: carry[name] for name, port in ports.reads.items()}
        if ports.input is not None:
            feeds[ports.input.name] = x if ports.span is None else x[..., ports.span[0] : ports.span[1]]
        found = program
        if precision is not None:
            found = lower(program, precision, calibration=feeds if precision == "int8-static" else None)
        for chain, each in zip(stages, (program, found), strict=True):
            chain.append(OnnxStage(open_session(each.onnx, f"stage {ports.stage!r}", threads=1), ports))
        (was, wrote), (members, carried) = (_answered(chain[-1], x, carry, batch_size) for chain in stages)
        pairs = [(members, was), *((carried[name], wrote[name]) for name in ports.writes if name in carried)]
        worst = max(worst, *(float(np.abs(new.astype(np.float64) - old).max(initial=0.0)) for new, old in pairs))
        made.append(found)
        carry = carried
    return made, stages, 2 * worst


def _answered(
    stage: OnnxStage, x: NDArray[Any], carry: Mapping[str, Any], batch_size: int
) -> tuple[NDArray[Any], dict[str, Any]]:
    """A stage's members on all rows, and what is carried on."""
    parts = []
    for start in range(0, len(x), batch_size):
        part = {name: array[start : start + batch_size] for name, array in carry.items()}
        rows = x[start : start + batch_size]
        parts.append(run_stage(stage, rows, part, len(rows)))
    members = np.concatenate([found for found, _ in parts], -2)
    return members, {name: np.concatenate([wrote[name] for _, wrote in parts]) for name in parts[0][1]}


# --- the policy ---


def _warmed(policy: Policy, after: Outputs) -> Policy:
    """Temperatures that are not 1 fitted anew, each on the members that count at its stage."""
    if (
        all(stage.temperature == 1.0 for stage in policy.stages)
        or after.labels is None
        or not MEASURES[policy.uncertainty].scaled
    ):
        return policy
    stages: list[StagePolicy] = []
    begin = 0
    for k, stage in enumerate(policy.stages):
        begin = k if stage.join == "replace" else begin
        counted = Outputs(after.values[begin : k + 1], kind=after.kind, combine=after.combine, labels=after.labels)
        stages.append(replace(stage, temperature=fit_temperature(counted, counted.stages)))
    return replace(policy, stages=tuple(stages))


def _fitted(
    policy: Policy, warm: Policy, before: Outputs, after: Outputs, own: Certificate | None, rows: int | None, delta: float, seed: int
) -> tuple[Policy, str]:  # fmt: skip
    """The refitted policy, and how it came about."""
    shifted = moved(policy, before, warm, after)
    goal = None if policy.target is None else targets.parse(policy.target)
    random = any(stage.rate is not None for stage in policy.stages)
    if goal is None or goal.figure == "fpr" or random or (own is not None and own.kind == "scod"):
        return shifted, "windows and thresholds moved: the same shares go on and are accepted on validation rows"
    task = make_task(goal, Exits.under(warm, after, goal.figure == "nll"), None, None if own is None else own.costs)
    limits = None if own is None else _limits(own)
    solved = under_windows(task, [stage.window for stage in shifted.stages[:-1]], None, limits)
    centred = any(stage.centre is not None for stage in policy.stages)
    most = simulate(policy, before).mean_macs
    how = f"windows moved, thresholds fitted anew for {goal}" if len(policy.stages) > 1 else f"threshold fitted anew for {goal}"
    if len(policy.stages) > 1 and most > 0 and not centred:
        how = f"windows and thresholds fitted anew for {goal}, at no more mean cost"
        found = within_cost(task, most, limits=limits, seed=seed)
        over = solved.figures.cost > most * (1 + 1e-9)
        solved = found if over or preferred(task, found, solved) else solved
    try:
        made = policy_of(
            solved, task, names=[s.name for s in warm.stages], joins=[s.join for s in warm.stages],
            temperatures=[s.temperature for s in warm.stages], costs=[s.cost for s in warm.stages], kinds=[s.kind for s in warm.stages],
            uncertainty=policy.uncertainty, kind=policy.kind, combine=policy.combine, rows=rows, delta=delta, limits=limits,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"at this precision {error}, or leave stages at fp32") from error
    if centred:
        stages = (replace(old, tau=new.tau) for old, new in zip(shifted.stages, made.stages, strict=True))
        made = replace(made, stages=tuple(stages))
    return made, how


def _limits(own: Certificate) -> dict[int, float] | None:
    return {int(part.name): part.target for part in own.classes if part.target is not None} or None


# --- what changed ---


def _compared(policy: Policy, refitted: Policy, before: Outputs, after: Outputs) -> dict[str, Any]:
    """The figures of one split, JSON values."""
    one, other = simulate(policy, before), simulate(refitted, after)
    found: dict[str, Any] = {"rows": before.n, "before": {}, "after": {}, "agreement": float((one.label == other.label).mean())}
    total = sum(stage.cost for stage in policy.stages)
    for key, said in (("before", one), ("after", other)):
        if before.labels is None:
            told: dict[str, float | None] = {"coverage": float(said.accepted.mean()), "macs": said.mean_macs if total else None}
        else:
            told = figures(said, before.truth(), total)
        found[key] = {name: None if value is None or not math.isfinite(value) else value for name, value in told.items()}
    return found


def _told(
    programs: Sequence[Program], made: Sequence[Program], wanted: Mapping[str, str], stages: Sequence[Sequence[OnnxStage]], x: NDArray[Any]
) -> dict[str, Any]:  # fmt: skip
    times: list[dict[str, dict[str, float]]] = [{}, {}]
    for which, chain in enumerate(stages):
        for rows in TIMED:
            part = np.ascontiguousarray(np.resize(x, (rows, *x.shape[1:])))
            carry: dict[str, Any] = {}
            for stage in chain:
                reads = {name: carry[name] for name in stage.reads}
                times[which].setdefault(stage.name, {})[str(rows)] = _median_ms(stage, part, reads)
                carry = run_stage(stage, part, carry, rows)[1]
    return {
        old.ports.stage: {
            "precision": new.ports.precision,
            "bytes_before": len(old.onnx),
            "bytes_after": len(new.onnx),
            "latency_ms_before": times[0][old.ports.stage],
            "latency_ms_after": times[1][old.ports.stage],
        }
        for old, new in zip(programs, made, strict=True)
        if old.ports.stage in wanted
    }


def _median_ms(stage: OnnxStage, x: NDArray[Any], carry: Mapping[str, Any]) -> float:
    taken = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        stage(x, carry)
        taken.append(1e3 * (time.perf_counter() - begun))
    return float(np.median(taken[CALLS // 3 :]))
