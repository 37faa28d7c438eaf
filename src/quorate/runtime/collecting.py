"""Run stages on all rows of an array, batch by batch, and store what came out. Stages of arrays: those of a bundle, or any callables by
the contract of :mod:`quorate.cascade.stage`; for modules there is :func:`quorate.collect`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate._validation import check_costs, check_ids, check_values
from quorate.cascade.stage import Stage, check_chain, run_stage
from quorate.combination import COMBINES, KINDS, softmax
from quorate.outputs import Outputs

Progress = Callable[[int, int], None]
"""Called as ``progress(rows done, rows in all)``."""


def collect(
    stages: Sequence[Stage],
    x: Any,
    labels: ArrayLike | None = None,
    *,
    kind: str,
    combine: str = "probs",
    ids: ArrayLike | None = None,
    classes: Sequence[str] | None = None,
    costs: Sequence[float] | None = None,
    batch_size: int = 256,
    kinds: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Outputs:
    """Outputs of all stages on all rows. Beside them and one batch nothing is held: ``x`` may be a memory map.

    Args:
        stages: in order, every name that one reads written by an earlier one.
        x: (N, …) raw inputs, an array that gives rows by slices.
        labels: (N,) classes, or (N, D) true values of a regression.
        kind, combine: what the stages give and how their members join, as :class:`quorate.Outputs` has them; not ``"top1"``.
        ids: (N,) row ids; by default 0 … N−1.
        classes: names, in order.
        costs: per stage; by default their ``macs``, where every stage knows them.
        batch_size: rows at a time.
        kinds: what each stage gives, where not all give ``kind``: "logits" among "probs" are made probabilities.
        progress: told after every batch.

    Raises:
        ValueError: no rows or stages, labels, ids or costs of another number, stages that don't keep the contract, members that are
            not (m, B, C) finite floats or differ in shape between batches (rows are named by their ids).
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if kind not in KINDS or kind == "top1" or combine not in COMBINES:
        raise ValueError(
            f"kind={kind!r}, combine={combine!r}: expected stages that give logits, probs, values or gaussian, combined by "
            f"{', '.join(COMBINES)}"
        )
    stages = list(stages)
    if not stages:
        raise ValueError("there are no stages: expected at least one")
    given = [kind] * len(stages) if kinds is None else list(kinds)
    if len(given) != len(stages) or any(each != kind and (kind, each) != ("probs", "logits") for each in given):
        raise ValueError(f"kinds={given} for {len(stages)} stages: expected {kind!r} of each, or 'logits' among 'probs'")
    shape = tuple(getattr(x, "shape", ()))
    if not shape or not shape[0]:
        raise ValueError(f"inputs are {type(x).__name__} of shape {shape}: expected an array (N, …) of at least one row")
    rows = int(shape[0])
    if labels is not None and np.shape(labels)[:1] != (rows,):
        raise ValueError(f"labels have shape {np.shape(labels)} for {rows} rows: expected one per row")
    names = np.arange(rows) if ids is None else check_ids(ids, rows)
    if costs is not None:
        costs = check_costs(costs, len(stages))
    else:
        known = [stage.macs for stage in stages]
        costs = None if None in known else [float(macs) for macs in known if macs is not None]
    check_chain(stages)
    values: list[NDArray[Any] | None] = [None] * len(stages)
    for start in range(0, rows, batch_size):
        stop = min(start + batch_size, rows)
        batch, carry = x[start:stop], dict[str, Any]()
        for k, stage in enumerate(stages):
            members, carry = run_stage(stage, batch, carry, stop - start)
            found = np.asarray(check_values(members, given[k], f"stage {stage.name!r}", names[start:stop]))  # type: ignore[arg-type]
            found = found if given[k] == kind else softmax(found)
            values[k] = _stored(values[k], found, start, rows, stage.name)
        if progress is not None:
            progress(stop, rows)
    return Outputs(
        [value for value in values if value is not None],
        kind=kind,
        combine=combine,
        labels=labels,
        ids=names,
        classes=classes,
        costs=costs,
        ordered=any(stage.reads for stage in stages),
        names=[stage.name for stage in stages],
    )


def _stored(held: NDArray[Any] | None, part: NDArray[Any], start: int, rows: int, stage: str) -> NDArray[Any]:
    """The stage's (m, N, C), with these rows of it filled."""
    if held is None:
        held = np.empty((part.shape[0], rows, part.shape[2]), part.dtype)
    if (part.shape[0], part.shape[2], part.dtype) != (held.shape[0], held.shape[2], held.dtype):
        raise ValueError(
            f"stage {stage!r} gave {part.dtype} {part.shape} from row {start} on, {held.dtype} ({held.shape[0]}, B, {held.shape[2]}) "
            "before: expected one shape and type for all rows"
        )
    held[:, start : start + part.shape[1]] = part
    return held
