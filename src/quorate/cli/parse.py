"""Parsing with jsonargparse, its many-line complaints made one line that names the nearest key."""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from quorate._validation import nearest
from quorate.cli.main import UsageError


class _Parser(ArgumentParser):
    """Help without the list of every class that PyTorch has imported."""

    def format_help(self, *arguments: Any, **options: Any) -> str:
        text = re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", str(super().format_help(*arguments, **options)))
        text = re.sub(r"  --data\.help .*?(?=  --data )", "", text, flags=re.S)  # it knows classes only, these are functions
        return text.replace("Base class for all neural network modules:", "The network:")


def parser(command: str, text: str) -> ArgumentParser:
    """A parser that raises instead of exiting."""
    return _Parser(prog=f"quorate {command}", description=text, exit_on_error=False)


def parse(using: ArgumentParser, argv: Sequence[str], places: Mapping[str, str] | None = None) -> Namespace:
    """Parse, or raise a :class:`UsageError` of one line.

    ``places`` maps options to modules whose names need no path there: with ``{"model": "quorate.models"}``, ``--model ResNet`` means
    ``--model quorate.models.ResNet``.
    """
    known = places or {}
    try:
        return using.parse_args([_full(argument, before, known) for argument, before in zip(argv, ["", *argv], strict=False)])
    except argparse.ArgumentError as error:
        raise UsageError(_one_line(str(error), using)) from error


def _full(argument: str, before: str, places: Mapping[str, str]) -> str:
    option, equals, value = argument.partition("=")
    if equals and option.removeprefix("--") in places:
        return f"{option}={_full(value, option, places)}"
    place = places.get(before.removeprefix("--").removesuffix(".help")) if before.startswith("--") else None
    return f"{place}.{argument}" if place and argument.isidentifier() and hasattr(import_module(place), argument) else argument


def _one_line(text: str, using: ArgumentParser) -> str:
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
    text = re.sub(r"Parser key \"([^\"]+)\":", r"\1:", text)
    text = re.sub(r"\s+", " ", text).strip()
    return text if len(text) < 400 else text[:400] + " …"


def _suggest(key: str, known: list[str], dashes: str = "") -> str:
    """The nearest known key, by the whole or else by its last part."""
    tails = {name.rpartition(".")[2]: name for name in known}
    close = difflib.get_close_matches(key, known, 1, 0.5)
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
    return value
