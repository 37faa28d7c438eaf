"""``quorate predict BUNDLE --input FILE|DIR --output FILE``: every row of files answered by a bundle, resumably and in bounded memory.

Rows go through the bundle in chunks of a fixed number (``rows``), what is finished is kept beside the output (``parts``) and becomes the
output at the end (``answers``). The same command goes on where it was stopped, to the same bytes. Needs no PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import quorate
from quorate.cli.parse import parse, parser
from quorate.cli.predicting import answers
from quorate.cli.predicting.answers import Arrays, Layout, Part
from quorate.cli.predicting.parts import Parts
from quorate.cli.predicting.row_file import Reading
from quorate.cli.predicting.rows import Chunk, Rows, open_rows
from quorate.cli.usage import UsageError

if TYPE_CHECKING:
    from quorate.runtime.manifest import Manifest
    from quorate.runtime.runtime import Runtime

CHUNK_BYTES, CHUNK_BATCHES = 2**26, 16  # of a chunk by default: as many rows as keep within both
SAVE_S, SAVE_BYTES = 2.0, 2**25  # finished chunks are written down when one of these is reached
SPEAK_S = 10.0  # between two lines of progress where there is no terminal


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.runtime.folder import read_manifest

    chosen = _parse(argv)
    output, ending, parts = Path(chosen.output), Path(chosen.output).suffix, Parts(Path(chosen.output))
    if output.exists() and not chosen.overwrite and not parts.folder.exists():
        raise _exists(output)
    if ending == ".parquet":
        answers.check_parquet()
    manifest = read_manifest(Path(chosen.bundle))
    _check_kind(manifest, chosen)
    rows = open_rows(chosen.input, manifest.input, _reading(chosen))
    if rows.passed_over:
        _say(f"{rows.source}: {len(rows.passed_over)} files of other kinds are passed over, such as {rows.passed_over[0]}")
    layout = _layout(manifest, rows, chosen.probs)
    chunk = chosen.chunk or _chunk_rows(rows, layout, chosen.batch_size)
    request = _request(chosen, manifest, rows, chunk)
    with parts.held():
        delivered = False if chosen.restart else parts.delivered(request)
        if delivered is not False:
            parts.clear_()
        if delivered:
            _say(f"{output} is complete already")
            return 0
        if output.exists() and not chosen.overwrite:
            raise _exists(output)
        done = parts.begin_(request, chosen.restart)
        if done:
            _say(f"{parts.folder} holds {done:,} finished rows, going on behind them")
        runtime = _load(chosen, manifest)
        _replay_(runtime, parts)
        begun = time.perf_counter()
        _predict_(runtime, rows, parts, layout, chunk, chosen.on_nan == "skip")
        seconds = time.perf_counter() - begun
        rows.check_unchanged()
        layout = replace(layout, width=max([layout.width, *(_width(part, layout) for part in parts.stored)]))
        said = _summary(parts, layout, runtime, parts.rows - done, seconds)
        parts.deliver_(lambda path: answers.write(path, ending, parts.stored, layout))
    _say(f"{output}: {said}")
    return 0


def _load(chosen: Any, manifest: Manifest) -> Runtime:
    from quorate.runtime.loading import load_bundle

    return load_bundle(
        chosen.bundle,
        providers=chosen.providers,
        threads=chosen.threads,
        batch_size=chosen.batch_size,
        digest=chosen.digest or manifest.digest,
        watch=manifest.watch is not None,
    )


def _predict_(runtime: Runtime, rows: Rows, parts: Parts, layout: Layout, size: int, skip: bool) -> None:
    """Answer all rows that are not finished, and store the answers."""
    held: list[Arrays] = []
    saved = time.monotonic()

    def save_() -> None:
        nonlocal saved
        ready, held[:] = list(held), []  # whatever stops the writing, no row is written twice
        width = max(_vector_width(arrays, layout) for arrays in ready)
        fitting = [_widened(arrays, width, layout) for arrays in ready]
        parts.add_({name: np.concatenate([arrays[name] for arrays in fitting]) for name in fitting[0]})
        saved = time.monotonic()

    with _progress(rows.total, parts.rows) as advance:
        try:
            for chunk in rows.chunks(size, parts.rows):
                held.append(_answered(runtime, chunk, layout, skip))
                advance(len(chunk))
                stored = sum(array.nbytes for arrays in held for array in arrays.values())
                if time.monotonic() - saved >= SAVE_S or stored >= SAVE_BYTES:
                    save_()
        finally:
            if held:
                save_()


def _answered(runtime: Runtime, chunk: Chunk, layout: Layout, skip: bool) -> Arrays:
    """The answers of a chunk's rows, with their ids; those of NaN or infinite values are refused or skipped."""
    finite = chunk.finite()
    if not (skip or finite.all()):
        bad = ~finite
        said = f"{chunk.shown(bad)}: NaN or infinite values ({int(bad.sum())} such rows in this chunk)"
        raise ValueError(f"{said}: mend them, or give --on_nan skip")
    found: list[Arrays] = []
    at = 0
    for x in chunk.runs():
        kept = finite[at : at + len(x)]
        at += len(x)
        if kept.any():
            found.append(_of(runtime, x if kept.all() else x[kept], chunk, layout))
    joined = {name: np.concatenate([arrays[name] for arrays in found]) for name in found[0]} if found else {}
    return {"id": chunk.ids} | (joined if finite.all() else answers.with_skipped(joined, finite, layout))


def _of(runtime: Runtime, x: NDArray[Any], chunk: Chunk, layout: Layout) -> Arrays:
    try:
        if runtime.manifest.policy is None:
            return answers.regressed(runtime.prefix(x))
        return answers.classified(runtime.predict(x), "probs" in layout.columns)
    except ValueError as error:
        rows = np.zeros(len(chunk), bool)
        rows[[0, -1]] = True
        raise ValueError(f"between {chunk.shown(rows)}: {error} (rows counted from the first of these)") from error


def _vector_width(arrays: Arrays, layout: Layout) -> int:
    return max([layout.width, *(int(arrays[name].shape[1]) for name in answers.VECTORS if name in arrays)])


def _widened(arrays: Arrays, width: int, layout: Layout) -> Arrays:
    """The same with vectors of this width, where rows that were all skipped told none."""
    wide = replace(layout, width=width)
    return {name: wide.column(name, arrays.__getitem__) if name in answers.VECTORS else array for name, array in arrays.items()}


def _width(part: Part, layout: Layout) -> int:
    """The width of a part's vectors, where the layout has none."""
    there = [] if layout.width else [name for name in answers.VECTORS if name in layout.columns]
    return max([0, *(int(part(name).shape[1]) for name in there)])


def _replay_(runtime: Runtime, parts: Parts) -> None:
    """Tell the drift watch what the finished rows did."""
    if runtime.watch is None:
        return
    for part in parts.stored:
        stage = part("stage")
        for k, name in enumerate(runtime.names[:-1]):
            runtime.watch.update_(name, int((stage >= k).sum()), int((stage > k).sum()))


def _layout(manifest: Manifest, rows: Rows, probs: bool) -> Layout:
    last = manifest.stages[-1].ports.members.shape[-1]
    width = len(manifest.classes or ()) if last is None else last // 2 if manifest.kind == "gaussian" else last
    stages = [stage.ports.stage for stage in manifest.stages]
    return Layout.of(stages, manifest.kind, manifest.classes, rows.text_ids, probs, width)


def _chunk_rows(rows: Rows, layout: Layout, batch_size: int) -> int:
    """How many rows of input, and of answers with the probabilities that are made on the way, keep within a chunk's bytes."""
    return max(1, min(CHUNK_BATCHES * batch_size, CHUNK_BYTES // (rows.row_bytes() + 8 * (layout.width + 8))))


def _request(chosen: Any, manifest: Manifest, rows: Rows, chunk: int) -> dict[str, Any]:
    """All that decides the bytes of the result, by the names of the options where there are such."""
    reading = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(_reading(chosen)).items()}
    return {
        "bundle": manifest.digest,
        "input": {"files": len(rows.paths), "rows": rows.total, "names, sizes and times": rows.identity},
        **reading,
        **{key: chosen[key] for key in ("probs", "on_nan", "providers", "threads", "batch_size")},
        "chunk": chunk,
        "versions": {"quorate": quorate.__version__, "onnxruntime": version("onnxruntime")},
        "sparse kernels": _kernels(manifest, chosen.threads),
    }


def _kernels(manifest: Manifest, threads: int | None) -> dict[str, str | None] | None:
    """What says how tickets are computed, beside the bundle: their tunings by stage; None where all run dense."""
    from quorate.runtime import engines

    if all(stage.ticket is None for stage in manifest.stages) or engines.missing():
        return None
    from quorate.runtime import tunings

    return tunings.told(manifest, threads or engines.cores())


def _summary(parts: Parts, layout: Layout, runtime: Runtime, predicted: int, seconds: float) -> str:
    """What came of it, in words."""
    exits = np.zeros(len(layout.stages) + 1, np.int64)  # the first are those that were skipped
    accepted, macs, total = 0, 0.0, parts.rows
    for part in parts.stored:
        stage = part("stage")
        exits += np.bincount(stage + 1, minlength=len(exits))
        macs += float(part("macs")[stage >= 0].sum())
        accepted += int(part("accepted").sum()) if "accepted" in layout.columns else 0
    said = [f"{total:,} rows"]
    skipped = int(exits[0])
    answered = total - skipped
    if skipped:
        said.append(f"{skipped:,} skipped (NaN or infinite)")
    if answered:
        if "accepted" in layout.columns:
            said.append(f"accepted {100 * accepted / answered:.1f} %")
            said.append(
                "exits " + ", ".join(f"{name} {100 * exits[k + 1] / answered:.1f} %" for k, name in enumerate(layout.stages))
            )
        unit = str(runtime.manifest.costs.get("unit", "MACs"))
        if macs == macs and (macs or unit == "MACs"):
            said.append(f"mean cost {macs / answered:,.6g} {unit}")
    if predicted:
        said.append(f"{predicted / max(seconds, 1e-9):,.0f} rows/s")
    if runtime.watch is not None:
        rates, intervals = runtime.watch.rates, runtime.watch.intervals
        for name in runtime.watch.alarms:
            (low, high), rate = intervals[name], rates[name]
            said.append(
                f"DRIFT at {name}: {100 * (rate or 0):.1f} % go on, {100 * low:.1f} … {100 * high:.1f} % on validation rows"
            )
        if not runtime.watch.alarms:
            said.append("no drift alarm")
    return "; ".join(said)


def _check_kind(manifest: Manifest, chosen: Any) -> None:
    if manifest.policy is None and chosen.probs:
        raise UsageError(f"--probs: {chosen.bundle} is a regression, which has no probabilities; leave it out")


def _reading(chosen: Any) -> Reading:
    columns = None if chosen.columns is None else tuple(chosen.columns)
    return Reading(chosen.array, columns, chosen.ids, chosen.delimiter, chosen.scale, chosen.cast)


def _exists(output: Path) -> ValueError:
    return ValueError(f"{output} exists: give --overwrite to replace it, or another --output")


def _parse(argv: Sequence[str]) -> Any:
    using = parser("predict", "Answer every row of files by a bundle; the same command goes on after an interruption.")
    add = using.add_argument
    add("bundle", type=str, help="the folder that quorate export wrote")
    add("--input", type=str, required=True, metavar="FILE|DIR", help=".npy, .npz, .parquet, .csv, .safetensors, or images")
    add("--output", type=str, required=True, metavar="FILE", help="ends in .parquet, .csv or .npz")
    add("--array", type=str | None, default=None, metavar="NAME", help="of the rows' array, or of a Parquet column of lists")
    add(
        "--columns",
        type=str,
        nargs="+",
        default=None,
        metavar="NAME",
        help="of .csv and .parquet: a row's numbers, in row-major order",
    )
    add(
        "--ids", type=str | None, default=None, metavar="NAME", help="array or column of row ids (default: row numbers, or paths)"
    )
    add("--delimiter", type=str, default=",", help="between the cells of a .csv")
    add("--scale", type=float | None, default=None, help="of images for a bundle that takes floats: pixels are divided by it")
    add(
        "--cast",
        action="store_true",
        help="convert whole numbers, and floats to floats, to the bundle's dtype; nothing is rounded",
    )
    add("--probs", action="store_true", help="write the probabilities of all classes too")
    add("--on_nan", type=Literal["refuse", "skip"], default="refuse", help="what to do with rows of NaN or infinite values")
    add(
        "--chunk", type=int | None, default=None, metavar="ROWS", help="in memory at a time (default: 16 batches, 64 MiB at most)"
    )
    add("--batch_size", type=int, default=256, help="most rows in one call of a stage")
    add("--providers", type=str, nargs="+", default=None, metavar="NAME", help="of ONNX Runtime, in order (default: the CPU's)")
    add("--threads", type=int | None, default=None, help="that one call of a stage may use (default: one per core)")
    add("--digest", type=str | None, default=None, help="what the bundle's digest has to be")
    add("--overwrite", action="store_true", help="replace an output that is there")
    add("--restart", action="store_true", help="begin anew, and drop what an interrupted command has finished")
    chosen = parse(using, argv)
    for option in ("chunk", "batch_size", "threads"):
        if chosen[option] is not None and chosen[option] < 1:
            raise UsageError(f"--{option} {chosen[option]}: expected at least 1")
    if Path(chosen.output).suffix not in answers.ENDINGS:
        raise UsageError(f"--output {chosen.output}: expected a name that ends in {', '.join(answers.ENDINGS)}")
    if Path(chosen.output).is_dir():
        raise UsageError(f"--output {chosen.output} is a folder: expected a file's name")
    if Path(chosen.output).resolve().is_relative_to(Path(chosen.input).resolve()):
        raise UsageError(f"--output {chosen.output} lies in the input {chosen.input}: choose a place outside it")
    if len(chosen.delimiter) != 1 or chosen.delimiter in '"\r\n':
        raise UsageError(f"--delimiter {chosen.delimiter!r}: expected one character, no quote or line end")
    for option in ("columns", "providers"):
        twice = [name for name, times in Counter(chosen[option] or ()).items() if times > 1]
        if twice:
            raise UsageError(f"--{option} has {twice[0]!r} twice: name each once")
    return chosen


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; elsewhere a line every ten seconds."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task("predicting", total=total, completed=done)
            yield functools.partial(bar.advance, task)
        return
    spoken = time.monotonic()

    def advance(rows: int) -> None:
        nonlocal spoken, done
        done += rows
        if time.monotonic() - spoken >= SPEAK_S:
            _say(f"predicting: {done:,} of {total:,} rows ({100 * done / max(total, 1):.0f} %)")
            spoken = time.monotonic()

    yield advance


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
