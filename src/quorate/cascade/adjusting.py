"""Windows that follow a shifted, unlabelled stream, for any number of stages.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3: τ stays, and with it the ``centre`` around which the window was put; its quantile q and
the quantiles q ± ``width`` are taken anew from the stream's scores. With more stages each window is taken from the scores of the rows
that *reached* its stage, under the windows that were in force then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numpy.typing import ArrayLike

from quorate.cascade.policy import Policy
from quorate.cascade.window import quantile_window


def adjusted(policy: Policy, scores: Sequence[ArrayLike]) -> Policy:
    """The policy with its windows taken anew; centres, widths and τ stay, and so does a window without a centre.

    A certificate does not: it was given to the windows before.

    Args:
        policy: at least one of whose stages has ``centre`` and ``width``.
        scores: per stage but the last, uncertainties (n,) of rows that reached it; not looked at where the stage has no centre.

    Raises:
        ValueError: no stage with a centre, other numbers of scores than stages but one, or a stage to be adjusted without scores.
    """
    count = len(policy.stages) - 1
    if len(scores) != count:
        raise ValueError(f"scores of {len(scores)} stages for a policy of {count + 1}: expected {count}, all stages but the last")
    if not any(stage.centre is not None and stage.width is not None for stage in policy.stages[:-1]):
        raise ValueError("no stage of the policy has a centre to put a window around: fit one whose target leaves some rows out")
    stages = list(policy.stages)
    for k, (stage, seen) in enumerate(zip(policy.stages[:-1], scores, strict=True)):
        if stage.centre is None or stage.width is None:
            continue
        try:
            stages[k] = replace(stage, window=quantile_window(seen, stage.centre, stage.width))
        except ValueError as error:
            raise ValueError(f"stage {stage.name!r} can't be adjusted: {error}; give scores of rows that reached it") from error
    return replace(policy, stages=tuple(stages), certificate=None)
