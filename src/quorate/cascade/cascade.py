"""Cascade: stages and a policy, executed for real: rows that are decided leave the batch.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. The paper simulates from stored outputs; :func:`simulate`
does so too, and goes through the very routing that :class:`Cascade` executes: both agree bit for bit where the members do.

Stages are those of :mod:`quorate.cascade.stage`. They get the rows that are still in (``x[rows]``, in whatever framework ``x`` is
of); of what they carry the executor takes the same rows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._validation import check_costs, check_values
from quorate.cascade.policy import Policy, StagePolicy
from quorate.cascade.prediction import Prediction
from quorate.cascade.stage import Stage, check_chain, run_stage
from quorate.cascade.uncertainty import fresh, score
from quorate.combination import BLOCK, Floats, LastTop1, Running
from quorate.outputs import Outputs

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

    def decide_(self, part: _Part, u: Floats, k: int, stage: StagePolicy) -> None:
        self.write_(part.rows, *answer(part.state, stage.temperature), u, k, stage)

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


def answer(state: State, temperature: float) -> tuple[NDArray[np.int64], Floats | None]:
    """Labels (B,) and, where there are any, probabilities (B, C); a temperature moves no label, not even by rounding."""
    if isinstance(state, LastTop1):
        return state.labels, None
    plain = state.probs()
    return plain.argmax(-1), plain if temperature == 1.0 else state.probs(temperature)


Call = Callable[[int, NDArray[np.int64], dict[str, Any]], tuple[Any, dict[str, Any]]]


def _route(
    policy: Policy, costs: Sequence[float], rows: NDArray[np.int64], call: Call, batch_size: int, results: _Results
) -> None:
    """Send ``rows`` through the stages and write what comes of them into ``results``.

    ``call(k, rows, carry)`` gives the members (m, B, C) of stage k for these rows and the new carry. Survivors of all batches are
    gathered before the next stage, which so runs on full batches; it is never called without rows.
    """
    pending = _Part(rows, fresh(policy.uncertainty, policy.kind, policy.combine), {})
    for k, stage in enumerate(policy.stages):
        survivors: list[_Part] = []
        for part in pending.batches(batch_size):
            members, part.carry = call(k, part.rows, part.carry)
            part.state.add_(members, stage.join)
            u = score(policy.uncertainty, part.state, stage.temperature)
            results.macs[part.rows] += costs[k]
            on = stage.goes_on(u)
            if on.any():
                survivors.append(part.take(np.flatnonzero(on)))
            if not on.all():
                results.decide_(part.take(np.flatnonzero(~on)), u[~on], k, stage)
        if not survivors:
            return
        pending = _Part.concat(survivors)


def simulate(policy: Policy, outputs: Outputs) -> Prediction:
    """What the cascade would say on stored Outputs of all its stages (matched by name), without running anything.

    Raises:
        ValueError: a stage of the policy that ``outputs`` does not hold, or members of another kind or combination.
    """
    policy.check_pool(outputs)
    values = [outputs.values[outputs.names.index(name)] for name in (stage.name for stage in policy.stages)]

    def call(k: int, rows: NDArray[np.int64], carry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        value = values[k]
        return ((value[0][rows], value[1][rows]) if isinstance(value, tuple) else value[:, rows]), carry

    results = _Results(outputs.n)
    costs = [stage.cost for stage in policy.stages]
    for block in outputs.blocks():
        _route(policy, costs, np.arange(block.start, block.stop), call, BLOCK, results)
    return results.prediction(policy)


class Cascade:
    """Stages executed under a policy.

    Args:
        stages: callables, one per stage of the policy, in its order, with the same names. A stage's ``macs``
            counts as its cost; where it is None the policy's cost does.
        policy: what to do after each.
        batch_size: most rows in one call of a stage.
        chunk: most rows taken on before their later stages run; bounds the memory of what stages carry.

    Raises:
        ValueError: names that differ, a stage that reads what no earlier stage wrote, sizes or costs that are not allowed.
    """

    def __init__(self, stages: Sequence[Stage], policy: Policy, batch_size: int = 256, chunk: int | None = None) -> None:
        have, want = [stage.name for stage in stages], [stage.name for stage in policy.stages]
        if have != want:
            raise ValueError(f"stages are {have}, the policy is for {want}: give the policy's stages in its order")
        if batch_size < 1 or (chunk is not None and chunk < 1):
            raise ValueError(f"batch_size={batch_size}, chunk={chunk}: expected at least 1 row each")
        check_chain(stages)
        self.stages, self.policy, self.batch_size, self.chunk = list(stages), policy, batch_size, chunk or 16 * batch_size
        macs = [s.cost if t.macs is None else t.macs for s, t in zip(policy.stages, self.stages, strict=True)]
        self.costs = check_costs(macs, len(macs))

    def predict(self, x: Any) -> Prediction:
        """Run the cascade on ``x``, an array or tensor with the rows first; any number of rows, also none.

        Raises:
            ValueError: NaN or infinite outputs of a stage (the rows are named), or a stage that does not keep its contract.
        """
        if not getattr(x, "shape", ()):
            raise ValueError(f"x is {type(x).__name__}: expected an array or tensor with the rows first")
        results = _Results(len(x))
        for start in range(0, len(x), self.chunk):
            rows = np.arange(start, min(start + self.chunk, len(x)))
            _route(self.policy, self.costs, rows, lambda k, at, carry: self._call(k, x, at, carry), self.batch_size, results)
        return results.prediction(self.policy)

    def _call(self, k: int, x: Any, rows: NDArray[np.int64], carry: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        stage, count = self.stages[k], len(rows)
        neighbours = rows[-1] - rows[0] + 1 == count  # then a slice does, which copies nothing
        part = x[int(rows[0]) : int(rows[-1]) + 1] if neighbours else x[rows]
        members, carried = run_stage(stage, part, carry, count)
        return check_values(members, self.policy.kind, f"stage {stage.name!r}", rows), carried


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
