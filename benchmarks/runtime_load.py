"""Loading a bundle and holding it in memory, beside bare ONNX Runtime sessions of the very same programs.

python benchmarks/runtime_load.py [--cases single pair tickets] [--threads 2] [--repeats 9] [--quick]

Every start is a process of its own (runtime_start.py), the ways in turn: `bundle` is quorate.load_bundle, with all its checks, `path` and
`bytes` are bare sessions with default options from the ONNX files, by their paths or from bytes read before. Cases (runtime_cases.py): one
ResNet-18; two; three tickets of ResNet-18 at density .1, which are bare as dense ONNX files, since ONNX Runtime alone can't read a ticket.
No row leaves early. Files come from the system's file cache.

Load: seconds in which sessions are made, a ticket's weights scattered included; reading and checking files, golden outputs and the
rest (manifest, schema, modules imported late) apart, imports apart. Memory: resident (rss), shared pages by share (pss), own (uss), after
loading and after one prediction of 32 rows. Ratios are of two starts of one round, medians with quartiles. Required: sessions ≤ 1.1 ×
those of the bare sessions from bytes; rss ≤ 1.1 × that of the bare sessions, the smaller of both ways.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import runtime_cases as cases
from quorate.cost.interleaving import quartiles
from quorate.export import programs
from record import commit, write

WAYS = ("bundle", "path", "bytes")
MOMENTS, KINDS = ("imported", "loaded", "predicted"), ("rss", "pss", "uss", "peak")
PARTS = ("sessions", "files", "golden", "rest", "total")
CHOSEN = ("single", "pair", "tickets")
ROWS = 32
ALLOWED = 1.1
Start = dict[str, Any]


def made(name: str, folder: Path, quick: bool) -> tuple[Path, list[Path]]:
    """The bundle of a case, and the ONNX files of its stages as bare sessions need them."""
    case, bundle = cases.CASES[name](quick), folder / name
    cases.save(case, bundle)
    if name != "tickets":
        return bundle, cases.programs(bundle)
    dense = []
    for k, program in enumerate(programs(case.ensemble, cases.rows(2), sparse=False)):
        dense.append(folder / f"{name}{k}.onnx")
        dense[-1].write_bytes(program.onnx)
    return bundle, dense


def starts(bundle: Path, files: Sequence[Path], threads: int, repeats: int) -> list[dict[str, Start]]:
    """What every round's starts said, by way; one round before is thrown away."""

    def start(way: str) -> Start:
        return cases.apart("runtime_start.py", [way, threads, ROWS, *([bundle] if way == "bundle" else files)], threads)

    return [{way: start(way) for way in WAYS} for _ in range(1 + repeats)][1:]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Quartiles and median."""
    low, median, high = quartiles(values)
    return {"median": median, "q1": low, "q3": high}


def summary(rounds: Sequence[dict[str, Start]]) -> dict[str, Any]:
    """Seconds and bytes by way, and the bundle's as multiples of the bare sessions'."""

    def over(read: Callable[[Start], float], base: str) -> dict[str, float]:
        return spread([read(each["bundle"]) / read(each[base]) for each in rounds])

    def each(read: Callable[[Start], float]) -> dict[str, dict[str, float]]:
        return {way: spread([read(found[way]) for found in rounds]) for way in WAYS}

    def seconds(part: str) -> Callable[[Start], float]:
        return lambda start: float(start["seconds"][part])

    def held(moment: str, kind: str) -> Callable[[Start], float]:
        return lambda start: float(start["memory"][moment][kind])

    bare = WAYS[1:]
    return {
        "seconds": {part: each(seconds(part)) for part in PARTS},
        "imports": {what: each(lambda start, w=what: start["imports"][w]) for what in rounds[0]["bundle"]["imports"]},
        "late": rounds[0]["bundle"]["late"],
        "bytes": {moment: {kind: each(held(moment, kind)) for kind in KINDS} for moment in MOMENTS},
        "sessions_over": {base: over(seconds("sessions"), base) for base in bare},
        "total_over": {base: over(seconds("total"), base) for base in bare},
        "memory_over": {
            moment: {kind: {base: over(held(moment, kind), base) for base in bare} for kind in KINDS} for moment in MOMENTS
        },
    }


def show(name: str, found: dict[str, Any]) -> None:
    """For the terminal."""

    def verdict(value: float) -> str:
        return f"≤ {ALLOWED}: {'met' if value <= ALLOWED else 'NOT MET'}"

    seconds, imports = found["seconds"], found["imports"]
    parts = ", ".join(f"{part} {1e3 * seconds[part]['bundle']['median']:.1f}" for part in PARTS)
    share = found["sessions_over"]
    print(
        f"{name}, load in ms: {parts}; bare sessions "
        + ", ".join(f"{w} {1e3 * seconds['sessions'][w]['median']:.1f}" for w in share)
    )
    ratios = ", ".join(f"÷ {base} {each['median']:.3f} ({each['q1']:.3f}–{each['q3']:.3f})" for base, each in share.items())
    print(f"{name}, sessions {ratios}   {verdict(share['bytes']['median'])}")
    print(
        f"{name}, imports in ms: " + ", ".join(f"{what} {1e3 * ways['bundle']['median']:.0f}" for what, ways in imports.items())
    )
    print(f"{name}, imported while loading: {', '.join(found['late']) or 'nothing'}")
    for moment in MOMENTS:
        for kind in KINDS:
            mega = {way: each["median"] / 1e6 for way, each in found["bytes"][moment][kind].items()}
            against = found["memory_over"][moment][kind]
            worst = max(each["median"] for each in against.values())
            judged = f"   {verdict(worst)}" if kind == "rss" and moment != "imported" else ""
            told = ", ".join(f"{way} {size:.1f}" for way, size in mega.items())
            print(f"{name}, {moment}, {kind} in MB: {told}; ratio {worst:.3f}{judged}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write results/runtime-load.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=cases.CASES, default=list(CHOSEN))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds: that it works, no result")
    asked = parser.parse_args(argv)
    if asked.threads < 1 or asked.repeats < 1:
        parser.error("--threads and --repeats: expected 1 or more")
    repeats = 2 if asked.quick else asked.repeats
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.cases:
            figures[name] = summary(starts(*made(name, Path(folder), asked.quick), asked.threads, repeats))
            show(name, figures[name])
    title, _, about = (__doc__ or "").split("\n\n", 2)
    path = write(
        "runtime-load" + ("-quick" if asked.quick else ""), figures, commit=now, seeds=[cases.SEED], repeats=repeats,
        note=" ".join(f"{title} {about}".split()), threads=asked.threads,
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
