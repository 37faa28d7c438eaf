"""Steps that change a tensor in place, in a graph whose tensors may come to lie in several copies.

x.add_(1) changes x and whatever shares its memory. Packed, x may be held twice, by channels and by rows, and only one of the two
would change. So what reads x afterwards is made to read the step's result, which is the same; what reads x afterwards through a view
(another slice, a reshape of it made before) has no such result, and is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx, nn

from quorate.packed.layers.depth import StochasticDepth

OPERATORS = tuple(getattr(operator, f"i{name}") for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod"))
IN_PLACE = "in_place"  # in a node's meta
SIZES = ("size", "dim", "ndimension", "numel", "len")
VIEWS = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "ravel", "permute", "transpose", "swapaxes", "movedim"),
    *("moveaxis", "t", "expand", "expand_as", "view_as", "narrow", "select", "diagonal", "unfold", "getitem", "getattr"),
    *("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "detach", "real", "nan_to_num"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),  # outside of training
    *("chunk", "split", "unbind", "tensor_split"),
}
SAME = (nn.Identity, nn.Flatten, nn.Unflatten, StochasticDepth, nn.modules.dropout._DropoutNd)


def _name(node: fx.Node) -> str:
    return node.target if isinstance(node.target, str) else str(getattr(node.target, "__name__", ""))


class Changing(fx.Proxy):
    """A traced value whose `x += y` is noted as a step that changes x, where fx alone takes it for x = x + y."""

    def _step(self, function: Callable[[Any, Any], Any], other: Any) -> Any:
        result = function(self, other)
        if isinstance(result, fx.Proxy) and not _number(self.node):
            result.node.meta[IN_PLACE] = True
        return result

    def __iadd__(self, other: Any) -> Any:
        return self._step(operator.add, other)

    def __isub__(self, other: Any) -> Any:
        return self._step(operator.sub, other)

    def __imul__(self, other: Any) -> Any:
        return self._step(operator.mul, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._step(operator.truediv, other)

    def __ipow__(self, other: Any) -> Any:
        return self._step(operator.pow, other)


def _number(node: fx.Node) -> bool:
    """Whether this is a size of a tensor, or was computed of such."""
    name, inputs = _name(node), node.all_input_nodes
    if name in SIZES or (name == "getattr" and node.args[1] in ("shape", "ndim")):
        return True
    return node.op == "call_function" and bool(inputs) and all(map(_number, inputs))


def changed(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The tensor that a step changes in place, None if it makes a new one."""
    if isinstance(out := node.kwargs.get("out"), fx.Node):
        return out
    if node.op == "call_module":
        inside = bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    else:
        name = _name(node)
        marked = name.endswith("_") and not name.endswith("__")
        marked = marked or node.meta.get(IN_PLACE, False)
        inside = node.op in ("call_function", "call_method") and (
            marked or node.target in OPERATORS or node.kwargs.get("inplace") is True
        )
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if inside and isinstance(source, fx.Node) else None


def _parent(node: fx.Node, root: nn.Module) -> fx.Node | None:
    """The tensor whose memory a step's result may share."""
    if (target := changed(node, root)) is not None:
        return target
    if node.op == "call_module":
        module = root.get_submodule(str(node.target))
        shares = isinstance(module, SAME) or not type(module).__module__.startswith(("torch.nn.", "quorate."))
    else:
        shares = node.op in ("call_function", "call_method") and _name(node) in VIEWS
    source = node.args[0] if node.args else node.kwargs.get("input")
    return source if shares and isinstance(source, fx.Node) else None


def _apart(one: fx.Node, other: fx.Node) -> bool:
    """Whether these are two different items of one chunk, or of a tensor: they share no memory."""
    return one.target is other.target is operator.getitem and isinstance(one.args[1], int) and one.args[1] != other.args[1]


def _aliases(target: fx.Node, step: fx.Node, root: nn.Module) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """What may share memory with the tensor that a step changes, beside itself and the step's result; each with what reads it."""
    seen, here = {target, step}, target
    todo = [user for user in target.users if _parent(user, root) is target]
    while (above := _parent(here, root)) is not None:
        readers = [user for user in above.users if user is not here and not _apart(user, here)]
        yield above, readers
        todo += [user for user in readers if _parent(user, root) is above]
        seen.add(above)
        here = above
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node, list(node.users)
            todo += [user for user in node.users if _parent(user, root) is node]


def read_results_(graph: fx.Graph, root: nn.Module) -> tuple[fx.Node, fx.Node] | None:
    """Make what reads a tensor after a step has changed it read the step's result.

    Returns the first step, and a tensor that shares memory with what it changes and is read later, if there is one.
    """
    order = {node: i for i, node in enumerate(graph.nodes)}
    for step in list(graph.nodes):
        target = changed(step, root)
        if target is None:
            continue
        for user in [user for user in target.users if order[user] > order[step]]:
            user.replace_input_with(target, step)
        for alias, readers in _aliases(target, step, root):
            if any(order[reader] > order[step] for reader in readers):
                return step, alias
    return None
