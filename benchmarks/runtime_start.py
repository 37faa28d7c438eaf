"""One start of ONNX Runtime, bare or under a bundle: what it takes in seconds and in memory, as JSON. Run by runtime_load.py.

python benchmarks/runtime_start.py bundle|path|bytes THREADS ROWS PATH…

PATH is a bundle's folder, or the ONNX files of all its stages for the bare sessions, which are made by the files' paths or from their
bytes, with as many threads and otherwise as ONNX Runtime has them by default. Nothing but numpy and onnxruntime is imported for these;
then ROWS rows go through every stage once. Memory is that of this process (Linux): rss resident, pss with shared pages by share, uss its
own pages alone, and the highest rss so far; garbage is not collected by hand.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

KILO = 1024
FIELDS = {"Rss": "rss", "Pss": "pss", "Private_Clean": "uss", "Private_Dirty": "uss"}
PARTS = ("files", "sessions", "golden")


def memory() -> dict[str, int]:
    """Bytes: ``rss, pss, uss, peak``."""
    found = dict.fromkeys(("rss", "pss", "uss", "peak"), 0)
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            found[FIELDS[name]] += KILO * int(value.split()[0])
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            found["peak"] = KILO * int(line.split()[1])
    return found


def bare(paths: Sequence[str], threads: int, held: bool) -> tuple[dict[str, float], Callable[[Any], object], list[int]]:
    """Sessions from the files' paths, or from their bytes (``held``): seconds, a call on (B, *shape), a row's shape."""
    import onnxruntime

    seconds, sessions = dict.fromkeys(PARTS, 0.0), []
    for path in paths:
        begun = time.perf_counter()
        source: str | bytes = Path(path).read_bytes() if held else path
        read = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        sessions.append(onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"]))
        del source
        seconds["files"] += read - begun
        seconds["sessions"] += time.perf_counter() - read
    [given] = sessions[0].get_inputs()

    def call(x: Any) -> object:
        return [session.run(None, {session.get_inputs()[0].name: x}) for session in sessions]

    return seconds, call, list(given.shape[1:])


def bundle(path: str, threads: int) -> tuple[dict[str, float], Callable[[Any], object], list[int]]:
    """The same of a bundle."""
    from quorate.runtime import load_bundle

    loaded = load_bundle(path, threads=threads)
    return dict(loaded.load_seconds), loaded.predict, [int(size or 1) for size in loaded.input.shape]


def start(way: str, threads: int, rows: int, paths: Sequence[str]) -> dict[str, Any]:
    """``imports`` (seconds of numpy and onnxruntime, and of quorate), ``seconds`` of loading by part, what was imported during it, memory
    ``imported``, ``loaded`` and ``predicted``."""
    begun = time.perf_counter()
    import numpy as np
    import onnxruntime

    imports = {"numpy and onnxruntime": time.perf_counter() - begun}
    begun = time.perf_counter()
    if way == "bundle":
        importlib.import_module("quorate.runtime")
    imports["quorate"] = time.perf_counter() - begun
    known, at_first = set(sys.modules), memory()
    begun = time.perf_counter()
    seconds, call, shape = bundle(paths[0], threads) if way == "bundle" else bare(paths, threads, way == "bytes")
    seconds["total"] = time.perf_counter() - begun
    seconds["rest"] = seconds["total"] - sum(seconds[part] for part in PARTS)
    late = sorted({name.partition(".")[0] for name in set(sys.modules) - known})
    loaded = memory()
    x = np.sin(np.arange(rows * math.prod(shape), dtype=np.float32)).reshape(rows, *shape)
    call(x)
    return {
        "onnxruntime": onnxruntime.__version__,
        "imports": imports,
        "seconds": seconds,
        "late": late,
        "memory": {"imported": at_first, "loaded": loaded, "predicted": memory()},
    }


if __name__ == "__main__":
    _, chosen, count, size, *places = sys.argv
    json.dump(start(chosen, int(count), int(size), places), sys.stdout)
