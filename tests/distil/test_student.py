"""A chain as a student: what links add, that nothing earlier changes, steps that work in place, students that start from features."""

from __future__ import annotations

import copy
import hashlib
import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.cost import macs
from quorate.data import Split
from quorate.distil.learner import Training
from quorate.distil.links import Incompatible, Link
from quorate.distil.matching import feature_tap, first_features, joints
from quorate.distil.student import ChainStudent, Joint, Student, freeze_, run, tap_name, upstream
from quorate.distil.teacher import Teacher
from quorate.distil.views import Past, Views
from quorate.graphs.segments import Boundary, Chain, chain
from quorate.training.settings import Settings
from user_architectures import ARCHITECTURES, stirred


def pair(name: str, kind: Any = "all") -> tuple[ChainStudent, ChainStudent, ChainStudent, Tensor]:
    """An earlier student, and one of equal weights without and with links to it; inputs."""
    make, shape = ARCHITECTURES[name]
    torch.manual_seed(2)
    x = torch.randn(3, *shape[1:])
    earlier, whole = chain(stirred(make(), 1), x), chain(stirred(make(width=20), 2), x)
    first = ChainStudent(earlier, 0)
    links = joints(kind, whole.boundaries, [earlier.boundaries], [feature_tap(earlier)], feature_tap(whole))
    assert links
    plain = ChainStudent(copy.deepcopy(whole), 1)
    return freeze_(first), plain, ChainStudent(whole, 1, links, earlier=[earlier.boundaries]), x  # type: ignore[return-value]


def tensors_hash(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("name", ["transformer", "two branches", "u-shaped"])
def test_at_gate_zero_it_is_the_unlinked_student_bit_for_bit_and_learns_to_open(name: str) -> None:
    first, plain, linked, x = pair(name)
    carry = run([first], x)[1]
    for mode in (False, True):
        outputs = []
        for student in (plain, linked):
            torch.manual_seed(5)
            outputs.append(student.train(mode)(x, carry)[0])
        assert torch.equal(*outputs)
    optimizer = torch.optim.SGD(linked.parameters(), 0.1)
    linked.eval()(x, carry)[0].square().sum().backward()
    links = [link for link in linked.links if isinstance(link, Link)]
    projections = [p for link in links for p in link.project.parameters()]
    assert all(float(link.alpha.grad) != 0 for link in links)  # type: ignore[union-attr, arg-type]
    assert projections
    assert all(float(p.grad.abs().max()) == 0 for p in projections)  # type: ignore[union-attr]
    optimizer.step()
    optimizer.zero_grad()
    linked(x, carry)[0].square().sum().backward()
    assert all(float(p.grad.abs().max()) > 0 for p in projections)  # type: ignore[union-attr]
    assert not torch.equal(linked(x, carry)[0], plain.eval()(x, carry)[0])


def test_training_leaves_every_earlier_parameter_and_buffer_as_it_was() -> None:
    first, _, linked, _ = pair("u-shaped")  # batch normalisation throughout
    rows = Split(torch.randn(24, 3, 16, 16).numpy(), None, np.arange(24))
    teacher = Teacher.of(lambda x: x.mean((2, 3)) @ torch.ones(3, 4), kind="logits", name="rule")
    before, own = tensors_hash(first), copy.deepcopy(linked.state_dict())
    for online in (False, True):
        g = teacher.on(rows)
        past = Past([first], teacher, g, np.zeros_like(g), True, online)
        views = Views(rows, 8, 3)
        training = Training(linked, past, lambda f, g, _: (f - g).square().mean(), views, Settings.of({"epochs": 1, "lr": 0.05}))
        training.advance_(1)
        assert linked.training
    assert tensors_hash(first) == before
    assert not first.training
    assert all(p.grad is None and not p.requires_grad for p in first.parameters())
    after = linked.state_dict()
    assert all(
        not torch.equal(own[name], after[name]) for name in own if name.endswith(("alpha", "running_mean", "project.weight"))
    )


def test_no_gradient_reaches_the_inputs_or_the_carry_through_links() -> None:
    _, _, linked, x = pair("two branches")
    carry = {name: torch.randn(3, *boundary).requires_grad_() for name, boundary in _shapes(linked, "two branches").items()}
    linked.eval()(x, carry)[0].sum().backward()
    assert all(tensor.grad is None for tensor in carry.values())


def _shapes(student: ChainStudent, name: str) -> dict[str, tuple[int, ...]]:
    make, shape = ARCHITECTURES[name]
    boundaries = chain(make(), torch.randn(shape)).boundaries
    return {tap_name(0, i): b.shape for i, b in enumerate(boundaries) if tap_name(0, i) in student.reads}


# — what is computed —


class Plain(nn.Module):
    """A chain of linear layers, x → Aᵢ x."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def linear(*sizes: int, seed: int = 0) -> Chain:
    torch.manual_seed(seed)
    return chain(Plain(*sizes), torch.randn(2, sizes[0]))


def weights(made: Chain) -> list[Tensor]:
    return [p.detach().T for p in made.parameters()]


def test_what_links_add_is_gone_on_with_and_written() -> None:
    one, two = linear(4, 5, 6, 3), linear(4, 7, 6, 3, seed=1)
    (a1, a2, a3), (b1, b2, b3) = weights(one), weights(two)
    earlier = [one.boundaries]
    student = ChainStudent(two, 1, [Joint(0, 0, 0), Joint(0, 0, 1), Joint(1, 0, 1)], earlier=earlier)
    first, x = ChainStudent(one, 0), torch.randn(5, 4)
    with torch.no_grad():
        for link, alpha in zip(student.links, (0.5, -1.0, 2.0), strict=True):
            link.alpha.fill_(alpha)  # type: ignore[union-attr, operator]
    p0, p1 = (student.links[k].project.weight.detach().T for k in (0, 1))  # type: ignore[union-attr, operator]
    h1 = x @ b1 + 0.5 * (x @ a1 @ p0) - (x @ a1 @ a2 @ p1)
    h2 = h1 @ b2 + 2 * (x @ a1 @ a2)
    outputs, carry = run([first, student], x)
    assert student.reads == ("student1.tap0", "student1.tap1")
    assert student.writes == ("student2.tap0", "student2.tap1")
    for found, expected in (
        (outputs[0], x @ a1 @ a2 @ a3),
        (carry["student2.tap0"], h1),
        (carry["student2.tap1"], h2),
        (outputs[1], h2 @ b3),
    ):
        assert torch.allclose(found, expected, atol=1e-5)
    assert isinstance(student, Student)
    assert not isinstance(Plain(4, 3), Student)


def test_a_student_may_start_from_an_earlier_ones_features() -> None:
    one, two = linear(4, 5, 6, 3), linear(4, 7, 6, 3, seed=1)
    student = ChainStudent(copy.deepcopy(two), 1, [Joint(1, 0, 1)], Joint(0, 0, 1), [one.boundaries])
    assert student.first == 1
    assert student.writes == ("student2.tap1",)
    assert student.reads == ("student1.tap1",)
    x = torch.randn(5, 4)
    (a1, a2, _), (_, b2, b3) = weights(one), weights(two)
    entrance = student.entrance.project.weight.detach().T  # type: ignore[union-attr, operator]
    expected = x @ a1 @ a2 @ entrance @ b2 @ b3
    outputs, _ = run([ChainStudent(one, 0), student], x)
    assert torch.allclose(outputs[1], expected, atol=1e-5)
    loss = student(x, {"student1.tap1": (x @ a1 @ a2).requires_grad_()})[0].sum()
    loss.backward()
    assert all(p.grad is not None for p in [*student.segments.parameters(), *student.entrance.parameters()])  # type: ignore[union-attr]


def test_the_reused_stem_is_not_executed_and_costs_nothing_but_its_adapter() -> None:
    make, shape = ARCHITECTURES["inverted"]
    x = torch.randn(shape)
    one, two = chain(make(), x), chain(make(width=24), x)
    start = first_features(two, [one.boundaries], [0])
    assert start == Joint(0, 0, 0)
    first = freeze_(ChainStudent(one, 0))
    whole = ChainStudent(copy.deepcopy(two), 1, earlier=[one.boundaries]).eval()
    student = ChainStudent(two, 1, (), start, [one.boundaries]).eval()
    carry = {name: kept for name, kept in run([first], x)[1].items() if name in student.reads}
    positions = 8 * 8
    stem, adapter = 3 * 24 * 9 * positions, 16 * 24 * positions
    assert macs(student, (x, carry)) == macs(whole, (x, {})) - stem + adapter
    assert not any("stem" in name for name, _ in student.named_parameters())
    assert student(torch.full_like(x, torch.nan), carry)[0].isfinite().all()  # raw inputs are not looked at


# — steps that work in place —


class Writing(nn.Module):
    """Steps that write into the tensors at which it is cut: modules, functions, operators, through a view and into the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1)
        self.d, self.e, self.head = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1), nn.Linear(24, 2)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.1, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(F.hardtanh_(x))
        x = self.b(self.relu(x))
        y = self.c(1.5 * x)
        x += y
        x = self.d(self.drop(x))
        x = self.e(F.relu_(x) + 1)
        x = x.flatten(1)
        x.view(-1, 4, 6)[:, 0].mul_(2.0)
        return self.head(x.add_(1.0).clamp_(-2))


class ByHand(nn.Module):
    """As a segment that nobody has traced."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x)


def kept_as_they_were(students: list[Any], x: Tensor) -> list[Tensor]:
    """Run students and see that inputs and carry stay as they are."""
    given, carry, found = x.clone(), dict[str, Tensor](), []
    copies: dict[str, Tensor] = {}
    for student in students:
        f, written = student(x, carry)
        assert torch.equal(x, given)
        assert all(torch.equal(carry[name], tensor) for name, tensor in copies.items())
        carry |= written
        copies |= {name: tensor.clone() for name, tensor in written.items()}
        found.append(f)
    return found


@torch.no_grad()
def test_steps_in_place_leave_the_inputs_and_what_is_carried() -> None:
    x = torch.randn(3, 3, 6)
    models = [stirred(Writing(), seed).eval() for seed in (1, 2)]
    one, two = (chain(model, x) for model in models)
    assert len(one.boundaries) >= 5
    first = ChainStudent(one, 0)
    second = ChainStudent(two, 1, joints("all", two.boundaries, [one.boundaries]), earlier=[one.boundaries]).eval()
    start = ChainStudent(chain(models[1], x), 2, (), Joint(1, 0, 0), [one.boundaries, two.boundaries]).eval()
    found = kept_as_they_were([first, second, start], x)
    for model, f in zip(models, found, strict=False):
        assert torch.equal(f, model(x.clone()))
    first.train()
    second.train()
    kept_as_they_were([first, second], x)


def test_steps_in_place_train_behind_a_link() -> None:
    x = torch.randn(3, 3, 6)
    one, two = chain(Writing().eval(), x), chain(Writing(), x)
    student = ChainStudent(two, 1, (), Joint(0, 0, 0), [one.boundaries])
    carry = run([ChainStudent(one, 0)], x)[1]
    student(x, carry)[0].sum().backward()
    assert all(p.grad is not None for p in student.parameters())


@torch.no_grad()
def test_segments_that_were_not_traced_get_copies() -> None:
    segments = [ByHand(F.relu_), ByHand(lambda x: x.add_(1.0)), ByHand(lambda x: x.mul_(3.0))]
    made = Chain(segments, [Boundary((4,), 1)] * 2, Boundary((4,), 1))
    x = torch.randn(5, 4)
    first, second = ChainStudent(made, 0), ChainStudent(made, 1, [Joint(0, 0, 1)], earlier=[made.boundaries])
    outputs = kept_as_they_were([first, second], x)
    assert all(torch.equal(f, (x.relu() + 1) * 3) for f in outputs)


# — order, and refusals —


def test_which_students_have_to_run() -> None:
    class Named:
        def __init__(self, name: str, reads: str = "", writes: str = "") -> None:
            self.name, self.reads, self.writes = name, tuple(reads), tuple(writes)

    students = [Named("1", "", "ab"), Named("2", "a", "c"), Named("3", "", "d"), Named("4", "c", "e"), Named("5", "bd", "a")]
    named = lambda reads: "".join(s.name for s in upstream(students, tuple(reads)))  # noqa: E731
    assert [named(reads) for reads in ("", "b", "c", "d", "e", "de", "a")] == ["", "1", "12", "3", "124", "1234", "135"]


def test_only_what_is_needed_is_given_on() -> None:
    one = ChainStudent(linear(4, 5, 6, 3), 0)
    assert set(run([one], torch.randn(2, 4), frozenset({"student1.tap1"}))[1]) == {"student1.tap1"}
    assert set(run([one], torch.randn(2, 4))[1]) == {"student1.tap0", "student1.tap1"}
    assert not run([one], torch.randn(2, 4))[0][0].requires_grad


def test_a_frozen_student_has_no_gradients_left() -> None:
    student = ChainStudent(linear(4, 5, 3), 0).train()
    student(torch.randn(2, 4), {})[0].sum().backward()
    assert freeze_(student) is student
    assert not student.training
    assert all(p.grad is None and not p.requires_grad for p in student.parameters())


@pytest.mark.parametrize(
    ("links", "start", "told"),
    [
        ([Joint(0, 1, 0)], None, "expected one of the 1 earlier students"),
        ([Joint(0, -1, 0)], None, "expected one of the 1 earlier students"),
        ([Joint(2, 0, 0)], None, "expected taps that are there"),
        ([Joint(0, 0, 2)], None, "expected taps that are there"),
        ([Joint(-1, 0, 0)], None, "expected taps that are there"),
        ([Joint(0, 0, -1)], None, "expected taps that are there"),
        ([], Joint(0, 0, 5), "expected taps that are there"),
        ([Joint(0, 0, 0)], Joint(1, 0, 0), "starts at tap 1: expected links behind it"),
    ],
)
def test_links_to_what_is_not_there_are_refused(links: list[Joint], start: Joint | None, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        ChainStudent(linear(4, 5, 6, 3), 1, links, start, [linear(4, 5, 6, 3).boundaries])
    assert "\n" not in str(caught.value)


def test_links_that_do_not_fit_are_refused() -> None:
    with pytest.raises(Incompatible, match="as many axes"):
        ChainStudent(linear(4, 5, 3), 1, [Joint(0, 0, 0)], earlier=[(Boundary((5, 2), 1),)])
