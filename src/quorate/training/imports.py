"""Lightning and torchmetrics, imported late."""

from __future__ import annotations

import logging
from types import ModuleType

from quorate._optional import imported

EXTRA = "quorate[train]"


def lightning() -> ModuleType:
    """The module ``lightning.pytorch``, its start-up notes silenced."""
    module = imported("lightning.pytorch", EXTRA)
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return module


def torchmetrics() -> ModuleType:
    """The module ``torchmetrics``."""
    return imported("torchmetrics", EXTRA)
