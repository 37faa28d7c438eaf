"""The contract's check of ``each`` can fail: each ensemble below breaks it in one way, and that check alone says so."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from ensemble_contract import CHECKS, Make, check_ensemble
from quorate.ensemble import DeepEnsemble, OutputLayer, each, has_each
from test_contract_broken import Two, X, failing


class Whole(Two):
    """Two linear members that take inputs of their own."""

    def each(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x[0]), self.b(x[1])])


class FirstForAll(Whole):
    def each(self, x: Tensor) -> Tensor:
        return super().each(x[:1].expand_as(x))


class Exchanged(Whole):
    def each(self, x: Tensor) -> Tensor:
        return super().each(x.flip(0))


class RowsFlipped(Whole):
    def each(self, x: Tensor) -> Tensor:
        return super().each(x).flip(1)


class BatchesFirst(Whole):
    def each(self, x: Tensor) -> Tensor:
        return super().each(x).transpose(0, 1)


class MeanOfInputs(Whole):
    """Of equal inputs the mean is each of them."""

    def each(self, x: Tensor) -> Tensor:
        return super().each(0.5 * (x + x.mean(0)))


class LeakingALittle(Whole):
    """Less than rounding."""

    def each(self, x: Tensor) -> Tensor:
        a, b = super().each(x)
        return torch.stack([a, b + 1e-30 * a])


class LeakingInTraining(Whole):
    def each(self, x: Tensor) -> Tensor:
        a, b = super().each(x)
        return torch.stack([a, b + 1e-30 * a if self.training else b])


class BlindInTraining(Whole):
    def each(self, x: Tensor) -> Tensor:
        return super().each(torch.zeros_like(x) if self.training else x)


BROKEN: dict[type[nn.Module], str] = {
    FirstForAll: "row 1 is not member 1 on its own input",
    Exchanged: "row 0 is not member 0 on its own input",
    RowsFlipped: "with equal inputs for all members it is not forward",
    BatchesFirst: r"it gives \(6, 2, 3\), forward \(2, 6, 3\)",
    MeanOfInputs: "row 0 is not member 0",
    LeakingALittle: r"member 1 changes with the input of member 0 \(train=False\)",
    LeakingInTraining: r"member 1 changes with the input of member 0 \(train=True\)",
    BlindInTraining: r"member 0 does not see its input \(train=True\)",
}


def test_the_whole_one_breaks_nothing() -> None:
    assert failing(Whole) == {}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_each_break_is_found(make: type[nn.Module]) -> None:
    said = failing(make)
    assert set(said) == {"each"}
    assert re.match(f"AssertionError: each: {BROKEN[make]}", said["each"])


def test_integers_leak_too() -> None:
    class Tokens(nn.Module):
        leak = 0.0

        def __init__(self) -> None:
            super().__init__()
            self.tables = nn.ModuleList(nn.Sequential(nn.Embedding(7, 3), nn.Flatten()) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([table(x) for table in self.tables])

        def each(self, x: Tensor) -> Tensor:
            a, b = (table(rows) for table, rows in zip(self.tables, x, strict=True))
            return torch.stack([a, b + self.leak * a])

    class Leaking(Tokens):
        leak = 1e-12

    check = next(check for check in CHECKS if check.__name__ == "check_each")
    x = torch.randint(0, 7, (5, 4), generator=torch.Generator().manual_seed(0))
    check(Tokens, x)
    with pytest.raises(AssertionError, match="each: member 1 changes with the input of member 0"):
        check(Leaking, x)


def layered() -> nn.Module:
    return OutputLayer(
        DeepEnsemble([nn.Linear(5, 4), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))]), nn.Tanh(), "logits"
    )


def test_an_output_layer_offers_what_the_ensemble_inside_offers() -> None:
    make: Make = layered
    check_ensemble(make, X)
    check_ensemble(lambda: OutputLayer(Two(), nn.Tanh(), "logits"), X)
    assert (has_each(layered()), has_each(OutputLayer(Two(), nn.Tanh(), "logits"))) == (True, False)
    with pytest.raises(
        ValueError, match=r"^OutputLayer takes one input for all members: expected a method each\(x\), .* of their own$"
    ):
        each(OutputLayer(Two(), nn.Tanh(), "logits"), torch.zeros(2, 4, 5))
