"""A graph for both modes: what a model's forward does otherwise in training than in evaluation becomes a module that goes by its mode.

A traced graph has the constants of one mode: ``F.dropout(x, p, self.training)`` is frozen as ``F.dropout(x, p, False)``. The model is
followed in both modes; where the two graphs differ in the constants of a step alone, the step becomes a module,

    F.dropout (and its kin)     nn.Dropout (and its kin)
    any other function          ByMode: called with the one or the other constants

and where they differ in their steps (a branch on ``self.training``) the model is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from quorate.cost.counting import Example
from quorate.graphs.tracing import Traced, check, trace, training_graph

DROPOUT_MODULES: dict[Any, type[nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


class ByMode(nn.Module):
    """A function or method called as in evaluation, in training with other constants: by place in the arguments, or by name."""

    def __init__(self, target: Any, training: Mapping[int | str, Any]) -> None:
        super().__init__()
        self.target, self.constants = target, dict(training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives on these arguments."""
        if self.training:
            args = tuple(self.constants.get(place, arg) for place, arg in enumerate(args))
            kwargs |= {name: value for name, value in self.constants.items() if isinstance(name, str)}
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        return self.target(*args, **kwargs)

    def extra_repr(self) -> str:
        return f"{getattr(self.target, '__name__', self.target)}, in training {self.constants}"


def _differences(node: fx.Node, other: fx.Node) -> dict[int | str, Any] | None:
    """The constants of a step that `other`, the same step in training, has instead. None if it is another step."""
    if node.op != other.op or node.target != other.target or len(node.args) != len(other.args):
        return None
    if node.kwargs.keys() != other.kwargs.keys():
        return None
    found: dict[int | str, Any] = {}
    places: list[int | str] = [*range(len(node.args)), *node.kwargs]
    for place in places:
        value, replaced = (n.args[place] if isinstance(place, int) else n.kwargs[place] for n in (node, other))
        if repr(value) == repr(replaced):  # nodes by their names
            continue
        if isinstance(value, (fx.Node, tuple, list, dict)) or node.op not in ("call_function", "call_method"):
            return None
        found[place] = replaced
    return found


def in_both_modes(model: nn.Module, example: Example) -> Traced:
    """The traced graph of a model whose modules follow the mode. The model is left as it is.

    Raises:
        ValueError: no eager module, one that cannot be traced, or whose forward takes other steps in training than in evaluation.
    """
    check(model, example)
    traced = trace(model, example)
    nodes, others = list(traced.graph.nodes), list(training_graph(traced).nodes)
    for place, (node, other) in enumerate(zip(nodes, others, strict=False)):
        differences = _differences(node, other)
        if differences is None:
            _refuse(model, other)
        if differences:
            _follow_mode_(traced, node, differences, f"mode{place}")
    if len(nodes) != len(others):
        _refuse(model, max(nodes, others, key=len)[min(len(nodes), len(others))])
    return traced


def _refuse(model: nn.Module, node: fx.Node) -> None:
    raise ValueError(
        f"{type(model).__name__}: expected a forward that takes the same steps in training and in evaluation, but the two part at "
        f"{node.name!r}; write what is for training only as a module (nn.Dropout) or turn it off (stochastic depth 0)"
    )


def _follow_mode_(traced: Traced, node: fx.Node, differences: dict[int | str, Any], name: str) -> None:
    """Make a functional step a module that goes by its mode."""
    kind = DROPOUT_MODULES.get(node.target)
    if kind is not None and set(differences) <= {2, "training"}:
        p = node.args[1] if len(node.args) > 1 else node.kwargs.get("p", 0.5)
        inplace = node.args[3] if len(node.args) > 3 else node.kwargs.get("inplace", False)
        module: nn.Module = kind(p, inplace=bool(inplace))
        source = node.args[0] if node.args else node.kwargs["input"]
        node.args, node.kwargs = (source,), {}
    else:
        module = ByMode(node.target, differences)
    module.training = False
    traced.root.add_module(name, module)
    node.op, node.target = "call_module", name
