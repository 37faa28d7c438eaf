"""The flow along every edge of a traced model, which becomes the graph of a member on the way.

Modules by their kinds, functions and methods by their rules. Sizes of the single network that are written into steps are replaced
by a member's, so that the graph with layers of a member's width in it *is* a member.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection
from fractions import Fraction
from functools import reduce

import torch
from torch import Tensor, fx, nn

from quorate.packed.flow import BATCH_FIRST, EXAMPLE, Constant, Flow, Group, Learned, Number, Own, Raw, refuse, remedy, told
from quorate.packed.kinds import PACKED, SEVERAL, Place, through
from quorate.packed.layout import Layout
from quorate.packed.registry import registered
from quorate.packed.rules import called
from quorate.packed.rules.walking import Walk, name_of
from quorate.packed.sizes import BATCH, Size
from quorate.packed.trace import WAY_OUT, Traced, inside


class _Shapes(fx.Interpreter):
    """Runs the single network and notes the shape of every tensor."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> object:
        value: object = super().run_node(n)
        if isinstance(value, Tensor):
            self.found[n] = value.shape
        return value


@torch.no_grad()
def _run(traced: Traced, example: Tensor) -> tuple[dict[fx.Node, torch.Size], Exception | None]:
    """The shape of every tensor of the single network, in evaluation mode, up to where it fails, if it does."""
    run = _Shapes(copy.deepcopy(traced.root).eval(), traced.graph)
    try:
        run.run(example.clone())
    except Exception as error:
        return run.found, error
    return run.found, None


def shapes(traced: Traced, example: Tensor) -> tuple[dict[fx.Node, torch.Size], dict[fx.Node, list[int]], Exception | None]:
    """The shape of every tensor on the example; along which dimensions each grows when it is given twice; where that fails.

    Raises ValueError if the model does not run.
    """
    one, error = _run(traced, example)
    if error is not None:
        raise ValueError(
            f"example: expected a batch that the model takes, but it fails on {tuple(example.shape)} with "
            f"{_told(error)}; pass raw inputs (B, …) as in training"
        ) from error
    two, error = _run(traced, torch.cat([example, example]))
    grows = {n: [i for i, (a, b) in enumerate(zip(one[n], two[n], strict=False)) if a != b] for n in one if n in two}
    return one, grows, error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).partition('While executing')[0].split())[:300]}"


def attribute(root: nn.Module, node: fx.Node) -> object:
    """What a get_attr step names."""
    found: object = reduce(getattr, str(node.target).split("."), root)
    return found


def _attribute(node: fx.Node, root: nn.Module, walk: Walk) -> Flow:
    """A bare parameter, which each member gets for itself, or a buffer, which they share."""
    value = attribute(root, node)
    if not isinstance(value, Tensor):
        refuse(node, "a tensor", type(value).__name__, WAY_OUT)
    dims = tuple(Size(d) for d in value.shape)
    owner, _, leaf = str(node.target).rpartition(".")
    if inside(node) and (isinstance(value, nn.Parameter) or type(root.get_submodule(owner)) in PACKED):
        plain = leaf in ("weight", "bias") and all(u.target is getattr and u.args[1] in ("dtype", "device") for u in node.users)
        if not plain:
            came = " and ".join(sorted({name_of(user) for user in node.users}))
            do = "read sizes off tensors, and give the step a parameter of its own"
            refuse(node, f"{node.target!r} to be read by its layer alone", f"{came} of it", do)
        return Constant(dims)
    if not isinstance(value, nn.Parameter):
        return Constant(dims)
    walk.sources[node] = (str(node.target), tuple(range(len(dims))))
    return Learned(dims)


def _opaque(node: fx.Node, module: nn.Module, walk: Walk) -> Flow:
    """A module that is kept whole: its output is (B, …), as wide as what it reads where members are narrower."""
    flows = [walk[i] for i in node.all_input_nodes]
    if node.kwargs or len(node.args) != len(flows) or not all(isinstance(flow, Own | Raw) for flow in flows):
        refuse(
            node,
            "tensors alone as inputs of a module that is kept whole",
            str(node.args),
            "wrap it in a module that takes tensors",
        )
    shape = walk.shapes.get(node) if walk.shapes else None
    if shape is None:
        refuse(node, "an example, as the module is kept whole and gives one tensor", "none", EXAMPLE)
    batch = Size(1, (BATCH,))
    dims = (batch, *(Size(d) for d in shape[1:]))
    first = next((flow for flow in flows if isinstance(flow, Own)), None)
    if first is None:
        trains = any(p.requires_grad for p in module.parameters())
        if registered(module) is None and not trains:
            return Raw(dims)
        return Own(dims, 1 if len(dims) != 3 else 2, 0)
    axis = first.axis
    if axis is not None and first.rank != len(dims):
        axis = None if walk.ratio == 1 else 1 if len(dims) != 3 else 2
    return Own(dims, axis, 0, first.head)


def _module(node: fx.Node, module: nn.Module, walk: Walk, last: bool, opaque: bool) -> Flow:
    if opaque:
        return _opaque(node, module, walk)
    tensors = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node)]
    if not tensors:
        refuse(node, "a tensor as input", "none", WAY_OUT)
    several = type(module) in SEVERAL
    if len(node.all_input_nodes) != 1 and not several and any(isinstance(walk[i], Own) for i in node.all_input_nodes):
        refuse(node, "one tensor as input", f"{len(node.all_input_nodes)} arguments or more", WAY_OUT)
    flows = [walk[t] for t in tensors]
    flow = next((f for f in flows if isinstance(f, Own)), flows[0]) if several else flows[0]
    if several and isinstance(flows[0], Learned):
        flow = flows[0]
    return through(Place(node, module, last), walk, flow)


def _output(node: fx.Node, walk: Walk) -> Flow:
    source = node.args[0]
    if not isinstance(source, fx.Node):
        refuse(node, "one tensor (B, classes)", type(source).__name__, "wrap the model so that it returns its logits alone")
    flow = walk[source]
    if not isinstance(flow, Own):
        refuse(node, "logits (B, classes)", f"{told(flow)}, which no layer made", "end the model with a Linear layer")
    if flow.rank not in (None, 2) or flow.batch != 0 or (flow.axis not in (1, -1, None) and walk.ratio != 1):
        refuse(node, "logits (B, classes)", told(flow), "end the model with flatten and a Linear layer")
    return flow


def _settled(node: fx.Node, flow: Flow, walk: Walk, batch: int) -> Flow:
    """Shared tensors get their sizes from the example, members' are checked against it. batch: the rows of the example."""
    shape = walk.shapes.get(node) if walk.shapes else None
    if shape is None or isinstance(flow, Number | Group | Learned):
        return flow
    grows = walk.grows.get(node)
    if isinstance(flow, Own):
        known = [(i, d) for i, d in enumerate(flow.dims or ()) if set(d.unknown) <= {BATCH}]
        rows = [i for i, d in known if BATCH in d.unknown]
        if flow.dims is not None and (
            len(flow.dims) != len(shape)
            or any(math.prod((d.number, *[batch] * len(d.unknown))) != shape[i] for i, d in known)
            or (grows is not None and rows != grows)
        ):
            refuse(node, told(flow), f"{tuple(shape)} on the example", remedy(name_of(node)))
        return flow
    if isinstance(flow, Constant):
        return flow if flow.dims is not None else Constant(tuple(Size(d) for d in shape))
    grows = [flow.batch] if grows is None else grows
    if grows != [flow.batch]:
        walk.unbatched.add(node)
    return Raw(tuple(Size(d // batch, (BATCH,)) if i in grows else Size(d) for i, d in enumerate(shape)), flow.batch)


def _check_batch(node: fx.Node, walk: Walk, learns: bool) -> None:
    """ValueError if members would read what the input became when its rows were mixed. learns: whether the step has parameters."""
    mixed = [source for source in node.all_input_nodes if source in walk.unbatched]
    if mixed and (learns or any(isinstance(walk[source], Own | Learned) for source in node.all_input_nodes)):
        refuse(
            mixed[0],
            "the rows of the batch",
            f"{tuple(walk.shapes[mixed[0]]) if walk.shapes else ()} on the example",
            BATCH_FIRST,
        )


def walk_(
    traced: Traced, layout: Layout, members: int, ratio: Fraction, example: Tensor | None, whole: Collection[str] = ()
) -> Walk:
    """The flow out of every node. The graph becomes a member's, and loses what nothing uses.

    whole: names of modules that are kept whole. Raises ValueError naming a step that cannot be packed.
    """
    walk, failed = Walk(members, ratio, None), None
    if example is not None:
        walk.shapes, walk.grows, failed = shapes(traced, example)
    for node in list(traced.graph.nodes):
        learns = node.op == "call_module" and any(True for _ in traced.module(node).parameters())
        _check_batch(node, walk, learns)
        if node.op == "placeholder":
            flow: Flow = Raw()
        elif node.op == "get_attr":
            flow = _attribute(node, traced.root, walk)
        elif node.op == "call_module":
            last = node.name in layout.last and ratio != 1
            flow = _module(node, traced.module(node), walk, last, str(node.target) in whole)
        else:
            flow = _output(node, walk) if node.op == "output" else called(node, walk)
        walk.flows[node] = _settled(node, flow, walk, 1 if example is None else len(example))
    if failed is not None:
        raise ValueError(
            "forward: expected the same steps for any number of rows, but on the example twice it fails with "
            f"{_told(failed)}; {BATCH_FIRST}"
        ) from failed
    for node in reversed(list(traced.graph.nodes)):
        spare = isinstance(walk[node], Number | Group | Constant | Learned | Raw) and not name_of(node).endswith("_")
        if not node.users and spare and node.op in ("call_function", "call_method", "get_attr"):
            traced.graph.erase_node(node)
            del walk.flows[node]
            walk.keeps.discard(node)
    return walk
