"""Which engine runs a stage: the kernels for its live weights alone, or ONNX Runtime, dense; and why.

    a ticket, fp32, any number of rows, on the CPU, llvmlite there     →  sparse, unless the graph has no layer that gains
    everything else                                                    →  dense

A tuning that was kept (:mod:`quorate.runtime.tunings`) and does not fit the program is as if it weren't there. Source of the members:
Liu et al. 2022 (arXiv 2106.14568), §3.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from numpy.typing import NDArray

from quorate._optional import one_line
from quorate.runtime.manifest import Stage
from quorate.runtime.session import CPU, open_session

if TYPE_CHECKING:
    from quorate.runtime.sparse.sparse import SparseNetwork
    from quorate.runtime.sparse.tuning import Tuning

Use = Literal["auto", "off"]
NOT_INSTALLED = "llvmlite is not installed: install quorate[sparse]"
NO_TICKET = "it has no ticket"
_NOTHING = "define void @run(ptr %args, i64 %part, i64 %parts) {\n  ret void\n}\n"


@dataclass(frozen=True)
class Engine:
    """What runs a stage.

    Attributes:
        stage: its name.
        name: "sparse", kernels that skip dead weights, or "dense", ONNX Runtime.
        why: of a dense one, what stands against kernels; of a sparse one, what its kernels were chosen by, and which rows run dense.
    """

    stage: str
    name: Literal["sparse", "dense"]
    why: str


def check_use(sparse: Use) -> None:
    """Raises ValueError."""
    if sparse not in ("auto", "off"):
        raise ValueError(f"sparse={sparse!r}: expected 'auto', tickets run sparse where that can be, or 'off'")


def cores() -> int:
    """How many threads this process may run at once."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return allowed or 1


def missing() -> str:
    """Why no stage can run sparse here; "" where they can. ValueError for a cache folder that can't be."""
    from quorate.runtime.sparse.machine.code import routine
    from quorate.runtime.sparse.machine.host import here

    try:
        routine(_NOTHING, here())
    except ImportError:
        return NOT_INSTALLED
    except (RuntimeError, OSError) as error:  # systems that let nobody make code, for one
        return f"llvmlite does not work here ({one_line(error)}): reinstall quorate[sparse]"
    return ""


def dense_because(stage: Stage, providers: Sequence[Any], sparse: Use) -> str:
    """Why a bundle's stage runs dense, as far as its manifest, the arguments and what is installed say; "" if nothing stands against."""
    ports = stage.ports
    if stage.ticket is None:
        return NO_TICKET
    if sparse == "off":
        return "sparse='off'"
    if ports.precision != "fp32":
        return f"its precision is {ports.precision}, kernels are of fp32"
    if ports.batch is not None:
        return f"it takes {ports.batch} rows at a time"
    if list(providers) != [CPU]:
        return f"providers are given, kernels are of the {CPU} without options"
    return missing()


def open_engine(
    stage: str,
    onnx: bytes,
    external: Mapping[str, NDArray[Any]] | None,
    where: str,
    *,
    why: str = "",
    providers: Sequence[Any] | None = None,
    threads: int | None = None,
    tuning: Tuning | None = None,
    rows: int = 1,
) -> tuple[Any, Engine]:
    """A stage's session: a :class:`quorate.runtime.sparse.sparse.SparseNetwork`, or one of ONNX Runtime.

    Args:
        stage: its name.
        onnx: the serialised graph, checked before.
        external: weights that it only declares.
        where: the program's name, for errors.
        why: why it has to run dense, as :func:`dense_because` says; "" where it need not.
        providers: of ONNX Runtime.
        threads: that one call may use; None for one per core.
        tuning: what was found out before, of this program.
        rows: that the first call will have: for these, kernels are made at once.

    Raises:
        BundleError: a graph that ONNX Runtime can't read or run here.
        ValueError: providers that can't be.
    """
    if not why:
        found = _sparse(onnx, external, where, threads or cores(), tuning, rows)
        if not isinstance(found, str):
            return found, Engine(stage, "sparse", _said(found))
        why = found
    session = open_session(onnx, where, providers=providers, threads=threads, external=external)
    return session, Engine(stage, "dense", why)


def _sparse(
    onnx: bytes, external: Mapping[str, NDArray[Any]] | None, where: str, threads: int, tuning: Tuning | None, rows: int
) -> SparseNetwork | str:
    """The network, or why there is none."""
    from quorate.runtime.sparse.sparse import SparseNetwork
    from quorate.runtime.sparse.tuning import LAYOUTS

    try:
        network = SparseNetwork(onnx, external, threads=threads, tuning=tuning, where=where)
        _check_choices(network)
        if len(network.reason) == len(LAYOUTS):
            return "; ".join(dict.fromkeys(network.reason.values()))
        network.prepare((rows,))
    except (ValueError, RuntimeError) as error:
        return one_line(error) if tuning is None else _sparse(onnx, external, where, threads, None, rows)
    return network


def _check_choices(network: SparseNetwork) -> None:
    """That every layer has a kernel for its geometry, and that those which were tuned have what was found. Raises ValueError."""
    from quorate.runtime.sparse.choices import candidates
    from quorate.runtime.sparse.kernels.convolution import Bound
    from quorate.runtime.sparse.tuning import LAYOUTS

    for layout in LAYOUTS:
        if layout in network.reason:
            continue
        lowered, tuned = network.lowered[layout], network.tuning.choices.get(layout, {})
        planes = lowered.planes
        for layer in lowered.network.layers:
            if not isinstance(layer, Bound):
                continue
            known = candidates(layer, network.weights[layer.name], planes, network.host)
            if layer.name in tuned:
                if tuned[layer.name] not in known:
                    raise ValueError(f"{layer.name} was tuned to {tuned[layer.name]}, which it has not: tune anew")
            elif next(known, None) is None:
                raise ValueError(f"{layer.name} has no kernel for its geometry")


def _said(network: SparseNetwork) -> str:
    threads = f"for {network.threads} thread{'s' * (network.threads > 1)}"
    by = f"tuned {threads}" if network.tuning.engine else f"chosen by rule, not tuned {threads}"
    whose = {"latency": "rows one by one", "throughput": f"groups of {network.host.lanes} rows"}
    large = network.tuning.dense_from
    batches = [] if large is None else [f"batches of {large} rows and more run dense"]
    return "; ".join([by, *batches, *(f"{whose[layout]} run dense: {reason}" for layout, reason in network.reason.items())])
