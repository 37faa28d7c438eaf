"""What a core can do at most: multiply-adds of whole vectors in registers, in chains that don't wait for each other.

    s_k ← s_k · x + y   for k = 1 … 12, again and again          2 · V · 12 floating-point operations a turn

Twelve chains are more than any processor needs to fill two units of a latency of 4 cycles, and fit into 16 registers. The machine's peak
is the best of several runs of about a hundredth of a second, by one thread.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.planes import aligned
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.emitting import SIGNATURE, Writer, declarations
from quorate.runtime.sparse.machine.host import Host, here
from quorate.runtime.sparse.team import Table
from quorate.runtime.sparse.trials import least

CHAINS = 12
TURNS = 100_000


def code(host: Host) -> str:
    """Words of a call: where x, y and the sum of the chains are (V floats each), turns ≥ 1."""
    v, w = f"<{host.lanes} x float>", Writer()
    w.lines += [declarations(host.lanes), SIGNATURE.format(name="run")]
    w.label("entry")
    at, turns = w.word(0, "ptr"), w.word(1)
    x, y = (w(f"load {v}, ptr {w.step(at, 4 * host.lanes * k)}, align 4") for k in range(2))
    w.do("br label %turn")
    w.label("turn")
    w.do("%t = phi i64 [0, %entry], [%next, %turn]")
    for k in range(CHAINS):
        w.do(f"%s{k} = phi {v} [<{', '.join([f'float {float(k)}'] * host.lanes)}>, %entry], [%n{k}, %turn]")
    for k in range(CHAINS):
        w.do(f"%n{k} = call {v} @llvm.fmuladd.v{host.lanes}f32({v} %s{k}, {v} {x}, {v} {y})")
    w.do("%next = add i64 %t, 1")
    w.do(f"%more = icmp ult i64 %next, {turns}")
    w.do("br i1 %more, label %turn, label %end")
    w.label("end")
    total = "%n0"
    for k in range(1, CHAINS):
        total = w(f"fadd {v} {total}, %n{k}")
    w.do(f"store {v} {total}, ptr {w.step(at, 8 * host.lanes)}, align 4")
    w.do("ret void")
    w.lines.append("}")
    return w.text()


class Chains:
    """The routine on numbers of its own. ``sums``: (V,) of the chains, once it has run."""

    def __init__(self, x: float, y: float, turns: int) -> None:
        host = here()
        self._memory = aligned(3 * host.lanes)
        self._memory[: host.lanes], self._memory[host.lanes : 2 * host.lanes] = x, y
        self.sums: NDArray[np.float32] = self._memory[2 * host.lanes :]
        self.flops = 2 * host.lanes * CHAINS * turns
        words = np.array([self._memory.ctypes.data, turns], np.int64)
        self.run = Table([(routine(code(host), host).address, words)]).run


def peak_gflops(quick: bool = False) -> float:
    """Floating-point operations per nanosecond of one core of this machine."""
    chains = Chains(0.5, 1.0, TURNS // 100 if quick else TURNS)
    return chains.flops / least(chains.run, budget=0.01 if quick else 1.0) / 1e9
