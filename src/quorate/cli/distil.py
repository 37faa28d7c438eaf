"""The options of ``quorate train`` for ``--ensemble.kind bdistil``: teacher, students, rules and loss, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from quorate.distil.cutting import Cut
from quorate.distil.round_loss import LossSettings
from quorate.distil.rules import Rules
from quorate.training import Settings

_OF_SEARCH = (
    "links",
    "stem",
    "start",
    "dropout",
    "levels",
    "breadth",
    "attempts",
)  # rules of students that are searched, which those of parts are not


@dataclass(frozen=True)
class StudentFit:
    """How each student is trained. What is null is as the recipe's ``fit`` says.

    Attributes:
        epochs: of a student's whole training.
        batch_size: rows per step.
        optimizer: ``"sgd"`` or ``"adamw"``; with another one than the teacher's, momentum and nesterov are not taken from it.
        lr: peak learning rate.
        momentum: of SGD.
        nesterov: Nesterov momentum.
        weight_decay: on every parameter.
        schedule: ``"cosine"``, ``"step"`` or ``"constant"``; with another one than the teacher's, milestones and decay are not taken
            from it.
        milestones: of schedule step.
        decay: of schedule step.
        warmup_epochs: epochs of linear warm-up.
        augment: apply the data set's augmentation; the teacher is asked about every view.
        channels_last: keep images channels last in memory.
        accelerator: as Lightning's Trainer takes it.
        precision: of the products.
    """

    epochs: int | None = None
    batch_size: int | None = None
    optimizer: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    weight_decay: float | None = None
    schedule: Literal["cosine", "step", "constant"] | None = None
    milestones: Sequence[int] | None = None
    decay: float | None = None
    warmup_epochs: float | None = None
    augment: bool | None = None
    channels_last: bool | None = None
    accelerator: str | None = None
    precision: Literal["32-true", "16-mixed", "bf16-mixed"] | None = None

    def settings(self, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """All settings of a student's training.

        Args:
            given: the recipe's ``fit``. What only a training on labels has (label smoothing, mixup, averaged weights …) is not taken.
            seed: of the run.

        Raises:
            ValueError: settings that can't be had.
        """
        names = [each.name for each in fields(self)]
        said = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        own = {"schedule": ("milestones", "decay"), "optimizer": ("momentum", "nesterov")}
        others = {name for key, parts in own.items() if key in said and said[key] != given[key] for name in parts}
        chosen = {name: given[name] for name in names if name not in others} | said | {"seed": seed}
        with _about("fit"):
            Settings.of(chosen)
        return chosen


@dataclass(frozen=True)
class DistilChoice:
    """What is distilled, from what, and how.

    Attributes:
        teacher: null for the model, trained first by the recipe's ``fit`` into RUN/teacher; or a finished run folder of the same data (the
            mean of its ensemble), an .onnx file, or a .safetensors file of Outputs with the training and validation rows.
        teacher_kind: of an .onnx file, what it gives; logits by default.
        teacher_macs: of an .onnx or .safetensors file, its MACs per input, of which the budget is a share.
        students: sizes cut from the model, each a mapping of depth, width and resolution; none for a ladder of them.
        parts: students of so many parts of a sequence instead, each going on where the one before stopped; the model is recurrent.
        part_width: of parts, units of each student as a share of the model's.
        rules: of the rounds.
        loss: of the students.
        fit: of each student's training.

    Raises:
        ValueError: values that a distillation refuses, or options that exclude each other.
    """

    teacher: str | None = None
    teacher_kind: Literal["logits", "probs", "values", "gaussian"] | None = None
    teacher_macs: float | None = None
    students: Sequence[Cut] = ()
    parts: int | None = None
    part_width: float = 0.5
    rules: Rules = Rules()  # noqa: RUF009 (frozen, without state)
    loss: LossSettings = LossSettings()  # noqa: RUF009
    fit: StudentFit = StudentFit()

    def __post_init__(self) -> None:
        object.__setattr__(self, "students", tuple(self.students))
        given = self.given()
        suffix = "" if self.teacher is None else Path(self.teacher).suffix
        for name, of in (("teacher_kind", (".onnx",)), ("teacher_macs", (".onnx", ".safetensors"))):
            if name in given and suffix not in of:
                raise ValueError(
                    f"ensemble.distil.{name}={given[name]!r} is of a teacher in an {' or '.join(of)} file, got {self.teacher!r}: leave it "
                    "out"
                )
        if self.parts is None:
            _refuse(given, ("part_width",), "is of ensemble.distil.parts: set that too, or leave it out")
            return
        if self.parts < 1:
            raise ValueError(f"ensemble.distil.parts={self.parts}: expected at least 1")
        searched = [f"rules.{name}" for name in _OF_SEARCH]
        _refuse(given, ("students", *searched), f"is of students cut from the model, not of parts ({self.parts}): leave one out")
        if self.rules.rounds < self.parts:
            raise ValueError(
                f"ensemble.distil.rules.rounds={self.rules.rounds}: expected at least {self.parts}, a round per part of the sequence"
            )

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> DistilChoice:
        """The choice of a recipe's part ``ensemble.distil``; ValueError as the class itself."""
        made = dict(values)
        with _about("students"):
            made["students"] = tuple(Cut(**each) for each in values.get("students", ()))
        with _about("rules"):
            made["rules"] = Rules.of(values.get("rules"))
        with _about("loss"):
            made["loss"] = LossSettings.of(values.get("loss", {}))
        return cls(**{**made, "fit": StudentFit(**values.get("fit", {}))})

    def given(self) -> dict[str, Any]:
        """The options that are not at their defaults, by name (``rules.rounds``)."""
        found: dict[str, Any] = {}
        for each in fields(self):
            value, plain = getattr(self, each.name), each.default
            if not is_dataclass(value):
                found |= {each.name: value} if value != plain else {}
                continue
            inner = {part.name: getattr(value, part.name) for part in fields(value)}
            found |= {f"{each.name}.{key}": part for key, part in inner.items() if part != getattr(plain, key)}
        return found

    def check_kind(self, kind: str) -> None:
        """A ValueError where options are given that such an ensemble has not."""
        if kind != "bdistil":
            _refuse(self.given(), tuple(self.given()), f"is of ensemble.kind bdistil, got kind {kind}: leave it out")

    def check_teaching(self, settings: Mapping[str, Any]) -> None:
        """A ValueError for settings of a teacher's training where no teacher is trained."""
        if self.teacher is None:
            return
        students = {each.name for each in fields(StudentFit)} | {"checkpoint_seconds", "seed"}
        plain = {each.name: each.default for each in fields(Settings)}
        for name, value in settings.items():
            same = tuple(value) == plain[name] if isinstance(value, list) else value == plain[name]
            if name not in students and not same:
                raise ValueError(
                    f"fit.{name}={value!r} is for the training of a teacher, but ensemble.distil.teacher names one: leave it out"
                )


def _refuse(given: Mapping[str, Any], names: Sequence[str], reason: str) -> None:
    name = next((name for name in names if name in given), None)
    if name is not None:
        raise ValueError(f"ensemble.distil.{name}={given[name]!r} {reason}")


@contextmanager
def _about(part: str) -> Iterator[None]:
    """Errors name the part of the recipe that they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"ensemble.distil.{part}: {error}") from error
