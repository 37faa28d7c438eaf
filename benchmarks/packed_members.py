"""A deep ensemble in one pass: pack_members, α = M, against a loop over the M networks (quorate.DeepEnsemble) with the same weights.

python benchmarks/packed_members.py [--batches 1 32 128] [--networks resnet8 mlp-small mlp resnet18] [--threads 2] [--device cuda]

Inference, and forward and backward of quorate.member_loss; eager PyTorch, and compiled. The ratio is packed ÷ loop, each in its better
memory format. Required on the CPU: ≤ 0.67 × at batch 1 for the small networks (ResNet-8, the small MLP), nowhere above 1.10 ×.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import packed_speed as speed
import quorate
from record import commit

ALLOWED = 1.10
ALLOWED_SMALL = 1 / 1.5
SMALL = ("resnet8", "mlp-small")


def ensembles(name: str) -> dict[str, nn.Module]:
    """The same members in a loop and packed."""
    torch.manual_seed(speed.SEED)
    models = [speed.NETWORKS[name][0]() for _ in range(speed.MEMBERS)]
    return {"loop": quorate.DeepEnsemble(models), "packed": quorate.pack_members(models)}


def run(asked: speed.Settings, module: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    """Inference, or forward and backward."""
    targets = torch.arange(x.shape[0], device=x.device) % 10

    def infer() -> object:
        with torch.no_grad(), asked.cast():
            return module(x)

    def step() -> None:
        module.zero_grad()
        with asked.cast():
            value = quorate.member_loss(module(x), targets)
        value.backward()

    return step if training else infer


def compare(asked: speed.Settings, name: str, batch: int, training: bool, modes: Sequence[str]) -> dict[str, Any]:
    """Milliseconds of both in each mode and memory format, and the ratio of the better ones by mode."""
    x = asked.input(name, batch)
    calls: dict[str, Callable[[], object]] = {}
    for kind, ensemble in ensembles(name).items():
        for form in ("nchw", "nhwc") if x.dim() == 4 else ("nchw",):
            for mode in modes:
                module = ensemble.to(asked.device).train(training)
                module, batch_x = speed.channels_last(module, x) if form == "nhwc" else (module, x)
                changed = speed.compiled(module) if mode == "compile" else module
                calls[f"{kind}, {mode} {form}"] = run(asked, changed, batch_x, training)
    times = speed.measure(asked, calls)

    def best(kind: str, mode: str) -> str:
        return speed.fastest(times, [call for call in calls if call.startswith(f"{kind}, {mode}")])

    return {
        "ms": {call: speed.spread(values) for call, values in times.items()},
        "ratio": {mode: speed.against(times, best("packed", mode), best("loop", mode)) for mode in modes},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    asked = speed.settings(__doc__, argv, networks=["resnet8", "mlp-small", "mlp", "resnet18"])
    modes = ["eager"] if asked.smoke else ["eager", "compile"]
    figures: dict[str, Any] = {}
    for name in asked.networks:
        for batch in asked.batches:
            for training in (False, True):
                if training and batch == 1 and not name.startswith("mlp"):
                    continue  # a batch of one has no statistics worth training on
                what = "training" if training else "inference"
                found = compare(asked, name, batch, training, modes)
                figures[f"{name}, batch {batch}, {what}"] = found
                for mode, share in found["ratio"].items():
                    limit = ALLOWED_SMALL if batch == 1 and name in SMALL and not training else ALLOWED
                    verdict = "met" if share["median"] <= limit else "NOT MET"
                    spread = f"[{share['q1']:.3f}, {share['q3']:.3f}]"
                    print(
                        f"{name:10s} {batch:4d} {what:9s} {mode:8s} {share['median']:.3f} × {spread} ≤ {limit:.2f}: {verdict}",
                        flush=True,
                    )
    title, _, *details = (__doc__ or "").split("\n\n")
    speed.write("packed-members", asked, now, figures, " ".join([title, *details]))


if __name__ == "__main__":
    main()
