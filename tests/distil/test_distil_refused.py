"""What a distillation refuses, and how it says so: before anything is trained or written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate.data import Split
from quorate.distil import Cut, Fixed, Rules, Teacher, distil
from quorate.distil.rules import halving
from quorate.models import MLP
from quorate.outputs import Outputs
from small_distillations import DATA, mlp, quick, sums, taught


def nan_teacher(x: Tensor) -> Tensor:
    values = x.new_zeros((len(x), 8), dtype=torch.float32)
    values[len(x) // 2, 3] = torch.nan
    return values


class Reader(nn.Module):
    name, reads, writes = "reader", ("nobody.tap1",), ()

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4)

    def forward(self, x: Tensor, carry: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.net(x) + carry["nobody.tap1"], {}


class Broken(nn.Module):
    """NaN from the first step on."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * torch.nan


def stored(skip: int = 0) -> Outputs:
    """The teacher's outputs on the rows to distil on, all but the first ones, and on those to validate on."""
    splits = DATA.train.subset(np.arange(skip, len(DATA.train))), DATA.validation
    logits = [taught()(split.batch(np.arange(len(split)))[0]).detach().numpy()[None] for split in splits]
    ids = np.concatenate([split.ids for split in splits])
    return Outputs([np.concatenate(logits, 1)], kind="logits", combine="logits", ids=ids)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"teacher": lambda: taught().train()}, r"is in training mode \(\d+ modules.*call \.eval\(\)"),
    ({"teacher": lambda: nn.Sequential(DATA.normalise(), MLP((1, 8, 8), 5, (4,))).eval()}, "gives 5 outputs per row: expected 8"),
    ({"data": sums(), "teacher": lambda: mlp(4, data=sums())}, "gives logits, sums has targets: expected kind='values'"),
    ({"rules": {"round": 3}}, r"unknown rule.*round.*rounds"),
    ({"loss": {"tua": 3.0}}, "tua.*tau"),
    ({"loss": {"kind": "potentia"}}, "potentia.*potential"),
    ({"learning_rate": 0.1}, "learning_rate"),
    ({"epoch": 3}, "epoch.*epochs"),
    ({"label_smoothing": 0.1}, r"label_smoothing=0\.1 is not for students"),
    ({"mixup": 0.2}, r"mixup=0\.2 is not for students"),
    ({"loss": {"huber": 1.0}}, "huber=1.0 is for task='regression' only"),
    ({"students": [mlp(4), Cut(width=0.5)]}, r"of several kinds \(Cut, module or function\): expected all of one"),
    ({"students": []}, "students is a list: expected None, a Ladder, or a sequence"),
    ({"students": mlp(4)}, "students is a Sequential: expected None"),
    ({"students": "small"}, "students is a str"),
    ({"students": [3]}, "a student is a int: expected a Cut"),
    ({"students": [lambda: 3]}, "expected a function that gives an nn.Module"),
    ({"rules": {"budget_macs": 100}}, r"the first student, Sequential 1, costs 432 MACs and the budget for all of them is 100"),
    (
        {"rules": {"budget": 0.01}},
        r"the first student, .* costs 432 MACs and the budget for all of them is 23: allow a larger one",
    ),
    ({"students": [Cut(width=0.5)], "rules": {"budget_macs": 10}}, r"the first student, depth 1 width 0\.5, costs"),
    ({"transfer": DATA.test}, r"transfer shares \d+ ids with the test split, such as \["),
    ({"transfer": DATA.validation}, r"transfer shares \d+ ids with the validation split"),
    ({"transfer": DATA.train.x}, "transfer is a ndarray: expected a quorate.data.Split"),
    ({"transfer": Split(np.zeros((4, 1, 8, 9), np.uint8), None, np.arange(4) + 9000)}, r"transfer has inputs \(1, 8, 9\) uint8"),
    ({"transfer": Split(np.zeros((4, 1, 8, 8), np.float32), None, np.arange(4) + 9000)}, r"float32, the data \(1, 8, 8\) uint8"),
    ({"about": {"x": {1, 2}}}, r"about=.* is not JSON"),
    ({"students": [Broken]}, r"the loss of student1 became nan at step 1: lower lr"),
    (
        {"students": [lambda: nn.Sequential(DATA.normalise(), nn.Flatten(), nn.Linear(64, 5))]},
        r"gives outputs \(1, 5\): expected \(1, 8\)",
    ),
    (
        {"students": [mlp(4), lambda: nn.Sequential(DATA.normalise(), nn.Flatten(), nn.Linear(64, 5))]},
        "gives 5 outputs per row, .* 8",
    ),
    ({"students": [Reader()]}, r"reader reads \['nobody\.tap1'\], which no earlier student writes"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_it_says_what_is_wrong(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    given = {**options, "teacher": options["teacher"]() if "teacher" in options else taught()}
    with pytest.raises(ValueError, match=said) as refusal:
        quick(**given, run=tmp_path / "r")
    assert "\n" not in str(refusal.value)


def test_a_refusal_of_what_is_asked_leaves_no_folder(tmp_path: Path) -> None:
    for options in ({"rules": {"budget_macs": 100}}, {"transfer": DATA.test}, {"mixup": 0.2}):
        with pytest.raises(ValueError, match=r"budget|transfer|mixup"):
            quick(run=tmp_path / "r", **options)
        assert not (tmp_path / "r").exists()
    assert quick(run=tmp_path / "r", rules={"rounds": 1}).rounds


def test_a_teacher_with_nan_names_the_rows(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"NaN or infinite values in the rows with ids \d+"):
        quick(Teacher.of(nan_teacher, name="nan", macs=5000.0), run=tmp_path / "r")


def test_a_function_of_unknown_cost_needs_a_budget_in_macs() -> None:
    teacher = taught()
    function = Teacher.of(lambda x: teacher(x), name="g")
    with pytest.raises(ValueError, match=r"MACs are not known.*budget_macs"):
        quick(function)
    with pytest.raises(ValueError, match="which no students can be cut from: give base="):
        quick(function, students=[Cut(width=0.5)], rules={"budget_macs": 5000})
    found = quick(function, students=[Cut(width=0.5)], base=taught(), rules={"budget_macs": 5000, "rounds": 1})
    assert found.rounds[0]["cost_share"] is None


def test_stored_outputs_teach_clean_rows_alone() -> None:
    outputs = stored()
    options: dict[str, Any] = {"rules": {"rounds": 2, "budget_macs": 5000}}
    with pytest.raises(ValueError, match="is stored outputs and knows no augmented views"):
        quick(outputs, augment=True, **options)
    found, whole = quick(outputs, **options), quick(taught(), **options)
    assert [r["candidate"] for r in found.rounds] == [r["candidate"] for r in whole.rounds]
    for a, b in zip(found.ensemble.state_dict().values(), whole.ensemble.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match=r"lacks 3 of 144 rows, first ids"):
        quick(stored(3), **options)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"rounds": 0}, "rounds=0: expected a whole number of at least 1"),
        ({"candidates": 2.0}, "candidates=2.0"),
        ({"levels": 0}, "levels=0: expected a whole number of at least 1, or None"),
        ({"budget": 0}, "budget=0: expected a finite number > 0"),
        ({"edge": -1.0}, "edge=-1.0: expected a finite number ≥ 0"),
        ({"eta": 0.0}, "eta=0.0: expected a finite number > 0, or None"),
        ({"tolerance": float("nan")}, "tolerance=nan"),
        ({"lrs": ()}, "lrs=.*at least one value"),
        ({"lrs": (1.0, -1.0)}, "lrs=-1.0"),
        ({"links": ("some",)}, "links=.*expected some of none, last, all"),
        ({"form": "Split"}, "form='Split': expected one of summed, split"),
        ({"start": "hot"}, "start='hot': expected one of fresh, warm"),
        ({"combine": "mean"}, "combine='mean': expected one of uniform, validated"),
        ({"held_out": "all"}, "held_out='all'"),
        ({"joint": True, "form": "split"}, "form='split' is a condition for every output"),
    ],
)
def test_rules_out_of_range(rules: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refusal:
        Rules.of(rules)
    assert "\n" not in str(refusal.value)


def test_a_default_ladder_that_the_budget_has_no_room_for() -> None:
    with pytest.raises(ValueError, match=r"expected at least \d+ multiply-adds, which the cheapest student has"):
        distil(taught(), None, DATA, rules={"budget_macs": 10}, augment=False, progress=False)


def test_halving() -> None:
    assert halving(1, 7) == [(1, 7)]
    assert halving(2, 7) == [(2, 4), (1, 7)]
    assert halving(4, 8) == [(4, 2), (2, 4), (1, 8)]
    assert halving(5, 8) == [(5, 1), (3, 2), (2, 4), (1, 8)]
    assert halving(4, 1) == [(4, 1), (2, 1), (1, 1)]


def test_a_fixed_list_is_one_student_per_round() -> None:
    with pytest.raises(ValueError, match="expected at least one student"):
        Fixed([])
