"""Tickets: sparse weights leave the ONNX graph and are stored as what is live in them.

    dense    size · itemsize    sparse    live · itemsize + min(size / 8, 4 · live)    bytes of a weight

The exporter folds batch normalisation into convolutions (rows are scaled, dead places stay dead), transposes and reorders weights and
renames them; so a weight's zeros themselves say what is dead. Nothing is lost by it: whatever is not 0 is kept bit for bit, and 0
comes back as +0. A bundle's stage runs on kernels for the live weights (:mod:`quorate.runtime.engines`); where it can't, ONNX Runtime
gets the whole weights when a session is made (``SessionOptions.add_external_initializers``) and computes as with a dense file.
Source of the members: Liu et al. 2022 (arXiv 2106.14568), §3.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate._optional import imported
from quorate.runtime.program import Program, Sparse
from quorate.runtime.ticket import SPARSEST

LOCATION = "ticket"
AROUND = 512  # bytes that a weight takes beside its values and places: names and shapes in three headers
FLOATS = (np.float16, np.float32, np.float64)


def without_sparse(program: Program) -> Program:
    """The same program with every weight outside that is smaller so; the program itself where there is none.

    Args:
        program: with all weights inside.

    Returns:
        A program whose graph declares these weights as external data at ``"ticket"``, and which holds them in ``sparse``.

    Raises:
        ValueError: weights are outside already.
    """
    if program.sparse:
        raise ValueError(
            f"the program of stage {program.ports.stage!r} has {len(program.sparse)} weights outside already: give it whole"
        )
    onnx = imported("onnx", "quorate[train]")
    model = onnx.ModelProto.FromString(program.onnx)
    sparse: dict[str, Sparse] = {}
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        if not _saves(array):
            continue
        mask = np.asarray(array != 0)  # NaN is live, −0 is not
        sparse[weight.name] = Sparse(array[mask], mask)
        for field in ("raw_data", "float_data", "double_data", "int32_data"):
            weight.ClearField(field)
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=LOCATION)
    if not sparse:
        return program
    return replace(program, onnx=model.SerializeToString(deterministic=True), sparse=sparse)


def whole_weights(program: Program) -> dict[str, NDArray[Any]]:
    """The weights in ``sparse`` as ONNX Runtime needs them: dense, by name."""
    found = {}
    for name, weight in program.sparse.items():
        found[name] = np.zeros(weight.mask.shape, weight.values.dtype)
        found[name][weight.mask] = weight.values
    return found


def _saves(array: NDArray[Any]) -> bool:
    """Whether it is a matrix or more that a ticket file holds in fewer bytes."""
    if array.ndim < 2 or array.dtype not in FLOATS:
        return False
    live = int(np.count_nonzero(array))
    stored = live * array.itemsize + min(-(-array.size // 8), 4 * live) + AROUND
    return stored < array.nbytes and live * SPARSEST >= array.size
