"""A small cascade and a regression as bundles, the command run on them, and what the cascade says in float64; needs no PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.cli.main import main
from quorate.runtime import Port, Ports, Program
from quorate.runtime.runtime import Runtime
from tiny_bundles import CLASSES, FEATURES, bundle, member, policy_of, weights
from tiny_onnx import linear

NAMES = ("cat", "dog, old", "eel")
WINDOW, TAU, MACS = 0.3, 0.4, (10.0, 30.0)


def cascade(path: Path, seed: int = 0, **options: Any) -> None:
    """Two stages of one and two members; U = 1 − max p ≥ 0.3 goes on, above 0.4 is rejected."""
    programs = [member("a", seed + 1, 1, MACS[0]), member("b", seed + 2, 2, MACS[1])]
    bundle(path, programs, **({"policy": policy_of(programs, (WINDOW, None), TAU), "classes": NAMES} | options))


def regression(path: Path, kind: str, targets: Any = None, macs: float | None = 12.0) -> NDArray[np.float64]:
    """One stage of two members, of two targets; returns its weights (2, F, 2 or 4)."""
    weight = weights(3, 2, FEATURES, 4 if kind == "gaussian" else 2) / 4
    ports = Ports("only", Port("y", "float32", (2, weight.shape[2])), Port("x", "float32", (FEATURES,)), macs=macs)
    bundle(path, [Program(ports, linear(weight))], policy=None, kind=kind, classes=targets)
    return weight.astype(np.float64)


def softmax(z: NDArray[Any]) -> NDArray[Any]:
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference(x: NDArray[Any], seed: int = 0) -> dict[str, NDArray[Any]]:
    """The cascade in float64, row by row."""
    first = softmax(np.matmul(x[None].astype(float), weights(seed + 1, 1, FEATURES, CLASSES)))
    both = np.concatenate([first, softmax(np.matmul(x[None].astype(float), weights(seed + 2, 2, FEATURES, CLASSES)))])
    on = 1 - first[0].max(-1) >= WINDOW
    probs = np.where(on[:, None], both.mean(0), first[0])
    u = 1 - probs.max(-1)
    return {
        "label": probs.argmax(-1), "probability": probs.max(-1), "uncertainty": u, "accepted": u <= TAU,
        "exit_stage": np.where(on, "b", "a"), "macs": np.where(on, sum(MACS), MACS[0]), "probs": probs,
    }  # fmt: skip


def ask(*options: str, bundle: str = "B", source: str = "x.npy", output: str = "o.npz") -> int:
    return main(["predict", bundle, "--input", source, "--output", output, "--threads", "1", *options])


def stopping(times: int, error: BaseException) -> Callable[..., Any]:
    """``Runtime.predict`` that fails in the call after so many."""
    plain, calls = Runtime.predict, iter(range(10**6))

    def predict(self: Runtime, x: Any) -> Any:
        if next(calls) == times:
            raise error
        return plain(self, x)

    return predict
