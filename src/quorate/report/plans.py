"""A table of plans: cascades over a pool of members on the Pareto front of cost and figure, what they come to and what is certified."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quorate.cascade import target as targets
from quorate.cascade.policy import Policy
from quorate.report import grid
from quorate.report.certificates import claim
from quorate.report.grid import percent

if TYPE_CHECKING:
    from quorate.cascade.planner import Plan

JOINS = {"mean": " + ", "replace": " → "}


def chain(policy: Policy) -> str:
    """The stages in order: ``a + b`` joins b to a, ``a → b`` puts it in a's place."""
    first, *rest = policy.stages
    return first.name + "".join(JOINS[stage.join] + stage.name for stage in rest)


def best(plans: Sequence[Plan], target: str) -> int:
    """The place of the plan to take: of those with a feasible certificate, else of all, the best figure; of equals the cheapest.

    A certificate tells the coverage at its own thresholds, which is the figure then; all of a list's hold at once.
    """
    goal = targets.parse(target)
    certified = [k for k, plan in enumerate(plans) if plan.certificate is not None and plan.certificate.feasible]
    sign = -1 if goal.figure in ("coverage", "accuracy") else 1

    def figure(k: int) -> float:
        certificate = plans[k].certificate
        vouched = certificate is not None and certificate.feasible and goal.figure == "coverage"
        return certificate.coverage if vouched and certificate is not None else plans[k].figures.figure

    return min(certified or range(len(plans)), key=lambda k: (sign * figure(k), plans[k].figures.cost))


def heads(target: str, unit: str) -> list[str]:
    """The columns' titles."""
    goal = targets.parse(target)
    beside = {"coverage": ["risk"], "risk": ["coverage"], "fpr": ["TPR"]}.get(goal.figure, [])
    return ["", "stages", f"{unit or 'cost'}/input", "of all", "sent on", goal.figure, *beside, "certified"]


def body(plans: Sequence[Plan], target: str, chosen: int) -> list[list[str]]:
    """A row per plan; the chosen one is marked."""
    goal = targets.parse(target)
    rows = []
    for k, plan in enumerate(plans):
        figures = plan.figures
        quality = f"{figures.figure:.4f}" if goal.figure == "nll" else percent(figures.figure)
        other = {"coverage": figures.risk, "risk": figures.coverage, "fpr": figures.coverage}
        rows.append(
            [
                f"{'*' if k == chosen else ' '}{k + 1}",
                chain(plan.policy),
                f"{figures.cost:.4g}",
                percent(plan.cost_share, 1),
                " ".join(_share(share) for share in plan.reach[1:]) or "–",
                quality,
                *([percent(other[goal.figure])] if goal.figure in other else []),
                claim(plan.certificate, goal.figure),
            ]
        )
    return rows


def _share(share: float) -> str:
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def note(plans: Sequence[Plan], confidence: float) -> str:
    """What stands below the table."""
    text = (
        "* is the plan chosen. a + b: b joins a; a → b: b takes its place; sent on: inputs that get to the later stages; of all: the cost "
        "of all members together. Figures are those of validation rows, which chose the plans."
    )
    if any(plan.certificate is not None for plan in plans):
        sure = f"{100 * confidence:.4g} %"
        text += f" What is certified holds for all plans at once with probability ≥ {sure} over the draw of calibration rows"
        shares = any(plan.certificate is not None and plan.certificate.kind in ("selective risk", "scod") for plan in plans)
        text += "; the coverage named with a risk is what those rows had, no bound." if shares else "."
    return text


def show(plans: Sequence[Plan], target: str, unit: str, chosen: int, confidence: float) -> None:
    """Print the table."""
    grid.show(
        heads(target, unit),
        body(plans, target, chosen),
        title=target,
        note=note(plans, confidence),
        left=("", "stages", "certified"),
    )


def markdown(plans: Sequence[Plan], target: str, unit: str, chosen: int, confidence: float) -> str:
    """The table as Markdown."""
    return grid.markdown(heads(target, unit), body(plans, target, chosen), title=f"`{target}`", note=note(plans, confidence))


def as_json(plans: Sequence[Plan], target: str, unit: str, chosen: int, confidence: float) -> dict[str, Any]:
    """The same as JSON values, plans numbered from 1; what is not finite becomes None."""
    return {
        "target": target,
        "confidence": confidence,
        "unit": unit,
        "chosen": chosen + 1,
        "plans": [
            {
                "stages": [{"name": s.name, "join": s.join} for s in plan.policy.stages],
                **{key: value if math.isfinite(value) else None for key, value in plan.figures._asdict().items()},
                "cost_share": plan.cost_share,
                "reach": list(plan.reach),
                "certificate": None if plan.certificate is None else plan.certificate.to_dict(),
            }
            for plan in plans
        ],
    }
