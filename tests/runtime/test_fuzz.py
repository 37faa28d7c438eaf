"""Mutated bundles are refused with one line, or still give the right answers: never another exception, a crash, a hang, a look outside.

Three classes of mutations, of three bundles (a stage that reads what the first wrote; two tickets that run dense; two that run on kernels,
where llvmlite is installed): damage of any file; structural changes of the manifest under a right digest; changes of programs and arrays
under right hashes and digest, where the engines get what passes. A process of its own loads them (tests/fuzz_worker.py), so that one that
crashes or hangs is found and named. More than 10,000 cases in all; a part is always run.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bundle_mutations import BYTES, JSON, WIRE

pytestmark = pytest.mark.deciding
SECONDS = 30.0
WORKER = Path(__file__).parents[1] / "fuzz_worker.py"
WHERE, VALUE = st.integers(0, 2**20), st.integers(0, 2**20)
Case = dict[str, Any]


class Worker:
    """A process that is started again when it has died."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.starts, self.process = folder, 0, None
        self.said: Counter[str] = Counter()

    def start(self) -> subprocess.Popen[str]:
        self.starts += 1
        room = self.folder / str(self.starts)
        room.mkdir()
        paths = os.pathsep.join([str(WORKER.parent), *(path for path in sys.path if path)])
        with (room / "errors").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, str(WORKER), str(room)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def ask(self, case: Case) -> dict[str, str]:
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = self.start()
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(case) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        line = process.stdout.readline() if ready else ""
        if not line:
            code = process.poll()
            self.stop()
            errors = (self.folder / str(self.starts) / "errors").read_text()[-2000:]
            return {
                "said": "wrong",
                "why": f"the process {'hangs' if code is None and not ready else f'died ({code})'}: {errors}",
            }
        found: dict[str, str] = json.loads(line)
        self.said[found["said"]] += 1
        return found

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            for pipe in (self.process.stdin, self.process.stdout):
                if pipe is not None:
                    pipe.close()
            self.process = None


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    made = Worker(tmp_path_factory.mktemp("fuzz"))
    yield made
    made.stop()


def explore(
    worker: Worker, kind: str, names: tuple[str, ...], count: int, bundles: tuple[str, ...] = ("chained", "sparse", "kernels")
) -> Counter[str]:
    """Draw so many cases of a kind; what was said of them."""
    before, began = worker.said.copy(), time.perf_counter()

    @settings(max_examples=count, database=None, suppress_health_check=list(HealthCheck))
    @given(
        bundle=st.sampled_from(bundles),
        file=st.integers(0, 11),
        edits=st.lists(st.tuples(st.sampled_from(names), WHERE, VALUE), min_size=1, max_size=3),
    )
    def check(bundle: str, file: int, edits: list[tuple[str, int, int]]) -> None:
        case = {"bundle": bundle, "kind": kind, "file": file, "edits": edits}
        found = worker.ask(case)
        assert found["said"] != "wrong", (case, found["why"])

    check()
    found = worker.said - before
    print(f"{kind}: {dict(found)} in {time.perf_counter() - began:.1f} s")
    return found


def counts(few: int, many: int) -> Any:
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.slow)])


@counts(200, 3000)
def test_damaged_files(worker: Worker, count: int) -> None:
    found = explore(worker, "damage", BYTES, count)
    assert found["other"] == 0
    assert found["refused"] > 0.9 * found.total() > 0.8 * count


@counts(400, 4000)
def test_manifests_under_a_right_digest(worker: Worker, count: int) -> None:
    found = explore(worker, "manifest", JSON, count)
    assert found["refused"] > 0.5 * found.total()


@counts(200, 3000)
def test_programs_under_right_hashes(worker: Worker, count: int) -> None:
    found = explore(worker, "onnx", WIRE, count)
    assert found["other"] == 0
    assert found["refused"] > 0.5 * found.total()


@counts(200, 1500)
def test_arrays_under_right_hashes(worker: Worker, count: int) -> None:
    found = explore(worker, "arrays", WIRE, count)
    assert found["other"] == 0
    assert found["refused"] > 0.5 * found.total()


def test_the_worker_sees_what_is_wrong(worker: Worker) -> None:
    """A case of every kind without an edit that matters is the same; a dead process is noticed."""
    same = worker.ask({"bundle": "chained", "kind": "manifest", "file": 0, "edits": []})
    assert same == {"said": "same", "why": ""}
    assert worker.ask({"bundle": "none"})["said"] == "wrong"
    assert worker.process is not None
    worker.process.kill()
    worker.process.wait()
    assert worker.ask({"bundle": "sparse", "kind": "manifest", "file": 0, "edits": []})["said"] == "same"
