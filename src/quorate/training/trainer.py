"""Lightning's Trainer for settings, checked before anything is trained."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from quorate.training.imports import lightning
from quorate.training.settings import Settings


def trainer_of(
    settings: Settings, callbacks: list[Any], board: Path | None, epochs: int | None = None, clip: float | None = None
) -> Any:
    """Lightning's Trainer for the settings, or for so many epochs instead, with gradients of at most this norm; nothing is written yet.

    A ValueError if it can't be had as asked.
    """
    pl = lightning()
    with quiet():
        try:
            trainer = pl.Trainer(
                max_epochs=epochs or settings.epochs,
                accelerator=settings.accelerator,
                devices=1,
                precision=settings.precision,
                callbacks=callbacks,
                gradient_clip_val=clip,
                logger=False if board is None else pl.loggers.TensorBoardLogger(board, name="", version="tensorboard"),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                use_distributed_sampler=False,
                log_every_n_steps=1_000_000,
            )
        except (pl.utilities.exceptions.MisconfigurationException, ValueError) as error:
            raise ValueError(
                f"accelerator={settings.accelerator!r}, precision={settings.precision!r}: {' '.join(str(error).split())}"
            ) from error
    check_machine(trainer.precision, trainer.strategy.root_device, settings)
    return trainer


def check_machine(precision: str, device: torch.device, settings: Settings) -> None:
    """A ValueError if Lightning chose what can't do what was asked."""
    if precision != settings.precision:
        raise ValueError(
            f"precision={settings.precision!r} is not possible on {device}: expected {precision!r} or '32-true' there"
        )
    if device.type == "mps":
        raise ValueError(f"accelerator={settings.accelerator!r} chose the Apple GPU, which has no float64: set accelerator='cpu'")


def root_device(settings: Settings) -> torch.device:
    """The device that a training with these settings runs on. A ValueError if the settings can't be had here."""
    device: torch.device = trainer_of(settings, [], None).strategy.root_device
    return device


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lightning's own warnings left out: its advice on loaders and loggers is not about these."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning\.")
        yield
