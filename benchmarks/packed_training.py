"""A training step: packed against the single network and against torch-uncertainty's packed network; and its peak memory.

python benchmarks/packed_training.py [--batches 32 128] [--networks resnet18 mlp vit] [--threads 2] [--device cuda --precision bf16]

A step is forward, loss (quorate.member_loss; cross-entropy for the single network), backward and SGD with momentum, eager and compiled;
images and networks in channels_last throughout. Packed is pack(network, members=4, alpha=2, gamma=1). Each is measured in its
better mode, torch-uncertainty's in both. Required of ResNet-18 on the CPU: ≤ 1.30 × the single network at batch 32 and ≤ 1.35 × at 128;
≤ 0.80 × torch-uncertainty's eager step and ≤ 1.00 × its compiled one.

Peak memory is that of a process of its own which takes three eager steps, less what it held before the network was made; of small
networks and batches it is mostly the libraries' own. Required: ≤ 1.1 × (state + α × what the single network's step holds beyond its
own state); state is weights, gradients and momentum.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import packed_rival as rival
import packed_speed as speed
import quorate
from record import commit

KINDS = ("single", "packed", "torch-uncertainty")
ALLOWED = {32: 1.30, 128: 1.35}
ALLOWED_MEMORY = 1.1
MIB = 1 << 20


def build(kind: str, name: str) -> nn.Module:
    """The network of this kind."""
    if kind == "torch-uncertainty":
        torch.manual_seed(speed.SEED)
        network: nn.Module = rival.NETWORKS[name](speed.MEMBERS, speed.ALPHA)
        return network
    return speed.single(name) if kind == "single" else speed.packed(name)


def loss(kind: str, logits: Tensor, targets: Tensor) -> Tensor:
    """Of (B, C), (M, B, C), or torch-uncertainty's (M · B, C); the sum over the members of the mean loss of each."""
    if kind == "single":
        return F.cross_entropy(logits, targets)
    apart = logits if kind == "packed" else logits.unflatten(0, (speed.MEMBERS, -1))
    return quorate.member_loss(apart, targets)


def step(asked: speed.Settings, kind: str, name: str, batch: int, mode: str) -> Callable[[], object]:
    """One training step of a network of its own."""
    network = build(kind, name).to(asked.device).train()
    module, x = speed.channels_last(network, asked.input(name, batch))
    targets = torch.arange(batch, device=asked.device) % 10
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    forward = {
        "eager": lambda: module,
        "compile": lambda: speed.compiled(module),
        "cuda graphs": lambda: speed.compiled(module, mode="reduce-overhead"),
    }[mode]()

    def call() -> None:
        optimizer.zero_grad()
        with asked.cast():
            value = loss(kind, forward(x), targets)
        value.backward()
        optimizer.step()

    return call


def compare(asked: speed.Settings, name: str, batch: int) -> dict[str, Any]:
    """Milliseconds of a step of each kind in each mode, and the packed one's ratios."""
    modes = (
        ["eager"]
        + ([] if asked.smoke else ["compile"])
        + (["cuda graphs"] if asked.device.type == "cuda" and not asked.smoke else [])
    )
    kinds = [kind for kind in KINDS if kind != "torch-uncertainty" or (name in rival.NETWORKS and rival.available())]
    calls = {f"{kind}, {mode}": step(asked, kind, name, batch, mode) for kind in kinds for mode in modes}
    times = speed.measure(asked, calls)
    best = {kind: speed.fastest(times, [f"{kind}, {mode}" for mode in modes]) for kind in kinds}
    ratios = {"single": speed.against(times, best["packed"], best["single"])}
    for mode in modes:
        ratios[f"single, {mode}"] = speed.against(times, f"packed, {mode}", f"single, {mode}")
        if "torch-uncertainty" in kinds:
            ratios[f"torch-uncertainty, {mode}"] = speed.against(times, best["packed"], f"torch-uncertainty, {mode}")
    return {"ms": {call: speed.spread(values) for call, values in times.items()}, "fastest": best, "ratio": ratios}


def resident(field: str) -> int:
    """Bytes: VmRSS, resident now, or VmHWM, the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def peak(asked: speed.Settings, kind: str, name: str) -> int:
    """Bytes that three steps hold at most, beyond what the process held before."""
    batch = asked.batches[0]
    if asked.device.type == "cuda":
        before = torch.cuda.memory_allocated(asked.device)
        call = step(asked, kind, name, batch, "eager")
        torch.cuda.reset_peak_memory_stats(asked.device)
        for _ in range(3):
            call()
        return torch.cuda.max_memory_allocated(asked.device) - before
    warm = nn.Linear(8, 8)(torch.randn(8, 8)).sum()
    warm.backward()  # threads and libraries
    before = resident("VmRSS")
    call = step(asked, kind, name, batch, "eager")
    for _ in range(3):
        call()
    return resident("VmHWM") - before


def memory(asked: speed.Settings, name: str, batch: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Peaks in MiB, each from a process of its own, and what is allowed."""
    found: dict[str, Any] = {}
    for kind in kinds:
        command = [
            sys.executable,
            __file__,
            "--peak",
            kind,
            "--networks",
            name,
            "--batches",
            str(batch),
            "--device",
            str(asked.device),
        ]
        command += ["--precision", asked.precision, "--allocator", asked.allocator, "--threads", str(asked.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        state = 3 * sum(p.numel() * p.element_size() for p in build(kind, name).parameters())
        found[kind] = {"peak_mib": int(done.stdout.split()[-1]) / MIB, "state_mib": state / MIB}
    one, many = found["single"], found["packed"]
    expected = many["state_mib"] + speed.ALPHA * max(0.0, one["peak_mib"] - one["state_mib"])
    return {**found, "expected_mib": expected, "packed_over_expected": many["peak_mib"] / expected}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write; with --peak measure one process' memory and print it."""
    now = commit()
    inner = argparse.ArgumentParser(add_help=False)
    inner.add_argument("--peak", choices=KINDS)
    own, rest = inner.parse_known_args(argv)
    if own.peak:
        alone = speed.settings(__doc__, rest, networks=["resnet18"])
        if own.peak == "torch-uncertainty" and not rival.available():
            raise SystemExit("torch-uncertainty can't be imported")
        print(peak(alone, own.peak, alone.networks[0]))
        return
    asked = speed.settings(__doc__, argv, networks=["resnet18", "mlp", "vit"], batches=(32, 128))
    figures: dict[str, Any] = {}
    for name in asked.networks:
        for batch in asked.batches:
            found = compare(asked, name, batch)
            for call, each in found["ms"].items():
                print(f"{name} {batch:4d} {call:28s} {each['median']:10.2f} ms  [{each['q1']:.2f}, {each['q3']:.2f}]")
            for base, share in found["ratio"].items():
                print(f"{name} {batch:4d} packed ÷ {base:28s} {share['median']:.3f} [{share['q1']:.3f}, {share['q3']:.3f}]")
            found["memory"] = memory(asked, name, batch, sorted({call.partition(",")[0] for call in found["ms"]}))
            share = found["memory"]["packed_over_expected"]
            print(f"{name} {batch:4d} peak memory {share:.3f} × what is expected", flush=True)
            if name == "resnet18" and batch in ALLOWED:
                met = found["ratio"]["single"]["median"] <= ALLOWED[batch] and share <= ALLOWED_MEMORY
                print(
                    f"{name} {batch:4d} {'met' if met else 'NOT MET'}: step ≤ {ALLOWED[batch]:.2f} ×, memory ≤ {ALLOWED_MEMORY:.1f} ×"
                )
            figures[f"{name}, batch {batch}"] = found
    title, _, *details = (__doc__ or "").split("\n\n")
    speed.write("packed-training", asked, now, figures, " ".join([title, *details]))


if __name__ == "__main__":
    main()
