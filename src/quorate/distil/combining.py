"""Non-negative weights of the students, fitted on validation rows and kept only if cross-validation finds them better than the mean.

Sources: non-negative combination of given predictors, Breiman 1996 (Stacked regressions, Machine Learning 24); the one-standard-error rule,
Breiman et al. 1984 (CART, §3.4.3). On the simplex Δ = {w ≥ 0, Σ_t w_t = 1}, for students f_t with outputs z_t and a target g or labels y,

    squared error   min_{w ∈ Δ} Σ_i ‖Σ_t w_t f_t(x_i) − g(x_i)‖²  =  min_{w ∈ Δ} ‖A w‖²,    columns of A: f_t − g, as Σ w_t = 1
    nll             min_{w ∈ Δ} −Σ_i log softmax(Σ_t w_t z_t(x_i))_{y_i}                    convex: log-softmax of a linear function

The first is solved exactly by one non-negative least squares: with w = s·v, v ∈ Δ, the least value over s ≥ 0 of ‖A w‖² + c²(Σ w_t − 1)² is
‖Av‖²c²/(‖Av‖² + c²), which rises with ‖Av‖². So the row of c's changes the sum of w only, and w/Σw is the minimiser on Δ for any c > 0.
The second by sequential quadratic programming (SciPy's SLSQP) from w_t = 1/T, whose loss the result's never exceeds.

Prefix t is the mean weighted by w_1 … w_t over their sum, and the uniform mean where that is 0. The weights are fitted for the full
ensemble; what they do to its prefixes is measured, too, and a gain at the end that costs an earlier prefix is refused by default.

Shapes: students (T, N, L), target (N, L), labels (N,); weights (T,). Arrays only; work in float64 by blocks of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize, nnls

from quorate._validation import check_known, check_labels, check_values
from quorate.combination import Floats, log_softmax

BLOCK_VALUES = 2**21  # float64 values of all students worked on at a time: 16 MB
RESTARTS, GAP = 5, 1e-7  # of the sequential quadratic programming, and the gap, relative to the gradient, that is good enough
EPSILON = float(np.finfo(np.float64).eps)
NOISE = 1e-9  # a gain below this share of the loss is rounding


@dataclass(frozen=True, eq=False)
class Combination:
    """The weights to use, and the evidence. Losses are means over rows of out-of-fold predictions, in the unit of ``objective``.

    Attributes:
        weights: (T,) ≥ 0, of sum 1: ``fitted``, or 1/T each.
        chosen: ``"weighted"`` or ``"uniform"``.
        objective: ``"squared error"`` (mean over outputs, output units²) or ``"nll"`` (nats).
        fitted: (T,) the weights that all rows together give.
        prefix_gains: (T,) of prefix t: loss of the uniform mean less that of the weighted one.
        prefix_errors: (T,) their standard errors, from the paired differences of the rows, taken as independent.
        uniform_loss, weighted_loss: of the full ensemble.
    """

    weights: Floats
    chosen: Literal["weighted", "uniform"]
    objective: Literal["squared error", "nll"]
    fitted: Floats
    prefix_gains: Floats
    prefix_errors: Floats
    uniform_loss: float
    weighted_loss: float

    @property
    def gain(self) -> float:
        """Of the full ensemble: what weights save of the loss; negative where they harm."""
        return float(self.prefix_gains[-1])

    @property
    def standard_error(self) -> float:
        """Of the gain."""
        return float(self.prefix_errors[-1])

    def prefix(self, count: int) -> Floats:
        """(count,) weights of the first ``count`` students, of sum 1; uniform where theirs are all 0."""
        if not 1 <= count <= len(self.weights):
            raise ValueError(f"prefix({count!r}): expected a number of students in 1 … {len(self.weights)}")
        return np.asarray(prefix_matrix(self.weights)[count - 1, :count])


def student_weights(
    outputs: ArrayLike,
    *,
    kind: Literal["logits", "values"],
    teacher: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
    every_prefix: bool = True,
) -> Combination:
    """Weights for the students of a distilled ensemble, from rows that trained none of them.

    Weights are chosen where the out-of-fold gain of the full ensemble over the uniform mean exceeds its standard error; with
    ``every_prefix`` also only where no prefix loses more than one standard error by them. Otherwise the weights are uniform.

    Args:
        outputs: each student's own outputs (T, N, L), not the prefixes', float16 to float64, finite.
        kind: ``"logits"`` of a classification (rows are centred before they are compared with a teacher's) or ``"values"``.
        teacher: its outputs (N, L), to be as near as possible in squared error; or instead
        labels: (N,) classes, for the negative log-likelihood; for ``"values"`` targets (N, L), for the squared error.
        folds: of the cross-validation, 2 … N; rows fall into them at random by ``seed``.

    Raises:
        ValueError: outputs that are not (T, N, L) finite floats, a target that does not fit them, both targets or none, folds or seed out
            of range, an unknown kind.
    """
    check_known("kind", [kind], ["logits", "values"])
    if (teacher is None) == (labels is None):
        raise ValueError(f"{'neither' if teacher is None else 'both'} of teacher and labels given: expected exactly one")
    if np.ndim(outputs) != 3:
        raise ValueError(f"outputs have shape {np.shape(outputs)}: expected (students, rows, outputs)")
    students = check_values(outputs, kind, "outputs")
    assert not isinstance(students, tuple)
    _, rows, width = students.shape
    if not isinstance(folds, int) or not 2 <= folds <= rows:
        raise ValueError(f"folds={folds!r} of {rows} rows: expected an integer in 2 … {rows}, at least one row in each")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed={seed!r}: expected an integer ≥ 0")
    problem: _Squares | _Likelihood
    if labels is not None and kind == "logits":
        problem = _Likelihood(students, check_labels(labels, rows, "logits", width))
    else:
        target = check_labels(labels, rows, "values", width) if labels is not None else _teacher(teacher, rows, width)
        problem = _Squares(students, target, centre=kind == "logits")
    fold = np.random.default_rng(seed).permutation(rows) % folds
    return _choose(problem, fold, every_prefix)


def prefix_matrix(weights: ArrayLike) -> Floats:
    """(T, T) lower triangle: row t − 1 holds w_1 … w_t over their sum, or 1/t each where that is 0. Weights (T,) ≥ 0."""
    w = np.asarray(weights, np.float64)
    if w.ndim != 1 or len(w) == 0 or not (np.isfinite(w) & (w >= 0)).all():
        raise ValueError(f"weights {w.tolist()}: expected (students,) finite numbers ≥ 0")
    top = w.max()
    lower = np.tril(np.tile(w / top if top > 0 else w, (len(w), 1)))
    empty = lower.sum(1) == 0
    lower[empty] = np.tril(np.ones((len(w), len(w))))[empty]
    return np.asarray(lower / lower.sum(1, keepdims=True))


def _teacher(teacher: ArrayLike | None, rows: int, width: int) -> NDArray:
    array = np.asarray(teacher)
    if array.shape != (rows, width):
        raise ValueError(f"teacher has shape {array.shape}: expected ({rows}, {width}), as each student's outputs")
    checked = check_values(array, "values", "teacher")
    assert not isinstance(checked, tuple)
    return checked.reshape(rows, width)


def _choose(problem: _Squares | _Likelihood, fold: NDArray[np.int64], every_prefix: bool) -> Combination:
    count, rows, folds = len(problem.students), len(fold), range(int(fold.max()) + 1)
    fitted = problem.fit(np.ones(rows, bool))
    uniform = np.full(count, 1 / count)
    plain, weighted = np.empty((count, rows)), np.empty((count, rows))
    means = prefix_matrix(uniform)
    for k in folds:
        held = fold == k
        weighted[:, held] = problem.losses(prefix_matrix(problem.fit(~held)), held)
        plain[:, held] = problem.losses(means, held)
    saved = plain - weighted
    gains, errors = saved.mean(1), saved.std(1, ddof=1) / np.sqrt(rows)
    noise = NOISE * plain.mean(1) + problem.rounding
    better = gains[-1] > errors[-1] + noise[-1] and (not every_prefix or bool((gains >= -errors - noise).all()))
    return Combination(
        weights=fitted if better else uniform,
        chosen="weighted" if better else "uniform",
        objective=problem.objective,
        fitted=fitted,
        prefix_gains=gains,
        prefix_errors=errors,
        uniform_loss=float(plain[-1].mean()),
        weighted_loss=float(weighted[-1].mean()),
    )


def _largest(students: NDArray) -> float:
    return max(float(students.max()), -float(students.min()))


def _blocks(students: NDArray, rows: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    index = np.flatnonzero(rows)
    step = max(1, BLOCK_VALUES // (students.shape[0] * students.shape[2]))
    return (index[start : start + step] for start in range(0, len(index), step))


class _Squares:
    """Mean squared errors, from the Gram matrix of the students' errors."""

    objective: Literal["squared error"] = "squared error"

    def __init__(self, students: NDArray, target: NDArray, *, centre: bool) -> None:
        self.students, self.target, self.centre = students, target, centre
        self.rounding = (8 * EPSILON * _largest(students)) ** 2

    def _errors(self, index: NDArray[np.int64]) -> Floats:
        d = np.asarray(self.students[:, index], np.float64) - np.asarray(self.target[index], np.float64)
        return d - d.mean(-1, keepdims=True) if self.centre else d

    def fit(self, rows: NDArray[np.bool_]) -> Floats:
        """(T,) least squares on Δ over these rows."""
        count = len(self.students)
        gram = np.zeros((count, count))
        for index in _blocks(self.students, rows):
            d = self._errors(index).reshape(count, -1)
            gram += d @ d.T
        scale = float(np.trace(gram)) / count
        if scale == 0:
            return np.full(count, 1 / count)
        values, vectors = np.linalg.eigh(gram / scale)
        root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        w, _ = nnls(np.vstack([root, np.ones(count)]), np.append(np.zeros(count), 1.0))
        return np.asarray(w / w.sum())

    def losses(self, weights: Floats, rows: NDArray[np.bool_]) -> Floats:
        """(W, n) squared errors of the combinations by weights (W, T) on these rows, mean over outputs."""
        return np.concatenate(
            [np.square(np.tensordot(weights, self._errors(index), 1)).mean(-1) for index in _blocks(self.students, rows)], axis=1
        )


class _Likelihood:
    """Negative log-likelihood of labels under the softmax of the combined logits."""

    objective: Literal["nll"] = "nll"

    def __init__(self, students: NDArray, labels: NDArray) -> None:
        self.students, self.labels = students, labels
        self.rounding = 8 * EPSILON * _largest(students)

    def _logits(self, index: NDArray[np.int64]) -> Floats:
        """(T, n, C) logits less those of the labels, so that the loss is log Σ_c exp of their combination."""
        z = np.asarray(self.students[:, index], np.float64)
        return np.asarray(z - np.take_along_axis(z, self.labels[index][None, :, None], -1))

    def fit(self, rows: NDArray[np.bool_]) -> Floats:
        """(T,) least loss on Δ over these rows."""
        count = len(self.students)
        uniform = w = np.full(count, 1 / count)
        start, slope = self._loss(w, rows)

        def scaled(w: Floats) -> tuple[float, Floats]:
            loss, gradient = self._loss(w, rows)
            return loss / scale, gradient / scale

        for _ in range(RESTARTS):  # it may stop early where the loss is nearly piecewise linear
            scale = float(np.abs(slope).max())
            if slope @ w - slope.min() <= GAP * scale:  # bounds the loss above the least, by convexity
                break
            found = minimize(
                scaled,
                w,
                jac=True,
                method="SLSQP",
                constraints=[
                    {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
                    {
                        "type": "ineq",
                        "fun": np.asarray,
                        "jac": lambda _: np.eye(count),
                    },  # given bounds, SciPy warns of its own steps
                ],
                options={"ftol": 1e-12, "maxiter": 200},
            )
            w = np.where(found.x < NOISE, 0, found.x)
            w /= w.sum()
            _, slope = self._loss(w, rows)
        return np.asarray(w) if self._loss(w, rows)[0] <= start else uniform

    def _loss(self, w: Floats, rows: NDArray[np.bool_]) -> tuple[float, Floats]:
        """The mean over rows and its gradient (T,)."""
        total, gradient = 0.0, np.zeros(len(w))
        for index in _blocks(self.students, rows):
            z = self._logits(index)
            log_p = log_softmax(np.tensordot(w, z, 1))
            total -= float(np.take_along_axis(log_p, self.labels[index][:, None], -1).sum())
            gradient += z.reshape(len(w), -1) @ np.exp(log_p).ravel()
        n = int(rows.sum())
        return total / n, gradient / n

    def losses(self, weights: Floats, rows: NDArray[np.bool_]) -> Floats:
        """(W, n) losses of the combinations by weights (W, T) on these rows."""
        found = []
        for index in _blocks(self.students, rows):
            log_p = log_softmax(np.tensordot(weights, self._logits(index), 1))
            found.append(-np.take_along_axis(log_p, self.labels[index][None, :, None], -1)[..., 0])
        return np.concatenate(found, axis=1)
