"""The contract: an ensemble is an ``nn.Module`` whose ``forward(x)`` returns member-first logits (M, B, C).

Nothing need be inherited. Two things may be declared:

- ``combine``: ``"probs"`` (default; members' probabilities are averaged) or ``"logits"``.
- ``stages()``: a list of modules that can be run one after the other, each with ``name, reads, writes, drops`` and
  ``forward(x, carry) → (logits (m, B, C), written)``, where ``carry`` is a flat dict of named tensors, batch first. Run in order they give
  the rows of ``forward``. An ensemble without ``stages`` is one stage.

Sources: member-first logits and the loss, Laurent et al. 2023 (arXiv 2210.09184), §3; stages, Xia & Bouganis 2023 (arXiv 2303.08010).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from quorate import cost
from quorate.combination import Combine
from quorate.outputs import Outputs


def member_loss(
    logits: Tensor, targets: Tensor, label_smoothing: float = 0.0, reduction: Literal["sum", "mean"] = "sum"
) -> Tensor:
    """Cross-entropy of member-first logits: the sum over members of each member's mean loss.

    The sum is exactly M independent trainings (Packed-Ensembles, arXiv 2210.09184, §3.3); ``reduction="mean"`` divides by M, which
    scales every member's gradient by 1/M while weight decay stays.

    Args:
        logits: (M, B, C).
        targets: (B,) class numbers shared by the members, or (M, B) for a batch of its own per member.
        label_smoothing: in [0, 1).
        reduction: over members.

    Raises:
        ValueError: shapes that don't fit, or an unknown reduction.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected member-first (M, B, C)")
    members, batch, _ = logits.shape
    if targets.shape == (batch,):
        targets = targets.expand(members, batch)
    elif targets.shape != (members, batch):
        raise ValueError(
            f"targets of shape {tuple(targets.shape)}: expected ({batch},), or ({members}, {batch}) for one batch per member"
        )
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction={reduction!r}: expected 'sum' or 'mean' over members")
    mean = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=label_smoothing)
    return mean * members if reduction == "sum" else mean


def mean_probs(logits: Tensor) -> Tensor:
    """The mean of the members' probabilities: logits (M, B, C) → (B, C)."""
    if logits.ndim != 3:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected member-first (M, B, C)")
    return logits.softmax(-1).mean(0)


class MemberStage(nn.Module):
    """A stage that is one module on the raw input: (B, C) logits, or (m, B, C) of several members. Carries nothing."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.module = name, module
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.drops: tuple[str, ...] = ()

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        logits = self.module(x)
        return (logits[None] if logits.ndim == 2 else logits), {}


class DeepEnsemble(nn.Module):
    """M separate networks as one ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474); each member is a stage.

    Args:
        models: the members, each x → (B, C). They may differ in architecture, not in C. A single model is an ensemble of one.

    Raises:
        ValueError: no models, the same model twice, or members that return other than (B, C) of one width.
    """

    combine: Combine = "probs"

    def __init__(self, models: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        if not len(self.members):
            raise ValueError("DeepEnsemble([]): expected at least one model")
        if len({id(member) for member in self.members}) != len(self.members):
            raise ValueError(
                "DeepEnsemble got the same model twice: build each member anew (copy.deepcopy copies the weights too)"
            )

    def forward(self, x: Tensor) -> Tensor:
        logits = [member(x) for member in self.members]
        shapes = [tuple(member.shape) for member in logits]
        if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
            raise ValueError(f"members returned shapes {shapes}: expected (B, C) from each, with one C")
        return torch.stack(logits)

    def stages(self) -> list[nn.Module]:
        """One stage per member, named ``member0`` …."""
        return [MemberStage(f"member{m}", member) for m, member in enumerate(self.members)]


class WrappedStage:
    """A module as a stage for :class:`quorate.Cascade`: arrays or tensors in, float32 NumPy logits out, eval and no_grad."""

    def __init__(self, module: nn.Module, macs: float | None = None) -> None:
        self.module, self.macs = module, macs
        self.name: str = module.name  # type: ignore[assignment]
        self.reads, self.writes, self.drops = (tuple(getattr(module, part)) for part in ("reads", "writes", "drops"))

    def __call__(self, x: Any, carry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
        if self.module.training:
            self.module.eval()
        with torch.no_grad():
            logits, written = self.module(to_device(x, device_of(self.module)), dict(carry))
        return logits.float().cpu().numpy(), written


def stages(ensemble: nn.Module, example: Any = None) -> list[WrappedStage]:
    """The ensemble's stages for :class:`quorate.Cascade`, put into eval mode.

    Args:
        ensemble: a module by the contract above.
        example: a small batch of raw inputs; with it each stage's MACs per row are counted, else the policy's costs hold.
    """
    ensemble.eval()
    modules = _stage_modules(ensemble)
    macs = [None] * len(modules) if example is None else stage_macs(ensemble, example)
    return [WrappedStage(module, m) for module, m in zip(modules, macs, strict=True)]


def stage_macs(ensemble: nn.Module, example: Any) -> list[int]:
    """MACs per row that each stage newly executes, counted on a small batch ``example`` of raw inputs."""
    with _evaluating(ensemble), torch.no_grad():
        x, counted = to_device(example, device_of(ensemble)), []
        carry: dict[str, Tensor] = {}
        for module in _stage_modules(ensemble):
            read = {name: carry[name] for name in module.reads}  # type: ignore[union-attr]
            counted.append(cost.macs(module, (x, read)))
            carry = {**carry, **module(x, read)[1]}
            carry = {name: tensor for name, tensor in carry.items() if name not in module.drops}  # type: ignore[operator]
    return counted


def _stage_modules(ensemble: nn.Module) -> list[nn.Module]:
    own = getattr(ensemble, "stages", None)
    return list(own()) if callable(own) else [MemberStage("ensemble", ensemble)]


@runtime_checkable
class Rows(Protocol):
    """Data that gives whole batches at once, as :class:`quorate.data.Split` does: ``batch(rows) → (x, y)``; ``y`` None = no labels."""

    ids: np.ndarray
    y: np.ndarray | None

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, /) -> tuple[Tensor, Tensor]: ...


def collect(
    ensemble: nn.Module,
    data: Any,
    *,
    batch_size: int = 256,
    classes: Sequence[str] | None = None,
    costs: Sequence[float] | None = None,
) -> Outputs:
    """Run every stage on all of the data and store the logits (float32).

    Streams: beyond the stored outputs memory does not grow with the data. The ensemble's training mode is given back afterwards.

    Args:
        ensemble: a module by the contract above.
        data: a :class:`quorate.data.Split`; or a torch ``Dataset`` or ``DataLoader`` of (x, y) or of x alone, not shuffled.
        batch_size: rows at a time (a DataLoader's own holds).
        classes: class names for the Outputs.
        costs: per stage; by default its MACs are counted on the first row.

    Raises:
        ValueError: no rows, logits that are not (m, B, C), or NaN in them (the rows are named).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    with _evaluating(ensemble):
        wrapped = [WrappedStage(module) for module in _stage_modules(ensemble)]
        total = _length(data)
        buffers: list[_Buffer] = [_Buffer(total) for _ in wrapped]
        labels = _Buffer(total)
        labelled = True
        for x, y in _batches(data, batch_size):
            if costs is None:
                costs = stage_macs(ensemble, x[:1])
            carry: dict[str, Tensor] = {}
            for stage, buffer in zip(wrapped, buffers, strict=True):
                logits, written = stage(x, {name: carry[name] for name in stage.reads})
                if logits.ndim != 3 or logits.shape[1] != len(x):
                    raise ValueError(f"stage {stage.name!r} returned shape {logits.shape}: expected (members, {len(x)}, classes)")
                buffer.add_(logits)
                carry = {name: tensor for name, tensor in (carry | written).items() if name not in stage.drops}
            labelled = labelled and y is not None
            if y is not None:
                labels.add_(np.asarray(y)[None])
    if costs is None:
        raise ValueError("the data has no rows: expected at least one")
    combine: Combine = getattr(ensemble, "combine", "probs")
    return Outputs(
        [buffer.array() for buffer in buffers],
        kind="logits",
        combine=combine,
        labels=labels.array()[0] if labelled else None,
        ids=data.ids if isinstance(data, Rows) else None,
        classes=classes,
        costs=costs,
        ordered=any(stage.reads for stage in wrapped),
        names=[stage.name for stage in wrapped],
    )


class _Buffer:
    """(m, N, …) filled batch by batch: in place when N is known, else as a list that is joined once."""

    def __init__(self, total: int | None) -> None:
        self.total, self.filled = total, 0
        self.parts: list[np.ndarray] = []

    def add_(self, part: np.ndarray) -> None:
        if self.total is None:
            self.parts.append(part)
            return
        if not self.parts:
            self.parts = [np.empty((part.shape[0], self.total, *part.shape[2:]), part.dtype)]
        self.parts[0][:, self.filled : self.filled + part.shape[1]] = part
        self.filled += part.shape[1]

    def array(self) -> np.ndarray:
        if self.total is not None:
            return self.parts[0][:, : self.filled]
        return np.concatenate(self.parts, axis=1)


def _length(data: Any) -> int | None:
    if isinstance(data, torch.utils.data.DataLoader):
        data = data.dataset
    return len(data) if hasattr(data, "__len__") else None


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Rows):
        for start in range(0, len(data), batch_size):
            x, y = data.batch(np.arange(start, min(start + batch_size, len(data))))
            yield x, (None if data.y is None else y)
        return
    loader = data if isinstance(data, torch.utils.data.DataLoader) else torch.utils.data.DataLoader(data, batch_size=batch_size)
    for batch in loader:
        x, y = batch if isinstance(batch, list | tuple) else (batch, None)
        yield x, y


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; every submodule's own mode comes back."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter or buffer; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_device(x: Any, device: torch.device) -> Tensor:
    """A tensor on the device, from a tensor or an array (read-only arrays are copied)."""
    if isinstance(x, Tensor):
        return x.to(device)
    array = np.asarray(x)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
