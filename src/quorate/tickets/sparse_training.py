"""Dynamic sparse training of any network in anyone's loop: the live weights are few, and which ones they are moves as training goes.

Sources: FreeTickets, Liu et al. 2022 (arXiv 2106.14568), §3.1; SET, Mocanu et al. 2018 (arXiv 1707.04780); RigL, Evci et al. 2020
(arXiv 1911.11134), algorithm 1. Every ``every`` optimiser steps, in each sparse layer with
nnz live weights,

    n = ⌈rate · nnz⌉;   the n live weights of least |w| are dropped;   n dead ones are grown, of the largest |gradient| or at random

A grown weight starts at 0, with the optimiser's state at 0. Dead weights are exactly 0 after every step of the optimiser.

It works by hooks: those on weights (:mod:`quorate.tickets.gathering`) keep the raw gradients where growth needs them and mask them as they
are accumulated, so that clipping and the optimiser never see dead weights; one on the optimiser's step enforces the masks and moves them,
so that a step skipped by a gradient scaler does not count. None of them is part of a compiled graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from quorate.tickets.agreement import alike, check_same, first_decides, first_seed
from quorate.tickets.budget import Distribution, budgets
from quorate.tickets.gathering import Gathering
from quorate.tickets.growth import Gradient, Growth
from quorate.tickets.ledger import Ledger
from quorate.tickets.masks import Masks, Multipliers, digest, pack_bits
from quorate.tickets.patterns import Pattern, Unstructured
from quorate.tickets.progress import FORMAT, Progress, read
from quorate.tickets.weights import check_optimizer, sparse_weights, unwrapped

_ACTIVE: WeakSet[SparseTraining] = WeakSet()
"""Those whose hooks are on."""


class SparseTraining:
    """Makes the training of ``model`` by ``optimizer`` sparse, from now on, and keeps its masks.

    Build it when the optimiser is there and before the first step, then train as before:

        sparse = SparseTraining(model, optimizer, density=0.2, every=1000)

    The model may be wrapped for ``torch.compile`` or ``DistributedDataParallel``, or moved to another device, before or after. It and its
    optimiser can be copied and pickled meanwhile, and the copies are dense trainings; this object itself can't.

    Args:
        model: any network. Its weights are masked in place.
        optimizer: any PyTorch optimiser of its weights.
        density: share of the weights of sparse layers that are live, in (0, 1]; or densities by weight name.
        growth: which dead weights come to life: :class:`Gradient` (RigL), :class:`Random` (SET), :class:`Static` (masks never move).
        pattern: the form that live weights take: :class:`Unstructured`, :class:`ConstantFanIn`, :class:`NM`, :class:`Blocks`.
        every: optimiser steps between two moves (ΔT).
        rate: share of a layer's live weights that a move drops; or a function of the number of steps so far, where 0 means no move.
        distribution: of one density over layers: ``"erk"``, ``"uniform"``, or ``"mac_aware"``, which needs ``example``.
        dense: names of weights that stay dense.
        only: names of the weights that are sparse, instead of all of convolutions, linear layers and attention.
        example: a small batch of inputs; with it ``ledger`` counts multiply-adds.
        rows: inputs per optimiser step, of all micro-batches and processes, for the ledger; may be set anew before any step.
        rescale: multiply the first weights by 1/√density of their layer, so that what a layer gives varies as much as the dense network's
            (Evci et al. 2022, arXiv 2010.03533, §3.1); without norms, sparse networks hardly learn otherwise.
        seed: of first masks and random growth, which depend on (seed, move, layer) alone; that of the first process for all.
        state: what :meth:`state_dict` gave, to go on with a model whose weights are loaded already; no first masks are drawn then.

    Attributes:
        masks: by weight name, plain data, True = live. A new dict after every move; not to be changed in place.
        ever: the weights that were ever live, in the same form.
        step: optimiser steps so far. moves: moves so far, escapes with them.
        ledger: what the training has cost, or None.

    Raises:
        ValueError: an impossible setting, a density too low to keep a weight per output, weights that the pattern does not fit, an
            optimiser that does not train all sparse weights, weights that another sparse training still masks.
        RuntimeError: data-parallel processes that are not alike; ValueErrors of one are RuntimeErrors on the others.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        density: float | Mapping[str, float] = 0.2,
        *,
        growth: Growth = Gradient(),  # noqa: B008
        pattern: Pattern = Unstructured(),  # noqa: B008
        every: int = 1000,
        rate: float | Callable[[int], float] = 0.5,
        distribution: Distribution = "erk",
        dense: Iterable[str] = (),
        only: Iterable[str] | None = None,
        example: Any = None,
        rows: int = 1,
        rescale: bool = True,
        seed: int = 0,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.optimizer = unwrapped(model), optimizer
        self._device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        with alike("the network, a setting or whether a state is given", self._device) as texts:
            _check_settings(growth, pattern, every, rate, rows, seed)
            self.growth, self.pattern, self.every, self.rate, self.rows = growth, pattern, every, rate, rows
            self.weights: dict[str, nn.Parameter] = sparse_weights(model, dense, only)
            check_optimizer(self.weights, optimizer)
            taken = {id(weight) for other in list(_ACTIVE) for weight in other.weights.values()}
            if shared := [name for name, weight in self.weights.items() if id(weight) in taken]:
                raise ValueError(
                    f"{shared[0]!r} is in sparse training already: expected one per weight, call remove() of the first"
                )
            self.ledger = None if example is None else Ledger.of_model(self.model, example, list(self.weights))
            self.budget = budgets(self.weights, density, distribution, pattern, self.ledger)
            shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
            texts.append(f"{shapes} {self.budget} {growth} {pattern} {every} {state is None}")
        self.seed = first_seed(seed, self._device)
        self.step = self.moves = 0
        self.ever: Masks = {}
        self._gather_at: frozenset[int] = frozenset()
        self._owed = 0  # steps to the next try at a move that waits for gradients that are numbers
        self._followers: list[dict[str, Tensor]] = []
        drawn = {name: pattern.draw(shapes[name], self.budget[name], self._rng(i)) for i, name in enumerate(self.weights)}
        self._set_(first_decides({name: mask.to(self.weights[name].device) for name, mask in drawn.items()}, self._device))
        check_same(self.masks, self._device)
        movable = {name: weight for name, weight in self.weights.items() if self.budget[name] < weight.numel()}
        self._gathering = Gathering(movable, self._mask_)
        self._step_hook: torch.utils.hooks.RemovableHandle | None = None
        try:
            if state is not None:
                self.load_state_dict(state)
            self._gathering.on = self._gathers(self.step + 1)
        except BaseException:
            self.remove()
            raise
        if state is None:
            self._clear_(self.masks)
            if rescale:
                self._rescale_()
        self._step_hook = optimizer.register_step_post_hook(self._after_step)
        _ACTIVE.add(self)

    def _rng(self, layer: int) -> np.random.Generator:
        """Of the coming move; of the first masks while there was none."""
        return np.random.default_rng([self.seed, self.moves + bool(self.ever), layer])

    def _mask_(self, name: str, gradient: Tensor) -> None:
        if gradient.device != self.masks[name].device:
            self._go_along_()
        self._multipliers.mask_(self._place[name], gradient)

    @property
    def gather_at(self) -> frozenset[int]:
        """Numbers of steps at whose end the masks stand still and the gradients are kept, for a :meth:`move_` that follows."""
        return self._gather_at

    @gather_at.setter
    def gather_at(self, steps: Iterable[int]) -> None:
        self._gather_at = frozenset(steps)
        self._gathering.on = self._gathers(self.step + 1)

    @torch.no_grad()
    def _rescale_(self) -> None:
        for name in self._sparse:
            self.weights[name].mul_(math.sqrt(self.weights[name].numel() / self.live[name]))

    def _after_step(self, *_: Any) -> None:
        overflow = getattr(self.optimizer, "found_inf", None)  # of a gradient scaler, where the optimiser itself skips the step
        if overflow is not None and bool(overflow):
            self._gathering.drop_step_()
            return
        self._enforce_()
        self.step += 1
        if self.ledger is not None:
            self.ledger.step_(self.live, self.rows, self._gathering.on)
        self._gathering.end_step_()
        self._move_if_due_()
        self._gathering.on = self._gathers(self.step + 1)
        if not self._gathering.on and self.step not in self.gather_at:
            self._gathering.sums = {}

    def _move_if_due_(self) -> None:
        if self._due(self.step):
            if self._owed and not self._gathering.seen:
                raise ValueError(
                    f"no sparse weight got a gradient by step {self.step}, {self.every} after a move of the masks was due: expected "
                    "loss.backward() before optimizer.step(), or growth=Random()"
                )
            self._owed = self._owed or 1
        if not self._owed:
            return
        self._owed -= 1
        if not self._owed:
            if self.step in self.gather_at or not self._ready_():
                self._owed = max(self.growth.batches, 1)
            elif rate := self._rate(self.step):
                self._move_(rate)

    def _rate(self, step: int) -> float:
        rate = self.rate(step) if callable(self.rate) else self.rate
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate!r} at step {step}: expected a share of the live weights in [0, 1]")
        return rate

    def _due(self, step: int) -> bool:
        """Whether the masks move by themselves at the end of step number ``step``."""
        if not self.growth.moves or step % self.every or step in self.gather_at:
            return False
        return self._rate(step) > 0

    def _gathers(self, step: int) -> bool:
        """Whether step number ``step`` = 1, 2, … keeps raw gradients: the last ones before a move."""
        window = range(step, step + self.growth.batches)
        return bool(window) and (self._owed > 0 or any(later in self.gather_at or self._due(later) for later in window))

    def _ready_(self) -> bool:
        """Whether growth has what it needs."""
        return not self.growth.batches or self._gathering.ready_(self._movable())

    def _movable(self) -> list[str]:
        """Weights that are sparse and not frozen."""
        return [name for name, weight in self.weights.items() if self.live[name] < weight.numel() and weight.requires_grad]

    @torch.no_grad()
    def _enforce_(self) -> None:
        self._go_along_()
        self._multipliers.apply_([self.weights[name] for name in self._sparse])

    def move_(self, rate: float) -> None:
        """Drop this share of every layer's live weights and grow as many, now. An escape of EDST is such a move, with a rate of about 0.8.

        Raises:
            ValueError: a rate outside of [0, 1], masks that never move, or growth by gradients when none were kept.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate!r}: expected a share of the live weights in [0, 1]")
        if not self.growth.moves:
            raise ValueError("growth=Static(): expected growth that moves masks, Gradient() or Random()")
        if not self._ready_():
            raise ValueError(
                f"no gradients that are numbers were kept at step {self.step} for growth={self.growth}: put that number into gather_at "
                "before the step, or use growth=Random()"
            )
        self._move_(rate)
        self._gathering.on = self._gathers(self.step + 1)

    @torch.no_grad()
    def _move_(self, rate: float) -> None:
        self._go_along_()
        moved, kept = dict(self.masks), self._gathering.sums
        trained = {name for name in self._movable() if name in kept or not self.growth.batches}
        for i, name in enumerate(self.weights):
            if name in trained:
                weight = self.weights[name].detach()
                try:
                    score = self.growth.score(kept.get(name), weight, self._rng(i))
                    moved[name] = self.pattern.move(weight, self.masks[name], rate, score, live=self.budget[name])
                except ValueError as error:
                    raise ValueError(f"masks of {name!r} can't move after step {self.step}: {error}") from error
        moved = first_decides(moved, self._device)
        check_same(moved, self._device)
        survivors = {name: mask & self.masks[name] for name, mask in moved.items()}
        self._set_(moved)
        self.moves += 1
        self._owed, self._gathering.sums = 0, {}
        self._clear_(survivors)

    def _set_(self, masks: Masks) -> None:
        """Take over masks, and all that is kept of them."""
        self.masks = masks
        self.ever = {name: mask | self.ever[name] if self.ever else mask.clone() for name, mask in masks.items()}
        self.live = {name: int(mask.sum()) for name, mask in masks.items()}
        self._sparse = [name for name, weight in self.weights.items() if self.live[name] < weight.numel()]
        self._place = {name: at for at, name in enumerate(self._sparse)}
        self._multipliers = self._multiplied(masks)

    def _go_along_(self) -> None:
        """Be where the weights are, which may have been moved to another device."""
        if all(mask.device == self.weights[name].device for name, mask in self.masks.items()):
            return

        def along(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: tensor.to(self.weights[name].device) for name, tensor in tensors.items()}

        self.masks, self.ever, self._gathering.sums = along(self.masks), along(self.ever), along(self._gathering.sums)
        self._multipliers = self._multiplied(self.masks)
        self._device = next((parameter.device for parameter in self.model.parameters()), self._device)

    def _multiplied(self, masks: Masks) -> Multipliers:
        return Multipliers([self.weights[name] for name in self._sparse], [masks[name] for name in self._sparse])

    @torch.no_grad()
    def _clear_(self, survivors: Masks) -> None:
        """0 weights that are dead; 0 the optimiser's state, and what followers hold, where weights did not survive."""
        self._enforce_()
        kept = self._multiplied(survivors)
        for at, name in enumerate(self._sparse):
            weight = self.weights[name]
            for state in self.optimizer.state.get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    kept.mask_(at, state)
            for follower in self._followers:
                follower[name].masked_fill_(~survivors[name].to(follower[name].device), 0)

    def follow_(self, module: nn.Module) -> None:
        """Keep the masks in another module with the same weights too, such as the moving average of the model.

        What is dead is 0 in it from now on; a weight that is grown starts at 0 in it as well.

        Raises:
            ValueError: weights of other names or shapes.
        """
        named = dict(unwrapped(module).named_parameters())
        for name, weight in self.weights.items():
            if name not in named or named[name].shape != weight.shape:
                raise ValueError(
                    f"{type(module).__name__} has no {name!r} of shape {tuple(weight.shape)}: expected a copy of the model (of PyTorch's "
                    "AveragedModel, its .module)"
                )
        follower: dict[str, Tensor] = {name: named[name] for name in self.weights}
        with torch.no_grad():
            for name in self._sparse:
                follower[name].masked_fill_(~self.masks[name].to(follower[name].device), 0)
        self._followers.append(follower)

    def remove(self) -> None:
        """Take the hooks off: training is dense from now on, masks and counts stay readable."""
        self._gathering.remove()
        if self._step_hook is not None:
            self._step_hook.remove()
        _ACTIVE.discard(self)

    def __getstate__(self) -> NoReturn:
        raise ValueError(
            "SparseTraining can't be copied or pickled, its hooks are on this model and optimiser: copy or save these and state_dict(), "
            "and build it anew on the copies with state="
        )

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed training needs beside model and optimiser: tensors, numbers and text."""
        return {
            "format": FORMAT,
            "step": self.step,
            "moves": self.moves,
            "owed": self._owed,
            "seed": self.seed,
            "every": self.every,
            "growth": str(self.growth),
            "pattern": str(self.pattern),
            "gather_at": sorted(self.gather_at),
            "shapes": {name: list(weight.shape) for name, weight in self.weights.items()},
            "budget": dict(self.budget),
            "masks": {name: pack_bits(mask).cpu() for name, mask in self.masks.items()},
            "ever": {name: pack_bits(mask).cpu() for name, mask in self.ever.items()},
            "kept": {name: gradient.clone() for name, gradient in self._gathering.sums.items()},
            "ledger": None if self.ledger is None else self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the model and the optimiser load their own states, at any time after this was built.

        Building it masks the weights anew: where they are loaded before that, pass ``state`` to the constructor instead.

        Raises:
            ValueError: the state of something else, or of a training with other settings.
        """
        with alike("the state", self._device) as texts:
            found = read(state, self.state_dict(), self.weights, self.pattern)
            if self.ledger is not None:
                self.ledger.load_state_dict(state["ledger"])
            texts.append(f"{found.step} {found.moves} {found.owed} {found.gather_at} {digest(found.masks)} {digest(found.ever)}")
        self._take_(found)

    def _take_(self, found: Progress) -> None:
        self._set_(found.masks)
        self.ever = found.ever
        self.step, self.moves, self._owed = found.step, found.moves, found.owed
        self._gathering.drop_step_()
        self._gathering.sums = found.kept
        self._enforce_()
        self.gather_at = found.gather_at


def _check_settings(growth: Growth, pattern: Pattern, every: int, rate: Any, rows: int, seed: int) -> None:
    for name, given, method, examples in (
        ("growth", growth, "score", "Gradient(), Random() or Static()"),
        ("pattern", pattern, "move", "Unstructured(), ConstantFanIn(), NM(2, 4) or Blocks(4, 4)"),
    ):
        if isinstance(given, type) or not hasattr(given, method):
            raise ValueError(f"{name}={given!r}: expected {examples}")
    for name, value, least in (("every", every, 1), ("rows", rows, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    if not callable(rate) and not (isinstance(rate, int | float) and not isinstance(rate, bool) and 0 < rate <= 1):
        raise ValueError(
            f"rate={rate!r}: expected a share of the live weights in (0, 1]; growth=Static() keeps masks as they are"
        )
    if growth.batches > every:
        raise ValueError(f"growth={growth} averages over more steps than every={every}: expected batches ≤ every")
