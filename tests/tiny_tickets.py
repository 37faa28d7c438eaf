"""What the tests of tickets under ``fit`` share: a small network and data set, the settings, and regimes that note all they do.

Training rows: 72 digits, 6 steps of 12 in each epoch. Per row the network costs 4608 + 13824 + 96 multiply-adds in weights of 72, 864, 96.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quorate.data import Data, digits
from quorate.ensemble import evaluating
from quorate.tickets import DST, EDST, Masks, Random
from quorate.tickets.dst import DSTRegime
from quorate.tickets.edst import EDSTRegime
from quorate.training import Fitted, Loader, Regime, Settings, fit

DATA = digits(fractions=(0.05, 0.06, 0.03, 0.03))
BATCH, STEPS = 12, 6
MACS = {"1.weight": 8 * 9 * 64, "4.weight": 12 * 8 * 9 * 16, "9.weight": 8 * 12}
SIZES = {"1.weight": 72, "4.weight": 864, "9.weight": 96}
PLAIN: dict[str, Any] = {"density": 0.3, "distribution": "uniform", "growth": Random(), "every": 4}
LIVE = {name: round(0.3 * size) for name, size in SIZES.items()}
FORWARD = sum(Fraction(MACS[name] * LIVE[name], SIZES[name]) for name in MACS)  # f_S


def network(seed: int = 0, data: Data = DATA) -> nn.Module:
    """Two convolutions with batch statistics and a linear layer."""
    torch.manual_seed(seed)
    return nn.Sequential(
        data.normalise(),
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 8),
    )


def edst(members: int = 3, seed: int = 0, **options: Any) -> EDST:
    """Of :func:`network`; by default it explores for two epochs."""
    return EDST(network(seed), members, **{**PLAIN, "exploration": 2, **options})


def dst(members: int = 2, **options: Any) -> DST:
    """Of as many networks."""
    return DST([network(m) for m in range(members)], **{**PLAIN, **options})


def quick(ensemble: nn.Module, run: Path | None = None, data: Data = DATA, **settings: Any) -> Fitted:
    """Train it: eight epochs, if nothing else is said."""
    chosen: dict[str, Any] = {"epochs": 8, "batch_size": BATCH, "lr": 0.1, "schedule": "constant", "accelerator": "cpu"}
    return fit(ensemble, data, run=run, progress=False, tensorboard=False, **{**chosen, **settings})


@dataclass
class Moment:
    """A network and all that trains it, copied."""

    state: dict[str, Tensor]
    masks: Masks
    momentum: dict[str, Tensor]
    lr: float


class Watch:
    """Moments of a training: ``steps[t]`` after step t = 1, …, ``ends[e]`` and ``after[e]`` before and after the end of epoch e = 1, …"""

    def __init__(self) -> None:
        self.steps: dict[int, Moment] = {}
        self.ends: dict[int, Moment] = {}
        self.after: dict[int, Moment] = {}
        self.taken: list[tuple[int, int]] = []

    def moment(self, sparse: Any, optimizer: torch.optim.Optimizer) -> Moment:
        """How things are."""
        network, state = sparse.model, optimizer.state
        return Moment(
            {name: tensor.clone() for name, tensor in network.state_dict().items()},
            {name: mask.clone() for name, mask in sparse.masks.items()},
            {n: state[p]["momentum_buffer"].clone() for n, p in network.named_parameters() if "momentum_buffer" in state[p]},
            optimizer.param_groups[0]["lr"],
        )

    def moved(self) -> list[int]:
        """The steps at whose end masks moved."""
        return [t for t in sorted(self.steps)[1:] if changed(self.before(t), self.steps[t].masks)]

    def before(self, step: int) -> Masks:
        """The masks during a step."""
        epoch, inside = divmod(step - 1, STEPS)
        return self.after[epoch].masks if epoch and not inside else self.steps[step - 1].masks


def changed(a: Masks, b: Masks) -> bool:
    return any(not torch.equal(a[name], b[name]) for name in a)


class WatchedEDST(EDST):
    """EDST that is watched."""

    watch: Watch

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        return _WatchedEDST(self, settings, loader)

    def set_ticket_(self, m: int, state: Mapping[str, Tensor], masks: Masks) -> None:
        self.watch.taken.append((max(self.watch.steps) // STEPS, m))
        super().set_ticket_(m, state, masks)


class _WatchedEDST(EDSTRegime):
    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        super().begin_(optimizer, state)
        self.watch, self.optimizer = self.ensemble.watch, optimizer  # type: ignore[attr-defined]
        self.watch.steps[0] = self.watch.moment(self.sparse, optimizer)

    def after_step_(self, step: int) -> None:
        self.watch.steps[step] = self.watch.moment(self.sparse, self.optimizer)

    def after_validation_(self, step: int, members: list[dict[str, float]]) -> None:
        self.watch.ends[step // STEPS] = self.watch.moment(self.sparse, self.optimizer)
        super().after_validation_(step, members)
        self.watch.after[step // STEPS] = self.watch.moment(self.sparse, self.optimizer)


def watched(members: int = 3, seed: int = 0, **options: Any) -> WatchedEDST:
    """As :func:`edst`, with a :class:`Watch`."""
    ensemble = WatchedEDST(network(seed), members, **{**PLAIN, "exploration": 2, **options})
    ensemble.watch = Watch()
    return ensemble


class WatchedDST(DST):
    """DST whose members are watched, one :class:`Watch` each."""

    watches: list[Watch]

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        self.watches = [Watch() for _ in self.members]
        return _WatchedDST(self, settings, loader)


class _WatchedDST(DSTRegime):
    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        super().begin_(optimizer, state)
        self.optimizer = optimizer
        self._note("steps", 0)

    def after_step_(self, step: int) -> None:
        self._note("steps", step)
        if step % STEPS == 0:
            self._note("after", step // STEPS)

    def _note(self, what: str, when: int) -> None:
        for watch, sparse in zip(self.ensemble.watches, self.sparse, strict=True):  # type: ignore[attr-defined]
            getattr(watch, what)[when] = watch.moment(sparse, self.optimizer)


def loaded(state: Mapping[str, Tensor]) -> nn.Module:
    """The network with this state, in eval mode."""
    made = network().eval()
    made.load_state_dict(dict(state))
    return made


def figures(models: list[nn.Module], data: Data = DATA) -> tuple[float, float]:
    """(accuracy, NLL) of the mean probabilities of networks on the validation data as they are, in fp64."""
    x, y = data.validation.batch(np.arange(len(data.validation)))
    probs = []
    for model in models:
        with torch.no_grad(), evaluating(model):
            probs.append(model(x).double().softmax(-1))
    mean = torch.stack(probs).mean(0)
    return float((mean.argmax(-1) == y).double().mean()), float(-mean[torch.arange(len(y)), y].log().mean())


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Bit-equal, name by name."""
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())
