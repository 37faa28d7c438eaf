"""``quorate.fit``: train any ensemble, and keep a run folder from which the same call goes on after any interruption, bit for bit.

A run on the CPU that is stopped at any step (Ctrl-C, SIGTERM, kill -9, power) and started again with the same call ends with the
same bits as one that was never stopped: the saved state holds weights, optimiser, schedule, position and metric sums; batch order,
augmentation and dropout depend on (seed, epoch, row or step) alone.
"""

from __future__ import annotations

import contextlib
import json
import time
import warnings
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from quorate import cost, runs
from quorate.data import Data
from quorate.ensemble import collect, stage_macs
from quorate.files import atomic, write_json
from quorate.outputs import Outputs
from quorate.training.callbacks import MetricsFile, Progress, SavedState
from quorate.training.imports import lightning
from quorate.training.loader import Loader
from quorate.training.module import EnsembleModule
from quorate.training.settings import Settings


@dataclass
class Fitted:
    """What a training gives back.

    Attributes:
        ensemble: the module that was passed in, trained, on its device, in eval mode.
        facts: the record that is also ``run.json``.
        outputs: Outputs by name: ``validation``, ``calibration``, ``test``, ``ood-…``.
        metrics: one dict per epoch.
        path: the run folder, if there is one.
    """

    ensemble: nn.Module
    facts: dict[str, Any]
    outputs: dict[str, Outputs]
    metrics: list[dict[str, float]] = field(default_factory=list)
    path: Path | None = None


def fit(
    ensemble: nn.Module,
    data: Data,
    *,
    run: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
    label: str | None = None,
    tensorboard: bool = True,
    **settings: Any,
) -> Fitted:
    """Train an ensemble on ``data.train`` and evaluate it on every other part.

    Args:
        ensemble: a module by the contract of :mod:`quorate.ensemble`, x (raw) → (M, B, C). It is trained in place.
        data: the data set.
        run: folder for everything. If it holds the same run unfinished, training goes on there; if finished, it is read back and
            nothing is trained. None: nothing is kept.
        about: more facts that identify the run, as JSON values (the command line puts its whole configuration here).
        progress: show a bar, or lines where there is no terminal.
        label: the run's name in the progress.
        tensorboard: write TensorBoard event files into the run folder.
        **settings: fields of :class:`quorate.training.Settings`.

    Raises:
        ValueError: unknown or impossible settings (the nearest name is given), a folder that holds another run, a loss that is
            not finite, an ensemble that does not fit the data.
        BlockingIOError: another process is using the folder.
        OSError: something can't be written; what was saved before is still there.
        Interrupted: Ctrl-C or SIGTERM; the state is saved.
    """
    chosen = Settings.of(settings)
    _check_fits(ensemble, data)
    shapes = {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in ensemble.state_dict().items()}
    identity: dict[str, Any] = {
        "settings": {k: v for k, v in asdict(chosen).items() if k != "checkpoint_seconds"},
        "data": data.fingerprint(),
        "augmentation": None if data.augmentation is None else asdict(data.augmentation),
        "ensemble": {"class": type(ensemble).__qualname__, "tensors": shapes},
        "about": about or {},
    }
    with contextlib.ExitStack() as stack:
        folder = None if run is None else Path(run)
        if folder is None:
            return _train(ensemble, data, chosen, None, identity, progress, label or "training", False)
        stack.enter_context(runs.Lock(folder))
        if (folder / "run.json").exists():
            record = runs.Run(folder)
            runs.check_identity(folder, record.facts["identity"], json.loads(json.dumps(identity)))
            if record.finished:
                return _read_back(ensemble, record, data)
        elif any(path.name != ".lock" for path in folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no run: choose another folder")
        return _train(ensemble, data, chosen, folder, identity, progress, label or folder.name, tensorboard)


def _train(
    ensemble: nn.Module,
    data: Data,
    settings: Settings,
    folder: Path | None,
    identity: dict[str, Any],
    progress: bool,
    label: str,
    tensorboard: bool,
) -> Fitted:
    example = data.train.batch(np.arange(1))[0]
    forward = stage_macs(ensemble, example)
    facts: dict[str, Any] = {
        "format": runs.FORMAT,
        "status": "running",
        "identity": identity,
        "data": data.summary(),
        "seed": settings.seed,
        "parameters": cost.parameters(ensemble),
        "stage_macs": forward,
        "macs": sum(forward),
        "versions": versions(),
        "machine": runs.machine() | {"threads": torch.get_num_threads(), "accelerator": settings.accelerator},
    }
    if folder is not None:
        write_json(folder / "run.json", facts)
    loader = Loader(data.train, settings.batch_size, settings.seed, True, data.augmentation if settings.augment else None)
    facts["training_macs"] = cost.training_macs(
        sum(forward), min(len(data.train), len(loader) * settings.batch_size), settings.epochs
    )
    module = EnsembleModule(ensemble, settings, loader)
    rows = MetricsFile(None if folder is None else folder / "metrics.csv")
    callbacks: list[Any] = [rows]
    state = None if folder is None else folder / "resume.ckpt"
    saved = None if state is None else SavedState(state, settings.checkpoint_seconds)
    if saved is not None:
        callbacks.append(saved)
    if progress:
        callbacks.append(Progress(label))
    started = time.perf_counter()
    validation = Loader(data.validation, max(settings.batch_size, 256))
    try:
        _run_lightning(module, loader, validation, settings, callbacks, state, folder if tensorboard else None)
    finally:
        if saved is not None:
            saved.release()
    ensemble.eval()
    facts["train_seconds"] = time.perf_counter() - started
    outputs = {
        name: collect(ensemble, split, classes=data.classes, costs=forward)
        for name, split in [*list(data.splits().items())[1:], *((f"ood-{name}", split) for name, split in data.ood.items())]
    }
    if folder is not None:
        with atomic(folder / "weights.safetensors") as temporary:
            save_file({name: t.detach().cpu().contiguous().clone() for name, t in ensemble.state_dict().items()}, temporary)
        for name, stored in outputs.items():
            stored.save(folder / "outputs" / f"{name}.safetensors")
        facts["status"] = "finished"
        write_json(folder / "run.json", facts)
        if state is not None:
            state.unlink(missing_ok=True)
    return Fitted(ensemble, facts, outputs, rows.rows, folder)


def _run_lightning(
    module: EnsembleModule,
    loader: Loader,
    validation: Loader,
    settings: Settings,
    callbacks: list[Any],
    state: Path | None,
    board: Path | None,
) -> None:
    pl = lightning()
    logger: Any = False
    if board is not None:
        logger = pl.loggers.TensorBoardLogger(board, name="", version="tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and loggers is not about this one
        trainer = pl.Trainer(
            max_epochs=settings.epochs,
            accelerator=settings.accelerator,
            devices=settings.devices,
            precision=settings.precision,
            callbacks=callbacks,
            logger=logger,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            log_every_n_steps=1_000_000,
        )
        resume = state if state is not None and state.exists() else None
        trainer.fit(module, loader, validation, ckpt_path=resume, weights_only=True)


def _read_back(ensemble: nn.Module, record: runs.Run, data: Data) -> Fitted:
    load_weights_(ensemble, record.path)
    names = [*list(data.splits())[1:], *(f"ood-{name}" for name in data.ood)]
    lines = (record.path / "metrics.csv").read_text(encoding="utf-8").splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, map(float, line.split(",")), strict=True)) for line in lines[1:]]
    return Fitted(ensemble, record.facts, {name: record.outputs(name) for name in names}, rows, record.path)


def load_weights_(ensemble: nn.Module, folder: str | Path) -> None:
    """Load a finished run's weights into an ensemble of the same structure and put it into eval mode.

    Raises:
        FileNotFoundError, ValueError: no or unreadable weights, or tensors of other names or shapes.
    """
    from safetensors import SafetensorError

    path = Path(folder) / "weights.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the weights of a finished run")
    try:
        ensemble.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}): train the run again") from error
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit this ensemble: {first}") from error
    ensemble.eval()


def _check_fits(ensemble: nn.Module, data: Data) -> None:
    """A ValueError unless the ensemble gives (M, B, C) with the data's classes on two of its rows."""
    x, _ = data.train.batch(np.arange(min(2, len(data.train))))
    was = ensemble.training
    ensemble.eval()
    try:
        with torch.no_grad():
            device = next(iter(ensemble.parameters()), torch.empty(0)).device
            logits = ensemble(x.to(device))
    finally:
        ensemble.train(was)
    if logits.ndim != 3 or logits.shape[1:] != (len(x), len(data.classes)):
        raise ValueError(
            f"the ensemble gives {tuple(logits.shape)} for {len(x)} rows: expected (members, {len(x)}, {len(data.classes)}), "
            "one logit per class of the data; a plain model goes in as quorate.DeepEnsemble([model])"
        )


def versions() -> dict[str, str]:
    """Versions of what decides a result."""
    return {name: metadata.version(name) for name in ("quorate", "torch", "lightning", "numpy", "scipy")}
