"""Loading a bundle: nothing in it is believed before it was checked.

In order: the manifest (size, JSON, version, digest, schema, that its parts fit), every file (path inside the folder, size, SHA-256), every
program (wire format, operators, no data from outside), the sessions (inputs and outputs as the manifest says), the golden outputs. The
bytes that were checked are the bytes that are used.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from quorate.runtime.folder import read_file, read_manifest
from quorate.runtime.golden import check_golden
from quorate.runtime.manifest import BundleError, Manifest
from quorate.runtime.onnx_file import check_program
from quorate.runtime.runtime import Runtime
from quorate.runtime.session import OnnxStage, Providers, check_providers, open_session
from quorate.runtime.ticket import read_ticket

Verify = Literal["all", "files"]
MOST_THREADS = max(256, os.cpu_count() or 1)  # ONNX Runtime starts all of them at once, and ends the process where it can't
TRIES = 3  # while another process replaces the bundle


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
        progress: is told in a word or two what begins.

    Raises:
        FileNotFoundError: no such folder, or no manifest in it.
        BundleError: a ValueError: a bundle that is damaged, of a newer format, has another digest, or can't be run here.
        ValueError: a provider that is not installed, threads or sizes out of range, a watch where the bundle has no pass rates.
    """
    folder, say = Path(path), progress or (lambda _: None)
    if verify not in ("all", "files"):
        raise ValueError(f"verify={verify!r}: expected 'all', or 'files' without running the golden inputs")
    if threads is not None and (not isinstance(threads, int | np.integer) or not 1 <= threads <= MOST_THREADS):
        raise ValueError(f"threads={threads!r}: expected a number from 1 to {MOST_THREADS}, or None for one per core")
    chosen, threads = check_providers(providers), None if threads is None else int(threads)
    manifest = read_manifest(folder)
    for attempt in range(TRIES):
        try:
            if digest is not None and manifest.digest != digest:
                raise BundleError(f"{folder} has the digest {manifest.digest}: expected {digest}, it is another bundle")
            seconds: dict[str, float] = {}
            stages = _stages(folder, manifest, chosen, threads, verify, seconds, say)
            break
        except (BundleError, FileNotFoundError):
            again = read_manifest(folder)
            if attempt + 1 == TRIES or again.digest == manifest.digest:
                raise
            manifest = again  # another process has replaced the bundle meanwhile
    return Runtime(manifest, stages, batch_size=batch_size, watch=watch, cap=cap, memory=memory, load_seconds=seconds)


def _stages(
    folder: Path,
    manifest: Manifest,
    providers: list[Any],
    threads: int | None,
    verify: Verify,
    seconds: dict[str, float],
    say: Callable[[str], None],
) -> list[OnnxStage]:
    files = {file.path: file for file in manifest.files}
    begun = time.perf_counter()

    def spent(what: str) -> None:
        nonlocal begun
        now = time.perf_counter()
        seconds[what] = seconds.get(what, 0.0) + now - begun
        begun = now

    stages = []
    for stage in manifest.stages:
        say(f"stage {stage.ports.stage}")
        onnx = read_file(folder, files[stage.program])
        check_program(onnx, stage.program, stage.scattered)
        ticket = None if stage.ticket is None else read_file(folder, files[stage.ticket])
        spent("files")
        weights = None if ticket is None else read_ticket(ticket, str(stage.ticket), stage.scattered)
        session = open_session(onnx, stage.program, providers=providers, threads=threads, external=weights)
        stages.append(OnnxStage(session, stage.ports))
        spent("sessions")
        del onnx, ticket, weights
    golden = read_file(folder, files[manifest.golden.path])
    read_file(folder, files[manifest.card])
    spent("files")
    if verify == "all":
        say("golden outputs")
        check_golden(golden, manifest, stages)
        spent("golden")
    return stages
