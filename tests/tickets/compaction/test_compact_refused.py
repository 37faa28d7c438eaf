"""What has to stay whole stays whole, and what can't be compacted is refused on one line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from quorate.graphs.tracing import difference, trace
from quorate.tickets.compaction import compact, removable
from quorate.tickets.compaction.compacting import prove

X = torch.linspace(-1, 1, 8).reshape(2, 4)
IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


class Between(nn.Module):
    """Linear layers of which the second reads only feature 0, with a function of the module between them."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.first, self.second, self.step = nn.Linear(4, 4), nn.Linear(4, 2), step
        for name, part in parts.items():
            setattr(self, name, part)
        with torch.no_grad():
            self.second.weight[:, 1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.step(self, self.first(x)))
        return out


class Images(nn.Module):
    """Convolutions (or another layer in the second's place) with a function of the module behind them."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor], second: nn.Module | None = None, features: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Identity() if second is None else second
        self.step, self.head = step, nn.Linear(features, 2)
        with torch.no_grad():
            self.head.weight[:, 1:] = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.step(self, self.second(self.first(x))))
        return out


WHOLE: dict[str, nn.Module] = {
    "layer norm": Between(lambda m, x: m.norm(x), norm=nn.LayerNorm(4)),
    "softmax": Between(lambda _, x: x.softmax(-1)),
    "sum over features": Between(lambda _, x: x / x.sum(-1, keepdim=True)),
    "mean over features": Between(lambda _, x: x - x.mean(1, keepdim=True)),
    "parameter": Between(lambda m, x: x * m.gain, gain=nn.Parameter(torch.ones(4))),
    "buffer": Between(lambda _, x: x + torch.arange(4)),
    "input": Between(lambda m, x: x + m.first.weight.sum()),
    "called twice": Between(lambda m, x: m.mid(m.mid(x)), mid=nn.Linear(4, 4)),
    "module named size": Between(lambda m, x: m.size(x), size=nn.LayerNorm(4)),
    "module named dim": Between(lambda m, x: m.dim(x), dim=nn.Softmax(-1)),
    "sorted": Between(lambda _, x: x.sort(-1).values),
    "matrix product": Between(lambda _, x: x @ torch.ones(4, 4)),
    "fixed view": Between(lambda _, x: x.view(-1, 4)),
    "fixed reshape": Between(lambda _, x: torch.reshape(x, (2, 2, 2)).flatten(1)),
    "one feature": Between(lambda _, x: x * x[:, 2:3]),
    "number of features": Between(lambda _, x: x / x.shape[1]),
    "number of elements": Between(lambda _, x: x / x.numel()),
    "whole shape": Between(lambda _, x: x + torch.ones(x.shape)),
    "transposed batch": Between(lambda _, x: (x.T * 1.0).T),
    "fixed groups": Images(lambda _, x: x.mean((2, 3)), nn.GroupNorm(2, 4)),
    "fixed size": Images(lambda _, x: x.mean((2, 3)).view(-1, 4)),
    "shuffle": Images(lambda _, x: F.pixel_shuffle(x, 2).mean((2, 3)), features=1),
    "features of the width": Images(lambda m, x: m.second(x).mean((2, 3)), nn.Linear(6, 6)),
    "instance norm": Images(lambda _, x: x.mean((2, 3)), nn.InstanceNorm2d(4, affine=True)),
    "transposed convolution": Images(lambda _, x: x.mean((2, 3)), nn.ConvTranspose2d(4, 4, 2)),
    "positions as features": Images(lambda _, x: x.flatten(2).mean(1), features=36),
    "unlisted pooling": Images(lambda _, x: x.mean((2, 3)), nn.LPPool2d(2, 2)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_features_around_other_steps_stay(name: str) -> None:
    model, x = WHOLE[name], IMAGE if isinstance(WHOLE[name], Images) else X
    plan = removable(model, x)
    assert "first" not in plan
    assert torch.allclose(compact(model, x)(x), model(x), atol=1e-6)


def test_the_same_features_go_without_them() -> None:
    for step in (
        torch.relu,
        lambda x: x.view(x.shape[0], -1),
        lambda x: x.reshape(x.size(0), x.size(1)),
        lambda x: x / x.shape[0],
    ):
        assert removable(Between(lambda _, x, step=step: step(x)), X)["first"].outputs == (0,)  # type: ignore[misc]
    assert removable(Images(lambda _, x: x.mean((2, 3))), IMAGE)["first"].outputs == (0,)


def patched(net: Between) -> None:
    net.second.forward = lambda x: F.linear(x.flip(-1), net.second.weight)  # type: ignore[method-assign]


UNTOUCHED: dict[str, Callable[[Between], Any]] = {
    "hook": lambda net: net.first.register_forward_hook(lambda *_: None),
    "pre-hook": lambda net: net.first.register_forward_pre_hook(lambda *_: None),
    "parametrised": lambda net: parametrizations.weight_norm(net.first),
    "parameter of another module": lambda net: setattr(net, "other", tied(net.first)),
    "parameter read by forward": lambda net: setattr(net, "step", lambda m, x: x + m.first.weight[0, 0]),
    "own forward": patched,
    "more parameters": lambda net: net.first.register_parameter("gain", nn.Parameter(torch.ones(4))),
}


def tied(layer: nn.Linear) -> nn.Linear:
    other = nn.Linear(4, 4)
    other.weight = layer.weight
    return other


@pytest.mark.parametrize("name", UNTOUCHED)
def test_layers_that_are_more_than_a_layer_stay(name: str) -> None:
    net = Between(lambda _, x: x.relu())
    UNTOUCHED[name](net)
    assert removable(net, X) == {}


def test_one_module_under_two_names_is_cut_under_both() -> None:
    net = Between(lambda _, x: x.relu())
    net.alias = net.first
    small: Any = compact(net, X)
    assert small.alias is small.first
    assert small.first.out_features == 1


def test_a_part_of_a_layer_that_is_called_whole_stays() -> None:
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    net = Between(lambda m, x: m.block(x[:, None])[:, 0] + m.block.linear2(m.block.linear1(x)), block=block)
    with torch.no_grad():
        block.linear2.weight[:, 3] = 0
    assert removable(net, X) == {}


def test_arguments_by_place_and_by_name() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
            h = self.a(x) if y is None else self.a(x) * self.b(y)
            return {"logits": self.head(h.relu()) * scale}

    net = Two()
    with torch.no_grad():
        net.head.weight[:, 2] = 0
    for example, names in (((X,), {"a", "head"}), ((X, X), {"a", "b", "head"}), ({"x": X, "scale": 2.0}, {"a", "head"})):
        assert removable(net, example).keys() == names  # type: ignore[arg-type]
    small = compact(net, (X, X, 3.0))
    assert torch.allclose(small(X, 2 * X)["logits"], net(X, 2 * X)["logits"], atol=1e-6)


def test_a_forward_that_goes_by_widths_is_refused() -> None:
    """A forward that reads a layer's width gets another number from a narrower one."""
    net = Between(lambda m, x: x / m.first.out_features)
    with pytest.raises(
        ValueError, match=r"Between with narrower layers: .* but .*: write a forward that does not go by its layers'"
    ):
        compact(net, X)
    hidden = Between(lambda m, x: x * (1.0 + 1e-9 * m.first.out_features))  # no difference to see
    with pytest.raises(ValueError, match="but its graph has other steps or numbers"):
        compact(hidden, X)
    refused = Between(lambda m, x: x.relu() if m.first.out_features == 4 else m.nothing(x))
    with pytest.raises(ValueError, match=r"Between with narrower layers: .* does not run on the example"):
        compact(refused, X)


def test_the_proof_finds_a_difference() -> None:
    net = Between(lambda _, x: x.relu())
    traced = trace(net, X)
    with torch.no_grad():
        net.second.bias += 1e-2
    with pytest.raises(ValueError, match=r"output 0 differs by 0\.01 where values reach"):
        prove(traced, net, X)


def test_differences() -> None:
    one = torch.tensor([1.0, 1000.0])
    assert difference((one, 3), (one + 1e-2, 3)) is None
    assert difference((one, 3), (one + 1, 3)) == "output 0 differs by 1 where values reach 1e+03"
    assert difference((one, 3), (one, 4)) == "output 1 is int where int was expected"
    assert difference((one, 3), (one, one)) == "output 1 is Tensor where int was expected"
    assert difference([one], (one,)) == "they differ in structure"
    assert difference(one, one[:1]) == "output 0 is (1,) torch.float32 where (2,) torch.float32 was expected"
    assert difference(torch.tensor([1]), torch.tensor([2])) == "output 0 differs"
    nan = torch.tensor([torch.nan, torch.inf, 1.0])
    assert difference(nan, nan.clone()) is None
    assert difference(nan, torch.ones(3)) == "output 0 differs by inf where values reach 1"


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > 0 else x


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn(()).item()


def unfit() -> nn.Module:
    net = nn.Linear(4, 2)
    net.cache = net.weight * 2
    return net


REFUSED: list[tuple[Any, Any, str]] = [
    (torch.relu, X, "model: expected an nn.Module, got builtin_function_or_method"),
    (nn.LazyLinear(3), X, "model: expected tensors with values, got 'weight', which is lazy"),
    (nn.Linear(4, 2, device="meta"), X, "model: expected tensors with values, got 'weight', which is on the meta device"),
    (nn.Linear(4, 2), [1.0], "example: expected an input with at least one row, got list"),
    (nn.Linear(4, 2), (1.0,), "example: expected an input with at least one row, got tuple"),
    (nn.Linear(4, 2), X[:0], r"example: expected an input with at least one row, got one of shape \(0, 4\)"),
    (nn.Linear(5, 2), X, "Linear does not run on the example"),
    (unfit(), X, "Linear can't be copied"),
    (Branching(4, 4), X, "Branching cannot be traced by torch.fx"),
    (Drawing(), X, "Drawing: expected a graph that gives the model's outputs on the example, but output 0 differs"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "example", "message"), REFUSED)
def test_refused_on_one_line(model: Any, example: Any, message: str) -> None:
    for call in (compact, removable):
        with pytest.raises(ValueError, match=f"^{message}") as error:
            call(model, example)
        assert "\n" not in str(error.value)
        assert re.search(r"; |: ", str(error.value))


@pytest.mark.filterwarnings("ignore")  # that scripting is deprecated
def test_a_scripted_model_is_refused() -> None:
    scripted = torch.jit.script(nn.Linear(4, 2))  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="got a scripted one; trace the module it was made from"):
        compact(scripted, X)
