"""Stage: a part of an ensemble that runs once the stages before it have run; its contract, and the one place that enforces it.

A stage is any callable ``(x, carry) → (members (m, B, C), written)`` with attributes ``name, reads, writes, drops``. ``x`` holds B
rows, ``carry`` the named arrays that the stage reads, batch first: (B, …). It returns exactly what it declares to write; whoever
runs it keeps the rest and forgets what the stage drops. Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3.

Arrays of any framework: nothing is asked of them but a ``shape``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Carry = Mapping[str, Any]


@runtime_checkable
class Stage(Protocol):
    """What the executor needs of a stage. ``macs`` may be None where only the policy knows the cost."""

    @property
    def name(self) -> str: ...
    @property
    def reads(self) -> Sequence[str]: ...
    @property
    def writes(self) -> Sequence[str]: ...
    @property
    def drops(self) -> Sequence[str]: ...
    @property
    def macs(self) -> float | None: ...

    def __call__(self, x: Any, carry: Carry, /) -> tuple[Any, Carry]: ...


def check_chain(stages: Sequence[Any]) -> None:
    """Refuse stages of which one reads what is not carried when its turn comes. Raises ValueError."""
    carried: set[str] = set()
    for stage in stages:
        absent = [name for name in stage.reads if name not in carried]
        if absent:
            raise ValueError(
                f"stage {stage.name!r} reads {absent}, which no earlier stage writes (carried: {sorted(carried)}): mend the stages"
            )
        carried = (carried | set(stage.writes)) - set(stage.drops)


def check_answer(stage: Any, answer: Any, rows: int) -> tuple[Any, dict[str, Any]]:
    """What a stage returned for ``rows`` rows, as its members, still unchecked, and what it wrote. Raises ValueError."""
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], Mapping):
        raise ValueError(f"stage {stage.name!r} returned {type(answer).__name__}: expected (members, dict of what it writes)")
    members, written = answer[0], dict(answer[1])
    if not written and not stage.writes:
        return members, written
    if written.keys() != set(stage.writes):
        raise ValueError(
            f"stage {stage.name!r} wrote {sorted(written)}, it declares {sorted(stage.writes)}: return what is declared"
        )
    for name, array in written.items():
        shape = tuple(getattr(array, "shape", ()))
        if not shape or shape[0] != rows:
            raise ValueError(
                f"stage {stage.name!r} wrote {name!r} of type {type(array).__name__}, shape {shape}, for {rows} rows: "
                "carried arrays are batch first"
            )
    return members, written


def run_stage(stage: Any, x: Any, carry: Carry, rows: int) -> tuple[Any, dict[str, Any]]:
    """Call a stage on ``rows`` rows with what it reads → (members, still unchecked; what is carried on).

    Raises:
        ValueError: an answer against the contract above.
    """
    members, written = check_answer(stage, stage(x, {name: carry[name] for name in stage.reads}), rows)
    if not carry and not written:
        return members, written
    return members, {name: array for name, array in {**carry, **written}.items() if name not in stage.drops}
