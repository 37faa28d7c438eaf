"""Backends of single packed layers, forward, and forward and backward, as multiples of one ungrouped layer of as many MACs.

python benchmarks/packed_layers.py [--batches 1 32 128] [--threads 2] [--device cuda]

The layers are those of ResNet-18 with a CIFAR stem, of a vision transformer (65 tokens of width 192) and of an MLP, with M = 4, α = 2 and
γ = 1: in M groups, each of α / M times the width. Convolutions read and give channels, in contiguous memory ("grouped", "loop": the
backends' names) and in channels_last ("nhwc", "loop nhwc"); linear layers read and give rows. Backward is to input and parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import packed_speed as speed
from quorate.packed import PackedConv2d, PackedLinear
from record import commit


@dataclass(frozen=True)
class Convolution:
    """Channels in and out of the single network's layer, side of the input, kernel, stride."""

    into: int
    out: int
    side: int
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class Product:
    """Features in and out of the single network's linear layer, tokens per row of the batch."""

    into: int
    out: int
    tokens: int = 1


LAYERS: dict[str, Convolution | Product] = {
    "64 → 64, 32 × 32": Convolution(64, 64, 32),
    "64 → 128, 32 × 32, stride 2": Convolution(64, 128, 32, stride=2),
    "128 → 128, 16 × 16": Convolution(128, 128, 16),
    "256 → 256, 8 × 8": Convolution(256, 256, 8),
    "512 → 512, 4 × 4": Convolution(512, 512, 4),
    "256 → 512, 8 × 8, 1 × 1, stride 2": Convolution(256, 512, 8, 1, 2),
    "linear 512 → 512": Product(512, 512),
    "linear 192 → 768, 65 tokens": Product(192, 768, 65),
}
SMOKE = ("512 → 512, 4 × 4", "linear 512 → 512")


def convolutions(asked: speed.Settings, what: Convolution, batch: int) -> dict[str, tuple[nn.Module, Tensor]]:
    """The ungrouped layer and every backend of the packed one, each with its input."""
    options: dict[str, Any] = {"stride": what.stride, "padding": what.kernel // 2, "bias": False}
    plain = nn.Conv2d(what.into, what.out, what.kernel, **options).to(asked.device)
    packed = PackedConv2d(what.into, what.out, what.kernel, speed.MEMBERS, speed.ALPHA, **options).to(asked.device)
    found: dict[str, tuple[nn.Module, Tensor]] = {}
    for name, layer, width in (("plain", plain, what.into), ("grouped", packed, speed.ALPHA * what.into)):
        x = torch.randn(batch, width, what.side, what.side, device=asked.device)
        found[name] = (layer, x)
        found["nhwc" if name == "grouped" else f"{name} nhwc"] = speed.channels_last(layer, x)
    looped = speed.copy.deepcopy(packed).set_backend_("loop")
    found["loop"] = (looped, found["grouped"][1])
    found["loop nhwc"] = speed.channels_last(looped, found["grouped"][1])
    return found


def products(asked: speed.Settings, what: Product, batch: int) -> dict[str, tuple[nn.Module, Tensor]]:
    """The ungrouped layer and every backend of the packed one, each with its input."""
    x = torch.randn(batch, what.tokens, what.into, device=asked.device)
    found: dict[str, tuple[nn.Module, Tensor]] = {"plain": (nn.Linear(what.into, what.out).to(asked.device), x)}
    share = speed.ALPHA * what.into // speed.MEMBERS
    rows = torch.randn(speed.MEMBERS * batch, what.tokens, share, device=asked.device)
    for backend in PackedLinear.BACKENDS:
        layer = PackedLinear(what.into, what.out, speed.MEMBERS, speed.ALPHA, layout="rows").to(asked.device)
        found[backend] = (layer.set_backend_(backend), rows)
    return found


def run(asked: speed.Settings, layer: nn.Module, x: Tensor, backward: bool) -> Callable[[], object]:
    """Forward, or forward and backward."""
    x = x.clone().requires_grad_(backward)
    wanted = [x, *layer.parameters()]
    ones: list[Tensor] = []

    def forward() -> Tensor:
        with asked.cast():
            y: Tensor = layer(x)
        return y

    def both() -> None:
        y = forward()
        if not ones:
            ones.append(torch.ones_like(y))
        torch.autograd.grad(y, wanted, ones)

    return both if backward else torch.no_grad()(forward)


def compare(asked: speed.Settings, what: Convolution | Product, batch: int, backward: bool) -> dict[str, Any]:
    """Milliseconds of each variant, and its ratio to the fastest ungrouped layer."""
    torch.manual_seed(speed.SEED)
    variants = convolutions(asked, what, batch) if isinstance(what, Convolution) else products(asked, what, batch)
    times = speed.measure(asked, {name: partial(run(asked, *variant, backward)) for name, variant in variants.items()})
    base = speed.fastest(times, [name for name in times if name.startswith("plain")])
    return {
        "ms": {name: speed.spread(values) for name, values in times.items()},
        "ratio": {name: speed.against(times, name, base) for name in times if not name.startswith("plain")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    asked = speed.settings(__doc__, argv, networks=["resnet18"])
    figures: dict[str, Any] = {}
    for name in SMOKE if asked.smoke else LAYERS:
        for batch in asked.batches:
            for backward in (False, True):
                what = "forward and backward" if backward else "forward"
                found = compare(asked, LAYERS[name], batch, backward)
                figures[f"{name}; batch {batch}; {what}"] = found
                shown = ", ".join(f"{variant} {share['median']:.2f} ×" for variant, share in found["ratio"].items())
                print(f"{name:36s} {batch:4d} {what:20s} {shown}", flush=True)
    title, _, *details = (__doc__ or "").split("\n\n")
    speed.write("packed-layers", asked, now, figures, " ".join([title, *details]))


if __name__ == "__main__":
    main()
