"""Targets: what a cascade is chosen for, written the same in Python and on the command line.

``coverage@risk=0.05``  the largest coverage with at most 5 % wrong among the accepted
``risk@coverage=0.8``   the least share wrong among the accepted when 80 % are accepted
``fpr@tpr=0.95``        the least share of OOD accepted when 95 % of in-distribution inputs are
``accuracy``, ``nll``   everything is accepted
"""

from __future__ import annotations

from typing import NamedTuple

_AT = {"coverage": "risk", "risk": "coverage", "fpr": "tpr"}
_ALONE = ("accuracy", "nll")
_FORMS = "coverage@risk=R, risk@coverage=C, fpr@tpr=T, accuracy, nll"


class Target(NamedTuple):
    """A parsed target: the figure to improve, and the level it is read at (None for accuracy and nll)."""

    figure: str
    level: float | None

    def __str__(self) -> str:
        return self.figure if self.level is None else f"{self.figure}@{_AT[self.figure]}={repr(self.level).removesuffix('.0')}"


def parse(text: str) -> Target:
    """Read a target. ValueError for any other form, a risk outside [0, 1), or a coverage or TPR outside (0, 1]."""
    if not isinstance(text, str):
        raise ValueError(f"target {text!r}: expected text, one of {_FORMS}")
    if text in _ALONE:
        return Target(text, None)
    figure, _, rest = text.partition("@")
    given, _, number = rest.partition("=")
    if _AT.get(figure) != given:
        raise ValueError(f"target {text!r}: expected one of {_FORMS}")
    try:
        level = float(number)
    except ValueError:
        raise ValueError(f"target {text!r}: {number!r} is not a number, expected one of {_FORMS}") from None
    inside = 0 <= level < 1 if given == "risk" else 0 < level <= 1
    if not inside:
        raise ValueError(
            f"target {text!r}: expected a {given} {'≥ 0 and < 1' if given == 'risk' else '> 0 and ≤ 1'}, a share and not per cent"
        )
    return Target(figure, level)
