"""Recurrent students of parts: one network run on, each step once, gates, projections, pooling, spans, teachers, refusals."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate import cost
from quorate.data import Normalise
from quorate.distil.early import PartStudent, early_students, from_teacher
from quorate.distil.redrawing import redraw_
from quorate.models import RNN


def run(students: list[PartStudent], x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    outputs, carry = [], dict[str, Tensor]()
    for student in students:
        f, written = student(x, {name: carry[name] for name in student.reads})
        assert set(written) == set(student.writes)
        outputs.append(f)
        carry |= written
    return outputs, carry


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- one network run on ----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    cell=st.sampled_from(["lstm", "gru"]),
    layers=st.integers(1, 3),
    pool=st.sampled_from(["last", "mean", "running"]),
    stops=st.sets(st.integers(1, 11), max_size=4),
    seed=st.integers(0, 999),
)
def test_equal_weights_are_one_network_over_the_whole_sequence(
    cell: Any, layers: int, pool: Any, stops: set[int], seed: int
) -> None:
    ends = [*sorted(stops), 12]
    students = early_students(
        (3, 12), 4, fractions=[e / 12 for e in ends], cell=cell, hidden=5, layers=layers, pool=pool, seed=seed
    )
    assert [s.span for s in students] == list(itertools.pairwise([0, *ends]))
    for student in students:
        student.double()
        student.load_state_dict(students[0].state_dict(), strict=False)
    x = drawn(seed, 7, 3, 12)
    outputs, carry = run(students, x)
    states, end = students[0].recurrent(x.transpose(1, 2))
    for student, f in zip(students, outputs, strict=True):
        start, stop = student.span
        features = {
            "last": states[:, stop - 1],
            "mean": states[:, start:stop].mean(1),
            "running": states[:, :stop].mean(1),
        }[pool]
        torch.testing.assert_close(f, students[0].head(features), rtol=0, atol=1e-12)
    kinds = end if cell == "lstm" else (end,)
    torch.testing.assert_close(carry[f"part{len(ends)}.state"], torch.cat(kinds).transpose(0, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_step_goes_through_a_recurrence_once(cell: Any) -> None:
    students = early_students((2, 30), 3, fractions=(0.1, 0.5, 1.0), cell=cell, pool="running")
    x, seen = torch.randn(4, 2, 30), list[Tensor]()
    for student in students:
        student.recurrent.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run(students, x)
    assert [part.shape[1] for part in seen] == [3, 12, 15]
    torch.testing.assert_close(torch.cat(seen, 1), x.transpose(1, 2), rtol=0, atol=0)


def test_costs_are_those_of_the_span_and_of_the_map_between_sizes() -> None:
    first, second, third = early_students((3, 12), 4, fractions=(0.25, 0.5, 1.0), hidden=(5, 5, 7), cell="gru")
    x = torch.randn(2, 3, 12)
    _, carry = run([first, second, third], x)
    step, head = 3 * 5 * (3 + 5), 5 * 4
    assert cost.macs(first, (x, {})) == 3 * step + head
    assert cost.macs(second, (x, {"part1.state": carry["part1.state"]})) == 3 * step + head
    assert cost.macs(third, (x, {"part2.state": carry["part2.state"]})) == 6 * 3 * 7 * (3 + 7) + 7 * 4 + 5 * 7


def test_later_steps_are_not_looked_at() -> None:
    student, *_ = early_students((2, 8), 3, parts=2)
    x = torch.randn(2, 2, 8)
    spoilt = x.clone()
    spoilt[..., 4:] = torch.nan
    torch.testing.assert_close(student(spoilt, {})[0], student(x, {})[0], rtol=0, atol=0)
    torch.testing.assert_close(student.arrived(x[..., :4], {})[0], student(x, {})[0], rtol=0, atol=0)


# --- the link --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("gru", 1)])
def test_at_alpha_0_a_student_is_one_without_link_and_alpha_learns(cell: Any, layers: int) -> None:
    first, second = early_students((3, 10), 4, parts=2, cell=cell, layers=layers, hidden=(6, 4))
    alone = PartStudent((3, 10), 4, (5, 10), cell=cell, layers=layers, hidden=4)
    alone.load_state_dict(second.state_dict(), strict=False)
    x = torch.randn(5, 3, 10)
    _, carry = first(x, {})
    assert second.alpha is not None
    assert second.alpha.item() == 1.0
    assert not torch.allclose(second(x, carry)[0], alone(x, {})[0])
    with torch.no_grad():
        second.alpha.zero_()
    assert torch.equal(second(x, carry)[0], alone(x, {})[0])
    second(x, carry)[0].square().sum().backward()
    assert second.alpha.grad is not None
    assert second.alpha.grad.abs() > 0


def test_what_is_read_gets_no_gradient() -> None:
    first, second = early_students((3, 10), 4, parts=2, pool="running", hidden=(6, 4))
    x = torch.randn(5, 3, 10)
    _, carry = first(x, {})
    second(x, carry)[0].sum().backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad is not None for p in second.parameters())


def test_states_of_other_sizes_are_mapped() -> None:
    first = PartStudent((3, 9), 4, (0, 4), hidden=6, layers=2, pool="running").double()
    second = PartStudent((3, 9), 4, (4, 9), first, hidden=5, layers=1, pool="running", name="part2").double()
    assert (len(second.project), second.project[0].weight.shape) == (2, (5, 12))
    torch.testing.assert_close(second.project[0].weight @ second.project[0].weight.T, torch.eye(5).double(), rtol=0, atol=1e-6)
    x = drawn(3, 7, 3, 9)
    (_, f), carry = run([first, second], x)
    state = carry["part1.state"]
    assert state.shape == (7, 4, 6)
    h, c = (p(s.reshape(7, 12))[None] for p, s in zip(second.project, (state[:, :2], state[:, 2:]), strict=True))
    states, _ = second.recurrent(x[..., 4:].transpose(1, 2), (h, c))
    mean = (4 * second.project_mean(carry["part1.mean"]) + states.sum(1)) / 9
    torch.testing.assert_close(f, second.head(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(carry["part2.mean"], mean, rtol=0, atol=1e-12)


def test_drawn_anew_maps_are_orthogonal_and_the_gate_is_open() -> None:
    _, second = early_students((2, 8), 3, parts=2, hidden=(6, 4), pool="running")
    with torch.no_grad():
        for parameter in second.parameters():
            parameter.fill_(7.0)
    redraw_(second, 0)
    assert second.alpha is not None
    assert second.alpha.item() == 1.0
    maps = [part.weight for part in (*second.project, second.project_mean) if isinstance(part, nn.Linear)]
    assert len(maps) == 3
    for weight in maps:
        torch.testing.assert_close(weight @ weight.T, torch.eye(4))


def test_names_say_what_is_read_and_written() -> None:
    plain, running = (early_students((3, 8), 2, pool=pool) for pool in ("mean", "running"))
    assert [s.name for s in plain] == ["part1", "part2", "part3", "part4"]
    assert [(s.reads, s.writes) for s in plain[:2]] == [((), ("part1.state",)), (("part1.state",), ("part2.state",))]
    assert running[1].reads == ("part1.state", "part1.mean")
    assert running[1].writes == ("part2.state", "part2.mean")
    assert "span=(2, 4), pool='mean'" in repr(plain[1])


# --- building --------------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(length=st.integers(1, 300), parts=st.integers(1, 9))
def test_parts_cover_the_sequence_as_equally_as_steps_allow(length: int, parts: int) -> None:
    if parts > length:
        with pytest.raises(ValueError, match=f"parts={parts} of a sequence of {length} steps"):
            early_students((1, length), 1, parts, hidden=1)
        return
    spans = [s.span for s in early_students((1, length), 1, parts, hidden=1)]
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))
    sizes = [stop - start for start, stop in spans]
    assert max(sizes) - min(sizes) <= 1


def test_a_fraction_ends_with_the_first_step_by_which_it_has_come() -> None:
    ends = [s.span[1] for s in early_students((1, 125), 1, fractions=(0.1, 0.25, 0.3, 1.0), hidden=1)]
    assert ends == [13, 32, 38, 125]
    assert [s.span[1] for s in early_students((1, 10), 1, fractions=(0.1, 0.3, 0.7, 1.0), hidden=1)] == [1, 3, 7, 10]


def test_the_seed_says_the_weights_and_nothing_else_is_touched() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    a, b, other = (early_students((3, 8), 2, 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    for mine, same, different in zip(a, b, other, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), same.parameters(), strict=True))
        assert not torch.equal(mine.head.weight, different.head.weight)
    assert not torch.equal(a[0].head.weight, a[1].head.weight)


def test_normalisation_is_in_front_copied_and_per_step() -> None:
    module = Normalise([10.0, 0.0], [2.0, 0.5], (2, 8))
    students = early_students((2, 8), 3, parts=2, normalise=module)
    plain = early_students((2, 8), 3, parts=2)
    x = torch.randint(0, 255, (4, 2, 8), dtype=torch.uint8)
    module.mean.fill_(99.0)
    scaled = torch.stack([(x[:, 0].float() - 10) / 2, x[:, 1].float() / 0.5], 1)
    for f, g in zip(run(students, x)[0], run(plain, scaled)[0], strict=True):
        assert torch.equal(f, g)
    wide = PartStudent((2, 8), 3, (0, 8), normalise=nn.Conv1d(2, 5, 1))
    assert wide.recurrent.input_size == 5
    assert PartStudent((2, 1), 3, (0, 1), normalise=nn.BatchNorm1d(2))(torch.randn(4, 2, 1), {})[0].shape == (4, 3)


# --- a teacher -------------------------------------------------------------------------------------------------------


class Twice(nn.Module):
    """Runs its recurrence again and again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times, self.cell = times, nn.GRU(3, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        steps = x.transpose(1, 2)
        for _ in range(self.times):
            steps, _ = self.cell(steps)
        return steps[:, -1]


@pytest.mark.parametrize(("cell", "layers"), [("lstm", 2), ("gru", 1)])
def test_cell_layers_width_and_outputs_are_the_teachers(cell: Any, layers: int) -> None:
    front = nn.Sequential(nn.Conv1d(3, 6, 3, 2), nn.BatchNorm1d(6))
    teacher = nn.Sequential(front, RNN((6, 5), 7, cell, hidden=16, layers=layers, dropout=0.3)).train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    students = from_teacher(teacher, torch.randn(4, 3, 12), parts=3, width=(0.25, 0.375, 0.5), pool="mean")
    assert [(s.cell, s.layers, s.hidden, s.pool) for s in students] == [(cell, layers, h, "mean") for h in (4, 6, 8)]
    assert run(students, torch.randn(2, 3, 12))[0][2].shape == (2, 7)
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert [s.layers for s in from_teacher(teacher, torch.randn(4, 3, 12), layers=1)] == [1] * 4
    fractions = from_teacher(teacher, torch.randn(4, 3, 12), fractions=(0.5, 1.0), width=0.75, seed=3)
    assert [(s.hidden, s.span) for s in fractions] == [(12, (0, 6)), (12, (6, 12))]


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), "recurrent modules: none; expected exactly one"),
        (
            lambda: nn.Sequential(RNN((3, 12), 4), RNN((3, 12), 4)),
            r"0\.recurrent \(LSTM\), 1\.recurrent \(LSTM\); expected exactly one",
        ),
        (lambda: nn.RNN(3, 4), r"itself \(RNN\); expected exactly one nn.LSTM or nn.GRU"),
        (lambda: RNN((3, 12), 4, "gru", bidirectional=True), r"recurrent \(GRU\) is bidirectional: .* can't be streamed"),
        (lambda: nn.LSTM(3, 4, proj_size=2), "projects its states to 2"),
        (lambda: Twice(2), r"runs its cell \(GRU\) 2 times in one pass: expected once"),
        (lambda: Twice(0), r"runs its cell \(GRU\) 0 times"),
        (
            lambda: nn.Sequential(nn.Flatten(1, 2), nn.Unflatten(1, (12, 3)), nn.LSTM(3, 4, batch_first=True)),
            "returned tuple: expected",
        ),
        (lambda: nn.Sequential(Twice(1), nn.Flatten(0)), r"returned \(6,\): expected \(2, outputs\)"),
    ],
)
def test_teachers_that_do_not_say_what_is_needed(teacher: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_teacher(teacher(), torch.randn(2, 3, 12))


# --- refusals --------------------------------------------------------------------------------------------------------


def test_widths_that_are_no_whole_number_of_units() -> None:
    teacher, x = RNN((3, 12), 4, hidden=10), torch.randn(2, 3, 12)
    with pytest.raises(ValueError, match=r"width=0.25 of 10 units is 2.5: expected a whole number, nearest 2/10 or 3/10"):
        from_teacher(teacher, x, width=0.25)
    for width in (0, -1.0, float("nan"), "half"):
        with pytest.raises(ValueError, match="expected a share > 0 of the teacher's 10 units"):
            from_teacher(teacher, x, width=(width,) * 4)
    with pytest.raises(ValueError, match="hidden has 2 widths for 4 parts"):
        from_teacher(teacher, x, width=(0.5, 0.5))
    with pytest.raises(ValueError, match=r"example of shape \(3, 12\): expected raw sequences"):
        from_teacher(teacher, x[0])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"parts": 2, "fractions": (0.5, 1.0)}, r"parts=2 and fractions=\(0.5, 1.0\): expected one of them"),
        ({"parts": 0}, "parts: expected an int of at least 1"),
        ({"fractions": ()}, "shares > 0 that rise to 1.0"),
        ({"fractions": (0.5,)}, "shares > 0 that rise to 1.0"),
        ({"fractions": (0.0, 1.0)}, "shares > 0 that rise to 1.0"),
        ({"fractions": (0.5, 0.25, 1.0)}, "shares > 0 that rise to 1.0"),
        ({"fractions": (0.5, float("nan"), 1.0)}, "shares > 0 that rise to 1.0"),
        ({"fractions": (0.01, 0.02, 1.0)}, r"of 10 steps end at steps \[1, 1, 10\]: expected at least one step in every part"),
        ({"hidden": (3, 3)}, "hidden has 2 widths for 4 parts: expected one for all"),
        ({"hidden": 0}, "hidden: expected an int of at least 1"),
        ({"cell": "rnn"}, "cell: expected"),
        ({"pool": "max"}, "pool: expected"),
        ({"normalise": nn.Flatten()}, r"normalise gives \(2, 20\) for sequences \(2, 2, 10\)"),
        ({"normalise": nn.Conv1d(2, 2, 3, padding=1)}, "other values than the whole: expected a module that acts on each step"),
        ({"normalise": nn.LayerNorm(10)}, "normalise does not run on sequences of 2 channels and on parts of them"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        early_students((2, 10), 3, **options)
    assert "\n" not in str(caught.value)


def test_spans_and_students_before_that_do_not_fit() -> None:
    for span in ((0, 0), (5, 3), (0, 11), (-1, 3), (0, 2.5), 4):
        with pytest.raises(ValueError, match=r"expected \(start, stop\) with 0 ≤ start < stop ≤ 10"):
            PartStudent((2, 10), 3, span)  # type: ignore[arg-type]
    first = PartStudent((2, 10), 3, (0, 4))
    refused: list[tuple[tuple[int, int], PartStudent | None, dict[str, Any], str]] = [
        ((5, 10), first, {}, "part2 starts at step 5, part1 ends at 4"),
        ((4, 10), first, {"cell": "gru"}, "part2 has cell 'gru', part1 'lstm': expected one kind of cell"),
        ((4, 10), first, {"pool": "running"}, "part1 has pool='last': expected pool='running' in both"),
        ((4, 10), first, {"name": "part1"}, "two students are called 'part1'"),
        ((4, 10), None, {"pool": "running"}, "expected after= for the running mean"),
    ]
    for span, after, options, told in refused:
        with pytest.raises(ValueError, match=told):
            PartStudent((2, 10), 3, span, after, **({"name": "part2"} | options))


def test_inputs_that_do_not_fit() -> None:
    student = PartStudent((2, 10), 3, (0, 4))
    for shape in ((5, 2, 3), (5, 3, 4), (2, 4)):
        with pytest.raises(ValueError, match=r"part1 expected \(B, 2, at least 4 steps\)"):
            student(torch.zeros(shape), {})
    with pytest.raises(ValueError, match=r"part1 expected \(B, 2, 4\), its span's steps"):
        student.arrived(torch.zeros(5, 2, 5), {})
