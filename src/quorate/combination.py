"""Members to one prediction: the running combination that everything else reads.

Source: Xia & Bouganis 2023 (arXiv 2303.08010): after stage k the members' *probabilities* are averaged; scores of logits
(energy, max-logit) are averaged over members. B-DISTIL (arXiv 2302.10093) averages *logits*: then every score reads the mean logits.

Full ensemble, stored simulation and executed cascade all add members one by one through :class:`Running`. Every operation is
elementwise over rows and members are added in order, so a row's result does not depend on the rows beside it, bit for bit.

Shapes: members ``(m, B, C)``; probabilities and log-probabilities ``(B, C)`` in float64.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Kind = Literal["logits", "probs", "top1", "values", "gaussian"]
Combine = Literal["probs", "logits", "last"]
KINDS: tuple[Kind, ...] = ("logits", "probs", "top1", "values", "gaussian")
COMBINES: tuple[Combine, ...] = ("probs", "logits", "last")
CLASS_KINDS: tuple[Kind, ...] = ("logits", "probs", "top1")
SUM_TOLERANCE = 1e-3  # how far a row of probabilities may sum from 1
BLOCK = 65_536  # rows worked on at a time where float64 copies are needed, so that memory does not grow with N


def logsumexp(logits: ArrayLike) -> Floats:
    """``log Σ_c exp z_c`` over the last axis, in float64, without overflow."""
    z = np.asarray(logits, np.float64)
    top = z.max(-1, keepdims=True)
    return np.asarray(np.log(np.exp(z - top).sum(-1)) + top[..., 0])


def log_softmax(logits: ArrayLike) -> Floats:
    """Log-probabilities over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    shifted = z - z.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def softmax(logits: ArrayLike, temperature: float = 1.0) -> Floats:
    """Probabilities softmax(z / T) over the last axis, in float64, without overflow."""
    z = np.asarray(logits, np.float64)
    p = z - z.max(-1, keepdims=True)
    if temperature != 1.0:
        with np.errstate(over="ignore"):
            p /= temperature
    np.exp(p, out=p)
    p /= p.sum(-1, keepdims=True)
    return np.asarray(p)


class Running:
    """The members seen so far, for a batch of rows, as sums that one more stage can be added to.

    ``tracks`` names what the uncertainty in use needs beside the combined prediction: any of ``"energy"`` (Σ −logsumexp z),
    ``"max_logit"`` (Σ −max z), ``"entropy"`` (Σ H(p_m)), ``"votes"`` (B, C), the members' votes. Nothing else is computed.
    """

    def __init__(self, kind: Kind = "logits", combine: Combine = "probs", tracks: Iterable[str] = ()) -> None:
        if kind not in ("logits", "probs"):
            raise ValueError(f"members of kind {kind!r} can't be combined as class scores: expected 'logits' or 'probs'")
        if combine not in COMBINES:
            raise ValueError(f"combine={combine!r}: expected one of {', '.join(COMBINES)}")
        if combine == "logits" and kind != "logits":
            raise ValueError("combine='logits' needs members of kind 'logits', not probabilities: use combine='probs'")
        self.kind, self.combine, self.tracks = kind, combine, frozenset(tracks)
        self.count = 0
        self.total: Floats | None = None
        self.tracked: dict[str, Floats] = {}

    def add_(self, members: NDArray, join: str = "mean") -> None:
        """Add a stage's members (m, B, C). ``join="replace"`` (and ``combine="last"``) forget the earlier ones first."""
        if join == "replace" or self.combine == "last":
            self.count, self.total, self.tracked = 0, None, {}
        for member in members:
            self._add_member(np.asarray(member, np.float64, order="C"))  # one layout: sums are rounded the same way

    def _add_member(self, member: Floats) -> None:
        shape = member.shape
        if self.total is not None and self.total.shape != shape:
            raise ValueError(f"a member has shape {shape} where the earlier ones have {self.total.shape}: members must agree")
        if self.combine == "logits" and not self.tracks:
            p = member  # no probabilities of single members are needed
        elif self.kind == "logits":
            top = member.max(-1, keepdims=True)
            p = np.exp(member - top)
            normaliser = p.sum(-1, keepdims=True)
            p /= normaliser
            if self.tracks:
                self._track_logits(top[..., 0], normaliser[..., 0])
        else:
            p = member
        if self.tracks:
            self._track_votes(member, p)
        added = member if self.combine == "logits" else p
        self.total = added if self.total is None else self.total + added  # never in place: take() shares its rows
        self.count += 1

    def _track_logits(self, top: Floats, normaliser: Floats) -> None:
        if "energy" in self.tracks:
            self._track("energy", -(np.log(normaliser) + top))
        if "max_logit" in self.tracks:
            self._track("max_logit", -top)

    def _track_votes(self, member: Floats, probs: Floats) -> None:
        if "entropy" in self.tracks:
            self._track("entropy", entropy_of(probs))
        if "votes" in self.tracks:
            votes = np.zeros(member.shape)
            np.put_along_axis(votes, member.argmax(-1)[..., None], 1.0, -1)
            self._track("votes", votes)

    def _track(self, name: str, value: Floats) -> None:
        self.tracked[name] = self.tracked[name] + value if name in self.tracked else value

    def mean(self, name: str) -> Floats:
        """The mean over the members so far of a tracked quantity."""
        return np.asarray(self.tracked[name] / self.count)

    def logits(self) -> Floats:
        """Mean logits (B, C); only for ``combine="logits"``."""
        if self.combine != "logits":
            raise ValueError(f"mean logits exist only for combine='logits', not {self.combine!r}: use probs()")
        return np.asarray(self._sum() / self.count)

    def probs(self, temperature: float = 1.0) -> Floats:
        """Combined probabilities (B, C): the mean of the members', or softmax of their mean logits.

        ``temperature`` T acts on the joined output: softmax(log p̄ / T) or softmax(z̄ / T) (specification of cascades, §1).
        """
        mean = self._sum() / self.count
        if self.combine == "logits":
            return softmax(mean, temperature)
        if temperature == 1.0:
            return np.asarray(mean)
        with np.errstate(divide="ignore"):
            return softmax(np.log(mean), temperature)

    def take(self, rows: NDArray | slice) -> Running:
        """The same state for some of the rows."""
        taken = Running(self.kind, self.combine, self.tracks)
        taken.count = self.count
        taken.total = None if self.total is None else self.total[rows]
        taken.tracked = {name: value[rows] for name, value in self.tracked.items()}
        return taken

    @classmethod
    def concat(cls, parts: Sequence[Running]) -> Running:
        """The rows of several states, one after the other; they must have seen the same stages."""
        joined = cls(parts[0].kind, parts[0].combine, parts[0].tracks)
        joined.count = parts[0].count
        joined.total = np.concatenate([part._sum() for part in parts])
        joined.tracked = {name: np.concatenate([part.tracked[name] for part in parts]) for name in parts[0].tracked}
        return joined

    def _sum(self) -> Floats:
        if self.total is None:
            raise ValueError("no member has been added yet: call add_ first")
        return self.total


def entropy_of(probs: Floats) -> Floats:
    """Shannon entropy −Σ p log p in nats over the last axis; 0 log 0 = 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(probs > 0, probs * np.log(probs), 0.0)
    return np.asarray(np.maximum(-terms.sum(-1), 0.0))


class LastTop1:
    """The same for models that give only a label and its probability: the last stage's replace the earlier ones."""

    def __init__(self) -> None:
        self.labels: NDArray[np.int64] = np.zeros(0, np.int64)
        self.top_probs: Floats = np.zeros(0)

    def add_(self, members: tuple[NDArray, NDArray], join: str = "replace") -> None:
        """Take a stage's (labels (B,), probabilities (B,)); ``join`` can only be ``"replace"``."""
        if join != "replace":
            raise ValueError(f"join={join!r}: labels with one probability can't be averaged, use 'replace'")
        self.labels, self.top_probs = np.asarray(members[0]), np.asarray(members[1], np.float64)

    def take(self, rows: NDArray | slice) -> LastTop1:
        """The same state for some of the rows."""
        taken = LastTop1()
        if not len(self.labels):
            return taken
        taken.labels, taken.top_probs = self.labels[rows], self.top_probs[rows]
        return taken

    @classmethod
    def concat(cls, parts: Sequence[LastTop1]) -> LastTop1:
        """The rows of several states, one after the other."""
        joined = cls()
        joined.labels = np.concatenate([part.labels for part in parts])
        joined.top_probs = np.concatenate([part.top_probs for part in parts])
        return joined
