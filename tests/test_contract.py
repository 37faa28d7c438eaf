"""Ensembles that keep the contract: deep and packed ones of several architectures, and one by hand whose stages carry features."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from ensemble_contract import CHECKS, Make, check_ensemble
from quorate.data import Normalise
from quorate.ensemble import DeepEnsemble, MemberStage
from quorate.models import MLP, LeNet
from quorate.models.resnet import ResNet
from quorate.packed import pack

IMAGE = (3, 8, 8)


def images(rows: int = 6) -> Tensor:
    """Raw uint8 images (rows, 3, 8, 8)."""
    return torch.randint(0, 256, (rows, *IMAGE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def mlp() -> nn.Module:
    return MLP(IMAGE, 3, (16, 12), dropout=0.2, norm=True)


def lenet() -> nn.Module:
    return LeNet(IMAGE, 3, width=(4, 8), hidden=(16, 12))


def resnet() -> nn.Module:
    return ResNet(IMAGE, 3, depth=8, width=8)


def raw(model: nn.Module) -> nn.Module:
    return nn.Sequential(Normalise((100.0, 120.0, 140.0), (60.0, 70.0, 80.0), IMAGE), model)


ARCHITECTURES = {"mlp": mlp, "lenet": lenet, "resnet8": resnet}


@pytest.mark.parametrize("members", [1, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_deep_ensemble(architecture: str, members: int) -> None:
    check_ensemble(lambda: DeepEnsemble(raw(ARCHITECTURES[architecture]()) for _ in range(members)), images())


def test_deep_ensemble_of_different_members_on_floats() -> None:
    x = torch.randn(5, *IMAGE, generator=torch.Generator().manual_seed(1))
    check_ensemble(lambda: DeepEnsemble([mlp(), lenet()]), x)


@pytest.mark.parametrize(("architecture", "members"), [("mlp", 1), ("mlp", 4), ("lenet", 4), ("resnet8", 4)])
def test_packed(architecture: str, members: int) -> None:
    check_ensemble(lambda: pack(raw(ARCHITECTURES[architecture]()), members=members, alpha=2, example=images(2)), images())


def test_packed_with_subgroups() -> None:
    check_ensemble(lambda: pack(raw(MLP(IMAGE, 3, (32, 32))), members=2, alpha=2, gamma=2, example=images(2)), images())


def test_deep_ensemble_of_packed_networks_is_refused_as_members() -> None:
    packed = pack(raw(mlp()), members=2, alpha=2)
    with pytest.raises(ValueError, match=r"expected \(B, C\) from each"):
        DeepEnsemble([packed])(images())


class First(nn.Module):
    """Student 1: its hidden features are carried on, and its mean feature too, which only student 2 reads."""

    name, reads, writes, drops = "first", (), ("features", "mean"), ()

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        features = self.hidden(x).tanh()
        return self.head(features)[None], {"features": features, "mean": features.mean(1)}


class Second(nn.Module):
    """Student 2: reads student 1's features, replaces them by its own and drops the mean."""

    name, reads, writes, drops = "second", ("features", "mean"), ("features",), ("mean",)

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(18, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        features = self.hidden(torch.cat([x, carry["features"]], 1)).tanh() * carry["mean"][:, None]
        return self.head(features)[None], {"features": features}


class Third(nn.Module):
    """Two more members at once, on the features of student 2."""

    name, reads, writes, drops = "third", ("features",), (), ("features",)

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        return torch.stack([head(carry["features"]) for head in self.heads]), {}


class Students(nn.Module):
    """Students that reuse features; their logits are averaged."""

    combine = "logits"
    shared = ("first.hidden.weight", "first.hidden.bias", "second.hidden.weight", "second.hidden.bias")

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = First(), Second(), Third()

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second, self.third]

    def forward(self, x: Tensor) -> Tensor:
        one, carry = self.first(x, {})
        two, later = self.second(x, carry)
        three, _ = self.third(x, later)
        return torch.cat([one, two, three])


def test_students_that_carry_features() -> None:
    check_ensemble(Students, torch.randn(9, 10, generator=torch.Generator().manual_seed(2)))


def test_students_share_more_than_nothing() -> None:
    class Undeclared(Students):
        shared = ()

    make: Make = Undeclared
    isolation = next(check for check in CHECKS if check.__name__ == "check_isolation")
    with pytest.raises(AssertionError, match=r"isolation: members 0 and 1 share \d+ elements of 'first.hidden"):
        isolation(make, torch.randn(5, 10, generator=torch.Generator().manual_seed(3)))


def test_one_of_several_stages_can_hold_several_members() -> None:
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(DeepEnsemble(nn.Linear(10, 3) for _ in range(2)) for _ in range(2))

        def stages(self) -> list[nn.Module]:
            return [MemberStage(f"pair{k}", part) for k, part in enumerate(self.parts)]

        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([part(x) for part in self.parts])

    check_ensemble(Pairs, torch.randn(5, 10, generator=torch.Generator().manual_seed(4)))
