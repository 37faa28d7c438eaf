"""Predicting from a bundle beside PyTorch, what a cascade gains in it, and what the runtime itself adds to a call.

python benchmarks/runtime_speed.py [--batches 1 32 256] [--threads 1 2] [--rounds 9] [--engines NAME …] [--no-overhead] [--quick]

Networks with random weights (runtime_cases.py): ResNet-18 on (3, 32, 32) alone, packed (4 members, α = 2), and two of them as a
cascade whose window passes about a fifth of the rows. A process of its own for every number of threads, the same for both engines; in it
all calls of a comparison in turn, ratios are medians over the rounds with quartiles. Both sides get float32 arrays (B, 3, 32, 32) and give
a quorate.Prediction.

single, packed: Runtime.predict against one forward pass under inference_mode, with the softmax, the mean over members and the label taken
in NumPy, nothing checked. cascade: Runtime.predict_stream, batch by batch, against quorate.Cascade over quorate.stages, which run on
dynamic batches where they are compiled. Engines: PyTorch as it is and in channels_last (nhwc), with norms folded, compiled by inductor,
and compiled with frozen weights. Required: the bundle's time ≤ that of the fastest of them.

Cascade's gain: time of the full ensemble (the same sessions, open windows) ÷ the cascade's, over the gain in MACs that these rows
met; "stream" batch by batch, "all" in one call whose rows that go on are gathered into full batches. Required: ≥ 0.9.
Overhead: Runtime.predict of one row − the bare sessions' run on the same array, call after call, median of the differences, of networks
small and large, one stage and two that every row sees. Required: ≤ 100 µs.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import packed_speed as speed
import quorate
import runtime_cases as cases
from cascade_executed import everyone
from quorate.cascade import Cascade, Prediction
from quorate.combination import softmax
from quorate.cost.interleaving import Times, interleaved, quartiles
from quorate.runtime import Runtime, load_bundle
from record import commit, write

REQUIRED, GAIN, OVERHEAD_US = 1.0, 0.9, 100.0
COMPARED = ("single", "packed", "cascade")
ROWS = {1: 48, 32: 192, 256: 512}  # that one timed call of a cascade goes through
BURST_MS = 400  # of calls in a row: PyTorch's threads wait busily for a while after its last call, and would be counted as ours
CALLS = {"mlp": 2000, "mlp ×2": 2000, "single": 300}  # that the overhead is the median of
CLOSE = 1e-3  # between two engines' probabilities
ELSEWHERE = 0.02  # share of rows, one at least, that may leave at another stage
Change = Callable[[nn.Module, bool], nn.Module]
ENGINES: dict[str, tuple[Change, bool]] = {  # what becomes of a module (for dynamic batches?), and whether in channels_last
    "eager nchw": (lambda module, _: module, False),
    "eager nhwc": (lambda module, _: module, True),
    "eager folded nhwc": (lambda module, _: speed.folded(module), True),
    "compile nchw": (lambda module, dynamic: compiled(module, dynamic), False),
    "compile nhwc": (lambda module, dynamic: compiled(module, dynamic), True),
    "compile frozen nhwc": (lambda module, dynamic: compiled(module, dynamic, freeze=True), True),
}
QUICK_ENGINES = ("eager nchw", "eager folded nhwc")
Call = Callable[[], Any]


def compiled(module: nn.Module, dynamic: bool, freeze: bool = False) -> nn.Module:
    """By inductor, for any number of rows or for those it is given."""
    return torch.compile(module, dynamic=dynamic, options={"freezing": True} if freeze else None)  # type: ignore[return-value]


def engine(name: str, module: nn.Module, dynamic: bool = False) -> nn.Module:
    """A network of its own, as the engine runs it."""
    change, last = ENGINES[name]
    made = change(copy.deepcopy(module).eval(), dynamic)
    return made.to(memory_format=torch.channels_last) if last else made  # type: ignore[call-overload,no-any-return]


def answered(logits: Tensor) -> Prediction:
    """(M, B, C) or (B, C) → the mean of the members' probabilities, and what follows from it."""
    members = logits.numpy()
    probs = softmax(members[None] if members.ndim == 2 else members).mean(0)
    label, top = probs.argmax(1), probs.max(1)
    rows = len(label)
    return Prediction(label, probs, 1 - top, np.ones(rows, bool), np.zeros(rows, np.int64), np.zeros(rows), ("stage0",))


def forward(name: str, module: nn.Module, x: NDArray[Any]) -> Call:
    """A call of a whole network on a batch."""
    made = engine(name, module)
    last = ENGINES[name][1]

    def call() -> Prediction:
        with torch.inference_mode():
            given = torch.from_numpy(x)
            return answered(made(given.contiguous(memory_format=torch.channels_last) if last else given))

    return call


def staged(name: str, case: cases.Case, parts: Sequence[NDArray[Any]]) -> Call:
    """A call of the cascade on one batch after the other."""
    members = [engine(name, member, dynamic=True) for member in case.ensemble.members]  # type: ignore[union-attr]
    assert case.policy is not None
    cascade = Cascade(quorate.stages(quorate.DeepEnsemble(members), torch.from_numpy(parts[0][:1])), case.policy)
    return lambda: [cascade.predict(part) for part in parts]


# — comparisons —


def spread(values: Iterable[float]) -> dict[str, float]:
    """Quartiles and median."""
    low, median, high = quartiles(list(values))
    return {"median": median, "q1": low, "q3": high}


def against(times: Times, name: str, base: str) -> dict[str, float]:
    """Of the rounds' ratios."""
    return spread(a / b for a, b in zip(times[name], times[base], strict=True))


def compared(times: Times, rows: int) -> dict[str, Any]:
    """The bundle's time beside every engine's; ``rows`` in a call."""
    others = [name for name in times if name.startswith("pytorch, ")]
    fastest = speed.fastest(times, others)
    return {
        "rows": rows,
        "ms": {name: spread(each) for name, each in times.items()},
        "fastest": {"bundle": "bundle", "pytorch": fastest},
        "ratio": against(times, "bundle", fastest),
        "ratio_by_engine": {name.removeprefix("pytorch, "): against(times, "bundle", name) for name in others},
    }


def check_same(name: str, mine: Sequence[Prediction], theirs: Sequence[Prediction]) -> None:
    """A RuntimeError unless both engines say the same; rows whose uncertainty is at a window's very end may leave elsewhere."""
    one, other = ([np.concatenate([getattr(p, key) for p in part]) for key in ("probs", "stage")] for part in (mine, theirs))
    same = one[1] == other[1]
    off = float(np.abs(one[0] - other[0])[same].max(initial=0.0))
    if off > CLOSE or (~same).sum() > max(1, ELSEWHERE * len(same)):
        raise RuntimeError(
            f"{name} says something else than the bundle: probabilities differ by up to {off:.3g}, {(~same).sum()} of {len(same)} rows "
            f"leave at another stage; expected at most {CLOSE:g} and {100 * ELSEWHERE:g} %"
        )


def timed(calls: dict[str, Call], rounds: int, quick: bool) -> Times:
    """Milliseconds of every call in each round."""
    return interleaved(calls, rounds, warmup=1 if quick else 2, least_ms=0 if quick else BURST_MS)


def whole(runtime: Runtime, case: cases.Case, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """A network against PyTorch on one batch."""
    x = cases.rows(batch)
    module = case.ensemble.members[0] if isinstance(case.ensemble, quorate.DeepEnsemble) else case.ensemble  # type: ignore[index]
    calls: dict[str, Call] = {"bundle": lambda: runtime.predict(x)}
    for name in asked.engines:
        calls[f"pytorch, {name}"] = forward(name, module, x)
        check_same(name, [runtime.predict(x)], [calls[f"pytorch, {name}"]()])
    return compared(timed(calls, asked.rounds, asked.quick), batch)


def chained(runtime: Runtime, case: cases.Case, batch: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The cascade against PyTorch, and against the full ensemble."""
    x = cases.rows(4 * batch if asked.quick else ROWS.get(batch, 4 * batch))
    parts = [x[start : start + batch] for start in range(0, len(x), batch)]
    policy = runtime.policy
    assert policy is not None
    manifest = {"cascade": runtime.manifest, "full": replace(runtime.manifest, policy=everyone(policy))}
    calls: dict[str, Call] = {"bundle": lambda: list(runtime.predict_stream(parts))}
    for name in asked.engines:
        calls[f"pytorch, {name}"] = staged(name, case, parts)
        check_same(name, calls["bundle"](), calls[f"pytorch, {name}"]())
    for kind, told in manifest.items():
        made = Runtime(told, runtime.stages, batch_size=batch)
        calls[f"stream, {kind}"] = lambda made=made: list(made.predict_stream(parts))
        if batch > 1:  # else the same calls as those of the stream
            calls[f"all, {kind}"] = lambda made=made: made.predict(x)
    times = timed(calls, asked.rounds, asked.quick)
    found = compared({name: each for name, each in times.items() if name.startswith(("bundle", "pytorch"))}, len(x))
    macs = np.concatenate([part.macs for part in calls["bundle"]()])
    saved = float(sum(stage.macs or 0.0 for stage in runtime.stages) / macs.mean())
    gains = {way: against(times, f"{way}, full", f"{way}, cascade") for way in (["stream", "all"] if batch > 1 else ["stream"])}
    return found | {
        "mac_gain": saved,
        "passed": float((macs > macs.min()).mean()),
        "gain": {way: each | {"over_mac_gain": each["median"] / saved} for way, each in gains.items()},
        "gain_ms": {name: spread(each) for name, each in times.items() if name not in found["ms"]},
    }


def overhead(runtime: Runtime, shape: Sequence[int], count: int) -> dict[str, Any]:
    """Microseconds of predict beyond the bare sessions' run, at one row that sees all stages; ``count`` calls of each in turn."""
    x = cases.rows(1, shape)
    sessions = [
        (stage.session, [stage.ports.members.name], {stage.ports.input.name: x}) for stage in runtime.stages if stage.ports.input
    ]

    def bare() -> None:
        for session, outputs, feed in sessions:
            session.run(outputs, feed)

    def once(call: Call) -> float:
        begun = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - begun)

    def predict() -> Prediction:
        return runtime.predict(x)

    taken: dict[str, list[float]] = {"predict": [], "bare": []}
    for k in range(count + count // 10):
        if k == count // 10:  # warm
            taken = {name: [] for name in taken}
            gc.collect()
            gc.disable()
        for name, call in (("predict", predict), ("bare", bare))[:: 1 if k % 2 else -1]:
            taken[name].append(once(call))
    gc.enable()
    return {
        "stages": len(runtime.stages),
        "us": spread(a - b for a, b in zip(taken["predict"], taken["bare"], strict=True)),
        "predict_us": spread(taken["predict"]),
        "bare_us": spread(taken["bare"]),
    }


# — processes —


def inside(asked: argparse.Namespace, folder: Path, threads: int) -> dict[str, Any]:
    """Everything with a number of threads, in this process."""
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = 1000  # one class of module is compiled for every variant and batch
    figures: dict[str, Any] = {}
    for name in asked.cases:
        case = cases.CASES[name](asked.quick)
        runtime = load_bundle(folder / name, threads=threads)
        for batch in asked.batches:
            place = f"{name}, batch {batch}, threads {threads}"
            print(place, file=sys.stderr, flush=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor's
                figures[place] = (whole if case.policy is None else chained)(runtime, case, batch, asked)
            torch._dynamo.reset()
    for name, count in {} if asked.no_overhead else CALLS.items():
        runtime = load_bundle(folder / name, threads=threads)
        figures[f"overhead, {name}, threads {threads}"] = overhead(
            runtime, cases.CASES[name](asked.quick).shape, 20 if asked.quick else count
        )
    return figures


def show(place: str, found: dict[str, Any]) -> None:
    """For the terminal."""
    if "us" in found:
        cost = found["us"]
        judged = "met" if cost["median"] <= OVERHEAD_US else "NOT MET"
        print(f"{place}: {cost['median']:.0f} µs ({cost['q1']:.0f}–{cost['q3']:.0f})   ≤ {OVERHEAD_US:.0f}: {judged}", flush=True)
        return
    for name, each in found["ms"].items():
        print(f"{place} {name:30s} {each['median']:10.3f} ms  [{each['q1']:.3f}, {each['q3']:.3f}]")
    share, best = found["ratio"], found["fastest"]["pytorch"]
    judged = "met" if share["median"] <= REQUIRED else "NOT MET"
    print(
        f"{place}: bundle ÷ {best} {share['median']:.3f} ({share['q1']:.3f}–{share['q3']:.3f})   ≤ {REQUIRED:g}: {judged}",
        flush=True,
    )
    for way, gain in found.get("gain", {}).items():
        judged = "met" if gain["over_mac_gain"] >= GAIN else "NOT MET"
        print(
            f"{place}, {way}: {gain['median']:.2f} × ({gain['q1']:.2f}–{gain['q3']:.2f}), MACs {found['mac_gain']:.2f} ×, "
            f"{gain['over_mac_gain']:.3f} of it   ≥ {GAIN:g}: {judged}",
            flush=True,
        )


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=COMPARED, default=list(COMPARED))
    parser.add_argument("--batches", type=int, nargs="+", default=list(ROWS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=None)
    parser.add_argument("--allocator", choices=speed.ALLOCATORS, default="keep", help="of both engines, see packed_speed.py")
    parser.add_argument("--suffix", default="", help="of the name under which the results are kept")
    parser.add_argument("--no-overhead", action="store_true")
    parser.add_argument("--quick", action="store_true", help="small networks, two rounds, eager alone: that it works, no result")
    parser.add_argument("--inside", nargs=2, metavar=("FOLDER", "THREADS"), help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if min([*asked.batches, *asked.threads, asked.rounds]) < 1:
        parser.error("--batches, --threads and --rounds: expected 1 or more")
    asked.rounds = 2 if asked.quick else asked.rounds
    asked.engines = asked.engines or list(QUICK_ENGINES if asked.quick else ENGINES)
    return asked


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, write results/runtime-speed.json."""
    asked = parsed(argv)
    if asked.inside:
        json.dump(inside(asked, Path(asked.inside[0]), int(asked.inside[1])), sys.stdout)
        return
    now, given = commit(), list(sys.argv[1:] if argv is None else argv)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in dict.fromkeys([*asked.cases, *({} if asked.no_overhead else CALLS)]):
            cases.save(cases.CASES[name](asked.quick), Path(folder) / name)
        for threads in asked.threads:
            environment = speed.ALLOCATORS[asked.allocator]
            found = cases.apart("runtime_speed.py", [*given, "--inside", folder, threads], threads, environment)
            for place, each in found.items():
                show(place, each)
            figures |= found
    title, _, about = (__doc__ or "").split("\n\n", 2)
    settings = {"allocator": asked.allocator, "batches": asked.batches, "engines": asked.engines}
    path = write(
        "runtime-speed" + asked.suffix + ("-quick" if asked.quick else ""), {"settings": settings, **figures},
        commit=now, seeds=[cases.SEED], repeats=asked.rounds, note=" ".join(f"{title} {about}".split()),
    )  # fmt: skip
    print("wrote", path)


if __name__ == "__main__":
    main()
