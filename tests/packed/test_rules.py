"""Every step with a rule keeps the members apart and is what each member alone would do; every other is refused by name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed import pack, unpack
from quorate.packed.rules import FUNCTIONS, METHODS
from quorate.packed.walk import RANKS

Between = Callable[[Any, Tensor], Any]


class Image(nn.Module):
    """A convolution, any step, and a head; `step(self, hidden)` gets (B, 8, 6, 6) hidden values."""

    scale: Tensor

    def __init__(self, step: Between, features: int = 8 * 36, **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Linear(features, 5)
        self.learned = None
        self.register_buffer("scale", torch.tensor(1.5))
        for name, module in modules.items():
            self.add_module(name, module)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        h = self.step(self, self.stem(x))
        y: Tensor = self.head(h.flatten(1)) if self.head is not None else h
        return y


def same_as_members(model: nn.Module, x: Tensor) -> None:
    """Packing is proved by poison, and each row is what the unpacked member gives, in both modes; members differ."""
    packed = pack(model.double(), members=4, alpha=2, example=x)
    for training in (False, True):
        rows = packed.train(training)(x)
        if training and any(isinstance(m, RANDOM) for m in model.modules()):
            continue  # other draws
        alone = torch.stack([unpack(packed, m)(x) for m in range(4)])
        torch.testing.assert_close(rows, alone, rtol=0, atol=1e-12)
        assert not torch.allclose(rows[0], rows[1])


ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.1, 0.2),
    "Dropout": (0.3,),
    "Dropout2d": (0.3,),
    "MaxPool1d": (3,),
    "AvgPool1d": (2,),
    "AdaptiveMaxPool1d": (4,),
    "AdaptiveAvgPool1d": (5,),
    "MaxPool2d": (2,),
    "AvgPool2d": (3, 2, 1),
    "AdaptiveMaxPool2d": (3,),
    "AdaptiveAvgPool2d": ((2, 5),),
    "LPPool2d": (2, 2),
    "ZeroPad2d": (1,),
    "ConstantPad2d": ((1, 0, 2, 0), 0.5),
    "ReflectionPad2d": (2,),
    "ReplicationPad2d": (1,),
    "CircularPad2d": (1,),
    "Upsample": (None, 2),
    "UpsamplingNearest2d": (None, 2),
    "UpsamplingBilinear2d": ((7, 9),),
}
RANDOM = (nn.Dropout, nn.AlphaDropout, nn.Dropout2d, nn.FeatureAlphaDropout, nn.RReLU)


@pytest.mark.parametrize("kind", [k for k, ranks in RANKS.items() if ranks in ((2, 3, 4), (3,), (4,)) and k is not nn.Conv2d])
def test_modules(kind: type[nn.Module]) -> None:
    module = kind(8) if kind is nn.BatchNorm2d else kind(*ARGUMENTS.get(kind.__name__, ()))
    lines = RANKS[kind] == (3,)

    def step(net: Any, h: Tensor) -> Tensor:
        y: Tensor = net.m(h.flatten(2) if lines else h)
        return y

    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    features = Image(step, m=module).eval()
    features.head = None
    same_as_members(Image(step, features(x.float()).flatten(1).shape[1], m=module), x)


def _shape(_: Any, h: Tensor) -> Tensor:
    b, __, rows, __ = h.shape
    return F.avg_pool2d(h, (rows, h.size(-1))).view(b, -1)


STEPS: dict[str, tuple[Between, int]] = {
    "functions": (lambda _, h: F.gelu(F.relu(F.hardtanh(F.silu(torch.tanh(h))), inplace=True)), 288),
    "more functions": (lambda _, h: torch.clamp(torch.abs(-h), max=0.5) + F.leaky_relu(h, 0.3), 288),
    "methods": (lambda _, h: h.relu_().sqrt().contiguous().clone().sigmoid().to(torch.float64), 288),
    "dtype of another": (lambda _, h: h.to(h.dtype).abs(), 288),
    "residual": (lambda _, h: h + F.relu(h), 288),
    "arithmetic": (lambda net, h: (1 - h) * 2 / 3 + h**2 - torch.sub(h, h.tanh()) * net.scale, 288),
    "in place": (lambda _, h: operator.iadd(h.clone(), h.abs()).mul_(0.5).add_(1), 288),
    "maximum": (lambda _, h: torch.maximum(h, -h), 288),
    "gate": (lambda _, h: h * F.adaptive_avg_pool2d(h, 1).sigmoid(), 288),
    "pools": (lambda _, h: F.adaptive_max_pool2d(F.avg_pool2d(F.max_pool2d(h, 3, 1), 2), (1, 2)), 16),
    "pad and scale": (lambda _, h: F.interpolate(F.pad(h, (1, 1, 0, 2)), scale_factor=0.5), 8 * 4 * 4),
    "mean": (lambda _, h: h.mean((2, 3)), 8),
    "mean of the last": (lambda _, h: h.mean(-1), 48),
    "mean of flat": (lambda _, h: torch.mean(h.flatten(2), dim=2), 8),
    "extremes": (lambda _, h: h.amax(dim=[-2, -1], keepdim=True) + torch.sum(h, (2, 3), keepdim=True), 8),
    "shape": (_shape, 8),
    "view": (lambda _, h: h.view(h.size(0), -1), 288),
    "view with literals": (lambda _, h: h.reshape(-1, 288), 288),
    "reshape": (lambda _, h: torch.reshape(h, (h.shape[0], 288)), 288),
    "view of channels": (lambda _, h: F.adaptive_avg_pool2d(h, 1).view(h.size(0), h.size(1)), 8),
    "part of the shape": (lambda _, h: F.avg_pool2d(h, h.size()[2:]), 8),
    "number of dimensions": (lambda _, h: h / h.dim() + h.ndim, 288),
    "flat twice": (lambda _, h: torch.flatten(h.flatten(start_dim=1, end_dim=2), 1).flatten(1), 288),
}


@pytest.mark.parametrize("name", STEPS)
def test_functions_and_methods(name: str) -> None:
    step, features = STEPS[name]
    same_as_members(Image(step, features), torch.randn(4, 3, 6, 6, dtype=torch.float64))


def test_every_elementwise_function_and_method_is_one() -> None:
    """A step in the tables for tensors of any rank changes each element alone, whatever is around it."""
    element = FUNCTIONS[F.relu]
    names = [f for f, rule in FUNCTIONS.items() if rule is element and f not in (F.dropout, F.alpha_dropout)]
    calls: list[Callable[[Tensor], Tensor]] = [lambda x, f=f: f(x, 0.2) if f is torch.clamp else f(x) for f in names]  # type: ignore[misc]
    methods = [m for m, rule in METHODS.items() if rule is element]
    argument: dict[str, tuple[Any, ...]] = {"clamp": (0.2,), "clamp_": (0.2,), "to": (torch.float64,)}
    calls += [lambda x, m=m: getattr(x, m)(*argument.get(m, ())) for m in methods]  # type: ignore[misc]
    x = torch.rand(2, 6)
    for call in calls:
        whole = call(x.clone())
        columns = torch.cat([call(x[:, i : i + 1].clone()) for i in range(6)], 1)
        torch.testing.assert_close(whole, columns)


class Heads(nn.Module):
    def __init__(self, join: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.join = join

    def forward(self, x: Tensor) -> Any:
        return self.join(self, self.stem(x))


def test_several_heads_may_be_added_but_not_returned_or_read() -> None:
    same_as_members(Heads(lambda net, h: net.one(h) / 2 + net.two(h)), torch.randn(4, 4, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"expected one tensor \(B, classes\), got tuple"):
        pack(Heads(lambda net, h: (net.one(h), net.two(h))))


def test_what_a_head_gives_may_not_be_read_by_a_layer() -> None:
    def behind(net: Any, h: Tensor) -> Any:
        one = net.one(h)
        return net.two(one) + one

    def mixed(net: Any, h: Tensor) -> Any:
        one = net.one(h)
        return net.two(one + h) + one

    with pytest.raises(ValueError, match="module 'two': expected a layer before the last one, got one behind it"):
        pack(Heads(behind))
    with pytest.raises(ValueError, match=r"got \(B, 8\) of 2 dimensions behind a last layer and \(B, 8\) of 2 dimensions;"):
        pack(Heads(mixed))
    x = torch.randn(4, 4, dtype=torch.float64)
    for join in (behind, mixed):  # with α = M every layer is 4 · 8 wide
        packed = pack(Heads(join).double(), members=4, alpha=4, example=x)
        torch.testing.assert_close(packed(x)[2], unpack(packed, 2)(x), rtol=0, atol=1e-12)


def test_a_convolution_may_be_the_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    same_as_members(model, torch.randn(4, 3, 6, 6, dtype=torch.float64))
    assert pack(model.float()).classes is None


def test_a_norm_behind_the_head_is_as_wide_as_the_head() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    packed = pack(model)
    assert packed.network.get_submodule("2").num_features == 12
    assert packed.classes == 3


def test_steps_on_the_raw_input_may_be_anything_without_parameters() -> None:
    class Raw(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
            self.conv, self.head = nn.Conv2d(6, 8, 3), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = x.permute(0, 3, 1, 2) / 255 - self.mean * 2
            b, _, rows, _ = x.shape
            x = torch.cat([x, x.flip(1) / rows / x.size(-1)], 1)
            y: Tensor = self.head(self.conv(x).mean((2, 3)).view(b, -1))
            return y

    same_as_members(Raw(), torch.rand(4, 6, 6, 3, dtype=torch.float64))
