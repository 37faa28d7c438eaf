"""Anytime: a staged ensemble run so that every prefix of its stages is an answer, and can be the last one.

Sources: Dennis et al. 2023 (arXiv 2302.10093), §1: the mean of the first students is a predictor at any t. Zilberstein 1996 (AI Magazine
17(3)): an interruptible algorithm, which has an answer whenever it is stopped, against a contract algorithm, which is told its time first.

    m_t = m_{t−1} + (f_t − m_{t−1}) / t        kept as the sum and the count of :class:`quorate.combination.Running`

so that a prefix is bit for bit what :func:`quorate.cascade.simulate` and ``Outputs.probs(stop)`` say of the same members.

Shapes: members (m, B, C) of every stage → labels, uncertainties (B,), probabilities (B, C); regression (m, B, D) → values (B, D).
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from quorate._validation import check_costs, check_values
from quorate.cascade.cascade import answer
from quorate.cascade.deadline import Pace, Worker
from quorate.cascade.stage import Stage, check_answer, check_chain
from quorate.cascade.step import Regression, Step, joined
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.uncertainty import fresh, score
from quorate.combination import CLASS_KINDS, COMBINES, KINDS, Combine, Kind
from quorate.outputs import Outputs


class _Run:
    """One batch on its way through the first ``stop`` stages: the members so far, and what later stages still read."""

    def __init__(self, owner: Anytime, x: Any, stop: int) -> None:
        self.owner, self.x, self.stop = owner, x, stop
        self.rows = np.arange(len(x))
        self.state: Any = owner._fresh()
        self.carry: dict[str, Any] = {}
        self.needed = owner._needed[stop - 1]
        self.at, self.seconds = 0, 0.0
        self.unread: list[tuple[Stage, Any]] = []  # members are checked and combined when an answer is asked for
        self.told = True  # so far every answer was asked for, so no work of an earlier stage is left to end inside a later one

    def next_(self, told: bool = True) -> Step | None:
        """Run the next stage; the prefix's answer, or None where it was not asked for, or where there is no further stage."""
        k, owner = self.at, self.owner
        if k == self.stop:
            return None
        begun = time.monotonic()
        stage, rows, carry = owner.stages[k], len(self.rows), self.carry
        members, written = check_answer(stage, stage(self.x, {name: carry[name] for name in stage.reads}), rows)
        self.unread.append((stage, members))
        self.carry = {name: written[name] if name in written else carry[name] for name in self.needed[k]}
        self.at = k + 1
        self.told &= told
        found = self._answer() if told else None
        took = time.monotonic() - begun
        self.seconds += took
        if self.told:  # a stage on a device that works on its own has ended only when its members were read
            owner._pace.note_(k, rows, took)
        macs = None if owner.macs is None else owner.macs[k]
        return None if found is None else Step(k, stage.name, *found, macs, self.seconds)

    def _answer(self) -> tuple[Any, Any, Any, Any, Any]:
        """(label, probs, uncertainty, values, variance) of the members so far."""
        owner, state = self.owner, self.state
        checked = [check_values(members, owner.kind, f"stage {stage.name!r}", self.rows) for stage, members in self.unread]
        for value in checked[-1:] if owner.combine == "last" else checked:
            state.add_(value)
        self.unread = []
        if isinstance(state, Regression):
            return None, None, None, *state.answer()
        temperature = owner.temperatures[self.at - 1]
        label, probs = answer(state, temperature)
        return label, probs, score(str(owner.uncertainty), state, temperature, probs), None, None


class Anytime:
    """A staged ensemble of which any prefix is an answer: step by step, within a cost, or by a deadline.

    One prediction is made at a time: a lock, which :meth:`predict` holds throughout and an iterator of :meth:`steps` while a stage of
    its own runs, makes one object safe to use from several threads. Time spent waiting for it counts against a deadline. Members are
    checked and combined when an answer is asked for, so a stage must leave the arrays it has returned as they are.

    Args:
        stages: callables by the contract of :mod:`quorate.cascade.stage`.
        kind: what their members are; for ``"values"`` and ``"gaussian"`` (regression) a step has values in place of probabilities.
        combine: how members become one prediction: mean of ``"probs"`` or of ``"logits"`` (for regression both are the plain mean), or
            the ``"last"`` stage alone.
        costs: per stage, per row, in MACs or any one unit. Default: the stages' ``macs``; no costs where one of them is None.
        temperatures: per prefix, see :meth:`calibrated`. Default: 1.
        uncertainty: a measure of :mod:`quorate.cascade.uncertainty`. Default: msp; regression has none.

    Attributes:
        names: the stages' names.
        macs: per prefix, the cost per row of its stages together; None where costs are not known.

    Raises:
        ValueError: no stages or two of one name, a stage that reads what no earlier one wrote, members that give only their top class,
            a combination or measure that the kind does not allow, costs or temperatures that don't fit.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        kind: Kind = "logits",
        combine: Combine = "probs",
        costs: Sequence[float] | None = None,
        temperatures: Sequence[float] | None = None,
        uncertainty: str | None = None,
    ) -> None:
        self.stages, self.names = list(stages), tuple(stage.name for stage in stages)
        if not self.stages or len(set(self.names)) != len(self.names):
            raise ValueError(f"stages {list(self.names)}: expected at least one, each with a name of its own")
        if kind not in KINDS or kind == "top1":
            shown = ", ".join(repr(known) for known in KINDS if known != "top1")
            raise ValueError(f"kind={kind!r}: expected one of {shown}; a label with one probability can't be combined")
        if combine not in COMBINES:
            raise ValueError(f"combine={combine!r}: expected one of {', '.join(COMBINES)}")
        check_chain(self.stages)
        self.kind, self.combine = kind, combine
        self.uncertainty = uncertainty or ("msp" if kind in CLASS_KINDS else None)
        self._fresh()  # refuses a measure or combination that the kind does not allow
        self.temperatures = _checked(temperatures, len(self.stages), kind)
        own = [stage.macs for stage in self.stages]
        given = own if costs is None else list(costs)
        known = [cost for cost in given if cost is not None]
        self.macs: tuple[float, ...] | None = None
        if costs is not None or len(known) == len(given):
            self.macs = tuple(itertools.accumulate(check_costs(known, len(self.stages))))
        self._needed = [_needed(self.stages[:stop]) for stop in range(1, len(self.stages) + 1)]
        self._pace, self._lock = Pace(), threading.Lock()
        self._worker: Worker | None = None

    @classmethod
    def calibrated(
        cls,
        stages: Sequence[Stage],
        validation: Outputs,
        costs: Sequence[float] | None = None,
        uncertainty: str | None = None,
    ) -> Anytime:
        """With the temperature of least NLL for every prefix, kind and combination of labelled validation Outputs of these stages.

        Costs are those given, else the stages' ``macs``, else the Outputs'.

        Warns:
            TemperatureBoundWarning: as :func:`quorate.cascade.fit_temperature`.

        Raises:
            ValueError: Outputs of other stages, without labels or without scores of every class; what the class itself refuses.
        """
        have = tuple(stage.name for stage in stages)
        if have != validation.names:
            raise ValueError(
                f"stages are {list(have)}, the Outputs hold {list(validation.names)}: collect them from these stages"
            )
        if costs is None and any(stage.macs is None for stage in stages):
            costs = validation.costs
        temperatures = [fit_temperature(validation, stop) for stop in range(1, validation.stages + 1)]
        return cls(stages, validation.kind, validation.combine, costs, temperatures, uncertainty)

    def steps(self, x: Any) -> Iterator[Step]:
        """The answers of all prefixes in turn. A stage runs when its answer is asked for: who stops iterating pays for no later one.

        Args:
            x: array or tensor of B ≥ 1 rows, one batch.

        Raises:
            ValueError: no rows, NaN or infinite outputs of a stage (the rows are named), a stage that does not keep its contract.
        """
        _rows(x)
        return self._steps(x)

    def predict(
        self,
        x: Any,
        stages: int | None = None,
        *,
        macs: float | None = None,
        seconds: float | None = None,
        deadline: float | None = None,
        batch_size: int | None = None,
    ) -> Step:
        """The answer of the longest prefix within a limit; of all stages where none is given. Never of a part of a stage.

        Under ``seconds`` or ``deadline`` the stages run in a worker thread. When time is up the last completed prefix is handed over
        at once; the stage under way ends on its own and its result (an error too, which is logged) is thrown away, and the next
        prediction waits for it. A stage is not begun where its own times on as many rows so far, of runs in which every prefix was
        answered, say that it would not be ready (:class:`quorate.cascade.deadline.Pace`). The first stage is always waited for:
        ``late`` says that it took too long. ``x`` must stay as it is until the stage under way has ended. Context variables reach
        the worker, other thread-local settings don't.

        Args:
            x: array or tensor of B ≥ 1 rows.
            stages: how many.
            macs: most cost per row, as :attr:`macs` counts it.
            seconds: from now, > 0.
            deadline: a value of ``time.monotonic()``; it may be over.
            batch_size: most rows in one call of a stage; all by default. Under a time limit ``x`` is one batch.

        Raises:
            ValueError: more than one limit, or one out of range (the cheapest prefix is named); and as :meth:`steps`. Any error of a
                stage reaches the caller.
        """
        started, rows = time.monotonic(), _rows(x)
        limits = {"stages": stages, "macs": macs, "seconds": seconds, "deadline": deadline}
        given = [name for name, limit in limits.items() if limit is not None]
        if len(given) > 1:
            raise ValueError(f"limits {', '.join(given)}: expected one at most")
        if batch_size is not None and (batch_size < 1 or seconds is not None or deadline is not None):
            raise ValueError(
                f"batch_size={batch_size}: expected at least 1 row, and none under a time limit: x is one batch then"
            )
        if seconds is not None:
            if not (math.isfinite(seconds) and seconds > 0):
                raise ValueError(f"seconds={seconds}: expected a finite number > 0")
            deadline = started + seconds
        if deadline is not None:
            if not math.isfinite(deadline):
                raise ValueError(f"deadline={deadline}: expected a value of time.monotonic()")
            return self._by(x, deadline)
        stop = len(self.stages) if stages is None else self._stop(stages)
        if macs is not None:
            stop = self._within(macs)
        size = batch_size or rows
        with self._lock:
            return joined([self._whole(x if size >= rows else x[at : at + size], stop) for at in range(0, rows, size)])

    def _stop(self, stages: int) -> int:
        if isinstance(stages, bool) or not isinstance(stages, int | np.integer) or not 1 <= stages <= len(self.stages):
            raise ValueError(f"stages={stages!r}: expected 1 … {len(self.stages)}")
        return int(stages)

    def _within(self, macs: float) -> int:
        """How many stages cost at most ``macs`` per row."""
        if self.macs is None:
            raise ValueError("the stages' costs are not known: give costs=, or count them with quorate.stages(ensemble, example)")
        stop = sum(total <= macs for total in self.macs)  # costs are ≥ 0, so totals rise
        if stop == 0:
            raise ValueError(f"macs={macs:g}: expected at least {self.macs[0]:g}, the cost per row of {self.names[0]!r} alone")
        return stop

    def _steps(self, x: Any) -> Iterator[Step]:
        run = _Run(self, x, len(self.stages))
        while True:
            with self._lock:
                step = run.next_()
            if step is None:
                return
            yield step

    def _whole(self, x: Any, stop: int) -> Step:
        run = _Run(self, x, stop)
        for _ in range(stop - 1):
            run.next_(told=False)
        step = run.next_()
        assert step is not None
        return step

    def _by(self, x: Any, deadline: float) -> Step:
        self._lock.acquire()  # given back by the worker, when the last stage begun has ended
        try:
            run = _Run(self, x, len(self.stages))
            self._worker = self._worker or Worker()
        except BaseException:
            self._lock.release()
            raise
        rows = len(run.rows)
        step, late = self._worker.last(
            deadline, lambda k, left: k < run.stop and self._pace.admits_(k, rows, left), run.next_, self._lock.release
        )
        return replace(step, late=True) if late else step

    def _fresh(self) -> Any:
        if self.kind not in CLASS_KINDS and self.uncertainty is None:
            return Regression(self.kind, self.combine)
        return fresh(self.uncertainty or "msp", self.kind, self.combine)


def _rows(x: Any) -> int:
    shape = getattr(x, "shape", ())
    if not shape or shape[0] == 0:
        raise ValueError(f"x is {type(x).__name__} of shape {tuple(shape)}: expected an array or tensor of at least one row")
    return int(shape[0])


def _checked(temperatures: Sequence[float] | None, stages: int, kind: Kind) -> tuple[float, ...]:
    given = np.ones(stages) if temperatures is None else np.asarray(temperatures, np.float64)
    if given.shape != (stages,) or not np.isfinite(given).all() or (given <= 0).any():
        raise ValueError(f"temperatures {given.tolist()}: expected {stages} finite numbers > 0, one per prefix")
    if kind not in CLASS_KINDS and (given != 1).any():
        raise ValueError(f"temperatures {given.tolist()} do not act on regression ({kind}): leave them out")
    return tuple(given.tolist())


def _needed(stages: Sequence[Stage]) -> list[tuple[str, ...]]:
    """After each stage, the names that a later one reads before it is written anew."""
    needed: list[tuple[str, ...]] = []
    live: set[str] = set()
    for stage in reversed(stages):
        needed.append(tuple(sorted(live)))
        live = (live - set(stage.writes)) | set(stage.reads)
    return needed[::-1]
