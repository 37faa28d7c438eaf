"""From a member's graph to the graph of all M members at once.

Each tensor of the members lies in one of two ways (`layers/arrangement.py`): in the channels (B, M · C, …), where convolutions and
what lies between them run, or in rows (M · B, C, …), where a member's own steps run unchanged and linear layers are batched
products. Where a step needs the other way, a conversion is put in. What all members share is computed once, and spread to rows
where members need it.

    shared       input, buffers                        a first layer reads it as it is
    channels     convolutions, norms, pooling, activations, concatenation of channels, reductions over pixels
    rows         everything else

With `each` the input is in rows already: (M · B, …), a batch of its own for every member; steps on the input itself, which may be
any, are then taken for each member apart. Sizes are a member's, B rows, and M times that only in a new shape of rows.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from quorate.packed import arranging
from quorate.packed.flow import Constant, Flow, Group, Learned, Number, Own, Raw
from quorate.packed.kinds import CONVOLUTIONS, NORMS, TOKENS
from quorate.packed.layers.depth import StochasticDepth
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.rules.joining import FUNCTIONS as JOINING
from quorate.packed.rules.shapes import FUNCTIONS as SHAPES
from quorate.packed.rules.shapes import METHODS as SHAPE_METHODS
from quorate.packed.rules.walking import Walk, argument
from quorate.packed.sizes import BATCH, Size
from quorate.packed.trace import Traced

SHAPED = {*SHAPES, *SHAPE_METHODS}  # their numbers are sizes of a new shape
CAT = {target for target, rule in JOINING.items() if rule is JOINING[torch.cat]}
SPARE = {operator.getitem, getattr, operator.mul, operator.floordiv, torch.cat, torch.stack}
SPARE |= {getattr(arranging, name) for name in arranging.__all__}
BY_CHANNEL = (*NORMS, nn.GroupNorm, nn.PReLU, StochasticDepth)  # where the members lie is all the same to them


@dataclass
class Lowered:
    """The graph; how each named step's tensor holds the members, and at which axis; and how the output does."""

    graph: fx.Graph
    places: dict[str, tuple[str, int]]
    output: str


@dataclass
class _Lowering:
    traced: Traced
    walk: Walk
    packed: Mapping[str, nn.Module]
    each: bool
    graph: fx.Graph = field(default_factory=fx.Graph)
    forms: dict[fx.Node, dict[str, Any]] = field(default_factory=dict)  # of a node: its way → its node in the new graph
    native: dict[fx.Node, str] = field(default_factory=dict)
    places: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return self.walk.members

    def emit(self, function: Any, *args: Any) -> fx.Node:
        """A step of our own."""
        return self.graph.call_function(function, args)

    def keep(self, node: fx.Node, form: str, value: Any) -> None:
        """Note what a node became."""
        self.native[node], self.forms[node] = form, {form: value}
        flow = self.walk[node]
        if isinstance(flow, Own) and isinstance(value, fx.Node):
            self.places[value.name] = (form, 1 if form == "channels" else flow.batch)

    def copy(self, node: fx.Node, args: Any, kwargs: Any) -> fx.Node:
        """The step itself, under its name."""
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        new.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        return new

    def get(self, node: fx.Node, form: str) -> Any:
        """What a node became, in this form; converted once."""
        found = self.forms[node]
        if form not in found:
            found[form] = self.convert(node, form)
        return found[form]

    def convert(self, node: fx.Node, form: str) -> Any:
        flow, native, members = self.walk[node], self.native[node], self.members
        if isinstance(flow, Learned):
            return self.emit(torch.cat, self.parts(node), 0)
        if native == "parts" and isinstance(flow, Raw):
            return self.emit(torch.cat, self.parts(node), flow.batch)
        value = self.forms[node][native]
        if isinstance(flow, Constant):
            return value
        if isinstance(flow, Number):
            return self.emit(operator.mul, value, members) if form == "rows" and _rows(flow) == 1 else value
        if isinstance(flow, Group):
            batch = [i for i, item in enumerate(flow.items) if isinstance(item, Number) and _rows(item) == 1]
            return self.emit(arranging.rows_shape, value, members, batch[0]) if form == "rows" and batch else value
        if isinstance(flow, Raw):
            return self.emit(arranging.spread, value, members, flow.batch) if form == "rows" else value
        new = self.emit(arranging.to_rows if form == "rows" else arranging.to_channels, value, members)
        self.places[new.name] = (form, 1 if form == "channels" else 0)
        return new

    def parts(self, node: fx.Node) -> list[fx.Node]:
        """A parameter, or with `each` the input, and what became of them, as one tensor per member."""
        found = self.forms[node]
        if "parts" not in found:
            whole = (
                found["stacked"]
                if isinstance(self.walk[node], Learned)
                else self.emit(arranging.apart, found["rows"], self.members)
            )
            found["parts"] = [self.emit(operator.getitem, whole, m) for m in range(self.members)]
        parts: list[fx.Node] = found["parts"]
        return parts

    def stacked(self, node: fx.Node) -> fx.Node:
        """A parameter, or what became of it, as (M, …)."""
        found = self.forms[node]
        if "stacked" not in found:
            found["stacked"] = self.emit(torch.stack, found["parts"])
        value: fx.Node = found["stacked"]
        return value

    def mapped(self, node: fx.Node, form: str) -> tuple[Any, Any]:
        """The arguments, in a form."""
        return fx.node.map_arg((node.args, node.kwargs), lambda n: self.operand(node, n, form))

    def operand(self, node: fx.Node, source: fx.Node, form: str) -> Any:
        """One argument; sizes are a member's but where they make a new shape."""
        return self.get(source, "shared" if _is_size(self.walk[source]) and node.target not in SHAPED else form)

    # — what becomes of each kind of node —

    def lower(self, node: fx.Node) -> None:
        flow = self.walk.flows.get(node)
        if node.op == "placeholder":
            self.keep(node, "rows" if self.each else "shared", self.copy(node, node.args, node.kwargs))
        elif node.op == "get_attr":
            new = self.copy(node, (), {})
            self.keep(node, "stacked" if isinstance(flow, Learned) else "shared", new)
        elif node.op == "call_module":
            self.module(node)
        elif isinstance(flow, Learned):
            self.learned(node)
        elif isinstance(flow, Own) or (isinstance(flow, Group) and self.own_inputs(node) and not _is_size(flow)):
            self.step(node)
        else:
            self.plain(node)

    def own_inputs(self, node: fx.Node) -> list[fx.Node]:
        """The members' tensors that a step reads."""
        return [i for i in node.all_input_nodes if isinstance(self.walk[i], Own)]

    def learned(self, node: fx.Node) -> None:
        """A step on a bare parameter: once for each member."""
        parts = []
        for m in range(self.members):

            def part(n: fx.Node, m: int = m) -> Any:
                return self.parts(n)[m] if isinstance(self.walk[n], Learned) else self.get(n, "shared")

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), part)
            parts.append(self.graph.create_node(node.op, node.target, args, kwargs))
        self.keep(node, "parts", parts)

    def plain(self, node: fx.Node) -> None:
        """Numbers, shapes, and steps on what all members share."""
        source = node.args[0] if node.args else None
        if isinstance(source, fx.Node) and isinstance(self.walk[source], Own):
            self.read(node, source)
        elif isinstance(source, fx.Node) and isinstance(self.walk[source], Learned):
            self.keep(node, "shared", self.graph.create_node(node.op, node.target, (self.parts(source)[0], *node.args[1:])))
        elif any(map(self.of_inputs, node.all_input_nodes)):
            self.apart(node)
        else:
            tensors = any(self.native[i] == "rows" for i in node.all_input_nodes)
            form = "rows" if tensors else "shared"
            args, kwargs = self.mapped(node, form)
            self.keep(node, form, self.copy(node, args, kwargs))

    def of_inputs(self, node: fx.Node) -> bool:
        """Whether this is an input of the members' own, or was made of it without a layer."""
        return self.native[node] == "parts" if not isinstance(self.walk[node], Raw) else self.native[node] in ("rows", "parts")

    def apart(self, node: fx.Node) -> None:
        """A step on inputs of the members' own, once for each member; sizes are the same for all."""
        parts = []
        for m in range(1 if _is_size(self.walk[node]) else self.members):

            def part(n: fx.Node, m: int = m) -> Any:
                return self.parts(n)[m] if self.of_inputs(n) else self.get(n, "shared")

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), part)
            parts.append(self.graph.create_node(node.op, node.target, args, kwargs))
        self.keep(node, *(("shared", parts[0]) if _is_size(self.walk[node]) else ("parts", parts)))

    def read(self, node: fx.Node, source: fx.Node) -> None:
        """A shape or a dtype of the members' tensor, as a member would see it."""
        form, value, flow = self.native[source], self.forms[source][self.native[source]], self.walk[source]
        assert isinstance(flow, Own)
        if node.target != "size" and (node.target is not getattr or node.args[1] != "shape"):
            self.keep(node, "shared", self.copy(node, (value, *node.args[1:]), node.kwargs))
            return
        sizes = self.emit(arranging.member_shape, value, self.members, 1 if form == "channels" else flow.batch)
        dim = argument(node, 1, "dim") if node.target == "size" else None
        self.keep(node, "shared", sizes if dim is None else self.emit(operator.getitem, sizes, dim))

    def form_of(self, node: fx.Node) -> str:
        """In which way a step on members' tensors runs."""
        own = self.own_inputs(node)
        flows = [self.walk[i] for i in node.all_input_nodes]
        if node not in self.walk.keeps or not all(self.apt(flow) for flow in flows):
            return "rows"
        forms = [self.native[i] for i in own]
        result = self.walk[node]
        deep = isinstance(result, Own) and (result.rank or 0) > 2
        return "channels" if forms and (set(forms) == {"channels"} or ("channels" in forms and deep)) else "rows"

    def apt(self, flow: object) -> bool:
        """Whether an operand may meet members in the channels."""
        if isinstance(flow, Own):
            return flow.axis == 1 and flow.batch == 0
        if isinstance(flow, Constant):
            return flow.dims is not None and len(flow.dims) < 2 and all(d == Size() for d in flow.dims)
        return isinstance(flow, Number | Learned | Group)

    def step(self, node: fx.Node) -> None:
        """A function or a method on members' tensors."""
        form = self.form_of(node)
        bare = [i for i in node.all_input_nodes if isinstance(self.walk[i], Learned)]
        if node.target in CAT:
            bare = []
            if form == "channels" and self.dim(node) == 1:
                args, _ = self.mapped(node, form)
                tensors = args[0] if args else self.mapped(node, form)[1]["tensors"]
                self.keep(node, form, self.emit(arranging.cat_channels, tensors, self.members))
                return
        if not bare or not isinstance(self.walk[node], Own):
            args, kwargs = self.mapped(node, form)
            self.keep(node, form, self.copy(node, args, kwargs))
            return
        like = next(i for i in self.own_inputs(node))
        flow = self.walk[node]
        assert isinstance(flow, Own)

        def operand(n: fx.Node) -> Any:
            kind = self.walk[n]
            if isinstance(kind, Learned):
                stack = self.stacked(n)
                if form == "channels":
                    return self.emit(arranging.in_channels, stack, self.get(like, form), self.members)
                return self.emit(arranging.aligned, stack, flow.rank)
            value = self.operand(node, n, form)
            if form == "rows" and isinstance(kind, Own | Raw):
                return self.emit(arranging.apart, value, self.members, kind.batch)
            return value

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        new = self.graph.create_node(node.op, node.target, args, kwargs, node.name)
        self.keep(node, form, new if form == "channels" else self.emit(arranging.together, new, flow.batch))

    def dim(self, node: fx.Node) -> int:
        """Along which dimension a cat runs."""
        flow = self.walk[node]
        assert isinstance(flow, Own)
        given: int = argument(node, 1, "dim", node.kwargs.get("axis", 0))
        return given % (flow.rank or 1)

    def module(self, node: fx.Node) -> None:
        """A layer in the way that suits it; other modules as steps."""
        layer, kind = self.packed.get(str(node.target)), type(self.traced.module(node))
        if layer is None and not self.own_inputs(node):
            self.plain(node)
            return
        if layer is None:
            form = self.form_of(node)
            args, kwargs = self.mapped(node, form)
            self.keep(node, form, self.copy(node, args, kwargs))
            return
        sources = node.all_input_nodes
        shared = all(isinstance(self.walk[i], Raw | Constant) for i in sources) and not self.each
        one = self.walk[sources[0]]
        native = self.native[sources[0]]
        if kind in CONVOLUTIONS:
            layout, form = ("rows", "rows") if isinstance(one, Raw) and self.each else ("channels", "channels")
        elif kind in BY_CHANNEL and native == "channels":
            layout, form = "channels", "channels"
        elif isinstance(layer, PackedLinear) and native == "channels" and isinstance(one, Own) and one.rank == 2:
            layout, form = "gather", "channels"
        else:
            layout, form = ("spread", "shared") if shared else ("rows", "rows")

        def given(n: fx.Node) -> Any:
            flow = self.walk[n]
            if form == "channels" and isinstance(flow, Raw):
                return self.get(n, "shared")
            if kind in TOKENS and isinstance(flow, Constant):
                return self.get(n, "shared")
            return self.get(n, form)

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
        new = self.copy(node, args, {**kwargs, "layout": layout})
        result = "channels" if layout == "channels" else "rows"
        self.keep(node, result, new)
        if kind in CONVOLUTIONS and result == "rows":
            self.keep(node, "channels", self.emit(arranging.to_channels, new, self.members))


def _rows(number: Number) -> int:
    """How often the batch is a factor of a size."""
    return number.size.unknown.count(BATCH) if number.size else 0


def _is_size(flow: Flow | None) -> bool:
    """Whether this is a number, or several: a shape."""
    return isinstance(flow, Number) or (isinstance(flow, Group) and all(isinstance(item, Number) for item in flow.items))


def lower(traced: Traced, walk: Walk, packed: Mapping[str, nn.Module], each: bool = False) -> Lowered:
    """The graph of all members. packed: the packed layers by the names of the modules they stand for.

    each: the input is (M · B, …), a batch of its own for every member, in place of the shared (B, …).
    """
    work = _Lowering(traced, walk, packed, each)
    for node in traced.graph.nodes:
        if node.op != "output":
            work.lower(node)
    source = next(reversed(traced.graph.nodes)).args[0]
    assert isinstance(source, fx.Node)
    form = work.native[source]
    work.graph.output(work.get(source, form))
    for node in reversed(list(work.graph.nodes)):  # conversions and sizes that nothing came to use
        if not node.users and (node.op == "get_attr" or node.target in SPARE):
            work.graph.erase_node(node)
    names = {node.name for node in work.graph.nodes}
    return Lowered(work.graph, {n: place for n, place in work.places.items() if n in names}, form)
