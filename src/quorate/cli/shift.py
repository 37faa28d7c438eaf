"""``quorate evaluate --corruptions``: run saved ensembles on corrupted test rows, and keep the figures in their run folders.

``RUN/corruptions.json`` holds what all figures depend on (the run, its stored outputs and policies, the version) and an entry for each
choice of rows, seed and units: by corruption and severity, the figures of each column. It is written after every one of them, so that what
is there already is not computed again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import quorate
from quorate.cascade.policy import Policy
from quorate.files import read_json, write_json
from quorate.report.figures import RISK
from quorate.report.shift import SEVERITIES, Cell, Shift, shift_figures
from quorate.runs import Lock, Run

if TYPE_CHECKING:
    from quorate.data.corruptions import Corrupted

FORMAT = "quorate-corruptions/1"
SPEAK_S = 10.0  # between two lines of progress where there is no terminal


@dataclass(frozen=True)
class Asked:
    """What was asked for.

    Attributes:
        names: of corruptions; none for all that apply to inputs of ``kind``.
        kind: of the inputs, needed without names.
        rows: of the test split, a seeded stratified subset; None for all.
        seed: of the corruptions and of the subset.
        high: images: the raw value that is white; only with corruptions that take it.
        decibel: log-mel spectrograms: raw values per decibel; only with corruptions that take it.

    Raises:
        ValueError: neither names nor a kind, a name twice, fewer rows than one, a seed below 0.
    """

    names: tuple[str, ...] = ()
    kind: Literal["image", "sequence", "log-mel"] | None = None
    rows: int | None = None
    seed: int = 0
    high: float | None = None
    decibel: float | None = None

    def __post_init__(self) -> None:
        if not self.names and self.kind is None:
            raise ValueError("--corruptions without names needs --corruption_kind: image, sequence or log-mel")
        if self.names and self.kind is not None:
            raise ValueError(
                f"--corruption_kind {self.kind} chooses all of its kind: leave it out beside --corruptions {' '.join(self.names)}"
            )
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"--corruptions {' '.join(self.names)}: give each name once")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"--corruption_rows {self.rows}: expected at least 1")
        if self.seed < 0:
            raise ValueError(f"--corruption_seed {self.seed}: expected at least 0")


@dataclass
class Kept:
    """What ``corruptions.json`` holds; see the module's text."""

    path: Path
    identity: dict[str, Any]
    choice: dict[str, Any]  # of rows, seed and units
    applying: dict[str, dict[str, bool]] = field(default_factory=dict)  # {kind: {corruption of that kind: whether it applies}}
    rows: int = 0
    clean: Cell = field(default_factory=dict)
    cells: dict[str, dict[int, Cell]] = field(default_factory=dict)
    others: list[dict[str, Any]] = field(default_factory=list)  # entries of other choices, as they stand in the file
    replaced: str = ""  # what to say when the file that is there is overwritten

    def names(self, asked: Asked) -> list[str] | None:
        """The corruptions asked for, or None where that is not known without the data."""
        applying = self.applying.get(str(asked.kind))
        return list(asked.names) or (None if applying is None else [name for name, applies in applying.items() if applies])

    def left_out(self, asked: Asked) -> tuple[str, ...]:
        """The corruptions of the kind asked for that don't apply."""
        return tuple(name for name, applies in self.applying.get(str(asked.kind), {}).items() if not applies)

    def missing(self, names: Sequence[str]) -> list[tuple[str, int]]:
        """Which (corruption, severity) have no figures yet."""
        return [(name, s) for name in names for s in SEVERITIES if s not in self.cells.get(name, {})]

    def save(self) -> None:
        """Write the file, atomically; NaN and infinity as text."""
        cells = {name: {str(s): _written(cell) for s, cell in by.items()} for name, by in self.cells.items()}
        facts = {"choice": self.choice, "applying": self.applying, "rows": self.rows}
        entries = [*self.others, facts | {"clean": _written(self.clean), "cells": cells}]
        if self.replaced:
            _say(self.replaced)
            self.replaced = ""
        write_json(self.path, {"format": FORMAT, "identity": self.identity, "entries": entries})


def shifts(run: Run, asked: Asked) -> dict[str, Shift]:
    """The run under corruptions, by column (``""``: the whole ensemble; else a policy's name), from its folder as far as it is there.

    Raises:
        ValueError: a regression, corruptions that do not apply, units that none of them takes, data or recipe that are not those of
            the run any more.
    """
    outputs = run.outputs("test")
    if outputs.kind in ("values", "gaussian"):
        raise ValueError(f"run {run.path} predicts targets ({outputs.kind!r}): --corruptions reports on classifiers only")
    kept = _read(run, asked)
    names = kept.names(asked)
    if names is None or kept.missing(names) or not kept.clean:
        with Lock(run.path):
            kept = _read(run, asked)  # another process may have gone on
            names = _compute(run, asked, kept)
    columns = {column: {n: {s: kept.cells[n][s][column] for s in SEVERITIES} for n in names} for column in kept.clean}
    left_out = kept.left_out(asked)
    kind = asked.kind or ""
    return {column: Shift(column, kept.rows, kept.clean[column], by, left_out, kind) for column, by in columns.items()}


def _compute(run: Run, asked: Asked, kept: Kept) -> list[str]:
    """Fill in what is missing, saving after every (corruption, severity); the names of the corruptions asked for."""
    import torch

    from quorate.cli.reload import reload
    from quorate.data.corruptions import CORRUPTIONS, corruptions_for
    from quorate.data.subset import stratified
    from quorate.ensemble import collect

    _check_units(asked)
    ensemble, data = reload(run.path)
    names = list(asked.names)
    if asked.kind is not None:
        names = corruptions_for(data, asked.kind, high=asked.high, decibel=asked.decibel)
        kept.applying[asked.kind] = {name: name in names for name in CORRUPTIONS[asked.kind]}
        left_out = kept.left_out(asked)
        if left_out:
            _say(f"{run.path}: left out, as they don't apply to these inputs: {', '.join(left_out)}")
    validation, test = run.outputs("validation"), run.outputs("test")
    labels = test.aligned(data.test.ids).truth()
    chosen = None if asked.rows is None else stratified(labels, data.test.ids, asked.rows, asked.seed)
    split = data.test if chosen is None else data.test.subset(chosen)
    policies = {name: Policy.load(path) for name, path in run.policies.items()}
    kept.rows, kept.clean = len(split), shift_figures(validation, test.aligned(split.ids), policies)
    missing = kept.missing(names)
    ready = [
        _corrupted(split, name, severity, asked, data) for name, severity in missing
    ]  # all are checked before the first runs
    if torch.cuda.is_available():
        ensemble = ensemble.to("cuda")
    with _progress(run.name, len(names) * len(SEVERITIES), len(names) * len(SEVERITIES) - len(missing)) as advance:
        for (name, severity), rows in zip(missing, ready, strict=True):
            outputs = collect(ensemble, rows, classes=test.classes, costs=test.costs)
            kept.cells.setdefault(name, {})[severity] = shift_figures(validation, outputs, policies)
            kept.save()
            advance(f"{name} {severity}")
    kept.save()
    return names


def _check_units(asked: Asked) -> None:
    """ValueError for a unit that no corruption asked for takes: it would change nothing, but be kept apart."""
    from quorate.data.corruptions import CORRUPTIONS, corruption
    from quorate.data.corruptions.image import ImageCorruption

    chosen = [corruption(name) for name in asked.names] if asked.kind is None else list(CORRUPTIONS[asked.kind].values())
    taken = {
        "high": any(isinstance(each, ImageCorruption) for each in chosen),
        "decibel": any(not isinstance(each, ImageCorruption) and each.decibels for each in chosen),
    }
    for unit, takes in taken.items():
        if getattr(asked, unit) is not None and not takes:
            what = ", ".join(asked.names) or f"of kind {asked.kind}"
            raise ValueError(
                f"--corruption_{unit} {getattr(asked, unit):g}: no corruption asked for ({what}) takes it: leave it out"
            )


def _corrupted(split: Any, name: str, severity: int, asked: Asked, data: Any) -> Corrupted:
    from quorate.data.corruptions import Corrupted

    return Corrupted(split, name, severity, asked.seed, high=asked.high, mean=data.mean, std=data.std, decibel=asked.decibel)


def _identity(run: Run) -> dict[str, Any]:
    """What all figures of a run depend on."""
    outputs = {part: run.path / "outputs" / f"{part}.safetensors" for part in ("validation", "test")}
    said = json.dumps([run.facts.get("identity"), run.facts.get("seed")], sort_keys=True)
    return {
        "version": quorate.__version__,
        "run": hashlib.sha256(said.encode()).hexdigest(),
        "outputs": {part: _digest(path) for part, path in outputs.items()},
        "policies": {name: _digest(path) for name, path in run.policies.items()},
        "risk": RISK,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(run: Run, asked: Asked) -> Kept:
    """What the run's folder holds for this choice; nothing where the file is damaged or holds figures of something else."""
    path, identity = run.path / "corruptions.json", _identity(run)
    nothing = Kept(path, identity, {"rows": asked.rows, "seed": asked.seed, "high": asked.high, "decibel": asked.decibel})
    if not path.is_file():
        return nothing
    try:
        facts = read_json(path, "what quorate evaluate --corruptions writes")
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}")
        differing = [key for key in identity if facts["identity"].get(key) != identity[key]]
        if differing:
            return replace(nothing, replaced=f"{path} holds figures of other {', '.join(differing)}: it is made anew")
        others = [entry for entry in facts["entries"] if entry["choice"] != nothing.choice]
        for entry in facts["entries"]:
            if entry["choice"] == nothing.choice:
                cells = {name: {int(s): _numbers(cell) for s, cell in by.items()} for name, by in entry["cells"].items()}
                applying = {kind: dict(names) for kind, names in entry["applying"].items()}
                return Kept(path, identity, nothing.choice, applying, int(entry["rows"]), _numbers(entry["clean"]), cells, others)
        return replace(nothing, others=others)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return replace(nothing, replaced=f"{path} can't be used ({' '.join(str(error).split())}): it is made anew")


def _written(cell: Cell) -> dict[str, dict[str, float | str]]:
    return {c: {k: v if math.isfinite(v) else str(v) for k, v in figures.items()} for c, figures in cell.items()}


def _numbers(cell: dict[str, dict[str, float | str]]) -> Cell:
    return {column: {key: float(value) for key, value in figures.items()} for column, figures in cell.items()}


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _progress(label: str, total: int, done: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; elsewhere a line every ten seconds, and how much was there already."""
    from rich.console import Console
    from rich.progress import Progress

    if done < total:
        _say(f"{label}: {total - done} of {total} pairs of corruption and severity to run")
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(f"{label}: corruptions", total=total, completed=done)
            yield lambda what: bar.update(task, advance=1, description=f"{label}: {what}")
        return
    spoken = time.monotonic()

    def advance(what: str) -> None:
        nonlocal done, spoken
        done += 1
        if time.monotonic() - spoken >= SPEAK_S:
            _say(f"{label}: {what}, {done} of {total}")
            spoken = time.monotonic()

    yield advance
