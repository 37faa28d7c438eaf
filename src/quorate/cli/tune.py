"""``quorate tune BUNDLE``: find out which kernels are the fastest for a bundle's tickets on this machine. Needs no PyTorch.

What was found is kept in the cache folder, and ``quorate predict`` and :func:`quorate.load_bundle` use it from then on, for as many
threads. Shown is what every layer then takes; ``--explain`` shows it without tuning.
"""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quorate.cli.parse import parse, parser
from quorate.cli.usage import UsageError

if TYPE_CHECKING:
    from quorate.runtime.runtime import Runtime
    from quorate.runtime.sparse.explaining import Explanation
    from quorate.runtime.sparse.tuning import Layout, Tuning

TRIALS = 8
SPEAK_S = 10.0  # between two lines of progress where there is no terminal
HEADS = ("stage", "layer", "kind", "density", "how", "ms", "GFLOP/s", "dense ms")


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.runtime.loading import load_bundle
    from quorate.runtime.tuned import tune_bundle

    chosen = _parse(argv)
    folder, found = Path(chosen.bundle), dict[str, Any]()
    if not chosen.explain:
        begun = time.perf_counter()
        with _progress() as told:
            found = tune_bundle(folder, threads=chosen.threads, trials=chosen.trials or TRIALS, progress=told)
        print(f"tuned {folder} in {time.perf_counter() - begun:.1f} s: {', '.join(found)}", file=sys.stderr, flush=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*quorate\[sparse\]", RuntimeWarning)  # the error says it
        runtime = load_bundle(folder, threads=chosen.threads, verify="files")
    sparse = [engine for engine in runtime.engines if engine.name == "sparse"]
    if sparse or not found:
        _show(runtime)
    for line in _conclusions(runtime, found):
        print(line)
    return 0


def _parse(argv: Sequence[str]) -> Any:
    using = parser("tune", "Find the fastest kernels for a bundle's tickets on this machine; later loads use them.")
    add = using.add_argument
    add("bundle", type=str, help="the bundle's folder, as quorate export writes it")
    add("--threads", type=int | None, default=None, help="that one call will use (default: one per core)")
    add("--trials", type=int | None, default=None, help=f"forms that are tried of each layer (default: {TRIALS})")
    add("--explain", action="store_true", help="tune nothing, show what every layer takes now")
    chosen = parse(using, argv)
    for option in ("threads", "trials"):
        if chosen[option] is not None and chosen[option] < 1:
            raise UsageError(f"--{option} {chosen[option]}: expected at least 1")
    if chosen.explain and chosen.trials is not None:
        raise UsageError("--explain tunes nothing: leave --trials out")
    return chosen


def _show(runtime: Runtime) -> None:
    """What every layer takes, by layout."""
    from quorate.report import grid

    layouts: tuple[Layout, ...] = ("latency", "throughput")
    for layout in layouts:
        found = runtime.explain(layout)
        first = next(iter(found.values()))
        title = f"{layout}: {first.rows} row{'s side by side' * (first.rows > 1)}, one thread, {first.host}"
        rows = [row for name, each in found.items() for row in _rows(name, each)]
        grid.show(HEADS, rows, title=title, left=("stage", "layer", "kind", "how"))


def _rows(stage: str, found: Explanation) -> Iterator[list[str]]:
    if found.reason:
        yield [stage, "all", "", "", f"ONNX Runtime: {found.reason}", "–", "–", "–"]
        return
    for line in found.lines:
        density = "–" if line.density is None else f"{line.density:.3f}"
        yield [stage, line.name, line.kind, density, line.choice, _ms(line.seconds), _rate(line.gflops), _ms(line.dense_seconds)]
    macs = sum(line.macs for line in found.lines)
    rate = 2 * macs / found.seconds / 1e9 if macs else None
    yield [stage, "all", "", "", f"{found.bytes_per_live:.1f} bytes per live weight", _ms(found.seconds), _rate(rate), "–"]


def _conclusions(runtime: Runtime, found: Mapping[str, Tuning]) -> Iterator[str]:
    """What runs each stage, and what the whole of it took when it was tuned."""
    sessions = {stage.name: stage.session for stage in runtime.stages}
    for engine in runtime.engines:
        tuning = found.get(engine.stage) or getattr(sessions[engine.stage], "tuning", None)
        whole = {} if tuning is None else tuning.whole
        times = [
            f"{said} sparse {_ms(whole[key][0])} ms against dense {_ms(whole[key][1])} ms" for key, said in WHOLE if key in whole
        ]
        yield "; ".join([f"{engine.stage}: {engine.name} ({engine.why})", *times])


WHOLE: tuple[tuple[Layout, str], ...] = (("latency", "one row"), ("throughput", "a group of rows for each thread"))


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None or seconds == float("inf") else f"{1e3 * seconds:.3f}"


def _rate(gflops: float | None) -> str:
    return "–" if gflops is None else f"{gflops:.1f}"


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """What is being tuned, on a terminal; elsewhere a line every ten seconds."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status("tuning") as status:
            yield lambda text: status.update(f"tuning {text}")
        return
    spoken = time.monotonic()

    def told(text: str) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= SPEAK_S:
            print(f"tuning {text}", file=sys.stderr, flush=True)
            spoken = time.monotonic()

    yield told
