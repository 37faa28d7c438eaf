"""Schemas: every form of a declaration, files, and each refusal."""

from __future__ import annotations

import json

import pytest

from quorate.data.tables.schema import FALSE, TRUE, Column, column, read_schema

YAML = """\
age: number
income: {kind: number, nullable: true}
joined: date
city: {kind: category, max_categories: 5, unknown: error}
street: category
size: {kind: ordinal, levels: [S, M, L]}
stars: {kind: ordinal, levels: [1, 2, 3], nullable: true}
smoker: {kind: boolean, "true": ["yes"], "false": ["no", 0]}
paid: boolean
name: ignore
row: {kind: ignore}
"""
COLUMNS = {
    "age": Column("number"),
    "income": Column("number", nullable=True),
    "joined": Column("date"),
    "city": Column("category", max_categories=5, unknown="error"),
    "street": Column("category", max_categories=7, unknown="other"),
    "size": Column("ordinal", levels=("S", "M", "L")),
    "stars": Column("ordinal", nullable=True, levels=("1", "2", "3")),
    "smoker": Column("boolean", true=("yes",), false=("no", "0")),
    "paid": Column("boolean", true=TRUE, false=FALSE),
}


def test_yaml_json_and_mapping_say_the_same(tmp_path):
    (tmp_path / "schema.yaml").write_text(YAML)
    features, ignored = read_schema(tmp_path / "schema.yaml", max_categories=7)
    assert features == COLUMNS
    assert list(features) == list(COLUMNS)
    assert ignored == ("name", "row")
    declared = {name: c.to_dict() for name, c in COLUMNS.items()} | {"name": "ignore", "row": "ignore"}
    (tmp_path / "schema.json").write_text(json.dumps(declared))
    for same in (declared, str(tmp_path / "schema.json")):
        assert read_schema(same, 3, "error") == (COLUMNS, ("name", "row"))  # what a column says itself counts


def test_defaults_reach_only_category_columns_that_do_not_say():
    features, _ = read_schema({"a": "category", "b": {"kind": "category", "unknown": "other"}, "c": "number"}, 9, "error")
    assert [(c.max_categories, c.unknown) for c in features.values()] == [(9, "error"), (9, "other"), (100, "other")]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_is_read_back_from_its_own_declaration(name):
    assert column(name, json.loads(json.dumps(COLUMNS[name].to_dict()))) == COLUMNS[name]


BAD = {
    "kind": (
        {"a": "numbr"},
        "column 'a' has kind 'numbr', expected one of number, date, boolean, ordinal, category, ignore; did",
    ),
    "no kind": (
        {"a": {"nullable": True}},
        "column 'a' must be declared as a kind or as {kind: …}, got {'nullable': True}: one of",
    ),
    "number": ({"a": 3}, "column 'a' must be declared as a kind or as {kind: …}, got 3"),
    "option": (
        {"a": {"kind": "ordinal", "level": ["x"]}},
        "has the option 'level', expected nullable, levels; did you mean 'levels'?",
    ),
    "ignored": (
        {"a": {"kind": "ignore", "nullable": True}},
        "column 'a' of kind 'ignore' has the option 'nullable', expected none",
    ),
    "nullable": ({"a": {"kind": "number", "nullable": "yes"}}, "column 'a': nullable must be true or false, got 'yes'"),
    "levels": ({"a": "ordinal"}, "ordinal column 'a' must give its levels from the least to the greatest"),
    "yaml's no": (
        {"a": {"kind": "ordinal", "levels": [False, True]}},
        "must be a list of text or integers, got [False, True]: quote",
    ),
    "floats": ({"a": {"kind": "ordinal", "levels": [0.5, 1.0]}}, "column 'a': levels must be a list of text or integers"),
    "one word": ({"a": {"kind": "ordinal", "levels": "SML"}}, "column 'a': levels must be a list of text or integers, got 'SML'"),
    "repeated": ({"a": {"kind": "ordinal", "levels": ["1", 1]}}, "column 'a': levels must differ, got ['1', '1']"),
    "both": ({"a": {"kind": "boolean", "true": ["1", "0"]}}, "boolean column 'a' takes ['0'] for true and for false: give both"),
    "limit": ({"a": {"kind": "category", "max_categories": 0}}, "column 'a': max_categories must be an integer ≥ 1, got 0"),
    "policy": ({"a": {"kind": "category", "unknown": "drop"}}, "column 'a': unknown must be 'other' or 'error', got 'drop'"),
    "no feature": ({"a": "ignore"}, "must declare at least one column that is a feature, got ['a']"),
    "key": ({1: "number"}, "column names must be text, got 1 of type int: quote it"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_declarations(case):
    schema, message = BAD[case]
    with pytest.raises(ValueError) as caught:
        read_schema(schema)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("s.yaml", "a: number\nb: date\na: category\n", "'a' comes twice: say it once"),
        ("s.json", '{"a": "number", "a": "date"}', "'a' comes twice: say it once"),
        ("s.yml", "a: {kind: ordinal, levels: [1], levels: [2]}", "'levels' comes twice"),
        ("s.yaml", "no: number", "s.yaml: column names must be text, got False of type bool: quote it"),
        ("s.yaml", "[1]: number", "the key [1] is not text"),
        ("s.yaml", "a: numer", "s.yaml: column 'a' has kind 'numer'"),
        ("s.yaml", "a: [", "s.yaml is not a readable schema: while parsing"),
        ("s.yaml", "a: !!python/name:os.system", "s.yaml is not a readable schema: could not determine a constructor"),
        ("s.json", "{", "s.json is not a readable schema: Expecting"),
        ("s.yaml", "- a", "s.yaml must hold a mapping from columns to kinds, got list"),
        ("s.yaml", "", "s.yaml must hold a mapping from columns to kinds, got NoneType"),
        (
            "s.txt",
            "a: number",
            "schema must be a mapping from columns to kinds, or the path of a .yaml, .yml or .json file with one, got",
        ),
    ],
)
def test_refused_files(tmp_path, file, text, message):
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError) as caught:
        read_schema(tmp_path / file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schema_that_is_not_there_and_wrong_defaults(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a schema, found no file at"):
        read_schema(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="max_categories must be an integer ≥ 1, got True"):
        read_schema({"a": "number"}, True)
    with pytest.raises(ValueError, match="unknown must be 'other' or 'error', got 'skip'"):
        read_schema({"a": "number"}, 5, "skip")
