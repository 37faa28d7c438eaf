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
from itertools import chain
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from quorate import cost
from quorate.cascade.stage import check_answer, check_chain, run_stage
from quorate.combination import Combine
from quorate.cost.counting import evaluating as evaluating
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
        ValueError: shapes that don't fit, label smoothing outside [0, 1), or an unknown reduction.
    """
    if logits.ndim != 3:
        raise ValueError(f"logits of shape {tuple(logits.shape)}: expected member-first (M, B, C)")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing={label_smoothing}: expected a share in [0, 1)")
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
        return (logits[None] if isinstance(logits, Tensor) and logits.ndim == 2 else logits), {}


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
        self.reads, self.writes, self.drops = (_names(module, what) for what in ("reads", "writes", "drops"))

    def __call__(self, x: Any, carry: Mapping[str, Any]) -> tuple[np.ndarray, dict[str, Tensor]]:
        if any(part.training for part in self.module.modules()):
            self.module.eval()
        with torch.no_grad():
            answer = self.module(to_device(x, device_of(self.module)), dict(carry))
        logits, written = check_answer(self, answer, len(x))
        return _check_logits(self.name, logits, len(x)).float().cpu().numpy(), written


class _Merged(nn.Module):
    """Neighbouring stages as one, named as :meth:`quorate.Outputs.regroup` names them."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.name = "+".join(str(part.name) for part in parts)
        reads: list[str] = []
        held: set[str] = set()  # what is carried on after the last part, of what the parts wrote
        for part in parts:
            reads += [name for name in _names(part, "reads") if name not in held and name not in reads]
            held = (held | set(_names(part, "writes"))) - set(_names(part, "drops"))
        self.reads, self.writes = tuple(reads), tuple(sorted(held))
        self.drops = tuple(sorted({name for part in parts for name in _names(part, "drops")} - held))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        held, logits = dict(carry), []
        for part in self.parts:
            members, held = run_stage(part, x, held, len(x))
            logits.append(_check_logits(str(part.name), members, len(x)))
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
    modules = _stage_modules(ensemble)
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

    Raises:
        ValueError: stages that don't keep the contract.
    """
    with evaluating(ensemble), torch.no_grad():
        x, counted = to_device(example, device_of(ensemble)), []
        carry: dict[str, Tensor] = {}
        for module in _stage_modules(ensemble):
            counted.append(cost.macs(module, (x, {name: carry[name] for name in _names(module, "reads")})))
            logits, carry = run_stage(module, x, carry, len(x))
            _check_logits(str(module.name), logits, len(x))
    return counted


def _names(module: nn.Module, what: str) -> tuple[str, ...]:
    return tuple(getattr(module, what))


def _stage_modules(ensemble: nn.Module) -> list[nn.Module]:
    own = getattr(ensemble, "stages", None)  # a submodule of that name, as some networks have, is not the contract's method
    modules = list(own()) if callable(own) and not isinstance(own, nn.Module) else [MemberStage("ensemble", ensemble)]
    check_chain(modules)
    return modules


def _check_logits(stage: str, logits: Any, rows: int) -> Tensor:
    """A stage's logits (m, rows, C). Raises ValueError."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"stage {stage!r} returned {type(logits).__name__}: expected a tensor (members, {rows}, classes)")
    if logits.ndim != 3 or logits.shape[1] != rows:
        raise ValueError(f"stage {stage!r} returned shape {tuple(logits.shape)}: expected (members, {rows}, classes)")
    return logits


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
        data: a :class:`quorate.data.Split`; or a torch ``Dataset`` (of any kind) or ``DataLoader`` of (x, y) or of x alone, not shuffled.
        batch_size: rows at a time (a DataLoader's own holds).
        classes: class names for the Outputs.
        costs: per stage; by default its MACs are counted on the first row.

    Raises:
        ValueError: no rows, data of another kind or in random order, stages that don't keep the contract (logits that are not
            (m, B, C), reading or writing other than they declare), or NaN in the logits (the rows are named).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    with evaluating(ensemble):
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
                logits, carry = run_stage(stage, x, carry, len(x))
                buffer.add_(logits)
            labelled = labelled and y is not None
            if y is not None:
                labels.add_(np.asarray(y)[None])
    if costs is None or not buffers[0].filled:
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
        start, self.filled = self.filled, self.filled + part.shape[1]
        if self.total is None:
            self.parts.append(part)
            return
        if not self.parts:
            self.parts = [np.empty((part.shape[0], self.total, *part.shape[2:]), part.dtype)]
        self.parts[0][:, start : self.filled] = part

    def array(self) -> np.ndarray:
        return np.concatenate(self.parts, axis=1) if self.total is None else self.parts[0][:, : self.filled]


def _length(data: Any) -> int | None:
    """Number of rows, or an upper bound; None where it can't be known before they are read."""
    if isinstance(data, DataLoader):
        in_order = isinstance(data.sampler, SequentialSampler) and type(data.batch_sampler) is BatchSampler
        return len(data.dataset) if in_order else None  # type: ignore[arg-type]
    return len(data) if hasattr(data, "__len__") and not isinstance(data, IterableDataset) else None


def _batches(data: Any, batch_size: int) -> Iterator[tuple[Any, Any]]:
    if isinstance(data, Rows):
        for start in range(0, len(data), batch_size):
            x, y = data.batch(np.arange(start, min(start + batch_size, len(data))))
            yield x, (None if data.y is None else y)
        return
    if isinstance(data, DataLoader):
        if isinstance(data.sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise ValueError(
                f"the DataLoader draws its rows at random ({type(data.sampler).__name__}), so they could not be matched with other "
                "Outputs: expected one with shuffle=False"
            )
        loader = data
    elif isinstance(data, Dataset) or (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        loader = DataLoader(data, batch_size=batch_size)
    else:
        raise ValueError(f"data of type {type(data).__name__}: expected a quorate.data.Split, a torch Dataset or a DataLoader")
    for batch in loader:
        pair = tuple(batch) if isinstance(batch, list | tuple) else (batch,)
        if len(pair) > 2 or not isinstance(pair[0], Tensor | np.ndarray):
            shown = ", ".join(type(part).__name__ for part in pair)
            raise ValueError(f"the data gives batches of ({shown}): expected (x, y) or x alone, with x a tensor")
        yield pair[0], pair[1] if len(pair) == 2 else None


def device_of(module: nn.Module) -> torch.device:
    """The device of the module's first parameter or buffer; the CPU if it has none."""
    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_device(x: Any, device: torch.device) -> Tensor:
    """A tensor on the device, from a tensor or an array (copied if it is read-only or strided)."""
    if isinstance(x, Tensor):
        return x.to(device)
    array = np.ascontiguousarray(x)
    return torch.from_numpy(array if array.flags.writeable else array.copy()).to(device)
