"""Vectors of 16 floats on whatever runs the tests: the layouts of AVX-512, whose vectors LLVM splits into those that are there.

Its own instructions, permutations of a register and the spreading of four values, are not tried by this; see the tests of assembly.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from quorate.runtime.sparse import sparse
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.runtime.sparse.tuning import Tuning
from sparse_networks import residual
from sparse_reference import evaluate

SPARSE = Tuning({"latency": "sparse", "throughput": "sparse"}, {"latency": ("fc",), "throughput": ()})


@pytest.mark.parametrize("registers", [16, 32])
@pytest.mark.parametrize(("channels", "side"), [(16, 16), (40, 32), (24, 7)])
def test_whole_networks_of_sixteen_lanes(monkeypatch: pytest.MonkeyPatch, channels: int, side: int, registers: int) -> None:
    monkeypatch.setattr(sparse, "here", lambda: replace(here(), lanes=16, registers=registers, x86=False))
    program = residual(channels=channels, side=side)
    network = SparseNetwork(program, threads=2, tuning=SPARSE)
    assert network.host.lanes == 16
    for rows in (1, 16, 17, 33):
        x = np.random.default_rng(rows).standard_normal((rows, 3, side, side)).astype(np.float32)
        want = evaluate(lower(program, {}), {"x": x})
        for name, array in zip(["members", "write.h"], network.run(None, {"x": x}), strict=True):
            assert np.abs(array - want[name]).max() <= 1e-5 * np.abs(want[name]).max(), (rows, name)
