"""Pool: stored Outputs of several members, matched by their rows, as one Outputs with a stage per member.

A pool is a dict from names to Outputs. One with a single stage is a member of that name; one with several gives members
``name/stage``, which come in their order and without gaps if they depend on their predecessors (``ordered``). Logits beside
probabilities are softmaxed. Costs are per row and in one unit; each stage's is what it adds.

Shapes: as :mod:`quorate.outputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from quorate._validation import Value
from quorate.combination import Combine, Kind, softmax
from quorate.outputs import Outputs


@dataclass(frozen=True, eq=False)
class Pool:
    """The members of a pool.

    Attributes:
        outputs: a stage per member, in the pool's order.
        kinds: per member ``"logits"`` where logits were softmaxed, else None.
        after: per member the number of the member that has to come before it, or None.
    """

    outputs: Outputs
    kinds: tuple[Literal["logits"] | None, ...]
    after: tuple[int | None, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names."""
        return self.outputs.names

    @property
    def costs(self) -> tuple[float, ...]:
        """Cost per row of each member; only for pools read with ``costs=True``."""
        assert self.outputs.costs is not None
        return tuple(self.outputs.costs)

    def chain(self, members: Sequence[int]) -> Outputs:
        """Some members in a given order, as Outputs of their own."""
        here = self.outputs
        return _outputs(
            [here.values[m] for m in members], here, here.kind, here.combine, [here.names[m] for m in members],
            None if here.costs is None else [here.costs[m] for m in members],
        )  # fmt: skip


def read_pool(pool: Mapping[str, Outputs], what: str = "pool", costs: bool = False) -> Pool:
    """The members of a pool, their rows in the order of the first Outputs.

    Args:
        pool: names → Outputs on the same rows (matched by ids).
        what: its name in errors.
        costs: whether every member needs a cost.

    Raises:
        ValueError: an empty pool, regression, members whose kinds, combinations, classes, rows or labels don't go together (two that
            differ are named), a missing cost.
    """
    if not isinstance(pool, Mapping) or not pool or not all(isinstance(part, Outputs) for part in pool.values()):
        raise ValueError(f"{what} is {_shown(pool)}: expected a dict from at least one name to Outputs")
    first, reference = next(iter(pool.items()))
    kind, combine = _kind(what, pool), _combine(what, pool)
    parts = {name: _matched(what, first, reference, name, part) for name, part in pool.items()}
    names: list[str] = []
    values: list[Value] = []
    kinds: list[Literal["logits"] | None] = []
    after: list[int | None] = []
    spent: list[float | None] = []
    for name, part in parts.items():
        if costs and part.costs is None:
            raise ValueError(
                f"{what}: {name!r} has no costs: give costs= per stage when its Outputs are made, in one unit for all"
            )
        for k, stage in enumerate(part.names):
            after.append(len(names) - 1 if part.ordered and k else None)
            names.append(name if part.stages == 1 else f"{name}/{stage}")
            softened = part.kind != kind
            kinds.append("logits" if softened else None)
            values.append(softmax(part.values[k]) if softened else part.values[k])
            spent.append(None if part.costs is None else part.costs[k])
    if len(set(names)) != len(names):
        raise ValueError(f"{what}: members {names}, expected each name once: rename the Outputs or their stages")
    known = None if None in spent else spent
    return Pool(_outputs(values, reference, kind, combine, names, known), tuple(kinds), tuple(after))


def join_pool(pool: Mapping[str, Outputs]) -> Outputs:
    """A pool as the one Outputs that its plans' policies are simulated, evaluated and certified on. Raises as :func:`read_pool`."""
    return read_pool(pool).outputs


def check_like(what: str, other: Pool, pool: Pool) -> None:
    """A ValueError unless another pool has the same members, of the same kind, combination and classes."""
    if other.names != pool.names:
        raise ValueError(
            f"{what} has members {list(other.names)}, the pool has {list(pool.names)}: give the same ones in the same order"
        )
    here, there = other.outputs, pool.outputs
    for key in ("kind", "combine", "width", "classes"):
        if getattr(here, key) != getattr(there, key):
            raise ValueError(
                f"{what} has {key}={getattr(here, key)!r}, the pool {getattr(there, key)!r}: give outputs of the same models"
            )
    if other.kinds != pool.kinds:
        raise ValueError(f"{what} gives logits for other members than the pool: give outputs of the same models")


def _outputs(
    values: Sequence[Value], like: Outputs, kind: Kind, combine: Combine, names: Sequence[str], costs: Sequence[Any] | None
) -> Outputs:
    return Outputs(
        values, kind=kind, combine=combine, labels=like.labels, ids=like.ids, classes=like.classes, costs=costs, names=names
    )  # fmt: skip


def _matched(what: str, first: str, reference: Outputs, name: str, part: Outputs) -> Outputs:
    """One of the pool's Outputs on the first one's rows."""
    if part.width != reference.width or part.classes != reference.classes:
        key = "width" if part.width != reference.width else "classes"
        raise ValueError(
            f"{what}: {first!r} has {key} {getattr(reference, key)}, {name!r} has {getattr(part, key)}: expected the same classes in order"
        )
    if part.ids.dtype.kind != reference.ids.dtype.kind:
        raise ValueError(
            f"{what}: {first!r} has row ids of type {reference.ids.dtype}, {name!r} of type {part.ids.dtype}: give the same ids"
        )
    if len(part.ids) != len(reference.ids) or (part.ids != reference.ids).any():
        common = np.intersect1d(part.ids, reference.ids, assume_unique=True)
        lacking, more = reference.n - len(common), part.n - len(common)
        if lacking or more:
            raise ValueError(
                f"{what}: {lacking} rows of {first!r} are missing from {name!r} and {more} the other way round: give the {len(common)} "
                "common ones with Outputs.aligned(ids)"
            )
        part = part.aligned(reference.ids)
    if (part.labels is None) != (reference.labels is None):
        one, other = (name, first) if part.labels is None else (first, name)
        raise ValueError(f"{what}: {other!r} has labels, {one!r} has none: give labels= to all")
    if part.labels is not None and (different := int((part.labels != reference.labels).sum())):
        raise ValueError(
            f"{what}: {first!r} and {name!r} have different labels for {different} rows: are the row ids those of one data set?"
        )
    return part


def _kind(what: str, parts: Mapping[str, Outputs]) -> Kind:
    kinds = {part.kind: name for name, part in parts.items()}
    for kind in ("values", "gaussian"):
        if kind in kinds:
            raise ValueError(
                f"{what}: {kinds[kind]!r} holds regression outputs ({kind}): the planner needs class scores or top-1 labels"
            )
    if len(kinds) > 1 and "top1" in kinds:
        other = next(kind for kind in kinds if kind != "top1")
        raise ValueError(
            f"{what}: {kinds['top1']!r} gives only its top class, {kinds[other]!r} gives {other}: give top1 for all, or scores"
        )
    return next(iter(kinds)) if len(kinds) == 1 else "probs"


def _combine(what: str, parts: Mapping[str, Outputs]) -> Combine:
    found = {part.combine: name for name, part in parts.items()}
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise ValueError(
            f"{what}: {first!r} is combined by {one}, {second!r} by {other}: make the Outputs with the same combine= ('probs' as a rule)"
        )
    return next(iter(found))


def _shown(pool: Any) -> str:
    if not isinstance(pool, Mapping):
        return type(pool).__name__
    return "{" + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in list(pool.items())[:3]) + "}"
