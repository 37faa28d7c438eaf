"""A policy's windows and thresholds, moved from the scores of one set of programs to those of another on the same rows.

A threshold is moved to where the same share of scores lies at most at it (quantile mapping); one beyond all scores stays beyond them. At
every stage the shares are those among the rows that reach it, under the windows before; of τ, among the rows that are decided there.
Source: the quantiles that windows are made of, Xia & Bouganis 2023 (arXiv 2303.08010), §3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from quorate.cascade.exits import Exits
from quorate.cascade.policy import Policy, StagePolicy, Window
from quorate.combination import Floats
from quorate.outputs import Outputs


def moved(policy: Policy, before: Outputs, warm: Policy, after: Outputs) -> Policy:
    """``warm`` with the windows and thresholds of ``policy``, moved from what ``before`` says to what ``after`` says of the same rows.

    ``warm`` differs from ``policy`` in temperatures alone. A stage that no row reaches, or where none is decided, goes by all rows.

    Raises:
        ValueError: Outputs that the policies can't be simulated on.
    """
    old, new = Exits.under(policy, before).uncertainty, Exits.under(warm, after).uncertainty
    reached, reaches = (np.ones(after.n, bool) for _ in range(2))
    stages = []
    for k, (stage, blank) in enumerate(zip(policy.stages, warm.stages, strict=True)):
        u, v = (scores[k][at] if at.any() else scores[k] for scores, at in ((old, reached), (new, reaches)))
        window: Window | None = None
        if stage.window is not None:
            low, high = stage.window
            window = (None if low is None else mapped(low, u, v, below=True), None if high is None else mapped(high, u, v))
        found = replace(blank, window=window, centre=None if stage.centre is None else mapped(stage.centre, u, v))
        left, leaves = ~_goes_on(stage, old[k], reached) & reached, ~_goes_on(found, new[k], reaches) & reaches
        both = left.any() and leaves.any()
        tau = None if stage.tau is None else mapped(stage.tau, *((old[k][left], new[k][leaves]) if both else (u, v)))
        stages.append(replace(found, tau=tau))
        reached, reaches = reached & ~left, reaches & ~leaves
    return replace(warm, stages=tuple(stages), sequence=None)


def _goes_on(stage: StagePolicy, u: Floats, reached: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Under a window; with a rate the rows are drawn alike before and after, so that thresholds look at all of them."""
    return reached if stage.rate is not None else stage.goes_on(u)


def mapped(threshold: float, old: Floats, new: Floats, below: bool = False) -> float:
    """The threshold among scores ``new`` (n,) with the same share at most it as ``threshold`` has among ``old`` (m,).

    ``below``: the share below it, for the closed lower end of a window. Midway between scores; beyond all of them it stays beyond.
    """
    share = float((old < threshold).mean() if below else (old <= threshold).mean())
    scores = np.sort(new)
    count = round(share * len(scores))
    if count == 0:
        return min(threshold, float(np.nextafter(scores[0], -np.inf)))
    if count == len(scores):
        return max(threshold, float(np.nextafter(scores[-1], np.inf)))
    low, high = float(scores[count - 1]), float(scores[count])
    middle = low / 2 + high / 2
    return middle if low <= middle < high else low
