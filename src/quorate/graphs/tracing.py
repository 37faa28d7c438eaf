"""A model's forward in evaluation mode as a graph of calls (torch.fx), and the shape of every value in it on an example.

The model is one module inside a caller with a single argument, the example's tensors, so that any signature can be followed: what the
example does not give keeps its default. PyTorch's own layers are steps, every other module is stepped into. Augmented assignments
(``x += y``) are kept as such, because they change what other names see.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree

from quorate._optional import one_line
from quorate.cost.counting import Example

ROOT = "model"
SLACK = 4096  # units in the last place, relative to the greatest value, that rounding may take from a deep network's output
COARSEST = 0.05
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class _Call(nn.Module):
    """`model` called as on the example, with these tensors in place of the example's."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()
        self.model = model
        args = example if isinstance(example, tuple) else () if isinstance(example, Mapping) else (example,)
        leaves, self.spec = _pytree.tree_flatten((args, dict(example) if isinstance(example, Mapping) else {}))
        self.places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
        self.given = [leaves[i].detach() for i in self.places]
        self.constants = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]

    def forward(self, tensors: list[Tensor]) -> Any:
        leaves = list(self.constants)
        for i, place in enumerate(self.places):
            leaves[place] = tensors[i]
        args, kwargs = _pytree.tree_unflatten(leaves, self.spec)
        return self.model(*args, **kwargs)

    def inputs(self) -> list[Tensor]:
        """Copies of the example's tensors, which a forward may change."""
        return [tensor.clone() for tensor in self.given]


def _augmented(change: Callable[..., Any]) -> Callable[..., fx.Proxy]:
    def method(self: fx.Proxy, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", change, (self, other), {})

    return method


class _Changing(fx.Proxy):
    """A traced value whose augmented assignments are steps of their own."""

    __iadd__ = _augmented(operator.iadd)
    __isub__ = _augmented(operator.isub)
    __imul__ = _augmented(operator.imul)
    __itruediv__ = _augmented(operator.itruediv)
    __ipow__ = _augmented(operator.ipow)


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Changing(node, self)


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor, the value of everything else, and which nodes give one tensor."""

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        super().__init__(root, graph=graph)
        self.noted: dict[fx.Node, Any] = {}
        self.tensors: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.tensors.add(n)
        self.noted[n] = _pytree.tree_map(lambda leaf: tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf, result)
        return result


@dataclass(frozen=True)
class Traced:
    """A graph, the module whose parts it calls, what each node gives on the example (a tensor's shape, or the value), and the outputs.

    `tensors` are the nodes that give one tensor.
    """

    graph: fx.Graph
    root: nn.Module
    noted: dict[fx.Node, Any]
    outputs: Any
    tensors: frozenset[fx.Node]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return self.root.get_submodule(str(node.target))

    def steps(self) -> list[tuple[str, str, str]]:
        """The graph as comparable text, constants included."""
        return [
            (node.op, str(node.target), repr(fx.node.map_arg((node.args, node.kwargs), lambda n: n.name)))
            for node in self.graph.nodes
        ]


def public_name(target: object) -> str:
    """The name in the model of what a node of the graph calls."""
    return str(target).removeprefix(ROOT).removeprefix(".")


def check(model: nn.Module, example: Example) -> None:
    """Refuse what is no eager module with values, or no example. Raises ValueError."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}; pass the network itself")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("model: expected an eager nn.Module, got a scripted one; trace the module it was made from")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor) or tensor.is_meta:
            what = "lazy" if is_lazy(tensor) else "on the meta device"
            raise ValueError(f"model: expected tensors with values, got {name!r}, which is {what}; run or load the model first")
    wanted = isinstance(example, (Tensor, tuple, Mapping))
    found = [leaf for leaf in _pytree.tree_leaves(example) if isinstance(leaf, Tensor)] if wanted else []
    if not found or found[0].numel() == 0:
        got = type(example).__name__ if not found else f"one of shape {tuple(found[0].shape)}"
        raise ValueError(
            f"example: expected an input with at least one row, got {got}; pass a tensor, a tuple of positional or a dict of "
            "keyword arguments"
        )


def private_copy(model: nn.Module) -> nn.Module:
    """A copy to change or run. Raises ValueError where the model can't be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} can't be copied ({one_line(error)}): expected a model that copy.deepcopy takes; remove what is "
            "computed and stored on it"
        ) from error


def evaluated(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, by the modules' flags alone."""
    model = private_copy(model)
    for module in model.modules():
        module.training = False
    return model


@contextmanager
def undisturbed(model: nn.Module, seed: int) -> Iterator[None]:
    """No gradients, this seed inside; the random generators of the CPU and of the model's devices stay as they are."""
    devices: dict[str, set[int]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type != "cpu":
            devices.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in devices.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=kind))
        torch.manual_seed(seed)
        yield


def trace(model: nn.Module, example: Example) -> Traced:
    """The graph of a copy of the model in evaluation mode, with shapes and outputs.

    Raises ValueError for a model that does not run on the example, cannot be traced, or gives other outputs than its graph.
    """
    call = _Call(evaluated(model), example)
    try:
        with undisturbed(model, seed=0):
            expected = call(call.inputs())
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} does not run on the example ({one_line(error)}): pass inputs as the model takes them, on its device"
        ) from error
    try:
        with undisturbed(model, seed=1):  # another one, so that randomness shows
            graph = _Tracer().trace(call)
            shapes = _Shapes(call, graph)
            given = shapes.run(call.inputs())
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced by torch.fx ({one_line(error)}): expected a forward without branches or loops on "
            "tensor values; take the parts that can be traced one by one"
        ) from error
    if trouble := difference(_pytree.tree_leaves(expected), _pytree.tree_leaves(given)):
        raise ValueError(
            f"{type(model).__name__}: expected a graph that gives the model's outputs on the example, but {trouble}: write a forward "
            "without randomness or memory in evaluation mode"
        )
    return Traced(graph, call, shapes.noted, expected, frozenset(shapes.tensors))


def training_graph(traced: Traced) -> fx.Graph:
    """The graph of a traced model in training mode, which is not run. Raises ValueError where it cannot be traced."""
    for module in traced.root.modules():
        module.training = True
    try:
        with undisturbed(traced.root, seed=0):
            return _Tracer().trace(traced.root)
    except Exception as error:
        raise ValueError(
            f"{type(traced.root.model).__name__} cannot be traced by torch.fx in training mode ({one_line(error)}): expected a forward "
            "without branches or loops on tensor values"
        ) from error
    finally:
        for module in traced.root.modules():
            module.training = False


def noted_on(traced: Traced, x: Tensor) -> dict[fx.Node, Any]:
    """What each node gives on another input of a model with one: a tensor's shape, or the value. Raises ValueError."""
    try:
        with undisturbed(traced.root, seed=0):
            shapes = _Shapes(traced.root, traced.graph)
            shapes.run([x.clone()])
    except Exception as error:
        raise ValueError(
            f"the traced model does not run on inputs of shape {tuple(x.shape)} ({one_line(error)}): expected a forward that takes "
            "batches of any size"
        ) from error
    return shapes.noted


def difference(one: Any, two: Any) -> str | None:
    """Where two outputs of a model differ by more than rounding, None where they agree.

    Tensors may be nested in tuples, lists and dicts. Each may differ by 4096 units in the last place of its type, relative to its
    greatest value, 5 % at most: fp32 2⁻¹¹, fp64 2⁻⁴⁰. Rounding takes far less of it; a channel that mattered takes far more.
    """
    left, spec = _pytree.tree_flatten(one)
    right, other = _pytree.tree_flatten(two)
    if spec != other:
        return "they differ in structure"
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            if isinstance(a, Tensor) or isinstance(b, Tensor) or a != b:
                return f"output {i} is {type(b).__name__} where {type(a).__name__} was expected"
            continue
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"output {i} is {tuple(b.shape)} {b.dtype} where {tuple(a.shape)} {a.dtype} was expected"
        if not a.is_floating_point():
            if not torch.equal(a, b):
                return f"output {i} differs"
            continue
        finite = a[a.isfinite()].abs()
        greatest = float(finite.max()) if finite.numel() else 0.0
        allowed = min(SLACK * torch.finfo(a.dtype).eps, COARSEST) * greatest
        a, b = a.to("cpu", torch.float64), b.to("cpu", torch.float64)
        if not torch.allclose(a, b, rtol=0.0, atol=allowed, equal_nan=True):
            gap = float((a - b).abs().nan_to_num(torch.inf).max())
            return f"output {i} differs by {gap:.3g} where values reach {greatest:.3g}"
    return None
