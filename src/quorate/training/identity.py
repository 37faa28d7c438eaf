"""What makes a run that run: everything that decides its result, as JSON values. A folder is gone on with only if all of it agrees."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict
from typing import Any

from torch import nn

from quorate.data import Data
from quorate.ensemble import kind_of
from quorate.training.settings import Settings


def identity_of(ensemble: nn.Module, data: Data, settings: Settings, about: dict[str, Any] | None) -> dict[str, Any]:
    """Settings, the data's fingerprint, the ensemble's tensors and structure, and what the caller adds.

    Raises:
        ValueError: ``about`` that is not JSON.
    """
    identity = {
        "settings": settings.deciding(),
        "data": data.fingerprint(),
        "augmentation": None if data.augmentation is None else asdict(data.augmentation),
        "ensemble": {
            "class": type(ensemble).__qualname__,
            "combine": getattr(ensemble, "combine", "probs"),
            **({"kind": "gaussian"} if kind_of(ensemble) == "gaussian" else {}),
            "structure": structure(ensemble),
            "tensors": {name: [str(t.dtype).removeprefix("torch."), *t.shape] for name, t in ensemble.state_dict().items()},
        },
        "about": about or {},
    }
    try:
        return dict(json.loads(json.dumps(identity, allow_nan=False)))  # as it will be read
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"about={about!r} is not JSON ({error}): expected text, numbers, lists and dicts with text keys"
        ) from error


def structure_hash(module: nn.Module) -> str:
    """SHA-256 of the printed modules: strides, dropout and activations, which no tensor shows."""
    return hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(module)).encode()).hexdigest()


def structure(module: nn.Module) -> str:
    """The first 16 digits of :func:`structure_hash`."""
    return structure_hash(module)[:16]
