"""Layers without weights as operations."""

from __future__ import annotations

from collections.abc import Mapping

from quorate.runtime.sparse.kernels.merging import Merging
from quorate.runtime.sparse.kernels.operation import Operation
from quorate.runtime.sparse.kernels.planes import Planes
from quorate.runtime.sparse.kernels.pooling import Averaging, Flattening, Pooling
from quorate.runtime.sparse.machine.host import Host
from quorate.runtime.sparse.network import Flatten, Mean, Merge, Pool


def other(layer: Pool | Mean | Flatten | Merge, planes: Mapping[str, Planes], host: Host) -> Operation:
    """The operation of a layer on its planes."""
    source, target = planes[layer.source], planes[layer.target]
    if isinstance(layer, Pool):
        return Pooling(layer, source, target, host)
    if isinstance(layer, Mean):
        return Averaging(layer, source, target, host)
    if isinstance(layer, Flatten):
        return Flattening(layer, source, target, host)
    add = layer.epilogue.add
    return Merging(layer, source, None if add is None else planes[add], target, host)
