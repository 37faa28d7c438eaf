"""Which operation a layer becomes, of those that could be: kernels, and their forms.

    rows         live weights one by one, in any form of a tile (:mod:`tiles`)
    gathered     a matrix and one vector (:mod:`gathered`)
    fan-in       the same where every output has equally many live weights (:mod:`fan_in`)
    blocks       either of them where blocks of outputs (and inputs) are live in whole (:mod:`blocked`, :mod:`blocked_convolution`)

Weights are held once in every form that is in use: a layer's operations of both layouts share a stream where their tiles agree, and what
a new form needs is read back from an old one, so that no dense copy stays.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.kernels.blocked import BlockedLinear, blocked_columns, blocked_rows
from quorate.runtime.sparse.kernels.blocked_convolution import ROWS, BlockedConvolution, blocked_forms
from quorate.runtime.sparse.kernels.convolution import Bound, Convolution
from quorate.runtime.sparse.kernels.fan_in import FanInLinear, constant_fan_in
from quorate.runtime.sparse.kernels.gathered import Gathered
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.kernels.streams import Stream
from quorate.runtime.sparse.kernels.tiles import Form, forms
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Linear

LEAST_BLOCK, SOME = 4, 2
"""Weights of a block of a matrix from which on blocks are tried first; forms of blocks that are tried before others."""


class Held(Protocol):
    """Weights in some form."""

    @property
    def nbytes(self) -> int: ...

    def dense(self) -> NDArray[np.float32]:
        """The weight as it was given, but for −0."""
        ...


@dataclass(frozen=True)
class Choice:
    """A kernel, its form, None where it has none, and how many outputs of a block it takes at once."""

    kernel: str
    form: Form | None = None
    together: int = 1

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {"kernel": self.kernel, "together": self.together, **({} if self.form is None else asdict(self.form))}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Choice:
        """Of :meth:`to_json`. Raises ValueError for anything else."""
        try:
            kernel, together = data["kernel"], data["together"]
            numbers = {key: data[key] for key in ("rows", "columns", "block", "sets")} if "mode" in data else {}
            if kernel not in KERNELS or not all(type(n) is int and 0 < n < 2**20 for n in (together, *numbers.values())):
                raise TypeError("numbers")
            if not numbers:
                return Choice(kernel, None, together)
            if data["mode"] not in ("packed", "flat", "direct"):
                raise TypeError("mode")
            return Choice(kernel, Form(data["mode"], **numbers), together)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{str(data)[:80]} is no choice of a kernel: tune anew") from error

    def __str__(self) -> str:
        if self.form is None:
            return self.kernel
        f = self.form
        sums = f" × {f.sets} sums" if f.sets > 1 else ""
        outputs = f" of {self.together} outputs" if self.together > 1 else ""
        return f"{self.kernel}{outputs}, {f.mode} {f.rows}×{f.columns}{sums}, {f.block} channels"


class Weights:
    """A layer's weight in the forms that are in use. Any number of threads may ask for one.

    Args:
        weight: (O, C, Kh, Kw) or (O, F); given back with the first form.

    Attributes:
        shape, live: of the weight.
        rows, columns: of the blocks that are live in whole.
        fan_in: live weights of every output that has any; None where they differ, and of convolutions.
    """

    def __init__(self, weight: NDArray[np.float32]) -> None:
        self.shape, self.live = weight.shape, int(np.count_nonzero(weight))
        self.rows, self.columns, self.fan_in = blocked_rows(weight), 1, None
        if weight.ndim == 2:
            self.columns, self.fan_in = blocked_columns(weight), constant_fan_in(weight)
        self._dense: NDArray[np.float32] | None = weight
        self._held: list[Held] = []
        self._lock = threading.RLock()

    def dense(self) -> NDArray[np.float32]:
        """The weight, made anew where only other forms are held."""
        with self._lock:
            return self._dense if self._dense is not None else self._held[0].dense().reshape(self.shape)

    def keep(self, held: Held) -> None:
        """Remember a form; the dense weight is let go."""
        with self._lock:
            self._held.append(held)
            self._dense = None

    def stream(self, operation: Convolution) -> Stream:
        """The stream of an operation's form."""
        with self._lock:
            for held in self._held:
                if isinstance(held, Stream) and operation.takes(held):
                    return held
            made = operation.made(self.dense())
            self.keep(made)
            return made

    @property
    def nbytes(self) -> int:
        """Of all forms; of the dense weight before there is one."""
        return self._dense.nbytes if self._dense is not None else sum(held.nbytes for held in self._held)

    def vectors(self, layer: Bound, kernel: str, planes: Mapping[str, Planes], host: Host) -> Operation:
        """A matrix over one vector, which holds its weight itself. ValueError where the weight has not the kernel's structure."""
        target = None if layer.target is None else planes[layer.target]
        with self._lock:
            whole = Linear(layer.name, layer.source, layer.target, self.dense(), layer.bias, layer.epilogue)
            made: Any = VECTORS[kernel](whole, planes[layer.source], target, host)
            self.keep(made)
            return cast(Operation, made)


KERNELS = ("rows", "blocks", "fan-in", "gathered")
VECTORS = {"blocks": BlockedLinear, "fan-in": FanInLinear, "gathered": Gathered}


def candidates(layer: Bound, weights: Weights, planes: Mapping[str, Planes], host: Host) -> Iterator[Choice]:
    """What a layer may become, the best as a rule first."""
    source = planes[layer.source]
    if len(weights.shape) == 2 and source.inner == 1:
        if weights.rows * weights.columns >= LEAST_BLOCK:
            yield Choice("blocks")
        yield Choice("gathered")
        if weights.fan_in is not None:
            yield Choice("fan-in")
        return
    window = layer.window(source.height, source.width)
    density = weights.live / max(1, math.prod(weights.shape))
    for together in ROWS:
        if weights.rows % together == 0:
            tiles = blocked_forms(window, layer.channels, layer.outputs, density, source, host, together)
            for form in itertools.islice(tiles, SOME):
                yield Choice("blocks", form, together)
    for form in forms(window, layer.channels, layer.outputs, density, source, host):
        yield Choice("rows", form)


CLOSE = 4
"""Among so many of the best, one that shares its weights with the other layout is taken."""


def sharing(choice: Choice | None, found: Iterable[Choice]) -> Choice | None:
    """The first of what was found, or ``choice`` if it is near the front, so that both layouts read one stream; None if nothing was."""
    some = list(itertools.islice(found, CLOSE))
    return choice if choice in some else next(iter(some), None)


def operation(layer: Bound, choice: Choice, weights: Weights, planes: Mapping[str, Planes], host: Host) -> Operation:
    """The operation of a choice. ValueError where it is none for this layer."""
    vector = len(weights.shape) == 2 and planes[layer.source].inner == 1  # whose numbers lie too close for whole vectors of each
    if choice.kernel == "rows" and choice.form is not None and not vector:
        made = Convolution(layer, choice.form, planes, host)
        return made.with_stream(weights.stream(made))
    if choice.kernel == "blocks" and choice.form is not None and choice.together > 1 and not vector:
        blocked = BlockedConvolution(layer, choice.form, planes, host, choice.together)
        return blocked.with_stream(weights.stream(blocked))
    if choice.kernel in VECTORS and choice.form is None and vector:
        return weights.vectors(layer, choice.kernel, planes, host)
    raise ValueError(f"{layer.name}: {choice} is no kernel for it, tune anew")
