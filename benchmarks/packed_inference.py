"""Inference: the packed network's time as a multiple of the single network's, each in its own fastest engine.

python benchmarks/packed_inference.py [--batches 1 32 128] [--networks resnet18] [--threads 2] [--device cuda --precision bf16]

Packed is pack(network, members=4, alpha=2, gamma=1), about as many parameters and MACs as the single network.
Required of ResNet-18 on the CPU: ≤ 1.00 × at batch 1, ≤ 1.10 × at batches 32 and 128.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import packed_speed as speed
from record import commit

ALLOWED = {1: 1.0}
ALLOWED_ABOVE = 1.1


def compare(asked: speed.Settings, name: str, batch: int, only: Sequence[str] = ()) -> dict[str, Any]:
    """Milliseconds of each network in each engine, and the ratio of the two best."""
    x = asked.input(name, batch)
    networks = {"single": speed.single(name), "packed": speed.packed(name)}
    calls = {}
    for kind, network in networks.items():
        module = network.to(asked.device).eval()
        for engine, build in speed.inference_engines(asked).items():
            if only and engine not in only:
                continue
            calls[f"{kind}, {engine}"] = build(module, x)
    times = speed.measure(asked, calls)
    best = {kind: speed.fastest(times, [call for call in calls if call.startswith(kind)]) for kind in networks}
    engines = [call.removeprefix("single, ") for call in calls if call.startswith("single, ")]
    return {
        "ms": {call: speed.spread(values) for call, values in times.items()},
        "fastest": best,
        "ratio": speed.against(times, best["packed"], best["single"]),
        "ratio_by_engine": {engine: speed.against(times, f"packed, {engine}", f"single, {engine}") for engine in engines},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    now = commit()
    inner = argparse.ArgumentParser(add_help=False)
    inner.add_argument("--engines", nargs="+", default=(), help="these alone, such as 'eager nhwc' onnxruntime")
    inner.add_argument("--suffix", default="", help="of the name under which the results are kept")
    own, rest = inner.parse_known_args(argv)
    asked = speed.settings(__doc__, rest, networks=["resnet18", "mlp", "vit"])
    figures: dict[str, Any] = {}
    for name in asked.networks:
        for batch in asked.batches:
            found = compare(asked, name, batch, own.engines)
            figures[f"{name}, batch {batch}"] = found
            for call, each in found["ms"].items():
                print(f"{name} {batch:4d} {call:32s} {each['median']:10.3f} ms  [{each['q1']:.3f}, {each['q3']:.3f}]")
            share, allowed = found["ratio"], ALLOWED.get(batch, ALLOWED_ABOVE)
            verdict = "" if name != "resnet18" else f"   ≤ {allowed:.2f}: {'met' if share['median'] <= allowed else 'NOT MET'}"
            print(
                f"{name} {batch:4d} packed ÷ single {share['median']:.3f} [{share['q1']:.3f}, {share['q3']:.3f}]{verdict}",
                flush=True,
            )
    speed.write(
        "packed-inference" + own.suffix,
        asked,
        now,
        figures,
        (__doc__ or "").split("\n\n")[0] + " " + (__doc__ or "").split("\n\n")[2],
    )


if __name__ == "__main__":
    main()
