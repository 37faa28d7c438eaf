"""Loading a bundle: nothing in it is believed before it was checked.

In order: the manifest (size, JSON, version, digest, schema, that its parts fit), every file (path inside the folder, size, SHA-256), every
program (wire format, operators, no data from outside), the sessions (inputs and outputs as the manifest says), the golden outputs. The
bytes that were checked are the bytes that are used. Stages with a ticket run on kernels that skip dead weights where they can
(:mod:`quorate.runtime.engines`); the golden outputs are then those kernels'.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quorate.runtime import engines
from quorate.runtime.engines import Engine, Use
from quorate.runtime.folder import read_file, read_manifest
from quorate.runtime.golden import check_golden
from quorate.runtime.manifest import BundleError, File, Manifest, Stage
from quorate.runtime.onnx_file import check_program
from quorate.runtime.runtime import Runtime
from quorate.runtime.session import OnnxStage, Providers, check_providers
from quorate.runtime.ticket import read_ticket

if TYPE_CHECKING:
    from quorate.runtime.sparse.tuning import Tuning

Verify = Literal["all", "files"]
MOST_THREADS = max(256, os.cpu_count() or 1)  # ONNX Runtime starts all of them at once, and ends the process where it can't
TRIES = 3  # while another process replaces the bundle
_TOLD: set[str] = set()
"""Digests of the bundles of which it was said that they can't run sparse here."""


def load_bundle(
    path: str | Path,
    *,
    providers: Providers | None = None,
    threads: int | None = None,
    batch_size: int = 256,
    verify: Verify = "all",
    digest: str | None = None,
    watch: bool = False,
    cap: float | None = None,
    memory: int | None = None,
    sparse: Use = "auto",
    progress: Callable[[str], None] | None = None,
) -> Runtime:
    """Check a bundle and make it ready to predict. Needs no PyTorch.

    Args:
        path: the bundle's folder.
        providers: ONNX Runtime's, in order of preference; by default the CPU's.
        threads: that one call of a stage may use; None for one per core.
        batch_size: most rows in one call of a stage.
        verify: ``"all"``, or ``"files"`` without running the golden inputs.
        digest: what the manifest's digest has to be; None for any.
        watch: watch for drift of the pass rates, against those of the validation rows.
        cap, memory: as :class:`quorate.Cascade` takes them.
        sparse: ``"auto"``, stages with a ticket run on kernels for their live weights where that can be, by the tuning that
            :func:`quorate.tune_bundle` kept for so many threads, else by rule; or ``"off"``, all of them in ONNX Runtime.
            ``Runtime.engines`` says what came of it.
        progress: is told in a word or two what begins.

    Warns:
        RuntimeWarning: a ticket could run sparse, but llvmlite is not installed (``quorate[sparse]``); once for a bundle.

    Raises:
        FileNotFoundError: no such folder, or no manifest in it.
        BundleError: a ValueError: a bundle that is damaged, of a newer format, has another digest, or can't be run here.
        ValueError: a provider that is not installed, threads or sizes out of range, a watch where the bundle has no pass rates.
    """
    folder, say = Path(path), progress or (lambda _: None)
    if verify not in ("all", "files"):
        raise ValueError(f"verify={verify!r}: expected 'all', or 'files' without running the golden inputs")
    engines.check_use(sparse)
    chosen, threads = check_providers(providers), check_threads(threads)
    manifest = read_manifest(folder)
    for attempt in range(TRIES):
        try:
            if digest is not None and manifest.digest != digest:
                raise BundleError(f"{folder} has the digest {manifest.digest}: expected {digest}, it is another bundle")
            seconds: dict[str, float] = {}
            stages, found = _stages(folder, manifest, chosen, threads, sparse, verify, seconds, say)
            break
        except (BundleError, FileNotFoundError):
            again = read_manifest(folder)
            if attempt + 1 == TRIES or again.digest == manifest.digest:
                raise
            manifest = again  # another process has replaced the bundle meanwhile
    made = Runtime(
        manifest, stages, batch_size=batch_size, watch=watch, cap=cap, memory=memory, load_seconds=seconds, engines=found
    )
    bare = [engine.stage for engine in found if engine.why == engines.NOT_INSTALLED]
    if bare and manifest.digest not in _TOLD:
        _TOLD.add(manifest.digest)
        warnings.warn(f"{folder}: {', '.join(bare)} could run sparse, but {engines.NOT_INSTALLED}", RuntimeWarning, stacklevel=2)
    return made


def check_threads(threads: int | None) -> int | None:
    """As a plain number. Raises ValueError."""
    if threads is None:
        return None
    if not isinstance(threads, int | np.integer) or not 1 <= threads <= MOST_THREADS:
        raise ValueError(f"threads={threads!r}: expected a number from 1 to {MOST_THREADS}, or None for one per core")
    return int(threads)


def read_stage(folder: Path, files: Mapping[str, File], stage: Stage) -> tuple[bytes, bytes | None]:
    """The checked program of a stage, and its ticket file as it is. Raises BundleError."""
    onnx = read_file(folder, files[stage.program])
    check_program(onnx, stage.program, stage.scattered)
    return onnx, None if stage.ticket is None else read_file(folder, files[stage.ticket])


def _kept(files: Mapping[str, File], stage: Stage, threads: int | None) -> Tuning | None:
    """What was found out about a stage with a ticket."""
    from quorate.runtime import tunings

    return tunings.kept(tunings.stage_key(files, stage, threads or engines.cores()))


def _stages(
    folder: Path,
    manifest: Manifest,
    providers: list[Any],
    threads: int | None,
    sparse: Use,
    verify: Verify,
    seconds: dict[str, float],
    say: Callable[[str], None],
) -> tuple[list[OnnxStage], list[Engine]]:
    files = {file.path: file for file in manifest.files}
    begun = time.perf_counter()

    def spent(what: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        seconds[what] = seconds.get(what, 0.0) + now - begun
        begun = now

    stages, found = list[OnnxStage](), list[Engine]()
    for stage in manifest.stages:
        say(f"stage {stage.ports.stage}")
        onnx, ticket = read_stage(folder, files, stage)
        spent("files")
        weights = None if ticket is None else read_ticket(ticket, str(stage.ticket), stage.scattered)
        why = engines.dense_because(stage, providers, sparse)
        session, engine = engines.open_engine(
            stage.ports.stage, onnx, weights, stage.program, why=why, providers=providers, threads=threads,
            tuning=None if why else _kept(files, stage, threads), rows=manifest.golden.rows,
        )  # fmt: skip
        stages.append(OnnxStage(session, stage.ports))
        found.append(engine)
        spent("sessions")
        del onnx, ticket, weights
    golden = read_file(folder, files[manifest.golden.path])
    read_file(folder, files[manifest.card])
    spent("files")
    if verify == "all":
        say("golden outputs")
        check_golden(golden, manifest, stages)
        spent("golden")
    return stages, found
