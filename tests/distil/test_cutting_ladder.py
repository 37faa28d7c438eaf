"""The ladder of sizes: priced as quorate.cost prices the students, sorted, within the budget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from quorate.cost import UnknownOperatorWarning, count
from quorate.distil.cutting import Cut, cut, ladder
from quorate.models.mlp import MLP
from quorate.models.resnet import ResNet
from user_architectures import Inverted, Transformer

MODEL, X = ResNet((3, 16, 16), 5, 14, width=8), torch.randn(1, 3, 16, 16)


@pytest.mark.slow
def test_every_size_costs_what_its_student_costs() -> None:
    found = ladder(MODEL, X, depths=(0.5, 1.0), widths=(0.25, 0.5), resolutions=(1, 2))
    assert len(found) == 8
    for size in found:
        cost = count(cut(MODEL, X, size.cut), X)
        assert (size.macs, size.parameters) == (cost.macs, cost.parameters)
    assert [size.macs for size in found] == sorted({size.macs for size in found})
    assert {size.cut for size in found} == {Cut(d, w, r) for d in (0.5, 1.0) for w in (0.25, 0.5) for r in (1, 2)}
    assert found[0].cut == Cut(0.5, 0.25, 2)
    assert found.skipped == ()


@pytest.mark.slow
def test_the_defaults_and_an_architecture_that_is_not_known() -> None:
    found = ladder(Inverted(), torch.randn(1, 3, 16, 16))
    assert {size.cut.width for size in found} == {0.25, 0.375, 0.5, 0.75}
    assert {size.cut.depth for size in found} == {0.5, 1.0}
    assert {size.cut.resolution for size in found} == {1, 2}


def test_what_cannot_be_cut_is_skipped_with_the_reason() -> None:
    found = ladder(Transformer(), torch.randn(1, 20, 6), widths=(0.5,))
    assert [size.cut for size in found] == [Cut(0.5, 0.5, 1), Cut(1.0, 0.5, 1)]
    assert [reason.split(":")[0] for reason in found.skipped] == ["depth 0.5, resolution 2", "depth 1, resolution 2"]
    assert all("does not run on the smaller input" in reason for reason in found.skipped)
    found = ladder(MLP((6,), 3, hidden=(8,)), torch.randn(1, 6), depths=(1,), widths=(0.5, 1), resolutions=(1,))
    assert [size.cut.width for size in found] == [0.5, 1]


def test_of_equal_multiply_adds_one_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    found = ladder(model, torch.randn(1, 3, 4, 4), depths=(1,), widths=(0.6, 0.7, 0.25), resolutions=(1,))
    assert [size.cut.width for size in found] == [0.25, 0.6]
    assert found.skipped == ("depth 1, width 0.7, resolution 1: as many multiply-adds (150) as depth 1, width 0.6, resolution 1, "
                             "not more parameters",)  # fmt: skip


def test_sizes_that_stay_as_they_are_have_a_reason() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    found = ladder(model, torch.randn(1, 3), depths=(1,), widths=(0.5, 1), resolutions=(1,))
    assert [size.cut for size in found] == [Cut(1, 1, 1)]
    assert "channels that can go, got none" in found.skipped[0]


def test_the_budget_is_the_most() -> None:
    every = ladder(MODEL, X, widths=(0.25, 0.5), resolutions=(1,))
    limit = every[1].macs
    found = ladder(MODEL, X, widths=(0.25, 0.5), resolutions=(1,), budget=limit)
    assert found.sizes == every.sizes[:2]
    assert len(found.skipped) == len(every) - 2
    assert f"above the budget of {limit}" in found.skipped[0]
    with pytest.raises(ValueError, match=f"at least {every[0].macs} multiply-adds, which the cheapest student has") as raised:
        ladder(MODEL, X, widths=(0.25, 0.5), resolutions=(1,), budget=every[0].macs - 1)
    assert "depth 0.5, width 0.25, resolution 1" in str(raised.value)


@pytest.mark.parametrize("budget", [0, -1.0, float("nan"), True, "1e6"])
def test_a_budget_is_positive(budget: object) -> None:
    with pytest.raises(ValueError, match="budget: expected a positive number of multiply-adds"):
        ladder(MODEL, X, budget=budget)  # type: ignore[arg-type]


def test_no_size_at_all_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"sizes that Linear can be cut to, got none: depth 0.5, resolution 1: depth: expected segments"
    ):
        ladder(nn.Linear(3, 2), torch.randn(1, 3))
    with pytest.raises(ValueError, match=r"sizes that ResNet can be cut to, got none$"):
        ladder(MODEL, X, widths=())
    with pytest.raises(ValueError, match="width: expected a share"):
        ladder(MODEL, X, widths=(2,))


class Solving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(torch.diag_embed(self.b(torch.relu(self.a(x))))).sum(1)


def test_operators_without_a_price_are_reported() -> None:
    with pytest.warns(UnknownOperatorWarning, match="lower bound"):
        ladder(Solving(), torch.randn(1, 4), depths=(1,), widths=(0.5, 0.25), resolutions=(1,))
