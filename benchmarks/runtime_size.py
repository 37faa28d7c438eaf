"""Bytes of bundles, all their files counted, beside the ONNX file of the dense single network.

python benchmarks/runtime_size.py [--no-wide] [--quick]

Ensembles of runtime_cases.py: ResNet-18 (CIFAR stem), and WRN-28-10 (its single network and tickets alone; some GB of memory). The dense
file is the program of the single network as the bundle has it, norms folded, without the manifest, golden outputs and card that the bundles
count. Weights are random, the masks of the tickets ERK's at density .1: live weights in float32, their places in bits or numbers. Required:
three tickets at density .1 ≤ 0.45 × the dense file.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import quorate
import runtime_cases as cases
from record import commit, write

ALLOWED = 0.45
KINDS: dict[str, Callable[[bool], cases.Case]] = {
    "single": cases.single,
    "packed, 4 members": cases.packed,
    "deep, 2 members": cases.pair,
    "B-DISTIL, 3 students of half the width": cases.students,
    "1 ticket": lambda quick: cases.tickets(quick, members=1),
    "3 tickets": cases.tickets,
}
WIDE: dict[str, Callable[[bool], cases.Case]] = {
    "single": lambda quick: cases.single(quick, wide=True),
    "3 tickets": lambda quick: cases.tickets(quick, wide=True),
}
JUDGED = "3 tickets"


def measure(kinds: dict[str, Callable[[bool], cases.Case]], quick: bool) -> dict[str, Any]:
    """By kind: bytes of the bundle, of its programs and tickets, parameters, and what it is of the dense file; the single one is first."""
    found: dict[str, Any] = {}
    dense = 0
    for name, make in kinds.items():
        case = make(quick)
        with tempfile.TemporaryDirectory() as folder:
            bundle = Path(folder) / "bundle"
            cases.save(case, bundle)
            onnx = sum(path.stat().st_size for path in cases.programs(bundle))
            tickets = sum(path.stat().st_size for path in bundle.rglob("*.ticket.safetensors"))
            dense = dense or onnx
            whole = cases.size_bytes(bundle)
        found[name] = {
            "bundle_bytes": whole,
            "onnx_bytes": onnx,
            "ticket_bytes": tickets,
            "other_bytes": whole - onnx - tickets,
            "parameters": quorate.parameters(case.ensemble),
            "over_dense": whole / dense,
        }
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write results/runtime-size.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-wide", action="store_true", help="without WRN-28-10")
    parser.add_argument("--quick", action="store_true", help="small networks: that it works, no result")
    asked = parser.parse_args(argv)
    figures: dict[str, Any] = {}
    for network, kinds in {"ResNet-18": KINDS, **({} if asked.no_wide else {"WRN-28-10": WIDE})}.items():
        figures[network] = measure(kinds, asked.quick)
        for name, each in figures[network].items():
            share = each["over_dense"]
            verdict = f"   ≤ {ALLOWED}: {'met' if share <= ALLOWED else 'NOT MET'}" if name == JUDGED else ""
            print(f"{network}, {name}: {each['bundle_bytes'] / 1e6:.2f} MB, {share:.3f} × the dense file{verdict}", flush=True)
    title, _, about = (__doc__ or "").split("\n\n", 2)
    path = write(
        "runtime-size" + ("-quick" if asked.quick else ""), figures, commit=now, seeds=[cases.SEED], repeats=1,
        note=" ".join(f"{title} {about}".split()),
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
