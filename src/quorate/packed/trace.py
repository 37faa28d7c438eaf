"""A model's forward as a graph of module and function calls (torch.fx).

A copy of the model is followed twice, in training and in evaluation mode: a difference between the two would be frozen into the
packed network, so only dropout functions, which become modules, may differ. A module without parameters on the raw
input (normalisation) stays one step, whatever is inside it; every other module that is not PyTorch's own is stepped into.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, fx, nn

from quorate.packed.inplace import Changing, read_results_
from quorate.packed.layers.arrangement import PackedLayer
from quorate.packed.layers.depth import StochasticDepth

WAY_OUT = "or keep whole models side by side with quorate.DeepEnsemble"
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
DROPOUTS: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout2d: nn.Dropout2d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class Untraceable(ValueError):
    """A forward that torch.fx cannot follow."""


@dataclass(frozen=True)
class Traced:
    """A graph and the modules (of a private copy of the model) that it calls."""

    graph: fx.Graph
    root: nn.Module

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a call_module node calls."""
        return self.root.get_submodule(str(node.target))


def inside(node: fx.Node) -> bool:
    """Whether a get_attr node names a tensor of a module that the graph also calls."""
    owner = str(node.target).rpartition(".")[0] + "."
    return any(n.op == "call_module" and owner.startswith(f"{n.target}.") for n in node.graph.nodes)


def where(node: fx.Node) -> str:
    """The step that a node stands for, and the module that it lies in, for messages."""
    if node.op == "call_module":
        return f"module {node.target!r}"
    stack = list(node.meta.get("nn_module_stack", {}).values())
    return f"step {node.name!r}" + (f" in module {stack[-1][0]!r}" if stack else "")


def is_torch(module: nn.Module) -> bool:
    """Whether this is one of PyTorch's own layers."""
    return type(module).__module__.startswith("torch.nn.modules")


class _Tracer(fx.Tracer):
    def __init__(self, whole: Collection[str]) -> None:
        super().__init__()
        self.learned: set[fx.Node] = set()  # nodes behind at least one parameter
        self.whole = whole

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return Changing(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if isinstance(attr_val, Tensor) and not isinstance(attr_val, nn.Parameter):
            for name, module in self.root.named_modules():
                if is_torch(module) and any(value is attr_val for value in module._buffers.values()):  # a norm's statistics
                    return self.create_proxy("get_attr", f"{name}.{attr}", (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = module_qualified_name in self.whole or isinstance(m, PackedLayer | StochasticDepth)
        return kept or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inputs: list[fx.Node] = []
        fx.node.map_aggregate((args, kwargs), lambda a: inputs.append(a.node) if isinstance(a, fx.Proxy) else None)
        if not self.learned.intersection(inputs) and next(m.parameters(), None) is None:
            return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
        return super().call_module(m, forward, args, kwargs)

    def create_node(self, kind: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, target, *args, **kwargs)
        if (
            (kind == "call_module" and next(self.root.get_submodule(target).parameters(), None) is not None)
            or (kind == "get_attr" and target in dict(self.root.named_parameters(remove_duplicate=False)))
            or self.learned.intersection(node.all_input_nodes)
        ):
            self.learned.add(node)
        return node


def _defaults(model: nn.Module) -> dict[str, Any]:
    """The arguments of forward that have a default, which they keep."""
    named = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in named if p.default is not p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _follow(model: nn.Module, training: bool, whole: Collection[str]) -> Traced:
    """The graph of a copy of `model` in this mode."""
    root = copy.deepcopy(model).train(training)
    before = {name: (id(buffer), buffer._version) for name, buffer in root.named_buffers()}
    try:
        graph = _Tracer(whole).trace(root, concrete_args=_defaults(root))
        for name, buffer in root.named_buffers():
            if before.get(name) != (id(buffer), buffer._version):
                raise ValueError(f"forward changes buffer {name!r}, and would do so no more")
    except Exception as error:
        reason = " ".join(str(error).split())
        raise Untraceable(
            f"{type(model).__name__} cannot be traced by torch.fx ({reason}): expected a forward(x) without branches or "
            f"loops on tensor values; move checks into __init__ and write the steps out, {WAY_OUT}"
        ) from error
    _drop_defaults_(graph)
    return Traced(graph, root)


def _drop_defaults_(graph: fx.Graph) -> None:
    """Take away the arguments that keep their defaults, with the steps that only compare them with these."""
    for node in [node for node in graph.nodes if node.op == "placeholder" and node.args]:
        steps, todo = [node], list(node.users)
        while todo:
            step = todo.pop()
            steps.append(step)
            todo += step.users
        if all("assert" in str(step.target) or step.target is operator.eq for step in steps[1:]):
            for step in reversed(steps):
                graph.erase_node(step)


def difference(left: fx.Graph, right: fx.Graph) -> str | None:
    """The first step in which two graphs differ, None where they agree."""
    for a, b in zip(left.nodes, right.nodes, strict=False):  # the shorter one's output meets another step
        one, two = ((n.op, n.target, fx.node.map_arg((n.args, n.kwargs), lambda i: i.name)) for n in (a, b))
        if one != two:
            return where(a)
    return None


def _dropouts_to_modules_(training: Traced, evaluation: Traced) -> None:
    """Replace dropout functions that follow self.training by modules, in both graphs."""
    for a, b in list(zip(training.graph.nodes, evaluation.graph.nodes, strict=False)):
        kind = DROPOUTS.get(a.target) if a.op == "call_function" and a.target is b.target else None
        if kind is None or (a.kwargs.get("training"), b.kwargs.get("training")) != (True, False):
            continue
        for traced, node in ((training, a), (evaluation, b)):
            name = f"functional_{a.name}"
            traced.root.add_module(name, kind(node.kwargs["p"], bool(node.kwargs["inplace"])))
            node.op, node.target, node.kwargs = "call_module", name, {}


def _check_use(traced: Traced) -> None:
    """ValueError unless forward uses every parameter, and every module with a state, exactly once."""
    users: dict[int, str] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        module = traced.module(node)
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if id(tensor) in users:
                raise ValueError(
                    f"module {node.target!r}: expected its {name} to be used once, but module {users[id(tensor)]!r} "
                    f"uses it too; give each place a module of its own, {WAY_OUT}"
                )
        users |= {id(t): str(node.target) for t in (*module.parameters(), *module.buffers())}
    read = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    for name, parameter in traced.root.named_parameters():
        if id(parameter) not in users and name not in read:
            raise ValueError(
                f"parameter {name!r}: expected forward to use it, but it does not, and packing would lose it; "
                "delete it from the model first"
            )


def check_hooks(model: nn.Module) -> None:
    """ValueError if any module has a hook, which packing would lose."""
    for name, module in model.named_modules():
        if any(getattr(module, hooks) for hooks in HOOKS):
            raise ValueError(
                f"module {name!r} ({type(module).__name__}): expected no hooks (weight_norm and spectral_norm are hooks "
                "too), because packing would lose them; remove them first"
            )


def trace(model: nn.Module, whole: Collection[str] = ()) -> Traced:
    """The graph of `model`, with a copy of its modules in the modes given; the model is untouched.

    whole: names of modules that are not stepped into.

    Raises ValueError, naming the place, for a model that does not trace, has not exactly one input, has hooks, has
    parameters that forward does not use, uses in two places or shares, or that takes different steps in training and
    evaluation.
    """
    check_hooks(model)
    given = dict(model.named_modules())
    traced, evaluation = _follow(model, True, whole), _follow(model, False, whole)
    _dropouts_to_modules_(traced, evaluation)
    if place := difference(traced.graph, evaluation.graph):
        raise ValueError(
            f"forward: expected the same steps in training and evaluation mode, but they differ at {place}; "
            f"use modules such as nn.Dropout in place of self.training, {WAY_OUT}"
        )
    inputs = [node.name for node in traced.graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1:
        raise ValueError(
            f"forward: expected one input, got {len(inputs)} ({', '.join(inputs)}); wrap the model in one with forward(x)"
        )
    for name, module in traced.root.named_modules():
        module.training = given[name].training if name in given else model.training
    _check_use(traced)
    if found := read_results_(traced.graph, traced.root):
        step, alias = found
        raise ValueError(
            f"{where(step)}: expected a step in place on a tensor that nothing reads later through another name, but {alias.name!r} "
            "shares its memory and is read later; write the step so that it gives a new tensor"
        )
    return traced
