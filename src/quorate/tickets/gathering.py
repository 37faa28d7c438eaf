"""Gradients on their way to the optimiser: what dead weights get is kept for growth where it is asked for, and then set to 0.

Two hooks per weight, neither part of a compiled graph. The tensor hook sees the raw gradient of one micro-batch, on steps that gather. The
hook after its accumulation masks ``weight.grad`` in place, before data-parallel processes exchange it and before anything is clipped.

    step's gradient = Σ over micro-batches, then the mean over processes;   sums = Σ over the steps that gather

A step that is skipped, by a gradient scaler or by the loop, leaves nothing behind: a gradient that is gone, or zeroed, when the next
micro-batch comes begins a new sum.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from quorate.tickets.agreement import average_, on_any


class Gathering:
    """Keeps the raw gradients of weights and masks what they are handed.

    Args:
        weights: by name; frozen ones too, they may be trained later.
        mask_: sets a gradient to 0 in place where the weight of that name is dead.

    Attributes:
        on: whether the step under way gathers.
        sums: by name, of whole steps; a weight that no loss reached has none.
        seen: whether any gradient was there when :meth:`ready_` was last asked.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], mask_: Callable[[str, Tensor], None]) -> None:
        self.weights, self.mask_ = dict(weights), mask_
        self.on, self.seen = False, True
        self.sums: dict[str, Tensor] = {}
        self._raw: dict[str, tuple[Tensor, bool]] = {}  # on its way to be accumulated: the gradient, and whether it begins a sum
        self._step: dict[str, Tensor] = {}  # of the step under way
        self._hooks = [hook for name in self.weights for hook in self._hooked(name)]

    def _hooked(self, name: str) -> list[torch.utils.hooks.RemovableHandle]:
        weight = self.weights[name]

        @torch.no_grad()
        def keep(gradient: Tensor) -> None:
            if self.on:
                self._raw[name] = gradient.detach().clone(), weight.grad is None or not bool(weight.grad.any())

        @torch.no_grad()
        def mask(weight: Tensor) -> None:
            if self.on and name in self._raw:
                raw, first = self._raw.pop(name)
                self._step[name] = raw if first or name not in self._step else self._step[name].add_(raw)
            if weight.grad is not None:
                self.mask_(name, weight.grad)

        frozen = not weight.requires_grad
        weight.requires_grad_(True)
        hooks = [weight.register_hook(keep), weight.register_post_accumulate_grad_hook(mask)]
        weight.requires_grad_(not frozen)
        return hooks

    def end_step_(self) -> None:
        """Add the step's gradients, averaged over processes, to the sums."""
        if self.on:
            names = list(self.weights)
            reached = on_any([name in self._step for name in names], self.weights[names[0]].device) if names else []
            for name in (name for name, there in zip(names, reached, strict=True) if there):
                gradient = self._step[name] if name in self._step else torch.zeros_like(self.weights[name].detach())
                average_([gradient])
                self.sums[name] = self.sums[name].add_(gradient) if name in self.sums else gradient
        self.drop_step_()

    def drop_step_(self) -> None:
        """Forget the step under way."""
        self._raw, self._step = {}, {}

    def ready_(self, names: Collection[str]) -> bool:
        """Whether the weights of these names got gradients, all of them numbers; after an overflow the sums begin anew."""
        found = [self.sums[name] for name in names if name in self.sums]
        self.seen = bool(found) or not names
        finite = all(bool(gradient.isfinite().all()) for gradient in found)
        if not finite:
            self.sums = {}
        return self.seen and finite

    def remove(self) -> None:
        """Take the hooks off."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
