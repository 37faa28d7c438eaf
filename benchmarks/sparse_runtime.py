"""The sparse runtime against the same layers and networks dense, in the best of ONNX Runtime and PyTorch.

python benchmarks/sparse_runtime.py [--what layers networks] [--threads 1 2] [--networks NAME …] [--engines NAME …] [--rounds 7] [--quick]

Layers (sparse_layers.py): 3 × 3 of 64–640 channels, 32×32 … 4×4 pixels, densities .1 and .2, batch 1 and 16; patterns of structured
growth beside unstructured masks of equal density. Networks (sparse_cases.py, sparse_networks.py): random weights, masks of the library's
own densities, tuned, each batch against the network with all weights live. Speedup: time of the fastest dense engine ÷ time of the sparse
call in the same round, medians with quartiles over the rounds, bursts of 0.4 s, one process for all calls of a comparison. Beside it:
relative errors against float64, bytes of weights and memory held, seconds of a start with an empty cache and with a full one, and GFLOP/s
by layer against the core's measured peak. Nothing else should run meanwhile.

A run that was stopped, or one of some networks only, is gone on with by the same command as long as the sources are the same: exports,
tunings and figures lie in --work, figures until all are there and the results are written. What is incomplete is written with -part.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

import packed_speed as speed
import runtime_cases as shared
import sparse_cases as cases
import sparse_layers as layers
import sparse_networks as networks
from quorate.runtime.sparse.machine.host import here
from quorate.runtime.sparse.team import Team
from record import commit, write
from runtime_speed import ENGINES
from sparse_peak import peak_gflops
from sparse_race import Store, geometric_mean, raced, shown, sources

USED = ("eager nchw", "eager nhwc", "eager folded nhwc", "compile frozen nhwc")
BY_LAYER = ("eager nchw", "eager nhwc", "compile frozen nhwc")  # which has no norm to fold
QUICK = ("eager nchw",)
QUICK_NETWORKS = ("wrn28-10", "mlp")
DENSITIES = (0.1, 0.2)
PATTERN_DENSITIES = (0.05, 0.1)
BATCHES = (1, 16)
REQUIRED = {(1, 0.1): 2.8, (1, 0.2): 1.6, (16, 0.1): 4.5, (16, 0.2): 2.5}  # geometric means over the layers
LEAST = {("512 channels, 4×4", 1, 0.1): 1.5}
WHAT = ("layers", "networks")


def all_layers(store: Store, threads: int, asked: argparse.Namespace) -> None:
    """Every layer, unstructured; then the patterns."""
    team = Team(threads)
    names = [name for name in asked.engines if name in BY_LAYER]
    store.once("peak", lambda: {"gflops": peak_gflops(asked.quick)})
    for batch in BATCHES:
        for geometry in layers.QUICK_LAYERS if asked.quick else layers.LAYERS:
            weights = {f"density {d:g}": layers.weight_of(geometry, d) for d in DENSITIES}
            required = {f"density {d:g}": LEAST.get((str(geometry), batch, d)) for d in DENSITIES}
            measure = partial(one_layer, geometry, weights, required, batch, team, names, asked)
            _kept(store, f"{geometry}, batch {batch}", measure)
    for geometry in layers.QUICK_STRUCTURED if asked.quick else layers.STRUCTURED:
        for batch in BATCHES if geometry.side else (1,):
            for density in PATTERN_DENSITIES:
                weights = {
                    name: layers.weight_of(geometry, density, pattern)
                    for name, pattern in layers.PATTERNS.items()
                    if not geometry.side or name != "constant fan-in"  # which has a kernel of its own for matrices
                }
                measure = partial(one_layer, geometry, weights, dict.fromkeys(weights), batch, team, names, asked)
                _kept(store, f"patterns, {geometry}, batch {batch}, density {density:g}", measure)


def _kept(store: Store, place: str, measure: Callable[[], dict[str, Any]]) -> None:
    print(f"{place}", file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # inductor's
        store.once(place, measure)
    torch._dynamo.reset()


def one_layer(
    geometry: layers.Geometry, weights: dict[str, Any], required: dict[str, float | None], batch: int, team: Team, names: Sequence[str],
    asked: argparse.Namespace,
) -> dict[str, Any]:  # fmt: skip
    """Weights of one layer by name, each tuned, against the dense layer."""
    found = {name: layers.tuned(geometry, weight, batch, team, asked.trials, asked.quick) for name, weight in weights.items()}
    dense = layers.dense_calls(geometry, batch, team.threads, names)
    race = raced({name: (each.call, each.call.count) for name, each in found.items()}, dense, required, asked.rounds, asked.quick)
    pixels = geometry.side**2 or 1
    for name, each in found.items():
        milliseconds = race["ms"][name]["median"]
        race["speedup"][name] |= {
            "choice": str(each.choice),
            "live": each.live,
            "gflops": 2 * each.live * pixels * batch / milliseconds / 1e6,
            "loads_per_fma": layers.loads(each.call.operation),
        }
    return race


def means(figures: dict[str, Any]) -> dict[str, Any]:
    """Geometric means over the layers, by batch."""
    found = {}
    for batch in BATCHES:
        places = [each for place, each in figures.items() if place.endswith(f", batch {batch}") and "channels" in place]
        found[f"geometric mean, batch {batch}"] = {
            f"density {d:g}": {
                "median": geometric_mean([each["speedup"][f"density {d:g}"]["median"] for each in places]),
                "required": REQUIRED[batch, d],
            }
            for d in DENSITIES
        }
    return found


def starts(name: str, folder: Path, threads: int, quick: bool) -> dict[str, Any]:
    """Of every density that has to be faster: with an empty cache, and again."""
    found = {}
    for density in cases.case_of(name, quick).densities:
        variant = f"density {density:g}"
        tuning = networks.tuning_of(folder, variant, threads)
        with tempfile.TemporaryDirectory() as cache:
            cold, warm = (
                shared.apart("sparse_start.py", [folder / variant, threads, tuning], threads, {"QUORATE_CACHE": cache})
                for _ in range(2)
            )
        found[variant] = warm | {
            "seconds": {"cold": cold["seconds"], "warm": warm["seconds"]},
            "bytes_per_live": {layout: held / warm["live"] for layout, held in warm["weights"].items()},
        }
    return found


def folder_of(asked: argparse.Namespace) -> Path:
    """Where exports, tunings and figures of these sources and options lie."""
    plain = {key: value for key, value in vars(asked).items() if key in ("rounds", "engines", "trials", "quick", "allocator")}
    options = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:8]
    return Path(asked.work) / f"{sources()}-{options}"


def measured(what: str, threads: int, folder: Path, given: Sequence[str], asked: argparse.Namespace) -> dict[str, Any]:
    """All figures of a kind, with so many threads."""
    store = Store(folder / f"{what}-{threads}.json")
    environment = {**speed.ALLOCATORS[asked.allocator], "QUORATE_CACHE": str(folder / "cache")}

    def inside(name: str) -> None:
        shared.apart("sparse_runtime.py", [*given, "--inside", what, name, threads, folder], threads, environment)

    if what == "layers":
        inside("layers")
        return store.read() | means(store.read())
    for name in asked.networks:
        inside(name)
        if threads == 1:
            store.once(f"{name}, start", partial(starts, name, folder / name, threads, asked.quick))
    return store.read()


def complete(what: str, figures: dict[str, Any], quick: bool) -> bool:
    """Whether nothing is missing."""
    names = QUICK_NETWORKS if quick else tuple(cases.CASES)
    wanted = [f"{name}, batch {batch}" for name in names for batch in cases.case_of(name, quick).batches]
    return what == "layers" or set(wanted) <= set(figures)


def run_inside(asked: argparse.Namespace) -> None:
    """The part of the work that a process of its own does."""
    what, name, threads, folder = asked.inside
    torch.set_num_threads(int(threads))
    torch._dynamo.config.recompile_limit = 1000  # one class of module is compiled for every engine and batch
    store = Store(Path(folder) / f"{what}-{threads}.json")
    if what == "layers":
        all_layers(store, int(threads), asked)
    else:
        networks.measured(name, Path(folder) / name, store, int(threads), asked)
    json.dump({}, sys.stdout)


def show(place: str, found: dict[str, Any]) -> None:
    """For the terminal."""
    if "ms" in found:
        shown(place, found)
        return
    for name, each in found.items():
        if place.startswith("geometric mean"):
            judged = "met" if each["median"] >= each["required"] else "NOT MET"
            print(f"{place}, {name}: {each['median']:.2f} ×   ≥ {each['required']:g}: {judged}")
        elif place.endswith(", start"):
            cold, warm = (each["seconds"][way]["all"] for way in ("cold", "warm"))
            kept = ", ".join(f"{layout} {size:.2f}" for layout, size in each["bytes_per_live"].items())
            print(f"{place}, {name}: {cold:.2f} s cold, {warm:.2f} s warm; bytes per live weight: {kept}")
        elif place.endswith(", profile") and name != "peak_gflops" and each["gflops"]:
            print(f"{place}, {name}: {each['gflops']:.1f} GFLOP/s, {each['share_of_peak']:.0%} of {found['peak_gflops']:.1f}")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=list(WHAT))
    parser.add_argument("--threads", type=int, nargs="+", default=None, help="1 and 2; in a quick run 1")
    parser.add_argument("--networks", nargs="+", choices=cases.CASES, default=None)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--trials", type=int, default=8, help="forms tried of each layer")
    parser.add_argument("--allocator", choices=speed.ALLOCATORS, default="keep", help="of all engines, see packed_speed.py")
    parser.add_argument(
        "--work", default=os.path.join(tempfile.gettempdir(), "quorate-sparse"), help="for what a later run goes on with"
    )
    parser.add_argument(
        "--quick", action="store_true", help="small layers and networks, two rounds, eager alone: that it works, no result"
    )
    parser.add_argument("--inside", nargs=4, metavar=("WHAT", "NAME", "THREADS", "FOLDER"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    asked.threads = asked.threads or ([1] if asked.quick else [1, 2])
    if min([*asked.threads, asked.rounds, asked.trials]) < 1:
        parser.error("--threads, --rounds and --trials: expected 1 or more")
    if asked.quick:
        asked.rounds, asked.trials = 2, 2
    asked.networks = asked.networks or list(QUICK_NETWORKS if asked.quick else cases.CASES)
    asked.engines = asked.engines or list(QUICK if asked.quick else USED)
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/sparse-layers-THREADS.json and results/sparse-networks-THREADS.json."""
    asked = parsed(argv)
    if asked.inside:
        run_inside(asked)
        return
    now, given, folder = commit(), list(sys.argv[1:] if argv is None else argv), folder_of(asked)
    about = " ".join((__doc__ or "").split("\n\n", 2)[2].split("\n\n")[0].split())
    settings = {
        "engines": asked.engines, "trials": asked.trials, "allocator": asked.allocator, "host": here().name, "quick": asked.quick,
    }  # fmt: skip
    for what in asked.what:
        for threads in asked.threads:
            figures = measured(what, threads, folder, given, asked)
            for place, each in figures.items():
                show(place, each)
            whole = complete(what, figures, asked.quick)
            path = write(
                f"sparse-{what}-{threads}" + ("" if whole else "-part") + ("-quick" if asked.quick else ""),
                {"settings": settings, **figures}, commit=now, seeds=[shared.SEED], repeats=asked.rounds, note=about, threads=threads,
            )  # fmt: skip
            if whole:
                (folder / f"{what}-{threads}.json").unlink()
            print("no result, a quick run:" if asked.quick else "wrote", path, flush=True)


if __name__ == "__main__":
    main()
