"""Run folders: everything of one training, found again by name.

==========================  =================================================================================================
``run.json``                what was asked and what came of it: status, identity, settings, versions, machine, seed, costs
``config.yaml``             the recipe, if the command line trained it
``metrics.csv``               one line per epoch
``members.csv``               one line per epoch and member
``weights.safetensors``     the trained ensemble; instead of it, of an ensemble of sparse networks,
``tickets/``                ``memberM.safetensors``, each network in about the bytes of its live weights
``rounds.jsonl``            of a distillation, one line per round and search
``teacher/``                of a distillation by the command line that trained its teacher: the teacher's own run folder
``distil/``                 of a distillation that is not finished, its state after the last round
``outputs/NAME.safetensors``  Outputs of ``validation``, ``calibration``, ``test`` and ``ood-…``
``policies/NAME.json``      cascades over these outputs
``tensorboard/``            event files
``resume.ckpt``             only while the run is not finished
``.lock``                   held by the process that writes
==========================  =================================================================================================

Reading needs arrays only, no PyTorch.
"""

from __future__ import annotations

import errno
import math
import os
import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from quorate.files import read_json, write_json
from quorate.outputs import Outputs

FORMAT = "quorate-run/1"


class Run:
    """A saved run. Values are read when asked for.

    Raises:
        FileNotFoundError, ValueError: the folder is not a run, or is damaged; the file is named.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.facts: dict[str, Any] = read_facts(self.path)
        self._outputs: dict[str, Outputs] = {}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def finished(self) -> bool:
        """Whether training and evaluation came to their end."""
        return bool(self.facts.get("status") == "finished")

    def outputs(self, part: str) -> Outputs:
        """Stored Outputs of ``validation``, ``calibration``, ``test`` or ``ood-NAME``; read once.

        Raises:
            FileNotFoundError, ValueError: no such outputs (those that there are get listed), an unfinished run, a damaged file.
        """
        if part not in self._outputs:
            if not self.finished:
                raise ValueError(f"run {self.path} is not finished: run its training command again, it goes on where it stopped")
            folder = self.path / "outputs"
            stored = sorted(file.stem for file in folder.glob("*.safetensors"))
            if part not in stored:
                raise FileNotFoundError(f"run {self.path} has no outputs {part!r}: expected one of {', '.join(stored) or 'none'}")
            self._outputs[part] = Outputs.load(folder / f"{part}.safetensors")
        return self._outputs[part]

    @property
    def ood(self) -> tuple[str, ...]:
        """Names of the OOD sets that were stored."""
        return tuple(sorted(file.stem.removeprefix("ood-") for file in (self.path / "outputs").glob("ood-*.safetensors")))

    @property
    def policies(self) -> dict[str, Path]:
        """Policy files of this run by name."""
        return {file.stem: file for file in sorted((self.path / "policies").glob("*.json"))}

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        self.facts |= facts
        write_json(self.path / "run.json", self.facts)


def read_facts(path: str | Path) -> dict[str, Any]:
    """The content of a run's ``run.json``."""
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not a folder: expected a run folder written by quorate train")
    facts = read_json(path / "run.json", "the record of a run folder written by quorate train")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else type(facts).__name__
        raise ValueError(f"{path / 'run.json'} has format {found!r}: expected {FORMAT!r}, a run folder written by quorate train")
    wrong = _wrong_fact(facts)
    if wrong is not None:
        raise ValueError(f"{path / 'run.json'} is damaged: {wrong}; train the run anew")
    return facts


def _wrong_fact(facts: Mapping[str, Any]) -> str | None:
    """What is wrong with the facts that others read, in words."""
    if facts.get("status") not in ("running", "finished"):
        return f"status is {facts.get('status')!r}, expected 'running' or 'finished'"
    if facts["status"] == "finished" and not (isinstance(facts.get("data"), dict) and isinstance(facts["data"].get("name"), str)):
        return "data has no name"
    for key in ("parameters", "training_macs"):
        if key in facts and not _is_amount(facts[key]):
            return f"{key} is {facts[key]!r}, expected a number ≥ 0"
    latency = facts.get("latency", {"how": "", "ms_per_1000": {}})
    times = latency.get("ms_per_1000") if isinstance(latency, dict) and isinstance(latency.get("how"), str) else None
    if not isinstance(times, dict) or not all(_is_amount(time) for time in times.values()):
        return f"latency is {latency!r}, expected how it was measured and numbers ≥ 0"
    if "ledger" in facts and (wrong := _wrong_ledger(facts["ledger"])) is not None:
        return wrong
    return _wrong_distillation(facts["distil"]) if "distil" in facts else None


def _wrong_ledger(ledger: Any) -> str | None:
    """What is wrong with the costs of sparse networks, in words."""
    if not isinstance(ledger, dict):
        return f"ledger is {ledger!r}, expected what sparse networks cost, by name"
    amounts: dict[str, Any] = {"training_ratio": ledger.get("training_ratio")}
    for key in ("inference_macs", "live_parameters"):
        part = ledger.get(key)
        if not isinstance(part, dict):
            return f"ledger.{key} is {part!r}, expected its total and ratio"
        amounts |= {f"{key}.{name}": part.get(name) for name in ("total", "ratio")}
    for key, value in amounts.items():
        if not (_is_amount(value) and 0 < value < math.inf):
            return f"ledger.{key} is {value!r}, expected a finite number > 0"
    explored, overlap = ledger.get("exploration_rate"), ledger.get("overlap")
    if explored is not None and not _is_share(explored):
        return f"ledger.exploration_rate is {explored!r}, expected a share in [0, 1] or null"
    square = isinstance(overlap, list) and all(isinstance(row, list) and len(row) == len(overlap) for row in overlap)
    if not square or not all(_is_share(value) for row in overlap or () for value in row):
        return "ledger.overlap is no square table of shares in [0, 1], expected one of each two tickets"
    return None


def _wrong_distillation(about: Any) -> str | None:
    """What is wrong with what the rounds of a distillation came to, in words."""
    rounds = about.get("rounds") if isinstance(about, dict) else None
    if not isinstance(rounds, list) or not rounds or not all(isinstance(row, dict) for row in rounds):
        return f"distil.rounds is {rounds!r}, expected what each round came to, at least one"
    if about.get("kind") not in ("logits", "values", "gaussian"):
        return f"distil.kind is {about.get('kind')!r}, expected logits, values or gaussian"
    for at, row in enumerate(rounds):
        if not isinstance(row.get("student"), str) or not isinstance(row.get("candidate"), dict):
            return f"distil.rounds[{at}] names no student and candidate"
        key = "agreement" if about["kind"] == "logits" else "mse"
        if not (_is_share(row.get(key)) if key == "agreement" else _is_amount(row.get(key))):
            return f"distil.rounds[{at}].{key} is {row.get(key)!r}, expected a number ≥ 0" + ", at most 1" * (key == "agreement")
        if not (_is_amount(row.get("macs")) and 0 < row["macs"] < math.inf):
            return f"distil.rounds[{at}].macs is {row.get('macs')!r}, expected a finite number > 0"
    teacher, weights = about.get("teacher"), about.get("weights")
    macs = teacher.get("macs") if isinstance(teacher, dict) else 0
    if macs is not None and not (_is_amount(macs) and 0 < macs < math.inf):
        return f"distil.teacher is {teacher!r}, expected its macs, a finite number > 0 or null"
    fitting = isinstance(weights, list) and len(weights) == len(rounds) and all(_is_amount(w) and w < math.inf for w in weights)
    if weights is not None and not fitting:
        return f"distil.weights is {weights!r}, expected {len(rounds)} finite numbers ≥ 0 or null"
    return None


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_share(value: Any) -> bool:
    return _is_amount(value) and bool(value <= 1)


class Lock:
    """Holds a run folder for this process; the system lets it go when the process ends, however it ends.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        if not _try_lock(handle):
            os.close(handle)
            message = f"run folder {self.folder} is in use by another process: wait for it, or choose another folder"
            raise BlockingIOError(errno.EWOULDBLOCK, message)
        self._handle = handle
        return self

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _try_lock(handle: int) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def check_usable(folder: Path, beside: Collection[str] = ()) -> None:
    """A ValueError unless the folder is missing, empty but for what is named in ``beside``, or a run's."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: expected a run folder, or a path where one can be made")
    if folder.exists() and not (folder / "run.json").exists():
        own = re.compile(r"\.lock|\..*\.part|\.tmp\w+")  # a first write that was killed leaves no more
        foreign = sorted(path.name for path in folder.iterdir() if not own.fullmatch(path.name) and path.name not in beside)
        if foreign and not (folder / "run.json").exists():  # another process may have begun its run meanwhile
            raise ValueError(f"{folder} is not empty (it has {foreign[0]!r}) and holds no run: choose another folder")


def check_identity(folder: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """A ValueError that names every setting in which a run to be resumed differs from what is asked now."""
    was, now = _flat(stored), _flat(asked)
    differing = [key for key in was.keys() | now.keys() if was.get(key) != now.get(key)]
    if differing:
        shown = ", ".join(f"{key}: {was.get(key)!r} there, {now.get(key)!r} now" for key in sorted(differing)[:4])
        more = f" and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise ValueError(
            f"run folder {folder} holds another run ({shown}{more}): use the same settings to go on, or another folder"
        )


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping) and (value or not prefix):
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: list(value) if isinstance(value, tuple) else value}


def machine() -> dict[str, Any]:
    """What this machine is, for the record: system, processor, cores, Python."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
