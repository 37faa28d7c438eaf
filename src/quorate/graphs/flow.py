"""Which channels of a graph's tensors stand and fall together, and which of them carry the same number for every input.

Every convolution and linear layer makes new channels, one **atom** each. A tensor is followed by the axis of its channels, with the atom
and the value of each channel:

    atom     channels of one atom go together or stay together: both sides of a sum, a channel before and after its normalisation, the
             positions of a flattened channel, a group of a grouped convolution
    value    the number that stands at every position for every input of any size, NaN where there is none: a row without weights
             gives its bias, one that reads constants gives Σ w·v + b, batch normalisation β + γ·(v − μ)/√(σ² + ε) (β alone if γ = 0)

A step that is not known here is a barrier: what goes in stays whole, what comes out is not followed. That is always safe.

Shapes: a tensor (…, C, …) has atoms (C,) and values (C,), float64.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from quorate.graphs.tracing import HOOKS, Traced, public_name

Rule = Callable[["Flow", fx.Node], "Feature | list[Feature] | None"]
"""What a step does to channels; None where that is not known."""
AUGMENTED = ("iadd", "isub", "imul", "itruediv", "ipow")
HARMLESS = ("dtype", "device", "ndim", "is_cuda", "layout", "requires_grad")


@dataclass(frozen=True)
class Feature:
    """The channels of one tensor: their axis (≥ 0), the atom and the value (NaN: depends on the input) of each."""

    axis: int
    atoms: np.ndarray
    values: np.ndarray

    def unknown(self) -> Feature:
        """The same channels, nothing known of their values."""
        return replace(self, values=np.full(len(self.atoms), np.nan))

    def zeros_only(self) -> Feature:
        """The same channels, only those that are 0 known."""
        return replace(self, values=np.where(self.values == 0, 0.0, np.nan))

    def on(self, axis: int) -> Feature:
        """The same channels on another axis."""
        return replace(self, axis=axis)


class Atoms:
    """Sets of channels that share their fate (union-find), some of which have to stay."""

    def __init__(self) -> None:
        self.parent: list[int] = []
        self.kept: list[bool] = []
        self.made: list[np.ndarray] = []  # what each call of `fresh` gave

    def fresh(self, count: int) -> np.ndarray:
        """New atoms, each by itself."""
        start = len(self.parent)
        self.parent += range(start, start + count)
        self.kept += [False] * count
        self.made.append(np.arange(start, start + count))
        return self.made[-1]

    def find(self, atom: int) -> int:
        """The representative of an atom's set."""
        while self.parent[atom] != atom:
            self.parent[atom] = self.parent[self.parent[atom]]
            atom = self.parent[atom]
        return atom

    def tie(self, one: np.ndarray, two: np.ndarray) -> None:
        """Join the sets of one[i] and two[i] for every i."""
        for a, b in zip(one.tolist(), two.tolist(), strict=True):
            left, right = self.find(a), self.find(b)
            if left != right:
                self.parent[right] = left
                self.kept[left] = self.kept[left] or self.kept[right]

    def keep(self, atoms: np.ndarray) -> None:
        """What is in these sets stays."""
        for atom in set(atoms.tolist()):
            self.kept[self.find(atom)] = True

    def same(self, one: np.ndarray, two: np.ndarray) -> bool:
        """Whether two tensors have the same channels, in the same order."""
        return len(one) == len(two) and all(self.find(a) == self.find(b) for a, b in zip(one.tolist(), two.tolist(), strict=True))

    def roots(self) -> np.ndarray:
        """The representative of every atom."""
        return np.array([self.find(atom) for atom in range(len(self.parent))], dtype=np.int64)


@dataclass(frozen=True)
class Layer:
    """A module that gets narrower with its channels. `dense` ones read some channels (None: the input is not followed) and make others.

    `reads` (outputs, inputs) says where a dense layer's weights are not 0, `sums` are the weights summed over the kernel's positions, and
    `padded` is True where zeros surround the input, so that a constant channel is not constant at the border.
    """

    name: str
    module: nn.Module
    inputs: Feature | None
    outputs: Feature
    reads: np.ndarray | None = None
    sums: np.ndarray | None = None
    padded: bool = False

    @property
    def dense(self) -> bool:
        """Whether the channels that go in are others than those that come out."""
        return self.reads is not None


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values in float64."""
    return tensor.detach().to("cpu", torch.float64).numpy()


def frozen(traced: Traced, known: tuple[type[nn.Module], ...] = ()) -> set[int]:
    """The modules (by id) that have to stay as they are.

    Those called more than once, inside a module that is called whole, with hooks or a forward of their own, with a tensor that another
    module has too or that forward reads by itself, or with parameters other than a weight and a bias in floating point (of the classes
    `known`: of any name).
    """
    calls = Counter(id(traced.module(node)) for node in traced.graph.nodes if node.op == "call_module")
    owners: dict[int, set[int]] = {}
    found = {module for module, count in calls.items() if count > 1}
    for module in traced.root.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners.setdefault(id(tensor), set()).add(id(module))
        own = [tensor for tensor in module._parameters.values() if tensor is not None]
        strange = type(module) not in known and module._parameters.keys() - {"weight", "bias"}
        odd = strange or not all(tensor.is_floating_point() and tensor.numel() for tensor in own)
        if odd or "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS):
            found.add(id(module))
    for node in traced.graph.nodes:
        if node.op == "call_module":
            found |= {id(part) for part in traced.module(node).modules()} - {id(traced.module(node))}
    for sharing in owners.values():
        if len(sharing) > 1:
            found |= sharing
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            found |= owners.get(id(getattr(traced.root.get_submodule(owner), name)), set())
    return found


def mutated(traced: Traced, node: fx.Node) -> list[fx.Node]:
    """The nodes whose tensors a step may change: the first argument of one that is, or may be, in place; what it writes `out` to."""
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_module":
        changes = bool(getattr(traced.module(node), "inplace", False))
    elif node.op in ("call_function", "call_method"):
        flags = (*node.args[1:], node.kwargs.get("inplace"))
        functional = "torch.nn.functional" in str(getattr(node.target, "__module__", "")) and any(flag is True for flag in flags)
        changes = name in AUGMENTED or (name.endswith("_") and not name.endswith("__")) or functional
        changes = changes or node.kwargs.get("inplace") not in (None, False)
    else:
        changes = False
    first = [node.args[0]] if changes and node.args else []
    return [n for n in (*first, node.kwargs.get("out")) if isinstance(n, fx.Node)]


class Flow:
    """The channels of every tensor in a graph.

    Attributes:
        traced: the graph and its shapes.
        atoms: what stands and falls together.
        at: by node its Feature, a list of them for a tuple of tensors, None where it is not followed.
        layers: the modules that get narrower, in the order of the graph.
    """

    known: tuple[type[nn.Module], ...] = ()  # classes whose parameters have other names than weight and bias

    def __init__(self, traced: Traced) -> None:
        self.traced, self.atoms = traced, Atoms()
        self.at: dict[fx.Node, Feature | list[Feature] | None] = {}
        self.layers: list[Layer] = []
        self.sizes: dict[fx.Node, Feature] = {}  # numbers of channels
        self._shapes: dict[fx.Node, Feature] = {}  # shapes with a number of channels in them
        self._aliases: dict[fx.Node, frozenset[fx.Node]] = {}
        self._place = {node: place for place, node in enumerate(traced.graph.nodes)}
        self._changes: list[tuple[int, frozenset[fx.Node]]] = []  # where memory was changed, and whose
        self._frozen = frozen(traced, self.known)

    def step(self, node: fx.Node, rule: Rule | None, views: bool) -> None:
        """Follow one node, the next in order, by its rule; `views` if its result may share memory with what it reads."""
        known: Feature | list[Feature] | None = None
        if not self._asks_size(node):
            known = rule(self, node) if rule is not None else None
            if known is None:
                self.keep_inputs(node)
        self.at[node] = known
        self._note_memory(node, views)

    def usable(self, node: fx.Node) -> bool:
        """Whether the module that a node calls is not frozen."""
        return id(self.traced.module(node)) not in self._frozen

    def shape(self, node: fx.Node) -> tuple[int, ...]:
        """The shape of a tensor on the example."""
        return tuple(self.traced.noted[node])

    def read(self, node: Any, reader: fx.Node) -> Feature | None:
        """The channels of a tensor where `reader` reads them: without values if its memory was changed since under another name."""
        feature = self.at.get(node) if isinstance(node, fx.Node) else None
        if not isinstance(feature, Feature):
            return None
        return feature.unknown() if self.stale(node, reader) else feature

    def stale(self, node: fx.Node, reader: fx.Node) -> bool:
        """Whether a tensor's memory was changed between its making and `reader` by a step that is not in between the two."""
        own, made, read = self._aliases[node], self._place[node], self._place[reader]
        return any(made < place < read and own & changed for place, changed in self._changes)

    def changed(self, node: fx.Node, steps: Iterable[fx.Node]) -> bool:
        """Whether one of these steps may write into a tensor's memory."""
        places = {self._place[step] for step in steps}
        return any(place in places and self._aliases[node] & changed for place, changed in self._changes)

    def add(self, node: fx.Node, **properties: Any) -> Feature:
        """Register the layer that a node calls; its outputs."""
        layer = Layer(public_name(node.target), self.traced.module(node), **properties)
        self.layers.append(layer)
        return layer.outputs

    def keep(self, *features: Feature | None) -> None:
        """These channels stay."""
        for feature in features:
            if feature is not None:
                self.atoms.keep(feature.atoms)

    def keep_inputs(self, node: fx.Node) -> None:
        """All that a node reads stays whole: tensors, shapes and numbers of channels."""
        for source in node.all_input_nodes:
            self.keep(*self._features(source))

    def keep_sizes(self, node: fx.Node, but: Any = None) -> None:
        """The channels stay whose number a node is given, other than by `but`."""
        for source in node.all_input_nodes:
            if source is not but:
                self.keep(self.sizes.get(source), self._shapes.get(source))

    def _features(self, node: fx.Node) -> Iterator[Feature]:
        found = self.at.get(node)
        yield from found if isinstance(found, list) else [found] if found is not None else []
        yield from (sizes[node] for sizes in (self.sizes, self._shapes) if node in sizes)

    def _asks_size(self, node: fx.Node) -> bool:
        """Whether a step only asks for a shape or for one number in it; where that is the number of channels, it is noted."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or node.op not in ("call_function", "call_method"):
            return False
        if source in self._shapes:
            return node.target is operator.getitem and self._asks_one(node, self._shapes[source], len(self.traced.noted[source]))
        feature = self.at.get(source)
        if not isinstance(feature, Feature):
            return False
        asked = node.args[1:] if node.target is getattr else None
        if asked == ("shape",) or (node.target == "size" and len(node.args) == 1 and not node.kwargs):
            self._shapes[node] = feature
            return True
        if node.target == "size":
            return self._asks_one(node, feature, len(self.shape(source)))
        return node.target == "dim" or (asked is not None and asked[0] in HARMLESS)

    def _asks_one(self, node: fx.Node, feature: Feature, dims: int) -> bool:
        index = node.args[1] if len(node.args) > 1 else None
        if not isinstance(index, int):
            return False
        if index % dims == feature.axis:
            self.sizes[node] = feature
        return True

    def _note_memory(self, node: fx.Node, views: bool) -> None:
        """What a node's tensor may share memory with, and what the node changes."""
        changed = mutated(self.traced, node)
        if changed:
            owners = frozenset[fx.Node]().union(*(self._aliases[n] for n in changed))
            self._changes.append((self._place[node], owners))
            self._aliases[node] = owners
        elif views:
            self._aliases[node] = frozenset([node]).union(*(self._aliases[n] for n in node.all_input_nodes))
        else:
            self._aliases[node] = frozenset([node])
