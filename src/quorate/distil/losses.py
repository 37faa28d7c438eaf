"""Losses of a round: what student f_t is trained for, given the scores that the students before it left.

Source: the log barrier, Dennis et al. 2023 (arXiv 2302.10093); distillation, Hinton et al. 2015 (arXiv 1503.02531). The potential is the
logarithm of the normaliser of the game's weights K^± = e^{∓ηS}/C. With d = f − g, S = Σ_{s<t} (f_s − g), F_t = (1/t) Σ_{s≤t} f_s:

    barrier       −(1/γ) mean_ij w_ij log(1 + u_ij/2B),   u = d where K⁺ ≥ K⁻ (S ≤ 0), −d elsewhere,   w ∝ K⁺ + K⁻ with mean 1
    potential     Σ_j log Σ_i cosh η(S + d)_ij            ∂/∂d at d = 0 is −η(K⁺ − K⁻);  least at d = −S
    prefix        τ² KL(softmax(g/τ) ‖ softmax(F_t/τ))    f_1 … f_{t−1} constant
    distillation  τ² KL(softmax(g/τ) ‖ softmax(f/τ)) + λ mean_ij (f − g)²_ij

Two departures from the formulas, by which the first two need no more than bounded errors. The barrier goes on linearly (C¹) for u < −1.9 B,
where the logarithm is about to end, and is constant for u > G: as written it has no least value, and a small network runs off along it. The
potential does not ask one student for more than G: |S + d| counts as max(|S + d|, |S| − G), which is convex in d, leaves the gradient at
d = 0 as it is, and has gradient 0 once d has gone G towards −S.

Shapes: f, g, d, S (B, L), rows by outputs; bounds B and G a number or (L,), in output units; losses are scalars. Half precision is
computed in float32. For classification f and g are row-centred, as softmax ignores constants, and S is made of such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from quorate.distil._loss_checks import Bound, bound_like, check_positive, check_rows, check_same, check_share, full

LINEAR_FROM = 1.9
"""Share of B beyond which the penalised side of the barrier is linear; the logarithm ends at 2."""


def log_barrier(
    d: Tensor, plus: Tensor, bound: Bound, *, gamma: float, reward_limit: Bound, weights: Tensor | None = None
) -> Tensor:
    """Mean over rows and outputs of −(w/γ)[I⁺ log(1 + d/2B) + (1 − I⁺) log(1 − d/2B)], linear and constant where the module says.

    With weights of mean 1 it is at least −log(1 + G/2B)/γ, whatever d.

    Args:
        d: f − g (B, L). plus: I⁺ (B, L) bool, where the student should be above the teacher. bound: B, of the outputs.
        gamma: γ > 0, a scale. reward_limit: G, of |d|. weights: (B, L) or (B,), ≥ 0, taken as they are; 1 by default.

    Raises:
        ValueError: shapes that do not agree, ``plus`` not bool, a bound or γ that is not > 0.
    """
    d = check_rows(d, "d")
    check_same(d, plus, "plus")
    if plus.dtype != torch.bool:
        raise ValueError(f"plus is {plus.dtype}: expected torch.bool, True where the student should be above the teacher (S ≤ 0)")
    check_positive(gamma, "gamma")
    b, g = bound_like(bound, d, "bound"), bound_like(reward_limit, d, "reward_limit")
    u, edge = torch.where(plus, d, -d), -LINEAR_FROM * b
    inside = torch.log1p(torch.clamp(u, min=edge, max=g) / (2 * b))
    room = 1 - LINEAR_FROM / 2
    value = torch.where(u < edge, math.log(room) + (u - edge) / (2 * b * room), inside)
    if weights is not None:
        if weights.shape not in (d.shape, d.shape[:1]):
            raise ValueError(f"weights have shape {tuple(weights.shape)}: expected {tuple(d.shape)} or {tuple(d.shape[:1])}")
        value = value * full(weights).reshape(len(d), -1)
    return -value.mean() / gamma


def mass_weights(
    s: Tensor,
    eta: float,
    *,
    log_normaliser: Tensor | None = None,
    samples: int | None = None,
    joint: bool = False,
    score_cap: float | None = None,
    uniform_share: float = 0.0,
) -> Tensor:
    """(B, L) weights proportional to the mass K⁺ + K⁻ = 2 cosh(ηS)/C, with mean 1, for the rows of a set or for new views of them.

    Args:
        s: S (B, L). eta: η > 0.
        log_normaliser: log C (L,), or (1,) of a joint game: the mean over the set's N = ``samples`` rows is 1, and a view that is not in
            the set gets at most N (joint: N·L), the most a row of it can have. Without it the mean over the batch is 1.
        joint: one game over rows and outputs, so the mean over both is 1, not over the rows of each output.
        score_cap: largest |ηS| that counts, for the batch only, as C is of S as it is. uniform_share: ρ in [0, 1], w ← (1 − ρ)w + ρ.

    Raises:
        ValueError: shapes that do not agree, numbers out of range, ``log_normaliser`` without ``samples``, or with ``score_cap``.
    """
    scores = check_positive(eta, "eta") * check_rows(s, "s").detach()
    if not 0 <= uniform_share <= 1:
        raise ValueError(f"uniform_share={uniform_share!r}: expected a share in [0, 1]")
    if score_cap is not None:
        limit = check_positive(score_cap, "score_cap")
        scores = scores.clamp(-limit, limit)
    mass, axes = torch.logaddexp(scores, -scores), (0, 1) if joint else (0,)
    if log_normaliser is None:
        rows = mass.numel() if joint else len(mass)
        log_weight = mass - torch.logsumexp(mass, axes, keepdim=True) + math.log(rows)
    else:
        if samples is None or samples < 1 or score_cap is not None:
            raise ValueError(
                f"log_normaliser with {samples=} and {score_cap=}: expected the number of rows it is of, at least 1, and no cap; "
                "leave it out to normalise by the batch"
            )
        width = 1 if joint else mass.shape[1]
        if log_normaliser.shape != (width,):
            raise ValueError(f"log_normaliser has shape {tuple(log_normaliser.shape)}: expected ({width},) for {joint=}")
        most = math.log(samples * (mass.shape[1] if joint else 1))
        log_weight = (mass - log_normaliser.to(mass) + most).clamp(max=most)
    return (1 - uniform_share) * log_weight.exp() + uniform_share


def potential(d: Tensor, s: Tensor, eta: float, *, bound: Bound | None = None, joint: bool = False) -> Tensor:
    """Σ_j log Σ_i cosh η(S + d)_ij over all rows; of a joint game log Σ_ij. In log space: no overflow.

    Args:
        d: f − g (N, L) of the whole set. s: S before this round (N, L). eta: η > 0.
        bound: G, what is asked of |d| at most; None for no such limit.

    Raises:
        ValueError: shapes that do not agree, η or G not > 0.
    """
    return torch.logsumexp(_log_cosh(d, s, eta, bound), (0, 1) if joint else (0,)).sum()


class RunningPotential:
    """The potential in minibatches: (1/η) mean_j [log C̄_j + mean_i cosh η(S + d)_ij / C̄_j − 1], C̄ a running mean, held constant.

    As log x ≤ log c + x/c − 1, it is never below the batch's own (1/η) mean_j log mean_i cosh, an error in output units. For the whole set
    as one batch it is that, so its gradient is that of :func:`potential` times 1/(ηL), or 1/η in a joint game; for C̄ at the set's mean
    so is the mean of its gradients over batches of equal size. C̄ ← (1 − m)C̄ + m·(mean of the batch), to start with the first batch's
    mean. The batch counts in its own C̄, so no row weighs more than B/m, however old C̄ is; one that is not finite is left out.

    Args:
        outputs: L. eta: η > 0. bound: G as in :func:`potential`. momentum: m in (0, 1]; 1 normalises each batch by itself.
        joint: one C̄ over rows and outputs.

    Raises:
        ValueError: numbers out of range, batches of another width, a state of another size.
    """

    def __init__(
        self, outputs: int, eta: float, *, bound: Bound | None = None, momentum: float = 0.1, joint: bool = False
    ) -> None:
        if not isinstance(outputs, int) or outputs < 1:
            raise ValueError(f"outputs={outputs!r}: expected the number of outputs, an integer of at least 1")
        self.outputs, self.eta, self.bound, self.joint = outputs, check_positive(eta, "eta"), bound, joint
        self.momentum = check_share(momentum, "momentum")
        self.log_normaliser = torch.full((1 if joint else outputs,), math.nan)
        """log C̄ (L,), or (1,) of a joint game; NaN before the first batch."""

    def __call__(self, d: Tensor, s: Tensor, *, update: bool = True) -> Tensor:
        """The loss of a batch, d and S (B, L); ``update=False`` leaves C̄ as it was."""
        level = _log_cosh(d, s, self.eta, self.bound)
        if level.shape[1] != self.outputs:
            raise ValueError(f"d has shape {tuple(level.shape)}: expected (rows, {self.outputs})")
        axes, rows = ((0, 1), level.numel()) if self.joint else ((0,), len(level))
        now = torch.logsumexp(level.detach(), axes).reshape(-1) - math.log(rows)
        held = self.log_normaliser.to(level)
        kept = math.log1p(-self.momentum) if self.momentum < 1 else -math.inf
        mixed = torch.where(held.isnan(), now, torch.logaddexp(held + kept, now + math.log(self.momentum)))
        if update:
            self.log_normaliser = torch.where(mixed.isfinite(), mixed, held)
        return ((level - mixed).exp().mean() - 1 + mixed.mean()) / self.eta

    def state_dict(self) -> dict[str, Tensor]:
        """What an exact resume needs."""
        return {"log_normaliser": self.log_normaliser.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        held = state.get("log_normaliser")
        if len(state) != 1 or held is None or held.shape != self.log_normaliser.shape:
            raise ValueError(
                f"the state has {', '.join(f'{k} {tuple(v.shape)}' for k, v in state.items()) or 'nothing'}: "
                f"expected log_normaliser {tuple(self.log_normaliser.shape)}, a state of a loss of as many outputs"
            )
        self.log_normaliser = held.clone()


def prefix_kl(g: Tensor, prefix: Tensor | None, count: int, f: Tensor, tau: float) -> Tensor:
    """τ² KL(softmax(g/τ) ‖ softmax(F_t/τ)), mean over rows, with F_t = prefix + (f − prefix)/t; only f gets a gradient, by a factor 1/t.

    Args:
        g: teacher logits (B, C). prefix: mean logits of the ``count`` = t − 1 students before (B, C); None for none.
        f: this student's logits (B, C). tau: temperature τ > 0.

    Raises:
        ValueError: shapes that do not agree, τ not > 0, a prefix without students or students without a prefix.
    """
    check_positive(tau, "tau")
    f = check_rows(f, "f")
    check_same(f, g, "g")
    if not isinstance(count, int) or count < 0 or (count == 0) != (prefix is None):
        raise ValueError(
            f"count={count!r} with{'out' if prefix is None else ''} a prefix: expected 0 and None, or t − 1 ≥ 1 and a mean"
        )
    mean = f
    if prefix is not None:
        check_same(f, prefix, "prefix")
        before = full(prefix).detach()
        mean = before + (f - before) / (count + 1)
    teacher = functional.log_softmax(full(g).detach() / tau, -1)
    return tau**2 * functional.kl_div(functional.log_softmax(mean / tau, -1), teacher, reduction="batchmean", log_target=True)


def matching(f: Tensor, g: Tensor, *, huber: float | None = None) -> Tensor:
    """Mean over rows and outputs of (f − g)², or of Huber's loss with threshold δ = ``huber``: (f − g)²/2, from |f − g| = δ on linear."""
    f = check_rows(f, "f")
    check_same(f, g, "g")
    target = full(g).detach()
    if huber is None:
        return functional.mse_loss(f, target)
    return functional.huber_loss(f, target, delta=check_positive(huber, "huber"))


def distillation(f: Tensor, g: Tensor, *, tau: float, mse_weight: float = 0.0) -> Tensor:
    """τ² KL(softmax(g/τ) ‖ softmax(f/τ)) + λ mean (f − g)² of row-centred logits (B, C): the first student's loss."""
    return prefix_kl(g, None, 0, f, tau) + mse_weight * matching(row_centred(f), row_centred(g))


def row_centred(f: Tensor) -> Tensor:
    """Outputs (B, L) less their row's mean, in float32 if half."""
    f = full(f)
    return f - f.mean(-1, keepdim=True)


def _log_cosh(d: Tensor, s: Tensor, eta: float, bound: Bound | None) -> Tensor:
    """log cosh η(S + d) (B, L), with |S + d| at least |S| − G."""
    check_positive(eta, "eta")
    d = check_rows(d, "d")
    check_same(d, s, "s")
    before = full(s).detach()
    error = before + d
    if bound is not None:
        least = before.abs() - bound_like(bound, d, "bound")
        error = torch.where(error.abs() <= least, least, error)
    return torch.logaddexp(eta * error, -eta * error) - math.log(2)
