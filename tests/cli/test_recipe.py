"""What a recipe's model becomes: raw inputs are normalised just once, and the weights are those of (seed, member)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from quorate.cli.recipe import EnsembleChoice, build, factory
from quorate.data import Data, Normalise, arrays, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP, MultiExitResNet

OWN = """
import torch
from torch import nn

from quorate.ensemble import MemberStage


class Net(nn.Module):
    def __init__(self, shape, classes, normalise: nn.Module | None = None):
        super().__init__()
        self.first, self.last = normalise, nn.Linear(64, classes)


class Flag(Net):
    def __init__(self, shape, classes, normalise: bool = False):
        super().__init__(shape, classes)
        self.given = normalise


class Two(nn.Module):
    def __init__(self, shape, classes, normalise: "nn.Module"):
        super().__init__()
        self.first, self.linear = normalise, nn.ModuleList([nn.Linear(64, classes) for _ in range(2)])

    def parts(self):
        return [nn.Sequential(self.first or nn.Identity(), nn.Flatten(), linear) for linear in self.linear]

    def forward(self, x):
        return torch.stack([part(x) for part in self.parts()])

    def stages(self):
        return [MemberStage(f"m{m}", part) for m, part in enumerate(self.parts())]


def made(shape, classes, normalise: None | nn.Module = None) -> nn.Module:
    return Two(shape, classes, normalise)


class Raw(Two):
    def __init__(self, shape, classes):
        super().__init__(shape, classes, None)


class Untold(Two):
    def __init__(self, shape, classes, normalise=None):
        super().__init__(shape, classes, normalise)


class Stacked(nn.Sequential):
    def __init__(self, shape, classes, normalise: nn.Module | None = None):
        super().__init__(*([normalise] if normalise else []), nn.Flatten(), nn.Linear(64, classes))

    def stages(self):
        return [MemberStage("m0", nn.Sequential(*self))]


class NamedStages(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.stages = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))


class Needs(Net):
    def __init__(self, shape, classes, normalise: nn.Module):
        super().__init__(shape, classes, normalise)


class NeedsFlag(Flag):
    def __init__(self, shape, classes, normalise: bool):
        super().__init__(shape, classes, normalise)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], nn.Module]:
    """Build a single ensemble of a model of the user's."""
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "own_nets", raising=False)
    data = digits()
    return lambda name: build(EnsembleChoice(), factory(f"own_nets.{name}", {}, data), data, 3)


def normalisations(ensemble: nn.Module) -> int:
    return sum(isinstance(part, Normalise) for part in ensemble.modules())


@pytest.mark.parametrize("name", ["Net", "Flag", "NamedStages"])
def test_a_network_is_normalised_in_front_and_never_inside(own: Callable[[str], nn.Module], name: str) -> None:
    ensemble = own(name)
    assert isinstance(ensemble, DeepEnsemble)
    assert normalisations(ensemble) == 1
    first, network = ensemble.members[0]
    assert isinstance(first, Normalise)
    assert getattr(network, "first", None) is None
    assert getattr(network, "given", False) is False


@pytest.mark.parametrize("name", ["Two", "made", "Stacked"])
def test_an_ensemble_in_itself_gets_the_normalisation_and_is_taken_as_it_is(own: Callable[[str], nn.Module], name: str) -> None:
    ensemble = own(name)
    assert type(ensemble).__name__ == {"made": "Two"}.get(name, name)
    assert normalisations(ensemble) == 1
    torch.manual_seed(seed_of(3, 0))
    expected = nn.Linear(64, 8)  # two digits are held out
    found = next(part for part in ensemble.modules() if isinstance(part, nn.Linear))
    assert torch.equal(found.weight, expected.weight)


@pytest.mark.parametrize("name", ["Raw", "Untold"])
def test_an_ensemble_that_takes_no_normalisation_is_refused(own: Callable[[str], nn.Module], name: str) -> None:
    expected = rf"model 'own_nets.{name}' is an ensemble in itself, .*: give it a parameter `normalise: nn.Module` and put"
    with pytest.raises(ValueError, match=expected) as caught:
        own(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Needs", "NeedsFlag"])
def test_a_network_that_needs_one_is_refused(own: Callable[[str], nn.Module], name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"model 'own_nets.{name}' can't be made without a `normalise`, .*: give it a default"
    ) as caught:
        own(name)
    assert "\n" not in str(caught.value)


def seed_of(seed: int, member: int) -> int:
    return int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0] >> 1)


def test_weights_are_those_of_seed_and_member() -> None:
    data = digits()
    for kind, members in (("single", 1), ("deep", 3)):
        ensemble = build(EnsembleChoice(kind, 3), factory("quorate.models.MLP", {"hidden": [8]}, data), data, 5)  # type: ignore[arg-type]
        assert len(ensemble.members) == members
        for m, member in enumerate(ensemble.members):
            torch.manual_seed(seed_of(5, m))
            same(member[1], MLP(data.shape, 8, [8]))
    exits = build(EnsembleChoice(), factory("quorate.models.MultiExitResNet", {"depth": 8, "width": 4}, data), data, 5)
    torch.manual_seed(seed_of(5, 0))
    same(exits, MultiExitResNet(data.shape, 8, 8, width=4, normalise=data.normalise()))


def same(one: nn.Module, other: nn.Module) -> None:
    assert one.state_dict().keys() == other.state_dict().keys()
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())


def regression() -> Data:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 4)).astype(np.float32)
    return arrays((x, x[:, 0]), targets=["t"], name="plane")


def test_an_ensemble_in_itself_is_single_and_classifies(own: Callable[[str], nn.Module]) -> None:
    own("Two")  # its module can be imported
    cases = [
        (EnsembleChoice("deep"), digits(), "got deep and a classification"),
        (EnsembleChoice(), regression(), "got single and a reg"),
    ]
    for choice, data, expected in cases:
        with pytest.raises(ValueError, match=f"Two is an ensemble of classifiers in itself: .*{expected}"):
            build(choice, factory("own_nets.Two", {}, data), data, 0)
