"""Outputs named on the command line: run folders, files of ``Outputs.save``, NumPy archives, CSV and ONNX files, as a pool of members.

A source is ``[NAME=]PATH``; without a name it has its file's or folder's. One source of several independent stages is a pool of them by
their own names; of several sources each stage is a member ``NAME``, or ``NAME/STAGE`` where its source has more than one. Rows are
matched by ids, or by position where files have none.

ONNX files are run on raw inputs; where a file of rows is asked for per source, theirs holds such inputs too.

Run folders have validation and calibration rows of their own. Files are split by ``--split``: plain random draws by the rows' ids, so that
calibration rows are exchangeable with what is left; a file beside a run takes the run's rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cli.costs import Costs
from quorate.cli.fed import Fed, Inputs
from quorate.cli.sources import FOREIGN, How, Source, check_reading, read
from quorate.outputs import Outputs
from quorate.runs import Run

Members = dict[str, Outputs]


@dataclass(frozen=True)
class Pool:
    """Members by name on the rows of each part; ``calibration`` is None without such rows. OOD sets by name.

    ``alone``: the name of the only source, if there is one of dependent stages, whose members a plan calls ``NAME/STAGE``.
    """

    validation: Members
    calibration: Members | None = None
    ood: dict[str, Members] = field(default_factory=dict)
    cal_ood: dict[str, Members] = field(default_factory=dict)
    alone: str | None = None


@dataclass(frozen=True)
class Parts:
    """What is to be chosen on, and what certified on.

    Attributes:
        calibration: files of calibration rows, one per source.
        split: shares of a file's rows for validation and calibration; None: all are for validation.
        ood, cal_ood: ``NAME=FILE[,FILE…]``, one file per source; ``NAME`` alone of run folders.
        ood_split: shares of the OOD rows for choosing and certifying, where ``cal_ood`` is not given.
        seed: of the splits.
    """

    calibration: Sequence[str] = ()
    split: Sequence[float] | None = None
    ood: Sequence[str] = ()
    cal_ood: Sequence[str] = ()
    ood_split: Sequence[float] | None = None
    seed: int = 0


def pool(
    given: Sequence[str],
    reading: How,
    parts: Parts | None = None,
    costs: Costs | None = None,
    inputs: Inputs | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Pool:
    """The members that sources hold, on all parts.

    ``costs`` per row, by member or stage name, replace those that are stored. ONNX files are run on ``inputs``, and ``progress`` is told
    (source, rows done, rows in all).

    Raises:
        FileNotFoundError, ValueError: sources, rows, splits, names or costs that don't go together; the file or option is named.
    """
    parts = parts or Parts()
    sources = sources_of(given)
    _check_parts(sources, parts)
    rows = [] if all(source.is_onnx for source in sources) else [*parts.calibration, *_files([*parts.ood, *parts.cal_ood])]
    check_reading([*(source.path for source in sources), *rows], reading)
    given_rows = _Given(reading, Fed(sources, inputs or Inputs(), reading, progress))
    given_rows.fed.check()
    _check_costs(sources, costs)
    validation, calibration = _labelled(sources, given_rows, parts)
    sets = (("ood", parts.ood), ("cal_ood", parts.cal_ood))
    ood, cal_ood = (_sets(sources, texts, given_rows, f"--{option}") for option, texts in sets)
    if parts.ood_split is not None:
        divided = {name: _divided(sources, members, parts.ood_split, parts.seed, "--ood_split") for name, members in ood.items()}
        ood, cal_ood = ({name: pieces[k] for name, pieces in divided.items()} for k in (0, 1))
    assigned = None if costs is None else costs.assign({name: outputs.names for name, outputs in validation.items()})

    def ready(some: Members) -> Members:
        priced = some if assigned is None else {name: remade(outputs, costs=assigned[name]) for name, outputs in some.items()}
        return members_of(priced, len(sources) == 1)

    only = validation[sources[0].name]
    return Pool(
        ready(validation),
        None if calibration is None else ready(calibration),
        {name: ready(some) for name, some in ood.items()},
        {name: ready(some) for name, some in cal_ood.items()},
        sources[0].name if len(sources) == 1 and only.ordered and only.stages > 1 else None,
    )


def whole(given: Sequence[str], reading: How, ood: Sequence[str] = ()) -> tuple[Members, dict[str, Members]]:
    """All rows of files, matched to the first one's, and OOD sets. Raises as :func:`pool`."""
    sources = sources_of(given)
    check_reading([*(source.path for source in sources), *_files(ood)], reading)
    stored = _Given(reading, Fed((), Inputs(), reading))
    found = {source.name: read(source.path, reading) for source in sources}
    _check_positions(sources, found, stored)
    ids = found[sources[0].name].ids
    matched = {source.name: _rows(source, found[source.name], ids) for source in sources}
    return matched, _sets(sources, ood, stored, "--ood")


@dataclass(frozen=True)
class _Given:
    """How files are read, and ONNX files run."""

    reading: How
    fed: Fed

    def read(self, source: Source, file: Path | None = None, labelled: bool = True) -> Outputs:
        """A source's outputs, or those in a ``file`` of other rows of it."""
        if source.is_onnx:
            return self.fed.outputs(source, file, labelled)
        return read(file or source.path, self.reading, labelled)

    def bare(self, source: Source, file: Path) -> str | None:
        """The option by which rows would get ids of their own, of a source whose rows have none in this file."""
        if source.is_onnx:
            return "--inputs_ids" if self.fed.said.inputs_ids is None else None
        return "--ids" if file.suffix in FOREIGN and self.reading.ids is None else None


def _check_costs(sources: Sequence[Source], costs: Costs | None) -> None:
    """A ValueError for an ONNX file without a cost, before it is run."""
    known = {} if costs is None else costs.by_name
    for source in sources:
        if source.is_onnx and not {source.name, f"{source.name}/{source.name}"} & set(known):
            raise ValueError(
                f"what a row costs in {source.path} is not known, its operations are not counted: give --costs NAME=COST of all members"
            )


def _files(sets: Sequence[str]) -> list[str]:
    """The files in ``NAME=FILE[,FILE…]``."""
    return [file for text in sets for file in text.partition("=")[2].split(",")]


def _labelled(sources: Sequence[Source], given: _Given, parts: Parts) -> tuple[Members, Members | None]:
    """(validation, calibration) by source."""
    whole = {source.name: given.read(source) for source in sources if not source.is_run}
    _check_positions(sources, whole, given)
    if any(source.is_run for source in sources):
        found = _of_runs(sources, whole, "validation")
        if found is None:
            run = next(source for source in sources if source.is_run and source.part("validation") is None)
            raise FileNotFoundError(f"run {run.path} has no outputs 'validation': train it anew")
        return found, _of_runs(sources, whole, "calibration")
    if parts.split is None:
        validation, calibration = whole, None
    else:
        pieces = _divided(sources, whole, parts.split, parts.seed, "--split")
        validation, calibration = pieces[0], pieces[1] if len(pieces) > 1 else None
    if parts.calibration:
        calibration = _beside(sources, parts.calibration, given, "--calibration")
    return validation, calibration


def _of_runs(sources: Sequence[Source], whole: Members, part: str) -> Members | None:
    """The runs' own outputs of this part, and the rows with these ids of the files beside them; None where a run has none."""
    stored = {source.name: source.part(part) for source in sources if source.is_run}
    found = {name: outputs for name, outputs in stored.items() if outputs is not None}
    if len(found) < len(stored):
        return None
    ids = next(iter(found.values())).ids
    return {s.name: found[s.name] if s.is_run else _rows(s, whole[s.name], ids) for s in sources}


def _sets(sources: Sequence[Source], texts: Sequence[str], given: _Given, option: str) -> dict[str, Members]:
    """OOD sets by name."""
    found: dict[str, Members] = {}
    for text in texts:
        name, members = _outside(sources, text, given, option)
        if name in found:
            raise ValueError(f"{option} {text}: there is a set {name!r} already, give each another name")
        found[name] = members
    return found


def members_of(sources: Members, alone: bool) -> Members:
    """Every independent stage of several as a member of its own; stages that depend on each other stay together."""
    found: Members = {}
    for name, outputs in sources.items():
        if outputs.stages == 1 or outputs.ordered:
            found[name] = outputs
            continue
        for k, stage in enumerate(outputs.names):
            member = stage if alone else f"{name}/{stage}"
            costs = None if outputs.costs is None else [outputs.costs[k]]
            found[member] = remade(outputs, values=[outputs.values[k]], names=[stage], costs=costs)
    return found


def remade(outputs: Outputs, **changed: Any) -> Outputs:
    """The same Outputs but for what is changed."""
    same: dict[str, Any] = {
        "values": outputs.values, "kind": outputs.kind, "combine": outputs.combine, "labels": outputs.labels, "ids": outputs.ids,
        "classes": outputs.classes, "costs": outputs.costs, "ordered": outputs.ordered, "names": outputs.names,
    }  # fmt: skip
    return Outputs(**(same | changed))


KINDS = "a run folder, a .safetensors, .npz or .csv file of outputs, or an .onnx file"


def sources_of(given: Sequence[str], kinds: str = KINDS) -> list[Source]:
    """The sources by their texts. FileNotFoundError or ValueError for one that is not there, or two of one name."""
    sources = [Source.of(text) for text in given]
    names = [source.name for source in sources]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two sources are called {twice!r}: tell them apart, as in other={sources[names.index(twice)].path}")
    for source in sources:
        if not source.path.exists():
            raise FileNotFoundError(f"{source.path} does not exist: expected {kinds}")
    return sources


def _check_parts(sources: Sequence[Source], parts: Parts) -> None:
    runs = [source for source in sources if source.is_run]
    for option, value in (("--split", parts.split), ("--calibration", parts.calibration)):
        if runs and value:
            raise ValueError(
                f"{option} is for files, {runs[0].path} is a run with validation and calibration rows of its own: leave it out"
            )
    if parts.split is not None and len(parts.split) > 1 and parts.calibration:
        raise ValueError(
            "--split V C and --calibration both say what the calibration rows are: give --split V alone, or no --calibration"
        )
    if parts.ood_split is not None and (parts.cal_ood or not parts.ood):
        raise ValueError("--ood_split divides what --ood names where --cal_ood is not given: leave it out")
    if parts.ood_split is not None and len(parts.ood_split) != 2:
        raise ValueError(f"--ood_split has {len(parts.ood_split)} shares: expected two, to choose on and to certify on")
    if parts.seed < 0:
        raise ValueError(f"--seed {parts.seed}: expected at least 0")


def _check_positions(sources: Sequence[Source], whole: Members, given: _Given, files: Sequence[Path] | None = None) -> None:
    """Rows that only their positions match: a ValueError for files of different lengths, or beside others that have ids.

    ``files``: those that the rows were read from, where they are not the sources'.
    """
    places = [source.path for source in sources] if files is None else files
    options = [None if source.is_run else given.bare(source, file) for source, file in zip(sources, places, strict=True)]
    bare = [(source, place, option) for source, place, option in zip(sources, places, options, strict=True) if option]
    if not bare or len(sources) == 1:
        return
    first, at, option = bare[0]
    if len(bare) < len(sources):
        raise ValueError(f"{at} has no row ids to match with those of the other sources: give {option} NAME")
    for source, place, own in bare[1:]:
        if whole[source.name].n != whole[first.name].n:
            raise ValueError(
                f"{place} has {whole[source.name].n} rows, {at} {whole[first.name].n}: give {own} NAME to match them, or the same rows"
            )


def _rows(source: Source, outputs: Outputs, ids: NDArray) -> Outputs:
    try:
        return outputs.aligned(ids)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error


def _divided(sources: Sequence[Source], whole: Members, shares: Sequence[float], seed: int, option: str) -> list[Members]:
    """The members on disjoint random draws of the first source's rows, one per share."""
    said = " ".join(f"{share:g}" for share in shares)
    if not 1 <= len(shares) <= 2 or not all(0 < share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"{option} {said}: expected one or two shares > 0 that sum to at most 1, as in 0.4 0.6")
    first = whole[sources[0].name]
    ends = [round(first.n * sum(shares[: k + 1])) for k in range(len(shares))]
    order = np.random.default_rng(seed).permutation(first.n)
    pieces = [np.sort(piece) for piece in np.split(order, ends)[: len(shares)]]
    if any(len(piece) == 0 for piece in pieces):
        raise ValueError(f"{option} {said} of {first.n} rows leaves a part without any: give larger shares, or more rows")
    return [{source.name: _rows(source, whole[source.name], first.ids[piece]) for source in sources} for piece in pieces]


def _beside(sources: Sequence[Source], files: Sequence[str], given: _Given, option: str, labelled: bool = True) -> Members:
    """The sources' members on other rows, from one file each."""
    if len(files) != len(sources):
        raise ValueError(
            f"{option} names {len(files)} files for {len(sources)} sources: give one file per source, in their order"
        )
    places = [Path(file) for file in files]
    found = {source.name: given.read(source, place, labelled) for source, place in zip(sources, places, strict=True)}
    _check_positions(sources, found, given, places)
    ids = found[sources[0].name].ids
    return {s.name: _rows(Source(s.name, place), found[s.name], ids) for s, place in zip(sources, places, strict=True)}


def _outside(sources: Sequence[Source], text: str, given: _Given, option: str) -> tuple[str, Members]:
    """(the OOD set's name, its members) of ``NAME=FILE[,FILE…]``, or of run folders' own set ``NAME``."""
    name, equals, files = text.partition("=")
    if equals and name and files:
        unlabelled = replace(given, reading=replace(given.reading, labels=None))
        return name, _beside(sources, files.split(","), unlabelled, f"{option} {name}=", False)
    if equals or not all(source.is_run for source in sources):
        raise ValueError(
            f"{option} {text}: expected NAME=FILE with a file per source joined by commas, or the NAME of a set that all runs have"
        )
    return name, {source.name: Run(source.path).outputs(f"ood-{name}") for source in sources}
