"""Sparse training of anyone's LightningModule: a callback over :class:`quorate.tickets.SparseTraining`.

    Trainer(callbacks=[SparseCallback(density=0.2, every=1000)]).fit(module, data)

Its state is part of Lightning's checkpoints, so that a run that goes on from one has the same masks, counters and random growth. A second
``fit`` of the same network goes on too; after a ``fit`` the network is left as it is, without hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quorate._validation import check_known
from quorate.tickets.sparse_training import SparseTraining
from quorate.tickets.weights import unwrapped
from quorate.training.imports import lightning

Callback: Any = lightning().Callback


class SparseCallback(Callback):
    """Makes the training of a LightningModule sparse.

    Args:
        network: the part of the module that is made sparse; by default all of it.
        optimizer: which of the module's optimisers, by place; masks move with its steps.
        **settings: arguments of :class:`SparseTraining` but model, optimizer, rows and state. Inputs per step are counted from the
            batches, of all processes.

    Attributes:
        sparse: the sparse training, from the start of ``fit`` on.

    Raises:
        ValueError: an argument that SparseTraining does not know; from ``fit``, what SparseTraining refuses, or no such optimiser.
    """

    def __init__(self, *, network: Callable[[nn.Module], nn.Module] | None = None, optimizer: int = 0, **settings: Any) -> None:
        known = [
            name
            for name in SparseTraining.__init__.__annotations__
            if name not in ("model", "optimizer", "rows", "state", "return")
        ]
        check_known("argument", settings, known)
        self.network, self.optimizer, self.settings = network, optimizer, settings
        self.sparse: SparseTraining | None = None
        self._state: Mapping[str, Any] | None = None
        self._rows = self._step = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Mask the network, or go on from the checkpoint's state."""
        if not 0 <= self.optimizer < len(trainer.optimizers):
            raise ValueError(
                f"optimizer={self.optimizer}: expected one of the module's {len(trainer.optimizers)}, counted from 0"
            )
        model, state = pl_module if self.network is None else self.network(pl_module), self._state
        if self.sparse is not None:
            self.sparse.remove()
            if state is None and self.sparse.model is unwrapped(model):
                state = self.sparse.state_dict()
        settings = self.settings
        if "example" in settings:
            settings = settings | {"example": trainer.strategy.batch_to_device(settings["example"])}
        self.sparse = SparseTraining(model, trainer.optimizers[self.optimizer], **settings, state=state)
        self._step, self._rows = self.sparse.step, 0 if state is None else int(state.get("counted", 0))
        self._state = None

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ARG002
        """Leave the network without hooks; masks, counters and state stay."""
        if self.sparse is not None:
            self.sparse.remove()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ARG002
        """As at the end."""
        if self.sparse is not None:
            self.sparse.remove()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Count the inputs of the coming step, over its micro-batches and all processes."""
        assert self.sparse is not None
        first = next(_tensors(batch), None)
        self._rows += (1 if first is None or first.dim() == 0 else len(first)) * trainer.world_size
        self.sparse.rows = max(self._rows, 1)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Begin to count anew after a step."""
        assert self.sparse is not None
        if self.sparse.step != self._step:
            self._step, self._rows = self.sparse.step, 0

    def state_dict(self) -> dict[str, Any]:
        """That of the sparse training."""
        return {} if self.sparse is None else self.sparse.state_dict() | {"counted": self._rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it for the start of ``fit``."""
        self._state = state_dict or None


def _tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dicts, in order."""
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from _tensors(value)
