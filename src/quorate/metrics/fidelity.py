"""How faithful a student is to its teacher, apart from whether either is right: no labels.

- KL        mean over rows of KL(softmax(g/τ) ‖ softmax(f/τ)) in nats (Hinton et al. 2015, arXiv 1503.02531, §2, without their factor τ²);
- agreement share of rows with the same argmax (Stanton et al. 2021, arXiv 2106.05945, eq. 4: top-1 agreement);
- error     max and mean over rows of |f − g| per output, the quantities that the certificate of B-DISTIL bounds (Dennis et al. 2023,
            arXiv 2302.10093). With ``centred`` each row's mean is first taken off f and off g: softmax ignores constants.

Shapes: teacher and student outputs (N, C) each, logits unless said otherwise. Work goes through blocks of rows, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.combination import log_softmax
from quorate.metrics._checks import Floats, check_array, check_number, finite_blocks


class Fidelity(NamedTuple):
    """Errors of a student's outputs against the teacher's, in their unit: ``max_error`` and ``mean_error`` per output, (C,)."""

    max_error: Floats
    mean_error: Floats


def fidelity_kl(teacher: ArrayLike, student: ArrayLike, temperature: float = 1.0) -> float:
    """Mean KL(softmax(teacher / τ) ‖ softmax(student / τ)) over rows, in nats; 0 where the logits differ by constants only.

    Args:
        teacher, student: logits (N, C), C ≥ 2.
        temperature: τ, above 0.

    Raises:
        ValueError: shapes that differ or are not (N, C), NaN or infinite logits, a temperature of 0 or below.
    """
    scale = check_number("temperature", temperature, 0.0)
    if scale == 0:
        raise ValueError("temperature=0: expected a finite number above 0; for the limit of 0 measure the agreement")
    total, rows = 0.0, 0
    for g, f in _pairs(teacher, student, least=2):
        of_teacher, of_student = (log_softmax(z.astype(np.float64) / scale) for z in (g, f))
        p = np.exp(of_teacher)
        total += float(np.maximum((p * (of_teacher - of_student)).sum(-1), 0.0).sum())
        rows += len(g)
    return total / rows


def fidelity_agreement(teacher: ArrayLike, student: ArrayLike) -> float:
    """Share of rows whose largest output is the same class's; the lowest among equals. Logits or probabilities (N, C), C ≥ 2.

    Raises:
        ValueError: shapes that differ or are not (N, C), NaN or infinite entries.
    """
    same = [(g.argmax(-1) == f.argmax(-1)) for g, f in _pairs(teacher, student, least=2)]
    return float(np.concatenate(same).mean())


def fidelity_error(teacher: ArrayLike, student: ArrayLike, centred: bool = False) -> Fidelity:
    """The largest and the mean absolute error of every output, over rows.

    Args:
        teacher, student: (N, L) logits or values, L ≥ 1.
        centred: take off each row's mean first; for logits, not for values of a regression. Needs L ≥ 2: one output would vanish.

    Raises:
        ValueError: shapes that differ or are not (N, L), NaN or infinite entries, ``centred`` with one output.
    """
    worst: Floats | None = None
    total: Floats | None = None
    rows = 0
    for g, f in _pairs(teacher, student, least=2 if centred else 1):
        apart = f.astype(np.float64) - g
        if centred:
            apart -= apart.mean(-1, keepdims=True)
        size = np.abs(apart)
        most, sums = size.max(0), size.sum(0)
        worst = most if worst is None else np.maximum(worst, most)
        total = sums if total is None else total + sums
        rows += len(g)
    assert worst is not None
    assert total is not None
    return Fidelity(worst, total / rows)


def _pairs(teacher: ArrayLike, student: ArrayLike, least: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """The same rows of both, finite, block by block; at least ``least`` outputs."""
    g, f = check_array("teacher", teacher), check_array("student", student)
    if g.ndim != 2 or g.shape[0] == 0 or g.shape[1] < least:
        what = "a row and an output" if least == 1 else f"one row and {least} outputs"
        raise ValueError(f"teacher: expected shape (N, C) with at least {what}, got {g.shape}; average members first")
    if f.shape != g.shape:
        raise ValueError(
            f"student: expected the teacher's shape {g.shape}, got {f.shape}; pass both for the same rows and outputs"
        )
    for (_, part), (_, other) in zip(finite_blocks("teacher", g), finite_blocks("student", f), strict=True):
        yield part, other
