"""What a rule knows of the graph it walks along: flows so far, widths of members, shapes of an example.

A rule takes a node and the walk, returns the flow out of the node, and refuses what cannot be packed. It changes sizes of the
single network that are written into the node's arguments to those of a member: after the walk the graph is a member's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, NoReturn

import torch
from torch import fx

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Dims, Flow, Flows, Group, Learned, Number, Own, Raw, refuse, told
from quorate.packed.sizes import BATCH, Size

CUT = -1


@dataclass
class Walk:
    """ratio: α / M. shapes: of every tensor on the example, if one was given. grows: the dimensions along which each of them grows with
    the batch. unbatched: what became of the input once its rows were mixed. keeps: steps that may run on members in the channels.

    across: linear layers along another dimension than the width, which every member has in full.
    widths: for each bare parameter its axis of the width, None if it has none; parameters not met yet are missing.
    sources: what each tensor made of a parameter alone comes from: its name, and which of its axes each dimension is (CUT: a part of one).
    """

    members: int
    ratio: Fraction
    shapes: dict[fx.Node, torch.Size] | None
    grows: dict[fx.Node, list[int]] = field(default_factory=dict)
    unbatched: set[fx.Node] = field(default_factory=set)
    flows: Flows = field(default_factory=dict)
    keeps: set[fx.Node] = field(default_factory=set)
    across: set[fx.Node] = field(default_factory=set)
    widths: dict[str, int | None] = field(default_factory=dict)
    sources: dict[fx.Node, tuple[str, tuple[int | None, ...]]] = field(default_factory=dict)

    def __getitem__(self, node: fx.Node) -> Flow:
        return self.flows[node]

    def flow(self, value: Any) -> Flow:
        """The flow of an argument: a node's, a number's, or a tuple's."""
        if isinstance(value, fx.Node):
            return self.flows[value]
        if isinstance(value, tuple | list):
            return Group(tuple(self.flow(v) for v in value))
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        return Number(Size(value) if whole else None)

    def unknown(self, node: fx.Node, axis: int) -> Size:
        """The size of a dimension of this node's tensor that no rule knows: from the example, or a name of its own."""
        shape = self.shapes.get(node) if self.shapes else None
        return Size(shape[axis]) if shape is not None and axis < len(shape) else Size(1, (f"{node.name}.{axis}",))

    def narrow(self, node: fx.Node, size: Size, head: bool = False) -> Size:
        """A member's share of a width."""
        mine = size if head else size.times(self.ratio)
        if mine is None:
            step = self.ratio.denominator
            number = size.number
            near = f"{number // step * step} and {(number // step + 1) * step}" if number >= step else f"{step}"
            refuse(
                node,
                f"a size that α/M = {self.ratio} divides",
                f"{size}",
                f"the nearest that do: {near}; change it, alpha or members",
            )
        return mine

    def resolve(self, node: fx.Node, axis: int | None) -> None:
        """Note which axis of what came from a bare parameter is the width (None: none of them)."""
        name, source = self.sources[node]
        of = None if axis is None else source[axis]
        if of == CUT:
            if self.ratio != 1:
                refuse(
                    node, f"parameter {name!r} in full along its width", "a slice of it", "give each part a parameter of its own"
                )
            of = None
        if name in self.widths and self.widths[name] not in (None, of) and of is not None:
            refuse(node, f"one axis of parameter {name!r} as its width", f"axes {self.widths[name]} and {of}", EXAMPLE)
        if of is not None or name not in self.widths:
            self.widths[name] = of


Rule = Callable[[fx.Node, Walk], Flow]


def name_of(node: fx.Node) -> str:
    """The function's or method's name."""
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", node.target))


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument by its place or its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def put_(node: fx.Node, place: int, name: str, value: Any) -> None:
    """Change an argument by its place or its name."""
    if len(node.args) > place:
        node.args = (*node.args[:place], value, *node.args[place + 1 :])
    else:
        node.kwargs = {**node.kwargs, name: value}


def literals(node: fx.Node, value: Any, what: str) -> list[int]:
    """One int or several, as a list."""
    values = list(value) if isinstance(value, tuple | list | torch.Size) else [value]
    if not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        refuse(node, f"{what} as plain numbers", str(value), "write them out")
    return values


def at(node: fx.Node, dims: Sequence[object] | None, index: int) -> int:
    """A dimension counted from the front."""
    if dims is None:
        refuse(node, "a tensor whose dimensions are known", "one of unknown shape", EXAMPLE)
    if not -len(dims) <= index < len(dims):
        refuse(node, f"one of {len(dims)} dimensions", f"dimension {index}", "correct the model, which cannot run as it is")
    return index % len(dims)


def subject(node: fx.Node, walk: Walk, name: str = "input") -> Flow:
    """The flow of the tensor that a step acts on; its other tensors must be none of the members'."""
    value = argument(node, 0, name)
    others = [walk[i] for i in node.all_input_nodes if i is not value]
    if any(isinstance(flow, Own | Learned | Raw) for flow in others) or not isinstance(value, fx.Node):
        stuck(node, walk)
    return walk[value]


def stuck(node: fx.Node, walk: Walk, do: str | None = None) -> NoReturn:
    """Refuse a step for what it reads."""
    came = " and ".join(told(walk[i]) for i in node.all_input_nodes) or "nothing"
    refuse(node, f"{name_of(node)} of the members' tensors and plain numbers", came, do or EXAMPLE)


def sized(flow: Flow) -> Dims | None:
    """The sizes of a tensor, None if unknown."""
    return None if isinstance(flow, Number | Group) else flow.dims


def kept(walk: Walk, node: fx.Node, flow: Own) -> Own:
    """Mark a step that may run on members in the channels."""
    walk.keeps.add(node)
    return flow


def free_of_batch(node: fx.Node, flow: Own | Raw, dims: Sequence[int]) -> None:
    """Refuse a step along the batch."""
    if flow.batch in dims:
        refuse(node, "a step along other dimensions than the batch", f"dimension {flow.batch}", BATCH_FIRST)


def has_batch(dims: Dims) -> list[int]:
    """The axes whose size depends on the batch."""
    return [i for i, d in enumerate(dims) if BATCH in d.unknown]
