"""Which channels of a graph's tensors stand and fall together, where the outputs may change: more steps than quorate.graphs.rules has.

An exact removal may not touch a layer whose result goes by all of its channels (LayerNorm, attention, a mean over channels). A
network that is trained anew may: it only has to fit together. So here

    numbers     of channels that the forward asks for and computes with (C // heads) are written into the graph as constants, and those that
                give the size of a followed axis are replaced by its new size
    parameters  that are added to, multiplied with or put beside a tensor get its channels
    free        a tensor whose channels are summed up carries none: what reads it does not mind how many there were

What is not known is a barrier, as there.

Shapes: a tensor (…, C, …) has atoms (C,); values are of no use here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from quorate.graphs.flow import Feature, Flow, Rule
from quorate.graphs.rows import Rows
from quorate.graphs.tracing import Traced

Staying = Callable[[Feature], list[int]]
"""Which channels of a tensor stay."""
FREE: list[Any] = []
"""What a rule gives for a result without channels: nothing is tied, nothing kept."""


class Structure(Flow):
    """The channels of every tensor in a graph whose outputs may change.

    Attributes:
        cuts: what is to be done to modules and parameters when channels go, beside the layers.
    """

    known = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder, nn.LSTM, nn.GRU, nn.RNN)

    def __init__(self, traced: Traced, rows: Rows) -> None:
        super().__init__(traced)
        self.rows = rows
        self.cuts: list[Callable[[Staying], None]] = []
        self._numbers: dict[fx.Node, list[Feature]] = {}  # what is computed from numbers of channels
        self._written: list[tuple[fx.Node, tuple[int, ...], Feature | int]] = []

    def step(self, node: fx.Node, rule: Rule | None, views: bool) -> None:
        """Follow one node, the next in order, by its rule."""
        if not isinstance(self.traced.noted[node], int | float | torch.Size):
            super().step(node, rule, views)
            return
        self.at[node] = None
        self._note_memory(node, views)
        if self._asks_size(node):
            if node in self.sizes:
                self._note_number(node, [self.sizes[node]])
            return
        sources = node.all_input_nodes
        if any(source in self.traced.tensors or source in self._shapes for source in sources):
            self.keep_inputs(node)
        else:
            self._note_number(node, [f for source in sources for f in self._numbers.get(source, [])])

    def keep_sizes(self, node: fx.Node, but: Any = None) -> None:  # noqa: ARG002
        """Numbers of channels become constants; only whole shapes keep them."""
        for source in node.all_input_nodes:
            self.keep(self._shapes.get(source))

    def write(self, node: fx.Node, place: tuple[int, ...], size: Feature | int) -> None:
        """Where the graph is narrowed, put the number of channels that stay (or a number) at this place of a node's arguments."""
        self._written.append((node, place, size))

    def freeze_numbers_(self, count: Callable[[Feature], int]) -> None:
        """Write the sizes into the graph: the new ones where they are an axis that is followed, those of the example elsewhere."""
        for node in self._numbers:
            for user in [user for user in node.users if user not in self._numbers]:
                user.args = fx.node.map_arg(user.args, self._constant)
                user.kwargs = fx.node.map_arg(user.kwargs, self._constant)
        for node in reversed(list(self._numbers)):
            self.traced.graph.erase_node(node)
            self.rows.dependent.discard(node)
        for node, place, size in self._written:
            node.args = _replaced(node.args, place, size if isinstance(size, int) else count(size))

    def _constant(self, node: fx.Node) -> Any:
        """A number of channels as it is on the example, anything else as it is."""
        return self.traced.noted[node] if node in self._numbers else node

    def adopt(self, node: Any, axis: int, feature: Feature) -> bool:
        """Give an axis of what is made of a parameter (or buffer) alone these channels; whether that is possible."""
        if not isinstance(node, fx.Node) or node in self.rows.dependent or node not in self.traced.tensors:
            return False
        shape = self.shape(node)
        if not 0 <= axis < len(shape) or shape[axis] == 1:
            return True
        if shape[axis] != len(feature.atoms) or len(node.users) != 1:
            return False
        if node.op == "get_attr":
            return self._adopt_parameter(node, axis, feature)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or node.kwargs or node.op == "call_module":
            return False
        inner = self.shape(source) if source in self.traced.tensors else ()
        name = str(getattr(node.target, "__name__", node.target))
        given = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
        nested = given is not node.args[1:] and len(node.args) == 2 and isinstance(node.args[1], (tuple, list))
        if name == "expand":
            own = axis - (len(shape) - len(inner))
            if not self.adopt(source, own, feature):
                return False
            if given[axis] != -1:
                self.write(node, (1, axis) if nested else (1 + axis,), feature)
            return True
        if name in ("view", "reshape") and max(inner, default=0) == len(feature.atoms) == torch.Size(inner).numel():
            if len(given) != len(shape) or not self.adopt(source, inner.index(len(feature.atoms)), feature):
                return False
            if given[axis] != -1:
                self.write(node, (1, axis) if nested else (1 + axis,), feature)
            return True
        if name == "unsqueeze" and isinstance(node.args[1], int):
            added = node.args[1] % len(shape)
            return added != axis and self.adopt(source, axis - (added < axis), feature)
        if node.target is operator.getitem:
            parts = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
            if any(part is not None and part != slice(None) for part in parts):
                return False
            return self.adopt(source, axis - sum(part is None for part in parts[:axis]), feature)
        return name in ("to", "float", "type_as", "contiguous", "detach") and self.adopt(source, axis, feature)

    def _adopt_parameter(self, node: fx.Node, axis: int, feature: Feature) -> bool:
        if sum(other.op == "get_attr" and other.target == node.target for other in self.traced.graph.nodes) > 1:
            return False
        owner, _, name = str(node.target).rpartition(".")
        module = self.traced.root.get_submodule(owner)
        self.cuts.append(lambda staying: cut_tensor_(module, name, axis, staying(feature)))
        return True

    def _note_number(self, node: fx.Node, features: list[Feature]) -> None:
        if not features:
            return
        if self.rows.vary(node):
            self.keep(*features)
        else:
            self._numbers[node] = features

    def _features(self, node: fx.Node) -> Iterator[Feature]:
        yield from flattened(self.at.get(node))
        if node in self._shapes:
            yield self._shapes[node]

    def _asks_one(self, node: fx.Node, feature: Feature, dims: int) -> bool:
        index = node.args[1] if len(node.args) > 1 else None
        if isinstance(index, slice) and all(isinstance(part, int | None) for part in (index.start, index.stop, index.step)):
            return feature.axis not in range(dims)[index]
        return super()._asks_one(node, feature, dims)


def flattened(known: Any) -> Iterator[Feature]:
    """The Features in what is known of a node, which may be nested lists."""
    if isinstance(known, list):
        for part in known:
            yield from flattened(part)
    elif known is not None:
        yield known


def _replaced(args: Any, place: tuple[int, ...], value: int) -> Any:
    """Nested arguments with another value at a place."""
    changed = list(args)
    changed[place[0]] = value if len(place) == 1 else _replaced(args[place[0]], place[1:], value)
    return type(args)(changed) if type(args) in (tuple, list) else tuple(changed)


def cut_tensor_(module: nn.Module, name: str, axis: int, rows: list[int]) -> None:
    """Keep these entries of a module's parameter or buffer along an axis, if it has one of that name."""
    given: Tensor | None = getattr(module, name, None)
    if given is None or given.shape[axis] == len(rows):
        return
    index = torch.tensor(rows, device=given.device)
    cut = given.detach().index_select(axis, index).clone()
    if name in module._parameters:
        setattr(module, name, nn.Parameter(cut, requires_grad=given.requires_grad))
    else:
        setattr(module, name, cut)
