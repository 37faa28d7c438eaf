"""What PyTorch gives: a stage run on the CPU, in eval mode and without gradients, arrays in and out; all is given back as it was."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quorate import cost
from quorate._optional import one_line
from quorate.cascade.stage import check_answer
from quorate.cost.counting import evaluating
from quorate.ensemble.staging import check_logits, device_of
from quorate.packed import PackedEnsemble

Array = NDArray[Any]
Answer = tuple[Array, dict[str, Array]]
"""Members (m, B, C) in float32, and what is written."""
_TALKING = ("torch", "torch.onnx", "torch.export", "torch.fx", "onnxscript", "onnx_ir")


def on_cpu(stage: nn.Module) -> nn.Module:
    """The stage itself, or a copy where it is on another device: matrix units there round in their own way."""
    return stage if device_of(stage).type == "cpu" else copy.deepcopy(stage).cpu()


def array_of(what: str, given: Any) -> Array:
    """As a contiguous array. ValueError for a type that NumPy does not have, and for anything but real numbers."""
    try:
        array = np.ascontiguousarray(given.detach().cpu().numpy() if isinstance(given, Tensor) else given)
    except TypeError as error:
        said = getattr(given, "dtype", type(given).__name__)
        raise ValueError(
            f"{what} is {said}, which NumPy does not have: use a float32 copy of the ensemble, ensemble.float()"
        ) from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{what} is {array.dtype}: expected an array or tensor of real numbers, rows first")
    return array


def tensor_of(array: Array) -> Tensor:
    """A tensor of its own, which a stage may change in place."""
    return torch.from_numpy(array.copy())


@contextmanager
def still(stage: nn.Module) -> Iterator[None]:
    """Eval mode, no gradients, no random state used up, packed members together, attention by its products; given back afterwards."""
    packed = [module for module in stage.modules() if isinstance(module, PackedEnsemble)]
    executions, fast = [module.execution for module in packed], torch.backends.mha.get_fastpath_enabled()
    with evaluating(stage), torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            for module in packed:
                module.set_execution_("together")
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for module, execution in zip(packed, executions, strict=True):
                module.set_execution_(execution)


@contextmanager
def taking(stage: Any, x: Array) -> Iterator[None]:
    """Whatever a stage raises on rows that it does not take becomes a ValueError of one line that names it."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:  # a network's own errors have no common type
        raise ValueError(
            f"stage {str(stage.name)!r} fails on the example, {x.dtype} {x.shape} ({type(error).__name__}: {one_line(error)}): give raw "
            "inputs of the dtype and shape that it takes"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without PyTorch's warnings and log lines about its own exporter."""
    loggers = [logging.getLogger(name) for name in _TALKING]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def answer(stage: Any, x: Array, carry: Mapping[str, Array]) -> Answer:
    """The stage's answer to raw inputs (B, *shape) and what it reads.

    Raises:
        ValueError: an answer against the contract of :mod:`quorate.cascade.stage`, or in a type that NumPy does not have; rows that the
            stage fails on.
    """
    with still(stage), taking(stage, x):
        given = stage(tensor_of(x), {name: tensor_of(carry[name]) for name in stage.reads})
    members, written = check_answer(stage, given, len(x))
    logits = check_logits(stage.name, members, len(x)).float()
    return array_of("members", logits), {
        name: array_of(f"stage {stage.name!r}: what it writes as {name!r}", tensor) for name, tensor in written.items()
    }


def macs(stage: Any, x: Array, carry: Mapping[str, Array]) -> int:
    """Multiply-adds per row, as :func:`quorate.ensemble.stage_macs` counts them. ValueError for rows that the stage fails on."""
    call = (tensor_of(x), {name: tensor_of(carry[name]) for name in stage.reads})
    own = getattr(stage, "counted_macs", None)
    with still(stage), taking(stage, x):
        return int(own(*call) if callable(own) else cost.macs(stage, call))
