"""Packages that may be missing, imported late: an ImportError of one line says what to do."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

LONGEST = 300  # characters of a foreign error that are repeated


def imported(name: str, install: str | None = None) -> ModuleType:
    """The module, its deprecation warnings silenced.

    Args:
        name: with dots, as in an import.
        install: what ``pip install`` brings it by, such as ``"quorate[train]"``; by default the package that was not found.

    Raises:
        ImportError: it, or what it needs, is not installed, or torchvision was built for another PyTorch.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not the user's business
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        remedy = missing.partition(".")[0] if install is None else f'"{install}"'
        raise ImportError(f"{name} can't be imported (no module {missing!r}): pip install {remedy}") from error
    except RuntimeError as error:
        if "torchvision::" in str(error):
            raise ImportError(
                f"{name} can't be imported because torchvision does not fit this PyTorch ({one_line(error)}): install the torchvision "
                "build made for it, or pip uninstall torchvision where nothing else needs it"
            ) from error
        raise


def one_line(error: BaseException) -> str:
    """The beginning of the error's text without newlines, or its type where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"
