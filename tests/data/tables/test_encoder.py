"""The encoder against row-by-row reference code, scikit-learn's encoders, its own stored form, and each refusal."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import date

import numpy as np
import pyarrow as pa
import pytest
import sklearn.impute
import sklearn.preprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.data.tables.encoder import TableEncoder
from quorate.data.tables.schema import read_schema
from quorate.files import write_json
from quorate.runs import FORMAT

SCHEMA = {
    "age": {"kind": "number", "nullable": True},
    "since": {"kind": "date", "nullable": True},
    "city": {"kind": "category", "max_categories": 2},
    "size": {"kind": "ordinal", "levels": ["S", "M", "L"]},
    "paid": {"kind": "boolean", "true": ["yes"], "false": ["no"], "nullable": True},
}
TRAIN = {
    "age": [30.0, None, 50.0, 41.0],
    "since": [date(1970, 1, 2), date(1970, 1, 4), None, date(1970, 1, 3)],
    "city": ["Rome", "Oslo", "Bonn", "Rome"],
    "size": ["S", "L", "M", "M"],
    "paid": ["yes", "no", "no", None],
}


NULLABLE = {"c": {"kind": "category", "nullable": True}, "b": {"kind": "boolean", "nullable": True}}


def fit(columns, schema, **given):
    options = {key: given.pop(key) for key in ("max_categories", "unknown") if key in given}
    return TableEncoder.fit(columns, read_schema(schema, **options)[0], **given)


def test_every_kind_by_hand():
    encoder = fit(TRAIN, SCHEMA)
    assert encoder.names == (
        *("age", "age is missing", "since", "since is missing"),
        *("city=Bonn", "city=Rome", "city is other", "size", "paid", "paid is missing"),
    )  # Bonn and Oslo are equally frequent: the first in sorted order stays
    x = encoder.encode(pa.table(TRAIN))
    assert x.dtype == np.float32
    assert x.tolist() == [
        [30, 0, 1, 0, 0, 1, 0, 0, 1, 0],
        [41, 1, 3, 0, 0, 0, 1, 2, 0, 0],
        [50, 0, 2, 1, 1, 0, 0, 1, 0, 0],
        [41, 0, 2, 0, 0, 1, 0, 1, 0, 1],
    ]
    # no age, a new city and a missing paid are known ways to be; columns it doesn't know are not looked at
    new = {"age": [None], "since": ["1970-01-11"], "city": ["Graz"], "size": ["L"], "paid": ["yes"], "x": [1]}
    assert encoder.encode(new).tolist() == [[41, 1, 10, 0, 0, 0, 1, 2, 1, 0]]
    assert encoder.new_categories(new) == {"city": {"Graz": 1}}
    assert encoder.new_categories(TRAIN) == {}  # Oslo is rare, but not new


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "b", "c", "d", "é", "Z"]), min_size=1, max_size=30),
    st.lists(st.sampled_from(["a", "b", "c", "x", "y"]), min_size=1, max_size=10),
    st.integers(1, 7),
)
def test_categories_equal_counting_and_scikit_learn(train, later, limit):
    encoder = fit({"c": train}, {"c": "category"}, max_categories=limit)
    kept = sorted(sorted(Counter(train), key=lambda c: (-Counter(train)[c], c))[:limit])
    assert encoder.names == (*(f"c={c}" for c in kept), "c is other")
    theirs = sklearn.preprocessing.OneHotEncoder(categories=[kept], handle_unknown="ignore", sparse_output=False)
    for rows in (train, later):
        hot = theirs.fit(np.array(train)[:, None]).transform(np.array(rows)[:, None])
        expected = np.concatenate([hot, 1 - hot.sum(1, keepdims=True)], axis=1)
        np.testing.assert_array_equal(encoder.encode({"c": rows}), expected)
    new = Counter(word for word in later if word not in train)
    assert encoder.new_categories({"c": later}) == ({"c": dict(new)} if new else {})


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(st.none(), st.integers(-1000, 1000).map(lambda k: k / 8)), min_size=1, max_size=20))
def test_missing_numbers_equal_scikit_learns_imputer(values):
    column = np.array([math.nan if v is None else v for v in values])
    if np.isnan(column).all():
        column[0] = 2.5
    encoder = fit({"n": column}, {"n": {"kind": "number", "nullable": bool(np.isnan(column).any())}})
    theirs = sklearn.impute.SimpleImputer(strategy="median", add_indicator=True)
    np.testing.assert_allclose(encoder.encode({"n": column}), theirs.fit_transform(column[:, None]), rtol=1e-6)


def test_nullable_gives_an_indicator_that_training_did_not_need():
    kinds = {"n": "number", "d": "date", "b": "boolean", "o": {"kind": "ordinal", "levels": [1, 2, 3, 4]}, "c": "category"}
    nullable = {name: ({"kind": kind} if isinstance(kind, str) else kind) | {"nullable": True} for name, kind in kinds.items()}
    train = {"n": [1.0, 4.0], "d": ["1970-01-01", "1970-01-04"], "b": ["1", "0"], "o": [1, 4], "c": ["u", "v"]}
    gone = {name: pa.nulls(1) for name in train}
    encoder = fit(train, nullable)
    assert encoder.encode(gone).tolist() == [[2.5, 1, 1.5, 1, 0.5, 1, 1.5, 1, 0, 0, 0, 1]]  # medians; no category at all
    plain = fit(train, kinds)
    for name in train:
        with pytest.raises(ValueError) as caught:
            plain.encode(gone | {other: values[:1] for other, values in train.items() if other != name}, np.array([77]))
        assert str(caught.value) == (
            f"column {name!r} must not be empty (no training row was), got missing values in row 77: "
            "fill them in, or declare the column nullable: true and train again"
        )


@pytest.mark.parametrize("kind", ["number", "date", "boolean", "category", "ordinal"])
def test_missing_values_in_training_must_be_declared(kind):
    values = ["1970-01-02", None, "1970-01-09", None] if kind == "date" else [1, None, 0, None]
    declared = {"kind": kind} | ({"levels": [0, 1]} if kind == "ordinal" else {})
    shown = "ordinal, levels: […]" if kind == "ordinal" else kind
    with pytest.raises(ValueError) as caught:
        fit({"a": values}, {"a": declared}, rows=np.array([4, 5, 7, 9]))
    assert str(caught.value) == (
        f"column 'a' has 2 missing values (rows 5, 9): declare it {{kind: {shown}, nullable: true}}, or drop these rows"
    )
    with pytest.raises(ValueError, match=r"column 'a' has 1 missing value \(row 1\): declare"):
        fit({"a": values[:3]}, {"a": declared})
    assert fit({"a": values}, {"a": declared | {"nullable": True}}).names[-1] == "a is missing"


def test_unknown_error_names_value_column_rows_and_the_nearest():
    encoder = fit({"c": ["Berlin", "Bonn", "Berlin"]}, {"c": "category"}, unknown="error", max_categories=1)
    assert encoder.names == ("c=Berlin", "c is other")
    assert encoder.encode({"c": ["Bonn"]}).tolist() == [[0, 1]]  # rare, not unknown
    with pytest.raises(ValueError) as caught:
        encoder.encode({"c": ["Berlin", "Berln", "Bonn", "Berln"]})
    assert str(caught.value) == (
        "column 'c' must hold one of the 2 categories of training, got 'Berln' in rows 1, 3; did you mean 'Berlin'?: "
        "correct it, or declare unknown: other and train again"
    )
    assert fit({"c": ["u", "v"]}, {"c": "category"}, unknown="error").names == ("c=u", "c=v")


def test_category_codes_booleans_and_dictionaries_are_words():
    encoder = fit({"c": [10, 9, None, 10], "b": [True, False, True, None]}, NULLABLE)
    assert encoder.names == ("c=10", "c=9", "c is other", "c is missing", "b", "b is missing")
    x = encoder.encode({"c": pa.array(["9", "10", "7"]).dictionary_encode(), "b": ["1", "FALSE", "true"]})
    assert x.tolist() == [[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 1, 0]]


def test_constant_columns_are_kept_and_no_rows_give_no_rows():
    encoder = fit({"n": [3.0, 3.0], "c": ["u", "u"]}, {"c": "category", "n": "number"})
    assert encoder.names == ("c=u", "c is other", "n")  # the declared order, not the file's
    assert encoder.encode({"n": np.zeros(0), "c": []}).shape == (0, 3)


# --- stored ----------------------------------------------------------------------------------------------------------


def test_stored_and_read_back(tmp_path):
    encoder = fit(TRAIN, SCHEMA | {"age": {"kind": "number", "nullable": True}}, missing=["", "NA"])
    assert TableEncoder.from_dict(json.loads(json.dumps(encoder.to_dict()))) == encoder
    encoder.save(tmp_path / "encoder.json")
    assert TableEncoder.load(tmp_path / "encoder.json") == encoder
    folder = tmp_path / "run"
    kept = {"name": "t", "preprocessing": {"kind": "table", "encoder": encoder.to_dict()}}
    facts = {"format": FORMAT, "status": "finished", "data": kept}
    write_json(folder / "run.json", facts)
    assert TableEncoder.from_run(folder) == encoder
    for other in (None, {"kind": "images"}):
        write_json(folder / "run.json", facts | {"data": kept | {"preprocessing": other}})
        with pytest.raises(ValueError, match=r"run keeps no table encoder: expected a run trained on quorate\.data\.table"):
            TableEncoder.from_run(folder)
    write_json(folder / "run.json", facts | {"data": kept | {"preprocessing": {"kind": "table"}}})
    with pytest.raises(ValueError, match=r"run: a table encoder must have the format 'quorate-table/1', got 'NoneType'"):
        TableEncoder.from_run(folder)
    with pytest.raises(FileNotFoundError, match="is not a folder: expected a run folder"):
        TableEncoder.from_run(tmp_path / "none")


DAMAGE = {
    "format": (lambda d: d.update(format="quorate-table/9"), "must have the format 'quorate-table/1', got 'quorate-table/9'"),
    "columns": (lambda d: d.update(columns=[]), "columns must be a list of at least one mapping"),
    "missing": (lambda d: d.pop("missing"), "missing of a table encoder must be a list of text, got NoneType"),
    "name": (lambda d: d["columns"][0].update(name=3), "column must have a name, got 3"),
    "twice": (lambda d: d["columns"].append(d["columns"][0]), "columns must have different names"),
    "kind": (lambda d: d["columns"][0].update(kind="nmber"), "column 'age' has kind 'nmber'"),
    "ignored": (
        lambda d: d["columns"].append({"name": "x", "kind": "ignore", "indicator": True}),
        "'x' of a table encoder must be",
    ),
    "indicator": (
        lambda d: d["columns"][0].update(indicator=1),
        "column 'age' of a table encoder must be a feature and say indicator",
    ),
    "fill": (
        lambda d: d["columns"][0].update(fill=None),
        "column 'age' of a table encoder must have a fill that is finite in float32, got None",
    ),
    "endless": (lambda d: d["columns"][0].update(fill=1e300), "must have a fill that is finite in float32, got 1e+300"),
    "categories": (
        lambda d: d["columns"][2].update(categories=["b", "a"]),
        "'city' of a table encoder must list its categories once",
    ),
    "rare": (lambda d: d["columns"][2].update(rare=["Rome"]), "'city' of a table encoder must list its categories once"),
    "texts": (lambda d: d["columns"][2].update(rare=[1]), "rare of a table encoder must be a list of text, got list"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_encoders(tmp_path, case):
    change, message = DAMAGE[case]
    content = fit(TRAIN, SCHEMA).to_dict()
    change(content)
    write_json(tmp_path / "encoder.json", content)
    with pytest.raises(ValueError) as caught:
        TableEncoder.load(tmp_path / "encoder.json")
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path / 'encoder.json'}: ")
    with pytest.raises(ValueError, match="a table encoder must have the format"):
        TableEncoder.from_dict([])
    with pytest.raises(FileNotFoundError, match="expected a table encoder written by"):
        TableEncoder.load(tmp_path / "none.json")


# --- refusals --------------------------------------------------------------------------------------------------------

BAD = {
    "endless": (
        {"age": [1.0, math.inf, 2, -math.inf]},
        "column 'age' must hold finite numbers within float32, got inf in rows 1, 3",
    ),
    "float64": ({"age": [1.0, 1e39, 2, 3]}, "column 'age' must hold finite numbers within float32, got 1e+39 in row 1"),
    "blurred": ({"age": [1.7e9, 1.7e9 + 60, 1.7e9 + 120, 1.7e9 + 30]}, "column 'age' has values around 1.7e+09 that differ by"),
    "text": ({"age": ["1", " 2", "x3", "4"]}, "row 2: column 'age' must hold a number, got 'x3'"),
    "no value": ({"city": [None] * 4}, "column 'city' has no value in any of the 4 training rows: declare it 'ignore'"),
    "NaN only": ({"age": [math.nan] * 4}, "column 'age' has no value in any of the 4 training rows"),
    "level": ({"size": ["S", "m", "L", "m"]}, "'size' of kind 'ordinal' must hold one of 'S', 'M', 'L', got 'm' in rows 1, 3"),
    "boolean": (
        {"paid": ["yes", "nope", None, "no"]},
        "'paid' of kind 'boolean' must hold one of 'yes', 'no', got 'nope' in row 1; did",
    ),
    "float words": ({"city": [1.5, 2.0, 1.0, 1.0]}, "column 'city' must hold text, integers or booleans, but holds double"),
    "lengths": ({"age": [1.0]}, "columns must have one value per row, got {'age': 1, 'since': 4"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_columns(case):
    changed, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        fit(TRAIN | changed, SCHEMA)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_rows_and_names():
    encoder = fit(TRAIN, SCHEMA)
    for call in (encoder.encode, encoder.new_categories):
        with pytest.raises(ValueError, match=r"the table has no column 'age', got 'aeg', .*; did you mean 'aeg'\?"):
            call({"aeg" if name == "age" else name: values for name, values in TRAIN.items()})
    twice = pa.Table.from_arrays([pa.array([1.0]), pa.array([2.0])], ["n", "n"])
    with pytest.raises(ValueError, match="the table must name every column once, got 'n' again: rename it"):
        fit(twice, {"n": "number"})
    with pytest.raises(ValueError, match=r"got \{.*'rows': 3\}: give all the same length"):
        encoder.encode(TRAIN, np.arange(3))


@pytest.mark.parametrize("given", [[1, 2], "age", None, np.zeros((2, 2)), [{"age": 1.0}]])
def test_what_is_no_table(given):
    encoder = fit(TRAIN, SCHEMA)
    calls = (encoder.encode, encoder.new_categories, lambda columns: fit(columns, SCHEMA))
    for call in calls:
        with pytest.raises(
            ValueError, match=r"columns must be a mapping from names to values or a pyarrow\.Table, got .*from_pandas"
        ):
            call(given)


def test_columns_that_are_none():
    encoder = fit(TRAIN, SCHEMA)
    with pytest.raises(ValueError, match="the table has no column 'age', got none at all"):
        encoder.encode({})
    with pytest.raises(ValueError, match="the table has no column 'age', got 0"):
        encoder.encode({0: [1.0]})
    for odd, named in ((1.0, "float"), (None, "NoneType"), (np.array(1.0), "ndarray")):
        with pytest.raises(ValueError, match=f"column 'age' must be one value per row, got {named}: pass a 1-D array"):
            encoder.encode(TRAIN | {"age": odd})
    with pytest.raises(ValueError, match=r"column 'city' must be one value per row, got shape \(\)"):
        encoder.encode({name: values[:3] for name, values in TRAIN.items()} | {"city": "abc"})
