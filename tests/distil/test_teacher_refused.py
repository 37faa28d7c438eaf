"""Teachers that cannot be, or cannot answer: every refusal, in one line, with the rows named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from quorate import DeepEnsemble, Outputs
from quorate.data import Split
from quorate.distil.teacher import Teacher

N, X = 7, torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
IDS = np.array([14, 3, 8, 77, 5, 20, 6])
SPLIT = Split(X.numpy(), None, IDS)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).eval()


class Rows:
    """Rows that a Split would refuse."""

    y = None

    def __init__(self, x: Tensor) -> None:
        self.x, self.ids = x, IDS[: len(x)]

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self.x[rows], torch.zeros(len(rows))


def refusing(message: str, run: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        run()
    assert "\n" not in str(refusal.value)


def test_training_mode_is_refused_whenever_it_comes() -> None:
    model = net()
    teacher = Teacher.of(model)
    model[1].train()
    for run in (lambda: teacher.outputs(X), lambda: Teacher.of(model)):
        refusing(r"teacher 'Sequential' is in training mode \(1 modules, first '1'\): call \.eval\(\) on it", run)
    refusing(r"'Linear' is in training mode \(1 modules\)", lambda: Teacher.of(nn.Linear(4, 3)))
    refusing("is in training mode", lambda: Teacher.of(net(), transform=nn.Dropout()))
    assert model[1].training


def test_bad_rows_are_named() -> None:
    x = X.clone()
    x[2, 0], x[5, 1] = float("nan"), float("inf")
    refusing("NaN or infinite values in rows 2, 5: mend the teacher", lambda: Teacher.of(net()).outputs(x))
    refusing("NaN or infinite values in the rows with ids 8, 20: mend", lambda: Teacher.of(net()).on(Rows(x), 64))
    refusing("NaN or infinite values in the rows with ids 8: mend", lambda: Teacher.of(net()).on(Rows(x), 3))
    huge = Teacher.of(lambda x: x.double() * 1e300, name="huge")
    refusing(r"in rows 0, 1, 2, 3, 4, … \(7\)", lambda: huge.outputs(X))
    zero = Teacher.of(lambda x: torch.tensor([1.0, 0.0]).expand(len(x), 2), kind="probs", name="sure")
    refusing("a probability of 0, whose log is infinite in the rows with ids 14, 3: give its logits", lambda: zero.on(SPLIT, 2))
    off = Teacher.of(lambda x: x, kind="probs", name="off")
    refusing(
        r"no probabilities \(negative, NaN, or of another sum than 1\) in rows 0, .*: is kind='logits'", lambda: off.outputs(X)
    )


def gives(answer: Callable[[Tensor], Any], **options: Any) -> Callable[[], Any]:
    return lambda: Teacher.of(answer, name="f", **options).outputs(X)


STORED = Outputs([np.zeros((N, 3))], ids=IDS)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Teacher.of(net(), expect=5).outputs(X), "gives 3 outputs per row: expected 5, as the students and the data have"),
    (lambda: Teacher.of(STORED, expect=2), "teacher 'stored outputs' gives 3 outputs per row: expected 2"),
    (lambda: Teacher.of(net(), kind="gaussian").outputs(X), r"gives 3 outputs per row: a gaussian has 2·D"),
    (lambda: Teacher.of(net(), kind="top1"), "teacher's kind='top1': expected one of logits, probs, values, gaussian"),  # type: ignore[arg-type]
    (lambda: Teacher.of(net(), combine="mean"), "teacher's combine='mean': expected one of probs, logits, last"),  # type: ignore[arg-type]
    (lambda: Teacher.of(net(), macs=0), "macs=0: expected multiply-adds per input, a finite number > 0"),
    (lambda: Teacher.of(net(), combine="last"), "combine='last' takes the last stage's members, but teacher 'Sequential' has no st"),
    (lambda: Teacher.of(net(), combine="probs").outputs(X), r"shape \(7, 3\), no members \(M, 7, L\): leave combine='probs' out"),
    (lambda: Teacher.of(DeepEnsemble([net()], "values").eval(), kind="logits"), "declares kind='values', but kind='logits' is asked for"),
    (lambda: Teacher.of(STORED, kind="values"), "declares kind='logits', but kind='values' is asked for"),
    (lambda: Teacher.of(Outputs([(np.zeros(2, int), np.ones(2))], kind="top1")), "holds kind 'top1': distillation needs every"),
    (lambda: Teacher.of(Outputs([np.full((2, 2), 0.5)], kind="probs"), combine="logits"), "gives probabilities, which have no mean"),
    (lambda: Teacher.of(STORED, transform=torch.square), "the teacher is stored outputs, which has no transform=: leave it out"),
    (lambda: Teacher.of(net(), output="y", providers=["x"]), "is no ONNX file, which has no output=, providers=: leave it out"),
    (lambda: Teacher.of(STORED).outputs(X), "is stored outputs and knows no new inputs, such as augmented views: give the model"),
    (lambda: Teacher.of(STORED).check_online("views"), "stored outputs and knows no views"),
    (lambda: Teacher.of(STORED).on(Split(X.numpy(), None, IDS + 1)), r"lacks 6 of 7 rows, first ids \[15, 4, 9\]: store its outputs"),
    (lambda: Teacher.of(Outputs([np.zeros((2, 3))], ids=["a", "b"])).on(SPLIT), "has ids of type <U1, the data int64"),
    (lambda: Teacher.of([net()]), "teacher of type list: expected a module, a function x → .*predict_proba with kind='probs'"),
    (lambda: Teacher.of("model.pt"), r"teacher 'model\.pt': expected a \.safetensors file of Outputs, or an \.onnx file"),
    (lambda: Teacher.of(net()).outputs(X[:0]), r"got x of shape \(0, 4\): expected a tensor \(B, \*shape\) with at least one row"),
    (lambda: Teacher.of(net()).outputs(X.numpy()), "got x of ndarray: expected a tensor"),  # type: ignore[arg-type]
    (lambda: Teacher.of(net()).outputs(X[:, :3]), r"can't take torch\.float32 inputs of shape \(7, 3\) .*put its normalisation in"),
    (lambda: Teacher.of(net()).outputs((X * 9).byte()), r"can't take torch\.uint8 inputs of shape \(7, 4\)"),
    (lambda: Teacher.of(net()).on(list(X)), "split of type list: expected a quorate.data.Split"),  # type: ignore[arg-type]
    (lambda: Teacher.of(net()).on(Rows(X[:0])), "the split has no rows: expected at least one"),
    (lambda: Teacher.of(net()).on(SPLIT, 0), "batch_size=0: expected an integer of at least 1"),
    (lambda: Teacher.of(net()).on(SPLIT, out=np.zeros((N, 2), np.float32)), r"out is float32 of shape \(7, 2\): expected a writ.*\(7, 3\)"),
    (lambda: Teacher.of(net()).on(SPLIT, out=np.zeros((N, 3))), r"out is float64 of shape \(7, 3\)"),  # type: ignore[arg-type]
    (gives(lambda x: {"logits": x}), "teacher 'f' returned dict: expected one tensor or array of floats"),
    (gives(lambda x: x.argmax(1)), r"returned Tensor of torch\.int64: expected one tensor or array of floats"),
    (gives(lambda x: x.argmax(1).numpy()), "returned ndarray of int64"),
    (gives(lambda x: x[:, 0]), r"returned shape \(7,\) for 7 rows: expected \(7, L\), or \(members, 7, L\)"),
    (gives(lambda x: x[1:]), r"returned shape \(6, 4\) for 7 rows"),
    (gives(lambda x: x[:, :0]), r"returned shape \(7, 0\) for 7 rows"),
    (gives(lambda x: x[:, None]), r"returned shape \(7, 1, 4\) for 7 rows"),
    (gives(lambda x: x[None]), r"returned shape \(1, 7, 4\): say how members become one, such as combine='probs'"),
    (gives(lambda x: x[None], combine="last"), "this teacher has no stages: expected 'probs' or 'logits'"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "message"), REFUSED)
def test_what_is_refused(run: Callable[[], Any], message: str) -> None:
    refusing(message, run)


def test_a_width_that_changes_is_refused() -> None:
    teacher = Teacher.of(lambda x: torch.zeros(len(x), len(x)), name="odd")
    teacher.outputs(X)
    refusing("gives 3 outputs per row: expected 7", lambda: teacher.outputs(X[:3]))


def test_files_that_are_no_outputs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Teacher.of(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    refusing(r"bad\.safetensors", lambda: Teacher.of(tmp_path / "bad.safetensors"))
