"""MC dropout: the contract, masks against a pass with the masks written out, their distribution, and every refusal."""

from __future__ import annotations

import copy
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import quorate
from ensemble_contract import check_ensemble
from quorate.baselines import MCDropout
from quorate.baselines.mc_dropout import keep_mask
from quorate.data import Normalise, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.training import fit

IMAGE = (3, 8, 8)


def images(rows: int = 6) -> Tensor:
    return torch.randint(0, 256, (rows, *IMAGE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


class Convolutional(nn.Module):
    """Dropout of whole channels, then of values; batch statistics between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.channels = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout2d(0.3)
        self.values, self.head = nn.Dropout(0.5, inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.values(self.channels(self.norm(self.conv(x)).relu()).mean((2, 3))))


def raw(model: nn.Module) -> nn.Module:
    return nn.Sequential(Normalise((100.0, 120.0, 140.0), (60.0, 70.0, 80.0), IMAGE), model)


NETWORKS = {"mlp": lambda: MLP(IMAGE, 3, (16, 12), dropout=0.2, norm=True), "convolutional": Convolutional}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("members", [1, 3])
def test_it_keeps_the_contract(name: str, members: int) -> None:
    check_ensemble(lambda: MCDropout(raw(NETWORKS[name]()), members, seed=5), images())


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.4), nn.ReLU(), nn.Dropout(0.25), nn.Linear(6, 3)).eval()


def test_members_are_passes_under_masks() -> None:
    model, x = small(), torch.randn(5, 4)
    logits = MCDropout(model, 3, seed=9).eval()(x)
    for m in range(3):
        first, second = (torch.from_numpy(keep_mask(9, m, layer, 0, p, (6,))) for layer, p in ((0, 0.4), (1, 0.25)))
        hidden = (model[0](x) * first / 0.6).relu() * second / 0.75
        torch.testing.assert_close(logits[m], model[4](hidden))


def test_channels_are_dropped_whole() -> None:
    x = torch.rand(2, 5, 4, 3) + 1
    model = nn.Sequential(nn.Dropout2d(0.5), nn.Flatten())
    logits = MCDropout(model, 2).eval()(x)
    for m in range(2):
        kept = torch.from_numpy(keep_mask(0, m, 0, 0, 0.5, (5, 1, 1)))
        torch.testing.assert_close(logits[m], (2 * x * kept).flatten(1))


def test_masks_are_bernoulli_draws_of_their_place() -> None:
    mask = keep_mask(1, 0, 0, 0, 0.3, (200, 500))
    assert mask.mean() == pytest.approx(0.7, abs=5 * np.sqrt(0.21 / 100_000))
    np.testing.assert_allclose(np.corrcoef(mask[:20])[np.triu_indices(20, 1)], 0, atol=0.25)
    places = [(2, 0, 0, 0), (1, 1, 0, 0), (1, 0, 1, 0), (1, 0, 0, 1)]
    for place in places:
        assert (keep_mask(*place, 0.3, (200, 500)) == mask).mean() == pytest.approx(0.58, abs=0.01)
    assert keep_mask(1, 0, 0, 0, 0.0, (50,)).all()
    assert not keep_mask(1, 0, 0, 0, 1.0, (50,)).any()


def test_the_mean_over_many_members_is_the_pass_without_dropout() -> None:
    model = nn.Sequential(
        nn.Linear(4, 30), nn.Dropout(0.5), nn.Linear(30, 2)
    ).eval()  # linear after the mask: E[mask / (1−p)] = 1
    x = torch.randn(3, 4)
    logits = MCDropout(model, 2000).eval()(x).double()
    spread = logits.std(0) / np.sqrt(2000)
    assert ((logits.mean(0) - model(x)).abs() < 5 * spread).all()


def test_seed_and_member_decide_and_training_is_plain() -> None:
    model, x = small(), torch.randn(5, 4)
    ensemble = MCDropout(model, 2, seed=3).eval()
    first = ensemble(x)
    assert not torch.equal(first[0], first[1])
    assert torch.equal(MCDropout(copy.deepcopy(model), 4, seed=3).eval()(x)[:2], first)
    assert not torch.equal(MCDropout(copy.deepcopy(model), 2, seed=4).eval()(x), first)
    torch.manual_seed(0)
    plain = copy.deepcopy(model).train()(x)
    torch.manual_seed(0)
    assert torch.equal(ensemble.train()(x), plain[None])
    assert torch.equal(model.eval()(x), copy.deepcopy(model).eval()(x))  # outside the ensemble nothing is masked


def test_ensembles_over_one_network_do_not_meddle() -> None:
    model, x = small(), torch.randn(5, 4)
    one = MCDropout(model, 2, seed=1).eval()
    alone = one(x)
    other = MCDropout(model, 2, seed=2).eval()
    assert torch.equal(one(x), alone)
    assert not torch.equal(other(x), alone)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda k: (one if k % 2 else other)(x), range(40)))
    assert all(torch.equal(result, alone) == bool(k % 2) for k, result in enumerate(results))


def test_a_layer_called_twice_has_two_masks_and_shapes_may_change() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([self.drop(x), self.drop(x)], 1)

    ensemble = MCDropout(Twice(), 1, seed=6).eval()
    for width in (40, 30, 40):
        expected = np.concatenate([keep_mask(6, 0, 0, call, 0.5, (width,)) for call in (0, 1)])
        assert (ensemble(torch.ones(2, width))[0, 0] == 2.0 * torch.from_numpy(expected)).all()


def test_stages_and_cost() -> None:
    ensemble = MCDropout(small(), 3)
    x = torch.randn(4, 4)
    assert (
        quorate.macs(ensemble, x) == 3 * quorate.macs(small(), x) == 3 * (24 + 18)
    )  # the check of the first pass is not counted
    stages = quorate.stages(ensemble, x)
    assert [(stage.name, stage.macs) for stage in stages] == [(f"member{m}", 42.0) for m in range(3)]
    assert ensemble.shared == tuple(name for name, _ in ensemble.named_parameters())
    assert "members=3, seed=0" in repr(ensemble)


def test_it_trains_as_the_plain_network_does() -> None:
    data = digits()

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(data.normalise(), MLP(data.shape, 8, (32,), dropout=0.2, norm=True))

    options: dict[str, Any] = {"epochs": 3, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False}
    plain, ensemble = DeepEnsemble([network()]), MCDropout(network(), 4)
    one, many = fit(plain, data, **options), fit(ensemble, data, **options)
    for a, b in zip(plain.members[0].state_dict().values(), ensemble.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert many.outputs["test"].members == (1, 1, 1, 1)
    assert many.facts["training_macs"] == one.facts["training_macs"]
    assert many.facts["macs"] == 4 * one.facts["macs"]
    assert many.facts["parameters"] == one.facts["parameters"]
    assert float((~many.outputs["test"].errors()).mean()) > 0.6


class Functional(nn.Module):
    """Dropout by a function beside a module."""

    def __init__(self, noise: str) -> None:
        super().__init__()
        self.noise, self.drop, self.head = noise, nn.Dropout(0.1), nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.1 if noise == "attention" else 0.0, batch_first=True)
        self.lstm = nn.LSTM(4, 4, 2, batch_first=True, dropout=0.01 if noise == "lstm" else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.drop(x))
        if self.noise == "functional":
            x = functional.dropout(x, 0.001, self.training)  # so seldom that values would not tell
        if self.noise == "numpy" and self.training and np.random.random() < 0.01:  # noqa: NPY002
            x = 0 * x
        if self.noise == "python" and self.training and random.random() < 0.01:
            x = 0 * x
        x = self.lstm(x[:, None])[0]
        return self.head(self.attention(x, x, x, need_weights=False)[0][:, 0])


@pytest.mark.parametrize("noise", ["functional", "attention", "lstm", "numpy", "python"])
@pytest.mark.parametrize("training", [False, True])
def test_other_randomness_is_refused(noise: str, training: bool) -> None:
    ensemble = MCDropout(Functional(noise), 2).train(training)
    with pytest.raises(
        ValueError, match=r"Functional has randomness beside its dropout modules.* use nn\.Dropout modules"
    ) as refusal:
        ensemble(torch.randn(3, 4))
    assert "\n" not in str(refusal.value)


def test_the_check_leaves_everything_as_it_was() -> None:
    model = Functional("none").train()
    model.drop.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ensemble = MCDropout(model, 2)
    modes = [m.training for m in ensemble.modules()]
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]  # noqa: NPY002
    ensemble._check_once(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]  # type: ignore[index]  # noqa: NPY002
    assert [m.training for m in ensemble.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_layers_that_evaluation_passes_by_are_refused() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.head = nn.Dropout(0.2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.drop(x) if self.training else x)

    with pytest.raises(ValueError, match="Fused passes 1 dropout modules by in evaluation"):
        MCDropout(Fused(), 2).eval()(torch.randn(3, 4))


class Turned(nn.Module):
    """Dropout on (length, batch, features), as sequence-first models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x.transpose(0, 1)).mean(0)


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (
            Turned(),
            torch.randn(4, 7, 3),
            r"dropout 'drop' got an input of shape \(7, 2, 3\) for 2 rows: expected the batch first",
        ),
        (
            nn.Dropout2d(0.2),
            torch.randn(4, 7, 3),
            r"dropout '' got an input of shape .*expected the batch first, \(2, channels, …, …\)",
        ),
        (nn.Dropout(0.2), torch.randn(4, 7, 3), r"the network returned \(4, 7, 3\): expected \(B, C\) logits"),
    ],
)
@pytest.mark.filterwarnings("ignore:dropout2d")
def test_shapes_that_do_not_fit(model: nn.Module, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MCDropout(model, 2).eval()(x)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Sequential has no dropout module with p > 0, .* build it with dropout"):
        MCDropout(nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.0)))
    with pytest.raises(
        ValueError, match="dropout '1' is AlphaDropout: expected Dropout, Dropout1d, Dropout2d, Dropout3d, replace it"
    ):
        MCDropout(nn.Sequential(nn.Linear(4, 2), nn.AlphaDropout(0.1)))
    for members in (0, True, 1.5):
        with pytest.raises(ValueError, match=f"members={members!r}: expected an integer of at least 1"):
            MCDropout(small(), members)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="seed must be an integer"):
        MCDropout(small(), seed=-1)
    with pytest.raises(ValueError, match="kind='probs'"):
        MCDropout(small(), kind="probs")  # type: ignore[arg-type]
