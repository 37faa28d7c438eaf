"""The planner over four priced services on spoken commands: accuracy against price, and the price of the best single one's accuracy.

python benchmarks/cascade_frugal.py FILE [--splits 20] [--quick]

FILE is command.npz of FrugalML's data: prediction and confidence of three paid speech services and one free network, whose computing has
a price, on 64,727 utterances; dollars per 10,000 calls. Split at random into validation (20 %), calibration (30 %, not used: the target
is plain accuracy) and test (50 %), once per seed. Limits are shares of the price of the service that is best on validation rows. At
every limit the best on validation rows is taken of: single services, all pairs with one threshold, the planner's plans under all these
limits and without one. "matching price":
the least at which a way's validation accuracy is at least that of the best single service, and what it then comes to on test rows; saving
is 1 − its price ÷ the best single service's.

Published, on another split and with another training part: FrugalML reports up to 90 % cost reduction while matching the accuracy of the
best single service (Chen, Zaharia & Zou, NeurIPS 2020, arXiv 2006.07512, abstract); not to be compared figure by figure.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import cascade_pools as pools
import cascade_rivals as rivals
from quorate.cascade import Policy, simulate
from quorate.cascade.planner import plan
from quorate.cascade.target import parse
from quorate.outputs import Outputs
from record import commit, write
from tables import Figures, aggregate

SHARES = (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5)  # of the best single service's price
GOAL = parse("accuracy")
SPLITS, FRONT = 20, 30


class Way:
    """One way to spend: (cost, accuracy, policy) on validation rows, in any number."""

    def __init__(self, found: Sequence[tuple[float, float, Callable[[], Policy]]]) -> None:
        self.found = sorted(found, key=lambda each: (each[0], -each[1]))

    def within(self, limit: float) -> Policy | None:
        """The most accurate that costs at most so much."""
        affordable = [each for each in self.found if each[0] <= limit * (1 + 1e-9)]
        return max(affordable, key=lambda each: (each[1], -each[0]))[2]() if affordable else None

    def matching(self, accuracy: float) -> Policy | None:
        """The cheapest that is at least so accurate."""
        return next((make() for cost, got, make in self.found if got >= accuracy), None)


def as_it_is(policy: Policy) -> Policy:
    """A policy that is made already."""
    return policy


def ways(parts: pools.Parts, front: int) -> tuple[dict[str, Way], rivals.Choice]:
    """The ways by name, and the best single service."""
    val, rows = parts.validation, parts.calibration.n

    def of(choices: Sequence[rivals.Choice]) -> Way:
        def make(choice: rivals.Choice) -> Callable[[], Policy]:
            def policy() -> Policy:
                made = rivals.as_policy(val, choice, GOAL, rows)
                assert made is not None  # everything is accepted
                return made

            return policy

        return Way([(each.cost, each.figure, make(each)) for each in choices])

    single = rivals.singles(val, GOAL)
    top = max(single, key=lambda choice: (choice.figure, -choice.cost))
    plans = plan(pools.pool(val), "accuracy", front=front)
    affordable = [share for share in SHARES if share * top.cost >= min(choice.cost for choice in single)]
    for share in affordable:
        plans += plan(pools.pool(val), "accuracy", max_cost=share * top.cost, front=4)
    found = {
        "single": of(single),
        "one-threshold": of(rivals.one_threshold(val, GOAL)),
        "planner": Way([(each.figures.cost, each.figures.figure, functools.partial(as_it_is, each.policy)) for each in plans]),
    }
    return found, top


def columns(outputs: Outputs, seed: int, front: int) -> dict[str, Figures]:
    """One split's test figures by "way|share of the best single service's price" and "way|matching"; each service by its name."""
    parts = pools.split(outputs, seed)
    found, best = ways(parts, front)
    table: dict[str, Figures] = {}

    def note(place: str, policy: Policy | None) -> None:
        if policy is None:
            return
        routed = simulate(policy, parts.test)
        accuracy = float((routed.label == parts.test.truth()).mean())
        table[place] = {"accuracy": accuracy, "cost": routed.mean_macs, "saving": 1 - routed.mean_macs / best.cost}

    for choice in rivals.singles(parts.validation, GOAL):
        note(f"service|{choice.models[0]}", rivals.as_policy(parts.validation, choice, GOAL, 1))
    for name, way in found.items():
        for share in SHARES:
            note(f"{name}|{share:g}", way.within(share * best.cost))
        note(f"{name}|matching", way.matching(best.figure))
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Plan on every split, print, write results/cascade-frugal.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--quick", action="store_true", help="one split, few plans: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.splits < 1:
        parser.error(f"--splits {chosen.splits}: expected 1 or more")
    splits, front = (1, 5) if chosen.quick else (chosen.splits, FRONT)
    outputs = pools.frugal(chosen.file)
    found = []
    for seed in range(splits):
        found.append(columns(outputs, seed, front))
        for place, figures in found[-1].items():
            told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if value is not None)
            print(f"split {seed} {place}: {told}", flush=True)
    title, _, about = (__doc__ or "").split("\n\n", 2)
    note = " ".join(f"{title} {about}".split())
    name = "cascade-frugal" + ("-quick" if chosen.quick else "")
    print("wrote", write(name, aggregate(found), commit=now, seeds=list(range(splits)), repeats=1, note=note))


if __name__ == "__main__":
    main()
