"""How much of a training's wall-clock is spent in the model: ResNet-8 on Fashion-MNIST, random crop and flip, batch 64.

python benchmarks/input_pipeline.py DIR [--epochs 1] [--repeats 3]

DIR holds the four idx files. In the model: the optimiser's step with its closure (forward, loss, backward, update), and the forward
passes of the validation. The rest: batches and augmentation, metrics, the training loop. Nothing else should run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import quorate
from quorate.data import idx
from quorate.training.loader import Loader
from record import commit, write


class Stopwatch:
    """Seconds spent in functions; those called inside another timed one count once, for the outer."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = False

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added to ``name``."""

        def wrapper(*arguments: Any, **options: Any) -> Any:
            if self.inside:
                return function(*arguments, **options)
            self.inside, begun = True, time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                self.inside = False
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun

        return wrapper


def measure(root: Path, epochs: int, seed: int) -> dict[str, float]:
    """One training; seconds in all, and shares of them."""
    data = idx(root, flip=True, seed=seed, name="fashion-mnist")
    torch.manual_seed(seed)
    ensemble = quorate.DeepEnsemble(
        [nn.Sequential(data.normalise(), quorate.models.ResNet(data.shape, len(data.classes), depth=8))]
    )
    watch = Stopwatch()
    iterate, step, forward = Loader.__iter__, torch.optim.SGD.step, ensemble.forward

    def batches(self: Loader) -> Iterator[Any]:
        inner = iterate(self)
        following = watch.timed("loader", lambda: next(inner, None))
        while (batch := following()) is not None:
            yield batch

    Loader.__iter__ = batches  # type: ignore[method-assign]
    torch.optim.SGD.step = watch.timed("step", step)  # type: ignore[method-assign]
    ensemble.forward = watch.timed("validation", forward)  # type: ignore[method-assign]
    try:
        fitted = quorate.fit(
            ensemble, data, epochs=epochs, batch_size=64, seed=seed, lr=0.1, warmup_epochs=0.5, channels_last=True, progress=False
        )
    finally:
        Loader.__iter__, torch.optim.SGD.step = iterate, step  # type: ignore[method-assign]
    total = float(fitted.facts["train_seconds"])
    share = {f"{name}_share": seconds / total for name, seconds in watch.seconds.items()}
    return {"seconds": total, **share, "model_share": share["step_share"] + share["validation_share"]}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write results/input-pipeline.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args(argv)
    runs = [measure(chosen.root, chosen.epochs, seed) for seed in range(chosen.repeats)]
    figures = {
        name: {"median": statistics.median(values), "least": min(values), "most": max(values)}
        for name in runs[0]
        for values in [[run[name] for run in runs]]
    }
    note = " ".join((__doc__ or "").split("\n\n")[2].split())
    seeds = list(range(chosen.repeats))
    path = write(
        "input-pipeline", figures, commit=now, seeds=seeds, repeats=len(runs), note=note, threads=torch.get_num_threads()
    )
    print("wrote", path, figures["model_share"])


if __name__ == "__main__":
    main()
