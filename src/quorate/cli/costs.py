"""Costs named on the command line: ``NAME=NUMBER …``, or two columns of a CSV file, as what a row costs in each stage.

A stage of a source is named ``SOURCE/STAGE``; by its own name, if no other source has one of that name; or by its source's, if it is the
only one there.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from quorate._validation import check_known


@dataclass(frozen=True)
class Costs:
    """Cost per row by name; those of a ``table`` may be of more than the pool has."""

    by_name: Mapping[str, float]
    table: bool = False

    def assign(self, sources: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
        """{source: cost per stage} of {source: its stages' names}.

        Raises:
            ValueError: a stage without a cost, or that two names mean; a name that means none, outside a table.
        """
        everything = [stage for stages in sources.values() for stage in stages]
        meaning = {
            (source, stage): [
                f"{source}/{stage}",
                *([stage] if everything.count(stage) == 1 else []),
                *([source] if len(stages) == 1 else []),
            ]
            for source, stages in sources.items()
            for stage in stages
        }
        if not self.table:
            check_known(
                "member of --costs", self.by_name, list(dict.fromkeys(name for names in meaning.values() for name in names))
            )
        found: dict[str, list[float]] = {source: [] for source in sources}
        for (source, stage), names in meaning.items():
            meant = [name for name in dict.fromkeys(names) if name in self.by_name]
            if len(meant) != 1:
                what = "none" if not meant else f"two, by {meant[0]!r} and {meant[1]!r}"
                called = source if len(sources[source]) == 1 else f"{source}/{stage}"
                raise ValueError(f"--costs gives {called!r} {what}: give each member one cost, all in one unit")
            found[source].append(self.by_name[meant[0]])
        return found


def read_costs(given: Sequence[str] | None, columns: str | None) -> Costs | None:
    """``NAME=NUMBER …``, or one CSV file with its two columns ``NAMES,COSTS``; None for None.

    Raises:
        FileNotFoundError, ValueError: anything else, a name twice, a cost that is no finite number ≥ 0.
    """
    if not given:
        if columns is not None:
            raise ValueError("--cost_columns is for --costs FILE.csv: give that too")
        return None
    if columns is not None or (len(given) == 1 and given[0].endswith(".csv")):
        if columns is None or columns.count(",") != 1 or len(given) != 1:
            raise ValueError(f"--costs {' '.join(given)}: a table of costs needs one FILE.csv and --cost_columns NAMES,COSTS")
        pairs = _cost_table(Path(given[0]), *columns.split(","))
    else:
        pairs = [(*text.rpartition("=")[::2], f"--costs {text}") for text in given]
    found: dict[str, float] = {}
    for name, text, where in pairs:
        try:
            cost = float(text)
        except ValueError:
            cost = np.nan
        if not name or not np.isfinite(cost) or cost < 0:
            raise ValueError(f"{where}: expected a member's name and its cost, a finite number ≥ 0")
        if name in found:
            raise ValueError(f"{where}: {name!r} has a cost already, give each member once")
        found[name] = cost
    return Costs(found, columns is not None)


def _cost_table(path: Path, names: str, costs: str) -> list[tuple[str, str, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected a CSV file with columns {names!r} and {costs!r}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            lines = csv.DictReader(file, strict=True)
            header = list(lines.fieldnames or [])
            for column in (names, costs):
                if header.count(column) != 1:
                    raise ValueError(
                        f"{path} has {header.count(column)} columns {column!r}: expected one; its columns are {header}"
                    )
            read = [(str(row[names] or ""), str(row[costs]), f"{path}, line {lines.line_num}") for row in lines]
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not a readable CSV file ({error}): expected UTF-8 text separated by commas") from error
    return [entry for entry in read if entry[1]]  # one without a cost may be of a model that is not in the pool
