"""What the columns of a table mean, as the user declares it; nothing is told from the values.

A schema maps each column to its kind, or to a mapping with the kind and its options; as a YAML file:

    age: number
    income: {kind: number, nullable: true}
    joined: date                                      # ISO 8601 days, 2020-01-31
    city: {kind: category, max_categories: 50, unknown: error}
    size: {kind: ordinal, levels: [S, M, L]}          # from the least to the greatest
    smoker: {kind: boolean, "true": ["yes"], "false": ["no"]}
    name: ignore

``nullable``: values may be missing, now or later; without it a missing value is an error, in training too. YAML
reads an unquoted yes, no, on and off as true and false: quote them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import yaml

from quorate._validation import nearest

Kind = Literal["number", "date", "boolean", "ordinal", "category"]
Unknown = Literal["other", "error"]

OPTIONS: dict[str, tuple[str, ...]] = {
    "number": ("nullable",),
    "date": ("nullable",),
    "boolean": ("nullable", "true", "false"),
    "ordinal": ("nullable", "levels"),
    "category": ("nullable", "max_categories", "unknown"),
    "ignore": (),
}
TRUE, FALSE = ("true", "True", "TRUE", "1"), ("false", "False", "FALSE", "0")
MAX_CATEGORIES = 100


@dataclass(frozen=True)
class Column:
    """One declared column.

    nullable: values may be missing, in training or later. levels: of an ordinal, ascending. true, false: words of a
    boolean. max_categories: of a category, how many get a feature of their own. unknown: what a category that training
    didn't have becomes, a feature "other" or an error.
    """

    kind: Kind
    nullable: bool = False
    levels: tuple[str, ...] = ()
    true: tuple[str, ...] = TRUE
    false: tuple[str, ...] = FALSE
    max_categories: int = MAX_CATEGORIES
    unknown: Unknown = "other"

    def to_dict(self) -> dict[str, Any]:
        """The kind and its options as JSON values: a declaration that `column` reads back."""
        options = {name: getattr(self, name) for name in OPTIONS[self.kind]}
        return {"kind": self.kind} | {n: list(v) if isinstance(v, tuple) else v for n, v in options.items()}


def column(
    name: str, declaration: Any, max_categories: int = MAX_CATEGORIES, unknown: Unknown = "other"
) -> Column | Literal["ignore"]:
    """One declaration as a `Column`; max_categories and unknown where it doesn't say. ValueError naming the column."""
    given = {"kind": declaration} if isinstance(declaration, str) else declaration
    if not isinstance(given, Mapping) or not isinstance(given.get("kind"), str):
        raise ValueError(f"column {name!r} must be declared as a kind or as {{kind: …}}, got {declaration!r}: {_kinds()}")
    kind = given["kind"]
    if kind not in OPTIONS:
        raise ValueError(f"column {name!r} has kind {kind!r}, expected {_kinds()}{nearest(kind, list(OPTIONS))}")
    options: dict[str, Any] = {key: value for key, value in given.items() if key != "kind"}
    for key in options:
        if key not in OPTIONS[kind]:
            allowed = ", ".join(OPTIONS[kind]) or "none"
            raise ValueError(
                f"column {name!r} of kind {kind!r} has the option {key!r}, expected {allowed}{nearest(str(key), list(OPTIONS[kind]))}"
            )
    if kind == "ignore":
        return "ignore"
    if not isinstance(options.get("nullable", False), bool):
        raise ValueError(f"column {name!r}: nullable must be true or false, got {options['nullable']!r}")
    if kind == "ordinal" and "levels" not in options:
        raise ValueError(
            f"ordinal column {name!r} must give its levels from the least to the greatest: {{kind: ordinal, levels: […]}}"
        )
    for key in ("levels", "true", "false"):
        if key in options:
            options[key] = _words(name, key, options[key])
    if kind == "boolean":
        both = sorted(set(options.get("true", TRUE)) & set(options.get("false", FALSE)))
        if both:
            raise ValueError(
                f"boolean column {name!r} takes {both} for true and for false: give both lists, without a common word"
            )
    if kind == "category":
        options = {"max_categories": max_categories, "unknown": unknown} | options
        check_max_categories(f"column {name!r}: ", options["max_categories"])
        check_unknown(f"column {name!r}: ", options["unknown"])
    return Column(cast(Kind, kind), **options)


def check_max_categories(where: str, value: Any) -> None:
    """ValueError unless an integer ≥ 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{where}max_categories must be an integer ≥ 1, got {value!r}")


def check_unknown(where: str, value: Any) -> None:
    """ValueError unless "other" or "error"."""
    if value not in ("other", "error"):
        raise ValueError(f"{where}unknown must be 'other' or 'error', got {value!r}")


def read_schema(
    schema: Mapping[str, Any] | str | Path, max_categories: int = MAX_CATEGORIES, unknown: Unknown = "other"
) -> tuple[dict[str, Column], tuple[str, ...]]:
    """(the feature columns in the declared order, the ignored ones) of a schema, or of a .yaml, .yml or .json file with one.

    max_categories, unknown: for category columns that don't say. Raises FileNotFoundError; ValueError for a file that isn't
    readable or says a column twice, kinds and options that don't exist (the nearest is named), a schema without a feature.
    """
    check_max_categories("", max_categories)
    check_unknown("", unknown)
    if not isinstance(schema, Mapping | str | Path):
        raise ValueError(f"schema must be a mapping from columns to kinds, or a file with one, got {schema!r}: {_kinds()}")
    where = "" if isinstance(schema, Mapping) else f"{schema}: "
    declared = schema if isinstance(schema, Mapping) else load_schema(schema)
    odd = [name for name in declared if not isinstance(name, str)]
    if odd:
        raise ValueError(f"{where}column names must be text, got {odd[0]!r} of type {type(odd[0]).__name__}: quote it")
    try:
        columns = {name: column(name, declaration, max_categories, unknown) for name, declaration in declared.items()}
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error
    features = {name: c for name, c in columns.items() if c != "ignore"}
    if not features:
        raise ValueError(
            f"{where}a schema must declare at least one column that is a feature, got {list(columns)[:5]}: {_kinds()}"
        )
    return features, tuple(name for name, c in columns.items() if c == "ignore")


def load_schema(path: str | Path) -> Mapping[Any, Any]:
    """The mapping in a YAML or JSON file, in which no key comes twice."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"schema must be a mapping from columns to kinds, or the path of a .yaml, .yml or .json file with one, got {str(path)!r}: "
            "write {column: kind}, or name such a file"
        )
    if not path.is_file():
        raise FileNotFoundError(f"expected a schema, found no file at {path}: check the path")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text, object_pairs_hook=_once) if path.suffix == ".json" else yaml.load(text, _Strict)
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"{path} is not a readable schema: {' '.join(str(error).split())}") from error
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{path} must hold a mapping from columns to kinds, got {type(content).__name__}: column: kind, line by line"
        )
    return content


class _Strict(yaml.SafeLoader):
    """Safe YAML in which a key that comes again is an error."""


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict[Hashable, Any]:
    return _once([(loader.construct_object(key, True), loader.construct_object(value, True)) for key, value in node.value])


_Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _once(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in pairs:
        if not isinstance(key, Hashable):
            raise ValueError(f"the key {key!r} is not text")
        if key in found:
            raise ValueError(f"{key!r} comes twice: say it once")
        found[key] = value
    return found


def _words(name: str, option: str, given: Any) -> tuple[str, ...]:
    """Levels or words, given as text or integers, each once."""
    listed = list(given) if isinstance(given, Collection) and not isinstance(given, str | Mapping) else []
    if not listed or any(isinstance(word, bool) or not isinstance(word, str | int) for word in listed):
        raise ValueError(
            f"column {name!r}: {option} must be a list of text or integers, got {given!r}: quote words like 'no' in YAML"
        )
    words = tuple(str(word) for word in listed)
    if len(set(words)) < len(words):
        raise ValueError(f"column {name!r}: {option} must differ, got {list(words)}")
    return words


def _kinds() -> str:
    return f"one of {', '.join(OPTIONS)}"
