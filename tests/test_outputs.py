"""Outputs: what they refuse, what they give back, and files that hold every bit of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.special
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.files import load_arrays, save_arrays
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(2, 5, 3)).astype(np.float32)
P = scipy.special.softmax(RNG.normal(size=(2, 5, 3)), -1)
TOP = (np.array([0, 2, 1, 1, 0]), np.array([0.5, 0.9, 1.0, 0.4, 0.7], np.float32))
Y = np.array([0, 1, 2, 1, 0])


def spoilt(array: np.ndarray, at: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[at] = value
    return array


def assert_equal(a: Outputs, b: Outputs) -> None:
    """Bit for bit, dtypes too."""
    for name in ("kind", "combine", "classes", "costs", "ordered", "names", "n", "width", "members"):
        assert getattr(a, name) == getattr(b, name), name
    pairs = [(x, y) for v, w in zip(a.values, b.values, strict=True) for x, y in zip(v, w, strict=True)]
    assert (a.labels is None) == (b.labels is None)
    for x, y in [*pairs, (a.ids, b.ids), *([] if a.labels is None else [(a.labels, b.labels)])]:
        assert x.dtype.kind == y.dtype.kind
        assert x.dtype == y.dtype or x.dtype.kind == "U"
        np.testing.assert_array_equal(x, y)


# --- what is refused -------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[list[Any], dict[str, Any], str]] = {
    "no stages": ([], {}, "values is empty: expected one array per stage"),
    "kind": ([Z], {"kind": "scores"}, "kind='scores': expected one of logits, probs, top1, values, gaussian"),
    "combine": ([Z], {"combine": "median"}, "combine='median': expected one of probs, logits, last"),
    "logits of probs": ([P], {"kind": "probs", "combine": "logits"}, "needs kind='logits'.*use combine='probs'"),
    "top1 averaged": ([TOP], {"kind": "top1", "combine": "probs"}, "top1 has only the winner's: use combine='last'"),
    "axes": ([Z[0, 0]], {}, r"stage0 has shape \(3,\): expected \(members, rows, classes\)"),
    "no members": ([Z[:0]], {}, r"shape \(0, 5, 3\): expected \(members, rows, classes\)"),
    "no classes": ([Z[..., :0]], {}, r"shape \(2, 5, 0\)"),
    "no targets": ([Z[0, 0]], {"kind": "values"}, r"expected \(members, rows, targets\)"),
    "no rows": ([Z[:, :0]], {}, "the stages have 0 rows: expected at least one"),
    "ragged": ([[[1.0, 2.0], [3.0]]], {}, "stage0 is not one rectangular array: give every member and row the same length"),
    "integers": ([np.ones((5, 3), int)], {}, "stage0 has dtype int64: expected float16, float32 or float64, convert it"),
    "long floats": ([Z.astype(np.longdouble)], {}, "has dtype .*: expected float16, float32 or float64"),
    "text": ([[["a", "b"]]], {}, "has dtype <U1: expected float16"),
    "NaN": ([Z, spoilt(Z, (1, 3), np.nan)], {}, "stage1 has NaN or infinite values in rows 3: mend or drop these rows"),
    "inf": ([spoilt(P, (0, slice(0, 5), 1), -np.inf)], {"kind": "probs"}, "infinite values in rows 0, 1, 2, 3, 4: mend"),
    "probs sum": (
        [P, spoilt(P, (1, 2, 0), 0.9)],
        {"kind": "probs"},
        "stage1 is not probabilities in rows 2 .*give kind='logits'",
    ),
    "probs sign": ([[[1.5, -0.5]]], {"kind": "probs"}, "not probabilities in rows 0 .negative, or sum not 1"),
    "rows differ": ([Z, Z[:, :4]], {}, "stages differ in rows: stage0 has 5, stage1 has 4; give all the same rows"),
    "columns differ": ([Z, Z[..., :2]], {"names": ["a", "b"]}, "stages differ in columns: a has 3, b has 2"),
    "gaussian": ([Z], {"kind": "gaussian"}, "gaussian values have 3 columns: expected 2·D, the means and then the log-variances"),
    "names": ([Z, Z], {"names": ["a"]}, r"names \['a'\]: expected a list of 2 different names"),
    "names twice": ([Z, Z], {"names": ["a", "a"]}, "expected a list of 2 different names, one per stage"),
    "names as text": ([Z, Z], {"names": "ab"}, "names 'ab': expected a list of 2 different names"),
    "classes": ([Z], {"classes": ["a", "b"]}, "2 class names for 3 columns: expected one name per column"),
    "classes twice": ([Z], {"classes": ["a", "b", "a"]}, r"classes \['a', 'b', 'a'\]: expected a list of different class names"),
    "no class names": ([TOP], {"kind": "top1", "classes": []}, "expected a list of different class names"),
    "many classes": ([Z], {"classes": ["word"] * 99}, "classes .{90,110}…: expected"),
    "labels length": ([Z], {"labels": Y[:4]}, r"labels are int64 of shape \(4,\): expected integers of shape \(5,\)"),
    "labels floats": ([Z], {"labels": Y * 1.0}, "labels are float64 of shape .*: expected integers"),
    "labels one-hot": ([Z], {"labels": np.eye(3, dtype=int)[Y]}, r"of shape \(5, 3\): expected integers of shape \(5,\)"),
    "labels high": ([Z], {"labels": Y + 1}, r"labels out of range in rows 2 \(first 3\): expected 0 … 2, drop unlabelled rows"),
    "labels low": ([TOP], {"kind": "top1", "labels": Y - 1}, r"in rows 0, 4 \(first -1\): expected at least 0"),
    "targets": ([Z], {"kind": "values", "labels": Y}, r"labels are int64 of shape \(5,\): expected numbers of shape \(5, 3\)"),
    "targets text": ([Z[..., :1]], {"kind": "values", "labels": list("abcde")}, "labels are <U1 of shape"),
    "targets NaN": (
        [Z[..., :1]],
        {"kind": "values", "labels": [0, 1, np.nan, 3, 4]},
        "labels are NaN or infinite in rows 2: mend",
    ),
    "ids length": ([Z], {"ids": [1, 2]}, r"ids have shape \(2,\): expected one per row, shape \(5,\)"),
    "ids floats": ([Z], {"ids": [1.0, 2, 3, 4, 5]}, "ids are float64: expected integers or strings, convert them"),
    "ids twice": ([Z], {"ids": list("abcba")}, r"ids must differ, 2 come again, first \['a', 'b'\]: give every row its own"),
    "ids huge": ([Z], {"ids": np.arange(5, dtype=np.uint64) + 2**63}, r"expected integers below 2\*\*63, give them as strings"),
    "costs": ([Z, Z], {"costs": [1]}, r"costs \[1\]: expected 2 finite numbers ≥ 0, one per stage"),
    "costs sign": ([Z, Z], {"costs": [1, -1]}, "expected 2 finite numbers ≥ 0"),
    "costs inf": ([Z], {"costs": [np.inf]}, "expected 1 finite numbers ≥ 0"),
    "top1 array": (
        [Z],
        {"kind": "top1"},
        r"stage0 of kind 'top1' is ndarray: expected a pair \(labels \(N,\), probabilities \(N,\)\)",
    ),
    "top1 three": ([(1, 2, 3)], {"kind": "top1"}, "expected a pair"),
    "top1 lengths": ([(TOP[0], TOP[1][:4])], {"kind": "top1"}, r"int64 labels \(5,\) and float32 probabilities \(4,\)"),
    "top1 labels": ([(TOP[0] * 1.0, TOP[1])], {"kind": "top1"}, r"float64 labels .*: expected integers \(N,\) and floats \(N,\)"),
    "top1 probs": ([(TOP[0], TOP[0])], {"kind": "top1"}, "int64 probabilities"),
    "top1 range": ([(TOP[0], TOP[1] * 2)], {"kind": "top1"}, r"probabilities outside \[0, 1\] in rows 1, 2, 4: mend or drop"),
    "top1 NaN": ([(TOP[0], TOP[1] * np.nan)], {"kind": "top1"}, "in rows 0, 1, 2, 3, 4"),
    "top1 sign": ([(TOP[0] - 1, TOP[1])], {"kind": "top1"}, "labels below 0 .* in rows 0, 4"),
    "top1 classes": (
        [TOP],
        {"kind": "top1", "classes": ["a", "b"]},
        "stage0 names class 2, but there are 2 classes: expected 0 … 1",
    ),
}


@pytest.mark.parametrize(("values", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_together_is_refused_in_one_line(values: list[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Outputs(values, **options)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_found_beyond_the_first_block() -> None:
    values = np.zeros((1, 70_000, 2), np.float16)
    values[0, 66_000:66_007] = np.nan
    with pytest.raises(ValueError, match=r"rows 66000, 66001, 66002, 66003, 66004, … \(7 in all\): mend"):
        Outputs([values])
    values[0] = 0.5
    values[0, 69_999, 0] = 0
    with pytest.raises(ValueError, match="not probabilities in rows 69999 "):
        Outputs([values], kind="probs")


# --- reading ---------------------------------------------------------------------------------------------------------


def test_defaults_and_plain_facts() -> None:
    outputs = Outputs([Z, Z[0]], labels=Y.astype(np.uint8))
    assert (outputs.stages, outputs.members, outputs.n, len(outputs), outputs.width) == (2, (2, 1), 5, 5, 3)
    assert (outputs.kind, outputs.combine, outputs.names, outputs.ordered) == ("logits", "probs", ("stage0", "stage1"), False)
    assert outputs.costs is None
    assert outputs.labels.dtype == outputs.ids.dtype == np.int64
    np.testing.assert_array_equal(outputs.ids, np.arange(5))
    assert "5 rows" in repr(outputs)
    assert "\n" not in repr(outputs)
    assert Outputs([TOP], kind="top1").combine == "last"
    assert Outputs([Z[..., :2]], kind="gaussian").width == 1
    assert Outputs([Z[..., :1]], kind="values", labels=Y).labels.shape == (5, 1)
    assert Outputs([P.astype(np.float16)], kind="probs").values[0].dtype == np.float16


@pytest.mark.parametrize("combine", ["probs", "logits", "last"])
def test_probabilities_predictions_and_errors_are_those_of_the_first_stages(combine: str) -> None:
    stages = [RNG.normal(size=(m, 70_000, 4)).astype(np.float32) for m in (1, 2)]
    labels = RNG.integers(0, 4, 70_000)
    outputs = Outputs(stages, combine=combine, labels=labels)
    z = [stage.astype(np.float64) for stage in stages]
    together = {"probs": np.concatenate(z), "logits": np.concatenate(z).mean(0, keepdims=True), "last": z[1]}[combine]
    for stop, members in ((1, z[0]), (None, together), (2, together)):
        p = scipy.special.softmax(members, -1).mean(0)
        np.testing.assert_allclose(outputs.probs(stop), p, rtol=1e-12)
        np.testing.assert_array_equal(outputs.predictions(stop), p.argmax(-1))
        np.testing.assert_array_equal(outputs.errors(stop), p.argmax(-1) != labels)


def test_top1_predictions_are_the_stages_own() -> None:
    outputs = Outputs([TOP, (Y, TOP[1])], kind="top1", labels=Y)
    np.testing.assert_array_equal(outputs.predictions(1), TOP[0])
    np.testing.assert_array_equal(outputs.predictions(), Y)
    assert not outputs.errors().any()
    with pytest.raises(ValueError, match=r"probs\(\) needs scores of every class, these Outputs hold 'top1'"):
        outputs.probs()


@pytest.mark.parametrize("stop", [0, -1, 3])
def test_a_stop_beyond_the_stages_is_refused(stop: int) -> None:
    for outputs in (Outputs([Z, Z], labels=Y), Outputs([TOP, TOP], kind="top1", labels=Y)):
        for read in (outputs.predictions, outputs.errors, outputs.until):
            with pytest.raises(ValueError, match=f"stop={stop}: expected 1 … 2 stages, or None for all"):
                read(stop)


def test_what_needs_labels_or_classes_says_so() -> None:
    with pytest.raises(ValueError, match="these Outputs have no labels: give labels= when they are made"):
        Outputs([Z]).errors()
    with pytest.raises(ValueError, match=r"predictions\(\) needs scores of every class, these Outputs hold 'values'"):
        Outputs([Z], kind="values").predictions()


# --- other Outputs from these ----------------------------------------------------------------------------------------

FOUR = Outputs(
    [Z, Z[:1] * 2, Z * 3, Z[:1] * 4], labels=Y, ids=list("badce"), classes=["x", "y", "z"], costs=[1, 2, 4, 8], names=list("abcd")
)


@pytest.mark.parametrize("index", [[3, 0], np.array([False, True, False, True, True]), np.array([4], np.uint8)])
def test_rows_take_everything_that_belongs_to_them(index: Any) -> None:
    at = np.arange(5)[index]
    taken = FOUR.rows(index)
    assert_equal(taken, Outputs([v[:, at] for v in FOUR.values], labels=Y[at], ids=FOUR.ids[at], classes=FOUR.classes,
                                costs=FOUR.costs, names=FOUR.names))  # fmt: skip
    top = Outputs([TOP], kind="top1", labels=Y).rows(index)
    assert_equal(top, Outputs([(TOP[0][at], TOP[1][at])], kind="top1", labels=Y[at], ids=at))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 5], "rows 0 … 5 are asked for: expected rows 0 … 4"),
        ([-1], "rows -1 … -1 are asked for"),
        ([0.0], r"rows are given as float64 of shape \(1,\): expected integers of one axis, or a mask \(5,\)"),
        ([True, False], r"bool of shape \(2,\)"),
        ([[0]], r"shape \(1, 1\)"),
        (2, r"shape \(\)"),
        ([], "the stages have 0 rows"),
        ([1, 1], r"ids must differ, 1 come again, first \['a'\]"),
    ],
)
def test_rows_that_are_not_there(index: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FOUR.rows(index)


def test_prefix_and_regroup_keep_members_and_costs_together() -> None:
    prefix = FOUR.prefix(2)
    assert (prefix.names, prefix.costs, prefix.members, prefix.ids.tolist()) == (("a", "b"), (1, 2), (2, 1), list("badce"))
    np.testing.assert_array_equal(prefix.probs(), FOUR.probs(2))
    merged = FOUR.regroup([1, 3])
    assert (merged.names, merged.costs, merged.members, merged.classes) == (("a", "b+c+d"), (1, 14), (2, 4), ("x", "y", "z"))
    np.testing.assert_array_equal(merged.probs(), FOUR.probs())
    assert FOUR.regroup([2, 2], names=["p", "q"]).names == ("p", "q")
    assert Outputs([Z, Z]).regroup([2]).costs is None


def test_prefix_and_regroup_refuse_other_sizes() -> None:
    for stages in (0, 5, -1):
        with pytest.raises(ValueError, match=rf"prefix\({stages}\): expected 1 … 4"):
            FOUR.prefix(stages)
    for sizes in ([1, 2], [], [4, 0], [5, -1]):
        with pytest.raises(ValueError, match="expected positive sizes that sum to 4 stages"):
            FOUR.regroup(sizes)
    for outputs in (Outputs([TOP, TOP], kind="top1"), Outputs([Z, Z], combine="last")):
        with pytest.raises(ValueError, match=r"only the last counts can't be merged: keep them apart, or use prefix\(\)"):
            outputs.regroup([2])


@given(st.permutations(range(5)), st.integers(1, 5), st.booleans())
def test_aligned_finds_the_rows_by_their_ids(order: list[int], count: int, text: bool) -> None:
    ids = np.array(["e", "aa", "b", "", "c"]) if text else np.array([7, -3, 0, 2**60, 5])
    outputs = Outputs([Z], ids=ids, labels=Y)
    assert_equal(outputs.aligned(ids[order[:count]]), outputs.rows(order[:count]))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (["a", "y", "zz"], r"2 ids are not in these Outputs, first \['y', 'zz'\]: expected the same rows"),
        ([1, 2], "ids of type int64 can't be matched with ids of type <U1: give the same kind"),
        ([1.0], "ids are float64: expected integers or strings"),
    ],
)
def test_aligned_refuses_ids_that_are_not_here(ids: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FOUR.aligned(ids)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            Outputs([Z], labels=Y, ids=list("badce")),
            r"r1 and r2 have different classes \(\['x', 'y', 'z'\] and 3 unnamed classes\)",
        ),
        (Outputs([TOP], kind="top1"), "any number of unnamed classes"),
        (Outputs([Z], kind="values"), "and 3 targets.: compare runs on one data set"),
        (FOUR.rows([0, 1]), r"r1 \(5 rows\) and r2 \(2 rows\) have different row ids: compare runs on one split"),
        (FOUR.rows([1, 0, 2, 3, 4]), "different row ids"),
        (FOUR._like(FOUR.values, ids=None), "different row ids"),
        (FOUR._like(FOUR.values, labels=None), "r1 and r2 have different labels for the same ids: compare runs on one data set"),
        (FOUR._like(FOUR.values, labels=Y[::-1].copy() * 0), "different labels"),
    ],
)
def test_runs_on_other_rows_are_not_compared(other: Outputs, message: str) -> None:
    FOUR.check_same_rows(FOUR.prefix(1), "r1", "r2")
    with pytest.raises(ValueError, match=message):
        FOUR.check_same_rows(other, "r1", "r2")


# --- files -----------------------------------------------------------------------------------------------------------

ALL_KINDS: dict[str, Outputs] = {
    "plain": Outputs([Z]),
    "full": Outputs(
        [Z, Z[:1].astype(np.float64) / 3], combine="logits", labels=Y, ids=["é", "", "a b", "日本", "a"], classes=["x", "y", "é"],
        costs=[1, 2.5], ordered=True, names=["first", "zweite"],
    ),
    "last": Outputs([Z.astype(np.float16), Z], combine="last", ids=[-5, 2**62, 0, 7, 8]),
    "probs": Outputs([P], kind="probs", labels=Y),
    "top1": Outputs([TOP, TOP], kind="top1", labels=Y + 7, names=["b", "a"], costs=[0, 0]),
    "values": Outputs([Z, Z], kind="values", labels=Z[0], ids=list("edcba")),
    "gaussian": Outputs([Z[..., :2]], kind="gaussian", labels=Y / 3),
    "one row": Outputs([Z[:, :1]], ids=[""]),
}  # fmt: skip


@pytest.mark.parametrize("outputs", ALL_KINDS.values(), ids=ALL_KINDS)
def test_files_give_back_every_field_and_equal_outputs_give_equal_bytes(tmp_path: Path, outputs: Outputs) -> None:
    outputs.save(tmp_path / "a")
    again = Outputs.load(tmp_path / "a")
    assert_equal(again, outputs)
    again.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@settings(max_examples=30)
@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), min_size=1, unique=True))
def test_any_text_is_an_id(tmp_path_factory: pytest.TempPathFactory, ids: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "ids"
    Outputs([np.zeros((len(ids), 2))], ids=ids).save(path)
    assert Outputs.load(path).ids.tolist() == ids


def test_missing_foreign_truncated_and_damaged_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "outputs"
    with pytest.raises(FileNotFoundError, match=f"{path} does not exist: expected Outputs written by Outputs.save"):
        Outputs.load(path)
    ALL_KINDS["full"].save(path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=str(path)) as caught:
            Outputs.load(path)
        assert "\n" not in str(caught.value)
    rng = np.random.default_rng(1)
    complaints = []
    for _ in range(300):  # a flipped bit is refused, or is another number; it is never another exception
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            Outputs.load(path)
        except ValueError as error:
            complaints.append(str(error))
    assert complaints
    assert all(text.startswith(str(path)) and "\n" not in text for text in complaints)


@pytest.mark.parametrize(
    ("drop", "change", "message"),
    [
        ("", {"format": "quorate-outputs/2"}, "has format 'quorate-outputs/2', expected 'quorate-outputs/1'"),
        ("", {"format": None}, "has format None"),
        ("", {"kind": "words"}, "kind='words': expected one of"),
        ("", {"stages": 3}, "lacks a part .*values.2.*: expected Outputs written by Outputs.save"),
        ("", {"stages": "two"}, "lacks a part"),
        ("", {"extra": 1}, "unexpected keyword argument 'extra'"),
        ("", {"costs": [1]}, "expected 2 finite numbers"),
        ("values.1", {}, "lacks a part .*values.1"),
        ("ids.ends", {}, "lacks a part .*ids.ends"),
        ("labels", {}, None),
    ],
)
def test_a_sound_file_with_other_content(tmp_path: Path, drop: str, change: dict[str, Any], message: str | None) -> None:
    path = tmp_path / "outputs"
    ALL_KINDS["full"].save(path)
    arrays, about = load_arrays(path, "")
    save_arrays(path, {name: array for name, array in arrays.items() if name != drop}, about | change)
    if message is None:
        assert Outputs.load(path).labels is None
        return
    with pytest.raises(ValueError, match=message) as caught:
        Outputs.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
