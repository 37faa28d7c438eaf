"""``quorate train`` with ``--ensemble.kind bdistil``: the teacher is trained or read, its students are cut, and it is taken apart.

RUN is the distillation's folder; a teacher that is trained for it has RUN/teacher, a run of its own that goes on, and is read back, as any
other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from quorate import runs
from quorate.cli.recipe import EnsembleChoice, build
from quorate.data import Data
from quorate.distil.distillation import Distillation, distil, rebuilt
from quorate.distil.early import from_teacher
from quorate.distil.learner import check_settings
from quorate.distil.sources import pool_of
from quorate.distil.teacher import Teacher
from quorate.ensemble import DeepEnsemble
from quorate.training import Settings, fit
from quorate.training.trainer import root_device

if TYPE_CHECKING:
    from torch import Tensor

    from quorate.cli.distil import DistilChoice

TEACHER = "teacher"
"""The teacher's folder in the run's."""


def distilled(
    recipe: dict[str, Any],
    make: Callable[..., nn.Module],
    data: Data,
    seed: int,
    run: str | Path,
    progress: bool = True,
) -> Distillation:
    """Train the teacher that a recipe asks for, or read it, and distil it into the run folder; what was begun goes on.

    Args:
        recipe: its parts ``data, model, ensemble, fit, seed`` as plain values. make: of the model. seed: of everything.

    Raises:
        ValueError: what a teacher, its students or their training can't be, before anything is trained; a folder of something else.
        Interrupted: as :func:`quorate.fit` and :func:`quorate.distil.distil`.
    """
    folder, choice = Path(run), EnsembleChoice.of(recipe["ensemble"]).distil
    choice.check_teaching(recipe["fit"])
    settings = choice.fit.settings(recipe["fit"], seed)
    check_settings(Settings.of(settings))
    choice.loss.check_task("regression" if data.targets else "classification")
    about = {"model": recipe["model"]}
    _check_folder(folder, {"rules": choice.rules.as_json(), "about": about})
    network = _network(make, data, seed)
    taught = network if choice.teacher is None else _given_teacher(choice, data)
    example = _example(data)
    guide = _guide(taught, choice, example)
    pool = _pool(choice, network, data, example, guide.macs, seed)
    if choice.teacher is None:
        guide = _guide(_trained(network, recipe, data, folder, seed, progress), choice, example)
    if isinstance(taught, nn.Module):
        taught.to(root_device(Settings.of(settings)))
    return distil(
        guide,
        pool,
        data,
        run=folder,
        rules=choice.rules,
        loss=choice.loss,
        about=about,
        config=recipe,
        progress=progress,
        **settings,
    )


def again(choice: DistilChoice, make: Callable[..., nn.Module], data: Data, seed: int, facts: Mapping[str, Any]) -> nn.Module:
    """The ensemble of a finished run with the structure it had; its weights are still to be loaded. ValueError as :func:`rebuilt`."""
    macs, example = facts["distil"]["teacher"]["macs"], _example(data)
    return rebuilt(facts, _pool(choice, _network(make, data, seed), data, example, macs, seed), example)


def _example(data: Data) -> Tensor:
    return data.train.batch(np.arange(1))[0]


def _network(make: Callable[..., nn.Module], data: Data, seed: int) -> Any:
    """The model, an ensemble of one, in eval mode."""
    return build(EnsembleChoice("bdistil"), make, data, seed).eval()


def _guide(taught: Any, choice: DistilChoice, example: Tensor) -> Teacher:
    if isinstance(taught, nn.Module):
        return Teacher.of(taught, example=example)
    return Teacher.of(taught, kind=choice.teacher_kind, macs=choice.teacher_macs)


def _given_teacher(choice: DistilChoice, data: Data) -> Any:
    """The ensemble of a run folder, or the path of a file."""
    assert choice.teacher is not None
    path = Path(choice.teacher)
    if path.suffix in (".onnx", ".safetensors"):
        if not path.is_file():
            raise FileNotFoundError(f"ensemble.distil.teacher {choice.teacher}: no such file")
        return path
    from quorate.cli.reload import reload

    ensemble, own = reload(path)
    if own.fingerprint() != data.fingerprint():
        raise ValueError(
            f"ensemble.distil.teacher {choice.teacher} was trained on {own.name}, other data or another partition of them than this run's "
            f"{data.name}: it may have seen test rows; distil it on its own data and seed"
        )
    return ensemble


def _pool(choice: DistilChoice, network: Any, data: Data, example: Tensor, macs: float | None, seed: int) -> Any:
    """The students that the recipe means, of a copy of the network: it stays on the CPU, wherever the teacher goes."""
    model = copy.deepcopy(network.members[0])
    students: Any = list(choice.students) or None
    if choice.parts is not None:
        students = from_teacher(
            model, example, choice.parts, width=choice.part_width, normalise=data.normalise().eval(), seed=seed
        )
    return pool_of(students, model, model, example, choice.rules, macs)


def _trained(network: DeepEnsemble, recipe: Mapping[str, Any], data: Data, folder: Path, seed: int, progress: bool) -> nn.Module:
    """The network, trained as a run of kind single in RUN/teacher."""
    asked = {key: value for key, value in recipe["ensemble"].items() if key not in ("tickets", "distil")} | {"kind": "single"}
    own = {**recipe, "ensemble": asked}
    fitted = fit(
        network, data, run=folder / TEACHER, about={"model": recipe["model"], "ensemble": EnsembleChoice("single").facts(asked)},
        config=own, progress=progress, label=f"{folder.name} teacher", seed=seed, **recipe["fit"],
    )  # fmt: skip
    return fitted.ensemble


def _check_folder(folder: Path, asked: dict[str, Any]) -> None:
    """A ValueError where the folder holds another run, before a teacher is trained for this one."""
    runs.check_usable(folder, (TEACHER,))
    if (folder / "run.json").exists():
        stored = runs.read_facts(folder).get("identity", {})
        runs.check_identity(folder, {key: stored.get(key) for key in asked}, asked)
