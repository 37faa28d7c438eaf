"""Which channels go: a set of atoms goes if no layer that reads one of its channels loses anything.

A reader loses nothing by a column that

    unread      has only zeros in the rows that stay
    0           always meets the value 0
    constant    always meets the value v ≠ 0: the reader's bias takes its share over, b += Σ_k W[:, c, k] · v, where no zeros are padded;
                with padding the share is smaller at the border, so that the column of another constant of value u, which stays, takes it
                over exactly, W[:, c′] += W[:, c] · v / u

Rows that go leave columns unread, so this is repeated until nothing changes; what went never comes back. Of the channels that could go a
layer keeps those it needs for two reasons: one constant for each padded reader (of at least half the greatest |v| that it takes
over, lest rounding be magnified), and one channel of every layer, which may be all zeros.
"""

from __future__ import annotations

import numpy as np

from quorate.graphs.flow import Flow, Layer
from quorate.graphs.narrowing import Kept


class _Going:
    """The atoms that go, by representative, and what that means for each layer."""

    def __init__(self, flow: Flow) -> None:
        self.layers, self.roots = flow.layers, flow.atoms.roots()
        self.kept = np.array(flow.atoms.kept, dtype=bool)
        self.gone = np.zeros(len(self.roots), dtype=bool)

    def alive(self, atoms: np.ndarray) -> np.ndarray:
        """Which of a tensor's channels stay."""
        alive: np.ndarray = ~self.gone[self.roots[atoms]]
        return alive

    def read(self, layer: Layer) -> np.ndarray:
        """Which columns of a dense layer are not 0 in all rows that stay."""
        assert layer.reads is not None
        read: np.ndarray = layer.reads[self.alive(layer.outputs.atoms)].any(0)
        return read

    def constants(self, layer: Layer, going: np.ndarray) -> np.ndarray:
        """Which columns of a dense layer go with a value other than 0 that is read. `going`: by atom."""
        assert layer.inputs is not None
        values = layer.inputs.values
        found: np.ndarray = going[self.roots[layer.inputs.atoms]] & self.read(layer) & ~np.isnan(values) & (values != 0)
        return found

    def advance(self) -> bool:
        """Let go what can; whether that was anything."""
        may = ~self.kept
        for layer in self.layers:
            if layer.dense and layer.inputs is not None:
                blocking = self.read(layer) & np.isnan(layer.inputs.values)
                may[self.roots[layer.inputs.atoms[blocking]]] = False
        may |= self.gone
        for layer in self.layers:
            if layer.dense and layer.padded and layer.inputs is not None:
                self._withhold_carrier(layer, may)
        for layer in self.layers:
            roots = self.roots[layer.outputs.atoms]
            if layer.dense and may[roots].all():
                may[roots[~self.gone[roots]][0]] = False
        may = may[self.roots]  # atoms that represent no set follow the one that does
        grown = bool((may & ~self.gone).any())
        self.gone = may
        return grown

    def _withhold_carrier(self, layer: Layer, may: np.ndarray) -> None:
        """Keep a constant that can take over the others that go, unless there is one."""
        assert layer.inputs is not None
        going = self.constants(layer, may)
        if not going.any():
            return
        roots, strength = self.roots[layer.inputs.atoms], np.nan_to_num(np.abs(layer.inputs.values))
        least = strength[going].max() / 2
        if not (strength[~may[roots]] >= least).any():
            new = np.where(may[roots] & ~self.gone[roots], strength, 0.0)
            may[roots[new.argmax()]] = False


def _indices(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(np.flatnonzero(mask).tolist())


def _kept(layer: Layer, going: _Going) -> Kept:
    """What stays of one layer."""
    outputs = going.alive(layer.outputs.atoms)
    if not layer.dense:
        assert layer.inputs is not None
        inputs = going.alive(layer.inputs.atoms)
        return Kept(_indices(inputs), _indices(outputs), (len(inputs), len(outputs)), {})
    assert layer.reads is not None
    columns = layer.reads.shape[1]
    if layer.inputs is None:
        return Kept(tuple(range(columns)), _indices(outputs), (columns, len(outputs)), {})
    inputs, values = going.alive(layer.inputs.atoms), layer.inputs.values
    constants = {c: float(values[c]) for c in _indices(going.constants(layer, going.gone))}
    carrier = None
    if constants and layer.padded:
        strongest = int(np.where(inputs, np.nan_to_num(np.abs(values)), 0.0).argmax())
        carrier = strongest, float(values[strongest])
    return Kept(_indices(inputs), _indices(outputs), (columns, len(outputs)), constants, carrier)


def choose(flow: Flow) -> dict[str, Kept]:
    """What stays of each layer that loses something, by name."""
    going = _Going(flow)
    while going.advance():
        pass
    plan = {layer.name: _kept(layer, going) for layer in flow.layers}
    return {name: kept for name, kept in plan.items() if (len(kept.inputs), len(kept.outputs)) != kept.before}
