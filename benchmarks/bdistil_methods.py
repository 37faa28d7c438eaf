"""The methods of bdistil_table.py, each as its prefixes on the test rows. T is the number of students that bdistil-potential accepted.

bdistil-potential   quorate.distil.distil by the potential, within half of the teacher's MACs
bdistil-barrier     the same by the paper's barrier; its own number of students and sizes
no-links            bdistil-potential without links; its own number of students and sizes
reshed              RESHED: networks of the T sizes, without links, trained on labels as the teacher is; prefix t is a weighted mean of
                    their probabilities, its weights on the simplex of least NLL on validation rows
no-reshed           NO-RESHED: for every prefix of bdistil-potential one network trained on labels as the teacher is, cut from the teacher
                    over a fine grid of depths and widths, with the most MACs that are not above the prefix's; of those within 2 % of it the
                    deepest
kd-single           the same networks, distilled from the teacher by the loss of round 1
kd-independent      networks of the T sizes, without links, each distilled by the loss of round 1; prefixes are mean logits
boosting            networks of the T sizes, without links: student t is trained on mean (f − (g − Σ_{s<t} f_s))², row-centred; prefixes are
                    sums of logits
joint               the T students with their links, all trained at once on the sum over t of the loss of round 1 of F_t, the mean logits;
                    gradients flow through the links

Distilled networks have no dropout, those that learn labels have the teacher's. Only the loop clips gradients, and in it a student of a
size that was there before begins with that one's weights, so that it has learnt longer. Every student is trained for the epochs, with the
optimiser and the learning rate of the loop's longest-trained candidate, every network trained on labels with the teacher's. Only the loop
searches: bdistil trains several candidates per round, of which it keeps one; its training MACs count them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from torch import Tensor

from bdistil_joint import Together
from bdistil_seed import Learned, Seed
from quorate import cost
from quorate.combination import log_softmax, softmax
from quorate.distil.cutting import Cut
from quorate.distil.distillation import Distillation
from quorate.distil.losses import distillation
from quorate.distil.pool import without_dropout_
from quorate.distil.round_loss import LossSettings
from quorate.distil.student import ChainStudent
from quorate.distil.views import centred
from quorate.outputs import Outputs
from quorate.training.fit import Fitted

TINY = 1e-300


@dataclass(frozen=True)
class Prefix:
    """A method's first so many networks, or its one network of their cost, on the test rows.

    Attributes:
        log_probs: (N, C). logits: (N, C), None where only probabilities are combined.
        networks: how many. macs: per input. parameters: scalars. training_macs: of what this prefix needs, with what the search tried.
        carried: bytes per input that are carried on behind it.
    """

    log_probs: np.ndarray
    logits: np.ndarray | None
    networks: int
    macs: float
    parameters: int
    training_macs: float
    carried: int | None = None

    @classmethod
    def of(cls, logits: ArrayLike, *rest: Any) -> Prefix:
        """Of logits."""
        z = np.asarray(logits, np.float64)
        return cls(log_softmax(z), z, *rest)


@dataclass(frozen=True)
class Result:
    """A method's prefixes, and the multiply-adds of all that it trained for them."""

    prefixes: list[Prefix]
    training_macs: float


def simplex(true_probs: np.ndarray) -> np.ndarray:
    """Weights (t,) ≥ 0 of sum 1 by which the mixture of probabilities has least NLL; ``true_probs`` (t, N) are those of the true class.

    NLL(w) = −mean_i log Σ_s w_s p_s(i) is convex; solved by SLSQP from equal weights, whose NLL the result's never exceeds.
    """
    count = len(true_probs)
    equal = np.full(count, 1 / count)
    if count == 1:
        return equal
    p = np.maximum(np.asarray(true_probs, np.float64), TINY)

    def nll(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(w @ p, TINY)
        return -float(np.log(mixed).mean()), -(p / mixed).mean(1)

    whole = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
    found = minimize(nll, equal, jac=True, method="SLSQP", bounds=[(0, 1)] * count, constraints=[whole], options={"maxiter": 500})
    weights = np.clip(found.x, 0, None)
    weights /= weights.sum()
    return np.asarray(weights if nll(weights)[0] < nll(equal)[0] else equal)


def alone(outputs: Outputs) -> np.ndarray:
    """(N, C) logits of an ensemble of one network."""
    (value,) = outputs.values
    return np.asarray(value)[0].astype(np.float64)


# — by the loop —


def loop(found: Distillation) -> Result:
    """The prefixes of a distillation."""
    test, students = found.outputs["test"], list(found.ensemble.students)
    each = np.stack([np.asarray(value)[0] for value in test.values]).astype(np.float64)
    if found.ensemble.combine == "logits":
        each = each.cumsum(0) / np.arange(1, len(each) + 1)[:, None, None]
    macs = list(accumulate(found.facts["stage_macs"]))
    parameters = list(accumulate(cost.parameters(student) for student in students))
    carried = found.facts["distil"]["carried_bytes"]
    prefixes = [
        Prefix.of(each[t], t + 1, macs[t], parameters[t], found.rounds[t]["training_macs"], carried[t]) for t in range(len(each))
    ]
    return Result(prefixes, found.facts["training_macs"])


def bdistil_potential(seed: Seed) -> Result:
    """The method, by the potential."""
    return loop(seed.first)


def bdistil_barrier(seed: Seed) -> Result:
    """The method, by the barrier."""
    return loop(seed.distilled("bdistil-barrier", "barrier"))


def no_links(seed: Seed) -> Result:
    """The method without links."""
    return loop(seed.distilled("no-links", "potential", links=("none",)))


# — on labels —


def reshed(seed: Seed) -> Result:
    """The weighted mean of independent networks."""
    fitted = []
    for t in range(len(seed.candidates)):
        drawn = seed.drawn("reshed", t)
        fitted.append(seed.fit(seed.cut(seed.task.students[seed.candidates[t].size], drawn), f"reshed/{t + 1}", drawn))
    held, test = (np.stack([softmax(alone(each.outputs[part])) for each in fitted]) for part in ("validation", "test"))
    labels = fitted[0].outputs["validation"].truth()
    true = held[:, np.arange(len(labels)), labels]
    totals = [list(accumulate(each.facts[key] for each in fitted)) for key in ("macs", "parameters", "training_macs")]
    prefixes = []
    for t in range(1, len(fitted) + 1):
        mixed = np.tensordot(simplex(true[:t]), test[:t], 1)
        prefixes.append(Prefix(np.log(np.maximum(mixed, TINY)), None, t, *(total[t - 1] for total in totals)))
    return Result(prefixes, totals[2][-1])


def sizes(seed: Seed) -> list[Cut]:
    """For every prefix of the distillation by potential the one network that costs as much."""
    return [seed.nearest(limit) for limit in accumulate(seed.first.facts["stage_macs"])]


def name_of(size: Cut) -> str:
    """For folders."""
    return f"d{size.depth:g}-w{size.width:g}"


def single_networks(seed: Seed, learn: Callable[[Cut], tuple[Outputs, dict[str, Any]]]) -> Result:
    """One network per prefix; of two prefixes with the same network it is trained once."""
    found = {size: learn(size) for size in dict.fromkeys(sizes(seed))}
    prefixes = []
    for size in sizes(seed):
        test, facts = found[size]
        macs = float(sum(facts["stage_macs"]))
        prefixes.append(Prefix.of(alone(test), 1, macs, facts["parameters"], facts["training_macs"]))
    return Result(prefixes, sum(facts["training_macs"] for _, facts in found.values()))


def no_reshed(seed: Seed) -> Result:
    """The oracle."""

    def learn(size: Cut) -> tuple[Outputs, dict[str, Any]]:
        fitted = no_reshed_network(seed, size)
        return fitted.outputs["test"], fitted.facts

    return single_networks(seed, learn)


def no_reshed_network(seed: Seed, size: Cut) -> Fitted:
    """One network of NO-RESHED."""
    drawn = seed.drawn("no-reshed", *numbers(size))
    return seed.fit(seed.cut(size, drawn), no_reshed_name(size), drawn)


def no_reshed_name(size: Cut) -> str:
    """Of its run."""
    return f"no-reshed/{name_of(size)}"


def numbers(size: Cut) -> tuple[int, int]:
    """A size as integers, for seeds."""
    return round(size.depth * 1000), round(size.width * 1000)


# — from the teacher, outside of the loop —


def first_round(seed: Seed) -> tuple[Callable[[Tensor, Tensor], Tensor], dict[str, float]]:
    """The loss of round 1, (f, g) → scalar, and its settings."""
    losses = LossSettings.of({"kind": "potential", **seed.task.loss.get("potential", {})})
    weights = {"tau": losses.tau, "mse_weight": losses.mse_weight}
    return lambda f, g: distillation(f, g, **weights), weights


def kd_single(seed: Seed) -> Result:
    """One distilled network per prefix."""
    loss, weights = first_round(seed)

    def learn(size: Cut) -> tuple[Outputs, dict[str, Any]]:
        drawn = seed.drawn("kd-single", *numbers(size))
        student = ChainStudent(without_dropout_(seed.cut(size, drawn)), 0)
        found = seed.learned(f"kd-single/{name_of(size)}", [student], lambda f, g, _: loss(f, g), drawn, **weights)
        return found.outputs["test"], found.facts

    return single_networks(seed, learn)


def kd_independent(seed: Seed) -> Result:
    """The mean of independent students."""
    loss, weights = first_round(seed)
    found: list[Learned] = []
    for t in range(len(seed.candidates)):
        drawn = seed.drawn("kd-independent", t)
        student = ChainStudent(seed.unlinked(t, drawn), t)
        found.append(seed.learned(f"kd-independent/{t + 1}", [student], lambda f, g, _: loss(f, g), drawn, **weights))
    return one_by_one(found, mean=True)


def residual(count: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Squared error to what ``count`` students have left: (f, g, S) → scalar; g − Σ f_s = g − (S + count · g), all row-centred."""
    return lambda f, g, s: (centred(f) - (g - (s + count * g))).square().mean()


def boosting(seed: Seed) -> Result:
    """The sum of students, each of the residual."""
    found: list[Learned] = []
    for t in range(len(seed.candidates)):
        drawn = seed.drawn("boosting", t)
        student = ChainStudent(seed.unlinked(t, drawn), t)
        earlier = [each.ensemble.students[0] for each in found]
        found.append(seed.learned(f"boosting/{t + 1}", [student], residual(t), drawn, earlier=earlier, place=t))
    return one_by_one(found, mean=False)


def one_by_one(found: Sequence[Learned], mean: bool) -> Result:
    """The prefixes of students that were trained one after the other: their mean, or their sum."""
    each = np.cumsum([alone(one.outputs["test"]) for one in found], axis=0)
    macs = list(accumulate(float(sum(one.facts["stage_macs"])) for one in found))
    parameters, spent = (list(accumulate(one.facts[key] for one in found)) for key in ("parameters", "training_macs"))
    divisors = range(1, len(found) + 1) if mean else [1] * len(found)
    prefixes = [Prefix.of(each[t] / divisors[t], t + 1, macs[t], parameters[t], spent[t]) for t in range(len(found))]
    return Result(prefixes, spent[-1])


def joint(seed: Seed) -> Result:
    """All at once."""
    (loss, weights), students = first_round(seed), list[Any]()
    for t, candidate in enumerate(seed.candidates):
        students.append(seed.cold.build(replace(candidate, seed=seed.drawn("joint", t)), t, students, seed.example))

    def every_prefix(f: Tensor, g: Tensor, _: Tensor) -> Tensor:
        prefixes = f.cumsum(0)
        total = loss(prefixes[0], g)
        for t in range(1, len(f)):
            total = total + loss(prefixes[t] / (t + 1), g)
        return total

    together = Together(students)
    found = seed.learned("joint", students, every_prefix, seed.drawn("joint"), learner=together, **weights)
    each = np.cumsum([np.asarray(value)[0].astype(np.float64) for value in found.outputs["test"].values], axis=0)
    macs = list(accumulate(found.facts["stage_macs"]))
    parameters = list(accumulate(cost.parameters(student) for student in found.ensemble.students))
    carried = found.ensemble.carried_bytes(seed.example)
    spent = found.facts["training_macs"]
    return Result(
        [Prefix.of(each[t] / (t + 1), t + 1, macs[t], parameters[t], spent, carried[t]) for t in range(len(each))], spent
    )


METHODS: dict[str, Callable[[Seed], Result]] = {
    "bdistil-potential": bdistil_potential,
    "bdistil-barrier": bdistil_barrier,
    "no-links": no_links,
    "reshed": reshed,
    "no-reshed": no_reshed,
    "kd-single": kd_single,
    "kd-independent": kd_independent,
    "boosting": boosting,
    "joint": joint,
}
