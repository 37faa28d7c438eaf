"""The contract's checks can fail: each ensemble below breaks it in one way, and the checks that this concerns, only they, say so."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ensemble_contract import CHECKS, check_ensemble
from quorate.ensemble import MemberStage

X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two linear members, made whole: what the broken ones change."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), self.b(x)])


class BatchFirst(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).transpose(0, 1)


class LosesARow(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[1:])


class Labels(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).round().long()


class OneClass(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., :1]


class UnknownCombine(Two):
    combine = "votes"


class Flipped(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flip(1)


class BatchStatistics(Two):
    """Centres over the batch also in evaluation, as batch normalisation does in training."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([z - z.mean(0) for z in super().forward(x)])


class SoftmaxOverBatch(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


class Blind(Two):
    """Gives every row the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.full_like(x, 1 / 3))


class Leaking(Two):
    """The second member gets a little of the first one's output."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = super().forward(x)
        return torch.stack([a, b + 1e-12 * a])


class LeakingWithoutGradient(Two):
    def forward(self, x: Tensor) -> Tensor:
        a, b = super().forward(x)
        return torch.stack([a, b + a.detach()])


class LeakingInTraining(Two):
    def forward(self, x: Tensor) -> Tensor:
        a, b = super().forward(x)
        return torch.stack([a, a + b if self.training else b])


class OneElementShared(Two):
    """One bias of nine weights and biases serves both members."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = super().forward(x)
        return torch.stack([a, b + self.a.bias[2] * torch.tensor([0.0, 0.0, 1.0])])


class Constant(Two):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.a(x), x[:, :3]])


class UnknownShared(Two):
    shared = ("a.weight", "c.weight")


class Random(Two):
    def forward(self, x: Tensor) -> Tensor:
        return functional.dropout(super().forward(x), 0.5, training=True)


class HiddenState(Two):
    """A random scale that is no part of the state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(3) + 1, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


class SameWeights(Two):
    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))


class BoundToItself(Two):
    """Holds a closure over its parameters, which a deep copy leaves pointing to the original's."""

    def __init__(self) -> None:
        super().__init__()
        first = self.a
        self.call = lambda x: functional.linear(x, first.weight.to(x.dtype), first.bias.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.call(x), self.b(x)])


class SinglePrecision(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float()


class RoundedInside(Two):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).float().to(x.dtype)


class DependsOnValues(Two):
    """A branch on the data, which no program without Python can hold."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        return logits * 1.0 if bool((logits > 0).any()) else logits


class Reader(nn.Module):
    """A linear stage on x and, if it reads something, that."""

    def __init__(self, name: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = (), drops: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.name, self.reads, self.writes, self.drops = name, reads, writes, drops
        self.layer = nn.Linear(5 + 5 * len(reads), 3)

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = self.layer(torch.cat([x, *(carry[name] for name in self.reads)], 1))
        return logits[None], dict.fromkeys(self.writes, x.sin())


class Staged(nn.Module):
    """Two stages, the second of which reads what the first wrote; whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = Reader("a", writes=("sine",)), Reader("b", reads=("sine",), drops=("sine",))

    def stages(self) -> list[nn.Module]:
        return [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x, {})[0], self.b(x, {"sine": x.sin()})[0]])


class WrongOrder(Two):
    def stages(self) -> list[nn.Module]:
        return [MemberStage("b", self.b), MemberStage("a", self.a)]


class StageMissing(Two):
    def stages(self) -> list[nn.Module]:
        return [MemberStage("a", self.a)]


class SameNames(Two):
    def stages(self) -> list[nn.Module]:
        return [MemberStage("a", self.a), MemberStage("a", self.b)]


class ReadsWhatNobodyWrites(Staged):
    def __init__(self) -> None:
        super().__init__()
        self.a.writes = ()


class DropsUncarried(Staged):
    def __init__(self) -> None:
        super().__init__()
        self.b.drops = ("cosine",)


class Wrapped(nn.Module):
    """A stage with something else about it."""

    def __init__(self, stage: Reader, before: Reader | None = None) -> None:
        super().__init__()
        self.name, self.reads, self.writes, self.drops = stage.name, stage.reads, stage.writes, stage.drops
        self.stage, self.before = stage, before


class Sneaking(Wrapped):
    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.stage(x, {"sine": carry["sine"]})


class Chatting(Wrapped):
    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.stage(x, carry)[0], {"total": x.sum(0)}


class OneBatchSize(Wrapped):
    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.stage(x.reshape([int(n) for n in x.shape]), carry)


class Remembering(Wrapped):
    """Hands rows on in the module, not in the carry, where they would leave when their inputs do."""

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        if self.before is None:
            self.stage.seen = x
            return self.stage(x, {})[0], {}
        seen = self.before.seen
        return self.stage(x, {"sine": seen[torch.arange(len(x)) % len(seen)].sin()})[0], {}


class ReadsUndeclared(Staged):
    def stages(self) -> list[nn.Module]:
        second = Sneaking(self.b)
        second.reads = ()
        return [self.a, second]


class WritesUndeclared(Staged):
    def stages(self) -> list[nn.Module]:
        return [self.a, Chatting(self.b)]


class WritesNotBatchFirst(Staged):
    def stages(self) -> list[nn.Module]:
        second = Chatting(self.b)
        second.writes = ("total",)
        return [self.a, second]


class StageOfOneBatchSize(Staged):
    def stages(self) -> list[nn.Module]:
        return [self.a, OneBatchSize(self.b)]


class RemembersRows(Staged):
    def stages(self) -> list[nn.Module]:
        both = [Remembering(self.a), Remembering(self.b, self.a)]
        for stage in both:
            stage.reads = stage.writes = stage.drops = ()
        return both


BROKEN: dict[type[nn.Module], tuple[str, set[str], str]] = {
    # ensemble: the check that is for it, others that must trip over it too, what it says
    BatchFirst: ("shape", {"rows", "cascade", "isolation"}, "expected them second"),
    LosesARow: ("shape", {"rows", "cascade"}, r"expected them second, \(M, 6, C\)"),
    Labels: ("shape", {"isolation", "double"}, "expected floats"),
    OneClass: ("shape", set(), "at least two classes"),
    UnknownCombine: ("shape", {"cascade"}, "combine is 'votes'"),
    Flipped: ("rows", {"cascade"}, "permuted inputs"),
    BatchStatistics: ("rows", {"cascade"}, "row 0 alone"),
    SoftmaxOverBatch: ("rows", {"cascade"}, "row 0 alone"),
    Blind: ("rows", set(), "the inputs do not matter"),
    Leaking: ("isolation", set(), "members 0 and 1 share 3 elements of 'a.bias'"),
    LeakingWithoutGradient: ("isolation", set(), "member 1 changes with the parameters of member 0"),
    LeakingInTraining: ("isolation", set(), r"share 3 elements of 'a.bias' \(train=True\)"),
    OneElementShared: ("isolation", set(), "share 1 elements of 'a.bias'"),
    Constant: ("isolation", set(), "member 1 depends on no parameter"),
    UnknownShared: ("isolation", set(), "'c.weight'"),
    Random: ("determinism", {"rows", "isolation", "state_dict", "copy", "double", "export", "cascade"}, "different bits"),
    HiddenState: ("state_dict", set(), "gives other outputs"),
    SameWeights: ("state_dict", set(), "same weights again"),
    BoundToItself: ("copy", {"isolation"}, "changes with the original"),
    SinglePrecision: ("double", set(), "gives torch.float32"),
    RoundedInside: ("double", set(), "float32 numbers"),
    DependsOnValues: ("export", set(), "torch.export fails"),
    WrongOrder: ("stages", set(), "do not give the rows of forward"),
    StageMissing: ("stages", {"cascade"}, r"\(1, 6, 3\) together, forward \(2, 6, 3\)"),
    SameNames: ("stages", {"cascade"}, "expected each once"),
    ReadsWhatNobodyWrites: ("stages", {"stage_export", "cascade"}, "not carried"),
    ReadsUndeclared: ("stages", {"stage_export", "cascade"}, "'b' reads 'sine', which it does not declare"),
    WritesUndeclared: ("stages", {"stage_export", "cascade"}, r"writes \['total'\], declared \[\]"),
    WritesNotBatchFirst: ("stages", {"stage_export", "cascade"}, "not batch first"),
    DropsUncarried: ("stages", {"stage_export"}, r"drops \['cosine'\]"),
    RemembersRows: ("cascade", set(), "not the full ensemble"),
    StageOfOneBatchSize: ("stage_export", set(), "torch.export fails"),
}


def failing(make: type[nn.Module]) -> dict[str, str]:
    """Name of each check that fails → what it says."""
    said = {}
    with torch.random.fork_rng(devices=[]):
        for check in CHECKS:
            torch.manual_seed(3)
            try:
                check(make, X)
            except Exception as error:
                said[check.__name__.removeprefix("check_")] = f"{type(error).__name__}: {error}"
    return said


@pytest.mark.parametrize("whole", [Two, Staged])
def test_the_whole_ones_break_nothing(whole: type[nn.Module]) -> None:
    assert failing(whole) == {}


@pytest.mark.parametrize("make", BROKEN, ids=lambda make: make.__name__)
def test_each_break_is_found_by_its_check(make: type[nn.Module]) -> None:
    check, also, message = BROKEN[make]
    said = failing(make)
    assert set(said) == {check} | also
    assert re.match(f"AssertionError: {check.replace('_', ' ')}: .*{message}", said[check], re.DOTALL)


def test_check_ensemble_runs_every_check() -> None:
    with pytest.raises(AssertionError, match=r"export: torch\.export fails"):
        check_ensemble(DependsOnValues, X)
    with pytest.raises(AssertionError, match="3 rows: the contract needs at least 4"):
        check_ensemble(Two, X[:3])
