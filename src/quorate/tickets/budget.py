"""How many weights of each layer are live: what a density, its distribution over layers and a pattern come to.

    budget_l = the legal count of the pattern that is nearest to d_l · N_l,    N_l where d_l is 1

Source: the distributions are those of :mod:`quorate.tickets.density`. Shapes: weights are (out, in, …), budgets are counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from quorate.tickets import density as densities
from quorate.tickets.ledger import Ledger
from quorate.tickets.patterns import Pattern

Distribution = Literal["erk", "uniform", "mac_aware"]


def budgets(
    weights: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    distribution: Distribution,
    pattern: Pattern,
    ledger: Ledger | None,
) -> dict[str, int]:
    """Live weights of each layer, as the density, its distribution and the pattern say.

    Raises:
        ValueError: densities that can't be had, or do not name the layers.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if isinstance(density, Mapping):
        if distribution != "erk":
            raise ValueError(
                f"distribution={distribution!r} with a density by name, which leaves nothing to distribute: leave one of them out"
            )
        missing = [name for name in shapes if name not in density] + [name for name in density if name not in shapes]
        if missing:
            raise ValueError(
                f"density by name and the sparse weights differ in {missing[0]!r}: expected one density for each of {list(shapes)}"
            )
        given = {name: float(density[name]) for name in shapes}
    elif distribution == "mac_aware":
        if ledger is None:
            raise ValueError("distribution='mac_aware' has to know what a weight costs: pass example=, a small batch of inputs")
        given = densities.mac_aware(shapes, density, ledger.macs)
    elif distribution in get_args(Distribution):
        given = (densities.erk if distribution == "erk" else densities.uniform)(shapes, density)
    else:
        raise ValueError(f"distribution={distribution!r}: expected one of {', '.join(get_args(Distribution))}")
    wanted = densities.counts(shapes, given)
    full = {name for name in shapes if wanted[name] == weights[name].numel()}
    return {name: wanted[name] if name in full else pattern.live(name, shapes[name], wanted[name]) for name in shapes}
