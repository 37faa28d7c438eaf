"""The proof by poison finds a leak that a wrong rule lets through, and names where it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quorate.packed import pack
from quorate.packed.flow import Flow, Flows
from quorate.packed.rules import FUNCTIONS, METHODS
from quorate.packed.walk import RANKS


def passes(node: torch.fx.Node, flows: Flows) -> Flow:
    """A wrong rule: whatever the step does, the channels stay as they are."""
    return flows[node.all_input_nodes[0]]


class Leaky(nn.Module):
    def __init__(self, leak: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.body, self.head, self.leak = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2), leak

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.body(self.leak(self.stem(x)).relu()).mean((2, 3)))
        return y


X = torch.randn(2, 3, 4, 4)


def test_a_mixing_module_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ChannelShuffle(2), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2))
    with pytest.raises(ValueError, match="got ChannelShuffle"):
        pack(model, example=X)
    monkeypatch.setitem(RANKS, nn.ChannelShuffle, (4,))
    assert pack(model)  # the wrong rule alone lets it through
    with pytest.raises(
        ValueError, match="module '2': expected members that do not see each other, but member 0 reaches another"
    ) as caught:
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
    monkeypatch.setitem(METHODS, name, passes)
    with pytest.raises(ValueError, match=f"step '{name}': expected members that do not see each other"):
        pack(Leaky(leak), example=X)


def test_a_leak_behind_the_last_layer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, torch.roll, passes)
    model = Leaky(lambda h: h)
    forward = model.forward
    model.forward = lambda x: torch.roll(forward(x), 1, 1)  # type: ignore[method-assign]

    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 4), nn.Linear(4, 3))

        def forward(self, x: Tensor) -> Tensor:
            return torch.roll(self.net(x), 1, 1)

    with pytest.raises(ValueError, match="step 'roll': expected members that do not see each other, but member 0"):
        pack(Behind(), example=X)


def test_the_proof_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(128, 2))
    torch.manual_seed(1)
    without = pack(model)
    torch.manual_seed(1)
    proved = pack(model, example=X)
    assert proved.training
    for key, value in proved.state_dict().items():
        assert torch.equal(value, without.state_dict()[key])
        assert not value.isnan().any()
