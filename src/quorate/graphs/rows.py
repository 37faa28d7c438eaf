"""How a traced graph goes by the number of rows of its input: run with 2 rows and with 3, compared.

The number of rows may be asked of any tensor (``x.shape[0]``); it is the same everywhere, so that it ties no two places of a graph. What is
made of parameters and that number alone (a token expanded to all rows) does not depend on the input.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from quorate.graphs.tracing import Traced, noted_on


class Rows:
    """How a graph with one input goes by the number of rows.

    Attributes:
        source: the node that is the input.
        dependent: the nodes that depend on its values, itself included.
        numbers: the nodes that give the number of rows.
        silent: those, and the nodes that only they read.

    Raises:
        ValueError: a graph that does not run with 2 or 3 rows.
    """

    def __init__(self, traced: Traced, example: Tensor) -> None:
        self.traced = traced
        self.noted = [noted_on(traced, torch.cat([example[:1]] * rows)) for rows in (2, 3)]
        placeholder = next(iter(traced.graph.nodes))
        self.source = next(iter(placeholder.users))
        two, three = self.noted
        from_input = self._reached(set())
        self.numbers = {n for n in from_input if type(two[n]) is int and (two[n], three[n]) == (2, 3)}
        self.silent = set(self.numbers)
        for node in reversed(traced.graph.nodes):
            if node in from_input and node.users and node not in traced.tensors and self.silent.issuperset(node.users):
                self.silent.add(node)
        self.dependent = self._reached(self.silent)

    def _reached(self, silent: set[fx.Node]) -> set[fx.Node]:
        """What depends on the input other than through these nodes."""
        found = {self.source}
        for node in self.traced.graph.nodes:
            if node not in silent and any(n in found for n in node.all_input_nodes):
                found.add(node)
        return found

    def first(self, node: fx.Node) -> bool:
        """Whether a tensor has the rows on its first axis, and on no other."""
        two, three = (noted[node] for noted in self.noted)
        return node in self.traced.tensors and len(two) > 0 and (two[0], three[0]) == (2, 3) and two[1:] == three[1:]

    def vary(self, node: fx.Node) -> bool:
        """Whether what a node gives (its shape, or its value) goes by the number of rows."""
        two, three = (noted[node] for noted in self.noted)
        return bool(two != three)
