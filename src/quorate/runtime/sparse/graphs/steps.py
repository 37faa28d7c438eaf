"""The nodes of a graph as they become layers, and the arrays between them.

    in the program      (B, C, H, W)    (B, C, L)    (B, C, 1, 1)      (B, F)
    to the layers         (C, H, W)     (C, 1, L)    (C, 1, 1), (C,)   (F,)

Arrays of the same numbers in the same order are one array, the first of them; a vector of planes is made by a Flatten where one is
needed. What becomes of a node is told in :mod:`quorate.runtime.sparse.graphs.rules`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.sparse.graphs.graph import Graph, Node
from quorate.runtime.sparse.graphs.parts import unused
from quorate.runtime.sparse.graphs.shapes import Known
from quorate.runtime.sparse.network import Epilogue, Flatten, Layer, Merge, Shape

Array = NDArray[Any]


MOST_TIMES, LEAST_HELD = 32, 2**20
"""How many times the program's the weights of all layers may be, which share them or have zeros for groups; bytes beside that."""


class Unfit(Exception):
    """Why a node is foreign."""


@dataclass(eq=False)
class Item:
    """A layer, or a node that is none.

    Attributes:
        nodes: by number.
        layer: None of a foreign node.
        reason: why it is foreign.
        gain: by which each row of the layer's weight is still to be multiplied, (O,) in float64, or None.
        place: among the items, in which they could run.
    """

    nodes: list[int]
    layer: Layer | None
    reason: str = ""
    place: int = 0
    gain: Array | None = None


@dataclass(eq=False)
class Steps:
    """The nodes of a graph, one after the other.

    Attributes:
        graph, known: what is read.
        items: what the nodes became.
        alias: {array: the one whose numbers it has}.
        shapes: of a row, of the arrays that are no alias, as the layers see them.
        flat: {planes: the vector of them}.
        names: of layers.
        makers: {what does not depend on the rows: the number of its node}.
        needs: {nodes of a foreign item: the arrays that they read}; visits: nodes that were looked at to find these.
        held: bytes of the layers' weights; most: that these may be, and likewise foreign parts.
    """

    graph: Graph
    known: Mapping[str, Known]
    items: list[Item] = field(default_factory=list)
    alias: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    flat: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)
    needs: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    visits: int = 0
    held: int = 0
    most: int = 0

    def __post_init__(self) -> None:
        self.shapes |= {name: self.outside(name) for name in self.graph.inputs}
        fixed = ((number, node) for number, node in enumerate(self.graph.nodes) if self.constant(node))
        self.makers = {name: number for number, node in fixed for name in node.writes}
        graph = self.graph
        texts = (*graph.tensors.values(), *graph.functions, *(node.raw for node in graph.nodes))
        program = sum(map(len, texts)) + sum(array.nbytes for name, array in graph.constants.items() if name not in graph.tensors)
        self.most = LEAST_HELD + MOST_TIMES * program

    def add(self, nodes: list[int], layer: Layer | None, reason: str = "") -> None:
        """One more item."""
        self.items.append(Item(nodes, layer, reason, len(self.items)))

    def constant(self, node: Node) -> bool:
        """Whether what it gives is known, or does not depend on the rows: it is made wherever it is needed."""
        known = [self.known.get(name) for name in node.writes]
        return all(each is not None and each.fixed for each in known)

    def root(self, name: str) -> str:
        """The array whose numbers an array has."""
        return self.alias.get(name, name)

    def outside(self, name: str) -> Shape:
        """The shape of an input's or a foreign array's row as the layers see it."""
        known = self.known.get(name)
        row = None if known is None else known.row
        return () if known is None or row is None else canonical(row) if known.dtype == "float32" else row

    def called(self, *wanted: str) -> str:
        """The first of these names that is there and free, or the last with a number."""
        free = next((name for name in wanted if name and name not in self.names), None)
        number, last = 2, [name for name in wanted if name][-1]
        while free is None:
            free = f"{last}.{number}" if f"{last}.{number}" not in self.names else None
            number += 1
        self.names.add(free)
        return free

    def row(self, name: str) -> Shape:
        """Of an array of numbers that layers can read."""
        known = self.known.get(name)
        if known is None or known.dtype != "float32":
            raise Unfit(f"it reads {'an unknown type' if known is None else known.dtype}")
        if known.row is None or known.stacked:
            raise Unfit("the batch is not its first axis")
        if 0 in known.row:
            raise Unfit(f"it reads rows of {list(known.row)}, which are empty")
        return known.row

    def planes(self, name: str) -> tuple[str, Shape]:
        """The array as planes, or as a vector where they are one pixel large; and its shape as planes."""
        row = self.row(name)
        if len(row) not in (2, 3):
            raise Unfit(f"it has {len(row)} axes beside the batch: expected planes or a sequence")
        wanted = canonical(row)
        root = self.root(name)
        return (root if self.shapes[root] == wanted else self.vector(name)), wanted

    def vector(self, name: str) -> str:
        """The array as a vector, flattened where it is none yet."""
        row, root = self.row(name), self.root(name)
        if not row or math.prod(row) != row[0] or len(self.shapes[root]) not in (1, 3):
            raise Unfit(f"it has rows of {list(row)}: expected a vector")
        if len(self.shapes[root]) == 1:
            return root
        if root not in self.flat:
            target = name if name not in self.shapes else unused(f"{root}/flat", self.known)
            self.flat[root] = target
            self.shapes[target] = row[:1]
            self.add([], Flatten(self.called(target), root, target))
        return self.flat[root]

    def plain(self, name: str) -> str:
        """The array in the form in which its channels are the first axis."""
        row, root = self.row(name), self.root(name)
        if not 1 <= len(row) <= 3:
            raise Unfit(f"it has {len(row)} axes beside the batch")
        wanted = canonical(row)
        if self.shapes[root] == wanted or (
            math.prod(wanted) == wanted[0] and self.shapes[root] in (wanted[:1], (*wanted[:1], 1, 1))
        ):
            return root
        return self.vector(name)

    def weight(self, name: str) -> Array:
        """A constant's values, which are float32."""
        array = self.graph.constants.get(name)
        if array is None:
            raise Unfit(f"{name[:80]!r} is no constant")
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise Unfit(f"{name[:80]!r} is {array.dtype}" if array.dtype != np.float32 else f"{name[:80]!r} is not finite")
        if not array.size:
            raise Unfit(f"{name[:80]!r} is empty")
        return array

    def wide(self, name: str, size: int | None = None) -> Array:
        """The same in float64; where ``size`` is given, as a vector of so many values."""
        array = self.weight(name)
        if size is not None and array.shape != (size,):
            raise Unfit(f"{name[:80]!r} is {list(array.shape)}: expected {[size]}")
        return array.astype(np.float64)

    def hold(self, count: int) -> None:
        """So many weights more."""
        if self.held + 4 * count > self.most:
            raise Unfit("the layers' weights would be many times those of the program")
        self.held += 4 * count

    def stored(self, node: Node, layer: Layer, shape: Shape) -> Layer:
        """The layer, its target's shape noted."""
        self.shapes[node.outputs[0]] = shape
        return layer

    def merge(self, node: Node, source: str, **epilogue: Any) -> Layer:
        """A Merge of these, if its coefficients are finite in float32."""
        if not all(fits(epilogue[name]) for name in ("scale", "shift") if name in epilogue):
            raise Unfit("its coefficients are no finite numbers in float32")
        name = self.called(node.name, node.outputs[0])
        return self.stored(node, Merge(name, source, node.outputs[0], Epilogue(**epilogue)), self.shapes[source])


def fits(array: Array) -> bool:
    """Whether numbers stay finite in float32."""
    return bool((np.abs(array) <= np.finfo(np.float32).max).all())


def canonical(row: Shape) -> Shape:
    """The shape that layers see of a row (C, H, W), (C, L) or (F,)."""
    return (row[0], 1, row[1]) if len(row) == 2 else row
