"""Dynamic sparse training of any network in anyone's loop: the live weights are few, and which ones they are moves as training goes.

Sources: FreeTickets, Liu et al. 2022 (arXiv 2106.14568), §3.1; SET, Mocanu et al. 2018 (arXiv 1707.04780); RigL, Evci et al. 2020
(arXiv 1911.11134), algorithm 1. Every ``every`` optimiser steps, in each sparse layer with
nnz live weights,

    n = ⌈rate · nnz⌉;   the n live weights of least |w| are dropped;   n dead ones are grown, of the largest |gradient| or at random

A grown weight starts at 0, with the optimiser's state at 0. Dead weights are exactly 0 after every step of the optimiser.

It works by hooks: a tensor hook per weight keeps the raw gradient where growth needs it (summed over micro-batches, averaged over
data-parallel processes) and hands on the masked one, so that clipping and the optimiser never see dead weights; a hook on the optimiser's
step enforces the masks and moves them, so that a step skipped by a gradient scaler does not count. Neither is part of a compiled graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from quorate.tickets import density as densities
from quorate.tickets.agreement import average_, check_same, first_decides
from quorate.tickets.growth import Gradient, Growth
from quorate.tickets.ledger import Ledger
from quorate.tickets.masks import Masks, Multipliers, pack_bits, unpack_bits
from quorate.tickets.patterns import Pattern, Unstructured
from quorate.tickets.weights import sparse_weights, unwrapped

Distribution = Literal["erk", "uniform", "mac_aware"]
FORMAT = "quorate-sparse-training/1"


class SparseTraining:
    """Makes the training of ``model`` by ``optimizer`` sparse, from now on, and keeps its masks.

    Build it when the optimiser is there and before the first step, then train as before:

        sparse = SparseTraining(model, optimizer, density=0.2, every=1000)

    The model may be wrapped for ``torch.compile`` or ``DistributedDataParallel``, before or after.

    Args:
        model: any network. Its weights are masked in place.
        optimizer: any PyTorch optimiser of its weights.
        density: share of the weights of sparse layers that are live, in (0, 1]; or densities by weight name.
        growth: which dead weights come to life: :class:`Gradient` (RigL), :class:`Random` (SET), :class:`Static` (masks never move).
        pattern: the form that live weights take: :class:`Unstructured`, :class:`ConstantFanIn`, :class:`NM`, :class:`Blocks`.
        every: optimiser steps between two moves (ΔT).
        rate: share of a layer's live weights that a move drops; or a function of the number of steps so far, where 0 means no move.
        distribution: of the density over layers: ``"erk"``, ``"uniform"``, or ``"mac_aware"``, which needs ``example``.
        dense: names of weights that stay dense.
        only: names of the weights that are sparse, instead of all of convolutions, linear layers and attention.
        example: a small batch of inputs; with it ``ledger`` counts multiply-adds.
        rows: inputs per optimiser step, of all micro-batches and processes, for the ledger; may be set anew before any step.
        rescale: multiply the first weights by 1/√density of their layer, so that what a layer gives varies as much as the dense network's
            (Evci et al. 2022, arXiv 2010.03533, §3.1); without norms, sparse networks hardly learn otherwise.
        seed: of first masks and random growth, which depend on (seed, move, layer) alone.
        state: what :meth:`state_dict` gave, to go on with a model whose weights are loaded already; no first masks are drawn then.

    Attributes:
        masks: by weight name, plain data, True = live. A new dict after every move; not to be changed in place.
        ever: the weights that were ever live, in the same form.
        step: optimiser steps so far. moves: moves so far, escapes with them.
        ledger: what the training has cost, or None.
        gather_at: numbers of steps at whose end the masks stand still and the gradients are kept, for a :meth:`move_` that follows.

    Raises:
        ValueError: an impossible setting, a density too low to keep a weight per output, weights that the pattern does not fit, an
            optimiser that does not train all sparse weights.
        RuntimeError: data-parallel processes whose masks differ.
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
        _check_settings(growth, every, rate, rows, seed)
        self.model, self.optimizer = unwrapped(model), optimizer
        self.growth, self.pattern, self.every, self.rate = growth, pattern, every, rate
        self.rows, self.seed = rows, seed
        self.weights: dict[str, nn.Parameter] = sparse_weights(model, dense, only)
        _check_optimizer(self.weights, optimizer)
        self.ledger = None if example is None else Ledger.of_model(self.model, example, list(self.weights))
        self.budget = budgets(self.weights, density, distribution, pattern, self.ledger)
        self.step = self.moves = 0
        self.gather_at: Collection[int] = frozenset()
        self.ever: Masks = {}
        self._device = next(iter(self.weights.values())).device
        self._owed = False  # a move that waits for gradients that are numbers
        self._kept: dict[str, Tensor] = {}  # sums of the raw gradients of whole steps
        self._current: dict[str, Tensor] = {}  # of the step under way
        self._followers: list[dict[str, Tensor]] = []
        drawn = {
            name: pattern.draw(tuple(w.shape), self.budget[name], self._rng(i))
            for i, (name, w) in enumerate(self.weights.items())
        }
        self._set_(first_decides({name: mask.to(self.weights[name].device) for name, mask in drawn.items()}, self._device))
        check_same(self.masks, self._device)
        if state is None:
            self._clear_(self.masks)
            if rescale:
                self._rescale_()
        else:
            self.load_state_dict(state)
        self._gathering = self._gathers(self.step + 1)
        moving = {name for name, weight in self.weights.items() if self.budget[name] < weight.numel()}
        self._hooks = [self.weights[name].register_hook(self._hook(name)) for name in moving if self.weights[name].requires_grad]
        self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    def _rng(self, layer: int) -> np.random.Generator:
        """Of the coming move; of the first masks while there was none."""
        return np.random.default_rng([self.seed, self.moves + bool(self.ever), layer])

    def _hook(self, name: str) -> Callable[[Tensor], Tensor]:
        weight = self.weights[name]

        @torch.no_grad()
        def keep_and_mask(gradient: Tensor) -> Tensor:
            if self._gathering:
                if weight.grad is None or name not in self._current:  # the first micro-batch, also after a step that was skipped
                    self._current[name] = gradient.detach().clone()
                else:
                    self._current[name].add_(gradient)
            return self._multipliers.masked(self._place[name], gradient)

        return keep_and_mask

    @torch.no_grad()
    def _rescale_(self) -> None:
        for name in self._sparse:
            self.weights[name].mul_(math.sqrt(self.weights[name].numel() / self.live[name]))

    # after every step of the optimiser

    def _after_step(self, *_: Any) -> None:
        self._enforce_()
        self.step += 1
        if self.ledger is not None:
            self.ledger.step_(self.live, self.rows, self._gathering)
        for name, gradient in self._current.items():
            self._kept[name] = self._kept[name].add_(gradient) if name in self._kept else gradient
        self._current = {}
        self._owed |= self._due(self.step)
        if self._owed and self.step not in self.gather_at and self._gradients_ready_():
            self._move_(self._rate(self.step))
        self._gathering = self._gathers(self.step + 1)
        if not self._gathering and self.step not in self.gather_at:
            self._kept = {}

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
        return bool(window) and (self._owed or any(later in self.gather_at or self._due(later) for later in window))

    def _gradients_ready_(self) -> bool:
        """Whether growth has what it needs; averages the gradients over processes. After an overflow it begins to keep them anew."""
        if not self.growth.batches:
            return True
        average_(list(self._kept.values()))
        ready = all(name in self._kept and bool(self._kept[name].isfinite().all()) for name in self._trained())
        if not ready:
            self._kept = {}
        return ready

    def _trained(self) -> list[str]:
        """The weights that can move: sparse and not frozen."""
        return [name for name, weight in self.weights.items() if self.live[name] < weight.numel() and weight.requires_grad]

    @torch.no_grad()
    def _enforce_(self) -> None:
        self._multipliers.apply_([self.weights[name] for name in self._sparse])

    # moves

    def move_(self, rate: float) -> None:
        """Drop this share of every layer's live weights and grow as many, now. An escape of EDST is such a move, with a rate of about 0.8.

        Raises:
            ValueError: a rate outside of [0, 1], masks that never move, or growth by gradients when none were kept.
        """
        if not 0 <= rate <= 1:
            raise ValueError(f"rate={rate!r}: expected a share of the live weights in [0, 1]")
        if not self.growth.moves:
            raise ValueError("growth=Static(): expected growth that moves masks, Gradient() or Random()")
        if not self._gradients_ready_():
            raise ValueError(
                f"no gradients were kept at step {self.step} for growth={self.growth}: put that number into gather_at before the step, or "
                "use growth=Random()"
            )
        self._move_(rate)
        self._gathering = self._gathers(self.step + 1)

    @torch.no_grad()
    def _move_(self, rate: float) -> None:
        moved, trained = dict(self.masks), set(self._trained())
        for i, name in enumerate(self.weights):
            if name in trained:
                weight = self.weights[name].detach()
                score = self.growth.score(self._kept.get(name), weight, self._rng(i))
                moved[name] = self.pattern.move(weight, self.masks[name], rate, score, live=self.budget[name])
        moved = first_decides(moved, self._device)
        check_same(moved, self._device)
        survivors = {name: mask & self.masks[name] for name, mask in moved.items()}
        self._set_(moved)
        self.moves += 1
        self._owed, self._kept = False, {}
        self._clear_(survivors)

    def _set_(self, masks: Masks) -> None:
        """Take over masks, and all that is kept of them."""
        self.masks = masks
        self.ever = {name: mask | self.ever[name] if self.ever else mask.clone() for name, mask in masks.items()}
        self.live = {name: int(mask.sum()) for name, mask in masks.items()}
        self._sparse = [name for name, weight in self.weights.items() if self.live[name] < weight.numel()]
        self._place = {name: at for at, name in enumerate(self._sparse)}
        self._multipliers = Multipliers([self.weights[name] for name in self._sparse], [masks[name] for name in self._sparse])

    @torch.no_grad()
    def _clear_(self, survivors: Masks) -> None:
        """0 where weights are dead; 0 the optimiser's state, and what followers hold, where weights did not survive."""
        for name in self._sparse:
            weight, gone = self.weights[name], ~survivors[name]
            weight.masked_fill_(~self.masks[name], 0)
            for state in self.optimizer.state.get(weight, {}).values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    state.masked_fill_(gone, 0)
            for follower in self._followers:
                follower[name].masked_fill_(gone.to(follower[name].device), 0)

    # what else there is

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
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

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
            "kept": {name: gradient.clone() for name, gradient in self._kept.items()},
            "ledger": None if self.ledger is None else self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken; the model and the optimiser load their own states, at any time after this was built.

        Building it masks the weights anew: where they are loaded before that, pass ``state`` to the constructor instead.

        Raises:
            ValueError: the state of something else, or of a training with other settings.
        """
        if state.get("format") != FORMAT:
            raise ValueError(
                f"the state has format {state.get('format')!r}: expected {FORMAT!r}, from SparseTraining.state_dict()"
            )
        own = self.state_dict()
        for key in ("seed", "every", "growth", "pattern", "shapes", "budget"):
            if state.get(key) != own[key]:
                raise ValueError(
                    f"the state is of a training with another {key} (there {_brief(state.get(key))}, here {_brief(own[key])}): build alike"
                )
        shapes = {name: tuple(weight.shape) for name, weight in self.weights.items()}
        masks, ever = (
            {name: unpack_bits(state[key][name], shapes[name]).to(self.weights[name].device) for name in shapes}
            for key in ("masks", "ever")
        )
        self._set_(masks)
        self.ever = ever
        self.step, self.moves, self._owed = int(state["step"]), int(state["moves"]), bool(state["owed"])
        self.gather_at = frozenset(state["gather_at"])
        self._kept = {name: gradient.to(self.weights[name].device, copy=True) for name, gradient in state["kept"].items()}
        self._current = {}
        if self.ledger is not None and state["ledger"] is not None:
            self.ledger.load_state_dict(state["ledger"])
        check_same(self.masks, self._device)
        self._enforce_()
        self._gathering = self._gathers(self.step + 1)


def budgets(
    weights: Mapping[str, Tensor],
    density: float | Mapping[str, float],
    distribution: Distribution,
    pattern: Pattern,
    ledger: Ledger | None,
) -> dict[str, int]:
    """Live weights of each layer, as the density, its distribution and the pattern say.

    Raises:
        ValueError: densities that can't be had, or do not name the layers.
    """
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    if isinstance(density, Mapping):
        missing = [name for name in shapes if name not in density] + [name for name in density if name not in shapes]
        if missing:
            raise ValueError(
                f"density by name and the sparse weights differ in {missing[0]!r}: expected one density for each of {list(shapes)}"
            )
        given = {name: float(density[name]) for name in shapes}
    elif distribution == "mac_aware":
        if ledger is None:
            raise ValueError("distribution='mac_aware' has to know what a weight costs: pass example=, a small batch of inputs")
        given = densities.mac_aware(shapes, density, ledger.macs)
    elif distribution in get_args(Distribution):
        given = (densities.erk if distribution == "erk" else densities.uniform)(shapes, density)
    else:
        raise ValueError(f"distribution={distribution!r}: expected one of {', '.join(get_args(Distribution))}")
    wanted = densities.counts(shapes, given)
    full = {name for name in shapes if wanted[name] == weights[name].numel()}
    return {name: wanted[name] if name in full else pattern.live(name, shapes[name], wanted[name]) for name in shapes}


def _check_settings(growth: Growth, every: int, rate: Any, rows: int, seed: int) -> None:
    for name, value, least in (("every", every, 1), ("rows", rows, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}={value!r}: expected an integer of at least {least}")
    if not callable(rate) and not (isinstance(rate, int | float) and 0 < rate <= 1):
        raise ValueError(
            f"rate={rate!r}: expected a share of the live weights in (0, 1]; growth=Static() keeps masks as they are"
        )
    if growth.batches > every:
        raise ValueError(f"growth={growth} averages over more steps than every={every}: expected batches ≤ every")


def _check_optimizer(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = [name for name, weight in weights.items() if id(weight) not in trained and weight.requires_grad]
    if left:
        whose = "none of them" if len(left) == len(weights) else f"not {left[0]!r}"
        raise ValueError(
            f"the optimiser trains {whose} of the model's {len(weights)} sparse weights: make it from this model's parameters (after "
            "the model was moved or copied), or name what it leaves out in dense=[…]"
        )


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
