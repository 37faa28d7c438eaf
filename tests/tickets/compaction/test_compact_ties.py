"""Channels tied by sums, groups and flattening, and constants on their way: hand-made networks whose channels that go are known exactly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptied_networks import agree, filled, zero_
from quorate.tickets.compaction import compact, removable

X4 = torch.ones(2, 4, dtype=torch.float64)
IMAGE = torch.ones(1, 3, 8, 8, dtype=torch.float64)


class Residual(nn.Module):
    """stem, x + conv(relu(conv(x))), mean, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(5, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head((x + self.two(F.relu(self.one(x)))).mean((2, 3)))
        return out


def test_a_residual_stream_loses_a_channel_that_all_its_readers_can_do_without() -> None:
    net = Residual()
    filled(net)
    zero_(net.head.weight[:, 4])
    assert removable(net, IMAGE) == {}  # `one` reads it
    zero_(net.one.weight[:, 4])
    plan = removable(net, IMAGE)
    assert {name: (len(kept.inputs), len(kept.outputs)) for name, kept in plan.items()} == {
        "stem": (3, 5), "one": (5, 5), "two": (5, 5), "head": (5, 2),
    }  # fmt: skip
    agree(net, compact(net, IMAGE), (2, 3, 8, 8))


def test_a_residual_stream_adds_up_its_constants() -> None:
    """The stem's and the branch's constants meet at the head; `one` meets the stem's alone, which is 0."""
    net = Residual()
    filled(net)
    zero_(net.stem.weight[2], net.stem.bias[2], net.two.weight[2])
    plan = removable(net, IMAGE)
    assert plan["head"].constants == {2: pytest.approx(net.two.bias[2].item(), rel=1e-15)}
    assert plan["one"].constants == {}
    agree(net, compact(net, IMAGE), (2, 3, 8, 8))


def test_prelu_follows_its_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 2, 1))
    filled(net)
    zero_(net[0].weight[1])
    net[0].bias.data[1] = -2.0
    plan = removable(net, IMAGE)
    assert plan["2"].constants == {1: pytest.approx(-2 * net[1].weight[1].item(), rel=1e-15)}
    small = compact(net, IMAGE)
    assert small[1].num_parameters == 3
    assert torch.equal(small[1].weight, net[1].weight[[0, 2, 3]])
    agree(net, small, (2, 3, 4, 4))


def test_a_depthwise_convolution_loses_a_channel_and_a_grouped_one_a_group() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 2, 1)
    )
    filled(net)
    zero_(net[2].weight[:, 6:8], net[2].weight[:, 2], net[4].weight[:, :2])
    small = compact(net, IMAGE)
    assert [(m.in_channels, m.out_channels, m.groups) for m in small] == [(3, 5, 1), (5, 10, 5), (10, 4, 1), (4, 2, 1), (2, 2, 1)]
    agree(net, small, (2, 3, 8, 8))


def test_flattened_channels_go_with_all_their_positions() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    filled(net)
    zero_(net[4].weight[:, 9:18])
    kept = removable(net, IMAGE)["4"]
    assert kept.inputs == (*range(9), *range(18, 36))
    zero_(net[4].weight[:, 18:26])  # one position of channel 2 is still read
    assert removable(net, IMAGE)["0"].outputs == (0, 2, 3)
    agree(net, compact(net, IMAGE), (2, 3, 8, 8))


def test_a_constant_that_differs_at_the_border_is_none() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 2, 1))
    filled(net)
    zero_(net[0].weight[1])
    assert removable(net, IMAGE) == {}
    net[1].count_include_pad = False
    assert removable(net, IMAGE)["0"].outputs == (0, 2, 3)
    agree(net, compact(net, IMAGE), (2, 3, 8, 8))


def test_memory_changed_under_another_name_is_no_constant() -> None:
    class Stale(nn.Module):
        def __init__(self, changes: bool) -> None:
            super().__init__()
            self.first, self.second, self.changes = nn.Linear(4, 3), nn.Linear(3, 2), changes

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y = x[:]
            if self.changes:
                y *= -1
            else:
                y = y * -1
            out: Tensor = self.second(x) + y.sum()
            return out

    for changes in (True, False):
        net = Stale(changes)
        filled(net)
        zero_(net.first.weight[1])
        agree(net, compact(net, X4), (7, 4))
