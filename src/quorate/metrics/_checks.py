"""Input checks shared by the metrics, and the row blocks that keep float64 copies small.

Every failed check is a one-line ``ValueError`` that says what was expected, what came (with the first offending
rows), and what to do.

Shapes: scores, errors and labels (N,); probabilities (N, C), or member-first (M, N, C).
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.combination import SUM_TOLERANCE

Floats = NDArray[np.float64]
BLOCK = 1 << 18  # array elements per block: 2 MiB of float64
ROW_SLACK = 1e-6  # of a row: shares are rounded numbers, 0.7 · 10 must mean 7 rows


def name_rows(bad: NDArray[np.bool_], start: int = 0) -> str:
    """``"row 3"``, ``"rows 3, 5"`` or ``"rows 3, 5, 6, 8, 9, …"``: where ``bad`` (n,) is true, counted from ``start``."""
    rows = np.flatnonzero(bad) + start
    listed = ", ".join(str(row) for row in rows[:5])
    return f"row{'s' if rows.size > 1 else ''} {listed}{', …' if rows.size > 5 else ''}"


def check_array(name: str, values: ArrayLike, kinds: str = "fiu") -> NDArray[Any]:
    """``values`` as an array whose dtype kind is one of ``kinds``."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"{name}: expected one rectangular array of numbers, got nested parts of different lengths; "
            "give every row the same length"
        ) from error
    except (RuntimeError, TypeError) as error:  # a framework's tensor on a device, or one that takes part in a gradient
        raise ValueError(
            f"{name}: expected an array, got a {type(values).__name__} that NumPy can't read ({' '.join(str(error).split())}); "
            "pass its values, such as x.detach().cpu()"
        ) from error
    if array.dtype.kind not in kinds:
        expected = "integers" if kinds == "iu" else "real numbers"
        raise ValueError(f"{name}: expected {expected}, got dtype {array.dtype}; convert the array before measuring")
    return array


def check_scores(name: str, values: ArrayLike) -> NDArray[Any]:
    """Uncertainties (N,) in their own precision (float16/32/64; everything else becomes float64).

    ±inf are scores like any other (+inf: the last to be accepted); NaN has no place in an order.
    """
    array = _vector(name, check_array(name, values), "one uncertainty per row")
    if array.dtype not in (np.float16, np.float32, np.float64):
        array = array.astype(np.float64)
    bad = np.isnan(array)
    if bad.any():
        raise ValueError(
            f"{name}: expected numbers that can be ordered, got NaN in {name_rows(bad)}; "
            "find the rows whose outputs are NaN or infinite"
        )
    return array


def check_errors(name: str, values: ArrayLike, rows: int) -> Floats:
    """Errors (rows,) as float64: booleans (true = wrong) or costs, finite and not negative."""
    array = _vector(name, check_array(name, values, "bfiu"), "one error per row")
    if array.size != rows:
        raise ValueError(f"{name}: expected {rows} entries, one per uncertainty, got {array.size}; pass both for the same rows")
    bad = ~(np.isfinite(array) & (array >= 0))
    if bad.any():
        raise ValueError(
            f"{name}: expected booleans (true = wrong) or finite costs of at least 0, got "
            f"{array[bad][0]} in {name_rows(bad)}; correct these rows"
        )
    return array.astype(np.float64)


def check_labels(labels: ArrayLike, rows: int, classes: int) -> NDArray[np.int64]:
    """True classes (rows,) as int64 in 0 … classes − 1."""
    array = _vector("labels", check_array("labels", labels, "iu"), "one class number per row")
    if array.size != rows:
        raise ValueError(
            f"labels: expected {rows} entries, one per row of the outputs, got {array.size}; pass both for the same rows"
        )
    bad = (array < 0) | (array >= classes)
    if bad.any():
        raise ValueError(
            f"labels: expected classes 0 to {classes - 1}, got {array[bad][0]} in {name_rows(bad)}; "
            "drop unlabelled rows, or give the outputs one column per class"
        )
    return array.astype(np.int64)


def check_outputs(name: str, values: ArrayLike) -> NDArray[Any]:
    """Class scores (N, C), N ≥ 1, C ≥ 2."""
    array = check_array(name, values)
    if array.ndim == 3:
        raise ValueError(
            f"{name}: expected shape (N, C), got the member-first shape {array.shape}; "
            "average the members' probabilities first, or pass one member"
        )
    if array.ndim != 2 or array.shape[0] == 0 or array.shape[1] < 2:
        raise ValueError(
            f"{name}: expected shape (N, C) with at least one row and two classes, got {array.shape}; "
            "a binary probability p is the two columns 1 - p and p"
        )
    return array


def check_members(name: str, values: ArrayLike, least: int) -> NDArray[Any]:
    """Member-first class scores (M, N, C), M ≥ ``least``, N ≥ 1, C ≥ 2."""
    array = check_array(name, values)
    if array.ndim != 3 or 0 in array.shape or array.shape[2] < 2:
        raise ValueError(
            f"{name}: expected the member-first shape (M, N, C) with at least one row and two classes, "
            f"got {array.shape}; stack the members' outputs along a new first axis"
        )
    if array.shape[0] < least:
        raise ValueError(
            f"{name}: expected at least {least} members, got {array.shape[0]}: a single member has no pairs; "
            "measure diversity on the whole ensemble"
        )
    return array


def row_blocks(array: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """``array`` (…, N, C) cut along N: each block of about ``BLOCK`` elements, a view, with its rows."""
    rows = array.shape[-2]
    step = max(1, BLOCK * rows // array.size)
    for start in range(0, rows, step):
        taken = slice(start, min(start + step, rows))
        yield taken, array[..., taken, :]


def prob_blocks(name: str, probs: NDArray[Any], *, log: bool = False) -> Iterator[tuple[slice, Floats]]:
    """Rows and fresh float64 copies of checked (log-)probabilities (…, N, C), block by block."""
    for rows, view in row_blocks(probs):
        block = view.astype(np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            mass = np.exp(block) if log else block
            total = mass.sum(axis=-1)
        right = np.abs(total - 1) <= SUM_TOLERANCE  # false for NaN
        if not (right.all() and mass.min() >= 0):
            raise ValueError(_improper(name, block, total, rows.start, log))
        yield rows, block


def finite_blocks(name: str, outputs: NDArray[Any]) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Rows and views of finite class scores (…, N, C), block by block."""
    for rows, view in row_blocks(outputs):
        bad = _bad_rows(~np.isfinite(view))
        if bad.any():
            raise ValueError(
                f"{name}: expected finite class scores, got NaN or infinity in {name_rows(bad, rows.start)}; "
                "find the inputs that cause them"
            )
        yield rows, view


def check_count(name: str, value: object) -> None:
    """An integer of at least 1."""
    if not isinstance(value, numbers.Integral) or int(value) < 1:
        raise ValueError(f"{name}={_shown(value)}: expected an integer of at least 1; pass one, such as 15")


def check_number(name: str, value: object, low: float, high: float = math.inf) -> float:
    """A real number in [low, high]; infinity only where ``low`` is −inf (a bare threshold)."""
    number = float(value) if isinstance(value, numbers.Real) else math.nan
    if not low <= number <= high or (math.isinf(number) and math.isfinite(low)):
        if math.isinf(low):
            span = "a number"
        elif math.isinf(high):
            span = f"a finite number of at least {low:g}"
        else:
            span = f"a number from {low:g} to {high:g}"
        raise ValueError(f"{name}={_shown(value)}: expected {span}; pass one")
    return number


def check_choice(name: str, value: object, *choices: str) -> None:
    """``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}={_shown(value)}: expected one of {', '.join(map(repr, choices))}; pass one of them")


def check_share(name: str, share: object, rows: int) -> int:
    """The least number of rows k with k / rows ≥ share, for a share in (0, 1].

    A share that misses k / rows by less than a millionth of a row (``1 - 0.7`` of 10 rows) counts as k / rows.
    """
    number = float(share) if isinstance(share, numbers.Real) else math.nan
    if not 0 < number <= 1:
        raise ValueError(f"{name}={_shown(share)}: expected a share of the rows above 0 and up to 1; write 80 % as 0.8")
    return max(1, math.ceil(number * rows - ROW_SLACK))


def _vector(name: str, array: NDArray[Any], meaning: str) -> NDArray[Any]:
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name}: expected shape (N,) with at least one row, got {array.shape}; pass {meaning}")
    return array


def _shown(value: object) -> str:
    """A value for a message of one line: itself if that is short, else its type."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else type(value).__name__


def _bad_rows(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(…, n, C) → (n,): is anything bad in a row, for any class and member?"""
    return np.asarray(bad.any(axis=-1).reshape(-1, bad.shape[-2]).any(axis=0))


def _improper(name: str, block: Floats, total: Floats, start: int, log: bool) -> str:
    """What is wrong with a block that has failed, gravest first."""
    broken = _bad_rows(np.isnan(block) | ((block == np.inf) if log else np.isinf(block)))
    if broken.any():
        allowed = "log-probabilities (-inf is allowed)" if log else "finite probabilities"
        return f"{name}: expected {allowed}, got NaN or infinity in {name_rows(broken, start)}; find the inputs that cause them"
    negative = _bad_rows(block < 0)
    if negative.any() and not log:
        return (
            f"{name}: expected probabilities, got {block.min():g} among negative entries in "
            f"{name_rows(negative, start)}; apply softmax to logits first"
        )
    off = np.abs(total - 1) > SUM_TOLERANCE
    remedy = "apply log_softmax to logits first" if log else "apply softmax to logits, or divide rows by their sum"
    return (
        f"{name}: expected rows that sum to 1 within {SUM_TOLERANCE:g}{' after exp' if log else ''}, got "
        f"{total[off][0]:g} in {name_rows(_bad_rows(off[..., None]), start)}; {remedy}"
    )
