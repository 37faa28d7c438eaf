"""Temperature scaling: one T > 0 per joined prediction, fitted on validation data, that makes its probabilities more or less sure.

Source: Guo et al. 2017 (arXiv 1706.04599), §4.2, eq. 9, for the joined prediction of the members. With a = log p̄ (mean probabilities)
or a = z̄ (mean logits), q = softmax(a / T) and β = 1 / T, over N rows with true classes y:

    NLL(β) = (1/N) Σ_n [ log Σ_c exp(β a_nc) − β a_n[y_n] ]        dNLL/dβ = (1/N) Σ_n [ Σ_c q_nc a_nc − a_n[y_n] ]

The NLL is convex in β, so its derivative changes sign once at most: the best T is found to full precision as a root by Brent's method in
log T, within [``LOW``, ``HIGH``]. T moves no label; at a bound the NLL would still fall beyond it, as where every row is right.

Shapes: a (N, C), −inf allowed but for the true class; y (N,).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from quorate.combination import Floats
from quorate.outputs import Outputs

LOW, HIGH = 0.01, 100.0
FLAT = 1e-12  # a derivative this small at both bounds: every T is as good


class TemperatureBoundWarning(UserWarning):
    """The NLL falls up to a bound of the temperature: the surer the better (``LOW``), or the less sure the better (``HIGH``)."""


def nll_slope(scores: Floats, labels: NDArray, temperature: float) -> float:
    """dNLL/dβ at β = 1 / T of scores (N, C) whose largest in each row is 0; it rises with β."""
    weights = np.exp(scores / temperature)
    weights /= weights.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # 0 · −inf counts as 0
        expected = np.where(weights > 0, weights * scores, 0.0).sum(-1)
    return float((expected - scores[np.arange(len(labels)), labels]).mean())


def temperature_of(scores: ArrayLike, labels: ArrayLike) -> float:
    """The T in [``LOW``, ``HIGH``] of least NLL of softmax(scores / T), on plain arrays; 1 where every T is as good.

    Args:
        scores: (N, C) mean logits, or logarithms of combined probabilities.
        labels: (N,) true classes.

    Raises:
        ValueError: shapes or labels that don't fit, NaN or +inf, or rows whose true class has score −inf (probability 0), for
            which every T is as bad.
    """
    a, y = np.asarray(scores, np.float64), np.asarray(labels)
    if a.ndim != 2 or not a.size or y.shape != (len(a),) or y.dtype.kind not in "iu":
        raise ValueError(
            f"scores of shape {a.shape}, labels of shape {y.shape}, {y.dtype}: expected (N, C) with N, C ≥ 1, and N integers"
        )
    if y.min() < 0 or y.max() >= a.shape[1]:
        raise ValueError(f"labels go from {y.min()} to {y.max()}: expected classes 0 … {a.shape[1] - 1}")
    if np.isnan(a).any() or (a == np.inf).any():
        raise ValueError("scores hold NaN or +inf: expected finite numbers, or −inf for a probability of 0")
    hopeless = np.flatnonzero(a[np.arange(len(y)), y] == -np.inf)
    if len(hopeless):
        raise ValueError(
            f"{len(hopeless)} rows give their true class probability 0, first {hopeless[:3].tolist()}: their NLL is infinite at every "
            "temperature, leave them out or give logits"
        )
    a = a - a.max(-1, keepdims=True)

    def slope(log_temperature: float) -> float:
        return nll_slope(a, y, math.exp(log_temperature))

    low, high = math.log(LOW), math.log(HIGH)
    at_low, at_high = slope(low), slope(high)
    if max(abs(at_low), abs(at_high)) <= FLAT:
        return 1.0
    if at_low <= 0:
        return LOW
    if at_high >= 0:
        return HIGH
    return math.exp(brentq(slope, low, high, xtol=1e-13))


def fit_temperature(outputs: Outputs, stop: int | None = None) -> float:
    """The temperature of least NLL of the joined prediction after stages 0 … stop−1 (default: all).

    Args:
        outputs: labelled Outputs of validation data, of kind ``"logits"`` or ``"probs"``.
        stop: how many stages are joined, as a policy joins them.

    Warns:
        TemperatureBoundWarning: the best T is ``LOW`` or ``HIGH``, beyond which the NLL would still fall.

    Raises:
        ValueError: no labels, outputs without scores of every class, a ``stop`` that is not 1 … K, or rows whose true class has
            probability 0.
    """
    if outputs.kind not in ("logits", "probs"):
        raise ValueError(f"a temperature acts on scores of every class, these Outputs hold {outputs.kind!r}: leave it at 1")
    labels = outputs.truth()
    if outputs.combine == "logits":
        scores = np.concatenate([outputs.running(rows, stop).logits() for rows in outputs.blocks()])
    else:
        with np.errstate(divide="ignore"):
            scores = np.log(outputs.probs(stop))
    found = temperature_of(scores, labels)
    if found in (LOW, HIGH):
        why = "the surer the better" if found == LOW else "the less sure the better"
        warnings.warn(
            f"the temperature is at its bound {found:g}, beyond which the NLL still falls ({why}): fit it on more or other rows",
            TemperatureBoundWarning,
            stacklevel=2,
        )
    return found
