"""What EDST and DST have in common under :func:`quorate.fit`: what they refuse, sparse training by their moves, and a loader's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quorate.tickets.ensemble import Tickets
from quorate.tickets.moves import Moves
from quorate.tickets.sparse_training import SparseTraining
from quorate.training.loader import Loader
from quorate.training.settings import Settings


def check_settings(ensemble: Tickets, settings: Settings) -> None:
    """A ValueError for weights that ``fit`` would average across masks."""
    if settings.averaging != "none":
        raise ValueError(
            f"averaging={settings.averaging!r} averages weights over different masks: {type(ensemble).__name__} expects averaging='none', "
            "and choose='average' for the mean of a phase's last epochs"
        )


def sparse_training(
    network: nn.Module, optimizer: torch.optim.Optimizer, density: float | Mapping[str, float], moves: Moves, **more: Any
) -> SparseTraining:
    """Sparse training as the moves say."""
    return SparseTraining(
        network,
        optimizer,
        density,
        growth=moves.growth,
        pattern=moves.pattern,
        every=moves.every,
        distribution=moves.distribution,
        dense=moves.dense,
        rescale=moves.rescale,
        **more,
    )


def rows_of(loader: Loader) -> int:
    """Rows of each of the loader's batches."""
    return min(loader.batch_size, len(loader.split))


def training_inputs(loader: Loader, device: torch.device) -> Iterator[Tensor]:
    """One pass over the training rows, not augmented, in an order that depends on the seed alone."""
    rows = Loader(loader.split, loader.batch_size, loader.seed, True)
    return (x.to(device) for x, _ in rows)
