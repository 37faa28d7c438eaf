"""Whole networks for sparse_runtime.py: sparse ones tuned, against the dense one in ONNX Runtime and PyTorch, in turn in one process.

Sparse calls: every density, and the tickets in one call. Dense calls: ONNX Runtime as a bundle runs it; PyTorch as it is, in channels_last
with norms folded, compiled with frozen weights. All take float32 arrays and give logits. Before anything is timed what every density
gives is compared with the masked network in float64, rows in groups and alone; a relative error above 1e-5 ends the run.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sparse_cases as cases
from quorate.files import write_text
from quorate.runtime.session import open_session
from quorate.runtime.sparse.explaining import explain
from quorate.runtime.sparse.sparse import SparseNetwork, run_together
from quorate.runtime.sparse.trials import tune
from quorate.runtime.sparse.tuning import LAYOUTS, Layout
from runtime_cases import rows
from runtime_speed import ENGINES, engine
from sparse_layers import error
from sparse_peak import peak_gflops
from sparse_race import Store, raced
from sparse_start import opened, read

TOGETHER = 16  # rows that the tickets see in one call
ALIKE = 1e-3  # of a row's largest number, between dense engines
Call = Callable[[], Any]


def measured(name: str, folder: Path, store: Store, threads: int, asked: argparse.Namespace) -> None:
    """All figures of a network, one by one into the store."""
    case, quick = cases.case_of(name, asked.quick), asked.quick
    cases.prepare(name, folder, quick)
    networks = networks_of(name, folder, threads, asked)
    store.once(f"{name}, correct", lambda: checked(name, networks, folder, quick))
    for batch in case.batches:
        print(f"{name}, batch {batch}, {threads} threads", file=sys.stderr, flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # inductor's
            store.once(f"{name}, batch {batch}", lambda batch=batch: against_dense(name, networks, folder, batch, threads, asked))
        torch._dynamo.reset()
    if threads == 1:
        store.once(f"{name}, profile", lambda: profile(case, networks, quick))


def tuning_of(folder: Path, variant: str, threads: int) -> Path:
    """Where a tuning is kept; the other tickets have the first one's."""
    return folder / f"{variant}, {threads} threads.tuning.json"


def networks_of(name: str, folder: Path, threads: int, asked: argparse.Namespace) -> dict[str, SparseNetwork]:
    """All variants, tuned."""
    case, found = cases.case_of(name, asked.quick), {}
    first = f"density {case.densities[0]:g}"
    for variant in case.variants():
        place = tuning_of(folder, variant.name if variant.name.startswith("density") else first, threads)
        if not place.exists():
            print(f"{name}: tuning {variant.name}, {threads} threads", file=sys.stderr, flush=True)
            tuning = tune(*read(folder / variant.name), threads=threads, trials=asked.trials, where=f"{name}, {variant.name}")
            write_text(place, tuning.to_json())
        found[variant.name] = opened(folder / variant.name, threads, place)
    return found


def checked(name: str, networks: dict[str, SparseNetwork], folder: Path, quick: bool) -> dict[str, Any]:
    """Relative errors by variant and number of rows."""
    found: dict[str, Any] = {}
    for variant, network in networks.items():
        expected = np.load(folder / f"{variant}.npy").reshape(network.host.lanes + 1, -1)
        x = rows(len(expected), cases.CASES[name].shape[quick])
        found[variant] = {}
        for count in (1, len(expected)):
            off = error(network(x[:count]).reshape(count, -1), expected[:count])
            if not off <= cases.ERROR:
                raise RuntimeError(f"{name}, {variant}, {count} rows: relative error {off:.3g}, expected at most {cases.ERROR:g}")
            found[variant][str(count)] = off
    return found


def against_dense(
    name: str, networks: dict[str, SparseNetwork], folder: Path, batch: int, threads: int, asked: argparse.Namespace
) -> dict[str, Any]:
    """One batch."""
    case = cases.case_of(name, asked.quick)
    x = rows(batch, case.shape[asked.quick])
    session = open_session(read(folder / "dense")[0], name, threads=threads)
    given = session.get_inputs()[0].name
    dense: dict[str, tuple[Call, int]] = {"onnxruntime": (lambda: session.run(None, {given: x})[0], 1)}
    module = cases.dense(case, asked.quick)
    for each in asked.engines:
        dense[f"pytorch, {each}"] = forward(each, module, x), 1
    outputs = {key: np.asarray(call()).reshape(batch, -1) for key, (call, _) in dense.items()}
    for key, found in outputs.items():
        if not (off := error(found, outputs["onnxruntime"])) <= ALIKE:
            raise RuntimeError(f"{name}: {key} is {off:.3g} away from ONNX Runtime, expected at most {ALIKE:g}")
    ours = {key: running(network, x) for key, network in networks.items() if key.startswith("density")}
    if case.tickets > 1 and batch == TOGETHER:
        tickets = [networks[v.name] for v in case.variants() if v.density == case.densities[0]]
        ours[cases.TICKETS] = together(tickets, x)
    required = {key: cases.required(name, key, batch) for key in ours}
    return raced({key: (call, 1) for key, call in ours.items()}, dense, required, asked.rounds, asked.quick)


def running(network: SparseNetwork, x: NDArray[Any]) -> Call:
    """A call."""
    feed = {network.get_inputs()[0].name: x}
    return lambda: network.run(None, feed)


def together(networks: list[SparseNetwork], x: NDArray[Any]) -> Call:
    """A call of several networks."""
    names, feed = [port.name for port in networks[0].get_outputs()], {networks[0].get_inputs()[0].name: x}
    return lambda: run_together(networks, names, feed)


def forward(name: str, module: torch.nn.Module, x: NDArray[Any]) -> Call:
    """A call of the module as an engine runs it."""
    made, last = engine(name, module), ENGINES[name][1] and x.ndim == 4

    def call() -> NDArray[Any]:
        with torch.inference_mode():
            given = torch.from_numpy(x)
            result: NDArray[Any] = made(given.contiguous(memory_format=torch.channels_last) if last else given).numpy()
            return result

    return call


def profile(case: cases.Case, networks: dict[str, SparseNetwork], quick: bool) -> dict[str, Any]:
    """Layer by layer by one thread, beside the core's peak."""
    peak = peak_gflops(quick)
    found: dict[str, Any] = {"peak_gflops": peak}
    for density in case.densities:
        for layout in LAYOUTS:
            found[f"density {density:g}, {layout}"] = _explained(networks[f"density {density:g}"], layout, peak)
    return found


def _explained(network: SparseNetwork, layout: Layout, peak: float) -> dict[str, Any]:
    told = explain(network, layout)
    macs = sum(line.macs for line in told.lines)
    gflops = 2 * macs / told.seconds / 1e9 if macs else None
    return {
        "reason": told.reason,
        "rows": told.rows,
        "seconds": told.seconds,
        "gflops": gflops,
        "share_of_peak": None if gflops is None else gflops / peak,
        "lines": [asdict(line) | {"gflops": line.gflops} for line in told.lines],
    }
