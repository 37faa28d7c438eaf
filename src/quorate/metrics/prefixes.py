"""What each further stage does to the rows: a longer prefix need not be better for every one of them.

Source: Dennis et al. 2023 (arXiv 2302.10093): the prefixes of a progressive ensemble get better on average; which rows pay for it is
seen only in counts of both directions. With ŷ_k the label of a row after stages 0 … k and y its class,

    mended_k = #{ŷ_{k−1} ≠ y, ŷ_k = y}        broken_k = #{ŷ_{k−1} = y, ŷ_k ≠ y}        N (acc_k − acc_{k−1}) = mended_k − broken_k

Shapes: predictions (K, N), labels (N,) → accuracy (K,), counts (K − 1,).
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.metrics._checks import Floats, check_array, name_rows


class Stored(Protocol):
    """What is read of :class:`quorate.Outputs`."""

    @property
    def stages(self) -> int: ...
    def predictions(self, stop: int | None = None) -> NDArray[np.int64]: ...
    def truth(self) -> NDArray: ...


class Prefixes(NamedTuple):
    """Right and wrong along the prefixes of K stages on N rows.

    Attributes:
        accuracy: (K,) of every prefix.
        mended: (K − 1,) rows that stage 1 … K − 1 turned from wrong to right.
        broken: (K − 1,) rows that it turned from right to wrong.
        changed: (K − 1,) rows whose label it changed, from wrong to wrong too.
        ever: (K,) share of rows that some prefix up to this one gets right: what stopping each row at its best could reach.
    """

    accuracy: Floats
    mended: NDArray[np.int64]
    broken: NDArray[np.int64]
    changed: NDArray[np.int64]
    ever: Floats


def prefixes(predictions: ArrayLike | Stored, labels: ArrayLike | None = None) -> Prefixes:
    """Accuracy of every prefix, and how many rows each further stage mends and breaks.

    Args:
        predictions: the labels (K, N) that the prefixes give, K, N ≥ 1; or labelled :class:`quorate.Outputs` of K stages.
        labels: (N,) true classes; not beside Outputs, which hold their own.

    Raises:
        ValueError: shapes that don't fit, entries that are not integers of at least 0, labels missing or given twice.
    """
    if hasattr(predictions, "predictions"):
        outputs: Any = predictions
        if labels is not None:
            raise ValueError(
                "labels: expected none beside Outputs, which hold their own; leave them out, or pass predictions (K, N)"
            )
        predictions, labels = np.stack([outputs.predictions(stop) for stop in range(1, outputs.stages + 1)]), outputs.truth()
    elif labels is None:
        raise ValueError("labels: expected the true classes (N,) of the predictions, got none; pass them")
    said, truth = check_array("predictions", predictions, "iu"), check_array("labels", labels, "iu")
    if said.ndim != 2 or 0 in said.shape:
        raise ValueError(
            f"predictions: expected shape (K, N), one row of labels per prefix, got {said.shape}; stack the prefixes' labels"
        )
    if truth.shape != said.shape[1:]:
        raise ValueError(
            f"labels: expected shape {said.shape[1:]}, one per column of predictions, got {truth.shape}; pass the same rows"
        )
    for name, bad in (("predictions", np.asarray((said < 0).any(0))), ("labels", np.asarray(truth < 0))):
        if bad.any():
            raise ValueError(
                f"{name}: expected classes of at least 0, got negative ones in {name_rows(bad)}; drop unlabelled rows"
            )
    right = said == truth
    return Prefixes(
        right.mean(-1),
        (~right[:-1] & right[1:]).sum(-1, dtype=np.int64),
        (right[:-1] & ~right[1:]).sum(-1, dtype=np.int64),
        (said[:-1] != said[1:]).sum(-1, dtype=np.int64),
        np.logical_or.accumulate(right, axis=0).mean(-1),
    )
