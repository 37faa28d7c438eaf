"""The networks of this package with emptied channels: smaller, and the same outputs in fp32 to 1e-6 and in fp64 to 1e-12."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from emptied_networks import emptied
from quorate.cost import macs, parameters
from quorate.data.normalise import Normalise
from quorate.ensemble import DeepEnsemble
from quorate.models import (
    MLP,
    RNN,
    VGG,
    CNN1d,
    DepthwiseNet,
    LeNet,
    MultiExitResNet,
    ResNet,
    ViT,
    WideResNet,
    resnet8,
    resnet14,
)  # fmt: skip
from quorate.tickets.compaction import compact, removable

IMAGE = (3, 16, 16)
MODELS: dict[str, tuple[Callable[[], nn.Module], Sequence[int]]] = {
    "resnet8": (resnet8, IMAGE),
    "resnet14": (lambda: nn.Sequential(Normalise((3.0, 2.0, 1.0), (2.0, 1.0, 0.5), IMAGE), resnet14()), IMAGE),
    "resnet18": (lambda: ResNet((3, 64, 64), depth=18, stem="imagenet", width=8), (3, 64, 64)),
    "resnet50": (lambda: ResNet(depth=50, width=8), IMAGE),
    "wide": (lambda: WideResNet(depth=16, width=1, dropout=0.3), IMAGE),
    "vgg": (lambda: VGG(depth=11, width=8, hidden=(32,), positions=2, dropout=0.5), (3, 32, 32)),
    "mlp": (lambda: MLP((5, 4), 5, dropout=0.1, norm=True), (5, 4)),
    "plain mlp": (lambda: MLP((20,), 5), (20,)),
    "lenet": (lambda: LeNet((1, 28, 28), 10), (1, 28, 28)),
    "cnn1d": (lambda: CNN1d((6, 40), 5, width=(16, 24)), (6, 40)),
    "plain cnn1d": (lambda: CNN1d((6, 40), 5, width=(16, 24), residual=False, dropout=0.2), (6, 40)),
    "vit": (lambda: ViT(width=24, depth=3, heads=2, stochastic_depth=0.2, dropout=0.1), (3, 32, 32)),
    "vit mean": (lambda: ViT(width=24, depth=2, heads=2, pool="mean"), (3, 32, 32)),
    "depthwise": (lambda: DepthwiseNet(width=0.35), IMAGE),
    "multi-exit": (lambda: MultiExitResNet(depth=8, branch=12), IMAGE),
}


LARGE = ("resnet50", "resnet18", "depthwise")
CASES = [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in MODELS]


@pytest.mark.parametrize("name", CASES)
def test_smaller_with_the_same_outputs(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = emptied(make())
    example, x = torch.randn(2, *shape), torch.randn(5, *shape)
    small = compact(model, example)
    assert type(small) is type(model)
    assert macs(small, example) < macs(model, example)
    assert parameters(small) < parameters(model)
    with torch.no_grad():
        expected = model.eval()(x)
        assert float(expected.std(-2).max()) > 1e-5 * float(expected.abs().max())  # the outputs depend on the inputs
        assert float((small.eval()(x) - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
        double = copy.deepcopy(model).double()
        expected = double(x.double())
        found = compact(double, example.double())(x.double())
        assert float((found - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


@pytest.mark.parametrize("name", CASES)
def test_nothing_goes_from_a_dense_network(name: str) -> None:
    make, shape = MODELS[name]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    assert removable(model, torch.randn(1, *shape)) == {}


def test_hidden_features_of_a_transformer_go_and_its_stream_stays() -> None:
    model = ViT(width=24, depth=1, heads=2)
    with torch.no_grad():
        model.blocks[0].linear1.weight[[1, 5]] = 0
        model.blocks[0].linear1.bias[5] = 2.0
        model.blocks[0].linear2.weight[:, 7] = 0
        model.blocks[0].linear2.weight[3] = 0
    x = torch.randn(1, 3, 32, 32)
    plan = removable(model, x)
    assert plan.keys() == {"blocks.0.linear1", "blocks.0.linear2"}
    assert plan["blocks.0.linear1"].outputs == tuple(i for i in range(96) if i not in (1, 5, 7))
    gelu = torch.nn.functional.gelu(torch.tensor(2.0, dtype=torch.float64)).item()
    assert plan["blocks.0.linear2"].constants == {5: pytest.approx(gelu, rel=1e-12)}


def test_a_recurrent_layer_is_left_alone_but_not_the_layers_before_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.conv2, self.rnn = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 4, 3), RNN((4, 10), 2, hidden=5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.rnn(self.conv2(self.conv(x).relu()))
            return out

    net, x = Net(), torch.randn(2, 3, 20)
    with torch.no_grad():
        net.conv2.weight[:, 2] = 0
        net.rnn.fc.weight[:, 0] = 0
    assert removable(net, x).keys() == {"conv", "conv2"}
    assert torch.allclose(compact(net, x)(x), net(x), atol=1e-6)


def test_members_of_an_ensemble_are_compacted_one_by_one() -> None:
    members = [emptied(resnet8(), seed=seed) for seed in range(2)]
    x = torch.randn(2, *IMAGE)
    ensemble, small = DeepEnsemble(members).eval(), DeepEnsemble([compact(m, x) for m in members]).eval()
    assert torch.allclose(small(x), ensemble(x), rtol=0, atol=1e-6 * ensemble(x).abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = emptied(MLP((20,), 5)).to(dtype), torch.randn(3, 20, dtype=dtype)
    small = compact(model, x)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert parameters(small) < parameters(model)
