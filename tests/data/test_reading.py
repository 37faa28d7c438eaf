"""Rows of one shape, and rows that cannot be read."""

from __future__ import annotations

import numpy as np
import pytest

from quorate.data.reading import check_unreadable, one_shape, readable_rows
from quorate.data.store import Unreadable

ROWS = {"a": np.zeros((3, 4, 5)), "b": np.ones((3, 4, 5)), "c": np.zeros((3, 5, 4))}


def read(name: str) -> np.ndarray:
    if name not in ROWS:
        raise Unreadable(f"damaged {name}")
    return ROWS[name]


def test_one_shape() -> None:
    shape, checked = one_shape(read, ["x", "a", "b", "c"], repr, "resize")
    assert shape == (3, 4, 5)
    assert checked("b") is ROWS["b"]
    with pytest.raises(ValueError, match=r"one shape, got \(3, 4, 5\) in 'a' and \(3, 5, 4\) in 'c': resize") as caught:
        checked("c")
    assert not isinstance(caught.value, Unreadable)
    with pytest.raises(Unreadable, match="damaged x"):
        checked("x")
    with pytest.raises(ValueError, match=r"none of 2 rows can be read \('x': damaged x\)"):
        one_shape(read, ["x", "y"], repr, "")
    with pytest.raises(ValueError, match="none of 0 rows"):
        one_shape(read, [], repr, "")


def test_readable_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert readable_rows("here", 3, {}, "error").tolist() == [0, 1, 2]
    assert capsys.readouterr().err == ""
    assert readable_rows("here", 9, {7: "late", 2: "early"}, "skip").tolist() == [0, 1, 3, 4, 5, 6, 8]
    assert capsys.readouterr().err == "here: 2 of 9 rows cannot be read: row 2 (early), row 7 (late): left out\n"
    with pytest.raises(ValueError, match=r"7 of 9 rows cannot be read: row 0 \(x\), .*, row 4 \(x\) and 2 more: mend"):
        readable_rows("here", 9, dict.fromkeys(range(7), "x"), "error")
    with pytest.raises(ValueError, match="2 of 2 rows cannot be read"):
        readable_rows("here", 2, {0: "x", 1: "x"}, "skip")
    with pytest.raises(
        ValueError, match=r"^here: 1 of 2 files cannot be read: 'b' \(x\): mend or remove them, or leave them out by"
    ):
        readable_rows("here", 2, {1: "x"}, "error", "files", lambda i: repr("ab"[i]))


def test_check_unreadable() -> None:
    check_unreadable("error")
    check_unreadable("skip")
    with pytest.raises(ValueError, match="unreadable must be 'error' or 'skip', got 'no'"):
        check_unreadable("no")
