"""How many weights of each layer are live: Erdős–Rényi-Kernel, uniform and MAC-aware densities.

Sources: ERK, Evci et al. 2020 (RigL, arXiv 1911.11134, section 3), after Mocanu et al. 2018; with the iterated capping of Liu et al. 2022
(arXiv 2106.14568). With N_l the size of weight l, s_l its shape, p_l its MACs per input and weight, d the overall density:

    raw_l = Σ s_l / Π s_l,    d_l = min(1, ε · raw_l · exp(−λ p_l)),    ε so that Σ N_l d_l = d Σ N_l

λ = 0 is ERK: ε = [d ΣN − ΣN_dense] / Σ_sparse raw N, and while ε · max raw > 1 the layers of that maximum become dense. The MAC-aware
densities take the λ at which Σ N_l p_l d_l is the asked share of the dense MACs. They are the minimum of Σ N_l d_l log(d_l / raw_l) under
both sums and d_l ≤ 1 (its stationarity gives the exponential), so of all densities with these MACs the closest to ERK in relative entropy.

Shapes: ``shapes`` maps a weight's name to its shape (out, in, …), results map it to a density in [0, 1] or a count. Computed in float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

Shapes = Mapping[str, Sequence[int]]

STEEPEST = 2.0**40
"""The largest |λ| tried, in units of 1 / (largest p − smallest p)."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """N of every weight.

    Raises:
        ValueError: no weights, one of fewer than two dimensions, or one with a dimension below 1.
    """
    if not shapes:
        raise ValueError("no weights were given: expected at least one, the names and shapes of those to be sparse")
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 1:
            raise ValueError(
                f"weight {name!r} has shape {tuple(shape)}: expected (out, in, …) of dimensions of at least 1, leave it dense"
            )
    return {name: math.prod(shape) for name, shape in shapes.items()}


def check_density(density: object) -> float:
    """An overall density in (0, 1]."""
    if not isinstance(density, float | int | np.floating) or isinstance(density, bool) or not 0 < density <= 1:
        raise ValueError(f"density {density!r}: expected a share of live weights in (0, 1], such as 0.2")
    return float(density)


def _filled(logs: Mapping[str, float], of: Mapping[str, int], density: float) -> dict[str, float]:
    """min(1, ε · exp(logs)) with ε for the overall density: the iterated capping; logs may lie far apart."""
    filled = dict.fromkeys(logs, 1.0)
    if density == 1:
        return filled
    sparse, budget = list(logs), density * sum(of.values())
    while sparse:
        peak = max(logs[name] for name in sparse)
        scaled = {name: math.exp(logs[name] - peak) for name in sparse}
        top = budget / math.fsum(scaled[name] * of[name] for name in sparse)
        if top <= 1:
            return filled | {name: top * scaled[name] for name in sparse}
        budget -= sum(of[name] for name in sparse if logs[name] == peak)
        sparse = [name for name in sparse if logs[name] < peak]
    return filled


def _erk_logs(shapes: Shapes) -> dict[str, float]:
    return {name: math.log(sum(shape) / math.prod(shape)) for name, shape in shapes.items()}


def erk(shapes: Shapes, density: float) -> dict[str, float]:
    """Erdős–Rényi-Kernel densities: small and narrow layers stay denser than large ones (Evci et al. 2020, arXiv 1911.11134).

    Args:
        shapes: of the sparse weights by name.
        density: the share of all these weights that is live, in (0, 1].

    Raises:
        ValueError: a density out of (0, 1]; no weights, or a shape that is none of a weight.
    """
    of = sizes(shapes)
    return _filled(_erk_logs(shapes), of, check_density(density))


def uniform(shapes: Shapes, density: float) -> dict[str, float]:
    """The same density for every weight; arguments and errors as :func:`erk`."""
    return dict.fromkeys(sizes(shapes), check_density(density))


def mac_aware(shapes: Shapes, density: float, macs: Mapping[str, int | float], share: float | None = None) -> dict[str, float]:
    """The densities closest to ERK that have an overall density and cost a share of the dense MACs.

    Args:
        shapes: of the sparse weights by name.
        density: the share of all these weights that is live, in (0, 1].
        macs: dense MACs per input of the products with each weight (≥ 0), by name; other names are not looked at.
        share: of the dense MACs of these weights, to be spent; by default as large as the density. ERK takes more
            (0.34 of a WRN28-10 on CIFAR at density 0.2), since it keeps the early layers dense, whose weights serve many positions.

    Raises:
        ValueError: as :func:`erk`; ``macs`` that lack a weight, are negative, not finite or all 0; a share that no densities
            of this overall density reach.
    """
    of, logs = sizes(shapes), _erk_logs(shapes)
    density = check_density(density)
    whole = _dense_macs(shapes, macs)
    per_weight = {name: macs[name] / of[name] for name in shapes}
    low, high = min(per_weight.values()), max(per_weight.values())
    wanted = density if share is None else float(share)

    def tilted(steepness: float) -> tuple[dict[str, float], float]:
        by = steepness / (high - low) if steepness else 0.0
        found = _filled({name: logs[name] - by * (per_weight[name] - low) for name in shapes}, of, density)
        return found, math.fsum(found[name] * macs[name] for name in shapes) / whole

    found, spent = tilted(0.0)
    if math.isclose(spent, wanted, rel_tol=1e-12):
        return found
    least, most = _reachable(of, per_weight, density, whole)
    if not least < wanted < most:
        raise ValueError(
            f"share {wanted!r} of the dense MACs is out of reach at density {density}: expected above {least:.6g} and "
            f"below {most:.6g}, or the {spent:.6g} of ERK"
        )
    sign = 1.0 if spent > wanted else -1.0
    near, far = 0.0, 1.0  # |λ| short of the share and beyond it

    def short(steepness: float) -> bool:
        return sign * (tilted(sign * steepness)[1] - wanted) > 0

    while far < STEEPEST and short(far):
        near, far = far, 2 * far
    while near < (middle := (near + far) / 2) < far:
        near, far = (middle, far) if short(middle) else (near, middle)
    return tilted(sign * far)[0]


def _dense_macs(shapes: Shapes, macs: Mapping[str, int | float]) -> float:
    """MACs of all weights together, each known and in range."""
    missing = [name for name in shapes if name not in macs]
    if missing:
        raise ValueError(
            f"macs lack weight {missing[0]!r} ({len(missing)} in all): expected the dense MACs of every sparse weight"
        )
    for name in shapes:
        if not 0 <= macs[name] < math.inf:
            raise ValueError(f"macs of weight {name!r} are {macs[name]}: expected a finite number ≥ 0")
    whole = math.fsum(macs[name] for name in shapes)
    if whole == 0:
        raise ValueError("macs are 0 for every weight: expected the dense MACs per input, of which a share can be spent")
    return whole


def _reachable(of: Mapping[str, int], per_weight: Mapping[str, float], density: float, whole: float) -> tuple[float, float]:
    """The bounds of the MACs' share: the cheapest or the dearest weights live first, up to the density."""
    bounds = []
    for dearest_first in (False, True):
        left, spent = density * sum(of.values()), 0.0
        for name in sorted(of, key=lambda name: per_weight[name], reverse=dearest_first):
            taken = min(left, of[name])
            left, spent = left - taken, spent + taken * per_weight[name]
        bounds.append(spent / whole)
    return bounds[0], bounds[1]


def counts(shapes: Shapes, densities: Mapping[str, float]) -> dict[str, int]:
    """Live weights of every layer: its density times its size, rounded; all of them where the density is 1.

    Raises:
        ValueError: densities that lack a weight, name another one or lie outside [0, 1]; one too low to keep one weight per output.
    """
    of = sizes(shapes)
    if set(densities) != set(of):
        odd = sorted(set(densities) ^ set(of))
        raise ValueError(
            f"densities and shapes differ in weight {odd[0]!r} ({len(odd)} in all): expected a density for each shape"
        )
    outside = [name for name in of if not 0 <= densities[name] <= 1]
    if outside:
        raise ValueError(f"density {densities[outside[0]]!r} of weight {outside[0]!r}: expected a share in [0, 1]")
    live = {name: round(densities[name] * size) for name, size in of.items()}
    short = [name for name in of if live[name] < shapes[name][0]]
    if short:
        raise ValueError(_too_low(shapes, densities, of, live, short))
    return live


def _too_low(
    shapes: Shapes, densities: Mapping[str, float], of: Mapping[str, int], live: Mapping[str, int], short: list[str]
) -> str:
    """The error for layers short of one weight per output, with the density that would do: all scaled alike and capped, as ERK scales."""
    name = short[0]
    said = f"weight {name!r} of shape {tuple(shapes[name])} would keep {live[name]} of {of[name]} weights, a density too low to keep "
    said += f"one weight per output: expected at least {shapes[name][0]}"
    if min(densities[other] for other in short) > 0:
        factor = max(shapes[other][0] / (of[other] * densities[other]) for other in short)
        overall = math.fsum(min(1.0, densities[other] * factor) * of[other] for other in of) / sum(of.values())
        said += f", an overall density of {math.ceil(min(overall, 1.0) * 1e6) / 1e6:g} in these proportions"
    return f"{said}, or leave it dense"
