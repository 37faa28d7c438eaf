"""Run every stage of an ensemble on a whole data set, batch by batch, and store what came out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn
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

from quorate.cascade.stage import run_stage
from quorate.combination import Combine
from quorate.cost.counting import evaluating
from quorate.ensemble.members import kind_of
from quorate.ensemble.staging import WrappedStage, stage_macs, stage_modules
from quorate.outputs import Outputs


@runtime_checkable
class Rows(Protocol):
    """Data that gives whole batches at once, as :class:`quorate.data.Split` does: ``batch(rows) → (x, y)``; ``y`` None = no labels."""

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def y(self) -> np.ndarray | None: ...
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
    """Run every stage on all of the data and store the logits, or the values of a regression (float32).

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
        wrapped = [WrappedStage(module) for module in stage_modules(ensemble)]
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
        kind=kind_of(ensemble),
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
