"""Made-up results of sparse_runtime.py, by name, and the rows of their tables: what those are tested on."""

from __future__ import annotations

from typing import Any


def gain(median: float, required: float | None, **more: Any) -> dict[str, Any]:
    """A speedup."""
    return {"median": median, "q1": median - 0.25, "q3": median + 0.25, "required": required} | more


def race(**speedups: dict[str, Any]) -> dict[str, Any]:
    """Sparse calls of 2, 4 … ms against a dense one of 8 ms."""
    names = [name.replace("__", " ") for name in speedups]
    ms = {name: {"median": 2.0 * (k + 1)} for k, name in enumerate(names)} | {"onnxruntime": {"median": 8.0}}
    return {"ms": ms, "slower_ms": {}, "fastest": "onnxruntime", "speedup": dict(zip(names, speedups.values(), strict=True))}


ROWS = {"choice": "rows packed 8×1, 22 channels", "live": 1000, "gflops": 60.0, "loads_per_fma": 1.0625}
LAYERS: dict[str, Any] = {
    "settings": {"trials": 8},
    "peak": {"gflops": 80.0},
    "64 channels, 32×32, batch 1": race(
        density__0=gain(4.0, 4.5, **ROWS), density__1=gain(2.0, None, **ROWS | {"loads_per_fma": None})
    ),
    "patterns, matrix 64×64, batch 1, density 0.1": race(
        unstructured=gain(2.0, None, **ROWS), blocks=gain(4.0, None, **ROWS | {"choice": "blocks"})
    ),
    "geometric mean, batch 1": {
        "density 0": {"median": 4.0, "required": 2.8},
        "density 1": {"median": 2.0, "required": 2.5},
    },
}
LINE = {"name": "a", "kind": "3×3 8→8", "seconds": 0.002, "gflops": 40.0}
NETWORKS: dict[str, Any] = {
    "settings": {"trials": 8},
    "net, correct": {"density 0.1": {"1": 1e-7, "9": 2.5e-7}},
    "net, batch 16": race(density__0=gain(4.0, 2.7), tickets=gain(0.5, 1.0)),
    "net, start": {
        "density 0.1": {
            "seconds": {"cold": {"all": 2.5}, "warm": {"all": 0.25}},
            "live": 12_345,
            "bytes_per_live": {"latency": 6.5, "throughput": 7.25},
            "rss": {"latency": 2e6, "throughput": 3e6},
            "dense_bytes": 4e6,
        }
    },
    "net, profile": {
        "peak_gflops": 80.0,
        "density 0.1, latency": {
            "reason": "",
            "rows": 1,
            "seconds": 0.0035,
            "gflops": 20.0,
            "share_of_peak": 0.25,
            "lines": [{**LINE, "kind": "border", "seconds": 0.0005, "gflops": None}, LINE]
            + [{**LINE, "kind": "last", "seconds": 1e-6}] * 4,
        },
        "density 0.1, throughput": {
            "reason": "too many", "rows": 8, "seconds": 0, "gflops": None, "share_of_peak": None, "lines": [],
        },
        "density 0.2, latency": {
            "reason": "", "rows": 1, "seconds": 0.001, "gflops": None, "share_of_peak": None, "lines": [],
        },
    },
}  # fmt: skip
FIGURES: dict[str, dict[str, Any]] = {f"sparse-layers-{threads}": LAYERS for threads in (1, 2)} | {
    f"sparse-networks-{threads}": NETWORKS for threads in (1, 2)
}
EXPECTED = {
    "sparse-layers-1": [
        "| 64 channels, 32×32, batch 1 | 8 | onnxruntime | 2 | 4.00 × | 4 | 2.00 × |",
        "| **geometric mean, batch 1** |  |  |  | **4.00 ×** |  | **2.00 ×** |",
        "",
        "|  |  | speedup | quartiles | GFLOP/s | share of 80 | loads per multiply-add | form |",
        "|---|---|---|---|---|---|---|---|",
        "| 64 channels, 32×32, batch 1 | density 0 | 4.00 × | 3.75–4.25 | 60.0 | 75 % | 1.06 | rows packed 8×1, 22 channels |",
        "|  | density 1 | 2.00 × | 1.75–2.25 | 60.0 | 75 % | – | rows packed 8×1, 22 channels |",
        "",
        "|  |  | speedup | required |  |",
        "|---|---|---|---|---|",
        "| geometric mean, batch 1 | density 0 | 4.00 × | 2.80 × | met |",
        "|  | density 1 | 2.00 × | 2.50 × | **not met** |",
        "| 64 channels, 32×32, batch 1 | density 0 | 4.00 × | 4.50 × | **not met** |",
        "",
        "| patterns |  | ms | ÷ unstructured | speedup over dense | quartiles | GFLOP/s | form |",
        "|---|---|---|---|---|---|---|---|",
        "| matrix 64×64, batch 1, density 0.1 | unstructured | 2 | 1.00 | 2.00 × | 1.75–2.25 | 60.0 | rows packed 8×1, 22 channels |",
        "|  | blocks | 4 | 2.00 | 4.00 × | 3.75–4.25 | 60.0 | blocks |",
    ],
    "sparse-networks-1": [
        "| net, batch 16 | density 0 | 2 | 8 | onnxruntime | 4.00 × | 3.75–4.25 | 2.70 × |",
        "|  | tickets | 4 | 8 | onnxruntime | 0.50 × | 0.25–0.75 | 1.00 ×, **not met** |",
        "",
        "| relative error |  | largest |",
        "|---|---|---|",
        "| net | density 0.1 | 2.5e-07 |",
        "",
        "| start |  | s, empty cache | s, full cache | live weights | bytes per live weight, latency | both layouts "
        "| resident, MB, latency | both layouts | dense weights, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
        "| net | density 0.1 | 2.50 | 0.25 | 12,345 | 6.50 | 7.25 | 2 | 3 | 4 |",
        "",
        "| one thread |  | rows a job | ms | GFLOP/s | of the peak | longest layers: ms, GFLOP/s |",
        "|---|---|---|---|---|---|---|",
        "| net | density 0.1, latency | 1 | 3.50 | 20.0 | 25 % of 80 | 3×3 8→8 2.00, 40; border 0.50; last 0.00, 40; last 0.00, 40; "
        "last 0.00, 40 |",
        "|  | density 0.1, throughput | 8 | – | – | – | dense: too many |",
        "|  | density 0.2, latency | 1 | 1.00 | – | – |  |",
    ],
}
