"""An ensemble's stages: as modules, and wrapped for the executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from quorate import cost
from quorate.cascade.stage import check_answer, check_chain, run_stage
from quorate.cost.counting import evaluating
from quorate.ensemble.members import MemberStage


class WrappedStage:
    """A module as a stage for :class:`quorate.Cascade`: arrays or tensors in, float32 NumPy logits out, eval and no_grad.

    One that has a ``span`` of steps and ``arrived(part, carry)`` can be streamed to (:mod:`quorate.cascade.streaming`); else span is None.
    """

    def __init__(self, module: nn.Module, macs: float | None = None) -> None:
        self.module, self.macs = module, macs
        self.name: str = module.name  # type: ignore[assignment]
        self.reads, self.writes, self.drops = (names(module, what) for what in ("reads", "writes", "drops"))
        self._first: tuple[Mapping[str, Tensor | None], str] | None = None  # where the tensor is whose device is the module's
        self._arrived: Any = getattr(module, "arrived", None)
        self.span: Any = getattr(module, "span", None) if callable(self._arrived) else None

    def __call__(self, x: Any, carry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
        return self._run(self.module, x, carry)

    def arrived(self, part: Any, carry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
        """The same on the steps of its span alone. ValueError for a module that can't be run on them."""
        if self.span is None:
            raise ValueError(f"stage {self.name!r} has no span of steps and arrived(part, carry): call it on the whole input")
        return self._run(self._arrived, part, carry)

    def _run(self, call: Any, x: Any, carry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
        if in_training(self.module):
            self.module.eval()
        recording = torch.is_grad_enabled()
        torch.set_grad_enabled(False)  # at a single row entering no_grad() takes several times as long
        try:
            tensor = to_device(x, self._device())
            answer = call(tensor, dict(carry))
        finally:
            torch.set_grad_enabled(recording)
        rows = tensor.shape[0]
        logits, written = check_answer(self, answer, rows)
        logits = check_logits(self.name, logits, rows)
        if logits.dtype != torch.float32 or logits.device.type != "cpu":
            logits = logits.to("cpu", torch.float32)
        return logits.numpy(), written

    def _device(self) -> torch.device:
        """As :func:`device_of`, which takes longer than all the rest of a call at a single row: it is searched for once."""
        if self._first is not None:
            held, key = self._first
            tensor = held.get(key)
            if tensor is not None:
                return tensor.device
        self._first = next(
            (
                (held, key)
                for what in ("_parameters", "_buffers")
                for part in self.module.modules()
                for held in (getattr(part, what),)
                for key, tensor in held.items()
                if tensor is not None
            ),
            None,
        )
        return device_of(self.module)


class _Merged(nn.Module):
    """Neighbouring stages as one, named as :meth:`quorate.Outputs.regroup` names them."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name = "+".join(str(part.name) for part in parts)
        reads: list[str] = []
        held: set[str] = set()  # what is carried on after the last part, of what the parts wrote
        for part in parts:
            reads += [name for name in names(part, "reads") if name not in held and name not in reads]
            held = (held | set(names(part, "writes"))) - set(names(part, "drops"))
        self.reads, self.writes = tuple(reads), tuple(sorted(held))
        self.drops = tuple(sorted({name for part in parts for name in names(part, "drops")} - held))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        held, logits = dict(carry), []
        for part in self.parts:
            members, held = run_stage(part, x, held, x.shape[0])
            logits.append(check_logits(str(part.name), members, x.shape[0]))
        return torch.cat(logits), {name: held[name] for name in self.writes}


def stages(ensemble: nn.Module, example: Any = None, groups: Sequence[int] | None = None) -> list[WrappedStage]:
    """The ensemble's stages for :class:`quorate.Cascade`, put into eval mode.

    Args:
        ensemble: a module by the contract above.
        example: a small batch of raw inputs; with it each stage's MACs per row are counted, else the policy's costs hold.
        groups: sizes in which neighbouring stages are merged, as by :meth:`quorate.Outputs.regroup`: ``[1, 3]`` of four makes two.

    Raises:
        ValueError: groups that don't sum to the number of stages, or stages that don't keep the contract.
    """
    ensemble.eval()
    modules = stage_modules(ensemble)
    macs: list[float | None] = [None] * len(modules) if example is None else [float(m) for m in stage_macs(ensemble, example)]
    if groups is None:
        return [WrappedStage(module, m) for module, m in zip(modules, macs, strict=True)]
    if sum(groups) != len(modules) or min(groups) < 1:
        raise ValueError(f"groups={list(groups)}: expected positive sizes that sum to {len(modules)} stages")
    wrapped, at = [], 0
    for size in groups:
        part, cost_of_part = modules[at : at + size], macs[at : at + size]
        total = None if example is None else sum(m for m in cost_of_part if m is not None)
        wrapped.append(WrappedStage(part[0] if size == 1 else _Merged(part), total))
        at += size
    return wrapped


def stage_macs(ensemble: nn.Module, example: Any) -> list[int]:
    """MACs per row that each stage newly executes, counted on a small batch ``example`` of raw inputs.

    A stage that declares ``counted_macs(x, carry) → int`` says them itself.

    Raises:
        ValueError: stages that don't keep the contract.
    """
    with evaluating(ensemble), torch.no_grad():
        x, counted = to_device(example, device_of(ensemble)), []
        carry: dict[str, Tensor] = {}
        for module in stage_modules(ensemble):
            call = (x, {name: carry[name] for name in names(module, "reads")})
            own = getattr(module, "counted_macs", None)
            counted.append(int(own(*call)) if callable(own) else cost.macs(module, call))
            logits, carry = run_stage(module, x, carry, len(x))
            check_logits(str(module.name), logits, len(x))
    return counted


def names(module: nn.Module, what: str) -> tuple[str, ...]:
    return tuple(getattr(module, what))


def stage_modules(ensemble: nn.Module) -> list[nn.Module]:
    own = getattr(ensemble, "stages", None)  # a submodule of that name, as some networks have, is not the contract's method
    modules = list(own()) if callable(own) and not isinstance(own, nn.Module) else [MemberStage("ensemble", ensemble)]
    check_chain(modules)
    return modules


def check_logits(stage: str, logits: Any, rows: int) -> Tensor:
    """A stage's logits (m, rows, C). Raises ValueError."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"stage {stage!r} returned {type(logits).__name__}: expected a tensor (members, {rows}, classes)")
    if logits.ndim != 3 or logits.shape[1] != rows:
        raise ValueError(f"stage {stage!r} returned shape {tuple(logits.shape)}: expected (members, {rows}, classes)")
    return logits


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter or buffer; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def in_training(module: nn.Module) -> bool:
    """Whether any part of the module is in training mode; as ``modules()`` finds them, in a fraction of its time."""
    found: list[nn.Module | None] = [module]
    for part in found:  # grows as it is read
        if part is not None:
            if part.training:
                return True
            if part._modules:
                found += part._modules.values()
    return False


def to_device(x: Any, device: torch.device) -> Tensor:
    """A tensor on the device, from a tensor or an array (copied if it is read-only or strided)."""
    if isinstance(x, Tensor):
        return x.to(device)
    array = np.ascontiguousarray(x)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
