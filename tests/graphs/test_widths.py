"""A narrowed network is the one that a person would write with fewer channels, with the weights that stay."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quorate.cost import parameters
from quorate.graphs.structure_steps import _blocks
from quorate.graphs.widths import narrowed, share
from quorate.models.cnn1d import CNN1d
from quorate.models.mlp import MLP
from quorate.models.resnet import ResNet
from quorate.models.rnn import RNN
from quorate.models.vgg import VGG
from quorate.models.vit import ViT
from quorate.models.wide_resnet import WideResNet
from user_architectures import (
    ARCHITECTURES,
    Encoder,
    Inverted,
    Mixer,
    Modern,
    Shuffled,
    Tokens,
    Transformer,
    TwoBranches,
    UShaped,
    stirred,
)

Rows = Callable[[int, int], list[int]]


def first(_: int, after: int) -> list[int]:
    return [*range(after)]


def parts(count: int) -> Rows:
    """The first of each of `count` equal parts: gates, queries and keys and values, the two directions."""
    return lambda before, after: [p * before // count + i for p in range(count) for i in range(after // count)]


def beside(*shares: int) -> Rows:
    """The first half of each tensor that stands side by side with others, of these relative widths."""

    def rows(before: int, after: int) -> list[int]:
        unit, found, start = before // sum(shares), [], 0
        for part in shares:
            found += [start + i for i in range(part * unit * after // before)]
            start += part * unit
        return found

    return rows


def sliced(wide: nn.Module, narrow: nn.Module, rules: dict[tuple[str, int], Rows] | None = None) -> nn.Module:
    """`narrow` with the first weights of `wide`; `rules`: (end of a name, axis) of those that are taken otherwise."""
    given = dict([*wide.named_parameters(), *wide.named_buffers()])
    with torch.no_grad():
        for name, tensor in [*narrow.named_parameters(), *narrow.named_buffers()]:
            value = given[name]
            for axis, (before, after) in enumerate(zip(value.shape, tensor.shape, strict=True)):
                found = [rule for (end, at), rule in (rules or {}).items() if at == axis and end in name]
                value = value.index_select(axis, torch.tensor((found or [first])[0](before, after)))
            tensor.copy_(value)
    return narrow.eval()


GATES = {("_ih_", 0): parts(4), ("_hh_", 0): parts(4)}
HEADS = {("qkv", 0): parts(3), ("in_proj", 0): parts(3)}
CASES: dict[str, tuple[nn.Module, nn.Module, tuple[int, ...], dict[tuple[str, int], Rows]]] = {
    "mlp": (MLP((3, 4), 5, hidden=(16, 8), norm=True), MLP((3, 4), 5, hidden=(8, 4), norm=True), (2, 3, 4), {}),
    "resnet": (ResNet((3, 8, 8), 6, 14, width=8), ResNet((3, 8, 8), 6, 14, width=4), (2, 3, 8, 8), {}),
    "bottleneck": (ResNet((3, 8, 8), 6, 50, width=4), ResNet((3, 8, 8), 6, 50, width=2), (2, 3, 8, 8), {}),
    "wide": (WideResNet((3, 8, 8), 6, depth=10, width=2), None, (2, 3, 8, 8), {}),
    "vgg": (VGG((3, 32, 32), 6, 11, width=4, hidden=(8,)), VGG((3, 32, 32), 6, 11, width=2, hidden=(4,)), (2, 3, 32, 32), {}),
    "cnn1d": (CNN1d((4, 20), 5, width=(8, 16)), CNN1d((4, 20), 5, width=(4, 8)), (2, 4, 20), {}),
    "plain": (CNN1d((4, 20), 5, (8, 16), residual=False), CNN1d((4, 20), 5, (4, 8), residual=False), (2, 4, 20), {}),
    "lstm": (RNN((4, 9), 5, hidden=8, layers=2), RNN((4, 9), 5, hidden=4, layers=2), (2, 4, 9), GATES),
    "gru": (
        RNN((4, 9), 5, "gru", 8, 2, bidirectional=True, pool="mean"),
        RNN((4, 9), 5, "gru", 4, 2, bidirectional=True, pool="mean"),
        (2, 4, 9),
        {("_ih_", 0): parts(3), ("_hh_", 0): parts(3), ("ih_l1", 1): parts(2), ("fc", 1): parts(2)},
    ),
    "vit": (
        ViT((3, 8, 8), 5, width=32, depth=2, heads=4),
        ViT((3, 8, 8), 5, width=16, depth=2, heads=2),
        (2, 3, 8, 8),
        HEADS,
    ),
    "inverted": (Inverted(16), Inverted(8), ARCHITECTURES["inverted"][1], {}),
    "transformer": (Transformer(32, 4), Transformer(16, 2), (2, 20, 6), HEADS),
    "fused": (Transformer(32, 4, fused=True), Transformer(16, 2, fused=True), (2, 20, 6), HEADS),
    "u-shaped": (
        UShaped(8),
        UShaped(4),
        (2, 3, 16, 16),
        {("d.0.weight", 1): beside(1, 1), ("e.0.weight", 1): beside(2, 1)},
    ),
    "mixer": (Mixer(24), Mixer(12), (2, 3, 16, 16), {}),
    "two branches": (TwoBranches(12), TwoBranches(6), (2, 4, 30), {("mixed.weight", 1): beside(1, 2)}),
    "modern": (Modern(16), Modern(8), (2, 3, 16, 16), {}),
    "shuffled": (Shuffled(16, 4), Shuffled(8, 2), (2, 3, 8, 8), {("c.weight", 1): parts(4)}),
    "encoder": (Encoder(32, 4), Encoder(16, 2), (2, 20, 6), HEADS),
    "tokens": (
        Tokens(16),
        Tokens(8),
        (2, 9),
        {**GATES, ("ih_l1", 1): parts(2), ("ih_l2", 1): parts(2), ("head", 1): parts(2)},
    ),
}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[1] is not None])
def test_half_the_width_is_the_network_written_with_half_the_width(name: str) -> None:
    wide, by_hand, shape, rules = CASES[name]
    torch.manual_seed(0)
    wide = stirred(copy.deepcopy(wide)).eval()
    by_hand = sliced(wide, copy.deepcopy(by_hand), rules)
    x = torch.randint(0, 50, shape) if name == "tokens" else torch.randn(shape)
    found = narrowed(wide, x, 0.5)
    assert parameters(found) == parameters(by_hand)
    for rows in (1, 2, 5):
        batch = x[:1].expand(rows, *x.shape[1:]) if name == "tokens" else torch.randn(rows, *x.shape[1:])
        torch.testing.assert_close(found(batch), by_hand(batch), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found(x), wide(x), atol=1e-3)


def test_a_wide_network_in_training_gives_gradients_everywhere() -> None:
    model, x = CASES["wide"][0], torch.randn(4, 3, 8, 8)
    found = narrowed(model, x, 0.375).train()
    found(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())
    assert {layer.out_channels for layer in found.modules() if isinstance(layer, nn.Conv2d)} == {6, 12, 24, 48}


@pytest.mark.parametrize(("width", "channels"), [(1, 10), (0.75, 8), (0.5, 5), (0.375, 4), (0.1, 1), (1e-4, 1), (0.3, 3)])
def test_the_share_is_rounded_up(width: float, channels: int) -> None:
    model = nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 4))
    found = narrowed(model, torch.randn(2, 3, 4, 4), width)
    convolution = next(layer for layer in found.modules() if isinstance(layer, nn.Conv2d))
    linear = next(layer for layer in found.modules() if isinstance(layer, nn.Linear))
    assert (convolution.out_channels, linear.in_features, linear.out_features) == (channels, 4 * channels, 4)
    assert torch.equal(convolution.weight, model[0].weight[:channels])
    assert torch.equal(linear.weight, model[3].weight[:, : 4 * channels])


@pytest.mark.parametrize(("fraction", "count", "kept"), [(0.1, 30, 3), (0.7, 10, 7), (0.07, 100, 7), (2 / 3, 3, 2), (0.01, 7, 1)])
def test_rounding_of_the_product_adds_no_channel(fraction: float, count: int, kept: int) -> None:
    assert share(fraction, count) == kept


class Grouped(nn.Module):
    """Five groups of two channels, and a group normalisation of five."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 10, 1), nn.Conv1d(10, 20, 3, groups=5)
        self.norm, self.c = nn.GroupNorm(5, 20), nn.Conv1d(20, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.norm(self.b(self.a(x))))).mean(2)


def test_groups_stay_or_go_as_a_whole() -> None:
    model, x = stirred(Grouped()), torch.randn(2, 3, 8)
    found = narrowed(model, x, 0.5)
    assert (found.a.out_channels, found.b.groups, found.b.in_channels, found.b.out_channels) == (6, 3, 6, 12)
    assert (found.norm.num_groups, found.norm.num_channels, found.c.in_channels) == (3, 12, 12)
    y = nn.functional.conv1d(model.a(x)[:, :6], model.b.weight[:12], model.b.bias[:12], groups=3)
    y = torch.tanh(nn.functional.group_norm(y, 3, model.norm.weight[:12], model.norm.bias[:12]))
    expected = nn.functional.conv1d(y, model.c.weight[:, :12], model.c.bias).mean(2)
    torch.testing.assert_close(found(x), expected)


class Parts(nn.Module):
    """Gated halves, unequal parts, equal parts, a repeated view and a layer that is not known."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(8, 12), nn.Linear(4, 8)
        self.d, self.bilinear = nn.Linear(8, 6), nn.Bilinear(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        one, two = torch.split(self.b(nn.functional.glu(self.a(x))), [4, 8], dim=-1)
        three, four = self.c(one).split(4, -1)
        y = self.d(torch.cat([three * four, two[:, :4] * 0], -1) + two)
        return self.bilinear(y, y)


def test_parts_of_channels_and_what_is_not_known() -> None:
    model, x = stirred(Parts()), torch.randn(2, 6)
    found = narrowed(model, x, 0.5)
    sizes = {name: (layer.in_features, layer.out_features) for name, layer in found.named_children() if name != "bilinear"}
    assert sizes["a"] == (6, 8)
    assert sizes["d"] == (8, 6)  # what is cut out of the middle of two, and what bilinear reads, stays
    assert sizes["b"] == (4, 10)  # the part of 4 goes to 2, that of 8 stays
    assert sizes["c"] == (2, 8)
    assert found(x).shape == (2, 3)


def test_parameters_used_twice_and_embeddings_of_fixed_width_stay_whole() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
            self.shift = nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x)) + self.shift)) + self.shift)

    with pytest.raises(ValueError, match="channels that can go, got none in Twice"):
        narrowed(Twice(), torch.randn(2, 4), 0.5)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((2, 6), (2, 2, 3), [((0, 1), (0, 1)), ((1, 2), (1, 3))]),
        ((2, 4, 3, 5), (2, 12, 5), [((0, 1), (0, 1)), ((1, 3), (1, 2)), ((3, 4), (2, 3))]),
        ((2, 3, 4), (6, 4), [((0, 2), (0, 1)), ((2, 3), (1, 2))]),
        ((2, 6, 1, 1), (2, 6), [((0, 1), (0, 1)), ((1, 4), (1, 2))]),
        ((2, 6), (2, 1, 6, 1), [((0, 1), (0, 1)), ((1, 2), (1, 4))]),
        ((1, 4), (1, 2, 2), [((0, 1), (0, 1)), ((1, 2), (1, 3))]),
        ((4, 6), (3, 8), [((0, 2), (0, 2))]),
    ],
)
def test_axes_that_hold_the_same_entries(old: tuple[int, ...], new: tuple[int, ...], expected: list[object]) -> None:
    assert [((b.start, b.stop), (a.start, a.stop)) for b, a in _blocks(old, new)] == expected


def test_the_model_stays_as_it_is() -> None:
    model, x = stirred(Modern()), torch.randn(1, 3, 16, 16)
    before, generator = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    found = narrowed(model, x, 0.25)
    assert found.training
    assert not narrowed(model.eval(), x, 0.25).training
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert {tuple(t.shape) for t in model.state_dict().values()} == {tuple(t.shape) for t in before.values()}


@pytest.mark.parametrize("width", [0, -0.5, 1.5, True, "half", float("nan")])
def test_a_width_is_a_share(width: object) -> None:
    with pytest.raises(ValueError, match=r"width: expected a share of the channels in \(0, 1\]"):
        narrowed(nn.Linear(3, 2), torch.randn(2, 3), width)  # type: ignore[arg-type]


def test_nothing_to_narrow_is_refused() -> None:
    with pytest.raises(ValueError, match="expected channels that can go, got none in Linear"):
        narrowed(nn.Linear(3, 2), torch.randn(2, 3), 0.5)
    assert narrowed(nn.Linear(3, 2), torch.randn(2, 3), 1).training
