"""Accuracy and calibration of class probabilities.

With p_n the probabilities of row n, y_n its true class, ŷ_n = argmax p_n (the lowest class among equals):

- accuracy  (1/N) Σ 1[ŷ_n = y_n], and the same per true class;
- NLL       −(1/N) Σ log p_n[y_n], natural logarithm;
- Brier     (1/N) Σ_n Σ_c (p_n[c] − 1[c = y_n])²  (Brier 1950, eq. 2: summed over classes, so from 0 to 2);
- ECE       Σ_b (|b|/N) · |accuracy(b) − mean top probability(b)|  (Guo et al. 2017, arXiv 1706.04599, eq. 3).

Shapes: probabilities (N, C) of any real dtype, labels (N,) integers. All arithmetic is float64, in blocks of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import Floats, check_choice, check_count, check_labels, check_outputs, prob_blocks

Scheme = Literal["width", "mass"]


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram, one entry per bin, from the least to the most probable.

    probability: (bins,) mean top probability of the bin's rows; NaN in an empty bin.
    accuracy: (bins,) share of them that are right; NaN in an empty bin.
    count: (bins,) number of rows.
    """

    probability: Floats
    accuracy: Floats
    count: NDArray[np.int64]


def accuracy(probs: ArrayLike, labels: ArrayLike) -> float:
    """Share of rows whose most probable class is the true one; among equals the lowest class counts.

    Raises:
        ValueError: ``probs`` is not (N, C) probabilities that sum to 1 within 1e-3, or labels are not in 0 … C−1.
    """
    _, right, _ = _top(probs, labels)
    return float(np.count_nonzero(right) / right.size)


def per_class_accuracy(probs: ArrayLike, labels: ArrayLike) -> Floats:
    """(C,) accuracy among the rows of each true class (its recall); NaN for a class that no row has.

    Raises:
        ValueError: as :func:`accuracy`.
    """
    _, right, (truth, classes) = _top(probs, labels)
    rows = np.bincount(truth, minlength=classes)
    hits = np.bincount(truth[right], minlength=classes)
    return np.asarray(np.divide(hits, rows, out=np.full(classes, np.nan), where=rows > 0))


def nll(
    probs: ArrayLike | None = None,
    labels: ArrayLike | None = None,
    *,
    log_probs: ArrayLike | None = None,
) -> float:
    """Negative log-likelihood in nats, mean over rows.

    Exact: ``inf`` once a true class has probability 0. Nothing is clipped; ``nll(labels=y, log_probs=…)`` stays
    finite where probabilities underflow.

    Raises:
        ValueError: as :func:`accuracy` (``log_probs`` may hold −inf); both or neither of ``probs``, ``log_probs``.
    """
    if probs is not None and log_probs is None:
        name, given = "probs", probs
    elif log_probs is not None and probs is None:
        name, given = "log_probs", log_probs
    else:
        got = "neither" if probs is None else "both"
        raise ValueError(f"expected exactly one of probs and log_probs, got {got}; pass the one you have")
    if labels is None:
        raise ValueError("labels: expected the (N,) true classes, got None; pass them")
    log = name == "log_probs"
    outputs = check_outputs(name, given)
    truth = check_labels(labels, *outputs.shape)
    said = np.empty(truth.size)
    for rows, block in prob_blocks(name, outputs, log=log):
        said[rows] = np.take_along_axis(block, truth[rows, None], axis=1)[:, 0]
    if not log:
        with np.errstate(divide="ignore"):
            np.log(said, out=said)
    return float(0.0 - said.mean())  # 0.0 - x: a perfect score is 0, not -0


def brier(probs: ArrayLike, labels: ArrayLike) -> float:
    """Multi-class Brier score: squared error summed over the classes, mean over rows; 0 is best, 2 worst.

    Two classes give twice the binary score of one column.

    Raises:
        ValueError: as :func:`accuracy`.
    """
    outputs = check_outputs("probs", probs)
    truth = check_labels(labels, *outputs.shape)
    total = 0.0
    for rows, block in prob_blocks("probs", outputs):
        block[np.arange(len(block)), truth[rows]] -= 1.0
        total += float(np.square(block, out=block).sum())
    return total / truth.size


def reliability(probs: ArrayLike, labels: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> Reliability:
    """Mean top probability, accuracy and number of rows per bin of the top probability.

    Args:
        probs: (N, C). labels: (N,).
        bins: how many bins, at least 1.
        scheme: ``"width"``: ``bins`` intervals of equal width, open below and closed above, (0, 1/bins] first; all
            are returned, empty ones too. ``"mass"``: equal numbers of rows by rank. Rows of one top probability are
            never split: they all go into the bin that holds the middle of their ranks, so bins are as equal as ties
            allow, the result doesn't depend on the order of the rows, and bins left empty are not returned.

    Raises:
        ValueError: as :func:`accuracy`; ``bins`` is not an integer of at least 1; an unknown scheme.
    """
    check_choice("scheme", scheme, "width", "mass")
    check_count("bins", bins)
    top, right, _ = _top(probs, labels)
    order = np.argsort(top)
    top, right = top[order], right[order]
    ends = _width_ends(top, int(bins)) if scheme == "width" else _mass_ends(top, int(bins))
    count = np.diff(ends, prepend=0)
    starts = (ends - count)[count > 0]
    probability, share = np.full((2, ends.size), np.nan)
    probability[count > 0] = np.add.reduceat(top, starts) / count[count > 0]
    share[count > 0] = np.add.reduceat(right, starts, dtype=np.int64) / count[count > 0]
    return Reliability(probability, share, count)


def ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15, scheme: Scheme = "width") -> float:
    """Top-label expected calibration error over ``bins`` bins, see :func:`reliability` for the schemes.

    Raises:
        ValueError: as :func:`reliability`.
    """
    diagram = reliability(probs, labels, bins, scheme)
    filled = diagram.count > 0
    gap = np.abs(diagram.accuracy[filled] - diagram.probability[filled])
    return float((diagram.count[filled] * gap).sum() / diagram.count.sum())


def adaptive_ece(probs: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Top-label ECE over bins of equal mass (Nguyen & O'Connor 2015): ``ece(…, scheme="mass")``.

    Raises:
        ValueError: as :func:`reliability`.
    """
    return ece(probs, labels, bins, "mass")


def _top(probs: ArrayLike, labels: ArrayLike) -> tuple[Floats, NDArray[np.bool_], tuple[NDArray[np.int64], int]]:
    """Top probability (N,), whether it is the true class's (N,), and the checked labels (N,) with C."""
    outputs = check_outputs("probs", probs)
    truth = check_labels(labels, *outputs.shape)
    top = np.empty(truth.size)
    right = np.empty(truth.size, dtype=np.bool_)
    for rows, block in prob_blocks("probs", outputs):
        top[rows] = block.max(axis=1)
        right[rows] = block.argmax(axis=1) == truth[rows]
    return top, right, (truth, outputs.shape[1])


def _width_ends(top: Floats, bins: int) -> NDArray[np.int64]:
    """(bins,) how many of the ascending ``top`` (N,) are at most the upper edge i / bins of each bin."""
    ends = np.searchsorted(top, np.arange(1, bins + 1) / bins, side="right")
    ends[-1] = top.size  # a top of 1.0004 is within the tolerance of a row's sum
    return ends


def _mass_ends(top: Floats, bins: int) -> NDArray[np.int64]:
    """Row after the last of each filled bin of ascending ``top`` (N,); tied rows go by the middle of their ranks."""
    group_ends = np.append(np.flatnonzero(top[1:] != top[:-1]), top.size - 1) + 1
    twice_middle = group_ends + np.append(0, group_ends[:-1])
    groups = np.searchsorted(twice_middle * bins // (2 * top.size), np.arange(bins), side="right")
    return group_ends[np.unique(groups[groups > 0]) - 1]
