"""Planner: which members of a pool to use, in what order, with which windows and thresholds, for a target under a budget."""

from quorate.cascade.planner.plan import Plan, plan
from quorate.cascade.planner.pool import join_pool

__all__ = ["Plan", "join_pool", "plan"]
