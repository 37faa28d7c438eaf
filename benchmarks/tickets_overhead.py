"""A training step: sparse against dense, with the moves of the masks in their proportion.

python benchmarks/tickets_overhead.py [--batches 64 128] [--networks resnet14 resnet18 mlp] [--threads 2] [--device cuda --precision bf16]

A step is forward, cross-entropy, backward and fused SGD with momentum, eager, in channels_last. Sparse is the same with
SparseTraining(density=0.2) on it; its masks move every 100 steps:

    (99 · plain + move) / 100 ÷ dense      plain: a step between two moves; move: a step with one at its end

all three timed in turn in one process. For growth by gradient a move's step keeps the dense gradient too. The kernels are dense, so that
sparse training can at best be as fast. Required: ≤ 1.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

import packed_speed as speed
from quorate.cost.interleaving import quartiles
from quorate.models import ResNet
from quorate.tickets import Gradient, Random, SparseTraining
from record import commit

DENSITY, EVERY, ALLOWED = 0.2, 100, 1.10
GROWTHS = {"random": Random(), "gradient": Gradient()}
NEVER = 1 << 60
speed.NETWORKS["resnet14"] = (lambda: ResNet((3, 32, 32), 10, depth=14), (3, 32, 32))


def step(asked: speed.Settings, name: str, batch: int, growth: str | None, every: int = NEVER) -> Callable[[], object]:
    """One training step of a network of its own, sparse if a growth is named; its masks move after every ``every`` steps."""
    network, x = speed.channels_last(speed.single(name).to(asked.device).train(), asked.input(name, batch))
    targets = torch.arange(batch, device=asked.device) % 10
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    if growth is not None:
        SparseTraining(network, optimizer, density=DENSITY, growth=GROWTHS[growth], every=every, seed=speed.SEED)

    def call() -> None:
        optimizer.zero_grad()
        with asked.cast():
            value = F.cross_entropy(network(x), targets)
        value.backward()
        optimizer.step()

    return call


def amortised(times: dict[str, list[float]], growth: str) -> dict[str, float]:
    """Quartiles and median over the rounds of a sparse step's time, moves in their proportion, over a dense step's."""
    rounds = zip(times[f"{growth}, plain"], times[f"{growth}, move"], times["dense"], strict=True)
    low, median, high = quartiles([((EVERY - 1) * plain + move) / EVERY / dense for plain, move, dense in rounds])
    return {"median": median, "q1": low, "q3": high}


def compare(asked: speed.Settings, name: str, batch: int) -> dict[str, Any]:
    """Milliseconds of every kind of step, and the ratio for each growth."""
    calls = {"dense": step(asked, name, batch, None)}
    for growth in GROWTHS:
        calls[f"{growth}, plain"] = step(asked, name, batch, growth)
        calls[f"{growth}, move"] = step(asked, name, batch, growth, every=1)
    times = speed.measure(asked, calls)
    return {
        "ms": {call: speed.spread(values) for call, values in times.items()},
        "fastest": {call: call for call in calls},
        "ratio": {f"dense, growth {growth}": amortised(times, growth) for growth in GROWTHS},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/tickets-overhead.json."""
    now = commit()
    asked = speed.settings(__doc__, argv, ["resnet14", "resnet18", "mlp"], [64, 128])
    figures: dict[str, Any] = {}
    for name in asked.networks:
        for batch in asked.batches:
            place = f"{name}, batch {batch}"
            figures[place] = compare(asked, name, batch)
            for base, share in figures[place]["ratio"].items():
                met = "" if share["median"] <= ALLOWED else f", more than {ALLOWED:.2f}"
                print(f"{place}, against {base}: {share['median']:.3f} ({share['q1']:.3f}–{share['q3']:.3f}){met}", flush=True)
    speed.write(
        "tickets-overhead", asked, now, figures, (__doc__ or "").split("\n\n", 2)[0] + " " + (__doc__ or "").split("\n\n", 2)[2]
    )


if __name__ == "__main__":
    main()
