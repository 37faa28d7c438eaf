"""Policies, certified: the calibration rows go through the cascade, and what it accepts and says is tested.

Thresholds of several stages move together along the policy's sequence of vectors (τ₁ … τ_K), fixed on validation rows: a row's place on
it is the first vector that accepts it at its exit, and places are certified as uncertainties are. Which guarantee it is follows from the
target: ``coverage@risk`` the selective risk (SCOD with OOD rows), ``fpr@tpr`` the TPR and the FPRs; under ``risk@coverage`` and
``accuracy`` the thresholds stay, and their risk gets an exact bound.

Sources: Angelopoulos et al. 2021, "Learn then Test" (arXiv 2110.01052), over whole policies; 2022 (arXiv 2208.02814) for the deviation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quorate.cascade import target as targets
from quorate.cascade.cascade import simulate
from quorate.cascade.deviation import deviations
from quorate.cascade.exits import Exits
from quorate.cascade.guarantee.certificate import Certificate
from quorate.cascade.guarantee.conformal import certify_deviation, wider_max
from quorate.cascade.guarantee.outliers import certify_fpr, certify_scod
from quorate.cascade.guarantee.report import exits_report
from quorate.cascade.guarantee.selective import ASSUMPTION, Rows, certify, certify_one, check_risk, gather
from quorate.cascade.guarantee.testing import TESTS, Method
from quorate.cascade.ladder import on_sequence
from quorate.cascade.policy import Policy
from quorate.cascade.prediction import Prediction
from quorate.cascade.task import error_losses
from quorate.combination import Floats
from quorate.outputs import Outputs


@dataclass(frozen=True)
class Terms:
    """What a guarantee is about, beside the target and δ.

    Attributes:
        risk: a limit for the risk under ``risk@coverage`` and ``accuracy``, where the target names none.
        costs: of errors, (C,) per true class or (C, C) per (true, said); default 1 each.
        limits: class → the largest mean cost of the accepted rows labelled so.
        ood: name → Outputs of the same stages on OOD rows.
        beta, alpha: for SCOD, the cost of an accepted OOD row and the share of ID in the mix (default N / (N + N′)).
    """

    risk: float | None = None
    costs: ArrayLike | None = None
    limits: Mapping[int, float] | None = None
    ood: Mapping[str, Outputs] | None = None
    beta: float = 1.0
    alpha: float | None = None

    @property
    def table(self) -> tuple[Any, ...] | None:
        """The costs of errors as plain data."""
        return None if self.costs is None else tuple(np.asarray(self.costs, np.float64).tolist())

    def check(self, goal: targets.Target) -> None:
        """A ValueError for a target without a guarantee, or terms that play no part in it."""
        if goal.figure == "nll":
            raise ValueError("target nll has no guarantee, a log-likelihood has no bound: certify target='accuracy'")
        if self.risk is not None and goal.figure in ("coverage", "fpr"):
            raise ValueError(f"risk={self.risk} with target {goal}: leave it out, it is for risk@coverage and accuracy")
        if self.ood and goal.figure in ("risk", "accuracy"):
            raise ValueError(
                f"OOD rows play no part in the guarantee of target {goal}: leave them out, or take coverage@risk or fpr@tpr"
            )
        if goal.figure == "fpr" and (self.costs is not None or self.limits):
            raise ValueError(f"target {goal} knows no errors: leave costs and limits out")
        if self.limits and self.ood:
            raise ValueError("limits per class are not certified in a mix with OOD rows: leave limits or the OOD rows out")


def certify_policy(
    policy: Policy,
    cal: Outputs,
    *,
    target: str | None = None,
    delta: float = 0.05,
    method: Literal["fixed-sequence", "bonferroni"] = "fixed-sequence",
    risk: float | None = None,
    costs: ArrayLike | None = None,
    limits: Mapping[int, float] | None = None,
    cal_ood: Mapping[str, Outputs] | None = None,
    beta: float = 1.0,
    alpha: float | None = None,
) -> Policy:
    """The policy with its certificate, its thresholds moved to the vector of its sequence that the calibration rows vouch for.

    Where the certificate is not feasible the thresholds stay as they are.

    Args:
        policy: fitted on other rows. cal: labelled calibration Outputs of its stages (for ``fpr@tpr`` without labels too).
        target: default the policy's own; see :mod:`quorate.cascade.target`.
        delta: the allowed probability of a wrong claim.
        method: of testing the sequence; see ``certify``.
        risk, costs, limits, beta, alpha: see :class:`Terms`. cal_ood: its ``ood``, calibration rows like ``cal``.

    Raises:
        ValueError: no target, one without a guarantee (``nll``), ``coverage@risk`` without a sequence, terms that play no part, no labels,
            or Outputs that ``simulate`` refuses.
    """
    goal, terms = _goal(policy, target), Terms(risk, costs, limits, cal_ood, beta, alpha)
    terms.check(goal)
    if policy.sequence is None or goal.figure in ("risk", "accuracy"):
        if goal.figure == "coverage":
            raise ValueError(
                "the policy has no sequence of thresholds to test: fit it with Policy.fit, or recertify it as it stands"
            )
        certificate = _fixed(policy, cal, goal, delta, terms)
        return replace(policy, target=str(goal), certificate=certificate.to_dict())
    if method not in ("fixed-sequence", "bonferroni"):
        raise ValueError(f"method={method!r}: expected 'fixed-sequence' or 'bonferroni'")
    if method == "bonferroni" and terms.ood and goal.figure == "coverage":
        raise ValueError("method='bonferroni' with OOD rows: SCOD is tested as a fixed sequence, take 'fixed-sequence'")
    routed = simulate(policy, cal)
    place, steps = on_sequence(policy.sequence, routed.uncertainty, routed.stage), np.arange(len(policy.sequence))
    outside = {name: _places(policy, outputs) for name, outputs in (terms.ood or {}).items()}
    if goal.figure == "fpr":
        certificate, losses, most = certify_fpr(place, outside, steps, goal.level or 0.0, delta), None, None
    else:
        losses, most = _losses(routed, cal, terms.costs)
        if outside:
            certificate = _scod(place, losses, most, outside, steps, goal, delta, terms)
        else:
            certificate = certify(
                place,
                losses,
                steps,
                goal.level or 0.0,
                delta,
                method,
                costs_bound=most,
                limits=terms.limits,
                predicted=routed.label,
            )
    at = None if certificate.tau is None else int(certificate.tau)
    kept = 0 if certificate.accepted else -1  # a sequence of one keeps its figures where it fails
    accepted = place <= (kept if at is None else at)
    report = exits_report(routed.names, routed.stage, accepted, losses, delta, most)
    taus = [stage.tau for stage in policy.stages] if at is None else policy.sequence[at]
    stages = tuple(replace(stage, tau=tau) for stage, tau in zip(policy.stages, taus, strict=True))
    certificate = replace(certificate, exits=report, costs=terms.table)
    return replace(policy, stages=stages, target=str(goal), certificate=certificate.to_dict())


def recertify(
    policy: Policy,
    outputs: Outputs,
    *,
    target: str | None = None,
    delta: float | None = None,
    risk: float | None = None,
    costs: ArrayLike | None = None,
    limits: Mapping[int, float] | None = None,
    ood: Mapping[str, Outputs] | None = None,
    beta: float | None = None,
    alpha: float | None = None,
) -> Certificate:
    """A deployed policy on fresh labelled rows, at its thresholds as they stand: a single test, and figures also where it fails.

    Args: as :func:`certify_policy`; what is left out is as in the policy's own certificate (δ, costs of errors, limits per class, β and α
        of a mix), else .05, none, 1 and the share of ID in these rows.

    Raises:
        ValueError: as :func:`certify_policy`, but that no sequence is needed.
    """
    goal = _goal(policy, target)
    own = None if policy.certificate is None else Certificate.from_dict(policy.certificate)
    if own is not None:
        delta = own.delta if delta is None else delta
        if limits is None and not ood and goal.figure != "fpr":
            limits = {int(part.name): part.target for part in own.classes if part.target is not None}
        costs = own.costs if costs is None and goal.figure != "fpr" else costs
        alpha, beta = own.alpha if alpha is None else alpha, own.beta if beta is None else beta
    terms = Terms(risk, costs, limits, ood, 1.0 if beta is None else beta, alpha)
    terms.check(goal)
    return _fixed(policy, outputs, goal, 0.05 if delta is None else delta, terms)


def certify_deviation_policy(policies: Sequence[Policy], cal: Outputs, alpha: float = 0.005) -> Policy:
    """The narrowest of nested policies whose decisions differ from the full chain's for at most a share α of inputs, in expectation.

    A row deviates where its exit's acceptance, or its label where accepted, is not that of the chain's last exit at its τ. The maximum
    over all wider policies is controlled; with two stages and nested windows that is the deviation itself. Labels are not needed.

    Args:
        policies: one chain with windows from narrow to wide, not chosen on these rows.
        cal: calibration Outputs of its stages.
        alpha: the allowed share.

    Returns:
        The policy, with a certificate whose ``tau`` is its place among ``policies``; the widest one where no policy is feasible.

    Raises:
        ValueError: no policies, different chains, policies that send rows on at random, an α that is not > 0.
    """
    _check_chain(policies)
    exits = Exits.under(policies[0], cal)
    routes = [exits.stage([stage.window for stage in policy.stages[:-1]]) for policy in policies]
    deviations = wider_max(np.stack([_deviation(exits, p, at) for p, at in zip(policies, routes, strict=True)], 1))
    certificate = certify_deviation(deviations, alpha)
    chosen = len(policies) - 1 if certificate.tau is None else int(certificate.tau)
    everything = np.ones(exits.n, bool)
    report = exits_report(exits.names, routes[chosen], everything, deviations[:, chosen] > 0)
    return replace(policies[chosen], certificate=replace(certificate, exits=report).to_dict())


def learn_then_test(
    policies: Sequence[Policy],
    cal: Outputs,
    risk: float = 0.05,
    delta: float = 0.05,
    method: Method = "fixed-sequence",
    *,
    best: Literal["coverage", "cost"] = "coverage",
    costs: ArrayLike | None = None,
    limits: Mapping[int, float] | None = None,
) -> tuple[int | None, Certificate]:
    """Of several whole policies, the best whose selective risk is certified; (its place or None, the certificate).

    Args:
        policies: any, on stages of ``cal``; in test order for ``"fixed-sequence"``.
        cal: labelled calibration Outputs, which chose none of the policies nor their order.
        risk: the largest mean cost of the accepted. delta: the allowed probability of a wrong claim.
        method: how the hypotheses are tested together.
        best: of those certified, take the largest ``"coverage"`` or the least ``"cost"`` on the calibration rows.
        costs, limits: see :class:`Terms`.

    Raises:
        ValueError: no policies, an unknown method or choice, or what ``certify`` and ``simulate`` refuse.
    """
    if not policies:
        raise ValueError("no policies to test: give at least one")
    if method not in TESTS or best not in ("coverage", "cost"):
        raise ValueError(f"method={method!r}, best={best!r}: expected one of {', '.join(TESTS)}, and 'coverage' or 'cost'")
    check_risk("risk", risk)
    p, spent = np.ones(len(policies)), np.zeros(len(policies))
    certificates = []
    level = delta if method == "fixed-sequence" else delta / len(policies)
    for g, policy in enumerate(policies):
        routed = simulate(policy, cal)
        losses, most = _losses(routed, cal, costs)
        rows = Rows.of(np.where(routed.accepted, 0.0, 1.0), losses, most)
        p[g], spent[g] = gather(rows, np.zeros(1), risk, limits, routed.label)[2][0], routed.mean_macs
        one = certify_one(routed.accepted, losses, risk, level, costs_bound=most, limits=limits, predicted=routed.label)
        report = exits_report(routed.names, routed.stage, routed.accepted, losses, level, most)
        certificates.append(replace(one, exits=report, kind="selective risk", method=method, delta=delta, tested=len(policies)))
    passed = TESTS[method](p, delta)
    if passed.any():
        value = np.array([c.coverage for c in certificates]) if best == "coverage" else -spent
        at = int(np.where(passed, value, -np.inf).argmax())
        return at, replace(certificates[at], feasible=True, needed=0)
    considered = certificates[:1] if method == "fixed-sequence" else certificates
    return None, Certificate(
        kind="selective risk",
        feasible=False,
        target=risk,
        delta=delta,
        method=method,
        rows=cal.n,
        tau=None,
        coverage=0.0,
        accepted=0,
        errors=0.0,
        observed=None,
        bound=None,
        tested=len(policies),
        needed=min((c.needed for c in considered if c.needed is not None), default=None),
        assumption=ASSUMPTION,
    )


def _goal(policy: Policy, target: str | None) -> targets.Target:
    text = policy.target if target is None else target
    if text is None:
        raise ValueError("the policy has no target: give target=, such as 'coverage@risk=0.05'")
    return targets.parse(text)


def _fixed(policy: Policy, outputs: Outputs, goal: targets.Target, delta: float, terms: Terms) -> Certificate:
    """The certificate of the thresholds as they stand."""
    routed = simulate(policy, outputs)
    out = np.where(routed.accepted, 0, 1)
    outside = {name: np.where(simulate(policy, rows).accepted, 0, 1) for name, rows in (terms.ood or {}).items()}
    losses: NDArray[Any] | None = None
    most: float | None = None
    if goal.figure == "fpr":
        certificate = certify_fpr(out, outside, [0.0], goal.level or 0.0, delta)
    else:
        losses, most = _losses(routed, outputs, terms.costs)
        if outside:
            certificate = _scod(out, losses, most, outside, np.zeros(1), goal, delta, terms)
        else:
            level = goal.level if goal.figure == "coverage" else terms.risk
            certificate = certify_one(
                routed.accepted, losses, level, delta, costs_bound=most, limits=terms.limits, predicted=routed.label
            )
    report = exits_report(routed.names, routed.stage, routed.accepted, losses, delta, most)
    return replace(certificate, tau=None, method="single", exits=report, costs=terms.table)


def _scod(
    place: NDArray[np.int64],
    losses: NDArray[Any],
    most: float | None,
    outside: Mapping[str, NDArray[np.int64]],
    steps: NDArray[Any],
    goal: targets.Target,
    delta: float,
    terms: Terms,
) -> Certificate:
    joined = np.concatenate(list(outside.values()))
    share = len(place) / (len(place) + len(joined)) if terms.alpha is None else terms.alpha
    return certify_scod(
        place, losses, joined, steps, goal.level or 0.0, beta=terms.beta, alpha=share, delta=delta, costs_bound=most
    )


def _places(policy: Policy, outputs: Outputs) -> NDArray[np.int64]:
    routed = simulate(policy, outputs)
    return on_sequence(policy.sequence or (), routed.uncertainty, routed.stage)


def _losses(routed: Prediction, outputs: Outputs, costs: ArrayLike | None) -> tuple[NDArray[Any], float | None]:
    """The cost of each row's label (N,), and the largest a cost can be; errors without a bound where every error costs 1."""
    truth = outputs.truth()
    if costs is None:
        return np.asarray(routed.label != truth), None
    exits = Exits(("exit",), routed.uncertainty[None], routed.label[None], (0.0,), truth)
    losses = error_losses(exits, costs)[0]
    most = float(np.asarray(costs, np.float64).max())
    if most == 0:
        raise ValueError("error costs are all 0: expected at least one that is not")
    return losses, most


def _deviation(exits: Exits, policy: Policy, at: NDArray[np.int64]) -> Floats:
    """Which rows (N,) are decided otherwise than by the chain's last exit; for ``fpr@tpr`` nobody asks for the label."""
    labels = policy.target is None or targets.parse(policy.target).figure != "fpr"
    return np.asarray(deviations(exits, at, [stage.tau for stage in policy.stages], labels), np.float64)


def _check_chain(policies: Sequence[Policy]) -> None:
    if not policies:
        raise ValueError("no policies to choose from: give at least one")
    chains = {
        (p.uncertainty, p.kind, p.combine, tuple((s.name, s.join, s.temperature, s.kind) for s in p.stages)) for p in policies
    }
    if len(chains) > 1:
        raise ValueError("the policies are of different chains: expected the same stages, joins, temperatures and uncertainty")
    if any(stage.rate is not None for policy in policies for stage in policy.stages):
        raise ValueError("a policy sends rows on at random, which is no window that grows: give policies with windows")
