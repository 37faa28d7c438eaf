"""``quorate.distil.distil``: a teacher taken apart into students, in a run folder from which the same call goes on after any interruption.

Source: Dennis et al., Progressive Ensemble Distillation, NeurIPS 2023 (arXiv 2302.10093). The loop is :mod:`quorate.distil.progressive`;
this is what lies around it: what is asked for is checked before anything is trained, and what came of it is evaluated and written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from quorate import cost, metrics, runs
from quorate.data import Data, Split
from quorate.distil.bounds import held_out_error
from quorate.distil.combining import Combination, student_weights
from quorate.distil.ensemble import Distilled
from quorate.distil.identity import identity_of
from quorate.distil.learner import check_settings
from quorate.distil.pool import spec_of
from quorate.distil.progressive import Loop
from quorate.distil.round_loss import LossSettings
from quorate.distil.rules import Rules
from quorate.distil.showing import Shown
from quorate.distil.sources import check_first, pool_of
from quorate.distil.state import Store
from quorate.distil.stopping import Stopper
from quorate.distil.teacher import Teacher
from quorate.distil.views import centred
from quorate.ensemble import collect, stage_macs
from quorate.files import write_json, write_text
from quorate.outputs import Outputs
from quorate.training import Settings, load_weights_
from quorate.training.fit import versions
from quorate.training.trainer import root_device
from quorate.training.weights import save_weights


@dataclass
class Distillation:
    """What a distillation gives back.

    Attributes:
        ensemble: the students as a staged ensemble, in eval mode.
        rounds: per accepted student what the round reported (the rows of ``rounds.jsonl``).
        stopped: why there was no further round.
        facts: the record that is also ``run.json``.
        outputs: Outputs of the ensemble by name, ``validation``, ``calibration``, ``test``, ``ood-…``.
        combination: how the students are joined where ``combine="validated"`` was asked for.
        path: the run folder, if there is one.
    """

    ensemble: Distilled
    rounds: list[dict[str, Any]]
    stopped: str
    facts: dict[str, Any]
    outputs: dict[str, Outputs] = field(default_factory=dict)
    combination: Combination | None = None
    path: Path | None = None


def distil(
    teacher: Any,
    students: Any,
    data: Data,
    *,
    base: nn.Module | None = None,
    transfer: Split | None = None,
    run: str | Path | None = None,
    rules: Mapping[str, Any] | Rules | None = None,
    loss: Mapping[str, Any] | LossSettings | None = None,
    about: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    progress: bool = True,
    label: str | None = None,
    **settings: Any,
) -> Distillation:
    """Take a teacher apart into an ensemble of small students, of which any prefix is a predictor.

    Labels are not used in training: students learn the teacher's outputs. Validation labels are only reported on.

    Args:
        teacher: what :meth:`quorate.distil.Teacher.of` takes: a module in eval mode, an ensemble (its mean), a function, stored Outputs, an
            ONNX file; or a Teacher.
        students: None for students cut from ``base`` by a default ladder of sizes; a :class:`quorate.distil.Ladder`, or a sequence of
            :class:`quorate.distil.Cut`, for other sizes of it; a sequence of modules or of functions that make one, small to large, for
            the user's own; students of the parts of a sequence (:func:`quorate.distil.early_students`), one per round; or a Pool.
        data: rows and classes; its validation split tells how a prefix does, test and OOD parts are only evaluated on.
        base: the network that students are cut from; by default the teacher, or its first member, if it is a module.
        transfer: rows to distil on, with or without labels; by default ``data.train``.
        run: folder for everything. If it holds the same distillation unfinished, that goes on behind its last round; if finished, it is
            read back. None: nothing is kept.
        rules: fields of :class:`quorate.distil.Rules`. loss: fields of :class:`quorate.distil.LossSettings`.
        about: more facts that identify the run, as JSON values. config: how to make the run again, kept as ``config.yaml``.
        progress: say what happens. label: the run's name there.
        **settings: fields of :class:`quorate.training.Settings` for the training of each student.

    Raises:
        ValueError: settings, rules or students that can't be had; a teacher in training mode, with NaN outputs or another number of outputs
            than the data's classes; a folder that holds something else, such as another teacher or the rows in another order.
        BlockingIOError: another process is using the folder.
        Interrupted: Ctrl-C or SIGTERM, if there is a folder; the rounds so far are saved.
    """
    chosen, how = Settings.of(settings), Rules.of(rules)
    check_settings(chosen)
    losses = loss if isinstance(loss, LossSettings) else LossSettings.of(loss or {})
    rows = data.train if transfer is None else _checked_transfer(transfer, data)
    example = rows.batch(np.arange(1))[0]
    guide = teacher if isinstance(teacher, Teacher) else Teacher.of(teacher, example=example)
    guide = Teacher.of(guide, expect=_width(data, guide))
    losses.check_task("classification" if guide.kind == "logits" else "regression")
    augmentation = data.augmentation if chosen.augment else None
    if augmentation is not None:
        guide.check_online("augmented views (augment=True)")
    pool = pool_of(students, base, teacher, example, how, guide.macs)
    limit = how.limit(guide.macs)
    check_first(pool, example, limit, _width(data, guide))
    identity = identity_of(guide, pool, data, rows, augmentation, chosen, how, losses, limit, about)
    folder = None if run is None else Path(run)
    arguments = (guide, pool, data, rows, augmentation, chosen, how, losses, limit, identity, progress, label)
    if folder is None:
        return _run(*arguments, None, None)
    runs.check_usable(folder, ("teacher",))  # the run that trained it may be there
    with runs.Lock(folder):
        if (folder / "run.json").exists():
            record = runs.Run(folder)
            runs.check_identity(folder, record.facts.get("identity", {}), identity)
            if record.finished:
                return _read_back(record, pool, data, example)
        for leftover in [*folder.glob(".*.part"), *folder.glob("*/.*.part")]:  # of a write that was killed
            leftover.unlink()
        recipe = None if config is None else yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        return _run(*arguments, folder, recipe)


def _run(
    teacher: Teacher,
    pool: Any,
    data: Data,
    rows: Split,
    augmentation: Any,
    settings: Settings,
    rules: Rules,
    losses: LossSettings,
    limit: float,
    identity: dict[str, Any],
    progress: bool,
    label: str | None,
    folder: Path | None,
    recipe: str | None,
) -> Distillation:
    facts: dict[str, Any] = {
        "format": runs.FORMAT,
        "status": "running",
        "identity": identity,
        "data": data.summary(),
        "seed": settings.seed,
        "versions": versions(),
        "machine": runs.machine() | {"threads": torch.get_num_threads(), "accelerator": settings.accelerator},
    }
    store, device = None if folder is None else Store(folder), root_device(settings)
    teacher = teacher.near(device)
    if folder is not None:
        write_json(folder / "run.json", facts)
        if recipe is not None:
            write_text(folder / "config.yaml", recipe)
    name = label or (folder.name if folder is not None else "distil")
    with Stopper(folder) as stopper, Shown(name, progress) as shown:
        for note in pool.notes:
            shown.line(note)
        g, g_held = (
            _teacher_outputs(teacher, split, part, _width(data, teacher), store, shown, stopper)
            for split, part in ((rows, "teacher"), (data.validation, "teacher-held"))
        )
        loop = Loop(
            teacher, pool, data, rows, augmentation, g, g_held, teacher.kind == "logits", rules, losses, settings, limit,
            device, store, stopper, shown,
        )  # fmt: skip
        if store is not None and (state := store.read()) is not None:
            loop.go_on_(state)
        loop.run_()
        shown.line(f"stopped with {len(loop.students)} student{'s' * (len(loop.students) > 1)}: {loop.stopped}")
        return _finished(loop, facts, folder, store)


def _finished(loop: Loop, facts: dict[str, Any], folder: Path | None, store: Store | None) -> Distillation:
    """Join the students, evaluate them, write all of it."""
    ensemble, combination = _joined(loop)
    example = loop._example()
    macs = stage_macs(ensemble, example)
    outputs = _outputs(ensemble, loop.data, macs, loop.stopper)
    ensemble.cpu()
    facts |= {
        "status": "finished",
        "parameters": cost.parameters(ensemble),
        "stage_macs": macs,
        "macs": sum(macs),
        "training_macs": round(loop.spent),
        "distil": {
            "rounds": loop.rounds,
            "stopped": loop.stopped,
            "kind": ensemble.kind,
            "weights": None if ensemble.weights is None else list(ensemble.weights),
            "combination": None if combination is None else _told(combination),
            "bounds": loop.bounds,
            "teacher": {"name": loop.teacher.name, "macs": loop.teacher.macs},
            "held_out": _held_out(loop, ensemble, outputs["calibration"]),
            "carried_bytes": ensemble.carried_bytes(example.cpu()),
            "prefixes": {part: _prefixes(outputs[part]) for part in ("validation", "test")}
            if ensemble.kind == "logits"
            else None,
        },
    }
    if folder is not None and store is not None:
        save_weights(ensemble, folder)
        for name, stored in outputs.items():
            stored.save(folder / "outputs" / f"{name}.safetensors")
        write_json(folder / "run.json", facts)
        store.clear()
    return Distillation(ensemble, loop.rounds, str(loop.stopped), facts, outputs, combination, folder)


def _joined(loop: Loop) -> tuple[Distilled, Combination | None]:
    kind = loop.teacher.kind
    uniform = Distilled(loop.students, kind)
    if loop.rules.combine == "uniform" or len(loop.students) == 1:
        return uniform, None
    plain = Distilled(loop.students, "logits")  # the students themselves, not their prefixes
    rows = loop.data.validation
    each = np.concatenate(list(collect(plain, Split(rows.x, None, rows.ids)).values))
    fitted = student_weights(
        each,
        kind="logits" if kind == "logits" else "values",
        teacher=loop.g_held,
        folds=min(5, len(rows)),
        seed=loop.settings.seed,
    )
    if fitted.chosen == "uniform":
        return uniform, fitted
    return Distilled(loop.students, kind, weights=fitted.weights.tolist()), fitted


def _held_out(loop: Loop, ensemble: Distilled, outputs: Outputs) -> dict[str, Any] | None:
    """The mean error on calibration rows, on which nothing was decided, with an upper bound that holds with 95 % for all outputs.

    None where a teacher of stored outputs does not have these rows.
    """
    try:
        g = loop.teacher.on(loop.data.calibration)
    except ValueError as error:
        loop.shown.line(f"no error on calibration rows: {error}")
        return None
    values = np.concatenate([np.asarray(value) for value in outputs.values])
    f = values.mean(0) if ensemble.combine == "logits" else values[-1]
    d = f - g
    if loop.centre:
        d -= d.mean(1, keepdims=True)
    if len(d) < 2:
        return None
    found = held_out_error(d, *d.shape, limit=2 * loop.bounds["errors"])  # type: ignore[misc]
    return {
        "rows": found.rows,
        "mean_error": float(found.mean.mean()),
        "upper": float(found.upper.max()),
        "limit": 2 * loop.bounds["errors"],
        "beyond": int(found.beyond.sum()),
    }


def _told(combination: Combination) -> dict[str, Any]:
    """As JSON values, from which :func:`_combination` makes it again."""
    values = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(combination).items()}
    return values | {"gain": combination.gain, "standard_error": combination.standard_error}


def _combination(told: Mapping[str, Any] | None) -> Combination | None:
    if told is None:
        return None
    values: dict[str, Any] = {}
    for each in fields(Combination):
        value = told[each.name]
        values[each.name] = np.asarray(value) if isinstance(value, list) else value
    return Combination(**values)


def _outputs(ensemble: Distilled, data: Data, macs: Sequence[int], stopper: Stopper) -> dict[str, Outputs]:
    found = {}
    for name, split in [*list(data.splits().items())[1:], *((f"ood-{name}", split) for name, split in data.ood.items())]:
        stopper.check()
        found[name] = collect(ensemble, split, classes=data.classes or None, costs=macs)
    return found


def _prefixes(outputs: Outputs) -> dict[str, Any]:
    """Per prefix its accuracy, and how many rows the stage turned from right to wrong and from wrong to right."""
    found = metrics.prefixes(outputs)
    return {
        "accuracy": [float(a) for a in found.accuracy],
        "right_to_wrong": [int(n) for n in found.broken],
        "wrong_to_right": [int(n) for n in found.mended],
    }


def rebuilt(facts: Mapping[str, Any], pool: Any, example: Tensor) -> Distilled:
    """The ensemble of a finished run's record, with the structure it had; its weights are still to be loaded.

    Raises:
        ValueError: a record of something else, or students that this pool does not have.
    """
    about = facts.get("distil")
    if not isinstance(about, Mapping) or not about.get("rounds"):
        raise ValueError("the record is no distillation's: expected the run folder of quorate.distil.distil")
    students: list[nn.Module] = []
    for place, row in enumerate(about["rounds"]):
        students.append(pool.build(spec_of(row["candidate"]), place, students, example))
    return Distilled(students, about["kind"], about["weights"])


def _read_back(record: runs.Run, pool: Any, data: Data, example: Tensor) -> Distillation:
    ensemble = rebuilt(record.facts, pool, example)
    load_weights_(ensemble, record.path)
    Store(record.path).clear()
    names = [*list(data.splits())[1:], *(f"ood-{name}" for name in data.ood)]
    about = record.facts["distil"]
    outputs = {name: record.outputs(name) for name in names}
    combination = _combination(about["combination"])
    return Distillation(ensemble, about["rounds"], about["stopped"], record.facts, outputs, combination, record.path)


# — what is checked before —


def _checked_transfer(transfer: Split, data: Data) -> Split:
    if not isinstance(transfer, Split):
        raise ValueError(
            f"transfer is a {type(transfer).__name__}: expected a quorate.data.Split, with y=None if it has no labels"
        )
    if transfer.shape != tuple(data.shape) or transfer.x.dtype != data.train.x.dtype:
        raise ValueError(
            f"transfer has inputs {transfer.shape} {transfer.x.dtype}, the data {tuple(data.shape)} {data.train.x.dtype}: expected the "
            "same raw inputs"
        )
    for part in ("validation", "calibration", "test"):
        shared = np.intersect1d(transfer.ids, data.splits()[part].ids)
        if shared.size:
            raise ValueError(
                f"transfer shares {shared.size} ids with the {part} split, such as {shared[:3].tolist()}: what is distilled on can't tell "
                "how the students do; take these rows out, or give other rows ids of their own"
            )
    return transfer


def _width(data: Data, teacher: Teacher) -> int:
    if data.targets:
        if teacher.kind == "logits":
            raise ValueError(
                f"teacher {teacher.name!r} gives logits, {data.name} has targets: expected kind='values' or 'gaussian'"
            )
        return data.width if teacher.kind == "gaussian" else len(data.targets)
    if teacher.kind != "logits":
        raise ValueError(f"teacher {teacher.name!r} gives {teacher.kind}, {data.name} has classes: expected logits")
    return data.width


def _teacher_outputs(
    teacher: Teacher, split: Split, name: str, width: int, store: Store | None, shown: Shown, stopper: Stopper
) -> np.ndarray:
    """(N, L) of the teacher, row-centred if they are logits; from the folder if they were asked for before."""
    if store is not None and store.has(name):
        return store.array(name, (len(split), width))
    shown.begins(f"asking the teacher {teacher.name} about {len(split):,} rows")

    def went_on(done: int, total: int) -> None:
        shown.say("", done / total)
        stopper.check()

    g = teacher.on(split, progress=went_on)
    if teacher.kind == "logits":
        g[...] = centred(torch.from_numpy(g)).numpy()  # as students' outputs: of equal ones nothing is left
    if store is not None:
        store.write_array(name, g)
    return g
