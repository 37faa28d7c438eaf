"""A finished run's ensemble and data again, from the recipe that its folder keeps."""

from __future__ import annotations

import re
from pathlib import Path

from torch import nn

from quorate.cli.parse import plain
from quorate.cli.recipe import EnsembleChoice, arguments, blaming, build, factory, load
from quorate.cli.train import parse_recipe
from quorate.cli.usage import UsageError
from quorate.data import Data
from quorate.runs import Run
from quorate.training.weights import load_weights_


def reload(path: str | Path) -> tuple[nn.Module, Data]:
    """(the trained ensemble, in eval mode; its data) of a finished run of the command line.

    Paths in the recipe mean what they meant when it was trained: call it from the same folder.

    Raises:
        ValueError: an unfinished run, one without a usable recipe, or data that are not those of the run any more.
        FileNotFoundError: no run, or data files that are gone.
    """
    run = Run(path)
    recipe = run.path / "config.yaml"
    if not run.finished:
        raise ValueError(f"run {run.path} is not finished: run its training command again, it goes on where it stopped")
    if not recipe.is_file():
        raise ValueError(f"run {run.path} has no config.yaml to make its model from: train it by quorate train or demo")
    try:
        chosen = parse_recipe(["--config", str(recipe), "--run", str(run.path)])
    except UsageError as error:
        raise ValueError(f"the recipe {recipe} can't be used any more: {error}") from error
    try:
        data = load(chosen.data)
    except FileNotFoundError as error:
        paths = [str(value) for value in arguments(chosen.data).values() if isinstance(value, str | Path)]
        named = [path for path in paths if path and not Path(path).is_absolute()]
        gone = [path for path in named if re.search(rf"(?<!\S){re.escape(path)}(?=[\s:,/]|$)", str(error))]
        if not gone:
            raise
        raise FileNotFoundError(
            f"the recipe of run {run.path} names {gone[0]!r} relative to the folder it was trained from: run it from there ({error})"
        ) from error
    stored, found = run.facts["data"].get("fingerprint"), data.fingerprint()
    if stored != found:
        raise ValueError(f"the data of {recipe} are not those that run {run.path} was trained on: they have changed since")
    choice = EnsembleChoice.of(plain(chosen.ensemble))
    make = factory(chosen.model.class_path, arguments(chosen.model), data)
    with blaming(chosen.model.class_path):
        if choice.kind == "bdistil":
            from quorate.cli.distilling import again

            ensemble = again(choice.distil, make, data, chosen.seed, run.facts)
        else:
            ensemble = build(choice, make, data, chosen.seed)
    load_weights_(ensemble, run.path)
    return ensemble, data
