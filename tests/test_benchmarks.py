"""What the benchmarks write down: means over seeds of which some have no figure, commits, and peaks over what a call was given."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from quorate.outputs import Outputs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
Written = dict[str, dict[str, float | None]]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record(monkeypatch: Patch, tmp_path: Path) -> Iterator[ModuleType]:
    """record.py as the other scripts import it; it writes to a folder that does not exist yet."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "record", raising=False)
    module = importlib.import_module("record")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "clone" / "results")
    yield module
    sys.modules.pop("record", None)


@pytest.fixture
def tables(record: ModuleType) -> ModuleType:
    assert sys.modules["record"] is record
    return load(BENCHMARKS / "tables.py")


@pytest.fixture
def deciding(record: ModuleType) -> ModuleType:
    assert sys.modules["record"] is record
    return load(BENCHMARKS / "deciding.py")


def demo(monkeypatch: Patch, tables: ModuleType, by_seed: list[Written]) -> list[list[str]]:
    """Let ``quorate demo`` be something that writes these results by seed; → the arguments it gets."""
    seen: list[list[str]] = []

    def main(argv: list[str]) -> int:
        seen.append(argv)
        seed, out = int(argv[argv.index("--seed") + 1]), Path(argv[argv.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(by_seed[seed]))
        return 0

    monkeypatch.setattr(tables, "quorate", main)
    return seen


def gathered(record: ModuleType, name: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


SEEDS: list[Written] = [
    {"single": {"accuracy": 0.5, "coverage_at_risk": 0.0, "risk_met": 0.0}, "packed": {"accuracy": 0.25}},
    {
        "single": {"accuracy": 0.75, "coverage_at_risk": 0.5, "risk_met": None},
        "deep cascade": {"accuracy": 1.0, "reach": 0.125, "risk_met": 0.02},
        "packed": {"accuracy": None},
    },
    {
        "single": {"accuracy": 0.625, "coverage_at_risk": 0.25, "risk_met": 0.015},
        "deep cascade": {"accuracy": 0.875, "reach": None, "risk_met": None},
        "packed": {"accuracy": None, "nll": None},
    },
]


def test_gather_counts_the_seeds_that_have_a_figure(
    tables: ModuleType, record: ModuleType, tmp_path: Path, monkeypatch: Patch
) -> None:
    seen = demo(monkeypatch, tables, SEEDS)
    tables.gather("x", ["--root", "/home/me/data", "--ood", "a=/home/me/a.npz", "b=b.npz"], 3, tmp_path / "out", "c0ffee")
    result = gathered(record, "table-x")
    figures = result["figures"]
    assert list(figures) == ["single", "deep cascade", "packed"]  # the column that seed 0 lacks is not put last
    assert figures["single"]["accuracy"] == {"mean": 0.625, "sd": pytest.approx(0.125), "n": 3, "seeds": 3}
    assert figures["single"]["risk_met"] == {"mean": 0.015, "sd": None, "n": 1, "seeds": 3}  # no coverage, no risk
    assert figures["deep cascade"]["accuracy"] == {"mean": 0.9375, "sd": pytest.approx(math.sqrt(2) / 16), "n": 2, "seeds": 3}
    assert figures["deep cascade"]["reach"] == {"mean": 0.125, "sd": None, "n": 1, "seeds": 3}
    assert figures["packed"]["accuracy"] == {"mean": 0.25, "sd": None, "n": 1, "seeds": 3}
    assert figures["packed"]["nll"] == {"mean": None, "sd": None, "n": 0, "seeds": 3}
    assert (result["commit"], result["trained_at"], result["seeds"], result["repeats"]) == ("c0ffee", ["c0ffee"], [0, 1, 2], 5)
    assert "`quorate demo --root data --ood a=a.npz b=b.npz`" in result["note"]
    assert "/home" not in json.dumps(result)
    assert seen[2] == [*seen[0][:-4], "--seed", "2", "--out", str(tmp_path / "out" / "x-2")]


def test_gather_keeps_the_commit_at_which_each_folder_was_made(
    tables: ModuleType, record: ModuleType, tmp_path: Path, monkeypatch: Patch
) -> None:
    demo(monkeypatch, tables, SEEDS)
    (tmp_path / "x-2").mkdir()
    (tmp_path / "x-2" / "single").touch()  # trained before commits were written down
    tables.gather("x", [], 1, tmp_path, "old+changes")
    tables.gather("x", [], 3, tmp_path, "new")
    result = gathered(record, "table-x")
    assert (result["commit"], result["trained_at"]) == ("new", ["new", "old+changes", "unknown"])
    assert (tmp_path / "x-0.commit").read_text() == "old+changes\n"
    assert sorted(path.name for path in (tmp_path / "x-0").iterdir()) == ["results.json"]  # the demo refuses folders of others


def test_gather_stops_where_the_demo_fails(
    tables: ModuleType, record: ModuleType, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(tables, "quorate", lambda argv: int("1" in argv))
    (tmp_path / "x-0").mkdir()
    (tmp_path / "x-0" / "results.json").write_text("{}")
    with pytest.raises(SystemExit) as stopped:
        tables.gather("x", [], 2, tmp_path, "c")
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "table x: quorate demo failed for seed 1, nothing was written\n"
    assert not record.RESULTS.exists()


def test_tables_main_takes_the_commit_first(tables: ModuleType, monkeypatch: Patch, tmp_path: Path) -> None:
    done: list[Any] = []
    monkeypatch.setattr(tables, "commit", lambda: done.append("commit") or "c")
    monkeypatch.setattr(tables, "gather", lambda *given: done.append(given))
    tables.main(["--digits", "--idx", "D", "--ood", "a=b", "--out", str(tmp_path)])
    assert done == [
        "commit",
        ("digits", ["--data", "digits"], 5, tmp_path, "c"),
        ("fashion-mnist", ["--data", "idx", "--root", "D", "--ood", "a=b"], 3, tmp_path, "c"),
    ]
    tables.main(["--idx", "D", "--seeds", "7"])
    assert done[-1] == ("fashion-mnist", ["--data", "idx", "--root", "D"], 7, Path("runs/tables"), "c")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to gather: give --digits, --idx DIR, or both"),
        (["--digits", "--ood", "a=b"], "--ood is for --idx DIR"),
        (["--digits", "--seeds", "0"], "--seeds 0: expected 1 or more"),
    ],
)
def test_tables_main_refuses(tables: ModuleType, argv: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        tables.main(argv)
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


def test_merged_keeps_every_order(tables: ModuleType) -> None:
    assert tables.merged([]) == []
    assert tables.merged([["a", "c"], ["a", "b", "c"], ["z", "a", "d"]]) == ["z", "a", "d", "b", "c"]


@pytest.mark.parametrize(("values", "n"), [([None, None], 0), ([0.3], 1), ([0.1, None, 0.4, 0.9], 3)])
def test_summary(tables: ModuleType, values: list[float | None], n: int) -> None:
    found, present = tables.summary(values), [v for v in values if v is not None]
    assert (found["n"], found["seeds"]) == (n, len(values))
    assert found["mean"] == (pytest.approx(np.mean(present)) if n else None)
    assert found["sd"] == (pytest.approx(statistics.stdev(present)) if n > 1 else None)


# --- record ---


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: Patch) -> Callable[[], str]:
    """commit() of a copy of record.py in a folder of its own, which has no results/ and is not in any repository."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    (tmp_path / "clone" / "benchmarks").mkdir(parents=True)
    (tmp_path / "clone" / "src").mkdir()
    (tmp_path / "clone" / "src" / "a.py").touch()
    shutil.copy(BENCHMARKS / "record.py", tmp_path / "clone" / "benchmarks")
    return load(tmp_path / "clone" / "benchmarks" / "record.py").commit  # type: ignore[no-any-return]


def test_commit_outside_git_is_unknown(copy: Callable[[], str], tmp_path: Path, monkeypatch: Patch) -> None:
    assert copy() == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))  # no git at all
    assert copy() == "unknown"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_in_a_fresh_clone(copy: Callable[[], str], tmp_path: Path) -> None:
    root = tmp_path / "clone"
    git(root, "init", "-q")
    assert copy() == "unknown"  # inside a repository that does not keep it
    git(root, "add", ".")
    assert copy() == "unknown"  # nor has a commit yet
    git(root, "commit", "-qm", "x")
    clean = git(root, "rev-parse", "--short=12", "HEAD")
    assert copy() == clean
    (root / "benchmarks" / "results").mkdir()
    (root / "benchmarks" / "results" / "x.json").touch()
    (root / "README.md").touch()
    assert copy() == clean  # what benchmarks write is no change of the sources
    (root / "src" / "b.py").touch()
    assert copy() == f"{clean}+changes"
    (root / "src" / "b.py").unlink()
    shutil.copy(root / "src" / "a.py", root / "benchmarks" / "record.py")
    assert copy() == f"{clean}+changes"


def test_write_makes_the_folder_and_leaves_out_what_is_not_installed(record: ModuleType, monkeypatch: Patch) -> None:
    monkeypatch.setattr(record, "PACKAGES", ("numpy", "no-such-package-of-anyone"))
    assert not record.RESULTS.exists()
    path = record.write("x", {"f": 1}, commit="c", seeds=[3, 4], repeats=2, note="n", threads=7)
    result = gathered(record, "x")
    assert path == record.RESULTS / "x.json"
    assert result["versions"] == {"numpy": np.__version__}
    assert (result["commit"], result["seeds"], result["repeats"], result["machine"]["threads"]) == ("c", [3, 4], 2, 7)
    assert "trained_at" not in result


# --- deciding ---


def test_every_call_counts_the_arrays_it_is_given(deciding: ModuleType) -> None:
    n = 400
    calls = deciding.calls(deciding.make(n))
    size = {name: deciding.given_bytes(call) for name, call in calls.items()}
    assert size["nll"] == n * 10 * 4 + n * 8  # float32 probabilities and int64 labels
    assert size["aurc"] == size["coverage_at_risk"] == n * (8 + 1)  # float64 uncertainty and boolean errors
    assert size["auroc"] == n * 8
    assert size["scod_risk"] == n * 8 + n // 2
    assert size["pairwise_disagreement"] == 2 * n * 10 * 4
    assert size["simulate"] == size["Policy.fit fpr@tpr"] == size["uncertainty energy"] == 2 * n * 10 * 4 + n * 8
    two = {name for name, call in calls.items() if deciding.stored_outputs(call) == 2}
    assert two == {name for name in calls if name.startswith(("Policy.fit", "uncertainty", "simulate"))}
    assert {deciding.stored_outputs(call) for call in calls.values()} == {1, 2}


def test_both_ratios_of_the_peak(deciding: ModuleType) -> None:
    given, made = np.zeros(1_000, np.float32), 400_000
    call = functools.partial(
        lambda array, extra: len(np.ones(made, np.uint8)) + len(array) + len(extra), given, extra=given[:500]
    )
    seconds, peak = deciding.measure(call)
    assert len(seconds) == deciding.REPEATS
    assert made <= peak < 1.1 * made
    found = deciding.entry(call, 1_000, [3.0, 1.0, 2.5], made)
    assert found["peak_over_own_input"] == made / 6_000
    assert found["peak_over_outputs"] == made / 40_000
    assert (found["seconds"], found["least"], found["most"], found["stored_outputs"]) == (2.5, 1.0, 3.0, 1)
    outputs = Outputs([np.zeros((2, 5, 10))], labels=np.zeros(5, int))
    assert deciding.stored_outputs(functools.partial(len, outputs)) == 1


@pytest.mark.parametrize(("peak", "verdict"), [(320_000, "met; the largest is 4.00 × (b)"), (320_001, "NOT MET; the largest")])
def test_deciding_main_judges_by_the_outputs_given(
    deciding: ModuleType, record: ModuleType, monkeypatch: Patch, capsys: Capture, peak: int, verdict: str
) -> None:
    monkeypatch.setattr(deciding, "commit", lambda: "c")
    few = Outputs([np.zeros((1, 10, 10), np.float32)] * 2, labels=np.zeros(10, int))
    monkeypatch.setattr(deciding, "make", lambda _: few)
    on = functools.partial
    monkeypatch.setattr(deciding, "calls", lambda _: {"a": on(len, np.zeros(4)), "b": on(len, few)})
    monkeypatch.setattr(deciding, "measure", lambda call: ([0.25], peak * 10 if call.args[0] is few else 100))
    deciding.main(["--rows", "10000"])
    assert f"peak ≤ 4 × the stored outputs given: {verdict}" in capsys.readouterr().out
    result = gathered(record, "deciding")
    assert result["commit"] == "c"
    assert list(result["figures"]["a"]) == ["100", "1000", "10000"]
    assert "peak ≤ 4 × the stored outputs given to the call" in result["note"]
    found = result["figures"]
    assert found["a"]["1000"]["peak_over_own_input"] == 100 / 32
    assert found["b"]["10000"]["peak_over_outputs"] == peak * 10 / 400_000


def test_deciding_main_refuses_too_few_rows(deciding: ModuleType, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        deciding.main(["--rows", "99"])
    assert "--rows 99: expected 10000 or more" in capsys.readouterr().err
