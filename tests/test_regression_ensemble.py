"""Gaussian members: the loss, the kinds an ensemble may declare, one more layer on all members, stored and combined outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import quorate
from ensemble_contract import check_ensemble
from quorate import DeepEnsemble, Outputs, gaussian_loss
from quorate.ensemble import MemberStage, OutputLayer, kind_of


def test_loss_is_the_likelihood_in_fp64() -> None:
    outputs, targets = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    mean, log_variance = outputs.chunk(2, -1)
    expected = -torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(targets).sum(-1).mean(-1)
    torch.testing.assert_close(gaussian_loss(outputs, targets), expected.sum(), rtol=1e-12, atol=0)
    torch.testing.assert_close(gaussian_loss(outputs, targets, "mean"), expected.mean(), rtol=1e-12, atol=0)
    own = torch.randn(3, 5, 2, dtype=torch.float64)
    alone = [gaussian_loss(outputs[m : m + 1], own[m]) for m in range(3)]
    torch.testing.assert_close(gaussian_loss(outputs, own), sum(alone[1:], alone[0]), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("outputs", "targets", "said"),
    [
        (torch.zeros(5, 4), torch.zeros(5, 2), r"expected member-first \(M, B, 2D\)"),
        (torch.zeros(3, 5, 3), torch.zeros(5, 2), r"expected member-first \(M, B, 2D\)"),
        (torch.zeros(3, 5, 4), torch.zeros(5), r"targets of shape \(5,\): expected \(5, 2\)"),
        (torch.zeros(3, 5, 4), torch.zeros(5, 4), r"targets of shape \(5, 4\): expected \(5, 2\)"),
    ],
)
def test_loss_refuses(outputs: torch.Tensor, targets: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        gaussian_loss(outputs, targets)
    with pytest.raises(ValueError, match="reduction='max'"):
        gaussian_loss(torch.zeros(1, 1, 2), torch.zeros(1, 1), "max")  # type: ignore[arg-type]


def member() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def gaussians() -> DeepEnsemble:
    return DeepEnsemble(
        [nn.Sequential(member(), quorate.data.GaussianOutput([1.0, -5.0], [2.0, 0.1])) for _ in range(3)], "gaussian"
    )


def packed() -> OutputLayer:
    inner = quorate.pack(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), members=2, alpha=2, example=torch.zeros(2, 6)
    )
    return OutputLayer(inner, quorate.data.GaussianOutput([1.0, -5.0], [2.0, 0.1]))


def values() -> DeepEnsemble:
    return DeepEnsemble([member() for _ in range(3)], "values")


class Exits(nn.Module):
    """Two regressions, of which the second, with three members, replaces the first."""

    kind, combine = "values", "last"

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([MemberStage("early", member()), MemberStage("late", values())])

    def stages(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([part(x, {})[0] for part in self.parts])


@pytest.mark.parametrize("make", [gaussians, packed, values, Exits])
def test_contract(make: object) -> None:
    check_ensemble(make, torch.randn(7, 6))  # type: ignore[arg-type]


def test_kinds() -> None:
    assert (kind_of(gaussians()), kind_of(packed()), kind_of(DeepEnsemble([member()]))) == ("gaussian", "gaussian", "logits")
    assert kind_of(DeepEnsemble([member()], "values")) == kind_of(OutputLayer(member(), member(), "values")) == "values"
    odd = member()
    odd.kind = "probs"  # type: ignore[assignment]
    for make in (lambda: kind_of(odd), lambda: DeepEnsemble([member()], "top1"), lambda: OutputLayer(member(), member(), "x")):  # type: ignore[arg-type]
        with pytest.raises(
            ValueError, match=r"expected 'logits', or for a regression 'values' or 'gaussian' \(means and log-var"
        ):
            make()


def test_layer_acts_on_every_member() -> None:
    ensemble, x = packed(), torch.randn(5, 6)
    inner = ensemble.ensemble(x)
    torch.testing.assert_close(ensemble(x), torch.stack([ensemble.layer(inner[m]) for m in range(2)]))


def test_collected_outputs_and_their_mixture() -> None:
    ensemble = gaussians().eval()
    x, y = (
        np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32),
        np.random.default_rng(1).normal(size=(9, 2)).astype(np.float32),
    )
    found = quorate.collect(ensemble, torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), batch_size=4)
    assert (found.kind, found.width, found.members) == ("gaussian", 2, (1, 1, 1))
    np.testing.assert_array_equal(found.truth(), y)
    for stop in (None, 2):
        means, variances = found.gaussians(stop)
        with torch.no_grad():
            raw = ensemble(torch.from_numpy(x))[:stop].double().numpy()
        np.testing.assert_allclose(means, raw[..., :2], rtol=1e-6)
        np.testing.assert_allclose(variances, np.exp(raw[..., 2:]), rtol=1e-5)
        mean, variance = found.gaussian(stop)
        np.testing.assert_allclose(mean, means.mean(0), rtol=1e-12)
        np.testing.assert_allclose(variance, (variances + means**2).mean(0) - means.mean(0) ** 2, rtol=1e-9)
        expected = quorate.metrics.mixture_moments(means, variances)
        np.testing.assert_allclose((mean, variance), expected, rtol=1e-12)
    assert math.isclose(float(found.gaussian(1)[1][0, 0]), float(found.gaussians(1)[1][0, 0, 0]))
    with pytest.raises(ValueError, match="means and variances need kind='gaussian', these Outputs hold 'logits'"):
        Outputs([np.zeros((3, 2))]).gaussian()


@pytest.mark.parametrize(("make", "combine", "members"), [(values, "probs", (1, 1, 1)), (Exits, "last", (1, 3))])
def test_collected_values(make: Callable[[], nn.Module], combine: str, members: tuple[int, ...], tmp_path: Path) -> None:
    ensemble, x = make().eval(), torch.randn(9, 6)
    y = torch.randn(9, 4)
    found = quorate.collect(ensemble, torch.utils.data.TensorDataset(x, y), batch_size=4)
    assert (found.kind, found.combine, found.width, found.members) == ("values", combine, 4, members)
    np.testing.assert_array_equal(found.truth(), y)
    with torch.no_grad():
        np.testing.assert_allclose(np.concatenate(found.values), ensemble(x), rtol=1e-6, atol=1e-6)
    found.save(tmp_path / "values.safetensors")
    again = Outputs.load(tmp_path / "values.safetensors").rows([3, 1]).prefix(1)
    assert (again.kind, again.combine) == ("values", combine)
    np.testing.assert_array_equal(again.values[0], found.values[0][:, [3, 1]])
    with pytest.raises(ValueError, match="needs scores of every class, these Outputs hold 'values'"):
        found.predictions()


def test_training_refuses_plain_values() -> None:
    rows = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    data = quorate.data.arrays((rows, rows[:, :4]), targets=list("abcd"))
    with pytest.raises(ValueError, match="the ensemble's members give values, a regression needs gaussian"):
        quorate.fit(values(), data, epochs=1, progress=False)
