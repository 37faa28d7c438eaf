"""Widths and groups of a packed layer (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

A layer of a single network with `width` channels has α · width packed channels, which M members share; a member's channels
are cut again into γ subgroups. All of it must divide exactly: no width is ever rounded.

    packed width          α · width            a multiple of M · γ · g, with g the layer's own groups
    a convolution's γ     the largest one up to the γ asked for with in'/(M · γ · g) an integer ≥ 64, else 1
"""

from __future__ import annotations

import math
from fractions import Fraction

MIN_CHANNELS = 64  # per group, for γ > 1 in a convolution

Alpha = int | float | Fraction


def whole(name: str, value: object) -> int:
    """`value` as a positive int. Raises ValueError naming it `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected a positive int, got {value!r}; pass 1 or more")
    return value


def exact(alpha: Alpha) -> Fraction:
    """α as a fraction; a float is taken for the simple fraction that prints as it (4 / 3 → 4/3, 1.1 → 11/10)."""
    legal = isinstance(alpha, int | float | Fraction) and not isinstance(alpha, bool)
    if not legal or not math.isfinite(alpha) or alpha <= 0:
        raise ValueError(f"alpha: expected a positive number, got {alpha!r}; 2 keeps four members near one network's size")
    simple = Fraction(alpha).limit_denominator(1000)
    return simple if float(simple) == float(alpha) else Fraction(alpha)


def widened(name: str, width: int, factor: Fraction, groups: int) -> int:
    """`factor` · `width` channels in `groups` equal groups. Raises ValueError with the nearest widths that divide."""
    packed = factor * width
    if packed.denominator == 1 and packed.numerator % groups == 0:
        return packed.numerator
    step = factor.denominator * groups
    step //= math.gcd(step, factor.numerator)
    below = width // step * step
    nearest = f"{below} and {below + step}" if below else f"{step}"
    raise ValueError(
        f"{name}: expected a width that times {factor} divides into {groups} equal groups, got {width}; "
        f"the nearest that do: {nearest}"
    )


def lowered_gamma(in_packed: int, out_packed: int, members: int, gamma: int, own: int = 1) -> tuple[int, str]:
    """γ that a convolution can use, with the reason why it is not the one asked for ("" where it is)."""
    used = gamma
    while used > 1:
        groups = members * used * own
        if in_packed % groups == 0 and out_packed % groups == 0 and in_packed // groups >= MIN_CHANNELS:
            break
        used -= 1
    if used == gamma:
        return gamma, ""
    groups = members * gamma * own
    if in_packed % groups or out_packed % groups:
        why = f"{in_packed} → {out_packed} channels do not divide into {groups} groups"
    else:
        why = f"{in_packed} channels in {groups} groups leave {in_packed // groups} each, under {MIN_CHANNELS}"
    return used, f"gamma {gamma} lowered to {used}: {why}"
