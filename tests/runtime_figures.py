"""Made-up results of the runtime_*.py benchmarks, by name: what their tables are tested on."""

from __future__ import annotations

from typing import Any

SHARE = {"median": 1.125, "q1": 1.0, "q3": 1.25}
SPEED = {
    "settings": {"allocator": "keep"},
    "cascade, batch 32, threads 1": {
        "ms": {"bundle": {"median": 9.0}, "pytorch, eager nchw": {"median": 16.0}, "pytorch, eager nhwc": {"median": 8.0}},
        "fastest": {"bundle": "bundle", "pytorch": "pytorch, eager nhwc"},
        "ratio": SHARE,
        "ratio_by_engine": {"eager nchw": {"median": 0.5625}, "eager nhwc": SHARE},
        "mac_gain": 1.5,
        "passed": 0.25,
        "gain": {"stream": {"median": 1.25, "q1": 1.0, "q3": 1.5, "over_mac_gain": 0.8333}},
    },
    "overhead, mlp, threads 1": {"stages": 2, "us": {"median": 61.2, "q1": 60.0, "q3": 62.4}, "bare_us": {"median": 20.0}},
}
PARTS = ("sessions", "files", "golden", "rest", "total")
WAYS = {"bundle": {"median": 2e6}, "path": {"median": 1e6}, "bytes": {"median": 4e6}}
OVER = {"path": {"median": 2.0}, "bytes": {"median": 0.5}}
LOADED = {
    "single": {
        "seconds": {part: {way: {"median": each["median"] / 1e9} for way, each in WAYS.items()} for part in PARTS},
        "imports": {"quorate": {"bundle": {"median": 0.25}}, "numpy and onnxruntime": {"bundle": {"median": 0.125}}},
        "bytes": {moment: {"rss": WAYS} for moment in ("imported", "loaded", "predicted")},
        "sessions_over": OVER,
        "memory_over": {moment: {"rss": OVER, "uss": OVER} for moment in ("imported", "loaded", "predicted")},
    }
}  # fmt: skip
SIZES = {
    "net": {
        "3 tickets": {
            "bundle_bytes": 4e6,
            "onnx_bytes": 1e6,
            "ticket_bytes": 2.5e6,
            "other_bytes": 5e5,
            "parameters": 3e6,
            "over_dense": 0.4,
        }
    }
}
ENTRY = {"mean": 0.5, "sd": 0.25, "n": 2, "seeds": 2}
PRECISIONS = {
    "precisions": {"fp32": {"accuracy": ENTRY, "nll": ENTRY, "bytes": ENTRY | {"mean": 2e6}, "ms:1": ENTRY, "over:256": ENTRY}},
    "refused": {"int8-dynamic": "stage 'a' has none"},
}
FIGURES: dict[str, dict[str, Any]] = {
    "runtime-speed": SPEED, "runtime-speed-batch1": SPEED, "runtime-load": LOADED, "runtime-size": SIZES, "runtime-precision": PRECISIONS,
}  # fmt: skip
