"""Uncertainty: from the members' outputs so far to one number per row. Higher = less sure, always.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §2. With float64 logits z and p = softmax(z), p̄ the members' combination:

=====================  =======================================  ============================================
name                   U                                        with ``combine="logits"`` (mean logits z̄)
=====================  =======================================  ============================================
``msp``                1 − max p̄                                of softmax(z̄)
``entropy``            −Σ p̄ log p̄ (nats)                        of softmax(z̄)
``margin``             1 − (p̄₁ − p̄₂), the two largest           of softmax(z̄)
``energy``             mean over members of −logsumexp z        −logsumexp z̄
``max_logit``          mean over members of −max z              −max z̄
``mutual_information`` H(p̄) − mean H(p); two or more members    not defined
``variation_ratio``    share of members not voting the mode     the same
=====================  =======================================  ============================================

Shapes: members (M, B, C) → (B,). 1 − max p̄ is computed as the sum of the other probabilities, here and in ``margin``, so that
networks so sure that max p̄ rounds to 1 still differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from quorate._validation import check_values
from quorate.combination import KINDS, Combine, Floats, Kind, LastTop1, Running, entropy_of, logsumexp
from quorate.outputs import Outputs


class Uncertainty(NamedTuple):
    """One measure: what the running combination must track for it, and its formula, of the combined probabilities or of more."""

    name: str
    tracks: tuple[str, ...] = ()
    of_probs: Callable[[Floats], Floats] | None = None
    of_state: Callable[[Running], Floats] | None = None

    @property
    def scaled(self) -> bool:
        """Whether a temperature changes it."""
        return self.of_probs is not None

    def score(self, state: Running, temperature: float, probs: Floats | None = None) -> Floats:
        """(B,); ``probs``, where ``state.probs(temperature)`` is at hand already."""
        if self.of_probs is not None:
            return self.of_probs(state.probs(temperature) if probs is None else probs)
        assert self.of_state is not None
        return self.of_state(state)


def _losers(probs: Floats) -> Floats:
    """Probabilities with the winner's set to 0."""
    p = probs.copy()
    if len(p) == 1:
        p[0, p[0].argmax()] = 0.0
    else:
        p[np.arange(len(p)), p.argmax(-1)] = 0.0
    return p


def _msp(probs: Floats) -> Floats:
    return np.asarray(np.minimum(_losers(probs).sum(-1), 1.0))


def _margin(probs: Floats) -> Floats:
    losers = _losers(probs)
    if losers.shape[-1] < 2:
        raise ValueError("margin needs at least two classes: use msp")
    return np.asarray(np.minimum(losers.sum(-1) + losers.max(-1), 1.0))


def _energy(state: Running) -> Floats:
    return -logsumexp(state.logits()) if state.combine == "logits" else state.mean("energy")


def _max_logit(state: Running) -> Floats:
    return -state.logits().max(-1) if state.combine == "logits" else state.mean("max_logit")


def _mutual_information(state: Running) -> Floats:
    if state.count < 2:
        raise ValueError("mutual_information needs two or more members, there is one so far: use entropy")
    return np.asarray(np.maximum(entropy_of(state.probs()) - state.mean("entropy"), 0.0))


def _variation_ratio(state: Running) -> Floats:
    if state.count < 2:
        raise ValueError("variation_ratio needs two or more members, there is one so far: use msp")
    return np.asarray(1.0 - state.mean("votes").max(-1))


MEASURES: dict[str, Uncertainty] = {
    measure.name: measure
    for measure in (
        Uncertainty("msp", of_probs=_msp),
        Uncertainty("entropy", of_probs=entropy_of),
        Uncertainty("margin", of_probs=_margin),
        Uncertainty("energy", ("energy",), of_state=_energy),
        Uncertainty("max_logit", ("max_logit",), of_state=_max_logit),
        Uncertainty("mutual_information", ("entropy",), of_state=_mutual_information),
        Uncertainty("variation_ratio", ("votes",), of_state=_variation_ratio),
    )
}
_FROM_LOGITS = ("energy", "max_logit")


def measure(name: str, kind: Kind = "logits") -> Uncertainty:
    """The measure of this name; a ValueError where there is none, or where outputs of this kind can't give it."""
    if name not in MEASURES:
        raise ValueError(f"uncertainty {name!r}: expected one of {', '.join(MEASURES)}")
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r}: expected one of {', '.join(KINDS)}")
    if kind == "top1" and name != "msp":
        raise ValueError(f"uncertainty {name!r} needs every class's score, top1 has only the winner's: use msp")
    if kind == "probs" and name in _FROM_LOGITS:
        raise ValueError(f"uncertainty {name!r} is a score of logits, these are probabilities: use msp or entropy")
    if kind in ("values", "gaussian"):
        raise ValueError(f"uncertainty {name!r} is for classification, these outputs are regression ({kind}): give class scores")
    return MEASURES[name]


def check_temperature(name: str, kind: Kind, temperature: float) -> None:
    """A ValueError unless T is a finite number > 0, and 1 where it would not act."""
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature={temperature}: expected a finite number > 0")
    if temperature != 1.0 and (kind == "top1" or not measure(name, kind).scaled):
        raise ValueError(f"temperature={temperature} does not act on {name} of {kind}: leave it at 1")


def fresh(name: str, kind: Kind, combine: Combine) -> Running | LastTop1:
    """An empty running combination that tracks what this uncertainty needs."""
    tracks = measure(name, kind).tracks
    if name == "mutual_information" and combine == "logits":
        raise ValueError("mutual_information is defined for averaged probabilities, this ensemble averages logits: use entropy")
    if kind == "top1":
        if combine != "last":
            raise ValueError(f"combine={combine!r} needs every class's score, top1 has only the winner's: use combine='last'")
        return LastTop1()
    return Running(kind, combine, () if combine == "logits" and name in _FROM_LOGITS else tracks)


def score(name: str, state: Running | LastTop1, temperature: float = 1.0, probs: Floats | None = None) -> Floats:
    """The uncertainty (B,) of a running combination; ``temperature`` acts on the measures of probabilities only.

    Where ``state.probs(temperature)`` is at hand already, ``probs`` saves doing it again; it is left as it is.
    """
    if isinstance(state, LastTop1):
        return 1.0 - state.top_probs
    return MEASURES[name].score(state, temperature, probs)


def uncertainty(outputs: Outputs, name: str = "msp", stop: int | None = None, temperature: float = 1.0) -> Floats:
    """The uncertainty (N,) of stored Outputs after stages 0 … stop−1 (default: all).

    Raises:
        ValueError: an unknown measure, or one that outputs of this kind can't give; a ``stop`` that is not 1 … K; a temperature
            that is not > 0, or that would not act.
    """
    check_temperature(name, outputs.kind, temperature)
    stages = outputs.until(stop)
    result = np.empty(outputs.n)
    for rows in outputs.blocks():
        state: Any = fresh(name, outputs.kind, outputs.combine)
        for value in stages:
            state.add_((value[0][rows], value[1][rows]) if isinstance(value, tuple) else value[:, rows])
        result[rows] = score(name, state, temperature)
    return result


def _public(name: str, members: ArrayLike, kind: Kind, combine: Combine, temperature: float) -> Floats:
    """A measure of plain arrays (M, B, C), or (B, C) for one member; whole numbers are taken as floats."""
    if kind == "top1":
        raise ValueError(f"kind='top1' has no scores of every class to take {name} of: expected 'logits' or 'probs'")
    check_temperature(name, kind, temperature)
    state: Any = fresh(name, kind, combine)
    array = np.asarray(members)
    state.add_(check_values(array.astype(np.float64) if array.dtype.kind in "iu" else array, kind, "members"))
    return score(name, state, temperature)


def msp(members: ArrayLike, kind: Kind = "logits", combine: Combine = "probs", temperature: float = 1.0) -> Floats:
    """Maximum softmax probability as uncertainty, 1 − max p̄, in [0, 1 − 1/C]. Members (M, B, C) → (B,)."""
    return _public("msp", members, kind, combine, temperature)


def entropy(members: ArrayLike, kind: Kind = "logits", combine: Combine = "probs", temperature: float = 1.0) -> Floats:
    """Entropy of the combined prediction in nats, in [0, log C]. Members (M, B, C) → (B,)."""
    return _public("entropy", members, kind, combine, temperature)


def margin(members: ArrayLike, kind: Kind = "logits", combine: Combine = "probs", temperature: float = 1.0) -> Floats:
    """1 − (p̄₁ − p̄₂) with the two largest combined probabilities, in [0, 1]. Members (M, B, C) → (B,)."""
    return _public("margin", members, kind, combine, temperature)


def energy(members: ArrayLike, combine: Combine = "probs") -> Floats:
    """Energy at T = 1 of logits, mean over members of −logsumexp z (Liu et al. 2020). Members (M, B, C) → (B,)."""
    return _public("energy", members, "logits", combine, 1.0)


def max_logit(members: ArrayLike, combine: Combine = "probs") -> Floats:
    """Mean over members of −max z (Hendrycks et al. 2022). Members (M, B, C) → (B,)."""
    return _public("max_logit", members, "logits", combine, 1.0)


def mutual_information(members: ArrayLike, kind: Kind = "logits") -> Floats:
    """H(p̄) − mean H(p) in nats, ≥ 0: how much two or more members disagree. Members (M, B, C) → (B,)."""
    return _public("mutual_information", members, kind, "probs", 1.0)


def variation_ratio(members: ArrayLike, kind: Kind = "logits") -> Floats:
    """Share of the two or more members that do not vote for the most voted class. Members (M, B, C) → (B,)."""
    return _public("variation_ratio", members, kind, "probs", 1.0)
