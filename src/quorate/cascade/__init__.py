"""Cascades: uncertainty, windows, policies, and their execution with real early exit. Arrays only, no PyTorch."""

from quorate.cascade import uncertainty
from quorate.cascade.anytime import Anytime
from quorate.cascade.cascade import Cascade, simulate
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
    "Policy",
    "Prediction",
    "Stage",
    "StagePolicy",
    "Step",
    "Streamed",
    "arrivals",
    "fit_temperature",
    "quantile_window",
    "simulate",
    "stream",
    "uncertainty",
]
