"""What every benchmark writes down beside its figures: machine, versions, commit, seeds. One JSON per benchmark under results/."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from quorate.files import write_json
from quorate.runs import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = ("quorate", "numpy", "scipy", "torch", "lightning", "scikit-learn", "onnxruntime", "torch-uncertainty")


def commit() -> str:
    """The commit of the sources; ``+changes`` if they differ from it, ``unknown`` where git does not keep them.

    To be taken when a benchmark starts: the sources may change while it runs.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", Path(__file__).name)  # a copy inside some other repository is not of its commit
        changed = git("status", "--porcelain", "--", "../src", "*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of the packages that matter, as far as they are installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(
    name: str,
    figures: dict[str, Any],
    *,
    commit: str,
    seeds: list[int],
    repeats: int,
    note: str,
    threads: int | None = None,
    trained_at: Iterable[str] | None = None,
) -> Path:
    """Write ``results/name.json``.

    Args:
        name: of the benchmark.
        figures: what was measured.
        commit: what :func:`commit` said when the benchmark started.
        seeds: of everything random.
        repeats: how many times each time was taken.
        note: what was measured and how, for the reader.
        threads: PyTorch's, if it was used.
        trained_at: the commits at which the measured weights were trained, if there are weights.
    """
    path = RESULTS / f"{name}.json"
    trained = {} if trained_at is None else {"trained_at": sorted(set(trained_at))}
    write_json(
        path,
        {
            "benchmark": name,
            "note": note,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit,
            **trained,
            "machine": machine() | {"threads": threads},
            "versions": versions(),
            "seeds": seeds,
            "repeats": repeats,
            "figures": figures,
        },
    )
    return path
