"""Pools: levels, candidates, which taps are linked, students built again from plain values, the user's own, warm starts."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.data.normalise import Normalise
from quorate.distil.cutting import Cut, ladder
from quorate.distil.ensemble import Distilled
from quorate.distil.links import Incompatible
from quorate.distil.matching import feature_tap
from quorate.distil.pool import Candidate, Fixed, Pool, name_of, spec_of, student_macs, without_dropout_
from quorate.distil.student import ChainStudent, Joint, freeze_
from quorate.graphs.segments import Boundary, Chain, chain
from quorate.models.resnet import ResNet
from user_architectures import Attention, Encoder, Inverted, Tokens, TwoBranches

X = torch.randn(2, 4, 30, generator=torch.Generator().manual_seed(0))


def layers(*widths: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in itertools.pairwise((120, *widths))))


def pool(**options: Any) -> Pool:
    return Pool.listed([lambda: layers(6, 5, 3), lambda: layers(8, 8, 3), layers(9, 9, 9, 3)], X[:1], **options)


# — levels and candidates —


def test_levels_are_kinds_of_links_and_then_sizes() -> None:
    assert pool().levels == [(0, "none"), (0, "last"), (0, "all"), (1, "all"), (2, "all")]
    assert pool(links=("last",)).levels == [(0, "last"), (1, "last"), (2, "last")]
    assert pool(links=("all", "none")).levels == [(0, "all"), (0, "none"), (1, "none"), (2, "none")]
    made = pool(links=("all",))
    assert [made.level_of(Candidate(*c)) for c in ((0, "none"), (0, "all"), (2, "all"))] == [0, 0, 2]


def kinds(found: list[Candidate]) -> list[tuple[int, str, bool, float]]:
    return [(c.size, c.links, c.stem, c.lr) for c in found]


def test_candidates_come_from_the_newest_level_and_the_one_before() -> None:
    made, lrs = pool(), (1.0, 0.5)
    assert kinds(made.candidates(0, 3, 0, 3, lrs, 0)) == [
        (0, "none", False, 1.0),
        (0, "none", False, 0.5),
        (0, "none", False, 1.0),
    ]
    assert kinds(made.candidates(1, 0, 0, 2, lrs, 0)) == [(0, "none", False, 1.0), (0, "none", False, 0.5)]
    assert kinds(made.candidates(1, 3, 0, 1, lrs, 0)) == [(1, "all", False, 1.0)]
    new, old = (1, "all", False), (0, "all", False)
    expected = [(*new, 1.0), (*old, 1.0), (*new, 0.5), (*old, 0.5), (*new, 1.0)]
    assert kinds(made.candidates(2, 3, 0, 5, lrs, 0)) == expected
    stems = pool(stem=True).candidates(1, 1, 0, 6, (2.0,), 0)
    last, none = (0, "last"), (0, "none")
    assert kinds(stems) == [(*c, 2.0) for c in [(*last, False), (*last, True), (*none, False), (*none, True)] * 2][:6]
    assert kinds(pool(stem=True).candidates(0, 0, 0, 2, (1.0,), 0)) == [(0, "none", False, 1.0)] * 2


def test_several_levels_may_be_searched_together() -> None:
    made = pool(breadth=2)
    assert [c[:2] for c in kinds(made.candidates(1, 1, 0, 3, (1.0,), 0))] == [(0, "last"), (0, "all"), (0, "none")]
    assert [c[:2] for c in kinds(made.candidates(1, 1, 0, 2, (1.0,), 0))] == [(0, "last"), (0, "all")]
    assert [c[:2] for c in kinds(made.candidates(1, 4, 0, 2, (1.0,), 0))] == [(2, "all"), (1, "all")]


def test_seeds_hang_on_seed_place_attempt_and_level() -> None:
    made = pool()
    seen: set[int] = set()
    for seed, place, attempt, level in itertools.product((0, 1), (0, 1, 2), (0, 1), (0, 1)):
        found = made.candidates(place, level, attempt, 4, (1.0,), seed)
        assert found == made.candidates(place, level, attempt, 4, (1.0, 1.0), seed)
        assert found[:2] == made.candidates(place, level, attempt, 4, (1.0,), seed)[:2]
        seen |= {c.seed for c in found}
    assert len(seen) == 2 * 3 * 2 * 2 * 4
    for c in found:
        assert spec_of(json.loads(json.dumps(c.as_json()))) == c == spec_of(c)
    told = Candidate(1, "all", True, 123456, 0.5)
    assert made.described(told) == f"{made.names[1]}, links all, stem reused, seed 3456, lr × 0.5"


# — what is linked —


def normalised(width: int) -> nn.Sequential:
    return nn.Sequential(Normalise((0.5,) * 3, (2.0,) * 3, (3, 16, 16)), ResNet((3, 16, 16), 5, 8, width=width))


def test_what_stands_before_the_first_weights_is_neither_linked_nor_taken_for_features() -> None:
    x = torch.randn(2, 3, 16, 16)
    made = Pool.listed([lambda: normalised(4), lambda: normalised(8)], x[:1])
    first = made.build(Candidate(0, seed=1), 0, [], x)
    assert feature_tap(chain(normalised(4), x)) == 1
    second = made.build(Candidate(1, "all", seed=2), 1, [first], x)
    assert [(j.at, j.tap) for j in second.joints] == [(k, k) for k in range(1, 7)]
    third = made.build(Candidate(1, "all", True, seed=3), 2, [first, second], x)
    assert third.start == Joint(1, 1, 1)
    assert not any("conv1.weight" in name and p.shape[1] == 3 for name, p in third.named_parameters())
    assert {(j.student, j.at) for j in third.joints} == {(0, k) for k in range(1, 7)} | {(1, k) for k in range(2, 7)}
    fourth = made.build(Candidate(0, "all", True, seed=4), 3, [first, second, third], x)
    assert fourth.start == Joint(1, 2, 2)  # of the third, which has no earlier features of its own
    assert all(j.tap >= 2 for j in fourth.joints if j.student == 2)
    ensemble = Distilled([first, second, third, fourth])
    assert ensemble(x).shape == (4, 2, 5)
    assert "student1.tap0" not in {name for stage in ensemble.stages() for name in stage.writes}
    assert student_macs(third, [first, second], x[:1]) < student_macs(second, [first], x[:1])


def test_integer_inputs_are_not_linked() -> None:
    class Words(Tokens):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.long())

    x = torch.randint(0, 50, (2, 9), dtype=torch.uint8)
    made = Pool.listed([Words], x[:1])
    first = made.build(Candidate(0, seed=1), 0, [], x)
    second = made.build(Candidate(0, "all", seed=2), 1, [first], x)
    taps = first.boundaries
    assert taps[0] == Boundary((9,), 1)  # indices
    assert [(j.at, j.tap) for j in second.joints] == [(k, k) for k in range(1, len(taps))]
    assert Distilled([first, second])(x).shape == (2, 2, 3)


# — building —


def bits(student: nn.Module) -> list[Tensor]:
    return [*student.state_dict().values()]


def same(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, c) for a, c in zip(bits(one), bits(two), strict=True))


@pytest.mark.parametrize("source", ["function", "module", "cut"])
def test_the_same_candidate_gives_the_same_bits(source: str) -> None:
    if source == "cut":
        model = TwoBranches(8)
        made = Pool.cut_from(model, X, ladder(model, X, (1.0,), (0.5, 0.75), (1,)))
        assert made.names == ("depth 1 width 0.5", "depth 1 width 0.75")
    else:
        made = Pool.listed([(lambda: TwoBranches(8)) if source == "function" else TwoBranches(8)], X)
    first = freeze_(made.build(Candidate(0, seed=5), 0, [], X))
    state = torch.get_rng_state()
    for candidate in (Candidate(0, "all", True, 6), Candidate(0, "last", False, 7), Candidate(0, "none", False, 8)):
        torch.manual_seed(candidate.seed + 1)
        one = made.build(candidate, 1, [first], X)
        torch.set_rng_state(state)
        two = made.build(candidate, 1, [first], X)
        assert torch.equal(torch.get_rng_state(), state)
        assert same(one, two)
        assert (one.joints, one.start) == (two.joints, two.start)
        assert not same(one, made.build(Candidate(0, candidate.links, candidate.stem, 99), 1, [first], X))
    assert all(p.requires_grad for p in one.parameters())


def test_sizes_have_names() -> None:
    assert name_of(Cut(0.5, 0.375)) == "depth 0.5 width 0.375"
    assert name_of(Cut(1.0, 0.25, 2)) == "depth 1 width 0.25 resolution 1/2"


def test_a_warm_start_takes_over_the_latest_of_the_same_size_and_links_stay_fresh() -> None:
    made, cold = pool(warm=True, stem=True), pool(stem=True)
    first, other = made.build(Candidate(0, seed=1), 0, [], X), made.build(Candidate(1, seed=2), 1, [], X)
    assert same(first, cold.build(Candidate(0, seed=1), 0, [], X))
    second = made.build(Candidate(0, "all", seed=3), 2, [first, other], X)
    assert same(second.segments, first.segments)
    fresh = cold.build(Candidate(0, "all", seed=3), 2, [first, other], X)
    assert same(second.links, fresh.links)
    assert all(float(link.alpha.detach()) == 0 for link in second.links)  # type: ignore[arg-type, union-attr]
    with torch.no_grad():
        for parameter in second.segments.parameters():
            parameter.add_(1.0)
    third = made.build(Candidate(0, seed=4), 3, [first, other, second], X)
    assert same(third.segments, second.segments)
    assert not {id(p) for p in third.parameters()} & {id(p) for p in second.parameters()}
    stem = made.build(Candidate(0, "none", True, 5), 3, [first, other, second], X)  # it has only the later segments
    assert stem.first > 0
    assert same(stem.segments, nn.ModuleList(list(second.segments)[stem.first :]))
    behind = made.build(Candidate(0, "none", False, 6), 4, [stem], X)
    assert same(nn.ModuleList(list(behind.segments)[stem.first :]), stem.segments)
    drawn = cold.build(Candidate(0, seed=6), 0, [], X)
    assert same(*(nn.ModuleList(list(each.segments)[: stem.first]) for each in (behind, drawn)))
    largest = made.build(Candidate(2, seed=7), 3, [first, other, second], X)
    assert same(largest, cold.build(Candidate(2, seed=7), 3, [first, other, second], X))


class Branch(nn.Module):
    """Can't be traced, and writes into what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(120, 3)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2.0)
        if float(x.detach().sum()) > 1e9:
            return self.layer(x.flatten(1)) + 1
        return self.layer(x.flatten(1))


def test_a_module_that_can_not_be_traced_is_a_student_without_links() -> None:
    one = Branch()
    made = Pool.listed([lambda: one, TwoBranches(8)], X[:1])
    assert len(made.notes) == 1
    assert made.notes[0].startswith("Branch 1 can't have links: ")
    first = made.build(Candidate(0, seed=1), 0, [], X)
    second = made.build(Candidate(0, "all", seed=2), 1, [first], X)
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}  # of the function's one module
    third = made.build(Candidate(1, "all", seed=3), 2, [first, second], X)
    assert first.reads == first.writes == second.reads == third.reads == ()
    x = X.clone()
    found = Distilled([first, second, third])(x)
    assert torch.equal(x, X)
    assert torch.allclose(found[0], one.layer(2 * X.flatten(1)))
    with pytest.raises(Incompatible, match="no features"):
        made.build(Candidate(1, "none", True), 1, [first], X)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(6, 8), Attention(8, 2, fused=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.attention(F.dropout(self.a(x), 0.3, training=self.training)).mean(1))


def test_without_dropout_training_and_evaluation_are_alike() -> None:
    x = torch.randn(4, 20, 6)
    for model in (Dropping(), Encoder(8)):
        made = chain(model, x).train()
        assert not torch.equal(made(x), made(x))
        without_dropout_(made)
        assert torch.allclose(made(x), made.eval()(x), atol=1e-6)
    model = TwoBranches(8)
    kept = Pool.cut_from(nn.Sequential(model, nn.Dropout(0.5)), X, ladder(model, X, (1.0,), (0.5,), (1,)), dropout=True)
    student = kept.build(Candidate(0), 0, [], X)
    assert [m.p for m in student.modules() if isinstance(m, nn.Dropout)] == [0.5]


# — given students, and refusals —


def test_given_students_are_searched_by_seed_and_learning_rate_alone() -> None:
    def make(width: int) -> Any:
        def made(seed: int) -> ChainStudent:
            torch.manual_seed(seed)
            return ChainStudent(chain(layers(width, 3), X), 0)

        return made

    given = Fixed([make(4), make(6)], ["short", "long"])
    found = given.candidates(1, 0, 0, 3, (1.0, 0.5), 7)
    assert [(c.size, c.lr) for c in found] == [(1, 1.0), (1, 0.5), (1, 1.0)]
    assert len({c.seed for c in found}) == 3
    assert found == given.candidates(1, 0, 0, 3, (1.0, 0.5), 7)
    assert {c.seed for c in found}.isdisjoint(c.seed for c in given.candidates(1, 0, 1, 3, (1.0,), 7))
    assert given.candidates(2, 0, 0, 3, (1.0,), 7) == []
    assert given.described(found[1]) == f"long, seed {found[1].seed % 10_000}, lr × 0.5"
    assert given.fixed
    assert not pool().fixed
    assert Fixed([make(4)]).names == ("student 1",)
    assert same(given.build(found[0], 1, [], X), make(6)(found[0].seed))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Pool([], []), "at least one student class"),
        (lambda: Pool(["a"], []), "at least one student class"),
        (lambda: Pool(["a"], [lambda _: None, lambda _: None]), "1 names for 2"),  # type: ignore[arg-type, return-value]
        (lambda: pool(links=()), "expected some of none, last, all"),
        (lambda: pool(links=("none", "some")), "expected some of none, last, all"),
        (lambda: pool(links=("none", "none")), "each once"),
        (lambda: Fixed([]), "at least one student"),
        (lambda: Fixed([lambda _: nn.Identity()], ["a", "b"]), "2 names for 1"),
        (lambda: Pool.listed([lambda: 5], X), "a student was made that is a int"),  # type: ignore[list-item, return-value]
        (lambda: Pool.listed([nn.Linear(7, 2)], X), r"Linear 1 does not run on inputs \(2, 4, 30\)"),
        (lambda: Pool.listed([Inverted()], X), "Inverted 1 does not run on inputs"),
        (lambda: Pool.listed([nn.LSTM(30, 3)], X), "LSTM 1 gives tuple for 2 rows"),
        (lambda: Pool.listed([nn.Identity()], X), r"Identity 1 gives \(2, 4, 30\) for 2 rows"),
    ],
)
def test_refusals(make: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_chain_of_one_segment_is_a_student_too() -> None:
    student = ChainStudent(Chain([layers(3)], (), Boundary((4, 30), None)), 0)
    assert student.writes == ()
    assert feature_tap(student) == 0
    assert student(X, {})[1] == {}
