"""From a recipe's parts to data and an ensemble: which model, how many members, joined how."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from jsonargparse import Namespace
from torch import nn

from quorate._validation import nearest
from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.data import Data
from quorate.ensemble import DeepEnsemble, OutputLayer
from quorate.packed import pack


@dataclass(frozen=True)
class EnsembleChoice:
    """What is made of the model.

    Attributes:
        kind: ``"single"`` network, ``"deep"`` ensemble of separate networks, ``"packed"`` ensemble in one network, ``"snapshot"``
            ensemble along one training, or ``"mc-dropout"`` of a network with dropout.
        members: how many, for all but single; of snapshot also the learning rate's cycles.
        alpha: width factor of a packed ensemble.
        gamma: subgroups per member of a packed ensemble.
    """

    kind: Literal["single", "deep", "packed", "snapshot", "mc-dropout"] = "single"
    members: int = 4
    alpha: float = 2
    gamma: int = 1

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"ensemble.members={self.members}: expected at least 1")

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The training's settings: those given, with a cycle per snapshot where no number of cycles is given."""
        return {**given, "cycles": self.members} if self.kind == "snapshot" and given["cycles"] == 1 else dict(given)


def build(choice: EnsembleChoice, make: Callable[[], nn.Module], data: Data, seed: int) -> nn.Module:
    """The ensemble, its weights drawn from (seed, member) alone; each member normalises raw inputs itself.

    A model that is an ensemble in itself (with ``stages()``, such as a multi-exit network) is taken as it is, by kind single.

    Raises:
        ValueError: such a model under another kind or for a regression, or what :func:`quorate.packed.pack` refuses.
    """
    last = [data.output()] if data.targets and choice.kind != "packed" else []

    def member(m: int) -> nn.Module:
        torch.manual_seed(int(np.random.SeedSequence([seed, m]).generate_state(1, np.uint64)[0] >> 1))
        made = make()
        if callable(getattr(made, "stages", None)) and not isinstance(made.stages, nn.Module):
            if choice.kind != "single" or data.targets:
                raise ValueError(
                    f"{type(made).__name__} is an ensemble of classifiers in itself: expected ensemble.kind single and data with classes, "
                    f"got {choice.kind} and a {data.task}"
                )
            return made
        return nn.Sequential(data.normalise(), made, *last)

    if choice.kind == "packed":
        example = data.train.batch(np.arange(min(2, len(data.train))))[0]
        alpha = int(choice.alpha) if float(choice.alpha).is_integer() else choice.alpha
        packed = pack(member(0), members=choice.members, alpha=alpha, gamma=choice.gamma, example=example)
        return OutputLayer(packed, data.output()) if data.targets else packed
    kind: Literal["logits", "gaussian"] = "gaussian" if data.targets else "logits"
    if choice.kind == "snapshot":
        return SnapshotEnsemble(member(0), choice.members, kind)
    if choice.kind == "mc-dropout":
        return MCDropout(member(0), choice.members, seed, kind)
    if choice.kind == "deep":
        return DeepEnsemble([member(m) for m in range(choice.members)], kind)
    alone = member(0)
    return alone if not isinstance(alone, nn.Sequential) else DeepEnsemble([alone], kind)


def load(chosen: Namespace) -> Data:
    """The data set of a parsed ``class_path`` with ``init_args``; what its loader raises comes through as it is.

    Raises:
        ValueError: nothing importable at the path, or what it makes is no :class:`quorate.data.Data`.
    """
    data = instantiate(chosen)
    if not isinstance(data, Data):
        raise ValueError(f"data {chosen.class_path!r} made a {type(data).__name__}: expected a quorate.data.Data, return one")
    return data


def factory(class_path: str, given: Mapping[str, Any], data: Data) -> Callable[[], nn.Module]:
    """A call that makes one model; ``shape``, ``classes``, ``channels`` and ``normalise`` come from the data where the model takes them.

    Raises:
        ValueError: nothing importable at ``class_path``, or arguments that it does not take.
    """
    make = _imported("model", class_path)
    try:
        accepted = inspect.signature(make).parameters
    except (ValueError, TypeError) as error:
        raise ValueError(f"model {class_path!r} can't be called ({error}): give the full path of a class or function") from error
    facts: dict[str, Callable[[], Any]] = {
        "shape": lambda: data.shape,
        "classes": lambda: data.width,
        "channels": lambda: data.shape[0],
        "normalise": data.normalise,
    }
    more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [key for key in given if key not in accepted and not more]
    if unknown:
        raise ValueError(f"model {class_path!r} does not take {unknown[0]!r}{nearest(unknown[0], list(accepted))}")
    filled = {key: value for key, value in facts.items() if key in accepted and key not in given}
    return lambda: make(**{key: value() for key, value in filled.items()}, **_instantiated(make, given))


def arguments(chosen: Namespace) -> dict[str, Any]:
    """The arguments of a parsed class path: those of its signature, and those that go into its ``**kwargs``."""
    parts = vars(chosen)
    return {**vars(parts.get("init_args") or Namespace()), **(parts.get("dict_kwargs") or {})}


def instantiate(value: Any, hint: Any = None) -> Any:
    """A parsed value with every class path in it called, from the inside out.

    jsonargparse checks and marks what is to be made: a Namespace with ``class_path``, or one of the fields of the dataclass that
    ``hint`` names. Plain dicts are data and stay.
    """
    if isinstance(value, list | tuple):
        return type(value)(instantiate(inner, hint) for inner in value)
    if isinstance(value, dict):
        return {key: instantiate(inner, hint) for key, inner in value.items()}
    if not isinstance(value, Namespace):
        return value
    if "class_path" in value:
        make = _imported("class", value.class_path)
        return make(**_instantiated(make, arguments(value)))
    fields = vars(value)
    kind = next((kind for kind in _dataclasses(hint) if set(fields) <= {field.name for field in dataclasses.fields(kind)}), dict)
    return kind(**_instantiated(kind, fields))


def _instantiated(make: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        hints = get_type_hints(make.__init__ if inspect.isclass(make) else make)
    except (NameError, TypeError, AttributeError):  # annotations that exist for type checkers only, or none at all
        hints = {}
    return {key: instantiate(value, hints.get(key)) for key, value in given.items()}


def _dataclasses(hint: Any) -> list[Any]:
    """The dataclasses in an annotation such as ``Augmentation | None``."""
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return [hint]
    return [kind for inner in get_args(hint) for kind in _dataclasses(inner)]


def _imported(what: str, class_path: str) -> Any:
    """What the path names; where a function and its module have one name, as ``quorate.data.digits``, the function."""
    module, _, name = class_path.rpartition(".")
    try:
        try:
            return pkgutil.resolve_name(f"{module}:{name}")
        except ModuleNotFoundError:  # a name inside a class
            return pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{what} {class_path!r} can't be imported ({error}): give the full path of a class or function"
        ) from error
