"""Which layers are first, last, and first of a residual branch (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

From the order of the graph alone, for its layers (linear, convolutions, embeddings, attention, recurrent ones):

    first    no such layer lies before it: it reads the shared input
    last     no such layer lies between it and the model's output
    branch   the first on the longer (in layers) of the two ways that part somewhere and meet in an addition

Ways of equal length both count as branches. γ is for the layers that are none of these.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import reduce
from operator import or_

from torch import fx, nn

from quorate.packed.kinds import LAYERS
from quorate.packed.registry import registered
from quorate.packed.trace import Traced

ADDITIONS = ("add", "iadd", "sub", "isub")


@dataclass(frozen=True)
class Layout:
    """Names of the nodes that are first, last and branch-starting layers, and of all layers."""

    first: frozenset[str]
    last: frozenset[str]
    branch: frozenset[str]
    layers: frozenset[str] = frozenset()

    def known(self, name: str) -> bool:
        """Whether this step is a layer, and no norm."""
        return name in self.layers

    def role(self, name: str) -> str:
        """ "first", "last", "first and last", "branch" or "interior"."""
        ends = [role for role, names in (("first", self.first), ("last", self.last)) if name in names]
        return " and ".join(ends) or ("branch" if name in self.branch else "interior")


def _meets(node: fx.Node) -> bool:
    """Whether this is an addition (or subtraction) of two computed values."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    called = node.op in ("call_function", "call_method")
    return called and name.strip("_") in ADDITIONS and len(node.all_input_nodes) == 2


def _last(output: fx.Node, layers: set[fx.Node]) -> frozenset[str]:
    """Layers met first on every way back from the output."""
    found, seen, todo = set(), {output}, [output]
    while todo:
        node = todo.pop()
        if node in layers:
            found.add(node.name)
            continue
        todo += (fresh := [i for i in node.all_input_nodes if i not in seen])
        seen.update(fresh)
    return frozenset(found)


def _is_layer(module: nn.Module, name: str, whole: Collection[str]) -> bool:
    """Whether this is a layer: one of the known kinds, or a module kept whole that has parameters to train or is registered."""
    if name in whole:
        return any(p.requires_grad or registered(module) is not None for p in module.parameters())
    return type(module) in LAYERS


def layout(traced: Traced, whole: Collection[str] = ()) -> Layout:
    """Where each layer of the graph stands. Sets of nodes are ints, bit i for node i of the graph. whole: names of modules kept whole."""
    nodes = list(traced.graph.nodes)
    layers = {n for n in nodes if n.op == "call_module" and _is_layer(traced.module(n), str(n.target), whole)}
    mask, before = 0, dict[fx.Node, int]()  # all layers; the layers before a node, itself included
    bit = {node: 1 << i for i, node in enumerate(nodes)}
    for node in nodes:
        own = bit[node] if node in layers else 0
        mask |= own
        before[node] = reduce(or_, (before[i] for i in node.all_input_nodes), own)
    branch: set[str] = set()
    for node in filter(_meets, nodes):
        left, right = (before[i] for i in node.all_input_nodes)
        ways = (left & ~right, right & ~left)
        longest = max(way.bit_count() for way in ways)
        for way in ways:
            if way.bit_count() == longest:
                branch |= {n.name for n in layers if bit[n] & way == bit[n] == before[n] & way}
    first = frozenset(n.name for n in layers if before[n] == bit[n])
    return Layout(first, _last(nodes[-1], layers), frozenset(branch), frozenset(n.name for n in layers))
