"""Layers absorb what follows them: normalisation into weights, residual sums and activations into epilogues.

    Conv, Linear → scale · x + shift                        weight · scale, bias · scale + shift      where nobody else reads the sum
                 → + another array                          epilogue.add                              where nobody else reads the sum
                 → scale · x + shift, activation            epilogue.scale, shift, activation         others read it as epilogue.raw
    Merge        → scale · x + shift, activation            the same                                  where nobody else reads it

In float64, rounded to float32 once. What is 0 in a weight stays 0. Of two convolutions whose results are added, the
later one adds, since its sum is still in registers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from quorate.runtime.sparse.graphs.steps import Array, Item, Steps, fits
from quorate.runtime.sparse.network import Conv, Epilogue, Layer, Linear, Merge, reads

Summing = Conv | Linear | Merge
MOST_VISITS = 2_000_000
"""Nodes that are looked at to find what foreign ones read, all together: a chain of tables could make it the square of a graph's."""


def fused(steps: Steps) -> list[Item]:
    """The items that are left, each at the place of the last one that it needs."""
    return _Fusion(steps).items()


def read_by(steps: Steps, item: Item) -> list[str]:
    """The arrays that an item reads, without constants; of foreign nodes also what is needed for sizes that they read."""
    if item.layer is not None:
        return list(dict.fromkeys(reads(item.layer)))
    key = tuple(item.nodes)
    if key not in steps.needs:
        nodes = with_fixed(steps, item.nodes)
        made = {name for number in nodes for name in steps.graph.nodes[number].writes}
        found = (steps.root(name) for number in nodes for name in steps.graph.nodes[number].reads if name not in made)
        steps.needs[key] = [name for name in dict.fromkeys(found) if not _held(steps, name) and name not in made]
    return steps.needs[key]


def with_fixed(steps: Steps, nodes: Collection[int]) -> list[int]:
    """Nodes and those that make the sizes and tables that they read, in order. ValueError where that takes too long."""
    graph, found, left = steps.graph, set(nodes), list(nodes)
    while left:
        for name in graph.nodes[left.pop()].reads:
            number = steps.makers.get(name)
            if number is not None and number not in found and not _held(steps, name):
                found.add(number)
                left.append(number)
    steps.visits += len(found)
    if steps.visits > MOST_VISITS:
        raise ValueError("its nodes read too many sizes and tables that other nodes make: run the program in ONNX Runtime alone")
    return sorted(found)


def _held(steps: Steps, name: str) -> bool:
    return name in steps.graph.constants or name in steps.graph.tensors


class _Fusion:
    """Attributes: readers: {array: the items that read it}; kept: arrays that are outputs; gone: absorbed items."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.kept = {steps.root(name) for name in steps.graph.outputs}
        self.readers: dict[str, dict[int, Item]] = {}
        self.makers: dict[str, Item] = {}
        self.gone: set[int] = set()
        for item in steps.items:
            for name in read_by(steps, item):
                self.readers.setdefault(name, {})[id(item)] = item
            if item.layer is not None and item.layer.target is not None:  # type: ignore[union-attr]
                self.makers[item.layer.target] = item  # type: ignore[union-attr]

    def items(self) -> list[Item]:
        for item in self.steps.items:
            if id(item) not in self.gone and isinstance(item.layer, Conv | Linear | Merge):
                while self._absorb(item, item.layer):
                    pass
        left = [item for item in self.steps.items if id(item) not in self.gone]
        for item in left:
            if isinstance(item.layer, Conv | Linear | Merge):
                item.layer = _rounded(item.layer, item.gain)
        return sorted(left, key=lambda item: item.place)

    def _only(self, name: str) -> Item | None:
        readers = self.readers.get(name, {})
        return next(iter(readers.values())) if len(readers) == 1 and name not in self.kept else None

    def _absorb(self, item: Item, layer: Summing) -> bool:
        """One more item, if the layer can take it."""
        ours, target = layer.epilogue, layer.target
        if ours.activation != "none" or target is None:
            return False
        only = self._only(target)
        if only is None:
            return self._branch(item, layer, target)
        if not isinstance(only.layer, Merge):
            return False
        theirs = only.layer.epilogue
        if theirs.add is not None:
            other = theirs.add if only.layer.source == target else only.layer.source
            if isinstance(layer, Merge) or ours.add or ours.raw or ours.scale is not None or self._later(other, only, item):
                return False
            self._take(item, only, replace(layer, epilogue=replace(ours, add=other)))
            item.place = only.place
        elif theirs.scale is None:
            self._take(item, only, replace(layer, epilogue=replace(ours, activation=theirs.activation)))
        elif isinstance(layer, Merge) or ours.add or ours.raw or ours.scale is not None:
            both = _scaled(ours, theirs)
            if not _finite(both):
                return False
            self._take(item, only, replace(layer, epilogue=both))
        else:
            assert theirs.scale is not None
            assert theirs.shift is not None
            gain = theirs.scale if item.gain is None else item.gain * theirs.scale
            bias = layer.bias * theirs.scale + theirs.shift
            if not (fits(bias) and fits(gain * max(1.0, float(layer.weight.max()), -float(layer.weight.min())))):
                return False
            item.gain = gain
            self._take(item, only, replace(layer, bias=bias))
        return True

    def _branch(self, item: Item, layer: Summing, target: str) -> bool:
        """Of several that read the sum, the first that scales or activates it; the others read it as it is."""
        if isinstance(layer, Merge) or layer.epilogue.raw is not None or layer.epilogue.scale is not None:
            return False
        for each in self.readers.get(target, {}).values():
            if isinstance(each.layer, Merge) and each.layer.epilogue.add is None:
                theirs = each.layer.epilogue
                ours = replace(layer.epilogue, raw=target, activation=theirs.activation)
                self._take(item, each, replace(layer, epilogue=_scaled(ours, theirs) if theirs.scale is not None else ours))
                return True
        return False

    def _later(self, other: str, sum_: Item, item: Item) -> bool:
        """Whether the other array of a sum is of a later convolution or matrix, which can add as well."""
        reader = sum_
        while self._only(other) is reader and (maker := self.makers.get(other)) is not None:
            if isinstance(maker.layer, Conv | Linear):
                ours = maker.layer.epilogue
                return maker.place > item.place and ours.activation == "none" and ours.add is None and ours.scale is None
            if not isinstance(maker.layer, Merge) or maker.layer.epilogue.scale is None:
                return False
            other, reader = maker.layer.source, maker
        return False

    def _take(self, item: Item, taken: Item, layer: Summing) -> None:
        """The layer instead of both; its target is that of what was taken."""
        assert isinstance(taken.layer, Merge)
        layer = replace(layer, target=taken.layer.target)
        item.layer, item.nodes = layer, item.nodes + taken.nodes
        self.gone.add(id(taken))
        self.makers[taken.layer.target] = item
        for name in set(reads(taken.layer)):
            del self.readers[name][id(taken)]
        for name in set(reads(layer)):
            self.readers.setdefault(name, {})[id(item)] = item


def _scaled(ours: Epilogue, theirs: Epilogue) -> Epilogue:
    assert theirs.scale is not None
    assert theirs.shift is not None
    if ours.scale is None or ours.shift is None:
        return replace(ours, scale=theirs.scale, shift=theirs.shift)
    return replace(ours, scale=ours.scale * theirs.scale, shift=ours.shift * theirs.scale + theirs.shift)


def _finite(epilogue: Epilogue) -> bool:
    return all(fits(each) for each in (epilogue.scale, epilogue.shift) if each is not None)


def _rounded(layer: Summing, gain: Array | None) -> Layer:
    """In float32."""
    with np.errstate(over="ignore", under="ignore"):
        ours = layer.epilogue
        if ours.scale is not None and ours.shift is not None:
            ours = replace(ours, scale=ours.scale.astype(np.float32), shift=ours.shift.astype(np.float32))
        if isinstance(layer, Merge):
            return replace(layer, epilogue=ours)
        weight: Array = layer.weight if gain is None else layer.weight * gain.reshape(-1, *(1,) * (layer.weight.ndim - 1))
        weight = np.ascontiguousarray(weight, np.float32)
        return replace(layer, weight=weight, bias=layer.bias.astype(np.float32), epilogue=ours)


def needed(steps: Steps, items: Sequence[Item]) -> list[Item]:
    """Without the items of which nothing is read, in the end, by an output."""
    wanted = {steps.root(name) for name in steps.graph.outputs}
    found = []
    for item in reversed(items):
        if wanted & set(written_by(steps, item)):
            found.append(item)
            wanted |= set(read_by(steps, item))
    return found[::-1]


def written_by(steps: Steps, item: Item) -> list[str]:
    """The arrays that an item writes."""
    if item.layer is None:
        return [name for number in item.nodes for name in steps.graph.nodes[number].writes]
    epilogue: Epilogue | None = getattr(item.layer, "epilogue", None)
    return [name for name in (item.layer.target, epilogue and epilogue.raw) if name]  # type: ignore[union-attr]
