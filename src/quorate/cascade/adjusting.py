"""Windows that follow a shifted, unlabelled stream, for any number of stages.

Source: Xia & Bouganis 2023 (arXiv 2303.08010), §3: τ stays, and with it the ``centre`` around which the window was put; its quantile q and
the quantiles q ± ``width`` are taken anew from the stream's scores. With more stages each window is taken from the scores of the rows
that *reached* its stage, under the windows that were in force then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from quorate.cascade.exits import Exits
from quorate.cascade.policy import Policy, StagePolicy
from quorate.cascade.window import quantile_window
from quorate.outputs import Outputs


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
    _check_centred(policy)
    moved = [_moved(stage, seen) for stage, seen in zip(policy.stages[:-1], scores, strict=True)]
    return replace(policy, stages=(*moved, policy.stages[-1]), certificate=None)


def _check_centred(policy: Policy) -> None:
    if not any(stage.centre is not None and stage.width is not None for stage in policy.stages[:-1]):
        raise ValueError("no stage of the policy has a centre to put a window around: fit one whose target leaves some rows out")


def _moved(stage: StagePolicy, scores: ArrayLike) -> StagePolicy:
    if stage.centre is None or stage.width is None:
        return stage
    try:
        return replace(stage, window=quantile_window(scores, stage.centre, stage.width))
    except ValueError as error:
        raise ValueError(f"stage {stage.name!r} can't be adjusted: {error}; give scores of rows that reached it") from error


def adjust(policy: Policy, outputs: Outputs) -> Policy:
    """The policy with its windows taken anew on unlabelled Outputs of all its stages but the last, one after the other.

    Each window is taken from the rows that reach its stage under the windows taken before it.

    Raises:
        ValueError: a policy of one stage, without a centre, or of another pool; a stage that no row reaches.
    """
    count = len(policy.stages) - 1
    if count == 0:
        raise ValueError("this policy has 1 stage and no window: fit one on two stages or more")
    before = policy.stages[:-1]
    names = [stage.name for stage in before]
    if (outputs.kind, outputs.combine) != (policy.kind, policy.combine) or set(names) - set(outputs.names):
        raise ValueError(
            f"the policy begins with {', '.join(map(repr, names))} ({policy.kind}, combined by {policy.combine}), these Outputs hold "
            f"{', '.join(map(repr, outputs.names))} ({outputs.kind}, combined by {outputs.combine}): give the same pool"
        )
    exits = Exits.of(
        outputs, names, policy.uncertainty, [stage.join for stage in before], [stage.temperature for stage in before]
    )
    _check_centred(policy)
    stages = list(policy.stages)
    reached = np.ones(outputs.n, bool)
    for k in range(count):
        stages[k] = _moved(stages[k], exits.uncertainty[k, reached])
        reached &= stages[k].goes_on(exits.uncertainty[k])
    return replace(policy, stages=tuple(stages), certificate=None)
