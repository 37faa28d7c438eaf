"""What running an ensemble in stages costs beside the stages' own work: the carry, the combination, the checks, the deadline's thread.

python benchmarks/anytime_overhead.py [--batches 1 64] [--networks members exits] [--threads 1] [--device cuda]

quorate.cascade.Anytime over quorate.stages(ensemble) against the same stage modules called one after the other under no_grad, with the
carry in a plain dict and their logits left in PyTorch: `predict` gives the last prefix's answer, `steps` that of every prefix, `deadline`
that of the last under a time limit which is not met, every prefix's being ready in time. All are timed in turn in one process; an
overhead is the median over the rounds of a ratio. Required of `predict`: ≤ 1.05 at batch 64, ≤ 1.15 at batch 1, with members
of about a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

import packed_speed as speed
import quorate
from quorate.cascade import Anytime
from quorate.ensemble import stages
from quorate.models import MultiExitResNet, ResNet
from record import commit

ALLOWED = {1: 1.15, 64: 1.05}
FAR = 3600.0  # seconds: a limit that is not met
IMAGE = (3, 32, 32)
speed.NETWORKS["members"] = (lambda: quorate.DeepEnsemble([ResNet(IMAGE, 10, depth=8) for _ in range(4)]), IMAGE)
speed.NETWORKS["exits"] = (lambda: MultiExitResNet(IMAGE, 10, depth=14), IMAGE)


def bare(modules: Sequence[Any], x: torch.Tensor) -> Callable[[], object]:
    """The stages one after the other; nothing is checked, combined or dropped."""

    def call() -> None:
        carry: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for module in modules:
                _, written = module(x, carry)
                carry |= written

    return call


def compare(asked: speed.Settings, name: str, batch: int) -> dict[str, Any]:
    """Milliseconds of every way to run the ensemble, and its ratio to the bare stages."""
    ensemble: nn.Module = speed.single(name).to(asked.device).eval()
    x = asked.input(name, batch)
    staged = stages(ensemble, x[:1])
    anytime = Anytime(staged, combine=ensemble.combine)  # type: ignore[arg-type]
    calls: dict[str, Callable[[], object]] = {
        "bare": bare([stage.module for stage in staged], x),
        "predict": lambda: anytime.predict(x),
        "steps": lambda: list(anytime.steps(x)),
        "deadline": lambda: anytime.predict(x, seconds=FAR),
    }
    times = speed.measure(asked, calls)
    return {
        "stages": len(staged),
        "ms": {call: speed.spread(values) for call, values in times.items()},
        "ratio": {call: speed.against(times, call, "bare") for call in calls if call != "bare"},
        "us_per_stage": {call: 1e3 * (min(times[call]) - min(times["bare"])) / len(staged) for call in calls if call != "bare"},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/anytime-overhead.json."""
    now = commit()
    asked = speed.settings(__doc__, argv, ["members", "exits"], [1, 64])
    figures: dict[str, Any] = {}
    for name in asked.networks:
        for batch in asked.batches:
            place = f"{name}, batch {batch}"
            figures[place] = found = compare(asked, name, batch)
            for call, share in found["ratio"].items():
                more = call == "predict" and share["median"] > ALLOWED.get(batch, 1.15)
                met = f", more than {ALLOWED.get(batch, 1.15):.2f}" if more else ""
                each = found["us_per_stage"][call]
                print(
                    f"{place}, {call}: {share['median']:.3f} ({share['q1']:.3f}–{share['q3']:.3f}), {each:.0f} µs per stage{met}",
                    flush=True,
                )
    speed.write(
        "anytime-overhead", asked, now, figures, (__doc__ or "").split("\n\n", 2)[0] + " " + (__doc__ or "").split("\n\n", 2)[2]
    )


if __name__ == "__main__":
    main()
