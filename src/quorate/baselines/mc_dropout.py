"""MC dropout: the members are one network under M fixed draws of its dropout masks, a sample of the approximate posterior.

Source: Gal & Ghahramani 2016 (arXiv 1506.02142), eq. 6 with the weights W_l diag(z_l), z_l ~ Bernoulli(1 − p_l):

    p(y | x) ≈ (1/M) Σ_m softmax(f(x; ω_m)),    ω_m drawn from q(ω)

Member m is one draw ω_m for all inputs: its masks are shared by the rows of a batch, so that a row's result depends on no other row and
an input always meets the same M networks. A kept value is scaled by 1 / (1 − p), as in training. The masks are drawn where a layer is
called, as a pure function of (seed, member, layer, call within the pass, shape), the same on every device.

Shapes: x (B, …) → (M, B, C); in training (1, B, C) with PyTorch's own dropout, a mask per row. A mask has the shape of the layer's input
without the batch; for ``Dropout1d``, ``2d`` and ``3d`` a value per channel.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._python_dispatch import _get_current_dispatch_mode

from quorate.combination import Combine
from quorate.data.counter import bits, counter
from quorate.ensemble import MemberStage, kind_of

CHANNELS: dict[type, int] = {nn.Dropout1d: 3, nn.Dropout2d: 4, nn.Dropout3d: 5}
"""Dropouts of whole channels, and the axes of their batched inputs."""
KNOWN = (nn.Dropout, *CHANNELS)


def keep_mask(seed: int, member: int, layer: int, call: int, p: float, shape: tuple[int, ...]) -> np.ndarray:
    """Which values of ``shape`` a layer of dropout probability p keeps: 64 bits each, by :mod:`quorate.data.counter`."""
    draws = bits(seed, (member, layer, call), np.arange(math.prod(shape))) >> np.uint64(11)
    return np.asarray(draws.astype(np.float64) * 2.0**-53 >= p).reshape(shape)


@dataclass
class _Pass:
    """One member's pass under way in this thread: whose, which member, how many rows, and how often each layer was called."""

    owner: _Masks
    member: int
    rows: int
    calls: dict[int, int] = field(default_factory=dict)


_running: ContextVar[_Pass | None] = ContextVar("quorate_mc_dropout", default=None)


class _Masks:
    """The masks of one ensemble: applied by hooks on the dropout layers, which act in its own passes only."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._held: dict[tuple[int, int, int], tuple[tuple[Any, ...], np.ndarray]] = {}

    def keep(self, member: int, layer: int, call: int, p: float, shape: tuple[int, ...]) -> np.ndarray:
        """The mask of a place, drawn when its shape or probability is new there."""
        of, mask = self._held.get((member, layer, call), (None, None))
        if mask is None or of != (p, shape):
            mask = keep_mask(self.seed, member, layer, call, p, shape)
            self._held[member, layer, call] = (p, shape), mask
        return mask

    @contextmanager
    def member(self, member: int, rows: int) -> Iterator[_Pass]:
        """The pass of a member over so many rows."""
        token = _running.set(now := _Pass(self, member, rows))
        try:
            yield now
        finally:
            _running.reset(token)


class _Hook:
    """What stands behind a dropout layer: the masked input in a member's pass, the layer's own output otherwise."""

    def __init__(self, masks: _Masks, layer: int, name: str) -> None:
        self.masks, self.layer, self.name = masks, layer, name

    def __call__(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        now = _running.get()
        if now is None or now.owner is not self.masks:
            return output
        x: Tensor = args[0]
        call = now.calls[self.layer] = now.calls.get(self.layer, -1) + 1
        shape = self._shape(module, x, now.rows)
        keep = torch.from_numpy(self.masks.keep(now.member, self.layer, call, float(module.p), shape))
        return x * (keep.to(x.device, x.dtype) / (1 - module.p if module.p < 1 else 1.0))

    def _shape(self, module: nn.Module, x: Tensor, rows: int) -> tuple[int, ...]:
        axes = CHANNELS.get(type(module))
        if x.shape[0] != rows or (axes is not None and x.ndim != axes):
            wanted = f"({rows}, …)" if axes is None else f"({rows}, channels{', …' * (axes - 2)})"
            raise ValueError(
                f"dropout {self.name!r} got an input of shape {tuple(x.shape)} for {rows} rows: expected the batch first, {wanted}, "
                "one mask serves all rows"
            )
        return tuple(x.shape[1:]) if axes is None else (x.shape[1], *[1] * (axes - 2))


class MCDropout(nn.Module):
    """One network with dropout as an ensemble of M members, each a stage; trained as the plain network.

    Args:
        model: the network, x → (B, C), with ``nn.Dropout``, ``Dropout1d``, ``2d`` or ``3d`` modules of p > 0. It is held, not copied,
            and gets forward hooks, which do nothing outside this ensemble.
        members: M, how many draws of the masks.
        seed: of the masks, in [0, 2⁶⁴).
        kind: ``"logits"``, or ``"gaussian"`` for a network that gives (B, 2D) means and log-variances.

    The first forward pass looks for randomness of other origin, such as ``functional.dropout(x, training=self.training)`` or attention's
    own dropout: the members could not draw it. Parameters are shared by all members.

    Raises:
        ValueError: fewer than one member, a seed out of range, a network without dropout or with one of another kind (``AlphaDropout``);
            at the first pass, other randomness, or a dropout layer that evaluation passes by; a dropout layer whose input is not batch
            first; a network that does not give (B, C).
    """

    combine: Combine = "probs"

    def __init__(self, model: nn.Module, members: int = 8, seed: int = 0, kind: Literal["logits", "gaussian"] = "logits") -> None:
        super().__init__()
        if not isinstance(members, int) or isinstance(members, bool) or members < 1:
            raise ValueError(f"members={members!r}: expected an integer of at least 1")
        self.model, self.members, self.seed, self.kind = model, members, counter(seed, "seed"), kind
        kind_of(self)
        self._masks, self._checked = _Masks(self.seed), False
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, _DropoutNd) and m.p > 0]
        for name, module in layers:
            if type(module) not in KNOWN:
                raise ValueError(
                    f"dropout {name!r} is {type(module).__name__}: expected {', '.join(k.__name__ for k in KNOWN)}, replace it"
                )
        if not layers:
            raise ValueError(
                f"{type(model).__name__} has no dropout module with p > 0, so all members would be equal: build it with dropout, e.g. "
                "MLP(…, dropout=0.2), or use DeepEnsemble"
            )
        for layer, (name, module) in enumerate(layers):
            module.register_forward_hook(_Hook(self._masks, layer, name))

    @property
    def learner(self) -> nn.Module:
        """The network that is trained."""
        return self.model

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of the parameters that several members read: all of them."""
        return tuple(name for name, _ in self.named_parameters())

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (M, B, C); in train mode the plain network's (1, B, C)."""
        self._check_once(x)
        if self.training:
            return _check_width(self.model(x))[None]
        return torch.stack([self.member(m, x) for m in range(self.members)])

    def member(self, m: int, x: Tensor) -> Tensor:
        """The logits (B, C) of member m."""
        with self._masks.member(m, x.shape[0]):
            return _check_width(self.model(x))

    def stages(self) -> list[nn.Module]:
        """One stage per member, named ``member0`` …."""
        return [MemberStage(f"member{m}", _Member(self, m)) for m in range(self.members)]

    def extra_repr(self) -> str:
        return f"members={self.members}, seed={self.seed}"

    def _check_once(self, x: Tensor) -> None:
        if not self._checked and _get_current_dispatch_mode() is None:  # not while it is exported or counted
            check_randomness(self.model, x[:2], self._masks)
            self._checked = True


class _Member(nn.Module):
    """One member of an MC dropout ensemble as a module, x → (B, C)."""

    def __init__(self, ensemble: MCDropout, m: int) -> None:
        super().__init__()
        self.ensemble, self.m = ensemble, m

    def forward(self, x: Tensor) -> Tensor:
        self.ensemble._check_once(x)
        return self.ensemble.member(self.m, x)


def _check_width(logits: Any) -> Tensor:
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the network returned {found}: expected (B, C) logits")
    return logits


@torch.no_grad()
def check_randomness(model: nn.Module, x: Tensor, masks: _Masks) -> None:
    """A ValueError unless dropout modules are the only randomness of training, and evaluation calls all that training calls.

    A pass in train mode but for dropout and batch normalisation must leave every random generator (PyTorch's, NumPy's, Python's) where
    it was. The model's modes and buffers, and the generators, stay as they are.
    """
    modes = [(module, module.training) for module in model.modules()]
    called: list[set[int]] = []
    states: list[tuple[Any, ...]] = []
    before = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng([x.device.index or 0] if x.is_cuda else []):
            for training in (True, False):
                for module, _ in modes:
                    module.training = training and not isinstance(module, _DropoutNd | _BatchNorm)
                states.append(_random_state(x.device))
                with masks.member(0, x.shape[0]) as now:
                    functional_call(model, {name: buffer.clone() for name, buffer in model.named_buffers()}, (x,))
                called.append(set(now.calls))
    finally:
        np.random.set_state(before[0])  # noqa: NPY002
        random.setstate(before[1])
        for module, mode in modes:
            module.training = mode
    if states[0] != states[1]:
        raise ValueError(
            f"{type(model).__name__} has randomness beside its dropout modules, which members can't draw (functional.dropout, dropout "
            "inside attention or recurrent layers, stochastic depth): use nn.Dropout modules, and 0 inside such layers"
        )
    if called[0] - called[1]:
        raise ValueError(
            f"{type(model).__name__} passes {len(called[0] - called[1])} dropout modules by in evaluation (fused encoder layers do): call "
            "torch.backends.mha.set_fastpath_enabled(False) first"
        )


def _random_state(device: torch.device) -> tuple[Any, ...]:
    """Where the global random generators are, comparable."""
    gpu = [torch.cuda.get_rng_state(device).numpy().tobytes()] if device.type == "cuda" else []
    name, keys, *position = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().numpy().tobytes(), *gpu, name, np.asarray(keys).tobytes(), *position, random.getstate()
