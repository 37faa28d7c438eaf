"""From a recipe's parts to an ensemble: which model, how many members, joined how."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from quorate._validation import nearest
from quorate.data import Data
from quorate.ensemble import DeepEnsemble
from quorate.packed import pack


@dataclass(frozen=True)
class EnsembleChoice:
    """What is made of the model.

    Attributes:
        kind: ``"single"`` network, ``"deep"`` ensemble of separate networks, or ``"packed"`` ensemble in one network.
        members: how many, for deep and packed.
        alpha: width factor of a packed ensemble.
        gamma: subgroups per member of a packed ensemble.
    """

    kind: Literal["single", "deep", "packed"] = "single"
    members: int = 4
    alpha: float = 2
    gamma: int = 1

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"ensemble.members={self.members}: expected at least 1")


def build(choice: EnsembleChoice, make: Callable[[], nn.Module], data: Data, seed: int) -> nn.Module:
    """The ensemble, its weights drawn from (seed, member) alone; each member normalises raw inputs itself."""

    def member(m: int) -> nn.Module:
        torch.manual_seed(int(np.random.SeedSequence([seed, m]).generate_state(1, np.uint64)[0] >> 1))
        return nn.Sequential(data.normalise(), make())

    if choice.kind == "packed":
        example = data.train.batch(np.arange(min(2, len(data.train))))[0]
        alpha = int(choice.alpha) if float(choice.alpha).is_integer() else choice.alpha
        return pack(member(0), members=choice.members, alpha=alpha, gamma=choice.gamma, example=example)
    return DeepEnsemble([member(m) for m in range(1 if choice.kind == "single" else choice.members)])


def factory(class_path: str, arguments: dict[str, Any], data: Data) -> Callable[[], nn.Module]:
    """A call that makes one model; ``shape``, ``classes`` and ``channels`` come from the data where the model takes them.

    Raises:
        ValueError: nothing importable at ``class_path``, or arguments that it does not take.
    """
    module, _, name = class_path.rpartition(".")
    try:
        make = getattr(import_module(module), name)
        accepted = inspect.signature(make).parameters
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(
            f"model {class_path!r} can't be imported ({error}): give the full path of a class or function"
        ) from error
    given = {"shape": data.shape, "classes": len(data.classes), "channels": data.shape[0]}
    unknown = [key for key in arguments if key not in accepted]
    if unknown:
        raise ValueError(f"model {class_path!r} does not take {unknown[0]!r}{nearest(unknown[0], list(accepted))}")
    filled = {key: value for key, value in given.items() if key in accepted} | arguments
    return lambda: make(**filled)
