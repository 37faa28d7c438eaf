"""Cascades: uncertainty, windows, policies, guarantees, planning, and execution with real early exit. Arrays only, no PyTorch."""

from quorate.cascade import guarantee, uncertainty
from quorate.cascade.anytime import Anytime
from quorate.cascade.cascade import Cascade, simulate
from quorate.cascade.counters import Counters
from quorate.cascade.deviation import deviations, imitate
from quorate.cascade.drift import Watch
from quorate.cascade.exits import Exits
from quorate.cascade.guarantee import Certificate, certify, certify_policy, learn_then_test, recertify
from quorate.cascade.planner import Plan, plan
from quorate.cascade.policy import Policy, StagePolicy
from quorate.cascade.prediction import Prediction
from quorate.cascade.stage import Stage
from quorate.cascade.step import Step
from quorate.cascade.streaming import Arrival, Streamed, arrivals, stream
from quorate.cascade.temperature import fit_temperature
from quorate.cascade.window import quantile_window

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
