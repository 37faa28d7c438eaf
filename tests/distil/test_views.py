"""Views: order and augmentation by (seed, epoch, id), what is said of a batch on clean and augmented views, outputs on a whole split."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.data import Augmentation, Split
from quorate.distil.student import ChainStudent, Joint, freeze_, run
from quorate.distil.teacher import Teacher
from quorate.distil.views import Past, Views, centred, outputs_on
from quorate.graphs.segments import Chain, chain

ROWS = Split(np.random.default_rng(0).integers(0, 256, (22, 3, 6, 6), dtype=np.uint8), None, np.arange(100, 122)[::-1].copy())
CROPS = Augmentation(pad=2, flip=True)


def epoch(views: Views) -> tuple[list[Tensor], np.ndarray]:
    found = list(views)
    return [x for x, _ in found], np.concatenate([rows.numpy() for _, rows in found])


def test_an_epoch_is_a_permutation_by_seed_and_epoch_without_the_last_incomplete_batch() -> None:
    views = Views(ROWS, 5, seed=3)
    (x1, first), (_, second) = epoch(views), epoch(views)
    assert len(views) == len(x1) == 4
    assert views.epoch == 2
    assert [len(x) for x in x1] == [5] * 4
    assert len(set(first.tolist())) == 20
    assert set(first.tolist()) <= set(range(22))
    assert first.tolist() != second.tolist()
    assert np.array_equal(first, np.random.default_rng([3, 0]).permutation(22)[:20])
    again = Views(ROWS, 5, seed=3)
    assert np.array_equal(epoch(again)[1], first)
    assert np.array_equal(epoch(again)[1], second)
    assert not np.array_equal(epoch(Views(ROWS, 5, seed=4))[1], first)
    for x, rows in Views(ROWS, 5, seed=3):
        assert rows.dtype == torch.int64
        assert torch.equal(x, torch.from_numpy(ROWS.x[rows.numpy()]))


def test_the_order_does_not_hang_on_the_batch_size_nor_the_global_generators() -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    small = epoch(Views(ROWS, 2, seed=3))[1]
    torch.manual_seed(2)
    np.random.seed(2)  # noqa: NPY002
    large = epoch(Views(ROWS, 11, seed=3))[1]
    assert np.array_equal(small, large)


def test_a_batch_size_above_the_split_is_one_batch_of_all() -> None:
    for size in (22, 23, 1000):
        views = Views(ROWS, size, seed=0)
        assert len(views) == 1
        assert sorted(epoch(views)[1].tolist()) == list(range(22))


def test_an_augmented_view_hangs_on_seed_epoch_and_id_alone() -> None:
    def seen(views: Views, epochs: int = 1) -> dict[int, Tensor]:
        for _ in range(epochs):
            found = {int(ROWS.ids[row]): x for batch, rows in views for x, row in zip(batch, rows, strict=True)}
        return found

    one, two = seen(Views(ROWS, 4, 3, CROPS)), seen(Views(ROWS, 7, 3, CROPS))
    shared = one.keys() & two.keys()
    assert len(shared) >= 18
    assert all(torch.equal(one[key], two[key]) for key in shared)
    other, later = seen(Views(ROWS, 4, 5, CROPS)), seen(Views(ROWS, 4, 3, CROPS), epochs=2)
    for different in (other, later):
        assert any(not torch.equal(one[key], different[key]) for key in one.keys() & different.keys())
    order = np.random.default_rng(1).permutation(22)
    moved = Split(np.asarray(ROWS.x)[order], None, ROWS.ids[order])  # rows elsewhere, the same ids
    for batch, rows in Views(moved, 11, 3, CROPS):
        assert all(
            torch.equal(one[int(moved.ids[row])], x) for x, row in zip(batch, rows, strict=True) if int(moved.ids[row]) in one
        )


# — the past of a batch —


class Net(nn.Module):
    """(B, 3, 6, 6) uint8 → (B, 4), with a normalisation that has statistics."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, 2, 1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.relu(self.norm(self.a(x.float() / 255)))).mean((2, 3)))


def made(width: int, seed: int) -> Chain:
    torch.manual_seed(seed)
    return chain(Net(width), ROWS.batch(np.arange(2))[0])


def students() -> list[ChainStudent]:
    chains = [made(4, 1), made(6, 2), made(4, 3)]
    taps = [each.boundaries for each in chains]
    found = [
        ChainStudent(chains[0], 0),
        ChainStudent(chains[1], 1),
        ChainStudent(chains[2], 2, [Joint(2, 0, 2)], earlier=taps[:2]),
    ]
    with torch.no_grad():
        found[2].links[0].alpha.fill_(0.5)  # type: ignore[union-attr, operator]
    return [freeze_(student) for student in found]  # type: ignore[misc]


@pytest.mark.parametrize("centre", [True, False])
def test_what_is_stored_is_what_is_computed_on_clean_views(centre: bool) -> None:
    before = students()
    teacher = Teacher.of(made(8, 9).eval(), kind="logits" if centre else "values", name="net")
    g = teacher.on(ROWS)
    g = g - g.mean(1, keepdims=True) if centre else g
    outputs = [outputs_on(each, before[:k], ROWS, 6, centre) for k, each in enumerate(before)]
    s = np.asarray(sum(outputs) - len(outputs) * g, np.float32)
    reads = ("student1.tap1", "student3.tap0")
    asked = [Past(before, teacher, g, s, centre, online) for online in (False, True)]
    for x, rows in Views(ROWS, 6, 0):
        stored, online = (past.of(x, rows, reads) for past in asked)
        for one, two in zip(stored[:2], online[:2], strict=True):
            assert one.shape == (6, 4)
            assert one.dtype == two.dtype == torch.float32
            assert not one.requires_grad
            assert torch.allclose(one, two, atol=2e-6)
        assert stored[2].keys() == online[2].keys() == set(reads)
        assert all(torch.equal(stored[2][name], online[2][name]) for name in reads)
        assert torch.equal(stored[0], torch.from_numpy(g[rows.numpy()]))
    x = CROPS.apply(ROWS.batch(np.arange(6))[0], 0, 0, ROWS.ids[:6])
    told, total, _ = asked[1].of(x, torch.arange(6), ())
    expected = teacher.outputs(x)
    fs = run(before, x)[0]
    if centre:
        expected, fs = centred(expected), [centred(f) for f in fs]
        assert told.sum(1).abs().max() < 1e-5
    assert torch.allclose(told, expected)
    assert torch.allclose(total, sum(fs) - 3 * expected, atol=1e-6)


def test_stored_views_run_only_the_students_that_are_read() -> None:
    before = students()
    ran: list[str] = []
    for student in before:
        student.register_forward_hook(lambda module, *_: ran.append(module.name))
    g = np.zeros((22, 4), np.float32)
    past = Past(before, Teacher.of(made(8, 9).eval(), name="net"), g, g, False, False)
    x, rows = next(iter(Views(ROWS, 6, 0)))
    for reads, expected in (((), []), (("student2.tap1",), ["student2"]), (("student3.tap0",), ["student1", "student3"])):
        ran.clear()
        assert past.of(x, rows, reads)[2].keys() == set(reads)
        assert ran == expected
    past.to_(torch.device("meta"))
    assert all(p.device.type == "meta" for student in before for p in student.parameters())


def test_row_centring() -> None:
    assert centred(torch.tensor([[1.0, 2, 6], [0, 0, 0]])).tolist() == [[-2.0, -1, 3], [0, 0, 0]]


# — outputs on a split —


def test_outputs_on_clean_rows_in_eval_mode_and_modes_come_back() -> None:
    one, two, three = students()
    three.train()
    next(module for module in three.modules() if isinstance(module, nn.BatchNorm2d)).eval()  # a part in another mode
    modes = [module.training for module in three.modules()]
    buffers = {name: tensor.clone() for name, tensor in three.named_buffers()}
    found = [outputs_on(three, [one, two], ROWS, size, centre=False) for size in (1, 5, 22, 100)]
    assert [module.training for module in three.modules()] == modes
    assert all(torch.equal(buffers[name], tensor) for name, tensor in three.named_buffers())
    x = ROWS.batch(np.arange(22))[0]
    expected = run([one, two, three.eval()], x)[0][2].numpy()
    for each in found:
        assert each.dtype == np.float32
        np.testing.assert_allclose(each, expected, atol=1e-6)
    mean = expected - expected.mean(1, keepdims=True)
    np.testing.assert_allclose(outputs_on(three, [one, two], ROWS, 8, centre=True), mean, atol=1e-6)


class Says(nn.Module):
    """A student that gives a constant."""

    name, reads, writes = "student1", (), ()

    def __init__(self, shape: tuple[int, ...], value: float = 0.0) -> None:
        super().__init__()
        self.shape, self.value = shape, value

    def forward(self, x: Tensor, _: Any) -> tuple[Tensor, dict[str, Tensor]]:
        found = torch.zeros(len(x), *self.shape)
        found.view(-1)[-1] = self.value
        return found, {}


@pytest.mark.parametrize(
    ("student", "told"),
    [
        (Says((4,), float("nan")), "not finite: lower lr"),
        (Says((4,), float("inf")), "not finite: lower lr"),
        (Says((4, 2)), r"gave \(5, 4, 2\) for 5 rows"),
        (Says(()), r"gave \(5,\) for 5 rows"),
    ],
)
@pytest.mark.parametrize("centre", [True, False])
def test_outputs_that_are_none_are_refused(student: Says, told: str, centre: bool) -> None:
    with pytest.raises(ValueError, match=f"student1 .*{told}") as caught:
        outputs_on(student.train(), [], ROWS, 5, centre)
    assert student.training
    assert "\n" not in str(caught.value)
