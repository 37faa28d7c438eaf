"""Tuning a bundle: which kernels, or ONNX Runtime, are the fastest for its tickets on this machine; kept, and used by every later load."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from quorate._optional import one_line
from quorate.runtime import engines
from quorate.runtime.folder import read_manifest
from quorate.runtime.loading import check_threads, read_stage
from quorate.runtime.session import CPU
from quorate.runtime.ticket import read_ticket

if TYPE_CHECKING:
    from quorate.runtime.sparse.tuning import Tuning


def tune_bundle(
    path: str | Path, *, threads: int | None = None, trials: int = 8, progress: Callable[[str], None] | None = None
) -> dict[str, Tuning]:
    """Try several forms of every layer of a bundle's tickets, and dense ones; nothing else should run meanwhile.

    What was found is kept in the cache folder (``$QUORATE_CACHE``), for this content, this processor and so many threads, and used by
    :func:`quorate.load_bundle`. A bundle that is loaded already stays as it is.

    Args:
        path: the bundle's folder.
        threads: that one call of a stage will use, as for loading; None for one per core.
        trials: forms that are tried of each layer and layout, at least 1.
        progress: is told in a word or two what begins.

    Returns:
        {stage: what was found}, of the stages whose ticket has layers that kernels can run.

    Raises:
        FileNotFoundError: no such folder, or no manifest in it.
        BundleError: a ValueError: a bundle that is damaged, of a newer format, or can't be run here.
        ValueError: nothing to tune (what stands against it is said by stage), llvmlite is not installed, the cache is turned off, or
            threads or trials out of range.
        OSError: the cache can't be written.
    """
    folder, say = Path(path), progress or (lambda _: None)
    threads = check_threads(threads)
    if not isinstance(trials, int) or trials < 1:
        raise ValueError(f"trials={trials!r}: expected a whole number of forms of each layer, at least 1")
    used, manifest = threads or engines.cores(), read_manifest(folder)
    files = {file.path: file for file in manifest.files}
    against: dict[str, str] = {}
    found: dict[str, Tuning] = {}
    for stage in manifest.stages:
        name = stage.ports.stage
        against[name] = engines.dense_because(stage, [CPU], "auto")
        if against[name]:
            continue
        from quorate.runtime import tunings

        tunings.check_folder()
        onnx, ticket = read_stage(folder, files, stage)
        weights = read_ticket(ticket or b"", str(stage.ticket), stage.scattered)
        del ticket
        against[name], tuning = tuned(onnx, weights, used, trials, stage.program, functools.partial(_told, say, name))
        if tuning is not None:
            tunings.keep(tunings.stage_key(files, stage, used), tuning)
            found[name] = tuning
    if not found:
        raise ValueError(f"{folder} has nothing to tune: {'; '.join(f'{name}: {why}' for name, why in against.items())}")
    return found


def _told(say: Callable[[str], None], name: str, text: str) -> None:
    say(f"{name}: {text}")


def tuned(
    onnx: bytes,
    external: Mapping[str, NDArray[Any]] | None,
    threads: int,
    trials: int,
    where: str,
    progress: Callable[[str], None],
) -> tuple[str, Tuning | None]:
    """("", what was found out), or (why there is nothing to tune, None). ImportError without llvmlite."""
    from quorate.runtime.sparse.sparse import SparseNetwork
    from quorate.runtime.sparse.trials import tune

    try:
        network = SparseNetwork(onnx, external, threads=threads, where=where)
    except ValueError as error:
        return one_line(error), None
    if not network.weights:
        return "; ".join(dict.fromkeys(network.reason.values())), None
    del network
    return "", tune(onnx, external, threads=threads, trials=trials, where=where, progress=progress)
