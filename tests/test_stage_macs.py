"""MACs of stages: counted by what PyTorch runs, or said by the stage itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

import quorate
from quorate.ensemble import stage_macs


class Part(nn.Module):
    """A linear layer on x, and on the carried features where it reads them."""

    def __init__(self, name: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.name, self.reads, self.writes, self.drops = name, reads, writes, ()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.layer(x) + sum(carry[name] for name in self.reads)
        return logits[None], dict.fromkeys(self.writes, logits)


class Thrifty(Part):
    """Says that it costs 5 MACs per row, and notes what it was asked with."""

    asked: tuple[tuple[int, ...], list[str], bool] | None = None

    def counted_macs(self, x: Tensor, carry: Mapping[str, Tensor]) -> int:
        self.asked = tuple(x.shape), sorted(carry), self.training
        return 5


class Parts(nn.Module):
    def __init__(self, *parts: Part) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        carry: dict[str, Tensor] = {}
        rows = []
        for part in self.parts:
            logits, written = part(x, carry)
            carry |= written
            rows.append(logits)
        return torch.cat(rows)

    def stages(self) -> list[nn.Module]:
        return list(self.parts)


def test_a_stage_may_say_its_macs_itself() -> None:
    second = Thrifty("second", ("a",), ("b",))
    ensemble = Parts(Part("first", (), ("a",)), second, Part("third", ("a", "b")))
    x = torch.randn(2, 4)
    assert stage_macs(ensemble, x) == [12, 5, 12]
    assert second.asked == ((2, 4), ["a"], False)  # what it reads alone, in eval mode
    assert [stage.macs for stage in quorate.stages(ensemble, x)] == [12.0, 5.0, 12.0]
    assert [stage.macs for stage in quorate.stages(ensemble, x, groups=[2, 1])] == [17.0, 12.0]
    assert list(quorate.collect(ensemble, x.numpy()).costs or ()) == [12, 5, 12]


def test_an_attribute_that_is_no_method_is_not_taken_for_one() -> None:
    part = Part("only")
    part.counted_macs = None
    assert stage_macs(Parts(part), torch.randn(1, 4)) == [12]
