"""Programs: what a bundle holds of each stage, and how its inputs and outputs are named.

A program is an ONNX graph with the batch as a free dimension. With rows B, members m, classes C its arrays are

    input       the raw input (B, *shape), or the steps [start, stop) of it where the stage has a span; absent where only the carry is read
    reads       what earlier stages wrote, one array (B, …) per name of the carry
    members     (m, B, C), or (B, C) of a single one
    writes      what later stages read, one array (B, …) per name

The names in the program are free; the carry's names are the ensemble's. Stages: Xia & Bouganis 2023 (arXiv 2303.08010), §3; what they
carry: Dennis et al. 2023 (arXiv 2302.10093), §4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRECISIONS = ("fp32", "fp16", "bf16", "int8-dynamic", "int8-static", "foreign")
"""How a program computes; "foreign" for a file that came from elsewhere, which is taken as it is."""


@dataclass(frozen=True)
class Port:
    """An array that goes in or comes out.

    Attributes:
        name: in the program.
        dtype: NumPy's name, such as ``"float32"``.
        shape: without the batch axis, which is the first (of members: the last but one); None where a size is free.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether (B, *shape) of this dtype, for any B."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape) + 1
            and all(want is None or want == got for want, got in zip(self.shape, array.shape[1:], strict=True))
        )


@dataclass(frozen=True)
class Ports:
    """What a stage's program takes and gives.

    Attributes:
        stage: its name.
        members: ``shape`` is (m, C), or (C,) of a program that gives (B, C).
        input: None where the program reads only the carry.
        reads, writes: by the carry's names.
        drops: names of the carry that nobody reads after it.
        span: the steps (last axis of the raw input) that ``input`` is cut to; such a stage can run while a sequence arrives.
        batch: the only number of rows that the program takes, of a file from elsewhere; None for any.
        macs: per row; None where nobody has counted them.
        precision: one of :data:`PRECISIONS`.
    """

    stage: str
    members: Port
    input: Port | None
    reads: Mapping[str, Port] = field(default_factory=dict)
    writes: Mapping[str, Port] = field(default_factory=dict)
    drops: tuple[str, ...] = ()
    span: tuple[int, int] | None = None
    batch: int | None = None
    macs: float | None = None
    precision: str = "fp32"


@dataclass(frozen=True)
class Sparse:
    """A weight of which only the live values are stored: the initialiser's name in the program is its key.

    Attributes:
        values: (live,), in row-major order of their places.
        mask: bool, in the weight's shape.
    """

    values: NDArray[Any]
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Program:
    """A stage that can be put into a bundle.

    Attributes:
        ports: what it takes and gives.
        onnx: the serialised graph, all weights inside but those in ``sparse``, which it declares as external data.
        sparse: weights that are stored as a ticket.
    """

    ports: Ports
    onnx: bytes
    sparse: Mapping[str, Sparse] = field(default_factory=dict)
