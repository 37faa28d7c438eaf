"""Channels that go are known exactly: hand-made networks, with what stays and what the weights become."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptied_networks import agree, filled, zero_
from quorate.cost import macs, parameters
from quorate.tickets.compaction import Kept, compact, removable


def mlp(inputs: int = 4, hidden: int = 5, outputs: int = 3, bias: bool = True) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs, bias=bias))
    filled(net)
    return net


X4 = torch.ones(2, 4, dtype=torch.float64)
IMAGE = torch.ones(1, 3, 8, 8, dtype=torch.float64)


def test_an_unread_feature_goes_and_nothing_else_changes() -> None:
    net = mlp()
    zero_(net[2].weight[:, 1], net[2].weight[:, 3])
    assert removable(net, X4) == {"0": Kept((0, 1, 2, 3), (0, 2, 4), (4, 5), {}), "2": Kept((0, 2, 4), (0, 1, 2), (5, 3), {})}
    small = compact(net, X4)
    assert torch.equal(small[0].weight, net[0].weight[[0, 2, 4]])
    assert torch.equal(small[0].bias, net[0].bias[[0, 2, 4]])
    assert torch.equal(small[2].weight, net[2].weight[:, [0, 2, 4]])
    assert torch.equal(small[2].bias, net[2].bias)
    assert repr(small[0]) == "Linear(in_features=4, out_features=3, bias=True)"
    assert (parameters(net), parameters(small)) == (4 * 5 + 5 + 5 * 3 + 3, 4 * 3 + 3 + 3 * 3 + 3)
    assert (macs(net, X4), macs(small, X4)) == (35, 21)
    agree(net, small, (7, 4))


def test_a_constant_feature_goes_into_the_bias() -> None:
    net = mlp()
    zero_(net[0].weight[2])
    assert removable(net, X4)["2"].constants == {2: net[0].bias[2].item()}
    small = compact(net, X4)
    assert torch.allclose(small[2].bias, net[2].bias + net[2].weight[:, 2] * net[0].bias[2], rtol=1e-15)
    agree(net, small, (7, 4))


def test_a_constant_below_zero_behind_relu_leaves_the_bias_alone() -> None:
    net = mlp()
    zero_(net[0].weight[2])
    with torch.no_grad():
        net[0].bias[2] = -1.0
    assert removable(net, X4)["2"].constants == {}
    assert torch.equal(compact(net, X4)[2].bias, net[2].bias)


def test_a_bias_is_made_where_there_was_none() -> None:
    net = mlp(bias=False)
    zero_(net[0].weight[2])
    net[2].weight.requires_grad_(False)
    small = compact(net, X4)
    assert torch.allclose(small[2].bias, net[2].weight[:, 2] * net[0].bias[2], rtol=1e-15)
    assert not small[2].bias.requires_grad
    agree(net, small, (7, 4))


def test_cutting_a_row_empties_the_layers_before_it() -> None:
    """fc4 reads h3 alone, fc3's row 3 reads h2[0] alone, fc2's row 0 reads h1[1] alone."""
    net = nn.Sequential(*(m for _ in range(3) for m in (nn.Linear(4, 4), nn.Tanh())), nn.Linear(4, 2))
    filled(net)
    zero_(net[6].weight[:, :3], net[4].weight[3, 1:], net[2].weight[0, 0], net[2].weight[0, 2:])
    plan = removable(net, X4)
    assert {name: (kept.inputs, kept.outputs) for name, kept in plan.items()} == {
        "0": ((0, 1, 2, 3), (1,)), "2": ((1,), (0,)), "4": ((0,), (3,)), "6": ((3,), (0, 1)),
    }  # fmt: skip
    agree(net, compact(net, X4), (7, 4))


def test_a_constant_is_followed_through_layers() -> None:
    """A row that reads only a constant is a constant: h2[0] = w·relu(b) + b."""
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2))
    filled(net)
    zero_(net[0].weight[1], net[2].weight[0, ::2])
    value = torch.sigmoid(net[2].weight[0, 1] * net[0].bias[1] + net[2].bias[0])
    plan = removable(net, X4)
    assert plan["2"].outputs == (1, 2)
    assert plan["2"].inputs == (0, 2)
    assert plan["4"].constants == {0: pytest.approx(value.item(), rel=1e-15)}
    agree(net, compact(net, X4), (7, 4))


def test_an_empty_layer_keeps_one_channel() -> None:
    net = mlp()
    zero_(net[2].weight)
    small = compact(net, X4)
    assert tuple(small[0].weight.shape) == (1, 4)
    assert tuple(small[2].weight.shape) == (3, 1)
    agree(net, small, (7, 4))
    zero_(net[0].weight, net[0].bias)
    assert tuple(compact(net, X4)[2].weight.shape) == (3, 1)


class Padded(nn.Module):
    """conv, norm, ReLU, conv with or without padding, mean, linear."""

    def __init__(self, padding: int | str, mode: str = "zeros", kernel: int = 3) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, kernel, padding=padding, padding_mode=mode, bias=False)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.relu(self.second(F.relu(self.norm(self.first(x))))).mean((2, 3)))
        return out


def constants_of_norm(net: Padded) -> Tensor:
    norm = net.norm
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return F.relu(norm.bias - norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()).detach()


@pytest.mark.parametrize(
    ("padding", "mode", "kernel"), [(0, "zeros", 3), ("valid", "zeros", 3), ("same", "zeros", 1), (1, "circular", 3)]
)
def test_constants_go_into_the_bias_where_no_zeros_are_padded(padding: int | str, mode: str, kernel: int) -> None:
    net = Padded(padding, mode, kernel)
    filled(net)
    zero_(net.first.weight[1], net.first.weight[4])
    with torch.no_grad():
        net.norm.bias[1], net.norm.bias[4] = 3.0, -3.0
    value = constants_of_norm(net)
    assert value[1] > 0 == value[4]
    plan = removable(net, IMAGE)
    assert plan["second"].inputs == (0, 2, 3, 5)
    assert plan["second"].constants == {1: pytest.approx(value[1].item(), rel=1e-14)}
    small = compact(net, IMAGE)
    assert torch.allclose(small.second.bias, net.second.weight[:, 1].sum((1, 2)) * value[1], rtol=1e-13)
    agree(net, small, (2, 3, 8, 8), (2, 3, 5, 6))


@pytest.mark.parametrize("padding", [1, "same"])
def test_a_constant_stays_where_zeros_are_padded(padding: int | str) -> None:
    net = Padded(padding)
    filled(net)
    zero_(net.first.weight[1])
    with torch.no_grad():
        net.norm.bias[1] = 3.0
    assert removable(net, IMAGE) == {}
    with torch.no_grad():
        net.norm.bias[1] = -3.0
    assert removable(net, IMAGE)["norm"] == Kept((0, 2, 3, 4, 5), (0, 2, 3, 4, 5), (6, 6), {})


def test_one_constant_carries_the_others_through_padding() -> None:
    """Of three constants the greatest stays; its column becomes Σ W[:, c] · v_c / v."""
    net = Padded(1)
    filled(net)
    net.first.weight.data[[0, 2, 5]] = 0
    net.norm.bias.data[[0, 2, 5]] = torch.tensor([3.0, 9.0, 5.0], dtype=torch.float64)
    value = constants_of_norm(net)
    kept = removable(net, IMAGE)["second"]
    assert kept.inputs == (1, 2, 3, 4)
    assert kept.carrier == (2, pytest.approx(value[2].item(), rel=1e-14))
    assert kept.constants == {c: pytest.approx(value[c].item(), rel=1e-14) for c in (0, 5)}
    small = compact(net, IMAGE)
    carried = sum(net.second.weight[:, c] * value[c] / value[2] for c in (0, 2, 5))
    assert torch.allclose(small.second.weight[:, 1], carried, rtol=1e-13)
    assert small.second.bias is None
    agree(net, small, (2, 3, 8, 8), (2, 3, 5, 6))


def test_a_small_constant_does_not_carry_a_great_one() -> None:
    """Channel 0 is 1e-9 at `padded` and stays for `other`, which reads its product with the input: it would be multiplied by 1e9."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.factor = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.padded, self.other = nn.Conv2d(4, 2, 3, padding=1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            out: Tensor = self.padded(y) + self.other(y * self.factor(x))
            return out

    net = Two()
    filled(net)
    zero_(net.first.weight[:3], net.other.weight[:, 1:3])
    net.first.bias.data[:3] = torch.tensor([1e-9, 1.0, 0.75])
    assert removable(net, IMAGE)["padded"] == Kept((0, 1, 3), (0, 1), (4, 2), {2: 0.75}, (1, 1.0))
    net.first.bias.data[0] = 0.5
    assert removable(net, IMAGE)["padded"] == Kept((0, 3), (0, 1), (4, 2), {1: 1.0, 2: 0.75}, (0, 0.5))
    agree(net, compact(net, IMAGE), (2, 3, 8, 8))


def test_a_gain_of_zero_makes_a_constant() -> None:
    net = Padded(0)
    filled(net)
    zero_(net.norm.weight[3])
    small = compact(net, IMAGE)
    assert small.first.out_channels == small.norm.num_features == small.second.in_channels == 5
    assert torch.allclose(small.second.bias, net.second.weight[:, 3].sum((1, 2)) * net.norm.bias[3], rtol=1e-13)
    agree(net, small, (2, 3, 8, 8))


def test_statistics_of_the_batch_are_not_constants() -> None:
    net = Padded(0)
    filled(net)
    net.norm.track_running_stats, net.norm.running_mean, net.norm.running_var = False, None, None
    zero_(net.first.weight[3])
    assert removable(net, IMAGE) == {}


def test_the_model_stays_as_it_is() -> None:
    net = Padded(0).train()
    zero_(net.first.weight[1])
    net.norm.eval()
    net.first.weight.grad = torch.ones_like(net.first.weight)
    before = copy.deepcopy(net.state_dict())
    state, x = torch.get_rng_state(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = x.clone()
    small = compact(net, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, given)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert small.training
    assert not small.norm.training
    assert type(small) is Padded
    assert all(p.grad is None and p.requires_grad for p in small.parameters())
    small(x).sum().backward()
    assert all(a.data_ptr() != b.data_ptr() for a in net.parameters() for b in small.parameters())
