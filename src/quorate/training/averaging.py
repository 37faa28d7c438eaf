"""Averages of the weights along a training: EMA and SWA. The averaged ensemble is validated, evaluated and kept.

Sources: EMA, Polyak & Juditsky 1992 (SIAM J. Control Optim. 30(4)) in its exponential form; SWA, Izmailov et al. 2018 (arXiv 1803.05407),
algorithm 1 with a constant learning rate and a cycle of one epoch. With w_t the weights after step t, v_e those after epoch e:

    EMA   a_1 = w_1,    a_t = d · a_{t−1} + (1 − d) · w_t             after every step, d = ema_decay
    SWA   a = mean of v_e for e = swa_start, …, epochs                after every epoch, the rate being swa_lr from swa_start on

Floating buffers (batch statistics) are averaged by EMA as weights are; others are the trained ensemble's. SWA takes all buffers from it and
then estimates batch statistics anew for the averaged weights: one pass over the training rows, not augmented, in an order
that depends on the seed alone, with only the batch normalisations in train mode; each batch counts the same.

Not PyTorch's ``AveragedModel``: with buffers it averages integer ones too, and rounds them down.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from quorate.training.loader import Loader
from quorate.training.settings import Settings

Average = Callable[[list[Tensor], list[Tensor], int], None]
"""(averages, new values, how many were averaged) → averages, in place."""


class Averaging(nn.Module):
    """The averaged copy of an ensemble and how many weights are in it; both are part of a saved state.

    Args:
        ensemble: what is trained.
        settings: with ``averaging`` other than ``"none"``.
        loader: of the training; its split, batch size and seed serve for the batch statistics.
    """

    count: Tensor

    def __init__(self, ensemble: nn.Module, settings: Settings, loader: Loader) -> None:
        super().__init__()
        self.ensemble = copy.deepcopy(ensemble).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.settings = settings
        self._steps = len(loader)
        self._rows = Loader(loader.split, loader.batch_size, loader.seed, True)

    @property
    def begun(self) -> bool:
        """Whether there is an average yet."""
        return int(self.count) > 0

    @torch.no_grad()
    def after_step_(self, trained: nn.Module, step: int) -> None:
        """Take in the weights after the training's step number ``step`` = 1, 2, …, if it is one that counts."""
        if self.settings.averaging == "ema":
            self._add_(trained, get_ema_multi_avg_fn(self.settings.ema_decay), buffers=True)
        elif step % self._steps == 0 and step // self._steps >= self.settings.swa_start:
            self._add_(trained, get_swa_multi_avg_fn(), buffers=False)
            device = self.count.device
            estimate_statistics_(self.ensemble, (x.to(device) for x, _ in self._first_epoch()))

    def _add_(self, trained: nn.Module, average: Average, buffers: bool) -> None:
        count = int(self.count)
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for held, tensor in zip(_tensors(self.ensemble), _tensors(trained), strict=True):
            number = held.is_floating_point() or held.is_complex()
            if count and number and (buffers or isinstance(held, nn.Parameter)):
                ours, theirs = groups.setdefault(held.dtype, ([], []))
                ours.append(held)
                theirs.append(tensor.detach())
            else:
                held.copy_(tensor)
        for ours, theirs in groups.values():
            average(ours, theirs, count)
        self.count += 1

    def _first_epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        self._rows.load_state_dict({"epoch": 0, "step": 0})
        return iter(self._rows)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


@torch.no_grad()
def estimate_statistics_(ensemble: nn.Module, batches: Iterator[Tensor]) -> None:
    """Set the statistics of every batch normalisation to their means over the batches of inputs; all else is in eval mode.

    The mean and the unbiased variance of each batch, as the layers take them, averaged over batches. Modes and momenta are given back;
    nothing is run where no layer keeps statistics.
    """
    layers = [m for m in ensemble.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not layers:
        return
    modes = [(module, module.training) for module in ensemble.modules()]
    momenta = [layer.momentum for layer in layers]
    try:
        for module, _ in modes:
            module.training = False
        for layer in layers:
            layer.reset_running_stats()
            layer.training, layer.momentum = True, None  # the cumulative mean
        for x in batches:
            ensemble(x)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes:
            module.training = mode
