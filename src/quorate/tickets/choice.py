"""Which of a phase's networks becomes the ticket: chosen on validation data, or averaged over its last epochs.

Sources: the best validation epoch, Liu et al. 2022 (arXiv 2106.14568), §3.2; averaging, Sup-tickets, Yin et al. 2022 (arXiv 2205.15322):
the mean of several sparse networks of one run has all their live weights, of which those of the largest magnitude are kept, as many as
each layer has, and the batch statistics are estimated anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from quorate.tickets.masks import Masks, pack_bits, unpack_bits
from quorate.tickets.moves import Choice
from quorate.tickets.selection import highest
from quorate.training.averaging import estimate_statistics_

State = dict[str, Tensor]


class Candidate:
    """What is kept of a phase so far.

    Args:
        choose: as :class:`quorate.tickets.Moves` has it.
        averaged: epochs that are averaged.
    """

    def __init__(self, choose: Choice, averaged: int) -> None:
        self.choose, self.averaged = choose, averaged
        self.clear_()

    def clear_(self) -> None:
        """Begin a phase."""
        self.epoch, self.count = 0, 0
        self.score: tuple[float, ...] | None = None
        self.state: State = {}
        self.masks: Masks = {}

    @torch.no_grad()
    def add_(self, network: nn.Module, masks: Masks, figures: Mapping[str, float], epoch: int, left: int) -> None:
        """Take in the network after an epoch of the phase, when ``left`` more follow; ``figures`` are those of its validation."""
        if self.choose == "average":
            if left < self.averaged:
                self._average_(network, masks, epoch)
            return
        score = _score(self.choose, figures)
        if self.score is None or self.choose == "last" or score > self.score:
            self.epoch, self.score = epoch, score
            self.state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
            self.masks = {name: mask.clone() for name, mask in masks.items()}

    def _average_(self, network: nn.Module, masks: Masks, epoch: int) -> None:
        self.count += 1
        self.epoch = epoch
        for name, tensor in network.state_dict().items():
            if self.count == 1 or not tensor.is_floating_point():
                self.state[name] = tensor.detach().clone()
            else:
                self.state[name].lerp_(tensor, 1 / self.count)
        self.masks = {name: mask.clone() for name, mask in masks.items()}

    @torch.no_grad()
    def taken(self, network: nn.Module, batches: Callable[[], Iterator[Tensor]]) -> tuple[State, Masks]:
        """The ticket's tensors and masks. For an average, ``network`` may be overwritten, and ``batches`` gives training inputs."""
        if self.choose != "average":
            return self.state, self.masks
        named = dict(network.named_parameters())
        masks = {name: _largest(self.state[name].to(named[name].device), int(mask.sum())) for name, mask in self.masks.items()}
        network.load_state_dict(self.state)
        for name, mask in masks.items():
            named[name].masked_fill_(~mask, 0)
        estimate_statistics_(network, batches())
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}, masks

    def facts(self) -> dict[str, Any]:
        """For a record: the epoch, from 1, whose network is the ticket (of an average the last); its (accuracy, −NLL), (−NLL,) or None."""
        return {"epoch": self.epoch, "score": None if self.score is None else list(self.score)}

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and text."""
        return {
            "epoch": self.epoch,
            "count": self.count,
            "score": None if self.score is None else list(self.score),
            "state": dict(self.state),
            "masks": {name: pack_bits(mask) for name, mask in self.masks.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on with it."""
        self.epoch, self.count = state["epoch"], state["count"]
        self.score = None if state["score"] is None else tuple(state["score"])
        self.state = {name: tensor.to(device) for name, tensor in state["state"].items()}
        self.masks = {name: unpack_bits(bits, tuple(self.state[name].shape)).to(device) for name, bits in state["masks"].items()}


def _score(choose: Choice, figures: Mapping[str, float]) -> tuple[float, ...]:
    """The higher the better. A regression has no accuracy: its NLL decides."""
    nll = -figures["val_nll"]
    return (figures["val_accuracy"], nll) if choose == "accuracy" and "val_accuracy" in figures else (nll,)


def _largest(weight: Tensor, live: int) -> Tensor:
    """The mask of so many weights of the largest magnitude."""
    return highest(weight.abs().flatten(), live).reshape(weight.shape)
