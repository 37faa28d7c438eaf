"""Quorate: deep ensembles that cost about as much as one network, decide early, and say how sure they are.

Names are imported when they are used, so that ``import quorate`` is fast and the deciding half works without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "Anytime": "quorate.cascade",
    "Cascade": "quorate.cascade",
    "DeepEnsemble": "quorate.ensemble",
    "MCDropout": "quorate.baselines",
    "Outputs": "quorate.outputs",
    "Policy": "quorate.cascade",
    "Prediction": "quorate.cascade",
    "SnapshotEnsemble": "quorate.baselines",
    "collect": "quorate.ensemble",
    "fit": "quorate.training",
    "gaussian_loss": "quorate.ensemble",
    "latency": "quorate.cost",
    "load_bundle": "quorate.runtime",
    "macs": "quorate.cost",
    "mean_probs": "quorate.ensemble",
    "member_loss": "quorate.ensemble",
    "pack": "quorate.packed",
    "pack_members": "quorate.packed",
    "parameters": "quorate.cost",
    "save_bundle": "quorate.export",
    "stages": "quorate.ensemble",
    "tune_bundle": "quorate.runtime",
    "unpack": "quorate.packed",
}
_MODULES = (
    "baselines",
    "cascade",
    "cost",
    "data",
    "distil",
    "ensemble",
    "export",
    "metrics",
    "models",
    "packed",
    "report",
    "runs",
    "runtime",
    "tickets",
    "training",
)
_EXTRAS = {
    "train": ("torch", "lightning", "torchmetrics", "sklearn", "tensorboard", "PIL", "onnx", "onnxscript"),
    "sparse": ("llvmlite",),
    "tables": ("pyarrow",),
    "hub": ("datasets",),
    "report": ("matplotlib", "jinja2"),
}

__all__ = [*sorted(_NAMES), *_MODULES, "__version__"]

if TYPE_CHECKING:
    from quorate import (
        baselines,
        cascade,
        cost,
        data,
        distil,
        ensemble,
        export,
        metrics,
        models,
        packed,
        report,
        runs,
        runtime,
        tickets,
        training,
    )
    from quorate.baselines import MCDropout, SnapshotEnsemble
    from quorate.cascade import Anytime, Cascade, Policy, Prediction
    from quorate.cost import latency, macs, parameters
    from quorate.ensemble import DeepEnsemble, collect, gaussian_loss, mean_probs, member_loss, stages
    from quorate.export import save_bundle
    from quorate.outputs import Outputs
    from quorate.packed import pack, pack_members, unpack
    from quorate.runtime import load_bundle, tune_bundle
    from quorate.training.fit import fit


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562); a missing extra is named."""
    if name not in _NAMES and name not in _MODULES:
        raise AttributeError(f"module 'quorate' has no attribute {name!r}")
    try:
        module = importlib.import_module(_NAMES.get(name, f"quorate.{name}"))
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        raise ImportError(f"quorate.{name} needs {missing}") from error
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def missing_extra(error: BaseException) -> str | None:
    """What is not installed and the extra that brings it, if that is what the error is about: ``torch, which is not …``."""
    module = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    extra = next((extra for extra, modules in _EXTRAS.items() if module in modules), None)
    return None if extra is None else f'{module}, which is not installed: pip install "quorate[{extra}]"'


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
