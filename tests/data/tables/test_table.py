"""The table loader: splits, labels, targets, groups, folds, other files, and nothing of the other rows in the encoder."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from quorate.data.tables.encoder import TableEncoder
from quorate.data.tables.table import read_table, table

SCHEMA = {"age": "number", "city": "category"}
HOW = {"schema": SCHEMA, "target": "label", "task": "classification"}


def columns(rows=60, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "age": [round(v, 3) for v in rng.normal(40, 10, rows).tolist()],
        "city": [["Oslo", "Rome", "Bonn"][i] for i in rng.integers(0, 3, rows)],
        "label": ["yes" if i % 3 == 0 else "no" for i in range(rows)],
        "price": [round(v, 3) for v in rng.normal(size=rows).tolist()],
        "person": [f"p{i % 12}" for i in range(rows)],
        "fold": [i % 5 for i in range(rows)],
    }


@pytest.fixture
def write(tmp_path):
    def to(content, name="t.csv"):
        path = tmp_path / name
        if name.endswith(".csv"):
            pyarrow.csv.write_csv(pa.table(content), path)
        else:
            pq.write_table(pa.table(content), path)
        return path

    return to


def picked(*names, **changes):
    every = columns() | changes
    return {name: every[name] for name in names}


def test_classification_rows_keep_their_values_labels_and_ids(write):
    content = picked("age", "city", "label")
    data = table(write(content), **HOW, seed=3)
    assert data.task == "classification"
    assert data.classes == ("no", "yes")
    assert [len(s) for s in data.splits().values()] == [36, 6, 6, 12]
    assert np.sort(np.concatenate([s.ids for s in data.splits().values()])).tolist() == list(range(60))
    encoder = TableEncoder.from_dict(json.loads(json.dumps(data.preprocessing))["encoder"])
    for split in data.splits().values():
        assert [data.classes[label] for label in split.y] == [content["label"][i] for i in split.ids]
        np.testing.assert_array_equal(split.x[:, 0], np.array(content["age"], np.float32)[split.ids])
        np.testing.assert_array_equal(split.x, encoder.encode({n: np.array(content[n])[split.ids] for n in SCHEMA}))
    np.testing.assert_allclose(data.mean[0], np.mean([content["age"][i] for i in data.train.ids]), rtol=1e-6)
    assert table(write(content), **HOW, seed=3).fingerprint() == data.fingerprint()
    assert table(write(content), **HOW, seed=4).fingerprint() != data.fingerprint()


def test_csv_and_parquet_give_the_same_data(write):
    content = picked("age", "city", "label")
    there = write(content | {"city": pa.array(content["city"]).dictionary_encode()}, "t.parquet")
    assert table(there, **HOW).fingerprint() == table(write(content), **HOW).fingerprint()


def test_the_encoder_knows_training_rows_only(write):
    content = picked("age", "city", "label", "fold")
    first = table(write(content), **HOW, fold="fold", test_folds=[2], seed=1)
    outside = np.concatenate([s.ids for part, s in first.splits().items() if part != "train"])
    for i in outside:
        content["age"][i], content["city"][i] = 1e6 + i, f"new{i}"
    data = table(write(content), **HOW, fold="fold", test_folds=[2], seed=1)
    assert data.preprocessing["encoder"] == first.preprocessing["encoder"]
    assert data.train.x.tolist() == first.train.x.tolist()
    new = data.preprocessing["new_categories"]
    assert {part: sum(c["city"].values()) for part, c in new.items()} == {
        part: len(s) for part, s in data.splits().items() if part != "train"
    }


def test_folds_are_the_test_split_and_groups_stay_whole(write):
    content = columns()
    content["fold"] = [["a", "b", "c"][int(p[1:]) % 3] for p in content["person"]]
    data = table(write(content), **HOW, fold="fold", test_folds=["b"], groups="person", other="ignore")
    assert sorted(data.test.ids.tolist()) == [i for i in range(60) if content["fold"][i] == "b"]
    people = {part: {content["person"][i] for i in s.ids} for part, s in data.splits().items()}
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 12
    names = sorted(set(content["person"]))
    assert all(names[g] == content["person"][i] for s in data.splits().values() for g, i in zip(s.groups, s.ids, strict=True))


def test_groups_on_two_sides_are_named_as_in_the_file(write):
    content = columns()
    options = HOW | {"other": "ignore", "groups": "person"}
    path = write(content)
    with pytest.raises(ValueError) as caught:
        table(path, **options, fold="fold", test_folds=[0])
    assert str(caught.value) == (
        f"a group of column 'person' may be in one split only, got 12 in both the test folds and the other folds of {path}, such as "
        "'p0', 'p1', 'p10', 'p11', 'p2' and 7 more: move their rows to one side, or drop groups= if all rows are independent"
    )
    later = content | {
        "person": [f"q{p}" for p in content["person"][:57]] + ["p7", "p3", "p5"],
        "label": [None, *content["label"][1:]],
    }
    later["person"][0] = "p1"  # in a row that is dropped
    with pytest.raises(ValueError) as caught:
        table(path, **options, test=write(later, "u.csv"), missing_labels="drop")
    where = f"train ({path}) and test ({path.parent / 'u.csv'})"
    assert f"got 3 in both {where}, such as 'p3', 'p5', 'p7': move" in str(caught.value)
    later["person"][57:] = ["q1"] * 3
    data = table(path, **options, test=write(later, "u.csv"), missing_labels="drop")
    assert len(data.test) == 59


def test_regression_on_several_targets_from_numbers(write):
    content = picked("age", "city", "price", "person")
    schema = {"city": "category", "person": "ignore"}
    data = table(
        write(content, "t.parquet"), schema=schema, target=["price", "age"], task="regression", fractions=[0.5, 0.2, 0.2, 0.1]
    )
    assert (data.task, data.targets, data.classes) == ("regression", ("price", "age"), ())
    assert [len(s) for s in data.splits().values()] == [30, 12, 12, 6]
    for split in data.splits().values():
        assert split.y.dtype == np.float32
        np.testing.assert_array_equal(split.y, np.array([content["price"], content["age"]], np.float32).T[split.ids])


def test_files_of_their_own(write):
    train, other = picked("age", "city", "label"), columns(20, seed=1)
    other = {name: other[name] for name in train} | {"label": ["yes", "no"] * 10}
    data = table(
        write(train), **HOW, test=write(other, "u.csv"), validation=write(other, "v.parquet"), ood={"far": write(other, "w.csv")}
    )
    assert [len(s) for s in data.splits().values()] == [54, 20, 6, 20]
    assert (data.test.ids.tolist(), data.validation.ids.tolist()) == (list(range(60, 80)), list(range(80, 100)))
    np.testing.assert_array_equal(data.test.x, data.ood["far"].x)
    assert data.test.y.tolist() == data.validation.y.tolist() == [1, 0] * 10
    assert data.ood["far"].y is None
    calibrated = table(
        write(train), **HOW, test=write(other, "u.csv"), validation=write(other, "v.csv"), calibration=write(other, "c.csv")
    )
    assert [len(s) for s in calibrated.splits().values()] == [60, 20, 20, 20]


def test_declared_classes_order_labels_and_missing_ones_are_dropped_and_counted(write):
    content = picked("age", "city", "label")
    content["label"][7] = content["label"][20] = None
    path = write(content)
    with pytest.raises(ValueError) as caught:
        table(path, **HOW)
    assert (
        str(caught.value) == f"{path}: every row needs 'label', got none in rows 7, 20: fill it in, or pass missing_labels='drop'"
    )
    data = table(path, **HOW, classes=["yes", "no"], missing_labels="drop")
    assert data.classes == ("yes", "no")
    assert data.preprocessing["dropped"] == {"train": 2}
    ids = np.concatenate([s.ids for s in data.splits().values()])
    assert sorted(ids.tolist()) == [i for i in range(60) if i not in (7, 20)]  # rows keep their numbers
    targets = picked("age", "city", "price")
    targets["price"][3] = None
    found = table(write(targets), schema=SCHEMA, target="price", task="regression", missing_labels="drop")
    assert 3 not in np.concatenate([s.ids for s in found.splits().values()])


def test_labels_may_be_integers_or_booleans(write):
    content = picked("age", "city")
    for labels, classes in (
        (np.arange(60) % 11, tuple(sorted(map(str, range(11))))),
        (np.arange(60) % 2 == 0, ("false", "true")),
    ):
        path = write(content | {"label": labels}, "t.parquet")
        data = table(path, **HOW, fractions=[0.4, 0.2, 0.2, 0.2])
        assert data.classes == classes
        assert all(data.classes[y] == str(labels[i]).lower() for y, i in zip(data.train.y, data.train.ids, strict=True))


def test_new_rows_are_encoded_as_the_training_rows(write, tmp_path):
    content = picked("age", "city", "label")
    data = table(write(content), **HOW, missing=["", "?"])
    encoder = TableEncoder.from_dict(data.preprocessing["encoder"])
    x, new = read_table(write(content), encoder)  # the label is not looked at
    np.testing.assert_array_equal(x[data.test.ids], data.test.x)
    assert new == {}
    later = tmp_path / "later.txt"
    later.write_text("city;age\nParis;1,5\nOslo;2\nParis;3\n")
    x, new = read_table(later, encoder, delimiter=";", decimal=",", format="csv")
    assert x[:, 0].tolist() == [1.5, 2, 3]
    assert new == {"city": {"Paris": 2}}
    later.write_text("city,age\nOslo,1\n?,2\n")
    with pytest.raises(ValueError, match=r"later.txt: column 'city' must not be empty .* got missing values in row 1: "):
        read_table(later, encoder, format="csv")


BAD = {
    "task": ({"task": "clasification"}, "task must be 'classification' or 'regression', got 'clasification'; did you mean"),
    "no label": ({"target": "lable"}, "t.csv has no column 'lable', got 'age', 'city', 'label'"),
    "leak": (
        {"schema": SCHEMA | {"label": "category"}},
        "column 'label' is the target column and can't be a feature too: take it out",
    ),
    "two labels": ({"target": ["label", "price"]}, "target must be one column, or different columns for a regression, got"),
    "same targets": ({"target": ["price", "price"], "task": "regression"}, "target must be one column, or different columns"),
    "no target": ({"target": []}, "target must be one column, or different columns for a regression, got []"),
    "classes": ({"task": "regression", "target": "price", "classes": ["a"]}, "a regression has no classes, got classes=['a']"),
    "policy": ({"missing_labels": "skip"}, "missing_labels must be 'error' or 'drop', got 'skip'"),
    "group feature": ({"groups": "city"}, "column 'city' is the groups column and can't be a feature too"),
    "group target": ({"groups": "label"}, "column 'label' can't be groups column and something else: name another one"),
    "fold group": (
        {"groups": "fold", "fold": "fold", "test_folds": [1]},
        "column 'fold' can't be fold column and something else",
    ),
    "target type": ({"target": 2}, "target must be a column, or a sequence of columns, got 2: write target=[…]"),
    "target name": ({"target": [2]}, "target must be the name of a column, got 2"),
    "schema type": ({"schema": ["age"]}, "schema must be a mapping from columns to kinds, or a file with one, got ['age']"),
    "groups type": ({"groups": 3}, "groups must be the name of a column, got 3"),
    "classes type": ({"classes": {"no", "yes"}}, "classes must be a sequence of names, got {"),
    "one class": ({"classes": "no"}, "classes must be a sequence of names, got 'no': write classes=[…]"),
    "folds type": ({"fold": "fold", "test_folds": 1}, "test_folds must be a sequence of values of the fold column, got 1"),
    "ood type": ({"ood": "far.csv"}, "ood must be a mapping from names to files, got 'far.csv'"),
    "other": ({"other": "ignroe"}, "other must be 'error' or 'ignore', got 'ignroe'"),
    "fold alone": (
        {"fold": "fold"},
        "fold names a column and test_folds lists the values whose rows are the test split, got fold='fold'",
    ),
    "folds alone": ({"test_folds": [1]}, "fold names a column and test_folds lists the values"),
    "folds and file": (
        {"fold": "fold", "test_folds": [1], "test": "x.csv"},
        "the test split is a file or folds, got fold='fold' and",
    ),
    "fold value": ({"fold": "fold", "test_folds": [7]}, "column 'fold' has no fold '7', got '0', '1', '2', '3', '4'"),
    "all folds": (
        {"fold": "fold", "test_folds": range(5)},
        "test_folds must leave rows for training, got all 5 folds: leave one out",
    ),
    "class": (
        {"classes": ["yes", "noo"]},
        "column 'label' must hold one of the 2 classes, got 'no' in rows 1, 2, 4, 5, 7 and 35 more",
    ),
    "undeclared": (
        {"other": "error", "schema": {"age": "number"}},
        "t.csv has the column 'city' (4 in all), which isn't declared",
    ),
    "number": ({"schema": {"city": "number"}}, "t.csv, line 2 (row 0): column 'city' must hold a number, got"),
    "not text": ({"task": "regression"}, "t.csv, line 2 (row 0): column 'label' must hold a number, got 'yes'"),
    "fractions": ({"fractions": [0.5, 0.5]}, "fractions must be 4, for train, validation, calibration, test, got [0.5, 0.5]"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(write, case):
    changed, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        table(write(columns()), **(HOW | {"other": "ignore"} | changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_refused_rows_are_named_as_in_the_file(write):
    content = columns()
    said = []
    for name, value, how in [
        ("person", None, {"groups": "person"}),
        ("fold", None, {"fold": "fold", "test_folds": [0]}),
        ("price", float("inf"), {"target": "price", "task": "regression"}),
        ("price", 1e39, {"target": ["price"], "task": "regression"}),
        ("age", float("-inf"), {}),
    ]:
        path = write(content | {name: [*content[name][:50], value, *content[name][51:]]})
        with pytest.raises(ValueError) as caught:
            table(path, **(HOW | {"other": "ignore"} | how))
        assert str(caught.value).startswith(f"{path}: ")
        said.append(str(caught.value).removeprefix(f"{path}: "))
    assert said == [
        "column 'person' must say something in every row, got nothing in row 50: fill it in",
        "column 'fold' must say something in every row, got nothing in row 50: fill it in",
        "target 'price' must be finite in float32, got inf in row 50: correct it",
        "target 'price' must be finite in float32, got 1e+39 in row 50: correct it",
        "column 'age' must hold finite numbers within float32, got -inf in row 50: correct them, or leave them empty in a nullable column",
    ]


def test_a_value_missing_outside_training_only_names_its_row(write):
    content = picked("age", "city", "label")
    data = table(write(content), **HOW)
    row = int(data.calibration.ids[0])
    content["age"][row] = None
    with pytest.raises(ValueError, match=f"column 'age' must not be empty .* in row {row}: .*nullable: true"):
        table(write(content), **HOW)
    assert table(write(content), **(HOW | {"schema": SCHEMA | {"age": {"kind": "number", "nullable": True}}})).train.shape == (6,)


def test_a_class_with_too_few_rows_names_column_and_value(write):
    content = picked("age", "city", "label")
    content["label"][7] = "perhaps"
    path = write(content)
    with pytest.raises(ValueError, match=f"^{path}: column 'label': every part needs .* but class 'perhaps' has 1 row") as caught:
        table(path, **HOW)
    assert "\n" not in str(caught.value)
    kept = table(write(content, "test.csv"), **HOW, test=path, validation=path, calibration=path)
    assert kept.classes == ("no", "perhaps", "yes")  # nothing is cut off: one row will do
    with pytest.raises(ValueError, match=r"fractions"):
        table(path, **HOW, fractions=[0.5, 0.5, 0.5, 0.5])


@pytest.mark.parametrize("groups", [{}, {"groups": "person"}])
def test_a_column_of_numbers_as_label_asks_for_a_regression(write, groups):
    path = write(picked("age", "city", "price", "person", price=[i / 8 for i in range(60)]))
    how = {"schema": SCHEMA, "target": "price", "other": "ignore"} | groups
    with pytest.raises(ValueError) as caught:
        table(path, **how, task="classification")
    assert str(caught.value) == (
        f"{path}: column 'price' has 60 different values in 60 rows: is it a regression? give task='regression' (on the command line "
        "--data.task regression)"
    )
    assert table(path, **how, task="regression").targets == ("price",)
    words = write(picked("age", "city", "price", "person", price=[f"p{i}" for i in range(60)]))
    with pytest.raises(ValueError, match=r"column 'price': every .*row"):
        table(words, **how, task="classification")


def test_labels_and_targets_of_other_types_and_files_without_any(write):
    content = picked("age", "city", "label")
    with pytest.raises(ValueError, match=r"t.parquet: column 'label' must hold text, integers or booleans, but holds double"):
        table(write(content | {"label": [0.5] * 60}, "t.parquet"), **HOW)
    with pytest.raises(ValueError, match=r"t.parquet: column 'label' is declared number, but holds bool"):
        table(write(content | {"label": [True] * 60}, "t.parquet"), **(HOW | {"task": "regression"}))
    with pytest.raises(ValueError, match=r"t.parquet, row 4: column 'label' must hold a number, got 'x'"):
        table(write(content | {"label": ["1", "2", "3", "4", *"x" * 56]}, "t.parquet"), **(HOW | {"task": "regression"}))
    with pytest.raises(ValueError, match=r"t.csv, line 5 \(row 3\): column 'label' must hold a number, got 'nan': correct it"):
        table(
            write(content | {"label": [1.0, 2, 3, np.nan, *range(56)]}), **(HOW | {"task": "regression"}), missing_labels="drop"
        )
    with pytest.raises(ValueError, match=r"t.csv: column 'label' has values around 1.7e\+09 that differ by 17.3"):
        table(write(content | {"label": 1.7e9 + np.arange(60)}), **(HOW | {"task": "regression"}))
    with pytest.raises(ValueError, match=r"every row needs 'label', got none in rows 0, 1, 2, 3, 4 and 55 more: fill it in$"):
        table(write(content | {"label": pa.nulls(60, pa.string())}), **HOW, missing_labels="drop")
    with pytest.raises(ValueError, match=r"u.csv has no column 'label'"):
        table(write(content), **HOW, test=write(picked("age", "city"), "u.csv"))
    with pytest.raises(FileNotFoundError, match="expected a table, found no file at"):
        table(write(content), **HOW, test="none.csv")


@pytest.mark.slow
def test_a_million_rows_of_twenty_columns(tmp_path):
    rng = np.random.default_rng(0)
    content = {f"n{i}": pa.array(rng.normal(size=1_000_000).round(4)) for i in range(16)}
    content |= {f"c{i}": pa.array(np.array(["Oslo", "Rome", "Bonn"])[rng.integers(0, 3, 1_000_000)]) for i in range(3)}
    content["label"] = pa.array(rng.integers(0, 2, 1_000_000))
    pyarrow.csv.write_csv(pa.table(content), tmp_path / "t.csv")
    schema = {name: "number" if name[0] == "n" else "category" for name in content if name != "label"}
    data = table(tmp_path / "t.csv", schema=schema, target="label", task="classification")
    assert data.train.x.shape == (600_000, 28)
