"""BatchNorm folded into the layers before it: values, each kind of layer, what is left alone, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from quorate.models import MLP, ResNet
from quorate.packed import (
    PackedBatchNorm1d,
    PackedBatchNorm2d,
    PackedBatchNorm3d,
    PackedConv1d,
    PackedConv2d,
    PackedConv3d,
    PackedConvTranspose1d,
    PackedConvTranspose2d,
    PackedConvTranspose3d,
    PackedEnsemble,
    PackedLinear,
    pack,
    unpack,
)
from quorate.packed.folding import by_output, fold, fold_


def stirred(module: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode, with norms that have weights, biases and statistics of their own."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.1, 3.0, generator=generator)
            for parameter in norm.parameters():
                nn.init.uniform_(parameter, -2.0, 2.0, generator=generator)
    return module.eval()


def norms(module: nn.Module) -> int:
    return sum(isinstance(child, _BatchNorm) for child in module.modules())


def packed(model: nn.Module, gamma: int = 1, dtype: torch.dtype = torch.float32) -> PackedEnsemble:
    ensemble = pack(model.to(dtype), members=4, alpha=2, gamma=gamma)
    assert isinstance(stirred(ensemble), PackedEnsemble)
    return ensemble


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: ResNet((3, 8, 8), 4, depth=8, width=8), (3, 8, 8)),
    "resnet18": (lambda: ResNet((3, 8, 8), 4, depth=18, width=16), (3, 8, 8)),
    "mlp": (lambda: MLP((12,), 4, hidden=(24, 48), norm=True), (12,)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_folded_network_computes_the_same(name: str, dtype: torch.dtype) -> None:
    make, shape = MODELS[name]
    ensemble = packed(make(), dtype=dtype)
    x = torch.randn(3, *shape, dtype=dtype)
    with torch.no_grad():
        expected, own = ensemble(x), ensemble.each(torch.stack([x, x + 1, x - 1, 2 * x]))
        folded = fold(ensemble)
        exact = 1e-5 if dtype == torch.float32 else 1e-12
        assert norms(folded) == 0 < norms(ensemble)
        assert (folded(x) - expected).abs().max() <= exact * expected.abs().max()
        assert (folded.each(torch.stack([x, x + 1, x - 1, 2 * x])) - own).abs().max() <= exact * own.abs().max()
        assert torch.equal(ensemble(x), expected)  # the one given is untouched
        for m in range(4):
            member = unpack(folded, m)
            assert norms(member) == 0
            assert (member(x) - expected[m]).abs().max() <= exact * expected.abs().max()


def test_subgroups_are_folded() -> None:
    ensemble = packed(
        nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 48), nn.BatchNorm1d(48), nn.Linear(48, 4)), gamma=3
    )
    x = torch.randn(5, 6)
    folded = fold(ensemble)
    assert norms(folded) == 0
    torch.testing.assert_close(folded(x), ensemble(x), rtol=1e-5, atol=1e-6)


LAYERS: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...]]] = {
    "linear": (PackedLinear(8, 12, 4, 2), PackedBatchNorm1d(12, 4, 2), (16,)),
    "linear, subgroups": (PackedLinear(16, 32, 4, 2, gamma=2, bias=False), PackedBatchNorm1d(32, 4, 2), (32,)),
    "linear, first": (PackedLinear(7, 12, 4, 2, first=True), PackedBatchNorm1d(12, 4, 2), (7,)),
    "conv1d": (PackedConv1d(8, 12, 3, 4), PackedBatchNorm1d(12, 4, 2), (16, 7)),
    "conv2d": (PackedConv2d(8, 12, 3, 4, stride=2, bias=False), PackedBatchNorm2d(12, 4, 2, affine=False), (16, 7, 7)),
    "conv2d, own groups": (PackedConv2d(16, 32, 3, 4, groups=2), PackedBatchNorm2d(32, 4, 2), (32, 7, 7)),
    "conv2d, depthwise": (PackedConv2d(8, 16, 3, 4, groups=8), PackedBatchNorm2d(16, 4, 2), (16, 7, 7)),
    "conv3d": (PackedConv3d(8, 12, 2, 4), PackedBatchNorm3d(12, 4, 2), (16, 4, 4, 4)),
    "transposed 1d": (PackedConvTranspose1d(8, 12, 3, 4, stride=2), PackedBatchNorm1d(12, 4, 2), (16, 5)),
    "transposed 2d": (PackedConvTranspose2d(16, 32, 3, 4, groups=2, bias=False), PackedBatchNorm2d(32, 4, 2), (32, 4, 4)),
    "transposed 2d, first": (PackedConvTranspose2d(3, 12, 3, 4, first=True), PackedBatchNorm2d(12, 4, 2), (3, 4, 4)),
    "transposed 3d": (PackedConvTranspose3d(8, 12, 2, 4), PackedBatchNorm3d(12, 4, 2), (16, 3, 3, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_each_kind_of_layer(name: str) -> None:
    layer, norm, shape = LAYERS[name]
    layer, norm = layer.double().eval(), stirred(norm.double())
    x = torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        expected = norm(layer(x))
        fold_(layer, norm)  # type: ignore[arg-type]
        assert (layer(x) - expected).abs().max() < 1e-12


def test_by_output_of_a_transposed_convolution_by_hand() -> None:
    layer = nn.ConvTranspose1d(4, 6, 1, groups=2)
    scale = torch.arange(6.0)
    assert by_output(layer, scale)[..., 0].tolist() == [[0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [3.0, 4.0, 5.0]]


class Forked(nn.Module):
    """A layer whose output is read twice, a norm without statistics, and a norm before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, track_running_stats=False)
        self.relu, self.bn3 = nn.ReLU(), nn.BatchNorm2d(8)
        self.conv3, self.bn4 = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.flatten, self.fc = nn.Flatten(), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        y = self.bn2(self.conv2(self.bn1(y) + y))
        logits: Tensor = self.fc(self.flatten(self.bn4(self.conv3(self.bn3(self.relu(y))))))
        return logits


def test_a_norm_stays_where_it_cannot_be_folded() -> None:
    ensemble = packed(Forked())
    folded = fold(ensemble)
    left = {name for name, module in folded.network.named_modules() if isinstance(module, _BatchNorm)}
    assert left == {"bn1", "bn2", "bn3"}
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(folded(x), ensemble(x), rtol=1e-5, atol=1e-5)
    assert [row.name for row in folded.explain()] == [row.name for row in ensemble.explain() if row.name != "bn4"]


def test_frozen_layers_stay_frozen() -> None:
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.Linear(8, 2)).requires_grad_(False)
    folded = fold(packed(model))
    assert all(not parameter.requires_grad for parameter in folded.parameters())


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"^ensemble: expected a PackedEnsemble, got Linear; make one with pack\(model\)$"):
        fold(nn.Linear(2, 2))  # type: ignore[arg-type]
    ensemble = pack(MLP((12,), 4, hidden=(24,), norm=True), members=4, alpha=2)
    with pytest.raises(
        ValueError, match=r"expected evaluation mode, got 'the ensemble' in training mode; call ensemble\.eval\(\) first$"
    ):
        fold(ensemble.train())
    ensemble.eval()
    ensemble.network.get_submodule("layers.norm1").train()
    with pytest.raises(ValueError, match=r"got 'network\.layers\.norm1' in training mode"):
        fold(ensemble)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 10_000:
            x = x[:1]
        logits: Tensor = self.head(self.norm(self.first(x)))
        return logits


def test_refuses_what_was_packed_module_by_module() -> None:
    ensemble = pack(Untraceable(), members=4, alpha=2, example=torch.randn(5, 4)).eval()
    with pytest.raises(ValueError, match=r"expected one whose model torch\.fx traced, got one packed module by module"):
        fold(ensemble)
