"""What every benchmark writes down beside its figures: machine, versions, commit, seeds. One JSON per benchmark under results/."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from quorate.files import write_json
from quorate.runs import machine

RESULTS = Path(__file__).parent / "results"


def commit() -> str:
    """The commit measured; ``+changes`` if the sources differed from it."""
    def run(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=RESULTS, capture_output=True, text=True, check=True).stdout.strip()

    changed = run("status", "--porcelain", "--", "../../src", "../../benchmarks/*.py")
    return run("rev-parse", "--short=12", "HEAD") + ("+changes" if changed else "")


def write(name: str, figures: dict[str, Any], seeds: list[int], repeats: int, note: str, threads: int | None = None) -> Path:
    """Write ``results/name.json``."""
    packages = ("quorate", "numpy", "scipy", "torch", "lightning", "scikit-learn")
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "benchmark": name,
            "note": note,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "commit": commit(),
            "machine": machine() | {"threads": threads},
            "versions": {package: metadata.version(package) for package in packages},
            "seeds": seeds,
            "repeats": repeats,
            "figures": figures,
        },
    )
    return path
