"""Backends chosen by measurement: what is measured and taken, that nothing else changes, that choices can be kept, what is refused."""

from __future__ import annotations

import copy
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.cost.interleaving import Times
from quorate.models import MLP
from quorate.packed import PackedConv2d, PackedEnsemble, PackedLinear, pack
from quorate.packed.backends import MEMBERS, Tuning, apply_, backends, choosable, tune

IMAGES = torch.randn(2, 3, 8, 8)


class Network(nn.Module):
    """Its head is registered first and used last."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(128, 4)
        self.stem, self.norm, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.Dropout(), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(self.relu(self.norm(self.stem(x)))))
        return logits


ORDER = ["stem", "body.0", "head"]


def network() -> PackedEnsemble:
    torch.manual_seed(0)
    return pack(Network(), members=4, alpha=2)


class Told:
    """A stand-in for time: what each backend takes in a layer, and what the network takes with each set of choices; 1 by default."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = costs
        self.seen: list[tuple[str, ...]] = []

    def __call__(self, calls: Mapping[str, Callable[[], object]], repeats: int, wait: Callable[[], None]) -> Times:
        assert wait() is None
        for call in calls.values():
            call()
        self.seen.append(tuple(calls))
        return {name: [self.costs.get(name, 1.0)] * repeats for name in calls}


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, float]], Told]:
    def tell(costs: dict[str, float]) -> Told:
        stand_in = Told(costs)
        monkeypatch.setattr(importlib.import_module("quorate.packed.backends"), "interleaved", stand_in)
        return stand_in

    return tell


Tell = Callable[[dict[str, float]], Told]


def used(ensemble: PackedEnsemble) -> set[str]:
    return {backend for name, backend in backends(ensemble).items() if name != MEMBERS}


def test_members_apart_can_win(told: Tell) -> None:
    told({"members apart": 0.5, "from before": 0.9})
    ensemble = network()
    tuning = tune(ensemble, IMAGES)
    assert (tuning.execution, ensemble.execution) == ("apart", "apart")
    other = network()
    apply_(other, tuning.chosen)
    assert other.execution == "apart"
    with pytest.raises(ValueError, match="expected a backend of auto, together, apart, got 'loop'"):
        apply_(other, {MEMBERS: "loop"})


@pytest.mark.slow
def test_measures_and_keeps_the_function() -> None:
    ensemble = network().eval()
    before, state = ensemble(IMAGES), copy.deepcopy(ensemble.state_dict())
    tuning = tune(ensemble, IMAGES, repeats=3)
    assert [choice.name for choice in tuning.choices] == ORDER
    assert tuning.chosen == backends(ensemble)
    for choice in tuning.choices:
        layer = choosable(ensemble)[choice.name]
        assert (choice.kind, tuple(choice.times_ms)) == (type(layer).__name__, layer.BACKENDS)
        assert all(ms > 0 for ms in choice.times_ms.values())
        assert choice.before == layer.BACKENDS[0]
    assert list(tuning.network_ms) == ["as it was", "from before", "from channels_last", "members apart"]
    assert tuning.settings["shape"] == [2, 3, 8, 8]
    assert all(torch.equal(value, state[name]) for name, value in ensemble.state_dict().items())
    torch.testing.assert_close(ensemble(IMAGES), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.slow
def test_leaves_all_else_alone(training: bool) -> None:
    ensemble = network().train()
    ensemble(IMAGES).sum().backward()
    grads = {name: p.grad for name, p in ensemble.named_parameters()}
    kept = {name: None if grad is None else grad.clone() for name, grad in grads.items()}
    state, random = copy.deepcopy(ensemble.state_dict()), torch.get_rng_state()
    tune(ensemble, IMAGES, repeats=3, training=training)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in ensemble.state_dict().items())
    for name, parameter in ensemble.named_parameters():
        assert parameter.grad is grads[name]
        assert parameter.grad is None or torch.equal(parameter.grad, kept[name])
    assert all(child.training for child in ensemble.modules())
    assert not any(child._forward_pre_hooks for child in ensemble.modules())
    assert torch.is_grad_enabled()


def test_takes_the_fastest_of_each_layer(told: Tell) -> None:
    ensemble = network()
    stand_in = told({"loop": 0.5, "from before": 0.5, "from channels_last": 0.6})
    tuning = tune(ensemble, IMAGES)
    assert used(ensemble) == {"loop"}
    assert [choice.chosen for choice in tuning.choices] == ["loop"] * 3
    each = [("grouped", "nhwc", "nchw", "loop")] * 2 + [("baddbmm", "loop")]
    assert stand_in.seen == [*each, *each, ("as it was", "from before", "from channels_last", "members apart")]
    assert "loop* 0.500" in str(tuning)
    assert (
        str(tuning)
        .splitlines()[-1]
        .endswith("from before 0.500, from channels_last 0.600, members apart 1.000 ms; members together")
    )


def test_a_change_has_to_gain_the_margin(told: Tell) -> None:
    ensemble = network()
    told({"loop": 0.96, "from before": 0.5})
    tune(ensemble, IMAGES)
    assert used(ensemble) == {"grouped", "baddbmm"}  # no layer gains 5 %
    told({"loop": 0.5, "from before": 0.96})
    tune(ensemble, IMAGES)
    assert used(ensemble) == {"grouped", "baddbmm"}  # the network does not
    tune(ensemble, IMAGES, margin=0.04)
    assert used(ensemble) == {"loop"}


def test_channels_last_throughout_can_win_where_no_layer_alone_gains(told: Tell) -> None:
    ensemble = network()
    told({"from channels_last": 0.8})
    tuning = tune(ensemble, IMAGES)
    assert used(ensemble) == {"nhwc", "baddbmm"}
    assert {choice.before for choice in tuning.choices} == {"grouped", "baddbmm"}


def test_later_layers_see_what_the_chosen_ones_give() -> None:
    ensemble = network()
    formats = []

    class Watched(PackedConv2d):
        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            formats.append((self.backend, input.is_contiguous(memory_format=torch.channels_last)))
            return super().forward(input, *args, **kwargs)

    second = ensemble.network.get_submodule("body.0")
    second.__class__ = Watched
    apply_(ensemble, {"stem": "nhwc"})
    tune(ensemble, IMAGES, repeats=3, layers=["body.0"])
    assert {last for _, last in formats} == {True}
    assert {backend for backend, _ in formats} >= {"grouped", "nhwc", "nchw", "loop"}


def test_only_the_layers_named(told: Tell) -> None:
    ensemble = network()
    told({"loop": 0.5, "from before": 0.5})
    tuning = tune(ensemble, IMAGES, layers=["head"])
    assert [choice.name for choice in tuning.choices] == ["head"]
    assert {name for name, backend in backends(ensemble).items() if backend == "loop"} == {"head"}


def test_training_measures_the_backward_pass(told: Tell) -> None:
    ensemble = pack(MLP((12,), 4, hidden=(24, 24), dropout=0.5), members=4, alpha=2)
    backward = []

    class Watched(PackedLinear):
        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            assert self.training
            y: Tensor = super().forward(input, *args, **kwargs)
            if y.requires_grad:
                y.register_hook(lambda _: backward.append(input.requires_grad))
            return y

    for layer in choosable(ensemble).values():
        assert isinstance(layer, PackedLinear)
        layer.__class__ = Watched
    told({})
    tune(ensemble.eval(), torch.randn(3, 12), training=True)
    assert backward[:2] == [False, False]  # the first layer reads raw inputs, which have no gradient
    assert backward[2:6] == [True] * 4
    assert len(backward) == 2 * 3 + 2 * 3  # two backends of three layers; the whole network as it was, and as chosen


def test_frozen_networks_can_be_tuned() -> None:
    ensemble = pack(MLP((12,), 4, hidden=(24,)), members=4, alpha=2).requires_grad_(False)
    assert len(tune(ensemble, torch.randn(3, 12), repeats=3, training=True).choices) == 2


@pytest.mark.slow
def test_kept_with_a_run_and_set_again() -> None:
    ensemble, other = network(), network()
    tuning = tune(ensemble, IMAGES, repeats=3, layers=["stem", "head"])
    again = Tuning.from_dict(json.loads(json.dumps(tuning.to_dict())))
    assert again == tuning
    apply_(other, again.chosen)
    assert backends(other) == backends(ensemble)


def test_apply_sets_all_or_nothing() -> None:
    ensemble = network()
    apply_(ensemble, {"stem": "nchw", "head": "loop"})
    assert (backends(ensemble)["stem"], backends(ensemble)["head"]) == ("nchw", "loop")
    before = backends(ensemble)
    with pytest.raises(
        ValueError, match=r"^module 'head': expected a backend of baddbmm, loop, got 'grouped'; choose one of them$"
    ):
        apply_(ensemble, {"stem": "loop", "head": "grouped"})
    with pytest.raises(ValueError, match=r"got 'bode\.0'; did you mean 'body\.0'\?$"):
        apply_(ensemble, {"stem": "loop", "bode.0": "loop"})
    with pytest.raises(ValueError, match=r"^layers: expected names of layers with more than one backend, got 'norm'"):
        apply_(ensemble, {"norm": "loop"})
    assert backends(ensemble) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"example": [1.0]},
            r"^example: expected a batch of raw inputs \(B, …\), got list; pass one of the size that you will run$",
        ),
        ({"example": torch.zeros(0, 3, 8, 8)}, r"got a tensor of shape \(0, 3, 8, 8\)"),
        ({"example": torch.tensor(1.0)}, r"got a tensor of shape \(\)"),
        ({"repeats": 2}, "^repeats: expected an int of at least 3, got 2; a median of fewer says nothing$"),
        ({"repeats": 3.0}, "^repeats: expected an int of at least 3, got 3.0"),
        ({"margin": 1}, "^margin: expected a share from 0 to below 1, got 1; 0.05 asks for 5 % less time$"),
        ({"margin": "5 %"}, "^margin: expected a share from 0 to below 1, got '5 %'"),
        (
            {"layers": ["last"]},
            r"^layers: expected names of layers with more than one backend, got 'last'; backends\(ensemble\) lists",
        ),
    ],
)
def test_refusals(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tune(network(), **{"example": IMAGES, **arguments})


def test_refuses_other_networks() -> None:
    message = r"^ensemble: expected a PackedEnsemble, got Linear; make one with pack\(model\)$"
    for call in (lambda n: tune(n, IMAGES), backends, lambda n: apply_(n, {})):
        with pytest.raises(ValueError, match=message):
            call(nn.Linear(2, 2))


@pytest.mark.parametrize("data", [{}, {"choices": [{"name": "head"}], "network_ms": {}, "settings": {}}, {"choices": 3}])
def test_refuses_other_data(data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^tuning: expected what Tuning\.to_dict\(\) gives, got dict \(.+\); tune again$"):
        Tuning.from_dict(data)
