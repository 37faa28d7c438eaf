"""Cascades: uncertainty, windows, policies, guarantees, planning, and execution with real early exit. Arrays only, no PyTorch.

Names are imported when they are used: who runs a cascade loads neither the planner nor SciPy. One thread at a time imports them: several
that enter a package and its modules by different doors would meet half of it. So no module in here may import these names from here.
"""

from __future__ import annotations

import importlib
import threading
from typing import TYPE_CHECKING, Any

_NAMES = {
    "Anytime": "anytime",
    "Arrival": "streaming",
    "Cascade": "cascade",
    "Certificate": "guarantee",
    "Counters": "counters",
    "Exits": "exits",
    "Plan": "planner",
    "Policy": "policy",
    "Prediction": "prediction",
    "Stage": "stage",
    "StagePolicy": "policy",
    "Step": "step",
    "Streamed": "streaming",
    "Watch": "drift",
    "arrivals": "streaming",
    "certify": "guarantee",
    "certify_policy": "guarantee",
    "deviations": "deviation",
    "fit_temperature": "temperature",
    "imitate": "deviation",
    "learn_then_test": "guarantee",
    "plan": "planner",
    "quantile_window": "window",
    "recertify": "guarantee",
    "simulate": "cascade",
    "stream": "streaming",
}
_MODULES = ("guarantee", "uncertainty")
_LOCK = threading.RLock()

__all__ = [
    "Anytime",
    "Arrival",
    "Cascade",
    "Certificate",
    "Counters",
    "Exits",
    "Plan",
    "Policy",
    "Prediction",
    "Stage",
    "StagePolicy",
    "Step",
    "Streamed",
    "Watch",
    "arrivals",
    "certify",
    "certify_policy",
    "deviations",
    "fit_temperature",
    "guarantee",
    "imitate",
    "learn_then_test",
    "plan",
    "quantile_window",
    "recertify",
    "simulate",
    "stream",
    "uncertainty",
]

if TYPE_CHECKING:
    from quorate.cascade import guarantee, uncertainty
    from quorate.cascade.anytime import Anytime
    from quorate.cascade.cascade import Cascade, simulate
    from quorate.cascade.counters import Counters
    from quorate.cascade.deviation import deviations, imitate
    from quorate.cascade.drift import Watch
    from quorate.cascade.exits import Exits
    from quorate.cascade.guarantee import Certificate, certify, certify_policy, learn_then_test, recertify
    from quorate.cascade.planner.plan import Plan, plan
    from quorate.cascade.policy import Policy, StagePolicy
    from quorate.cascade.prediction import Prediction
    from quorate.cascade.stage import Stage
    from quorate.cascade.step import Step
    from quorate.cascade.streaming import Arrival, Streamed, arrivals, stream
    from quorate.cascade.temperature import fit_temperature
    from quorate.cascade.window import quantile_window


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _NAMES and name not in _MODULES:
        raise AttributeError(f"module 'quorate.cascade' has no attribute {name!r}")
    with _LOCK:
        module = importlib.import_module(f"quorate.cascade.{_NAMES.get(name, name)}")
        value = module if name in _MODULES else getattr(module, name)
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
