"""How far a sparse training has come, as saved: read back only if it is whole and belongs to a training built alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from quorate.tickets.fan_in import ConstantFanIn
from quorate.tickets.masks import Masks, unpack_bits
from quorate.tickets.patterns import Pattern

FORMAT = "quorate-sparse-training/1"
ALIKE = ("seed", "every", "growth", "pattern", "shapes", "budget")


@dataclass(frozen=True)
class Progress:
    """What moves on as a training goes: counters, masks, and the sums of gradients kept for a move."""

    step: int
    moves: int
    owed: int
    gather_at: list[int]
    masks: Masks
    ever: Masks
    kept: dict[str, Tensor]


def read(state: Mapping[str, Any], own: Mapping[str, Any], weights: Mapping[str, Tensor], pattern: Pattern) -> Progress:
    """A saved state, its tensors on the devices of the weights.

    Args:
        state: what ``SparseTraining.state_dict`` gave.
        own: what it gives now, in the training that is to go on.
        weights: the sparse ones, by name.
        pattern: of their masks.

    Raises:
        ValueError: something else, the state of a training built otherwise, or a damaged one.
    """
    form = state.get("format") if isinstance(state, Mapping) else type(state).__name__
    if form != FORMAT:
        raise ValueError(f"the state has format {form!r}: expected {FORMAT!r}, from SparseTraining.state_dict()")
    if missing := [key for key in own if key not in state]:
        raise ValueError(f"the state lacks {missing[0]!r}: expected all of what SparseTraining.state_dict() gave")
    for key in ALIKE:
        if state[key] != own[key]:
            raise ValueError(
                f"the state is of a training with another {key} (there {_brief(state[key])}, here {_brief(own[key])}): build alike"
            )
    if (state["ledger"] is None) != (own["ledger"] is None):
        there, here = ("without" if each["ledger"] is None else "with" for each in (state, own))
        raise ValueError(f"the state is of a training {there} a ledger, this one is {here}: pass example= in both or neither")
    for key in ("step", "moves", "owed"):
        if not isinstance(state[key], int) or state[key] < 0:
            raise ValueError(f"the state has {key}={_brief(state[key])}: expected an integer of at least 0, it is damaged")
    return Progress(
        state["step"],
        state["moves"],
        int(state["owed"]),
        [int(step) for step in state["gather_at"]],
        _masks(state, "masks", own["budget"], weights, pattern),
        _masks(state, "ever", {name: weight.numel() for name, weight in weights.items()}, weights, None),
        _kept(state["kept"], weights),
    )


def _masks(
    state: Mapping[str, Any], key: str, most: Mapping[str, int], weights: Mapping[str, Tensor], pattern: Pattern | None
) -> Masks:
    _check_names(key, state[key], weights)
    found = {}
    for name, weight in weights.items():
        if name not in state[key]:
            raise ValueError(f"the state's {key} lack {name!r}: expected those of all {len(weights)} weights, it is damaged")
        mask = unpack_bits(state[key][name], tuple(weight.shape))
        live = int(mask.count_nonzero())
        fewer = pattern is None or (isinstance(pattern, ConstantFanIn) and most[name] < weight.numel())  # what may be
        if live > most[name] or (live < most[name] and not fewer):
            raise ValueError(f"the state's {key} have {live} live weights in {name!r}: expected {most[name]}, it is damaged")
        if pattern is not None and not pattern.fits(mask):
            raise ValueError(f"the state's {key} of {name!r} have not the form of {pattern}: it is damaged")
        found[name] = mask.to(weight.device)
    return found


def _kept(kept: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    _check_names("kept", kept, weights)
    for name, gradient in kept.items():
        if gradient.shape != weights[name].shape:
            raise ValueError(
                f"the state's gradient of {name!r} has shape {tuple(gradient.shape)}: expected {tuple(weights[name].shape)}, it is damaged"
            )
    return {name: gradient.to(weights[name].device, copy=True) for name, gradient in kept.items()}


def _check_names(key: str, given: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    if odd := [name for name in given if name not in weights]:
        raise ValueError(f"the state's {key} name {odd[0]!r}: expected the weights {_brief(list(weights))}, it is damaged")


def _brief(value: Any) -> str:
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 60 else text[:57] + "…"
