"""Early prediction: stages run while the sequence is still arriving, and no more of it is asked for than the answers need.

Source: Dennis et al. 2023 (arXiv 2302.10093), early prediction; windows as in Xia & Bouganis 2023 (arXiv 2303.08010), §3. Stage k owns
the steps [start_k, stop_k) of the sequence, its ``span``; the spans follow each other from step 0 on without gap or overlap. Beside the
contract of :mod:`quorate.cascade.stage` such a stage has

    arrived(part, carry) → (members (m, B, C), written),    arrived(x[..., start:stop], carry) = stage(x, carry)

and so sees every step once; what it needs of the past it finds in ``carry``. Members are joined and rows decided as a
:class:`quorate.Cascade` does: equal to its predictions on the whole sequences bit for bit where the stages' members are, that is in
calls of the same rows. Decided rows leave; later parts are cut down to the rows still in.

Shapes: chunks (B, …, n) with B and … fixed and any n ≥ 1, steps last, in whatever framework the stages take; (B, C, n) for sequences of C
channels. Results as in :mod:`quorate.cascade.step`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from quorate._validation import check_costs, check_values
from quorate.cascade.cascade import _Results, answer, checked_members
from quorate.cascade.chunks import Feed, finite_rows
from quorate.cascade.policy import Join, Policy, StagePolicy
from quorate.cascade.prediction import Prediction
from quorate.cascade.random_routing import goes_on
from quorate.cascade.stage import Carry, Stage, check_answer, check_chain
from quorate.cascade.step import Regression, Step
from quorate.cascade.uncertainty import fresh, score
from quorate.combination import Combine, Floats, Kind

Short = Literal["refuse", "answer"]


@runtime_checkable
class StreamedStage(Stage, Protocol):
    """A stage that can be run on the steps of its own span [start, stop) alone."""

    @property
    def span(self) -> tuple[int, int]: ...

    def arrived(self, part: Any, carry: Carry, /) -> tuple[Any, Carry]: ...


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrival(Step):
    """The answer of one prefix for the n rows that were still in: label, probs, uncertainty, … of :class:`Step` have n rows.

    Attributes:
        rows: (n,) numbers of these rows in the caller's order.
        steps: steps of the sequence that the answer rests on, the end of the stage's span.
        requested: steps that had been taken from the chunks by then, ≥ ``steps``.
        goes_on: (n,) rows that the next stage will see.
        accepted: (n,) whether the uncertainty is at most the stage's τ; for a row that goes on, whether it would be.
    """

    rows: NDArray[np.int64]
    steps: int
    requested: int
    goes_on: NDArray[np.bool_]
    accepted: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Streamed:
    """The answers to N rows, in the caller's order.

    Attributes:
        prediction: of every row at its stage of exit, with macs NaN where costs are not known; None for regression.
        values: (N, D) mean values of a regression, else None.
        variance: (N, D) of the mixture for members of kind "gaussian", else None.
        steps: (N,) steps of the sequence that each row's answer rests on.
        requested: steps that were taken from the chunks.
        arrivals: what was known after each stage that ran.
    """

    prediction: Prediction | None
    values: Floats | None
    variance: Floats | None
    steps: NDArray[np.int64]
    requested: int
    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True)
class _Rules:
    """How members are joined and rows decided: a policy, or None for a regression, whose rows all stay. Costs per row, where known."""

    policy: Policy | None
    kind: Kind
    combine: Combine
    costs: tuple[float, ...] | None

    def fresh(self) -> Any:
        if self.policy is None:
            return Regression(self.kind, self.combine)
        return fresh(self.policy.uncertainty, self.kind, self.combine)

    def checked(self, members: Any, k: int, name: str, rows: NDArray[np.int64]) -> Any:
        """The members of stage k, finite and one per row."""
        if self.policy is None:
            return check_values(members, self.kind, f"stage {name!r}", rows)
        return checked_members(members, self.kind, self.policy.stages[k], rows)

    def joined_(self, state: Any, members: Any, k: int, last: bool, rows: NDArray[np.int64]) -> dict[str, Any]:
        """Add the members of stage k; what is known then, and who goes on."""
        if self.policy is None:
            state.add_(members)
            values, variance = state.answer()
            stay, fine = np.full(len(values), not last), np.ones(len(values), bool)
            return {"label": None, "probs": None, "uncertainty": None, "values": values, "variance": variance} | {
                "goes_on": stay, "accepted": fine
            }  # fmt: skip
        rule = self.policy.stages[k]
        state.add_(members, rule.join)
        u = score(self.policy.uncertainty, state, rule.temperature)
        label, probs = answer(state, rule.temperature)
        found = {"label": label, "probs": probs, "uncertainty": u, "values": None, "variance": None}
        return found | {"goes_on": goes_on(rule, u, k, rows), "accepted": rule.accepts(u)}


def arrivals(
    stages: Sequence[StreamedStage],
    chunks: Iterable[Any],
    policy: Policy | None = None,
    *,
    kind: Kind | None = None,
    combine: Combine | None = None,
    uncertainty: str | None = None,
    short: Short = "refuse",
) -> Iterator[Arrival]:
    """Run the stages as their steps arrive, and yield what is known after each: stop when it is enough.

    Between two of them, and after the last, nothing is requested: a caller who stops iterating has cost the source no further chunk.
    Arguments and errors as in :func:`stream`; what can be refused at once is, before the first chunk is requested.
    """
    return _run(stages, *_checked(stages, chunks, policy, kind, combine, uncertainty, short), short)


def stream(
    stages: Sequence[StreamedStage],
    chunks: Iterable[Any],
    policy: Policy | None = None,
    *,
    kind: Kind | None = None,
    combine: Combine | None = None,
    uncertainty: str | None = None,
    short: Short = "refuse",
) -> Streamed:
    """Predict while the sequence arrives; ``chunks`` is not advanced any further once every row is decided.

    Args:
        stages: callables with ``span`` and ``arrived``, such as ``quorate.stages`` makes of an ensemble whose stages have them.
        chunks: arrays or tensors (B, …, n) in order of time, or an iterator of them; n ≥ 1 may change, the rest may not.
        policy: decides which rows go on, for these stages in this order. Without one all rows go through all stages.
        kind: without a policy, what the members are: "logits" (default), "probs" or "top1"; "values" or "gaussian" for regression.
        combine: without a policy, how they are joined: "probs" (default), "logits" or "last"; for regression the first two are the mean.
        uncertainty: without a policy, the measure that is reported: "msp" by default; regression has none.
        short: what to do if the sequence ends before all rows are decided: "refuse", or "answer" with the last completed prefix.

    Raises:
        ValueError: spans that don't follow each other, stages without ``arrived`` or other than the policy's, options that the policy
            already sets; chunks of other kinds, rows, channels or dtypes than the first; NaN or infinite steps of rows that are still in;
            a sequence that ends too early (always, if not even the first stage is complete); outputs of a stage that break its contract.
    """
    feed, rules = _checked(stages, chunks, policy, kind, combine, uncertainty, short)
    found, policy = tuple(_run(stages, feed, rules, short)), rules.policy
    last, n = found[-1], len(found[0].rows)
    steps, results = np.zeros(n, np.int64), _Results(n)
    for arrival in found:
        leave = np.ones(len(arrival.rows), bool) if arrival is last else ~arrival.goes_on
        rows = arrival.rows[leave]
        steps[rows] = arrival.steps
        if policy is None or arrival.label is None or arrival.uncertainty is None:
            continue
        results.macs[rows] = np.nan if arrival.macs is None else arrival.macs
        probs = None if arrival.probs is None else arrival.probs[leave]
        k = arrival.stage
        results.write_(rows, arrival.label[leave], probs, arrival.uncertainty[leave], k, policy.stages[k])
    prediction = None if policy is None else results.prediction(policy)
    return Streamed(prediction, last.values, last.variance, steps, feed.requested, found)


def _run(stages: Sequence[StreamedStage], feed: Feed, rules: _Rules, short: Short) -> Iterator[Arrival]:
    state, carry = rules.fresh(), dict[str, Any]()
    rows: NDArray[np.int64] = np.zeros(0, np.int64)
    spent, seconds = (None if rules.costs is None else 0.0), 0.0
    for k, stage in enumerate(stages):
        start, stop = stage.span
        part = feed.take(stop - start)
        if part is None:
            if short == "answer" and k:
                return
            remedy = "give the rest" + (", or short='answer' to take the last completed prefix" if k else "")
            raise ValueError(
                f"the sequence ended after {feed.requested} steps: stage {stage.name!r} expected {stop}, all stages "
                f"{stages[-1].span[1]}; {remedy}"
            )
        rows = rows if k else np.arange(part.shape[0])
        part = part if len(rows) == part.shape[0] else part[rows]
        if not (good := finite_rows(part)).all():
            bad = rows[~good]
            shown = ", ".join(map(str, bad[:5].tolist())) + (f", … ({len(bad)} in all)" if len(bad) > 5 else "")
            raise ValueError(f"steps {start} … {stop - 1} are NaN or infinite in rows {shown}: mend or drop these rows")
        begun = time.monotonic()
        members, written = check_answer(stage, stage.arrived(part, {name: carry[name] for name in stage.reads}), len(rows))
        carry = {name: array for name, array in {**carry, **written}.items() if name not in stage.drops}
        checked = rules.checked(members, k, stage.name, rows)
        known = rules.joined_(state, checked, k, k + 1 == len(stages), rows)
        seconds += time.monotonic() - begun
        if spent is not None and rules.costs is not None:
            spent += rules.costs[k]
        del part, members, checked, written  # steps that were taken are not held while the next are waited for
        about: dict[str, Any] = {"stage": k, "name": stage.name, "rows": rows, "steps": stop, "requested": feed.requested}
        yield Arrival(**about, **known, macs=spent, seconds=seconds)
        on = np.flatnonzero(known["goes_on"])
        if not len(on):
            return
        if len(on) < len(rows):
            rows, state, carry = rows[on], state.take(on), {name: array[on] for name, array in carry.items()}


def _checked(
    stages: Sequence[Any],
    chunks: Any,
    policy: Policy | None,
    kind: Kind | None,
    combine: Combine | None,
    uncertainty: str | None,
    short: str,
) -> tuple[Feed, _Rules]:
    """What can be refused before anything is requested is."""
    if short not in get_args(Short):
        raise ValueError(f"short={short!r}: expected 'refuse', or 'answer' for the last completed prefix")
    if hasattr(chunks, "shape") or not isinstance(chunks, Iterable):
        raise ValueError(
            f"chunks is {type(chunks).__name__}: expected an iterable of arrays (rows, …, steps), [x] for a whole one"
        )
    if not len(stages):
        raise ValueError("no stages: expected at least one, with span and arrived")
    check_chain(stages)
    _check_spans(stages)
    return Feed(iter(chunks)), _rules(stages, policy, kind, combine, uncertainty)


def _rules(
    stages: Sequence[Any], policy: Policy | None, kind: Kind | None, combine: Combine | None, uncertainty: str | None
) -> _Rules:
    """The policy's rules, or those by which nobody leaves early."""
    names = [stage.name for stage in stages]
    costs = [stage.macs for stage in stages]
    if policy is not None:
        given = {"kind": kind, "combine": combine, "uncertainty": uncertainty}
        if twice := [f"{key}={value!r}" for key, value in given.items() if value is not None]:
            raise ValueError(f"{', '.join(twice)} beside a policy, which says it itself: leave them out")
        want = [stage.name for stage in policy.stages]
        if names != want:
            raise ValueError(f"stages are {names}, the policy is for {want}: give the policy's stages in its order")
        costs = [rule.cost if macs is None else macs for rule, macs in zip(policy.stages, costs, strict=True)]
        return _Rules(policy, policy.kind, policy.combine, check_costs(costs, len(costs)))
    known = None if None in costs else check_costs(costs, len(costs))
    kind, combine = kind or "logits", combine or "probs"
    if kind in ("values", "gaussian"):
        if uncertainty is not None:
            raise ValueError(
                f"uncertainty={uncertainty!r} is for classification, these outputs are regression ({kind}): leave it out"
            )
        return _Rules(None, kind, combine, known)
    join: Join = "replace" if combine == "last" else "mean"
    stay = [StagePolicy(name, join, window=(None, None)) for name in names[:-1]]
    return _Rules(Policy((*stay, StagePolicy(names[-1], join)), uncertainty or "msp", kind, combine), kind, combine, known)


def _check_spans(stages: Sequence[Any]) -> None:
    end = 0
    for stage in stages:
        span = getattr(stage, "span", None)
        if span is None or not callable(getattr(stage, "arrived", None)):
            raise ValueError(
                f"stage {stage.name!r} can't be streamed to: expected span = (start, stop) and arrived(part, carry), use a Cascade"
            )
        whole = isinstance(span, tuple | list) and len(span) == 2 and all(type(s) is int for s in span)
        if not whole or span[0] >= span[1]:
            raise ValueError(f"stage {stage.name!r} has span {span!r}: expected (start, stop), whole steps with start < stop")
        if span[0] != end:
            how = "a gap" if span[0] > end else "an overlap"
            raise ValueError(
                f"stage {stage.name!r} has span {tuple(span)}, {how}: expected it to start at step {end}, where the one before ends"
            )
        end = span[1]
