"""Backends of a packed ensemble: measured once when its training begins, kept in the run's recipe, the same when it goes on."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.cli.parse import plain

if TYPE_CHECKING:
    from torch import nn

    from quorate.cli.recipe import EnsembleChoice
    from quorate.data import Data


def stored(run: str | Path) -> dict[str, str] | None:
    """The backends that a run's recipe names, None if there is no such recipe."""
    import yaml

    recipe = Path(run) / "config.yaml"
    if not recipe.is_file():
        return None
    try:
        content: Any = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"the recipe {recipe} is damaged ({' '.join(str(error).split())}): train into another folder") from error
    ensemble = content.get("ensemble") if isinstance(content, dict) else None
    found = ensemble.get("backends") if isinstance(ensemble, dict) else None
    return dict(found) if isinstance(found, dict) else None


def tuned(choice: EnsembleChoice, ensemble: nn.Module, data: Data, batch_size: int, run: str | Path) -> EnsembleChoice:
    """The choice with the backends of its packed layers: those of the run if it was begun, otherwise measured on one training batch.

    Measures training steps (:func:`quorate.packed.tune`) and sets what it finds on `ensemble`.
    """
    import numpy as np

    from quorate.ensemble import OutputLayer
    from quorate.packed import PackedEnsemble, apply_, tune

    packed = ensemble.ensemble if isinstance(ensemble, OutputLayer) else ensemble
    if not choice.tune or choice.backends or not isinstance(packed, PackedEnsemble):
        return choice
    backends = stored(run)
    if backends is None:
        rows = np.arange(min(batch_size, len(data.train)))
        print(f"measuring the backends of the packed layers on {len(rows)} rows; the run's recipe keeps them", file=sys.stderr)
        backends = tune(packed, data.train.batch(rows)[0], training=True).chosen
    apply_(packed, backends)
    return replace(choice, backends=plain(backends))
