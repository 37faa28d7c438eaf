"""How each function and method acts on members' tensors; a step without a rule is refused by name.

No rule lets a value pass from one member to another: with the members in the batch, a step may do what it likes but mix, cut or
reorder rows; with the members in the channels, only what leaves every channel where it is.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from quorate.packed.flow import Flow, Group, Learned, Own, refuse, remedy
from quorate.packed.rules import dimensions, elementwise, joining, products, shapes
from quorate.packed.rules.elementwise import number_or_shared
from quorate.packed.rules.walking import Rule, Walk, name_of

ROOMS = (elementwise, dimensions, shapes, joining, products)
FUNCTIONS: dict[Any, Rule] = {target: rule for room in ROOMS for target, rule in room.FUNCTIONS.items()}
METHODS: dict[str, Rule] = {name: rule for room in ROOMS for name, rule in room.METHODS.items()}


def _of_members(flow: Flow) -> bool:
    return isinstance(flow, Own | Learned) or (isinstance(flow, Group) and any(_of_members(item) for item in flow.items))


def called(node: fx.Node, walk: Walk) -> Flow:
    """The flow out of a call_function or call_method; arguments become a member's. Raises ValueError without a rule."""
    table: dict[Any, Rule] = FUNCTIONS if node.op == "call_function" else METHODS
    rule = table.get(node.target)
    if rule is not None:
        return rule(node, walk)
    flows = [walk[i] for i in node.all_input_nodes]
    if any(_of_members(flow) for flow in flows):
        refuse(node, "a step that keeps members apart", name_of(node), remedy(name_of(node)))
    return number_or_shared(node, flows)


__all__ = ["FUNCTIONS", "METHODS", "called"]
