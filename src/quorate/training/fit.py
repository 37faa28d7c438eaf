"""``quorate.fit``: train any ensemble, and keep a run folder from which the same call goes on after any interruption, bit for bit.

A run on the CPU that is stopped at any step (Ctrl-C, SIGTERM, kill -9, power) and started again with the same call ends with the
same bits as one that was never stopped: the saved state holds weights, optimiser, schedule, position and metric sums; batch order,
augmentation and dropout depend on (seed, epoch, row or step) alone.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from quorate import __version__, cost, runs
from quorate.data import Data
from quorate.data.duplicates import told
from quorate.ensemble import collect, device_of, evaluating, kind_of, stage_macs
from quorate.files import write_json, write_text
from quorate.outputs import Outputs
from quorate.training.callbacks import MembersFile, MetricsFile, Progress, SavedState, same_signals
from quorate.training.identity import identity_of
from quorate.training.inputs import check_inputs
from quorate.training.loader import Loader
from quorate.training.mixing import check_mixing
from quorate.training.module import EnsembleModule
from quorate.training.regime import Regime, regime_of
from quorate.training.settings import Settings
from quorate.training.trainer import quiet, trainer_of
from quorate.training.weights import load_weights_, save_weights


@dataclass
class Fitted:
    """What a training gives back.

    Attributes:
        ensemble: the module that was passed in, trained, on the device it was on, in eval mode; with averaged weights if the
            settings ask for them.
        facts: the record that is also ``run.json``.
        outputs: Outputs by name: ``validation``, ``calibration``, ``test``, ``ood-…``.
        metrics: one dict per epoch.
        member_metrics: one dict per epoch and member: its own training loss and figures of validation.
        path: the run folder, if there is one.
    """

    ensemble: nn.Module
    facts: dict[str, Any]
    outputs: dict[str, Outputs]
    metrics: list[dict[str, float]] = field(default_factory=list)
    member_metrics: list[dict[str, float]] = field(default_factory=list)
    path: Path | None = None


def fit(
    ensemble: nn.Module,
    data: Data,
    *,
    run: str | Path | None = None,
    about: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    progress: bool = True,
    label: str | None = None,
    tensorboard: bool = True,
    **settings: Any,
) -> Fitted:
    """Train an ensemble on ``data.train`` and evaluate it on every other part.

    Args:
        ensemble: a module by the contract of :mod:`quorate.ensemble`, x (raw) → (M, B, C). It is trained in place, all of it in
            train mode.
        data: the data set.
        run: folder for everything. If it holds the same run unfinished, training goes on there; if finished, it is read back and
            nothing is trained. None: nothing is kept.
        about: more facts that identify the run, as JSON values.
        config: how to make the run again, kept as ``config.yaml``; the command line puts its whole recipe here.
        progress: show a bar, or lines where there is no terminal.
        label: the run's name in the progress.
        tensorboard: write TensorBoard event files into the run folder.
        **settings: fields of :class:`quorate.training.Settings`.

    Raises:
        ValueError: unknown or impossible settings (the nearest name is given), a folder that holds something else, a loss that is
            not finite, an ensemble that does not fit the data or can't have the inputs asked for, ``about`` that is not JSON.
        BlockingIOError: another process is using the folder.
        OSError: something can't be written; what was saved before is still there.
        Interrupted: Ctrl-C or SIGTERM, if there is a folder; the state is saved.
    """
    chosen = Settings.of(settings)
    check_mixing(chosen, data)
    members = _check_fits(ensemble, data)
    check_inputs(ensemble, chosen, data, members)
    loader = Loader(
        data.train, chosen.batch_size, chosen.seed, True, data.augmentation if chosen.augment else None, chosen.inputs, members
    )
    regime = regime_of(ensemble, chosen, loader)
    identity = identity_of(ensemble, data, chosen, about)
    if run is None:
        return _train(regime, loader, members, data, chosen, None, identity, progress, label or "training", False)
    folder = Path(run)
    runs.check_usable(folder)
    with runs.Lock(folder):
        if (folder / "run.json").exists():
            record = runs.Run(folder)
            runs.check_identity(folder, record.facts.get("identity", {}), identity)
            if record.finished:
                (folder / "resume.ckpt").unlink(missing_ok=True)
                return _read_back(ensemble, record, data, chosen)
        for leftover in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:  # of a write that was killed
            leftover.unlink()
        recipe = None if config is None else yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        return _train(
            regime, loader, members, data, chosen, folder, identity, progress, label or folder.name, tensorboard, recipe
        )


def _train(
    regime: Regime,
    loader: Loader,
    members: int,
    data: Data,
    settings: Settings,
    folder: Path | None,
    identity: dict[str, Any],
    progress: bool,
    label: str,
    tensorboard: bool,
    recipe: str | None = None,
) -> Fitted:
    ensemble = regime.ensemble
    device = device_of(ensemble)
    _lay_out(ensemble, settings)
    module = EnsembleModule(ensemble, settings, loader, members, regime)
    rows = MetricsFile(None if folder is None else folder / "metrics.csv")
    member_rows = MembersFile(None if folder is None else folder / "members.csv")
    saved = None if folder is None else SavedState(folder / "resume.ckpt", settings.checkpoint_seconds)
    callbacks = [rows, member_rows, saved, Progress(label) if progress else None]
    trainer = trainer_of(settings, [each for each in callbacks if each is not None], folder if tensorboard else None)
    example = data.train.batch(np.arange(1))[0]
    forward = stage_macs(ensemble, example)
    trained_macs = sum(forward if regime.learner is ensemble else stage_macs(regime.learner, example))
    trained_rows = min(len(data.train), len(loader) * settings.batch_size)
    if again := data.duplicates():
        print(f"{label}: {told(again, data.splits())}: figures on such rows flatter", file=sys.stderr)
    facts: dict[str, Any] = {
        "format": runs.FORMAT,
        "status": "running",
        "identity": identity,
        "data": data.summary(),
        "seed": settings.seed,
        "parameters": cost.parameters(ensemble),
        "stage_macs": forward,
        "macs": sum(forward),
        "training_macs": cost.training_macs(trained_macs, trained_rows, settings.epochs),
        "versions": versions(),
        "machine": runs.machine() | {"threads": torch.get_num_threads(), "accelerator": settings.accelerator},
    }
    if folder is not None:
        write_json(folder / "run.json", facts)  # the first file: it makes the folder a run's
        if recipe is not None:
            write_text(folder / "config.yaml", recipe)
    validation = Loader(data.validation, max(settings.batch_size, 256))
    try:
        _run_lightning(trainer, module, loader, validation, saved)
        if module.averaging is not None:
            ensemble.load_state_dict(module.averaging.ensemble.state_dict())
        ensemble.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
        module.begin_regime_(trainer.optimizers[0])
        regime.finish_()
    finally:
        regime.stop_()
    ensemble.eval()
    forward = stage_macs(ensemble, example.to(device_of(ensemble)))
    facts |= {"stage_macs": forward, "macs": sum(forward), **regime.facts()}
    facts |= {"train_seconds": module.seconds(), "status": "finished"}
    outputs = {
        name: collect(ensemble, split, classes=data.classes or None, costs=forward)
        for name, split in [*list(data.splits().items())[1:], *((f"ood-{name}", split) for name, split in data.ood.items())]
    }
    ensemble.to(device)
    if folder is not None and saved is not None:
        save_weights(ensemble, folder)
        for name, stored in outputs.items():
            stored.save(folder / "outputs" / f"{name}.safetensors")
        write_json(folder / "run.json", facts)
        saved.path.unlink(missing_ok=True)
    return Fitted(ensemble, facts, outputs, rows.rows, member_rows.rows, folder)


def _lay_out(ensemble: nn.Module, settings: Settings) -> None:
    """The memory layout that the settings ask for; what is computed in another one differs in its last bits."""
    if settings.channels_last:
        ensemble.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _run_lightning(trainer: Any, module: EnsembleModule, loader: Loader, validation: Loader, saved: SavedState | None) -> None:
    """Train in train mode, from the saved state if there is one. Signals and torch's random state are as before afterwards."""
    module.train()
    resume = saved.path if saved is not None and saved.path.exists() else None
    if resume is not None:
        _check_state(resume)
    device = trainer.strategy.root_device
    with quiet(), same_signals(), torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
        try:
            trainer.fit(module, loader, validation, ckpt_path=resume, weights_only=True)
        except SystemExit as stop:
            if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of it
                raise KeyboardInterrupt from None
            raise
        if saved is not None:
            saved.stop_if_asked(trainer)  # a signal after the last saved state


def _check_state(path: Path) -> None:
    """A ValueError unless the file is a saved state (read without unpickling objects)."""
    try:
        whole = "quorate" in torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ValueError(f"{path} is not a readable saved state ({reason}): delete it to begin the run anew") from error
    if not whole:
        raise ValueError(f"{path} is a checkpoint of something else: delete it to begin the run anew")


def _read_back(ensemble: nn.Module, record: runs.Run, data: Data, settings: Settings) -> Fitted:
    _lay_out(ensemble, settings)
    load_weights_(ensemble, record.path)
    names = [*list(data.splits())[1:], *(f"ood-{name}" for name in data.ood)]
    rows, file = _read_rows(record.path / "metrics.csv"), record.path / "members.csv"
    member_rows = _read_rows(file) if file.exists() else []  # an earlier version did not write it
    return Fitted(ensemble, record.facts, {name: record.outputs(name) for name in names}, rows, member_rows, record.path)


def _read_rows(file: Path) -> list[dict[str, float]]:
    """The rows of a file of metrics."""
    try:
        head, *lines = file.read_text(encoding="utf-8").splitlines()
        return [dict(zip(head.split(","), map(float, line.split(",")), strict=True)) for line in lines]
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): expected a header and rows of numbers; train the run anew") from error


def _check_fits(ensemble: nn.Module, data: Data) -> int:
    """M. A ValueError unless the ensemble gives (M, B, C) with the data's classes, or (M, B, 2D) with its targets, on two of its rows."""
    kind, expected = kind_of(ensemble), "gaussian" if data.targets else "logits"
    if kind != expected:
        raise ValueError(
            f"the ensemble's members give {kind}, a {data.task} needs {expected}: for a regression build it with kind='gaussian' and "
            "data.output() as the members' last layer"
        )
    x, _ = data.train.batch(np.arange(min(2, len(data.train))))
    try:
        with evaluating(ensemble), torch.no_grad():
            logits = ensemble(x.to(device_of(ensemble)))
    except RuntimeError as error:
        raise ValueError(
            f"the ensemble can't take the data's {x.dtype} inputs of shape {tuple(x.shape[1:])} ({' '.join(str(error).split())}): "
            "build it for this shape, with data.normalise() in front"
        ) from error
    if logits.ndim != 3 or logits.shape[1:] != (len(x), data.width):
        each = "a mean and a log-variance per target" if data.targets else "one logit per class"
        raise ValueError(
            f"the ensemble gives {tuple(logits.shape)} for {len(x)} rows: expected (members, {len(x)}, {data.width}), "
            f"{each} of the data; a plain model goes in as quorate.DeepEnsemble([model])"
        )
    return int(logits.shape[0])


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {"quorate": __version__} | {name: metadata.version(name) for name in ("torch", "lightning", "numpy", "scipy")}
