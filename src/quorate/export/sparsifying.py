"""A trained sparse network as a callable that skips its dead weights, without a bundle around it.

    module, its zeros are its sparsity → program (ONNX, shown to compute what PyTorch computes) → kernels, compared with PyTorch again
    ensemble of M tickets              → M of them in one call, whose work the threads share: (M, B, C)

    |found − eager| ≤ 10⁻⁴ + 10⁻⁴ · |eager|        on the example, rows one by one and side by side

Source of the members: Liu et al. 2022, "Deep Ensembling with No Overhead for either Training or Testing" (arXiv 2106.14568), §3.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quorate.ensemble.members import MemberStage
from quorate.ensemble.staging import stage_modules
from quorate.export.chain import MOST
from quorate.export.eager import answer, array_of, on_cpu, still, taking, tensor_of
from quorate.export.exporting import INPUT, MEMBERS, program
from quorate.runtime import engines
from quorate.runtime.engines import Engine
from quorate.runtime.loading import check_threads
from quorate.runtime.session import TYPES
from quorate.tickets.files import load_ticket
from quorate.tickets.ticket import Ticket, check_fits, state_of

if TYPE_CHECKING:
    from quorate.runtime.sparse.explaining import Explanation
    from quorate.runtime.sparse.tuning import Layout

TOLERANCE = 1e-4  # relative and absolute
TRIALS = 8
NAME = "network"


class Sparsified:
    """A callable network, or several in one call; made by :func:`sparsify`. Any number of threads may call it.

    Attributes:
        networks: what runs each one: :class:`quorate.runtime.sparse.sparse.SparseNetwork`, or a session of ONNX Runtime.
        engines: which of the two, and why.
    """

    def __init__(self, networks: Sequence[Any], engines: Sequence[Engine], row: tuple[int, ...] | None) -> None:
        self.networks, self.engines = tuple(networks), tuple(engines)
        self._row = row
        self._sparse = all(engine.name == "sparse" for engine in self.engines)
        port = self.networks[0].get_inputs()[0]
        self._shape = tuple(port.shape[1:])
        self._dtype = np.dtype(TYPES[port.type])

    def __call__(self, x: NDArray[Any] | Tensor) -> NDArray[Any]:
        """x (B, *shape), B ≥ 1, an array or a tensor on the CPU, which is not copied → what the module gives, or (M, B, C) of an ensemble.

        Raises:
            ValueError: another dtype or shape, no rows, or a tensor elsewhere.
        """
        given = self._checked(x)
        if self._sparse:
            from quorate.runtime.sparse.sparse import run_together

            found = [outputs[0] for outputs in run_together(self.networks, (MEMBERS,), {INPUT: given})]
        else:
            found = [network.run([MEMBERS], {INPUT: given})[0] for network in self.networks]
        if self._row is not None:
            return found[0].reshape(len(given), *self._row)
        return found[0] if len(found) == 1 else np.concatenate(found)

    def explain(self, layout: Layout = "latency") -> dict[str, Explanation]:
        """What each layer does and takes, measured now, by network; see :meth:`quorate.runtime.Runtime.explain`.

        Raises:
            ValueError: another layout, or no network that runs sparse; what stands against it is said.
        """
        from quorate.runtime.sparse.explaining import explain

        pairs = zip(self.engines, self.networks, strict=True)
        found = {engine.stage: network for engine, network in pairs if engine.name == "sparse"}
        if not found:
            raise ValueError(f"no network runs sparse: {'; '.join(f'{each.stage}: {each.why}' for each in self.engines)}")
        return {name: explain(network, layout) for name, network in found.items()}

    @property
    def bytes(self) -> int:
        """Of the weights of networks that run sparse, in all forms that are in use."""
        return sum(network.nbytes for engine, network in zip(self.engines, self.networks, strict=True) if engine.name == "sparse")

    def _checked(self, x: NDArray[Any] | Tensor) -> NDArray[Any]:
        if isinstance(x, Tensor):
            if x.device.type != "cpu":
                raise ValueError(f"x is on {x.device}: expected a tensor on the CPU, x.cpu()")
            x = x.detach()
        array = np.asarray(x)
        if array.dtype != self._dtype or array.shape[1:] != self._shape or not array.ndim or not len(array):
            raise ValueError(
                f"x is {array.dtype} {array.shape}: expected {self._dtype} {('B', *self._shape)} with at least one row; convert or "
                "reshape it"
            )
        return array


def sparsify(
    model: nn.Module | tuple[nn.Module, Ticket | str | Path],
    example: Any,
    *,
    threads: int | None = None,
    tune: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Sparsified:
    """A trained sparse network, or an ensemble of tickets, as a callable that skips dead weights; the modules stay as they are.

    Layers without a kernel run in ONNX Runtime in between, networks that would not gain run in it as a whole: ``engines`` says so.

    Args:
        model: a module x → (B, …) floats, whose zeros are its sparsity; an ensemble whose stages look at x alone, such as
            :class:`quorate.tickets.Tickets`; or a module and the ticket that is put into a copy of it, read or as a file's path.
        example: raw inputs (B, *shape), B ≥ 1, an array or tensor, of which the first 8 rows are used.
        threads: that one call may use; None for one per core.
        tune: try several forms of each layer first, and dense ones, while nothing else runs; what is found is kept in the cache folder
            and used from then on. Without it, what was kept is used, else rules.
        progress: is told in a word or two what begins.

    Warns:
        RuntimeWarning: llvmlite is not installed (``quorate[sparse]``): all runs dense in ONNX Runtime.

    Raises:
        ValueError: no rows, a ticket of another network, an ensemble whose stages read each other, what can't be exported (as
            :func:`quorate.export.program`), kernels that compute something else, ``tune`` where nothing can be, threads out of range.
        OSError: the ticket can't be read, or the cache not be written when tuning.
    """
    threads, say = check_threads(threads), progress or (lambda _: None)
    if tune and (absent := engines.missing()):
        raise ValueError(f"tune=True: {absent}, or leave it out")
    x = _first(example)
    stages, row = _stages(_with_ticket(model), x)
    networks, found = [], []
    for given in stages:
        stage: Any = on_cpu(given)
        say(f"exporting {stage.name}")
        made = program(stage, x)
        if made.ports.input is None or made.ports.span is not None:
            raise ValueError(
                f"{stage.name} looks at {'a part' if made.ports.span else 'nothing'} of x: expected a network of all of it"
            )
        network, engine = _opened(stage.name, made.onnx, threads, tune, say)
        say(f"comparing {stage.name}")
        _check_equal(stage, network, x)
        networks.append(network)
        found.append(engine)
    if any(engine.why == engines.NOT_INSTALLED for engine in found):
        warnings.warn(f"it runs dense in ONNX Runtime: {engines.NOT_INSTALLED}", RuntimeWarning, stacklevel=2)
    return Sparsified(networks, found, row)


class _Flat(nn.Module):
    """A module's output (B, …) as (B, F)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(x)
        return output[:, None] if output.ndim == 1 else output.flatten(1) if output.ndim > 2 else output


def _with_ticket(model: Any) -> nn.Module:
    """The module, or a copy of it that holds the ticket's tensors."""
    if not isinstance(model, tuple):
        if isinstance(model, Ticket):
            raise ValueError("a ticket alone has no layers: expected (module, ticket), with the module that it was grown in")
        if not isinstance(model, nn.Module):
            raise ValueError(f"model is {type(model).__name__}: expected a module, an ensemble, or (module, ticket)")
        return model
    if len(model) != 2 or not isinstance(model[0], nn.Module) or not isinstance(model[1], Ticket | str | Path):
        raise ValueError(
            f"model is a tuple of {[type(part).__name__ for part in model]}: expected (module, ticket or its file's path)"
        )
    module, ticket = copy.deepcopy(model[0]), model[1]
    where = "the ticket" if isinstance(ticket, Ticket) else str(ticket)
    ticket = ticket if isinstance(ticket, Ticket) else load_ticket(ticket)
    held, _ = state_of(module)
    check_fits(ticket.tensors, held, where)
    with torch.no_grad():
        for name, tensor in held.items():
            tensor.copy_(ticket.tensors[name])
    return module


def _stages(model: nn.Module, x: NDArray[Any]) -> tuple[list[Any], tuple[int, ...] | None]:
    """The members by the contract of stages, and the shape of a row of a plain module's output; None of an ensemble."""
    own = getattr(model, "stages", None)
    if callable(own) and not isinstance(own, nn.Module):
        stages: list[Any] = list(stage_modules(model))
        if bound := [stage for stage in stages if stage.reads]:
            raise ValueError(
                f"stage {str(bound[0].name)!r} reads {', '.join(bound[0].reads)} of an earlier one: expected stages that look at x alone; "
                "save a bundle (quorate.save_bundle), whose stages run sparse too"
            )
        return stages, None
    return [MemberStage(NAME, _Flat(model))], _row_of(MemberStage(NAME, model), x)


def _first(example: Any) -> NDArray[Any]:
    x = array_of("the example", example)
    if x.ndim < 1 or not len(x):
        raise ValueError(f"the example has shape {x.shape}: expected some rows of raw input, (B, *shape)")
    return x[:MOST]


def _row_of(stage: MemberStage, x: NDArray[Any]) -> tuple[int, ...]:
    """The shape of a row of what a module gives. Raises ValueError."""
    module: Any = on_cpu(stage)
    with still(module), taking(stage, x):
        output = module.module(tensor_of(x))
    if not isinstance(output, Tensor) or not output.ndim or output.shape[0] != len(x) or not output.is_floating_point():
        got = f"{output.dtype} {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"the module gives {got} for {len(x)} rows: expected floats (B, …), one tensor")
    return tuple(output.shape[1:])


def _opened(name: str, onnx: bytes, threads: int | None, tune: bool, say: Callable[[str], None]) -> tuple[Any, Engine]:
    """What runs a program that holds all its weights."""
    why, tuning = engines.missing(), None
    if not why:
        from quorate.runtime import tunings
        from quorate.runtime.tuned import tuned

        used = threads or engines.cores()
        key = tunings.key_of(hashlib.sha256(onnx).hexdigest(), "", used)
        if tune:
            tunings.check_folder()
            absent, tuning = tuned(onnx, None, used, TRIALS, name, lambda text: say(f"tuning {name}: {text}"))
            if tuning is None:
                raise ValueError(f"tune=True: {name} has nothing to tune: {absent}")
            tunings.keep(key, tuning)
        else:
            tuning = tunings.kept(key)
    return engines.open_engine(name, onnx, None, name, why=why, threads=threads, tuning=tuning)


def _check_equal(stage: Any, network: Any, x: NDArray[Any]) -> None:
    """A ValueError unless it gives what PyTorch gives, for one row and for rows side by side."""
    lanes = network.host.lanes if hasattr(network, "host") else 1
    for rows in sorted({1, lanes, len(x)}):
        some = x[np.arange(rows) % len(x)]
        eager = answer(stage, some, {})[0]
        found = network.run([MEMBERS], {INPUT: some})[0]
        apart = np.abs(found.astype(np.float64) - eager)
        if found.shape != eager.shape or not (apart <= TOLERANCE + TOLERANCE * np.abs(eager)).all():
            raise ValueError(
                f"{stage.name}: for {rows} row{'s' * (rows > 1)} kernels give values that differ from PyTorch's by up to "
                f"{apart.max():.3g}, expected at most {TOLERANCE:g} + {TOLERANCE:g} · |value|: its sums may be too large for float32, "
                "scale its weights or inputs"
            )
