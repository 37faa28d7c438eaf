"""``quorate train``: a recipe and the options given → a run folder. The same command goes on after an interruption."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.cli.parse import parse, parser, plain

if TYPE_CHECKING:
    from quorate.data import Data


def parse_recipe(argv: Sequence[str], defaults: bool = True) -> Any:
    """The command's arguments, recipe and options joined, without ``defaults`` only those given.

    Raises:
        quorate.cli.usage.UsageError: what can't be parsed.
    """
    from jsonargparse import set_parsing_settings
    from torch import nn

    from quorate.cli.recipe import EnsembleChoice
    from quorate.data import Data
    from quorate.training import Settings

    set_parsing_settings(subclasses_enabled=[Data])
    using = parser(
        "train",
        "Train an ensemble. Options override the recipe: quorate train --config recipes/digits-deep.yaml --model.depth 20 --run runs/d20",
    )
    using.add_argument("--config", action="config", help="a recipe (YAML)")
    using.add_argument("--run", type=str, required=True, help="the run folder; an unfinished run in it goes on")
    using.add_subclass_arguments(Data, "data", required=True, help="where the data comes from, e.g. digits, idx, npz")
    using.add_subclass_arguments(
        nn.Module,
        "model",
        skip={"shape", "classes", "channels", "normalise"},
        required=True,
        help="the network, e.g. MLP, LeNet, ResNet, or your own",
    )
    using.add_class_arguments(EnsembleChoice, "ensemble")
    using.add_class_arguments(Settings, "fit", skip={"seed"})
    using.add_argument("--seed", type=int, default=0, help="of weights, batch order, augmentation and dropout")
    using.add_argument("--progress", type=bool, default=True, help="show how the training goes")
    return parse(using, argv, {"data": ("quorate.data", Data), "model": ("quorate.models", nn.Module)}, defaults)


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.cli.recipe import EnsembleChoice, arguments, blaming, build, factory, load
    from quorate.cli.tuning import tuned
    from quorate.training import Settings, fit

    chosen = parse_recipe(argv)
    recipe: dict[str, Any] = {
        key: plain(value) for key, value in vars(chosen).items() if key not in ("config", "run", "progress")
    }
    choice = EnsembleChoice.of(recipe["ensemble"])
    said = plain(parse_recipe(argv, defaults=False)).get("fit", {})
    recipe["fit"] = choice.settings(recipe["fit"], said)
    settings = recipe["fit"] | {"seed": chosen.seed}
    checked = Settings.of(settings)
    data = load(chosen.data)
    make = factory(chosen.model.class_path, arguments(chosen.model), data)
    if choice.kind == "bdistil":
        from quorate.cli.distilling import distilled

        with blaming(chosen.model.class_path):
            distilled(recipe, make, data, checked.seed, chosen.run, chosen.progress)
        _show(chosen.run, data)
        return 0
    with blaming(chosen.model.class_path):
        ensemble = build(choice, make, data, checked.seed)
        choice = tuned(choice, ensemble, data, checked.batch_size, chosen.run)
        recipe["ensemble"]["backends"] = choice.backends
        fitted = fit(
            ensemble,
            data,
            run=chosen.run,
            about={"model": recipe["model"], "ensemble": choice.facts(recipe["ensemble"])},
            config=recipe,
            progress=chosen.progress,
            **settings,
        )
    _show(fitted.path or chosen.run, data)
    return 0


def _show(path: str | Path, data: Data) -> None:
    """The table of the finished run, and of its prefixes where it has students."""
    from quorate.report import columns, prefixes, show
    from quorate.runs import Run

    run = Run(path)
    found = columns([run])
    show(found, f"{data.name}, {len(data.test)} test rows")
    prefixes.show([(found[0].name, run)])
