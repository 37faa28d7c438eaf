"""What ``quorate export`` puts into a bundle beside programs: the sources' policy, rows, Outputs, and where all of it comes from.

Sources are finished run folders and ONNX files, named as ``quorate plan`` names them. Rows are those of the runs' own data (all runs have
to be of one data set), or the raw inputs that options name where there are ONNX files alone. Provenance names no folder of this machine:
of absolute paths in a recipe the last part stays.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from quorate.cascade.policy import Policy
from quorate.cli.certify import for_policy
from quorate.cli.fed import Fed
from quorate.cli.sources import Source
from quorate.cli.stored import Members, members_of, remade
from quorate.combination import CLASS_KINDS, Combine, Kind
from quorate.outputs import Outputs
from quorate.runs import Run
from quorate.runtime.program import Program

PARTS = ("validation", "calibration", "test")
SEEN = 1000  # rows whose range of values is told


@dataclass(frozen=True)
class Rows:
    """Raw inputs x (N, *shape), in memory or on disk, with labels and ids, each (N, …) or None."""

    x: Any
    y: NDArray[Any] | None
    ids: NDArray[Any] | None

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def first(self, count: int) -> NDArray[Any]:
        """The first ones, in memory."""
        return np.ascontiguousarray(self.x[:count])

    def all(self) -> NDArray[Any]:
        """All of them, in memory."""
        return self.first(len(self))


def find_policy(sources: Sequence[Source], named: str | None, full: bool) -> tuple[Policy, str] | None:
    """(the policy, its name) that is asked for: a file's, or one of the only run's; None for all stages, none of which decides early.

    Without a name it is the run's only policy, if the one source is a run that has one.

    Raises:
        FileNotFoundError, ValueError: no such policy, several of which none is named, a name that means two.
    """
    if full:
        if named is not None:
            raise ValueError(f"--policy {named} and --full: the full ensemble has no policy, leave one out")
        return None
    own = Run(sources[0].path).policies if len(sources) == 1 and sources[0].is_run else {}
    if named is None:
        if len(own) > 1:
            raise ValueError(f"run {sources[0].path} has the policies {', '.join(own)}: name one by --policy, or none by --full")
        path = next(iter(own.values()), None)
        return None if path is None else (Policy.load(path), path.stem)
    file = Path(named)
    if named in own and file.is_file() and not file.samefile(own[named]):
        raise ValueError(f"--policy {named} is a file here and a policy of run {sources[0].path}: give {own[named]} or ./{named}")
    found = own.get(named, file)
    if not found.is_file():
        has = f", the policies of the run are {', '.join(own)}" if own else ""
        raise FileNotFoundError(f"--policy {named} does not exist: expected a file that quorate plan wrote{has}")
    return Policy.load(found), found.stem


def full_policy(members: Members) -> Policy | None:
    """All members, by name and in order, none of which decides early; None of a regression.

    Raises:
        ValueError: members of different kinds, combinations or rows, or several of which only the last would count.
    """
    first_name, first = next(iter(members.items()))
    for name, outputs in members.items():
        if (outputs.kind, outputs.combine) != (first.kind, first.combine):
            raise ValueError(
                f"{first_name!r} gives {first.kind} combined by {first.combine}, {name!r} {outputs.kind} by {outputs.combine}: give the "
                "--policy that joins them"
            )
        first.check_same_rows(outputs, first_name, name)
    if first.kind not in CLASS_KINDS:
        return None
    costs = [outputs.costs[0] for outputs in members.values() if outputs.costs is not None]
    joined = remade(
        first,
        values=[outputs.values[0] for outputs in members.values()],
        names=list(members),
        costs=costs if len(costs) == len(members) else None,
        ordered=False,
    )
    return Policy.of(joined)


def pool_of(sources: Mapping[str, Outputs]) -> Members:
    """Every stage as a member by the name that it has in a policy."""
    free = {name: remade(outputs, ordered=False) for name, outputs in sources.items()}
    only = next(iter(free.values()))
    if len(free) == 1 and only.stages == 1:
        return {only.names[0]: only}
    return members_of(free, len(sources) == 1)


def outputs_for(policy: Policy | None, sources: Mapping[str, Outputs] | None) -> Outputs | None:
    """The Outputs of the policy's stages; None where a source has none."""
    if not sources:
        return None
    if policy is None:
        return next(iter(sources.values())) if len(sources) == 1 else None
    return for_policy(policy, dict(sources))


def kinds_of(policy: Policy | None, source: str, kind: Kind | None, combine: Combine | None) -> tuple[Kind, Combine]:
    """What an ONNX file gives: as the policy says of its stage, or the options. ValueError where nobody says it, or they differ."""
    if policy is not None:
        for option, said, given in (("kind", policy.kind, kind), ("combine", policy.combine, combine)):
            if given is not None and given != said:
                raise ValueError(f"--{option} {given}: the policy has {said!r}, leave it out")
        own = next((stage.kind for stage in policy.stages if stage.name == source), None)
        return own or policy.kind, policy.combine
    if kind is None:
        raise ValueError(
            f"{source}: what an ONNX file gives is never guessed, give --kind, or the --policy that was planned for it"
        )
    return kind, combine or "probs"


def picked(programs: Mapping[str, Program], policy: Policy | None) -> list[Program]:
    """The policy's stages, in its order; all without one. ValueError for one that is not there."""
    if policy is None:
        return list(programs.values())
    absent = [stage.name for stage in policy.stages if stage.name not in programs]
    if absent:
        raise ValueError(
            f"the policy has the stages {absent}, there are {list(programs)}: name the sources as quorate plan was given them, NAME=PATH"
        )
    return [programs[stage.name] for stage in policy.stages]


def ran(
    fed: Fed,
    programs: Mapping[str, Program],
    rows: Rows,
    policy: Policy | None,
    kind: Kind | None,
    combine: Combine | None,
    classes: Sequence[str] | None = None,
) -> Members:
    """Outputs of ONNX files on the rows."""
    found: Members = {}
    for name, program in programs.items():
        said, joined = kinds_of(policy, name, kind, combine)
        found[name] = fed.run(program, rows.x, rows.y, rows.ids, said, joined, classes)
    return found


# --- where it comes from ---


def provenance(sources: Sequence[Source], policy: str | None, about: Mapping[str, str]) -> dict[str, Any]:
    """Runs and files by name, the policy's name, and what the user adds, as JSON values."""
    found: dict[str, Any] = {}
    if runs := [source for source in sources if source.is_run]:
        found["runs"] = {source.name: _run(Run(source.path)) for source in runs}
    if files := [source for source in sources if source.is_onnx]:
        found["files"] = {s.name: {"file": s.path.name, "sha256": _sha256(s.path)} for s in files}
    return found | ({} if policy is None else {"policy": policy}) | dict(about)


def read_about(texts: Sequence[str]) -> dict[str, str]:
    """``KEY=VALUE`` …; ValueError for anything else, a key twice, or one that provenance has already."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ValueError(f"--about {text}: expected KEY=VALUE")
        if key in found or key in ("runs", "files", "policy", "versions"):
            raise ValueError(f"--about {text}: {key!r} is said already, choose another key")
        found[key] = value
    return found


def portable(value: Any) -> Any:
    """As JSON values, of absolute paths the last part alone."""
    if isinstance(value, Mapping):
        return {str(key): portable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [portable(inner) for inner in value]
    if isinstance(value, str):
        for kind in (PurePosixPath(value), PureWindowsPath(value)):
            if kind.is_absolute() or value.startswith("~"):
                return f"…/{kind.name}"
        return value
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)


def recipe_of(run: Run) -> dict[str, Any]:
    """The recipe that the run folder keeps. ValueError where there is none."""
    try:
        found = yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"run {run.path} has no readable config.yaml: train it by quorate train or demo") from error
    if not isinstance(found, dict):
        raise ValueError(f"run {run.path}: config.yaml holds a {type(found).__name__}, expected a recipe")
    return found


def preprocessing(x: NDArray[Any], own: Mapping[str, Any] | None) -> dict[str, Any]:
    """What raw inputs are, told by some of the validation rows (B, *shape), and what the data's loader did to them before."""
    rows = np.asarray(x[:SEEN])
    told = {"raw inputs": "as the data's loader gave them; the programs normalise them themselves"}
    if rows.dtype.kind in "biuf" and rows.size:
        told["values seen"] = f"{rows.min():.6g} … {rows.max():.6g}, {rows.dtype}, in {len(rows):,} validation rows"
    return told | ({} if own is None else {"steps before": portable(own)})


def _run(run: Run) -> dict[str, Any]:
    data = run.facts["data"]
    kept = {key: run.facts[key] for key in ("seed", "versions") if key in run.facts}
    about = {key: data[key] for key in ("name", "fingerprint") if key in data}
    return {"folder": run.name, "data": about, **portable(kept), "recipe": portable(recipe_of(run))}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
