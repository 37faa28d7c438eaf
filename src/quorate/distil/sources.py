"""From what a user gives as students to a pool of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from quorate.distil.cutting import Cut, Ladder, ladder
from quorate.distil.ensemble import check_chain
from quorate.distil.pool import Candidate, Fixed, Pool, drawn, student_macs
from quorate.distil.rules import Rules
from quorate.distil.student import Student
from quorate.distil.teacher import Teacher
from quorate.ensemble import DeepEnsemble, device_of, evaluating

SHARE = 0.25
"""A student of the default ladder costs at most this share of the network it is cut from, or of the budget if that is less."""


def pool_of(
    students: Any, base: nn.Module | None, teacher: Any, example: Tensor, rules: Rules, teacher_macs: float | None
) -> Any:
    """The pool that ``students`` of :func:`quorate.distil.distil` means.

    Args:
        students: see there. base: the network to cut from, or None. teacher: as the user gave it.
        example: one raw input (1, *shape). teacher_macs: for the budget.

    Raises:
        ValueError: students of another kind; no network to cut from; sizes that the budget has no room for.
    """
    if isinstance(students, Pool | Fixed):
        return students
    options: dict[str, Any] = {"links": rules.links, "stem": rules.stem, "warm": rules.start == "warm", "breadth": rules.breadth}
    limit = rules.limit(teacher_macs)
    if students is None:
        model = _base(base, teacher, example)
        return Pool.cut_from(model, example, ladder(model, example, budget=SHARE * limit), rules.dropout, **options)
    if isinstance(students, Ladder):
        return Pool.cut_from(_base(base, teacher, example), example, students, rules.dropout, **options)
    if isinstance(students, str | bytes) or not isinstance(students, Sequence) or not len(students):
        raise ValueError(
            f"students is a {type(students).__name__}: expected None, a Ladder, or a sequence of Cut, of modules or of functions that make "
            "one"
        )
    kinds = {_kind(each) for each in students}
    if len(kinds) != 1:
        raise ValueError(f"students are of several kinds ({', '.join(sorted(kinds))}): expected all of one")
    kind = kinds.pop()
    if kind == "Cut":
        model = _base(base, teacher, example)
        return Pool.cut_from(model, example, _as_ladder(model, example, students), rules.dropout, **options)
    if kind == "student with reads and writes":
        check_chain(students)
        return Fixed([_redrawn(each) for each in students], [str(each.name) for each in students])
    return Pool.listed(students, example, **options)


def check_first(pool: Any, example: Tensor, limit: float, width: int) -> None:
    """A ValueError unless the first student has as many outputs as the teacher, ``width``, and is within ``limit`` MACs per input."""
    student = pool.build(Candidate(0), 0, [], example)
    with evaluating(student), torch.no_grad():
        shape = tuple(student(example.clone(), {})[0].shape)
    if shape != (len(example), width):
        raise ValueError(
            f"the first student, {pool.names[0]}, gives outputs {shape}: expected {(len(example), width)}, as the teacher and the data "
            "have; give students of as many outputs"
        )
    macs = student_macs(student, [], example)
    if macs > limit:
        raise ValueError(
            f"the first student, {pool.names[0]}, costs {macs:,} MACs and the budget for all of them is {limit:,.0f}: allow a larger one "
            "(rules budget or budget_macs), or give a smaller student first"
        )


def _kind(given: Any) -> str:
    if isinstance(given, Cut):
        return "Cut"
    if isinstance(given, nn.Module):
        return "student with reads and writes" if isinstance(given, Student) else "module or function"
    if callable(given):
        return "module or function"
    raise ValueError(f"a student is a {type(given).__name__}: expected a Cut, a module, or a function that makes one")


def _beside(model: nn.Module, example: Tensor) -> nn.Module:
    """A model on the example's device: itself, or a copy."""
    return model if device_of(model) == example.device else copy.deepcopy(model).to(example.device)


def _base(base: nn.Module | None, teacher: Any, example: Tensor) -> nn.Module:
    """The network that students are cut from, on the example's device."""
    if base is not None:
        return _beside(base, example)
    source = teacher.source if isinstance(teacher, Teacher) else teacher
    model = getattr(source, "module", source) if isinstance(teacher, Teacher) else source
    if isinstance(model, DeepEnsemble):
        first: nn.Module = model.members[0]
        return _beside(first, example)
    if isinstance(model, nn.Module):
        return _beside(model, example)
    raise ValueError(
        f"the teacher is a {type(model).__name__}, which no students can be cut from: give base=, a network of the kind that they shall "
        "be, or the students themselves"
    )


def _as_ladder(model: nn.Module, example: Tensor, cuts: Sequence[Cut]) -> Ladder:
    """The user's own sizes, small to large by MACs."""
    from quorate.cost import count
    from quorate.distil.cutting import Size, cut

    sizes = []
    for each in cuts:
        found = count(cut(model, example, each), example)
        sizes.append(Size(each, found.macs, found.parameters))
    return Ladder(tuple(sorted(sizes, key=lambda size: size.macs)), ())


def _redrawn(student: nn.Module) -> Callable[[int], nn.Module]:
    return lambda seed: drawn(student, seed)
