"""Operations of the sparse runtime run on planes between pages without access, and what they may not touch looked at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from guarded import guarded
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.machine.code import routine
from quorate.runtime.sparse.machine.host import Host, here

Array = NDArray[np.float32]


def narrow() -> Host:
    """A plainer processor whose code runs here: vectors of 4 floats."""
    return Host("x86-64", "", 4, 16) if here().x86 else replace(here(), lanes=4)


def others() -> list[Host]:
    """Processors for which code is only made."""
    return [
        Host("skylake-avx512", "-prefer-256-bit", 16, 32, triple="x86_64-unknown-linux-gnu"),
        Host("neoverse-n1", "", 4, 32, False, "aarch64-unknown-linux-gnu"),
    ]


def planes(shape: tuple[int, ...], inner: int, host: Host, above: int = 0, beside: int = 0) -> Planes:
    """The layout of an array (C, H, W) or (F,)."""
    if len(shape) == 1:
        return Planes.vector(shape[0], inner, host.lanes)
    channels, height, width = shape
    if inner == 1:
        return Planes.latency(channels, height, width, above, beside, host.lanes)
    return Planes.throughput(channels, height, width, above, beside, inner)


def ran(
    operation: Operation,
    given: Mapping[str, tuple[Planes, Array]],
    wanted: Mapping[str, Planes],
    host: Host,
    *,
    parts: int = 1,
    end: bool = True,
    outside: Mapping[int, Array] | None = None,
) -> dict[str, Array]:
    """What an operation makes of its arrays.

    Checks that it reads and writes nothing outside its buffers, that what it reads stays as it is, and that all floats of what it
    writes but the elements stay zero, and that every element is written by one part. The parts are run from the last to the first.

    Args:
        operation: to run.
        given: {array: its planes, its values (C, H, W, inner)}.
        wanted: {array: planes} of those that it writes.
        host: its machine.
        parts: of the work.
        end: whether buffers end, else begin, at a page without access.
        outside: {word: the array whose address it is}.

    Returns:
        {array: (C, H, W, inner)} of the wanted ones.
    """
    buffers = {
        name: guarded(layout.floats, end=end) for name, layout in [*wanted.items(), *((n, p) for n, (p, _) in given.items())]
    }
    for name, (layout, values) in given.items():
        layout.view(buffers[name])[...] = values
    before = {name: buffers[name].copy() for name in given}
    scratch = guarded(operation.scratch(parts), np.uint8, end=end)
    scratch[:] = 0xFF  # NaN
    words = operation.words({name: buffer.ctypes.data for name, buffer in buffers.items()}, scratch.ctypes.data, parts)
    for word, array in (outside or {}).items():
        words[word] = array.ctypes.data
    with mock.patch.dict(os.environ, QUORATE_CACHE="off"):
        code = routine(operation.ir, host)
    made = {name: np.full(layout.view(buffers[name]).shape, np.nan, np.float32) for name, layout in wanted.items()}
    for part in reversed(range(parts)):
        for name, layout in wanted.items():
            layout.view(buffers[name])[...] = np.nan
        code.run(words, part, parts)
        for name, layout in wanted.items():
            written = ~np.isnan(layout.view(buffers[name]))
            assert np.isnan(made[name][written]).all(), f"no part writes what another one writes of {name}"
            made[name][written] = layout.view(buffers[name])[written]
    for name, values in before.items():
        assert np.array_equal(buffers[name], values), f"{name} is only read"
    for name, layout in wanted.items():
        assert not np.isnan(made[name]).any(), f"all of {name} is written"
        layout.view(buffers[name])[...] = 0
        assert not buffers[name].any(), f"the margins of {name} stay zero"
    return made
