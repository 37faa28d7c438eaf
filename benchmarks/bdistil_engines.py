"""The two engines of bdistil_latency.py: a network, or the first stages of a distilled ensemble, as a call on one batch.

    eager          PyTorch without gradients
    onnxruntime    a graph per network and per stage, exported for this batch, whose carried activations are named inputs and outputs

Both keep the running mean of the logits, F_t = F_{t−1} + (f_t − F_{t−1}) / t. Every exported graph is checked against PyTorch.

Shapes: x (B, *shape) raw; a call gives (B, C) logits.
"""

from __future__ import annotations

import io
import logging
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from quorate.cost.operators import tensors

TOLERANCE = 1e-4
Call = Callable[[], Any]


def eager(network: nn.Module, x: Tensor) -> Call:
    """A network."""

    def call() -> Tensor:
        with torch.no_grad():
            found: Tensor = network(x)
        return found

    return call


def eager_stages(stages: Sequence[Any], x: Tensor) -> Call:
    """Stages one after the other, and the mean of their logits."""

    def call() -> Tensor:
        with torch.no_grad():
            carry: dict[str, Tensor] = {}
            mean = torch.zeros(())
            for t, stage in enumerate(stages, 1):
                members, written = stage(x, carry)
                carry = carried(stage, carry, written)
                mean = mean + (members[0] - mean) / t if t > 1 else members[0]
        return mean

    return call


def alone(stages: Sequence[Any], x: Tensor) -> Call:
    """The students' own work: no combination, nothing checked, no activation let go of before the end."""

    def call() -> None:
        with torch.no_grad():
            carry: dict[str, Tensor] = {}
            for stage in stages:
                carry |= stage.student(x, carry)[1]

    return call


def carried(stage: Any, carry: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What is carried on behind a stage."""
    return {name: kept for name, kept in {**carry, **written}.items() if name not in stage.drops}


# — ONNX Runtime —


class Flat(nn.Module):
    """A stage with the carry as arguments: (x, activations of ``reads`` in order) → (logits (B, C), activations of ``writes`` in order)."""

    def __init__(self, stage: Any) -> None:
        super().__init__()
        self.stage, self.reads, self.writes = stage, tuple(stage.reads), tuple(stage.writes)

    def forward(self, x: Tensor, *activations: Tensor) -> tuple[Tensor, ...]:
        """Raw x (B, *shape)."""
        members, written = self.stage(x, dict(zip(self.reads, activations, strict=True)))
        return (members[0], *(written[name] for name in self.writes))


def session_of(module: nn.Module, inputs: Mapping[str, Tensor], outputs: Sequence[str], threads: int) -> Callable[..., list[Any]]:
    """A module exported for these inputs, as a function of arrays by input name; every input and output has its name in the graph.

    Raises:
        RuntimeError: a graph whose outputs are further than 1e-4 (of the largest, or of 1) from PyTorch's.
    """
    import onnxruntime as ort

    file = io.BytesIO()
    logging.disable(logging.WARNING)  # about packages that could be exported, too, if they were installed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            names: dict[str, Any] = {"input_names": list(inputs), "output_names": list(outputs)}
            program = torch.onnx.export(module, tuple(inputs.values()), dynamo=True, verbose=False, **names)
    finally:
        logging.disable(logging.NOTSET)
    assert program is not None
    program.save(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    read = [each.name for each in session.get_inputs()]  # one that starts from an earlier student's features has no x

    def call(arrays: Mapping[str, Any]) -> list[Any]:
        found: list[Any] = session.run(list(outputs), {name: arrays[name] for name in read})
        return found

    with torch.no_grad():
        expected = module(*inputs.values())
    expected = expected if isinstance(expected, tuple) else (expected,)
    given = {name: value.numpy() for name, value in inputs.items()}
    for name, found, wanted in zip(outputs, call(given), expected, strict=True):
        apart = float(np.abs(found - wanted.numpy()).max()) / max(1.0, float(wanted.abs().max()))
        if not apart <= TOLERANCE:
            raise RuntimeError(
                f"exported {type(module).__name__}: {name} is {apart:.2g} away from PyTorch's, expected {TOLERANCE:g}"
            )
    return call


def exported(network: nn.Module, x: Tensor, threads: int) -> Call:
    """A network."""
    run, feed = session_of(network, {"x": x}, ["logits"], threads), {"x": x.numpy()}
    return lambda: run(feed)[0]


def exported_stages(stages: Sequence[Any], x: Tensor, threads: int) -> list[Call]:
    """A call for every prefix of the stages. What a stage writes is called ``NAME.out`` in its graph: no name is both input and output."""
    sessions, carry = [], dict[str, Tensor]()
    for stage in stages:
        inputs = {"x": x, **{name: carry[name] for name in stage.reads}}
        names = ["logits", *(f"{name}.out" for name in stage.writes)]
        sessions.append((stage, session_of(Flat(stage), inputs, names, threads)))
        with torch.no_grad():
            carry = carried(stage, carry, stage(x, carry)[1])
    feed = {"x": x.numpy()}

    def prefix(count: int) -> Call:
        def call() -> Any:
            arrays, mean = dict[str, Any](), None
            for t, (stage, run) in enumerate(sessions[:count], 1):
                logits, *written = run(feed | arrays)
                arrays = carried(stage, arrays, dict(zip(stage.writes, written, strict=True)))
                mean = logits if mean is None else mean + (logits - mean) / t
            return mean

        return call

    return [prefix(count) for count in range(1, len(stages) + 1)]


# — memory —


class Activations(TorchDispatchMode):
    """Most bytes of tensors made inside a ``with`` block that were alive at once, in ``peak``; weights and inputs made before don't count.

    What an operator needs for itself while it runs is not seen.
    """

    def __init__(self, before: Sequence[Tensor]) -> None:
        super().__init__()
        self._held = {tensor.untyped_storage()._cdata for tensor in before}
        self._before = list(before)
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tensors(found):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._held:
                self._held.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._gone_, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return found

    def _gone_(self, storage: int, size: int) -> None:
        self._held.discard(storage)
        self.live -= size


def peak_activations(call: Call, modules: Sequence[nn.Module], x: Tensor) -> int:
    """Bytes at the peak of an eager call."""
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    with Activations([*weights, x]) as seen:
        call()
    return seen.peak
