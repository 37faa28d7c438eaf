"""Cascade: stages and a policy, executed for real: rows that are decided leave the batch.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. The paper simulates from stored outputs; :func:`simulate`
does so too, and goes through the very routing that :class:`Cascade` executes: both agree bit for bit where the members do.

Stages are those of :mod:`quorate.cascade.stage`. They get the rows that are still in (``x[rows]``, in whatever framework ``x`` is
of); of what they carry the executor takes the same rows. Beside them run what a service needs: counters
(:mod:`quorate.cascade.counters`), a cost cap (:mod:`quorate.cascade.cap`), a drift watch (:mod:`quorate.cascade.drift`) and windows that
follow the stream (:mod:`quorate.cascade.adjusting`). None of them changes a row's result but the cap and the new windows.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quorate._validation import check_costs, check_values
from quorate.cascade.cap import Account, nearest
from quorate.cascade.counters import Counters, Counting, Tally
from quorate.cascade.lock import Lock
from quorate.cascade.policy import Policy, StagePolicy
from quorate.cascade.prediction import Prediction
from quorate.cascade.random_routing import goes_on
from quorate.cascade.recent import Recent
from quorate.cascade.stage import Stage, check_chain, run_stage
from quorate.cascade.uncertainty import MEASURES, fresh, score
from quorate.combination import BLOCK, Floats, Kind, LastTop1, Running, softmax
from quorate.outputs import Outputs

if TYPE_CHECKING:
    from quorate.cascade.drift import Watch

State = Running | LastTop1


@dataclass
class _Part:
    """Rows that are still in: their numbers, their members so far, and what the stages carry for them."""

    rows: NDArray[np.int64]
    state: State
    carry: dict[str, Any]

    def take(self, at: NDArray | slice) -> _Part:
        return _Part(self.rows[at], self.state.take(at), {name: array[at] for name, array in self.carry.items()})

    def batches(self, size: int) -> Iterator[_Part]:
        if len(self.rows) <= size:
            yield self
            return
        for start in range(0, len(self.rows), size):
            yield self.take(slice(start, start + size))

    @staticmethod
    def concat(parts: Sequence[_Part]) -> _Part:
        if len(parts) == 1:
            return parts[0]
        states: list[Any] = [part.state for part in parts]
        carry = {name: concat([part.carry[name] for part in parts]) for name in parts[0].carry}
        return _Part(np.concatenate([part.rows for part in parts]), type(states[0]).concat(states), carry)


class _Results:
    """What was decided so far, in the caller's order."""

    def __init__(self, n: int) -> None:
        self.label, self.stage = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.uncertainty, self.macs = np.zeros(n), np.zeros(n)
        self.accepted = np.zeros(n, bool)
        self.probs: Floats | None = None

    def decide_(self, part: _Part, u: Floats, probs: Floats | None, k: int, stage: StagePolicy, spent: float) -> None:
        self.macs[part.rows] = spent
        self.write_(part.rows, *answer(part.state, stage.temperature, probs), u, k, stage)

    def write_(
        self, rows: NDArray[np.int64], label: NDArray[np.int64], probs: Floats | None, u: Floats, k: int, stage: StagePolicy
    ) -> None:
        self.label[rows], self.uncertainty[rows], self.stage[rows], self.accepted[rows] = label, u, k, stage.accepts(u)
        if probs is None:
            return
        if self.probs is None:
            self.probs = np.zeros((len(self.label), probs.shape[1]))
        if self.probs.shape[1] != probs.shape[1]:
            raise ValueError(
                f"stage {stage.name!r} gives {probs.shape[1]} classes, rows before had {self.probs.shape[1]}: use one set"
            )
        self.probs[rows] = probs

    def prediction(self, policy: Policy) -> Prediction:
        names = tuple(stage.name for stage in policy.stages)
        return Prediction(self.label, self.probs, self.uncertainty, self.accepted, self.stage, self.macs, names)


def answer(state: State, temperature: float, tempered: Floats | None = None) -> tuple[NDArray[np.int64], Floats | None]:
    """Labels (B,) and, where there are any, probabilities (B, C); a temperature moves no label, not even by rounding.

    Where ``state.probs(temperature)`` is at hand already, ``tempered`` saves doing it again.
    """
    if isinstance(state, LastTop1):
        return state.labels, None
    if tempered is None:
        tempered = state.probs(temperature)
    return (tempered if temperature == 1.0 else state.probs()).argmax(-1), tempered


Call = Callable[[int, NDArray[np.int64], dict[str, Any]], tuple[Any, dict[str, Any]]]
Hold = Callable[[int, NDArray[np.int64], Floats], NDArray[np.bool_] | None]


def _route(
    policy: Policy,
    costs: Sequence[float],
    rows: NDArray[np.int64],
    call: Call,
    batch_size: int,
    results: _Results,
    hold: Hold | None = None,
    scores: Sequence[list[Floats]] = (),
) -> None:
    """Send ``rows`` through the stages and write what comes of them into ``results``.

    ``call(k, rows, carry)`` gives the members (m, B, C) of stage k for these rows and the new carry. Survivors of all batches are
    gathered before the next stage, which so runs on full batches; it is never called without rows. ``hold(k, rows, u)`` says which of
    the survivors of stage k have to leave all the same (None: no one); to ``scores[k]`` the stage's uncertainties are added.
    """
    scaled = MEASURES[policy.uncertainty].scaled
    pending = _Part(rows, fresh(policy.uncertainty, policy.kind, policy.combine), {})
    for k, (stage, spent) in enumerate(zip(policy.stages, accumulate(costs), strict=True)):
        survivors: list[_Part] = []
        unsure: list[Floats] = []
        for part in pending.batches(batch_size):
            members, part.carry = call(k, part.rows, part.carry)
            part.state.add_(members, stage.join)
            probs = part.state.probs(stage.temperature) if scaled and isinstance(part.state, Running) else None
            u = score(policy.uncertainty, part.state, stage.temperature, probs)
            if k < len(scores):
                scores[k].append(u)
            on = goes_on(stage, u, k, part.rows)
            stay = on.nonzero()[0]
            if len(stay):
                survivors.append(part.take(stay))
                unsure.append(u[stay])
            if not len(stay):
                results.decide_(part, u, probs, k, stage, spent)
            elif len(stay) < len(on):
                leave = (~on).nonzero()[0]
                results.decide_(part.take(leave), u[leave], None if probs is None else probs[leave], k, stage, spent)
        if not survivors:
            return
        pending = _Part.concat(survivors)
        if hold is not None:
            u = np.concatenate(unsure)
            held = hold(k, pending.rows, u)
            if held is not None:
                results.decide_(pending.take(held.nonzero()[0]), u[held], None, k, stage, spent)
                pending = pending.take((~held).nonzero()[0])
                if not len(pending.rows):
                    return


def checked_members(members: Any, kind: Kind, stage: StagePolicy, rows: NDArray[np.int64]) -> Any:
    """A stage's members as the policy's ``kind``, finite and one per row of ``rows``; logits of a stage among probabilities are softmaxed.

    Raises:
        ValueError: anything else; the rows are named.
    """
    values = check_values(members, stage.kind or kind, f"stage {stage.name!r}", rows)
    if stage.kind == "logits" and kind == "probs":
        return softmax(np.asarray(values, np.float64, order="C"))  # one layout: sums are rounded the same way
    return values


def _is_run(rows: NDArray[np.int64]) -> bool:
    """Whether the rows (B,), which are in order, follow each other; then a slice takes them, which copies nothing."""
    return int(rows[-1]) - int(rows[0]) + 1 == len(rows)


def simulate(policy: Policy, outputs: Outputs) -> Prediction:
    """What the cascade would say on stored Outputs of all its stages (matched by name), without running anything.

    Raises:
        ValueError: a stage of the policy that ``outputs`` does not hold, or members of another kind or combination.
    """
    policy.check_pool(outputs)
    values = [outputs.values[outputs.names.index(name)] for name in (stage.name for stage in policy.stages)]

    def call(k: int, rows: NDArray[np.int64], carry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        value, at = values[k], slice(int(rows[0]), int(rows[-1]) + 1) if _is_run(rows) else rows
        return ((value[0][at], value[1][at]) if isinstance(value, tuple) else value[:, at]), carry

    results = _Results(outputs.n)
    costs = [stage.cost for stage in policy.stages]
    for block in outputs.blocks():
        _route(policy, costs, np.arange(block.start, block.stop), call, BLOCK, results)
    return results.prediction(policy)


class Cascade:
    """Stages executed under a policy. Any number of threads may predict at once, if the stages allow it.

    Args:
        stages: callables, one per stage of the policy, in its order, with the same names. A stage's ``macs``
            counts as its cost; where it is None the policy's cost does.
        policy: what to do after each.
        batch_size: most rows in one call of a stage.
        chunk: most rows taken on before their later stages run (default 16 · batch_size); bounds the memory of what stages carry.
        cap: most mean cost per row over all rows since the cascade was made; rows beyond it keep an earlier stage's answer
            (:mod:`quorate.cascade.cap`). They are chosen within each chunk, whatever the batch size.
        watch: a drift watch over the stages but the last; every chunk's counts are fed to it when the chunk is through. Behind a stage
            at which the cap held rows of the chunk back, nothing is.
        memory: how many of the latest uncertainties to keep per stage but the last, for :meth:`adjusted`; 10,000 are plenty.

    Attributes:
        stages, policy, batch_size, chunk, watch: as above.
        costs: per row of each stage.

    Raises:
        ValueError: names that differ, a stage that reads what no earlier stage wrote, sizes, costs or a cap that are not allowed.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        policy: Policy,
        batch_size: int = 256,
        chunk: int | None = None,
        *,
        cap: float | None = None,
        watch: Watch | None = None,
        memory: int | None = None,
    ) -> None:
        have, want = [stage.name for stage in stages], [stage.name for stage in policy.stages]
        if have != want:
            raise ValueError(f"stages are {have}, the policy is for {want}: give the policy's stages in its order")
        if batch_size < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"batch_size={batch_size}, chunk={chunk}: expected at least 1 row each")
        check_chain(stages)
        self.stages, self.policy, self.batch_size, self.chunk = list(stages), policy, batch_size, chunk or 16 * batch_size
        macs = [s.cost if t.macs is None else t.macs for s, t in zip(policy.stages, self.stages, strict=True)]
        self.costs = check_costs(macs, len(macs))
        if watch is not None and list(watch.names) != want[:-1]:
            raise ValueError(f"the watch is for {list(watch.names)}: expected {want[:-1]}, the policy's stages but the last")
        self.watch = watch
        self._account = None if cap is None else Account(cap, self.costs)
        self._recent = None if memory is None else Recent(len(want) - 1, memory)
        self._counting, self._lock, self._names = Counting(want, self.costs), Lock(), tuple(want)

    def predict(self, x: Any) -> Prediction:
        """Run the cascade on ``x``, an array or tensor with the rows first; any number of rows, also none.

        Raises:
            ValueError: NaN or infinite outputs of a stage (the rows are named), or a stage that does not keep its contract.
        """
        if not getattr(x, "shape", ()):
            raise ValueError(f"x is {type(x).__name__}: expected an array or tensor with the rows first")
        results, policy = _Results(len(x)), self.policy
        if len(x) == 1 and self._account is None:
            return self._one(x, policy)
        for start in range(0, len(x), self.chunk):
            self._chunk_(x, policy, np.arange(start, min(start + self.chunk, len(x))), results)
        return results.prediction(policy)

    @property
    def counters(self) -> Counters:
        """What was done so far, per stage."""
        return self._counting.snapshot()

    def reset_counters_(self) -> None:
        """Count from zero. The cap's account and the watch go on."""
        self._counting.reset_()

    def adjusted(self) -> Policy:
        """The policy with its windows taken anew on the uncertainties in memory: :func:`quorate.cascade.adjusting.adjusted`.

        Raises:
            ValueError: a cascade made without ``memory``, a policy without a centre, or a stage that no row in memory has reached.
        """
        from quorate.cascade import adjusting

        if self._recent is None:
            raise ValueError("this cascade keeps no uncertainties: make it with memory=10_000")
        return adjusting.adjusted(self.policy, self._recent.scores())

    def adjust_(self) -> Policy:
        """Go on under the adjusted policy, which is returned; predictions that are under way end under the one they began with.

        Behind the first window that moved, other rows will arrive: what is in memory of those stages is forgotten.
        """
        with self._lock:
            before, self.policy = self.policy, self.adjusted()
            moved = [a.window != b.window for a, b in zip(before.stages, self.policy.stages, strict=True)]
            if self._recent is not None and True in moved:
                self._recent.forget_(moved.index(True) + 1)
            return self.policy

    def _chunk_(self, x: Any, policy: Policy, rows: NDArray[np.int64], results: _Results) -> None:
        tally, account = Tally(len(policy.stages)), self._account
        scores: list[list[Floats]] = [] if self._recent is None else [[] for _ in policy.stages[:-1]]

        def call(k: int, at: NDArray[np.int64], carry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            part = x[int(at[0]) : int(at[-1]) + 1] if _is_run(at) else x[at]
            begun = time.perf_counter()
            members, carried = run_stage(self.stages[k], part, carry, len(at))
            tally.called_(k, time.perf_counter() - begun)
            return checked_members(members, policy.kind, policy.stages[k], at), carried

        def hold(k: int, at: NDArray[np.int64], u: Floats) -> NDArray[np.bool_] | None:
            count = len(at) if account is None else account.pay_(len(at), k + 1)
            tally.capped[k] = len(at) - count
            return None if count == len(at) else ~nearest(policy.stages[k], u, at, k, count)

        if account is not None:
            account.arrive_(len(rows))
        _route(policy, self.costs, rows, call, self.batch_size, results, None if account is None else hold, scores)
        here = slice(int(rows[0]), int(rows[-1]) + 1)
        tally.ended_(results.stage[here], results.accepted[here])
        self._counting.add_(tally)
        if self.watch is not None or self._recent is not None:
            self._learn_(policy, tally, scores)

    def _one(self, x: Any, policy: Policy) -> Prediction:
        """The prediction of a single row, by the very steps of :func:`_route` without what batches need, which would take as long again."""
        rows, carry, seconds, spent = np.zeros(1, np.int64), dict[str, Any](), list[float](), 0.0
        state = fresh(policy.uncertainty, policy.kind, policy.combine)
        scaled, scores = MEASURES[policy.uncertainty].scaled, list[list[Floats]]()
        for k, stage in enumerate(policy.stages):
            begun = time.perf_counter()
            members, carry = run_stage(self.stages[k], x, carry, 1)
            seconds.append(time.perf_counter() - begun)
            state.add_(checked_members(members, policy.kind, stage, rows), stage.join)
            probs = state.probs(stage.temperature) if scaled and isinstance(state, Running) else None
            u = score(policy.uncertainty, state, stage.temperature, probs)
            scores.append([u])
            spent += self.costs[k]
            if (stage.window is None and stage.rate is None) or not goes_on(stage, u, k, rows)[0]:
                break
        label, probs = answer(state, stage.temperature, probs)
        accepted = stage.accepts(u)
        self._counting.one_(k, bool(accepted[0]), seconds)
        if self.watch is not None or self._recent is not None:
            tally = Tally(len(policy.stages))
            tally.ended_(np.array([k]), accepted)
            self._learn_(policy, tally, (scores + [[] for _ in policy.stages[k + 1 :]])[:-1])
        return Prediction(label, probs, u, accepted, np.array([k]), np.array([spent]), self._names)

    def _learn_(self, policy: Policy, tally: Tally, scores: list[list[Floats]]) -> None:
        with self._lock:
            if self.watch is not None:
                for stage, (reached, passed) in zip(policy.stages, tally.passed(), strict=False):
                    self.watch.update_(stage.name, reached, passed)
            if self._recent is not None and policy is self.policy:
                self._recent.add_(scores)


def concat(arrays: Sequence[Any], axis: int = 0) -> Any:
    """One new array of several, in their own framework: NumPy, PyTorch, or the Python array API. ValueError for anything else."""
    first = arrays[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(arrays, axis)
    torch = sys.modules.get("torch")  # already there if these are its tensors; never imported from here
    if torch is not None and isinstance(first, torch.Tensor):
        return torch.cat(list(arrays), axis)
    if hasattr(first, "__array_namespace__"):
        return first.__array_namespace__().concat(list(arrays), axis=axis)
    raise ValueError(
        f"a stage carries a {type(first).__name__}: expected NumPy arrays, tensors, or arrays of the Python array API"
    )
