"""Certificate: what was guaranteed, from how many rows, under which assumption; plain data, JSON in and out.

A certificate that is not feasible is a result like any other: the calibration rows can't carry the target, and ``needed`` says how many
more would, if they are like these. Figures by kind:

    kind              the claim                                                         target, observed, bound
    selective risk    of the accepted, at most ``target`` wrong, w.p. ≥ 1 − δ              risk; share wrong; upper bound
    risk              the same of one threshold, fixed beforehand (target may be None)  risk; share wrong; upper bound
    deviation         a decision differs from the full ensemble's w.p. ≤ ``target``       α; mean D; (ΣD + B) / (n + 1). No δ
    fpr               at least ``target`` of in-distribution rows accepted               TPR; share accepted; lower bound
    scod              risk of the accepted of a mix of ID and OOD at most ``target``       risk; risk of the mix; upper bound

The guarantee is ``target``. The bounds at a threshold that was itself chosen on these rows are read as if it had been fixed; those of
the parts (exits, classes, OOD sets) are each at their own share of δ.
"""

from __future__ import annotations

import math
import numbers
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

KINDS = ("selective risk", "risk", "deviation", "fpr", "scod")
METHODS = ("fixed-sequence", "bonferroni", "holm", "single", "conformal")


@dataclass(frozen=True)
class Part:
    """The figures of a part of the rows: one exit, one predicted class, one OOD set.

    Attributes:
        name: the stage's, class's or set's name.
        rows, accepted: how many are in this part, and how many of them are accepted.
        errors: what the accepted cost (wrong ones, for 0/1 costs); None where rows have no labels.
        risk: errors / accepted, of an OOD set accepted / rows; None where there is nothing to divide by.
        bound: the upper confidence bound of ``risk``.
        target: the part's own limit, if it has one.
    """

    name: str
    rows: int
    accepted: int
    errors: float | None = None
    risk: float | None = None
    bound: float | None = None
    target: float | None = None

    def __post_init__(self) -> None:
        what = f"a part of a certificate, {self.name!r}"
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"{what}: expected its name as text")
        _whole(what, self, "rows", 0, None)
        _whole(what, self, "accepted", 0, self.rows)
        for key in ("errors", "risk", "bound", "target"):
            _number(what, self, key, 0.0, math.inf)


@dataclass(frozen=True)
class Certificate:
    """A guarantee, or why there is none.

    Attributes:
        kind: what is claimed, see the module.
        feasible: whether the claim was shown.
        target: the level of the claim; None where only a bound is reported.
        delta: the probability, over the draw of calibration rows, that the claim is wrong; None for ``"deviation"``.
        method: how the hypotheses were tested.
        rows: number of calibration rows (of ID rows for ``"fpr"`` and ``"scod"``).
        tau: the threshold in use, or its index in a policy's sequence; None for none at all: infeasible, or all accepted.
        coverage, accepted, errors: on the calibration rows, at ``tau``; zeros if a search for τ found none.
        observed, bound: see the module; None if a search for τ found none.
        tested: how many hypotheses there were.
        needed: how many more rows would do, estimated from these; 0 if feasible, None when no number would.
        assumption: what the claim rests on, in words.
        exits, classes, outliers: per stage of exit, per class with a limit, per OOD set.
        alpha, beta: of ``"scod"``: the share of ID rows in the mix, the cost of an accepted OOD row; else None.
        costs: of errors, (C,) per true class or (C, C) per (true, said) class, as tuples; None where each costs 1.
    """

    kind: str
    feasible: bool
    target: float | None
    delta: float | None
    method: str
    rows: int
    tau: float | None
    coverage: float
    accepted: int
    errors: float
    observed: float | None
    bound: float | None
    tested: int
    needed: int | None
    assumption: str
    exits: tuple[Part, ...] = ()
    classes: tuple[Part, ...] = ()
    outliers: tuple[Part, ...] = ()
    alpha: float | None = None
    beta: float | None = None
    costs: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        what = "a certificate"
        for key, known in (("kind", KINDS), ("method", METHODS)):
            if getattr(self, key) not in known:
                raise ValueError(f"{what}: {key}={getattr(self, key)!r}, expected one of {', '.join(known)}")
        if type(self.feasible) is not bool:
            raise ValueError(f"{what}: feasible={self.feasible!r}, expected True or False")
        if not isinstance(self.assumption, str) or not self.assumption:
            raise ValueError(f"{what}: assumption={self.assumption!r}, expected a sentence")
        _whole(what, self, "rows", 1, None)
        _whole(what, self, "accepted", 0, self.rows)
        _whole(what, self, "tested", 1, None)
        _whole(what, self, "needed", 0, None, none=True)
        _number(what, self, "coverage", 0.0, 1.0, none=False)
        _number(what, self, "errors", 0.0, math.inf, none=False)
        _number(what, self, "tau", -math.inf, math.inf)
        for key in ("target", "observed", "bound"):
            _number(what, self, key, 0.0, math.inf)
        _number(what, self, "delta", 0.0, 1.0)
        _number(what, self, "alpha", 0.0, 1.0)
        _number(what, self, "beta", 0.0, math.inf)
        object.__setattr__(self, "costs", None if self.costs is None else _costs(self.costs))
        if (self.delta is None) != (self.kind == "deviation") or self.delta in (0.0, 1.0):
            raise ValueError(
                f"{what}: delta={self.delta} for {self.kind}, expected a share > 0 and < 1, and None for a deviation alone"
            )
        for key in ("exits", "classes", "outliers"):
            parts = getattr(self, key)
            if not isinstance(parts, tuple | list) or not all(isinstance(part, Part) for part in parts):
                raise ValueError(f"{what}: {key} is {type(parts).__name__}, expected a tuple of Part")
            object.__setattr__(self, key, tuple(parts))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON; :meth:`from_dict` gives back an equal certificate."""
        lists = {key: [asdict(part) for part in getattr(self, key)] for key in ("exits", "classes", "outliers")}
        return asdict(self) | lists | {"costs": None if self.costs is None else np.asarray(self.costs).tolist()}

    @classmethod
    def from_dict(cls, data: Any) -> Certificate:
        """Read what :meth:`to_dict` gave. ValueError for anything else."""
        if isinstance(data, dict):
            data = {"alpha": None, "beta": None, "costs": None} | data
        _check_keys(data, cls, "a certificate")
        parts = {}
        for key in ("exits", "classes", "outliers"):
            if not isinstance(data[key], list | tuple):
                raise ValueError(f"a certificate: {key} is {type(data[key]).__name__}, expected a list")
            for part in data[key]:
                _check_keys(part, Part, f"a part in {key}")
            parts[key] = tuple(Part(**part) for part in data[key])
        return cls(**(data | parts))


def _costs(given: Any) -> tuple[Any, ...]:
    """Costs of errors as tuples of numbers, or of rows of them."""
    try:
        table = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        table = np.zeros(0)
    if table.ndim not in (1, 2) or not table.size or not np.isfinite(table).all() or (table < 0).any():
        raise ValueError(f"a certificate: costs={given!r}, expected finite numbers ≥ 0 per class, or rows of them")
    return tuple(map(tuple, table.tolist())) if table.ndim == 2 else tuple(table.tolist())


def _check_keys(data: Any, kind: type, what: str) -> None:
    """A ValueError unless ``data`` is a dict with just the fields of ``kind``."""
    known = [part.name for part in fields(kind)]
    if not isinstance(data, dict):
        raise ValueError(f"{what} is {type(data).__name__}: expected an object with {', '.join(known)}")
    missing, unknown = [key for key in known if key not in data], sorted(str(key) for key in data.keys() - set(known))
    if missing or unknown:
        raise ValueError(f"{what}: missing {missing}, unknown {unknown}, expected {', '.join(known)}")


def _whole(what: str, owner: Any, key: str, low: int, high: int | None, none: bool = False) -> None:
    """Turn a field into a Python int of [low, high]."""
    value = getattr(owner, key)
    if none and value is None:
        return
    right = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not right or value < low or (high is not None and value > high):
        span = f"≥ {low}" if high is None else f"from {low} to {high}"
        raise ValueError(f"{what}: {key}={value!r}, expected a whole number {span}{' or None' if none else ''}")
    object.__setattr__(owner, key, int(value))


def _number(what: str, owner: Any, key: str, low: float, high: float, none: bool = True) -> None:
    """Turn a field into a finite Python float of [low, high]."""
    value = getattr(owner, key)
    if none and value is None:
        return
    right = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not right or not (low <= value <= high) or not math.isfinite(value):
        span = "a finite number" if low == -math.inf else f"a finite number from {low:g} to {high:g}"
        raise ValueError(f"{what}: {key}={value!r}, expected {span}{' or None' if none else ''}")
    object.__setattr__(owner, key, float(value))
