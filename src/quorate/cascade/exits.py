"""Exits: what every exit of a chain of stages would say to each row, so that any windows and thresholds can be tried on arrays.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3. Which rows a stage gets depends on the windows, but what it says of a row does
not: with the uncertainties U_k and the labels of all prefixes at hand, a policy is a comparison per stage. Routing here and in
:func:`quorate.cascade.simulate` agree bit for bit, since both read the same running combination.

Shapes: K exits, N rows; ``uncertainty`` and ``label`` (K, N).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade.cascade import answer
from quorate.cascade.policy import Join, Policy, Window
from quorate.cascade.uncertainty import check_temperature, fresh, score
from quorate.combination import Floats
from quorate.outputs import Outputs


@dataclass(frozen=True, eq=False)
class Exits:
    """K exits on N rows.

    Attributes:
        names: the stages, in order.
        uncertainty: (K, N) after each stage, at its temperature.
        label: (K, N) predicted classes.
        costs: (K,) cost per row of each stage; zeros where none are known.
        truth: (N,) true classes; None for rows without labels.
        loss: (K, N) negative log-likelihood of the true class in nats, where it was asked for.
    """

    names: tuple[str, ...]
    uncertainty: Floats
    label: NDArray[np.int64]
    costs: tuple[float, ...]
    truth: NDArray[np.int64] | None = None
    loss: Floats | None = None

    @classmethod
    def of(
        cls,
        outputs: Outputs,
        order: Sequence[str] | None = None,
        uncertainty: str = "msp",
        joins: Sequence[Join] | None = None,
        temperatures: Sequence[float] | None = None,
        nll: bool = False,
    ) -> Exits:
        """The exits of a chain over stored Outputs.

        Args:
            outputs: of all stages, on N rows.
            order: names of the stages in the chain's order; by default all as they are.
            uncertainty: a name of :mod:`quorate.cascade.uncertainty`.
            joins: per stage ``"mean"`` with the earlier members or ``"replace"`` them; by default mean, replace for ``combine="last"``.
            temperatures: per stage T > 0; by default 1.
            nll: also take the negative log-likelihoods; the Outputs need labels and scores of every class.

        Raises:
            ValueError: a stage that is not there or comes twice, an order that is no prefix of stages that depend on their predecessors,
                other numbers of joins or temperatures than stages, or what :mod:`quorate.cascade.uncertainty` refuses.
        """
        names = tuple(outputs.names if order is None else order)
        missing = [name for name in names if name not in outputs.names]
        if missing or not names or len(set(names)) != len(names):
            raise ValueError(f"stages {list(names)}: expected different ones among {list(outputs.names)}, at least one")
        if outputs.ordered and names != outputs.names[: len(names)]:
            raise ValueError(f"stages {list(names)} are no prefix of {list(outputs.names)}, which depend on their predecessors")
        count = len(names)
        default: Join = "replace" if outputs.combine == "last" else "mean"
        how = [default] * count if joins is None else list(joins)
        warm = [1.0] * count if temperatures is None else [float(t) for t in temperatures]
        if len(how) != count or len(warm) != count:
            raise ValueError(f"{len(how)} joins and {len(warm)} temperatures for {count} stages: expected one per stage")
        for temperature in warm:
            check_temperature(uncertainty, outputs.kind, temperature)
        at = [outputs.names.index(name) for name in names]
        found = np.empty((count, outputs.n))
        label = np.empty((count, outputs.n), np.int64)
        loss = np.empty((count, outputs.n)) if nll else None
        truth = outputs.truth() if nll else outputs.labels
        for rows in outputs.blocks():
            state: Any = fresh(uncertainty, outputs.kind, outputs.combine)
            for k, (stage, join, temperature) in enumerate(zip(at, how, warm, strict=True)):
                value = outputs.values[stage]
                state.add_((value[0][rows], value[1][rows]) if isinstance(value, tuple) else value[:, rows], join)
                label[k, rows], probs = answer(state, temperature)
                found[k, rows] = score(uncertainty, state, temperature, probs)
                if loss is not None:
                    loss[k, rows] = _losses(probs, truth[rows], names[k])  # type: ignore[index]
        costs = (0.0,) * count if outputs.costs is None else tuple(outputs.costs[i] for i in at)
        return cls(names, found, label, costs, outputs.labels, loss)

    @classmethod
    def under(cls, policy: Policy, outputs: Outputs, nll: bool = False) -> Exits:
        """The exits of a policy's chain: its stages, joins, temperatures, uncertainty and costs. ValueErrors as ``simulate``'s."""
        policy.check_pool(outputs)
        found = cls.of(
            outputs,
            [stage.name for stage in policy.stages],
            policy.uncertainty,
            [stage.join for stage in policy.stages],
            [stage.temperature for stage in policy.stages],
            nll,
        )
        return replace(found, costs=tuple(stage.cost for stage in policy.stages))

    @classmethod
    def concat(cls, parts: Sequence[Exits]) -> Exits:
        """The rows of several, one after the other; truth only where all have it."""
        first = parts[0]
        truth = None if any(part.truth is None for part in parts) else np.concatenate([part.truth for part in parts])
        return cls(
            first.names,
            np.concatenate([part.uncertainty for part in parts], 1),
            np.concatenate([part.label for part in parts], 1),
            first.costs,
            truth,
        )

    @property
    def count(self) -> int:
        """K, the number of exits."""
        return len(self.names)

    @property
    def n(self) -> int:
        """N, the number of rows."""
        return int(self.uncertainty.shape[1])

    @property
    def errors(self) -> NDArray[np.bool_]:
        """Where each exit's label is wrong (K, N); ValueError for rows without labels."""
        if self.truth is None:
            raise ValueError("these rows have no labels: give labels= when the Outputs are made")
        return np.asarray(self.label != self.truth)

    @property
    def spent(self) -> Floats:
        """(K,) cost per row of having gone through stages 0 … k."""
        return np.cumsum(self.costs)

    def rows(self, index: ArrayLike) -> Exits:
        """Some of the rows, by numbers or a mask."""
        at = np.asarray(index)
        return replace(
            self,
            uncertainty=self.uncertainty[:, at],
            label=self.label[:, at],
            truth=None if self.truth is None else self.truth[at],
            loss=None if self.loss is None else self.loss[:, at],
        )

    def stage(self, windows: Sequence[Window | None]) -> NDArray[np.int64]:
        """The stage of exit (N,) under K−1 closed windows: after stage k a row goes on iff low ≤ U_k ≤ high; None: nobody does."""
        if len(windows) != self.count - 1:
            raise ValueError(f"{len(windows)} windows for {self.count} stages: expected {self.count - 1}")
        exit_at = np.zeros(self.n, np.int64)
        going = np.ones(self.n, bool)
        for k, window in enumerate(windows):
            if window is None:
                break
            low, high = window
            u = self.uncertainty[k]
            if low is not None:
                going &= u >= low
            if high is not None:
                going &= u <= high
            exit_at += going
        return exit_at

    def accepted(self, exit_at: NDArray[np.int64], taus: Sequence[float | None]) -> NDArray[np.bool_]:
        """Which rows are accepted (N,): U ≤ τ of the stage of exit; a τ of None accepts all."""
        limits = np.array([np.inf if tau is None else tau for tau in taus])
        return np.asarray(self.at_exit(self.uncertainty, exit_at) <= limits[exit_at])

    def at_exit(self, values: NDArray, exit_at: NDArray[np.int64]) -> NDArray:
        """Of (K, N) values those at each row's exit (N,)."""
        return np.asarray(np.take_along_axis(values, exit_at[None], 0)[0])


def _losses(probs: Floats | None, truth: NDArray[np.int64], name: str) -> Floats:
    if probs is None:
        raise ValueError(f"stage {name!r} gives only its top class: the NLL needs scores of every class")
    with np.errstate(divide="ignore"):
        return np.asarray(-np.log(probs[np.arange(len(truth)), truth]))
