"""Parsing with jsonargparse, its many-line complaints made one line that names the nearest key, class, or place in a file."""

from __future__ import annotations

import argparse
import difflib
import inspect
import itertools
import re
import typing
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from quorate._validation import nearest
from quorate.cli.usage import UsageError

FROM_PYTHON = ("arrays", "from_datasets")  # loaders that take objects, which no option can be
FULL_PATH = "give the full path of a class or function, as in my_module.Name"

Places = Mapping[str, tuple[str, type]]
"""{option: (module whose names need no path there, what they must make)}."""


class _Parser(ArgumentParser):
    """Help without the list of every class that PyTorch has imported."""

    def format_help(self, *arguments: Any, **options: Any) -> str:
        text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", str(super().format_help(*arguments, **options)))
        return text.replace("Base class for all neural network modules:", "The network:")


def parser(command: str, text: str) -> ArgumentParser:
    """A parser that raises instead of exiting."""
    return _Parser(prog=f"quorate {command}", description=text, exit_on_error=False, allow_abbrev=False)


def parse(using: ArgumentParser, argv: Sequence[str], places: Places | None = None, defaults: bool = True) -> Namespace:
    """Parse, or raise a :class:`UsageError` of one line. Without ``defaults`` there is in the result only what was given.

    With ``places`` ``{"model": ("quorate.models", nn.Module)}``, ``--model ResNet`` means ``--model quorate.models.ResNet``.
    """
    known = places or {}
    arguments = [_full(argument, before, known) for argument, before in zip(argv, ["", *argv], strict=False)]
    for action in using._actions:
        option = action.dest.removesuffix(".help")
        if option != action.dest and option in known:
            action.help, action.metavar = f"the options of one of {known[option][0]}, or of your own", "NAME"
    _help(arguments, using, known)
    for path in _config_files(arguments):
        _check_recipe(path, using, known)
    try:
        return using.parse_args(arguments, defaults=defaults)
    except argparse.ArgumentError as error:
        raise UsageError(_one_line(str(error), using, known)) from error


def _full(argument: str, before: str, places: Places) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.removeprefix("--") in places:
        return f"{option}={_full(value, option, places)}"
    key = before.removeprefix("--").removesuffix(".help")
    if not before.startswith("--") or key not in places or argument not in _names(*places[key]):
        return argument
    return f"{places[key][0]}.{argument}"


def _help(argv: Sequence[str], using: ArgumentParser, places: Places) -> None:
    """For ``--data.help NAME``, ``--data.help=NAME`` or ``--data NAME --data.help``: print what NAME takes, and exit.

    jsonargparse's own answer knows subclasses, not functions that return one.
    """
    for at, argument in enumerate(argv):
        head, equals, path = argument.partition("=")
        option = head.removeprefix("--").removesuffix(".help")
        if head != f"--{option}.help" or option not in places:
            continue
        place = places[option][0]
        if not equals and at + 1 < len(argv) and not argv[at + 1].startswith("-"):
            path = argv[at + 1]
        path = path or _chosen(option, argv)
        if not path:
            print(f"{place} has: {', '.join(_names(*places[option]))}\n--{option}.help NAME tells what one of them takes.")
        else:
            filled = next((getattr(action, "sub_add_kwargs", {}) for action in using._actions if action.dest == option), {})
            full = f"{place}.{path}" if path in _names(*places[option]) else path
            print(_described(option, full, places, filled.get("skip") or set()))
        raise SystemExit(0)


def _chosen(option: str, argv: Sequence[str]) -> str:
    """The value that an option has last, or nothing."""
    pairs = [(before, value) for before, value in itertools.pairwise(argv) if before == f"--{option}"]
    pairs += [(head, value) for head, _, value in (argument.partition("=") for argument in argv) if head == f"--{option}"]
    return next((value for _, value in reversed(pairs) if value), "")


def _described(option: str, path: str, places: Places, filled: set[str]) -> str:
    """The arguments and the docstring of what a class path names; ``filled`` are those that are no options."""
    module, _, name = path.rpartition(".")
    if not module or (module == places[option][0] and not hasattr(import_module(module), name)):
        raise UsageError(_no_such(option, name, places))
    try:
        found = getattr(import_module(module), name)
        parameters = inspect.signature(found).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise UsageError(f"{option} {path!r} can't be imported ({error}): {FULL_PATH}") from error
    lines = [f"--{option} {path}", ""]
    for parameter in parameters:
        if parameter.name in filled or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = " (required)" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        kind = parameter.annotation if isinstance(parameter.annotation, str) else inspect.formatannotation(parameter.annotation)
        kind = "" if parameter.annotation is parameter.empty else f": {kind}"
        lines.append(f"  --{option}.{parameter.name}{kind}{default}")
    return "\n".join([*lines, "", inspect.getdoc(found) or ""]).rstrip()


def _names(place: str, made: type) -> list[str]:
    """The public classes and functions of a module that make a ``made``."""
    found = []
    module = import_module(place)
    for name in module.__all__:
        if name in FROM_PYTHON:
            continue
        value = getattr(module, name)
        if not inspect.isclass(value):
            value = typing.get_type_hints(value).get("return") if inspect.isfunction(value) else None
        elif value is made:
            continue
        if inspect.isclass(value) and issubclass(value, made):
            found.append(name)
    return sorted(found)


def _config_files(argv: Sequence[str]) -> list[Path]:
    """The files that are given as recipes, in order."""
    given = [Path(argument.removeprefix("--config=")) for argument in argv if argument.startswith("--config=")]
    given += [Path(value) for option, value in itertools.pairwise(argv) if option == "--config"]
    return [path for path in given if path.is_file()]


def _check_recipe(path: Path, using: ArgumentParser, places: Places) -> None:
    """UsageError unless the file is YAML of the right outline: a mapping, in it mappings where the options have parts."""
    try:
        text = path.read_text(encoding="utf-8")
        recipe = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: expected YAML in UTF-8, found the byte 0x{error.object[error.start]:02x}: save it as UTF-8"
        ) from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f", line {mark.line + 1}"
        within = f" ({error.context})" if error.context else ""
        raise UsageError(f"{path}{line}: not valid YAML, {error.problem}{within}: mend this line or the one before") from error
    except yaml.reader.ReaderError as error:
        line = f", line {text.count(chr(10), 0, int(error.position)) + 1}"
        raise UsageError(f"{path}{line}: not valid YAML, {error.reason}: mend this line") from error
    dests = [action.dest for action in using._actions if not action.dest.endswith(".help")]
    parts = {dest.rpartition(".")[0] for dest in dests if dest.partition(".")[0] not in places}
    groups = sorted(parts - {""})
    if not isinstance(recipe, dict):
        wanted = ", ".join([*places, *(group for group in groups if "." not in group)])
        found = "nothing" if recipe is None else f"a {type(recipe).__name__}"
        raise UsageError(f"{path}: expected a mapping with keys such as {wanted}, found {found}")
    inside: dict[str, Any] = {"": recipe}
    for group in groups:  # a part of a part comes after it
        outer, _, key = group.rpartition(".")
        if key in inside.get(outer, {}):
            inside[group] = inside[outer][key]
            if not isinstance(inside[group], dict):
                got = f"{inside[group]!r}: write {key}: {{name: value}}"
                raise UsageError(f"{path}: {group} must be a mapping of options, got {got}")


def _one_line(text: str, using: ArgumentParser, places: Places) -> str:
    known = sorted({action.dest for action in using._actions} - {"help"})
    if found := re.search(
        r"Problem with given class_path '([^']+)':\s+(?:Group '([^']+)' does not accept option|Option) '([^']+)'", text
    ):
        place, _, key = found.groups()
        accepted = _accepted(place)
        return f"{place} does not take {key!r}{nearest(key, accepted)} (it takes: {', '.join(accepted)})"
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        key = found[1].lstrip("-").partition("=")[0]
        return f"unknown option {found[1]!r}{_suggest(key, known, '--')}"
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        key = f"{found[1]}.{found[2]}"
        return f"unknown key {key!r}{_suggest(key, known)}"
    if found := re.search(r"Option '([^']+)' is not accepted", text):
        key = found[1]
        return f"unknown key {key!r}{_suggest(key, known)}"
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    text = (
        _wrong_value(text)
        or _wrong_class(text, places)
        or _wrong_union(text)
        or re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)
    )
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) < 400 else text[:400] + " …"


def _option(text: str) -> str:
    """The keys that a complaint goes through, joined by dots."""
    return ".".join(re.findall(r'Parser key "([^"]+)":', text))


def _wrong_value(text: str) -> str | None:
    """The line for a value of another type, however deep."""
    found = re.search(r"Expected an? (.+)\. Got value: (.*)", text)
    if not found:
        return None
    kind = re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", found[1])
    return f"{_option(text[: found.start()])}: expected {kind}, got {found[2]!r}"


def _wrong_union(text: str) -> str | None:
    """The line for a value that is of none of several types."""
    found = re.search(r"Subtypes: \[(.*)\]", text)
    if not found:
        return None
    kind = found[1].replace("NoneType", "null").replace(", ", " or ")
    return f"{_option(text[: found.start()])}: expected {kind}, got {text.rpartition('Given value: ')[2]!r}"


def _wrong_class(text: str, places: Places) -> str | None:
    """The line for a class path: of no class, of something else, without the arguments it needs."""
    head, errors, tail = text.rpartition("Errors:")  # the last is the innermost
    found = re.match(r"\s+- (.*?)\n\s+- Expected a NoneType\n", tail, re.S)
    if not errors or not found or re.match(r"Expected an? (?!dot import)", found[1]):
        return None
    option, reason = _option(head), found[1]
    if given := re.match(r"Problem with given class_path '([^']+)':\s+(.*)", reason, re.S):
        path, reason = given.groups()
    else:
        given = re.search(r"Given value: (?:\{'class_path': )?'?([^'\n,}]*)", tail)
        path = given[1] if given else ""
    module, _, name = path.rpartition(".")
    if (not module and path.isidentifier()) or (option in places and module == places[option][0] and "no attribute" in reason):
        return _no_such(option, name, places)
    if re.match(r"No module named|module .* has no attribute|cannot import name|Unexpected import path", reason):
        return f"{option} {path!r} can't be imported ({reason}): {FULL_PATH}"
    if found := re.search(r"fail_untyped=True.* Parameter '([^']+)' from", reason, re.S):
        filled = "; quorate fills in shape, classes and channels: annotate or rename it" if option == "model" else ": annotate it"
        return f"{path} needs {found[1]!r}, which has no type annotation{filled}"
    if found := re.match(r"Import path .*does not correspond to a subclass of (\w+)", reason):
        return f"{option} {path!r}: expected a subclass of {found[1]}, or a function whose return annotation is one"
    if found := re.match(r"the following arguments are required: (.*)", reason):
        return f"{option} {path!r} needs {found[1]}: give {' '.join(f'--{option}.{key}' for key in found[1].split(', '))}"
    if reason.startswith("Not a valid subclass"):
        return f"{option}: expected a class path, or a mapping with class_path and init_args, got {path}"
    return f"{option} {path!r} can't be used: {reason}"


def _no_such(option: str, name: str, places: Places) -> str:
    if option not in places:
        return f"{option} {name!r}: expected the full path of a class or function, as in my_module.{name}"
    names = _names(*places[option])
    return (
        f"{places[option][0]} has no {option} {name!r}{nearest(name, names)} (it has: {', '.join(names)}); "
        f"your own {option} needs its full path, as in my_module.{name}"
    )


def _suggest(key: str, known: list[str], dashes: str = "") -> str:
    """The nearest known key, by the whole or else by its last part, of keys that do not lie too deep to be meant by it."""
    tails = {name.rpartition(".")[2]: name for name in known if name.count(".") <= 2}
    close = difflib.get_close_matches(key, known, 1, 0.7)
    close = close or [tails[tail] for tail in difflib.get_close_matches(key.rpartition(".")[2], list(tails), 1, 0.5)]
    return f"; did you mean {dashes + close[0]!r}?" if close else ""


def _accepted(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    try:
        return list(inspect.signature(getattr(import_module(module), name)).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        return []


def plain(value: Any) -> Any:
    """A parsed Namespace as JSON values."""
    if isinstance(value, Namespace):
        return {key: plain(inner) for key, inner in vars(value).items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value
