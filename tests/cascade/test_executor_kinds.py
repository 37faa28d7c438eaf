"""Executed equals simulated for every kind of ensemble that has stages, in any batch size and any order of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from quorate.baselines import MCDropout
from quorate.cascade import Cascade, Policy, simulate
from quorate.cascade.drift import Watch
from quorate.cascade.uncertainty import uncertainty as uncertainty_of
from quorate.distil.early import early_students
from quorate.distil.ensemble import Distilled
from quorate.ensemble import DeepEnsemble, collect, stages
from quorate.models import MLP, LeNet
from quorate.models.multi_exit import MultiExitResNet
from quorate.packed import pack
from quorate.tickets.ensemble import Tickets
from quorate.tickets.masks import apply_, draw
from quorate.tickets.weights import sparse_weights

IMAGE, ROWS = (3, 8, 8), 90


def mlp(*hidden: int, dropout: float = 0.0) -> nn.Module:
    return MLP(IMAGE, 4, hidden, dropout=dropout)


def tickets() -> nn.Module:
    rng, models, masks = np.random.default_rng(0), [], []
    for _ in range(3):
        model = mlp(16)
        mask = {name: draw(w.shape, w.numel() // 3, rng) for name, w in sparse_weights(model).items()}
        apply_([model.get_parameter(name) for name in mask], list(mask.values()))
        models.append(model)
        masks.append(mask)
    return Tickets(models, masks)


class Coarser(nn.Module):
    """A network that takes its input at half the resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.body = MLP((3, 4, 4), 4, (8,))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(nn.functional.avg_pool2d(x, 2))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "deep": lambda: DeepEnsemble([mlp(16) for _ in range(3)]),
    "other architectures and resolutions": lambda: DeepEnsemble([Coarser(), mlp(16), LeNet(IMAGE, 4, width=(4, 8), hidden=(8,))]),
    "packed": lambda: pack(mlp(16, 16), members=4, alpha=2),
    "tickets": tickets,
    "dropout": lambda: MCDropout(mlp(16, dropout=0.2), 3, seed=1),
    "exits, last": lambda: MultiExitResNet(IMAGE, 4, depth=8, width=4),
    "exits, averaged": lambda: MultiExitResNet(IMAGE, 4, depth=8, width=4, combine="probs"),
    "students": lambda: Distilled(list(early_students((3, 8), 4, fractions=(0.25, 0.5, 1.0), hidden=(6, 6, 8), pool="running"))),
}


def inputs(name: str) -> Tensor:
    shape = (3, 8) if name == "students" else IMAGE
    return 2 * torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(1))


def decisive(ensemble: nn.Module) -> nn.Module:
    """With larger weights, so that the uncertainties of random networks spread."""
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.mul_(1.5 if parameter.ndim > 1 else 1.0)
    return ensemble.eval()


@pytest.mark.parametrize("name", KINDS)
def test_executed_is_simulated(name: str) -> None:
    torch.manual_seed(0)
    ensemble, x = decisive(KINDS[name]()), inputs(name)
    count = len(stages(ensemble))
    outputs = collect(ensemble, list(x), batch_size=ROWS, costs=[1.0 + k for k in range(count)])
    ends = [np.quantile(uncertainty_of(outputs, stop=k), [0.2, 0.85]).tolist() for k in range(1, count)]
    policy = Policy.of(outputs, [(low, high) for low, high in ends], [0.3] * count)
    simulated, near = simulate(policy, outputs), np.zeros(ROWS, bool)
    for k, stage in enumerate(policy.stages):
        limits: list[Any] = [end for end in (*(stage.window or ()), stage.tau) if end is not None]
        near |= np.abs(uncertainty_of(outputs, stop=k + 1)[:, None] - limits).min(-1) < 1e-6
    assert near.sum() <= 2 * count
    assert count == 1 or len(set(simulated.stage.tolist())) == count
    for batch in (1, 7, 256):
        order = np.random.default_rng(batch).permutation(ROWS)
        made = Cascade(stages(ensemble), policy, batch, 50, watch=Watch.of(policy, outputs) if count > 1 else None, memory=40)
        executed, far = made.predict(x[order]), ~near[order]
        for field in ("label", "stage", "accepted", "macs"):
            np.testing.assert_array_equal(getattr(executed, field)[far], getattr(simulated, field)[order][far], err_msg=field)
        np.testing.assert_allclose(executed.probs[far], simulated.probs[order][far], atol=1e-5)  # type: ignore[index]
        assert [one.rows for one in made.counters.stages] == [(executed.stage >= k).sum() for k in range(count)]
        assert made.watch is None or made.watch.alarms == ()


@pytest.mark.parametrize("name", ["deep", "exits, last", "students"])
def test_nan_of_a_network_names_the_callers_rows(name: str) -> None:
    torch.manual_seed(0)
    ensemble, x = decisive(KINDS[name]()), inputs(name)
    outputs = collect(ensemble, list(x), batch_size=ROWS)
    x[[17, 60]] = torch.nan
    with pytest.raises(ValueError, match=rf"stage '{outputs.names[0]}' has NaN or infinite values in rows 17, 60: mend or drop"):
        Cascade(stages(ensemble), Policy.of(outputs)).predict(x)
