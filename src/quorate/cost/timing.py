"""Measured latency: wall-clock quantiles of one call, with the settings it was measured under."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from quorate.cost.operators import tensors


@dataclass(frozen=True)
class Latency:
    """Wall-clock time of one call, over `repeats` calls after `warmup` untimed ones.

    Attributes:
        median_ms, p10_ms, p90_ms: median, 10th and 90th percentile, in milliseconds.
        threads: of PyTorch's operators on the CPU.
        device: of the arguments' and a module's own tensors, such as "cpu" or "cuda:0", several joined by "+"; "unknown" without any.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int
    warmup: int
    threads: int
    device: str


def latency(call: Callable[..., Any], *args: Any, repeats: int = 50, warmup: int = 10, threads: int | None = None) -> Latency:
    """Time `call(*args)` under inference_mode, waiting for the accelerator before and after each call.

    Args:
        call: any callable; a module must be in eval mode.
        args: its arguments.
        repeats: timed calls, at least 1.
        warmup: untimed calls before, at least 0.
        threads: PyTorch's threads during the calls, restored afterwards; by default those already set.

    Raises:
        ValueError: a number out of range, or a module in training mode.
    """
    before = torch.get_num_threads()
    threads = before if threads is None else threads
    for name, value, least in (("repeats", repeats, 1), ("warmup", warmup, 0), ("threads", threads, 1)):
        if not isinstance(value, int) or value < least:
            raise ValueError(f"{name}: expected an int of at least {least}, got {value!r}; pass a whole number")
    held = list(tensors(args))
    if isinstance(call, nn.Module):
        if any(module.training for module in call.modules()):
            raise ValueError("call: expected a module in eval mode, got one in training mode; use call.eval()")
        held += [*call.parameters(), *call.buffers()]
    devices = sorted({str(tensor.device) for tensor in held})
    wait = _waiter({tensor.device for tensor in held})
    times_ms = np.empty(repeats)
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for _ in range(warmup):
                call(*args)
            for i in range(repeats):
                wait()
                start = time.perf_counter()
                call(*args)
                wait()
                times_ms[i] = 1e3 * (time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    p10, median, p90 = (float(q) for q in np.percentile(times_ms, (10, 50, 90)))
    return Latency(median, p10, p90, repeats, warmup, threads, "+".join(devices) or "unknown")


def _waiter(devices: Iterable[torch.device]) -> Callable[[], None]:
    """A function that waits for the accelerators among `devices`; without any, for CUDA's current device if CUDA is in use."""
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]

    def wait() -> None:
        for device in accelerators:
            torch.accelerator.synchronize(device)
        if not accelerators and torch.cuda.is_initialized():  # by now: the call itself may have started it
            torch.cuda.synchronize()

    return wait
