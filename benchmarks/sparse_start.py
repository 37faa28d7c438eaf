"""One start of a sparse network in a process without PyTorch: seconds of making its code and weights, bytes held. Run by sparse_runtime.py.

python benchmarks/sparse_start.py PROGRAM THREADS [TUNING]

PROGRAM is a path without its ending (.onnx, .npz: weights that the graph only declares). ``QUORATE_CACHE`` says where code is kept: an
empty folder makes it a cold start. The network is opened, then made ready for single rows, then for groups as well, and run at each.
Memory is that of this process beyond what the imports took (Linux), after the arrays that it was made of are let go.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.tuning import Tuning


def read(place: Path) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A graph and its weights, dense."""
    weights = {}
    with np.load(place.with_name(place.name + ".npz")) as kept:
        for name in [key.removesuffix(":mask") for key in kept if key.endswith(":mask")]:
            shape, values = tuple(kept[f"{name}:shape"]), kept[f"{name}:values"]
            weights[name] = np.zeros(shape, values.dtype)
            weights[name][np.unpackbits(kept[f"{name}:mask"], count=math.prod(shape)).view(bool).reshape(shape)] = values
    return place.with_name(place.name + ".onnx").read_bytes(), weights


def opened(place: Path, threads: int, tuning: Path | None = None) -> SparseNetwork:
    """A program as a sparse network."""
    found = None if tuning is None else Tuning.from_json(tuning.read_text(encoding="utf-8"))
    return SparseNetwork(*read(place), threads=threads, tuning=found, where=place.name)


def start(place: Path, threads: int, tuning: Path | None) -> dict[str, Any]:
    """``seconds`` of each step; ``weights`` and ``rss`` in bytes once single rows, once groups as well have run; ``live`` weights."""
    from runtime_start import memory

    before = memory()["rss"]
    onnx, external = read(place)
    found = None if tuning is None else Tuning.from_json(tuning.read_text(encoding="utf-8"))
    begun = time.perf_counter()
    network = SparseNetwork(onnx, external, threads=threads, tuning=found, where=place.name)
    seconds = {"open": time.perf_counter() - begun}
    del onnx, external
    weights, rss = {}, {}
    shape = network.get_inputs()[0].shape[1:]
    for layout, count in (("latency", 1), ("throughput", network.host.lanes)):
        x = np.sin(np.arange(count * math.prod(shape), dtype=np.float32)).reshape(count, *shape)
        begun = time.perf_counter()
        network.prepare([count])
        seconds[layout] = time.perf_counter() - begun
        network(x)
        gc.collect()
        weights[layout], rss[layout] = network.nbytes, memory()["rss"] - before
    return {
        "seconds": seconds | {"all": sum(seconds.values())},
        "weights": weights,
        "rss": rss,
        "live": sum(held.live for held in network.weights.values()),
        "dense_bytes": 4 * sum(math.prod(held.shape) for held in network.weights.values()),
        "reason": dict(network.reason),
    }


if __name__ == "__main__":
    _, program, count, *tuned = sys.argv
    json.dump(start(Path(program), int(count), Path(tuned[0]) if tuned else None), sys.stdout)
