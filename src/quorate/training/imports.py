"""Lightning and torchmetrics, imported late, with a remedy where their import fails for a known reason."""

from __future__ import annotations

import importlib
import logging
import warnings
from types import ModuleType


def _import(name: str) -> ModuleType:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # their deprecation warnings are not the user's business
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(f'{name} is not installed (no module {error.name!r}): pip install "quorate[train]"') from error
    except RuntimeError as error:
        if "torchvision::" in str(error):
            raise ImportError(
                f"{name} can't be imported because torchvision does not fit this PyTorch ({error}): "
                "pip uninstall torchvision, or install the torchvision build made for it"
            ) from error
        raise


def lightning() -> ModuleType:
    """The module ``lightning.pytorch``, its start-up notes silenced."""
    module = _import("lightning.pytorch")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return module


def torchmetrics() -> ModuleType:
    """The module ``torchmetrics``."""
    return _import("torchmetrics")
