"""Drift: whether the share of rows that each stage sends on is still what it was on validation data.

Sources: Waudby-Smith & Ramdas 2023 (arXiv 2010.09686), §4: betting; Ramdas et al. 2023 (arXiv 2210.01948): e-processes and their mixtures.

Let p be a stage's pass rate, x ∈ {0, 1} whether a row that reached it goes on. Null: p ∈ [lo, hi], the Clopper–Pearson interval at level
1 − δ/2 of the validation counts; the *estimated* rate would be rejected sooner or later, since it is never quite right. After n rows
of which s went on, a bettor with stake f ∈ (0, 1) holds

    up    (1 + f (1 − hi) / hi)^s (1 − f)^(n − s)          down    (1 + f lo / (1 − lo))^(n − s) (1 − f)^s,

of mean ≤ 1 under the null at any time (bets f / hi on x − hi and f / (1 − lo) on lo − x). The wealth W is the mean over both sides and a
fixed grid of stakes, so a function of the counts alone. Half of it bets from the first row on, the rest from row 1000 · 1.25ʲ on with
weight ½ / ((j + 1)(j + 2)), so that a change after a long quiet time is found soon. By Ville's inequality P(ever W ≥ 2/δ) ≤ δ/2:
a false alarm ever, over the draw of the validation data and the stream, has probability ≤ δ.

A restart takes place at the first update from its row on; updates that are split or merged elsewhere leave the wealth as it is. It is
looked at when 100 rows have come or someone asks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from scipy.special import betaincinv

from quorate.cascade.cascade import simulate
from quorate.cascade.policy import Policy
from quorate.outputs import Outputs

FORMAT = "quorate-watch/1"
STAKES = 2.0 ** -np.arange(1, 13)
_LOST = np.log1p(-STAKES)
FIRST, GROWTH = 1000, 1.25
LOOK = 100  # rows of a stage between two looks at its wealth, where nobody asks


def restart(j: int) -> int:
    """The row count from which the j-th restart (j ≥ 0) may begin."""
    return int(FIRST * GROWTH**j)


def interval(passed: int, reached: int, delta: float) -> tuple[float, float]:
    """Clopper–Pearson interval of a rate at level 1 − δ; [0, 1] without rows."""
    low = float(betaincinv(passed, reached - passed + 1, delta / 2)) if passed else 0.0
    high = float(betaincinv(passed + 1, reached - passed, 1 - delta / 2)) if passed < reached else 1.0
    return low, high


def log_wealth(reached: int, passed: int, low: float, high: float, starts: Sequence[Sequence[int]] = ()) -> float:
    """log W of the module's formula after ``reached`` rows of which ``passed`` went on.

    Args:
        low, high: the null's interval of rates, 0 ≤ low < 1, 0 < high ≤ 1.
        starts: (reached, passed) when each restart began.
    """
    since = np.array([(0, 0), *starts])
    s = (passed - since[:, 1])[:, None]
    held_back = (reached - since[:, 0])[:, None] - s
    up = s * np.log1p(STAKES * ((1 - high) / high)) + held_back * _LOST
    down = held_back * np.log1p(STAKES * (low / (1 - low))) + s * _LOST
    j = np.arange(len(starts))
    shares = np.concatenate([[0.5], 0.5 / ((j + 1) * (j + 2))]) / (2 * len(STAKES))
    bets = np.concatenate([up, down], 1) + np.log(shares)[:, None]
    unused = math.log(0.5 / (len(starts) + 1))  # Σ_{j ≥ J} ½ / ((j + 1)(j + 2)) of restarts to come
    top = max(float(bets.max()), unused)
    return top + math.log(float(np.exp(bets - top).sum()) + math.exp(unused - top))


@dataclass
class _Stage:
    """One stage's null, its counts so far, and where its restarts began."""

    name: str
    low: float
    high: float
    delta: float
    reached: int = 0
    passed: int = 0
    starts: list[list[int]] = field(default_factory=list)
    alarm: bool = False
    unseen: int = 0  # rows since the wealth was last looked at

    def update_(self, reached: int, passed: int) -> None:
        while self.reached >= restart(len(self.starts)):
            self.starts.append([self.reached, self.passed])
        self.reached += reached
        self.passed += passed
        self.unseen += reached
        if self.unseen >= LOOK:
            self.look_()

    def look_(self) -> bool:
        """Whether there is an alarm, by now or before."""
        if self.unseen and not self.alarm:
            self.alarm = self.log_wealth >= math.log(2 / self.delta)
        self.unseen = 0
        return self.alarm

    @property
    def log_wealth(self) -> float:
        return log_wealth(self.reached, self.passed, self.low, self.high, self.starts)

    def checked(self) -> _Stage:
        """Itself, if it can be one; a ValueError if not."""
        rates = all(isinstance(p, float) for p in (self.low, self.high, self.delta)) and isinstance(self.name, str)
        ranges = rates and 0 <= self.low <= self.high <= 1 and self.low < 1 and self.high > 0 and 0 < self.delta < 1
        pairs = isinstance(self.starts, list) and all(isinstance(p, list) and len(p) == 2 for p in self.starts)
        if not (ranges and pairs and type(self.alarm) is bool and type(self.unseen) is int):
            raise ValueError(f"not a stage's watch: {_brief(asdict(self))}, expected what Watch.to_dict gives")
        for reached, passed in [*self.starts, [self.reached, self.passed]]:
            check_counts(self.name, reached, passed)
        return self


def check_counts(name: str, reached: Any, passed: Any) -> None:
    """A ValueError unless 0 ≤ passed ≤ reached, whole numbers."""
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) for n in (reached, passed))
    if not whole or not 0 <= passed <= reached:
        raise ValueError(
            f"stage {name!r}: {passed!r} of {reached!r} rows went on, expected whole numbers with 0 ≤ passed ≤ reached"
        )


class Watch:
    """A drift watch over all stages but the last. :meth:`of` makes one; ``Cascade(…, watch=…)`` feeds it.

    Alarms stay until :meth:`reset_`. With δ over all stages, the probability that there ever is a false one is at most δ if the
    validation rows and the stream come from one distribution, rows independent, and the policy was not changed in between; it is spent
    anew by every reset. Not for several threads at once: a cascade feeds it under a lock of its own.
    """

    def __init__(self, stages: Sequence[_Stage]) -> None:
        self._stages = {stage.name: stage for stage in stages}

    @classmethod
    def of(cls, policy: Policy, validation: Outputs, delta: float | Sequence[float] = 0.05) -> Watch:
        """The watch whose null is what the policy does on ``validation`` Outputs, which need no labels.

        Args:
            delta: for all stages together, in equal parts, or one per stage but the last.

        Raises:
            ValueError: Outputs that the policy can't be simulated on, a policy of one stage, a δ outside (0, 1).
        """
        stage, stages = simulate(policy, validation).stage, policy.stages[:-1]
        reach = [int((stage >= k).sum()) for k in range(len(stages) + 1)]
        return cls.of_counts([s.name for s in stages], reach[:-1], reach[1:], delta)

    @classmethod
    def of_counts(
        cls, names: Sequence[str], reached: Sequence[int], passed: Sequence[int], delta: float | Sequence[float] = 0.05
    ) -> Watch:
        """The same from counts per watched stage: rows that reached it and rows of them that went on. A stage that no row reached gives
        no alarm, since any rate may be its own.

        Raises:
            ValueError: no stage, counts that are not 0 ≤ passed ≤ reached, lists of other lengths, a δ outside (0, 1).
        """
        if not len(names) or len(set(names)) != len(names) or not len(names) == len(reached) == len(passed):
            raise ValueError(
                f"{len(names)} names, {len(reached)} and {len(passed)} counts: expected one each per stage but the last, at least one"
            )
        deltas, stages = _deltas(delta, len(names)), []
        for name, n, s, d in zip(names, reached, passed, deltas, strict=True):
            check_counts(name, n, s)
            stages.append(_Stage(name, *interval(int(s), int(n), d / 2), d))
        return cls(stages)

    def update_(self, stage: str, reached: int, passed: int) -> None:
        """Count rows that reached a stage, and those of them that its window sent on. ValueError for counts that can't be."""
        check_counts(stage, reached, passed)
        self._known(stage).update_(int(reached), int(passed))

    def reset_(self) -> None:
        """Forget the stream and its alarms; the validation intervals stay."""
        for name, s in self._stages.items():
            self._stages[name] = _Stage(name, s.low, s.high, s.delta)

    @property
    def names(self) -> tuple[str, ...]:
        """The watched stages."""
        return tuple(self._stages)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Stages whose pass rate has drifted."""
        return tuple(name for name, stage in self._stages.items() if stage.look_())

    @property
    def log_wealth(self) -> dict[str, float]:
        """Per stage log W now; there is an alarm from log(2/δ) on."""
        return {name: stage.log_wealth for name, stage in self._stages.items()}

    @property
    def wealth(self) -> dict[str, float]:
        """Per stage W now, +inf beyond what a float holds."""
        return {name: math.exp(w) if w < 709 else math.inf for name, w in self.log_wealth.items()}

    @property
    def rates(self) -> dict[str, float | None]:
        """Per stage the share of the stream's rows that went on; None before the first row."""
        return {name: s.passed / s.reached if s.reached else None for name, s in self._stages.items()}

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Per stage the rates that are no drift."""
        return {name: (s.low, s.high) for name, s in self._stages.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON; :meth:`from_dict` goes on from it."""
        return {"format": FORMAT, "stages": [asdict(stage) for stage in self._stages.values()]}

    @classmethod
    def from_dict(cls, data: Any) -> Watch:
        """Read what :meth:`to_dict` gave. ValueError for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORMAT or not isinstance(data.get("stages"), list):
            raise ValueError(f"not a watch: {_brief(data)}, expected {FORMAT!r} as Watch.to_dict gives it")
        known = {part.name for part in fields(_Stage)}
        for stage in data["stages"]:
            if not isinstance(stage, dict) or stage.keys() != known:
                raise ValueError(f"not a stage's watch: {_brief(stage)}, expected {', '.join(sorted(known))}")
        return cls([_Stage(**copy.deepcopy(stage)).checked() for stage in data["stages"]])

    def _known(self, name: str) -> _Stage:
        if name not in self._stages:
            raise ValueError(f"stage {name!r} is not watched: expected one of {', '.join(self._stages)}")
        return self._stages[name]


def _deltas(delta: Any, stages: int) -> list[float]:
    """δ per stage; one number is shared in equal parts."""
    given = list(delta) if isinstance(delta, Sequence) and not isinstance(delta, str) else [delta]
    if not all(isinstance(d, int | float | np.number) and 0 < d < 1 for d in given):
        raise ValueError(f"delta={delta!r}: expected a probability in (0, 1), or one per stage but the last")
    if not isinstance(delta, Sequence):
        return [float(delta) / stages] * stages
    if len(given) != stages:
        raise ValueError(f"{len(given)} deltas for {stages} stages: expected one per stage but the last")
    return [float(d) for d in given]


def _brief(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 100 else f"{text[:97]}…"
