"""What theory says of B-DISTIL before and after a run, and what a held-out set says of its error.

Sources: Dennis et al. 2023 (arXiv 2302.10093), for the summed edge γ_t = e(f_t) (see quorate.distil.game); Maurer & Pontil 2009
(arXiv 0907.3740), theorem 4. Where |d_t| ≤ G, every ln Z_t ≤ −ηγ_t + η²G²/2 (Hoeffding's lemma), so that after T rounds, γ̄ = (1/T) Σ γ_t,

    |F_T − g| ≤ ln(2N) / (ηT) + ηG²/2 − γ̄  =  G √(2 ln(2N) / T) − γ̄   at η = (1/G) √(2 ln(2N) / T)

on every sample. Off the sample, with probability 1 − δ for all L outputs at once and for all averages of students of a class F,

    E|F_T − g|_j ≤ (1/N) Σ_i |F_T − g|_ij + 2 R_N(F) + G √(ln(L/δ) / (2N))

where R_N is the Rademacher complexity, which averaging does not raise. Of n held-out rows with errors x ∈ [0, b], unbiased variance V,

    E x ≤ x̄ + √(2 V ln(2/δ) / n) + 7 b ln(2/δ) / (3 (n − 1))          (empirical Bernstein)

The game's value v_j is the least, over mixtures of the students of a class, of the largest error of output j. Any weights K show
v_j ≥ −max_f e_j(f; K): the largest error of a mixture is at least the mean of its signed error under K⁻ − K⁺.

Shapes: per output (L,); G, η, δ scalars; errors, edges and bounds in the outputs' units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.distil.rows import Rows, block_rows, blocks, number, whole
from quorate.distil.weighing import Floats

LARGEST = 1e100  # of bounds on outputs, as of steps


def best_eta(bound: float, entries: int, rounds: int) -> float:
    """η = (1/G) √(2 ln(2N) / T), at which :func:`convergence` is least.

    Args:
        bound: G > 0 on |f − g|.
        entries: N, of the joint game N·L.
        rounds: T.

    Raises:
        ValueError: a value outside its range.
    """
    return math.sqrt(2 * math.log(2 * whole("entries", entries)) / whole("rounds", rounds)) / _positive("bound", bound)


def convergence(
    bound: float, entries: int, rounds: int, *, eta: float | None = None, mean_edge: ArrayLike | None = None
) -> Floats:
    """The most that |F_T − g| can be on any sample, for |f_t − g| ≤ G in every round.

    Args:
        bound, entries, rounds: as :func:`best_eta`.
        eta: the step used, by default :func:`best_eta`.
        mean_edge: γ̄ (L,) or a scalar, by default 0.

    Returns:
        Of the shape of γ̄. May be below 0 only where no students with these edges and this G exist.

    Raises:
        ValueError: a value outside its range.
    """
    best = best_eta(bound, entries, rounds)
    step = best if eta is None else _positive("eta", eta)
    edges = _finite("mean_edge", 0.0 if mean_edge is None else mean_edge)
    return np.asarray(math.log(2 * entries) / (step * rounds) + step * bound**2 / 2 - edges)


def generalisation(error: ArrayLike, complexity: ArrayLike, bound: float, samples: int, delta: float = 0.05) -> Floats:
    """The most that the expected |F_T − g| is, per output, all outputs at once with probability 1 − δ over the transfer set.

    Args:
        error: (L,) mean |F_T − g| over the transfer set, as the certificate's ``mean_error``.
        complexity: R_N(F) ≥ 0 of the class that the students are of, a scalar or (L,); to be known, not estimated here.
        bound: G > 0 on |f − g|, of every student and every input.
        samples: N.
        delta: in (0, 1).

    Raises:
        ValueError: a value outside its range, shapes that do not agree.
    """
    errors, term = _finite("error", error), _finite("complexity", complexity)
    if errors.ndim != 1 or not errors.size or term.shape not in ((), errors.shape) or (errors < 0).any() or (term < 0).any():
        raise ValueError(f"error of shape {errors.shape}, complexity {term.shape}: expected (L,), and one or (L,), none below 0")
    deviation = math.sqrt(math.log(len(errors) / _share("delta", delta)) / (2 * whole("samples", samples)))
    expected: Floats = errors + 2 * term + _positive("bound", bound) * deviation
    return expected


@dataclass(frozen=True, eq=False)
class HeldOutError:
    """Mean errors on rows that took no part in training, per output.

    rows: n.
    mean: (L,) of |F − g|, unclipped.
    upper: (L,) above the expectation of min(|F − g|, limit), all outputs at once with probability 1 − δ.
    beyond: (L,) rows whose error is beyond the limit; where there are some, ``upper`` says nothing of how far.
    """

    rows: int
    mean: Floats
    upper: Floats
    beyond: NDArray[np.int64]


def held_out_error(difference: Rows, rows: int, outputs: int, limit: float, delta: float = 0.05) -> HeldOutError:
    """The mean of |F − g| on held-out rows, with an upper confidence bound by the empirical Bernstein inequality (δ/L per output).

    Args:
        difference: F − g or its absolute value (n, L), or its row blocks, see quorate.distil.rows.
        rows: n ≥ 2, independent of each other and of everything chosen.
        outputs: L.
        limit: b > 0: larger errors are clipped to it, and counted.
        delta: in (0, 1).

    Raises:
        ValueError: a value outside its range, another shape or dtype, NaN or infinities (the rows are named).
    """
    n, top, log = (
        whole("rows", rows, 2),
        _positive("limit", limit),
        math.log(2 * whole("outputs", outputs) / _share("delta", delta)),
    )
    seen = 0
    total, mean, squares = (np.zeros(outputs) for _ in range(3))
    beyond = np.zeros(outputs, np.int64)
    for _, part in blocks("difference", difference, (n, outputs), block_rows(outputs)):
        error = np.abs(part.astype(np.float64))
        total += error.sum(axis=0)
        beyond += (error > top).sum(axis=0)
        np.minimum(error, top, out=error)
        shift = error.mean(axis=0) - mean  # Chan, Golub & LeVeque 1983, eq. 2.1
        squares += np.square(error - error.mean(axis=0)).sum(axis=0) + shift**2 * (seen * len(part) / (seen + len(part)))
        seen += len(part)
        mean += shift * (len(part) / seen)
    upper = mean + np.sqrt(2 * squares / (n - 1) * log / n) + 7 * top * log / (3 * (n - 1))
    return HeldOutError(n, total / n, np.minimum(upper, top), beyond)


def infeasibility(edges: ArrayLike) -> Floats:
    """A lower bound on the game's value v_j (L,): the largest error that every mixture of these students has on some sample.

    Evidence that the class has to grow where it is above what is wanted; 0 says nothing.

    Args:
        edges: (M, L) e_j of M students under the same weights. The bound is one on mixtures of these students; it is one for their class as
            far as no student of the class has a larger edge.

    Raises:
        ValueError: another shape, no students, NaN or infinities.
    """
    array = _finite("edges", edges)
    if array.ndim != 2 or 0 in array.shape:
        raise ValueError(f"edges have shape {array.shape}: expected (students, outputs), one of each at least")
    value: Floats = np.maximum(0.0, -array.max(axis=0))
    return value


def _finite(name: str, values: ArrayLike) -> Floats:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: give floats") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has NaN or infinite values: expected finite numbers")
    return array


def _positive(name: str, value: float) -> float:
    return number(name, value, 1 / LARGEST, LARGEST, "a number from 1e-100 to 1e100")


def _share(name: str, value: float) -> float:
    return number(name, value, math.nextafter(0, 1), math.nextafter(1, 0), "a number above 0 and below 1")
