"""From a recipe's parts to data and an ensemble: which model, how many members, joined how."""

from __future__ import annotations

import dataclasses
import inspect
import pkgutil
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from jsonargparse import Namespace
from torch import nn

from quorate._validation import nearest
from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.cli.distil import DistilChoice
from quorate.cli.tickets import TicketsChoice
from quorate.data import Data, Normalise
from quorate.ensemble import DeepEnsemble, OutputLayer
from quorate.packed import apply_, pack
from quorate.tickets import DST, EDST
from quorate.training import Interrupted


@dataclass(frozen=True)
class EnsembleChoice:
    """What is made of the model.

    Attributes:
        kind: ``"single"`` network, ``"deep"`` ensemble of separate networks, ``"packed"`` ensemble in one network, ``"snapshot"``
            ensemble along one training, ``"mc-dropout"`` of a network with dropout, or sparse networks: ``"edst"`` from one training,
            ``"dst"`` from one each; or ``"bdistil"``, small students that a teacher is taken apart into.
        members: how many, for all but single and bdistil; of snapshot also the learning rate's cycles, of edst also the refinements.
        alpha: width factor of a packed ensemble.
        gamma: subgroups per member of a packed ensemble.
        tune: measure which backend of each packed layer trains fastest here, once when the training begins; the recipe keeps them.
        backends: of packed layers, by name, as ``quorate.packed.backends`` lists them; no measuring then.
        tickets: of edst and dst, how the sparse networks are trained.
        distil: of bdistil, the teacher and its students.
    """

    kind: Literal["single", "deep", "packed", "snapshot", "mc-dropout", "edst", "dst", "bdistil"] = "single"
    members: int = 4
    alpha: float = 2
    gamma: int = 1
    tune: bool = False
    backends: dict[str, str] | None = None
    tickets: TicketsChoice = TicketsChoice()  # noqa: RUF009 (frozen, without state)
    distil: DistilChoice = DistilChoice()  # noqa: RUF009

    def __post_init__(self) -> None:
        if self.members < 1:
            raise ValueError(f"ensemble.members={self.members}: expected at least 1")
        if (self.tune or self.backends) and self.kind != "packed":
            raise ValueError(f"ensemble.tune and ensemble.backends are of packed ensembles, got kind {self.kind}: leave them out")
        self.tickets.check_kind(self.kind)
        self.distil.check_kind(self.kind)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> EnsembleChoice:
        """The choice of a recipe's part ``ensemble``; ValueError as the class itself."""
        parts = {"tickets": TicketsChoice(**values.get("tickets", {})), "distil": DistilChoice.of(values.get("distil", {}))}
        return cls(**{**values, **parts})

    def facts(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """What a run's identity says of the ensemble: its recipe, without options that came later and are not used."""
        said = {key: value for key, value in given.items() if key not in ("tune", "backends", "tickets", "distil")}
        used = {"backends": self.backends} if self.backends else {}
        return said | used | ({"tickets": given["tickets"]} if self.kind in ("edst", "dst") else {})

    def settings(self, given: Mapping[str, Any], said: Collection[str]) -> dict[str, Any]:
        """The training's settings: those given, and what the kind asks for where the user says nothing.

        That is a cycle per snapshot where no number of cycles is given, and for edst, whose timeline has rates of its own, a constant
        schedule where none is said.

        Args:
            given: all settings.
            said: names of those that are the user's, not defaults.
        """
        if self.kind == "snapshot" and given["cycles"] == 1:
            return {**given, "cycles": self.members}
        if self.kind == "edst" and "schedule" not in said:
            return {**given, "schedule": "constant"}
        return dict(given)


def build(choice: EnsembleChoice, make: Callable[..., nn.Module], data: Data, seed: int) -> nn.Module:
    """The ensemble, its weights drawn from (seed, member) alone; each member normalises raw inputs itself.

    ``make`` is what :func:`factory` gives. The data's normalisation goes in front of what it makes, unless that is an ensemble in itself
    (its ``stages()`` take raw inputs, as a multi-exit network's do): such a model gets it as its ``normalise``, and is taken as it is, by
    kind single. Of bdistil this is the teacher, a single network.

    Raises:
        ValueError: such a model without that parameter, under another kind or for a regression, or what
            :func:`quorate.packed.pack` refuses.
    """
    last = [data.output()] if data.targets and choice.kind != "packed" else []

    def member(m: int) -> tuple[nn.Module, bool]:
        """What was made, ready for raw inputs, and whether it is an ensemble in itself."""
        seeded = int(np.random.SeedSequence([seed, m]).generate_state(1, np.uint64)[0] >> 1)
        torch.manual_seed(seeded)
        made = make()
        if not has_stages(made):
            return nn.Sequential(data.normalise(), made, *last), False
        if choice.kind != "single" or data.targets:
            raise ValueError(
                f"{type(made).__name__} is an ensemble of classifiers in itself: expected ensemble.kind single and data with classes, "
                f"got {choice.kind} and a {data.task}"
            )
        torch.manual_seed(seeded)
        return make(normalise=data.normalise()), True

    first, complete = member(0)
    if choice.kind == "packed":
        example = data.train.batch(np.arange(min(2, len(data.train))))[0]
        alpha = int(choice.alpha) if float(choice.alpha).is_integer() else choice.alpha
        packed = pack(first, members=choice.members, alpha=alpha, gamma=choice.gamma, example=example)
        apply_(packed, choice.backends or {})
        return OutputLayer(packed, data.output()) if data.targets else packed
    kind: Literal["logits", "gaussian"] = "gaussian" if data.targets else "logits"
    if choice.kind == "snapshot":
        return SnapshotEnsemble(first, choice.members, kind)
    if choice.kind == "mc-dropout":
        return MCDropout(first, choice.members, seed, kind)
    if choice.kind == "edst":
        chosen = choice.tickets
        return EDST(first, choice.members, chosen.density, kind=kind, **chosen.timeline(), **chosen.moves())
    if choice.kind in ("deep", "dst"):
        networks = [first, *(member(m)[0] for m in range(1, choice.members))]
        if choice.kind == "deep":
            return DeepEnsemble(networks, kind)
        return DST(networks, choice.tickets.density, kind=kind, **choice.tickets.moves())
    return first if complete else DeepEnsemble([first], kind)


def has_stages(model: nn.Module) -> bool:
    """Whether it is an ensemble in itself: ``stages`` is a method, not a submodule of that name."""
    own = getattr(model, "stages", None)
    return callable(own) and not isinstance(own, nn.Module)


def load(chosen: Namespace) -> Data:
    """The data set of a parsed ``class_path`` with ``init_args``; what its loader raises comes through as it is.

    Raises:
        ValueError: nothing importable at the path, or what it makes is no :class:`quorate.data.Data`.
    """
    data = instantiate(chosen)
    if not isinstance(data, Data):
        raise ValueError(f"data {chosen.class_path!r} made a {type(data).__name__}: expected a quorate.data.Data, return one")
    return data


def factory(class_path: str, given: Mapping[str, Any], data: Data) -> Callable[..., nn.Module]:
    """A call that makes one model; ``shape``, ``classes`` and ``channels`` come from the data where the model takes them.

    The call takes ``normalise=``, a module for a model that is an ensemble in itself; without it the model keeps its own default.

    Raises:
        ValueError: nothing importable at ``class_path``, arguments that it does not take, or a ``normalise`` without default that is
            no module's or no ensemble's; from the call, a ``normalise`` that the model does not take as a module.
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
    }
    more = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in accepted.values())
    unknown = [key for key in given if key not in accepted and not more]
    if unknown:
        raise ValueError(f"model {class_path!r} does not take {unknown[0]!r}{nearest(unknown[0], list(accepted))}")
    filled = {key: value for key, value in facts.items() if key in accepted and key not in given}
    admits = "normalise" in accepted and _admits(_hints(make).get("normalise"), Normalise)
    needs = "normalise" in accepted and "normalise" not in given and accepted["normalise"].default is inspect.Parameter.empty
    needless = (
        f"model {class_path!r} can't be made without a `normalise`, which only an ensemble in itself gets, as an nn.Module: give it a "
        "default, the data's normalisation stands in front of the model"
    )
    if needs and not admits:
        raise ValueError(needless)

    def made(normalise: nn.Module | None = None) -> nn.Module:
        if normalise is not None and not admits:
            raise ValueError(
                f"model {class_path!r} is an ensemble in itself, whose stages take raw inputs: give it a parameter `normalise: nn.Module` "
                "and put that module first"
            )
        own = data.normalise() if needs and normalise is None else normalise
        parts = {key: value() for key, value in filled.items()} | ({} if own is None else {"normalise": own})
        model: nn.Module = make(**parts | _instantiated(make, given))
        if needs and not has_stages(model):
            raise ValueError(needless)
        return model

    return made


@contextmanager
def blaming(class_path: str) -> Iterator[None]:
    """What a model of the user's raises, wherever it is called, is a ValueError of one line that names model, file and line.

    Errors of files and of imports are told as they are, and so is what doesn't come through the model's own module.
    """
    try:
        yield
    except (OSError, ImportError, Interrupted):
        raise
    except Exception as error:
        own = getattr(_imported("model", class_path), "__module__", "")
        lines = [
            (frame, line) for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_globals.get("__name__") == own
        ]
        if not lines or own.partition(".")[0] == "quorate":
            raise
        frame, line = lines[-1]
        place = f"{Path(frame.f_code.co_filename).name}, line {line}"
        raise ValueError(f"model {class_path!r} failed: {type(error).__name__}: {error} ({place})") from error


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
    hints = _hints(make)
    return {key: instantiate(value, hints.get(key)) for key, value in given.items()}


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(make.__init__ if inspect.isclass(make) else make)
    except (NameError, TypeError, AttributeError):  # annotations that exist for type checkers only, or none at all
        return {}


def _admits(hint: Any, made: type) -> bool:
    """Whether an annotation such as ``nn.Module | None`` says that a ``made`` may be given; one that is missing says nothing."""
    if get_origin(hint) in (Union, UnionType):
        return any(_admits(inner, made) for inner in get_args(hint))
    return hint in made.__mro__[:-1]


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
