"""The proof finds what a wrong rule, a wrong layer or an untraced forward lets through, and names where it is."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from quorate.packed import PackedConv2d, pack
from quorate.packed.flow import Flow
from quorate.packed.isolation import prove_inputs_apart
from quorate.packed.kinds import ELEMENTS
from quorate.packed.layers.arrangement import to_channels, to_rows
from quorate.packed.members import alone
from quorate.packed.rules import FUNCTIONS, METHODS
from quorate.packed.rules.walking import Walk, kept

X = torch.randn(2, 3, 4, 4)
LEAK = "expected members that do not see each other, but member 0 reaches another one there; keep the module whole"


def passes(node: fx.Node, walk: Walk) -> Flow:
    """A wrong rule: whatever the step does, it may run with the members side by side in the channels."""
    return kept(walk, node, walk[node.all_input_nodes[0]])  # type: ignore[arg-type]


class Leaky(nn.Module):
    def __init__(self, leak: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head, self.leak = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2), leak

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.leak(self.stem(x)).relu()).mean((2, 3)))
        return y


def test_a_mixing_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    with pytest.raises(ValueError, match="got ChannelShuffle"):
        pack(model, example=X)
    monkeypatch.setattr("quorate.packed.kinds.ELEMENTS", {*ELEMENTS, nn.ChannelShuffle})
    assert pack(model)  # the wrong rule alone lets it through
    with pytest.raises(ValueError, match=f"module '2': {LEAK}") as caught:
        pack(model, example=X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "leak"),
    [
        ("flip", lambda h: h.flip(1)),
        ("roll", lambda h: h.roll(1, 1)),
        ("cumsum", lambda h: h.cumsum(1)),  # a leak in one direction only
        ("softmax", lambda h: h.softmax(1)),
    ],
)
def test_a_mixing_method_is_found_at_its_step(
    monkeypatch: pytest.MonkeyPatch, name: str, leak: Callable[[Tensor], Tensor]
) -> None:
    assert pack(Leaky(leak), example=X)  # by its own rule it runs with the members in rows
    monkeypatch.setitem(METHODS, name, passes)
    with pytest.raises(ValueError, match=f"step '{name}': {LEAK}"):
        pack(Leaky(leak), example=X)


def test_a_leak_behind_the_last_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, torch.roll, passes)

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(self.net(x), 1, 0)

    with pytest.raises(ValueError, match=f"step 'roll': {LEAK}"):
        pack(Behind(), example=X)


def test_a_layer_that_leaks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = PackedConv2d.forward

    def mixed(self: Any, x: Tensor, layout: Any = None) -> Tensor:
        y = forward(self, x, layout)
        return y + 1e-6 * y.roll(1, 1)

    monkeypatch.setattr(PackedConv2d, "forward", mixed)
    with pytest.raises(ValueError, match=f"module 'stem': {LEAK}"):
        pack(Leaky(lambda h: h), example=X)


def test_members_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that come back in another order than they went see each other's values from there on."""
    monkeypatch.setattr("quorate.packed.arranging.to_rows", lambda x, members: to_rows(x.flip(1), members).flip(1))
    with pytest.raises(ValueError, match=LEAK):
        pack(Leaky(lambda h: h.permute(0, 2, 3, 1).permute(0, 3, 1, 2)), example=X)
    monkeypatch.undo()
    assert torch.equal(to_channels(to_rows(torch.arange(24.0).view(2, 12), 3), 3), torch.arange(24.0).view(2, 12))


def test_a_wrong_size_is_found_even_where_members_are_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mean", passes)
    with pytest.raises(ValueError, match=r"step 'mean': expected \(B, 8, 4, 4\), got \(2, 8\) on the example"):
        pack(Leaky(lambda h: h), example=X)


def test_a_member_that_alone_is_another_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quorate.packed.proving.alone", lambda ensemble, m: alone(ensemble, 0 if m == 1 else m))
    with pytest.raises(ValueError, match="member 1: expected the same logits alone as among the others"):
        pack(Leaky(lambda h: h), example=X)


def test_inputs_that_meet_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(Leaky(lambda h: h), members=2, alpha=1, example=X)
    prove_inputs_apart(packed, X)
    each = packed.each
    monkeypatch.setattr(type(packed), "each", lambda _, x: each(x) + 0 * each(x.flip(0)))
    monkeypatch.setattr("copy.deepcopy", lambda value: value)
    with pytest.raises(
        ValueError, match="members with inputs of their own: expected that they do not see each other, but member 0's input"
    ):
        prove_inputs_apart(packed, X)


def test_a_rewrite_or_a_trace_that_is_another_model_is_found() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.calls = nn.Linear(48, 8), nn.Linear(8, 2), 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += isinstance(x, fx.Proxy)
            h = self.stem(x.flatten(1))
            y: Tensor = self.head(h.relu() if isinstance(x, fx.Proxy) else h.tanh())
            return y

    with pytest.raises(
        ValueError, match="Odd: expected that its traced steps give what it gives, but on the example they differ"
    ):
        pack(Odd(), example=X)


def test_the_proof_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
    given = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    without = pack(model)
    torch.manual_seed(1)
    proved = pack(model, example=X)
    assert proved.training
    for key, value in proved.state_dict().items():
        assert torch.equal(value, without.state_dict()[key])
        assert not value.isnan().any()
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("place", ["input", "weight"])
def test_an_example_that_gives_nan_proves_nothing(place: str) -> None:
    model, x = Leaky(lambda h: h), X.clone()
    if place == "input":
        x[0] = torch.nan
    else:
        model.leak = lambda h: (h - h).log() * 0  # type: ignore[assignment]
    with pytest.raises(ValueError, match="example: expected numbers at every step, got NaN at"):
        pack(model, example=x)
