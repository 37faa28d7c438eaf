"""A traced model as a chain of segments, one tensor in and one tensor out each, cut where the data flow is one tensor wide.

A cut is a tensor through which all that comes later depends on the input; parameters and the number of rows don't count. Between two
cuts that follow each other stands a piece. Pieces are grouped:

    input       what stands before the first layer with weights: normalisation of raw inputs, a flatten, a transposition
    weights     a piece with a convolution, a linear, recurrent or attention layer (a whole residual block) begins a segment
    shape       a piece without one that changes the shape (pooling, flatten) is a segment
    the rest    normalisation, activations, dropout, added positions: part of the segment before

Shapes: a cut is (B, *shape), rows first. Segments hold copies of the model's modules; one that the model uses in several of them is
shared by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNBase

from quorate.graphs.flow import Feature, Flow
from quorate.graphs.modes import in_both_modes
from quorate.graphs.rows import Rows
from quorate.graphs.rules import BINARY
from quorate.graphs.structure_steps import structure
from quorate.graphs.tracing import ROOT, Traced, public_name

NORMS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
OWN_SEGMENT = re.compile(r"^segments\.\d+\.")  # the part of a name that a chain adds
NORM_FUNCTIONS = ("layer_norm", "batch_norm", "group_norm", "instance_norm", "rms_norm", "prelu")


@dataclass(frozen=True)
class Boundary:
    """A tensor between two segments: its shape without the batch, and the axis of its channels (≥ 1, the batch is 0; None: not known)."""

    shape: tuple[int, ...]
    axis: int | None


class Chain(nn.Module):
    """Segments, one after the other.

    Attributes:
        segments: nn.ModuleList; each takes a tensor (B, *shape) and gives one.
        boundaries: boundary i is between segments i and i + 1.
        given: the tensor before the first segment.
    """

    def __init__(self, segments: Iterable[nn.Module], boundaries: Iterable[Boundary], given: Boundary) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segments)
        self.boundaries, self.given = tuple(boundaries), given
        if len(self.boundaries) != len(self.segments) - 1:
            raise ValueError(
                f"boundaries: expected one between each two of {len(self.segments)} segments, got {len(self.boundaries)}; "
                "pass one less than segments"
            )

    def forward(self, x: Tensor) -> Tensor:
        """(B, *shape) → what the last segment gives."""
        for segment in self.segments:
            x = segment(x)
        return x


@dataclass(frozen=True)
class _Piece:
    """The steps from one cut to the next."""

    start: fx.Node
    end: fx.Node
    nodes: tuple[fx.Node, ...]

    def with_(self, later: _Piece) -> _Piece:
        return _Piece(self.start, later.end, self.nodes + later.nodes)


def _cuts(traced: Traced, rows: Rows, end: fx.Node) -> list[tuple[int, fx.Node]]:
    """The tensors that are the only one that what follows needs, each with the first place in the graph where that is so."""
    nodes = list(traced.graph.nodes)
    place = {node: i for i, node in enumerate(nodes)}
    needed = {
        node: max((place[user] for user in node.users if user not in rows.silent), default=-1)
        for node in nodes
        if node in rows.dependent
    }
    found: list[tuple[int, fx.Node]] = []
    live: set[fx.Node] = set()
    for i, node in enumerate(nodes[:-1]):
        if node in needed:
            live.add(node)
        live = {n for n in live if needed[n] > i}
        if len(live) == 1:
            (only,) = live
            if rows.first(only) and (not found or found[-1][1] is not only):
                found.append((i, only))
    if not found or found[0][1] is not rows.source or found[-1][1] is not end:
        raise ValueError("model: expected rows first in the input and in the output, got another order; put the batch on axis 0")
    return found


def _pieces(traced: Traced, rows: Rows, end: fx.Node) -> list[_Piece]:
    nodes, cuts = list(traced.graph.nodes), _cuts(traced, rows, end)
    return [
        _Piece(start, stop, tuple(n for n in nodes[i + 1 : j + 1] if n in rows.dependent))
        for (i, start), (j, stop) in pairwise(cuts)
    ]


def weighs(root: nn.Module, node: fx.Node) -> bool:
    """Whether a step of a graph on `root` is a layer with weights, other than a normalisation or an elementwise step."""
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        return not isinstance(module, NORMS) and any(True for _ in module.parameters())
    if node.op not in ("call_function", "call_method") or node.target in BINARY:
        return False
    name = str(getattr(node.target, "__name__", node.target))
    return name not in NORM_FUNCTIONS and any(_is_matrix(root, source) for source in node.all_input_nodes)


def _is_matrix(root: nn.Module, node: fx.Node) -> bool:
    """Whether a node is a parameter of at least two axes longer than 1, or a transposed one."""
    if node.op == "call_method" and node.target in ("t", "transpose", "permute") and node.all_input_nodes:
        return _is_matrix(root, node.all_input_nodes[0])
    if node.op != "get_attr":
        return False
    owner, _, name = str(node.target).rpartition(".")
    parameter = root.get_submodule(owner)._parameters.get(name)
    return parameter is not None and sum(size > 1 for size in parameter.shape) > 1


def _grouped(traced: Traced, pieces: list[_Piece]) -> list[_Piece]:
    """Pieces put together to segments."""
    groups: list[_Piece] = []
    begun = False
    for piece in pieces:
        weights = any(weighs(traced.root, node) for node in piece.nodes)
        same = traced.noted[piece.start][1:] == traced.noted[piece.end][1:]
        if groups and not weights and (same or not begun):
            groups[-1] = groups[-1].with_(piece)
        else:
            groups.append(piece)
        begun = begun or weights
    return groups


def _axis(flow: Flow, node: fx.Node) -> int | None:
    """The axis of a tensor's channels: as followed, by the layers that read it, or the only one there is."""
    feature, rank = flow.at.get(node), len(flow.shape(node))
    if isinstance(feature, Feature):
        return feature.axis or None
    if rank == 2:
        return 1
    found = set()
    for user in node.users:
        module = flow.traced.module(user) if user.op == "call_module" else None
        if isinstance(module, _ConvNd):
            found.add(rank - len(module.kernel_size) - 1)
        elif isinstance(module, (nn.Linear, RNNBase)):
            found.add(rank - 1)
        elif isinstance(module, _NormBase):
            found.add(1)
    return found.pop() if len(found) == 1 else None


def _module(traced: Traced, rows: Rows, piece: _Piece, changes: bool) -> fx.GraphModule:
    """A piece as a module. `changes`: it writes into what it is given, and takes a copy."""
    graph = fx.Graph()
    given = graph.placeholder("x")
    env = {piece.start: graph.call_method("clone", (given,)) if changes else given}
    parts: dict[str, object] = {}

    def copied(node: fx.Node) -> fx.Node:
        if node not in env:
            if node in rows.numbers:
                env[node] = graph.call_method("size", (given, 0))
            else:
                env[node] = graph.node_copy(node, copied)
            if node.op in ("call_module", "get_attr"):
                env[node].target = _name(traced, node, parts)
        return env[node]

    for node in piece.nodes:
        copied(node)
    graph.output(env[piece.end])
    return fx.GraphModule(parts, graph, "Segment")


def _name(traced: Traced, node: fx.Node, parts: dict[str, object]) -> str:
    """The name in a segment of what a node calls or reads, which is added to the segment's parts."""
    target = str(node.target)
    if node.op == "call_module":
        part: object = traced.module(node)
    else:
        owner, _, last = target.rpartition(".")
        part = getattr(traced.root.get_submodule(owner), last)
    name = public_name(target) if target != ROOT else ROOT
    short = OWN_SEGMENT.sub("", name) if isinstance(traced.root.get_submodule(ROOT), Chain) else name
    if parts.setdefault(short, part) is part:
        return short
    parts[name] = part
    return name


def _end(traced: Traced, rows: Rows) -> fx.Node:
    """The node that gives the outputs. Raises ValueError."""
    output = list(traced.graph.nodes)[-1]
    end = output.args[0]
    if not isinstance(end, fx.Node) or end not in traced.tensors:
        raise ValueError("model: expected one tensor of outputs, got something else; wrap it so that it gives the outputs alone")
    if end not in rows.dependent or end is rows.source:
        raise ValueError("model: expected outputs that are computed from the input, got none; pass a model with layers")
    return end


def flat(traced: Traced, rows: Rows, flow: Flow) -> fx.GraphModule:
    """A graph as one module of one tensor to one tensor; its parts are those of the graph."""
    nodes = tuple(n for n in traced.graph.nodes if n in rows.dependent - {rows.source} and n.op != "output")
    return _module(traced, rows, _Piece(rows.source, _end(traced, rows), nodes), flow.changed(rows.source, nodes))


def flattened(model: nn.Module, example: Tensor) -> fx.GraphModule:
    """A model as one module of its graph's steps, in the model's mode. Arguments and errors are those of :func:`chain`."""
    example = check_input(example)
    traced = in_both_modes(model, example)
    rows = Rows(traced, example)
    return flat(traced, rows, structure(traced, rows)).train(model.training)


def segmented(traced: Traced, rows: Rows, flow: Flow, example: Tensor) -> Chain:
    """The chain of a graph that is followed by `flow`; its modules are those of the graph."""
    end = _end(traced, rows)
    pieces = _grouped(traced, _pieces(traced, rows, end))
    segments = [_module(traced, rows, piece, flow.changed(piece.start, piece.nodes)) for piece in pieces]
    boundaries = [Boundary(traced.noted[piece.end][1:], _axis(flow, piece.end)) for piece in pieces[:-1]]
    return Chain(segments, boundaries, Boundary(tuple(example.shape[1:]), _axis(flow, rows.source)))


def check_input(example: object) -> Tensor:
    """Two rows of the example, if it is a tensor with rows: sizes then differ from an axis of length 1. Raises ValueError."""
    if not isinstance(example, Tensor) or example.dim() < 2 or not example.numel():
        got = f"one of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"example: expected a tensor (B, …) with at least one row, got {got}; pass a batch of inputs")
    return torch.cat([example[:2].detach()] * 2)[:2]


def chain(model: nn.Module, example: Tensor) -> Chain:
    """A model as a chain of segments, with the same outputs bit for bit in evaluation mode, for a batch of any size.

    In training the chain does as the model: normalisation and dropout follow the mode, functional dropout included. Where the model is
    one step for this purpose (a long skip from the input to the output) there is one segment.

    Args:
        model: an eager module of one tensor to one tensor, rows first, in any mode; it is left as it is.
        example: an input (B, *shape); it gives the sizes of the tensors, any values will do.

    Returns:
        A :class:`Chain` in the model's mode, of copies; parameters and buffers have the model's values and names behind their segment's.

    Raises:
        ValueError: no eager module; one that does not run on the example or on other batch sizes, that cannot be traced (or takes other
            steps in training), that has more than one output, or none that depends on the input.
    """
    example = check_input(example)
    traced = in_both_modes(model, example)
    rows = Rows(traced, example)
    made = segmented(traced, rows, structure(traced, rows), example)
    return made.train(model.training)
