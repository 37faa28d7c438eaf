"""Run folders: read with remedies, held by one process at a time, resumed only as the same run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate import runs
from quorate._validation import nearest
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

FACTS = {"format": runs.FORMAT, "status": "finished", "data": {"name": "d"}}
OUTPUTS = Outputs([np.eye(3)], labels=[0, 1, 2])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "run-7"
    for part in ("validation", "test", "ood-noise", "ood-far-away"):
        OUTPUTS.save(path / "outputs" / f"{part}.safetensors")
    for name in ("late", "early"):
        (path / "policies").mkdir(exist_ok=True)
        (path / "policies" / f"{name}.json").write_text("{}")
    (path / "run.json").write_text(json.dumps(FACTS | {"seed": 3}))
    return path


def test_a_finished_run_gives_back_what_is_in_it(folder: Path) -> None:
    run = runs.Run(str(folder))
    assert (run.name, run.finished, run.facts["seed"]) == ("run-7", True, 3)
    assert run.ood == ("far-away", "noise")
    assert list(run.policies.items()) == [(name, folder / "policies" / f"{name}.json") for name in ("early", "late")]
    assert run.outputs("test") is run.outputs("test")
    np.testing.assert_array_equal(run.outputs("ood-noise").values[0], OUTPUTS.values[0])


def test_facts_are_added_and_survive(folder: Path) -> None:
    runs.Run(folder).update(seed=4, note="é")
    assert runs.Run(folder).facts == FACTS | {"seed": 4, "note": "é"}
    with pytest.raises(ValueError, match=r"run\.json can't hold this as JSON"):
        runs.Run(folder).update(loss=float("nan"))
    assert runs.read_facts(folder)["seed"] == 4


def test_the_name_is_the_folders_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert runs.Run(".").name == "run-7"


def test_a_run_without_extras_has_none(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(FACTS))
    run = runs.Run(tmp_path)
    assert (run.ood, run.policies) == ((), {})
    with pytest.raises(FileNotFoundError, match="has no outputs 'test': expected one of none"):
        run.outputs("test")


def test_outputs_that_are_not_there_or_not_yet_or_damaged(folder: Path) -> None:
    expected = rf"run {folder} has no outputs 'train': expected one of ood-far-away, ood-noise, test, validation"
    with pytest.raises(FileNotFoundError, match=expected):
        runs.Run(folder).outputs("train")
    (folder / "outputs" / "test.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"test\.safetensors is not a readable safetensors file"):
        runs.Run(folder).outputs("test")
    runs.Run(folder).update(status="running")
    assert not runs.Run(folder).finished
    with pytest.raises(ValueError, match=rf"run {folder} is not finished: run its training command again, it goes on"):
        runs.Run(folder).outputs("validation")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "run.json does not exist: expected the record of a run folder written by quorate train"),
        ("{", "run.json is not readable as JSON"),
        ("[]", "run.json has format 'list': expected 'quorate-run/1', a run folder written by quorate train"),
        ('{"format": "quorate-run/9"}', "has format 'quorate-run/9': expected 'quorate-run/1'"),
        ("{}", "has format None"),
    ],
)
def test_other_folders_are_not_runs(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        runs.Run(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: expected a run folder written by quorate train"):
        runs.Run(tmp_path / "nowhere")


# --- the lock --------------------------------------------------------------------------------------------------------

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom quorate.runs import Lock\n"
    "with Lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
)
TRY = "import sys\nfrom pathlib import Path\nfrom quorate.runs import Lock\nwith Lock(Path(sys.argv[1])): print('held')\n"


def test_one_process_holds_a_run_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        refused = subprocess.run([sys.executable, "-c", TRY, folder], capture_output=True, text=True, timeout=60)
        assert refused.returncode == 1
        assert f"run folder {folder} is in use by another process: wait for it, or choose another folder" in refused.stderr
        with pytest.raises(BlockingIOError, match="in use by another process"), runs.Lock(folder):
            pass
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
    with runs.Lock(folder):
        refused = subprocess.run([sys.executable, "-c", TRY, folder], capture_output=True, text=True, timeout=60)
        assert "in use by another process" in refused.stderr
    assert subprocess.run([sys.executable, "-c", TRY, folder], capture_output=True, text=True, timeout=60).stdout == "held\n"


def test_an_error_inside_lets_the_run_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), runs.Lock(tmp_path):
        raise ZeroDivisionError
    with runs.Lock(tmp_path), runs.Lock(tmp_path / "another"):
        pass


# --- the same run? ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "asked", "named"),
    [
        ({"a": 1}, {"a": 1}, None),
        ({"shape": [1, 2], "x": {}}, {"shape": (1, 2), "x": {}}, None),
        ({}, {}, None),
        ({"a": 1}, {"a": 2}, "a: 1 there, 2 now"),
        ({}, {"a": 2}, "a: None there, 2 now"),
        ({"m": {"w": [1], "d": 2}}, {"m": {"w": [2], "d": 2}}, r"\(m.w: \[1\] there, \[2\] now\)"),
        ({"m": {"w": 1}}, {"m": 5}, "m: None there, 5 now, m.w: 1 there, None now"),
        (dict.fromkeys("fedcba", 0), dict.fromkeys("fedcba", 1), r"\(a: .*, b: .*, c: .*, d: 0 there, 1 now and 2 more\)"),
    ],
)
def test_a_run_goes_on_only_with_the_same_settings(stored: dict[str, Any], asked: dict[str, Any], named: str | None) -> None:
    if named is None:
        runs.check_identity(Path("r"), stored, asked)
        return
    with pytest.raises(ValueError, match=named) as caught:
        runs.check_identity(Path("r"), stored, asked)
    assert str(caught.value).startswith("run folder r holds another run (")
    assert str(caught.value).endswith("): use the same settings to go on, or another folder")


def test_the_nearest_known_word_is_offered() -> None:
    assert nearest("epoch", ["epochs", "seed"]) == "; did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "seed"]) == ""


def test_the_machine_is_described_in_json() -> None:
    facts = runs.machine()
    assert set(facts) == {"system", "architecture", "processor", "cores", "python"}
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == ".".join(map(str, sys.version_info[:3]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "odd"}, "status is 'odd', expected 'running' or 'finished'"),
        ({"data": None}, "data has no name"),
        ({"data": {}}, "data has no name"),
        ({"parameters": -5}, "parameters is -5, expected a number ≥ 0"),
        ({"training_macs": {}}, "training_macs is {}, expected a number ≥ 0"),
        ({"latency": []}, r"latency is \[\], expected"),
        ({"latency": {"how": "x", "ms_per_1000": {"all": "fast"}}}, "latency is .*'fast'.*, expected how it was measured"),
    ],
)
def test_damaged_facts_are_named(folder: Path, change: dict, message: str) -> None:
    (folder / "run.json").write_text(json.dumps(FACTS | change))
    with pytest.raises(ValueError, match=rf"run\.json is damaged: {message}.*; train the run anew"):
        runs.Run(folder)
