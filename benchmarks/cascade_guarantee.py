"""The guarantees, simulated: how often a certified claim is wrong, beside thresholds without correction, and what it costs in coverage.

python benchmarks/cascade_guarantee.py [--draws 1000] [--quick]

Every population is known in closed form, so that a claim is right or wrong, not estimated. Selective risk at 5 %, δ = .05: uncertainty is
uniform in [0, 1], a row of uncertainty u is wrong with probability u³ / 2, so that accepting u ≤ τ has risk τ³ / 8 and coverage τ; the
target is met up to τ = .737. Per draw n validation rows fix the thresholds (100, even in coverage; 50 for Bonferroni) and the start of the
sequence, n calibration rows certify. A violation is a threshold with more true risk than 5 %; its share over the draws has a 95 %
Clopper–Pearson interval. "uncorrected": the largest coverage with empirical risk ≤ 5 % on the calibration rows; "nearest": the coverage
whose empirical risk is nearest to 5 %. Coverage is the true one of what was certified, 0 where nothing was.

FPR: in-distribution uncertainty N(0, 1), OOD N(2, 1), TPR 95 %; wrong if the true TPR is less or the true FPR above its bound.
"uncorrected" takes the threshold that accepts 95 % of the calibration rows. Deviation: 40 nested settings; one row in
ten deviates, up to a setting drawn evenly; conformal control at α = .005 bounds the mean over draws. Drift: pass rate .2, validation counts
of 10,000 rows drawn anew in each of 300 runs, 10⁵ inputs looked at every 100: the e-process against the validation interval, the same
against the estimated rate, and how many inputs it takes to find a rate of .22.
"""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from quorate.cascade.drift import Watch
from quorate.cascade.guarantee import Certificate, certify, certify_fpr, clopper_pearson, crc_threshold, lower, start
from quorate.metrics import coverage_at_risk, threshold_at_coverage, threshold_at_risk, threshold_at_tpr
from record import commit, write

RISK, DELTA, TPR, ALPHA = 0.05, 0.05, 0.95, 0.005
SIZES, DRAWS = (300, 1_000, 5_000), 1_000
THRESHOLDS, BONFERRONI, SETTINGS = 100, 50, 40
SHIFT, DEVIATING = 2.0, 0.1
RATE, CHANGED, VALIDATED, INPUTS, LOOK, RUNS = 0.2, 0.22, 10_000, 100_000, 100, 300
Rng = np.random.Generator


# — selective risk —


class Rows(NamedTuple):
    """Uncertainty (n,) and errors (n,)."""

    u: NDArray[np.float64]
    errors: NDArray[np.bool_]

    @classmethod
    def draw(cls, rng: Rng, n: int) -> Rows:
        """From the population."""
        u = rng.random(n)
        return cls(u, rng.random(n) < u**3 / 2)


def true_risk(tau: float) -> float:
    """Of accepting u ≤ τ, τ in [0, 1]: ∫₀^τ u³/2 du / τ."""
    return min(tau, 1.0) ** 3 / 8


def _grid(val: Rows, count: int) -> list[float]:
    return [threshold_at_coverage(val.u, share) for share in np.linspace(1 / count, 1, count)]


def _certified(certificate: Certificate) -> float:
    """τ in [0, 1]; 0 where nothing is certified, 1 for all."""
    return 0.0 if not certificate.feasible else 1.0 if certificate.tau is None else min(certificate.tau, 1.0)


def from_start(val: Rows, cal: Rows) -> float:
    """A fixed sequence from where validation rows say."""
    grid = _grid(val, THRESHOLDS)
    begin = start(val.u, val.errors, grid, RISK, DELTA, len(cal.u))
    return _certified(certify(cal.u, cal.errors, grid[begin:], RISK, DELTA))


def from_first(val: Rows, cal: Rows) -> float:
    """A fixed sequence from the first threshold."""
    return _certified(certify(cal.u, cal.errors, _grid(val, THRESHOLDS), RISK, DELTA))


def by_bonferroni(val: Rows, cal: Rows) -> float:
    """All thresholds at δ / G."""
    return _certified(certify(cal.u, cal.errors, _grid(val, BONFERRONI), RISK, DELTA, "bonferroni"))


def uncorrected(_: Rows, cal: Rows) -> float:
    """The largest coverage with the empirical risk in bounds."""
    tau = threshold_at_risk(cal.u, cal.errors, RISK)
    return 0.0 if tau is None else min(tau, 1.0)


def nearest(_: Rows, cal: Rows) -> float:
    """The coverage whose empirical risk is nearest to the target."""
    coverage = coverage_at_risk(cal.u, cal.errors, RISK, "nearest")
    return min(threshold_at_coverage(cal.u, coverage), 1.0) if coverage else 0.0


WAYS: dict[str, Callable[[Rows, Rows], float]] = {
    "fixed sequence, start from validation": from_start,
    "fixed sequence from the first threshold": from_first,
    f"Bonferroni over {BONFERRONI}": by_bonferroni,
    "uncorrected": uncorrected,
    "nearest risk": nearest,
}


def selective(n: int, draws: int) -> dict[str, dict[str, float]]:
    """Violations and coverage of every way; all see the same rows."""
    taus: dict[str, list[float]] = {name: [] for name in WAYS}
    for seed in range(draws):
        rng = np.random.default_rng([n, seed])
        val, cal = Rows.draw(rng, n), Rows.draw(rng, n)
        for name, way in WAYS.items():
            taus[name].append(way(val, cal))
    return {name: violations([true_risk(tau) > RISK for tau in found], found) for name, found in taus.items()}


def violations(wrong: Sequence[bool], coverage: Sequence[float]) -> dict[str, float]:
    """The share of draws that are wrong with its 95 % interval, mean coverage ± standard deviation, the share that certify anything."""
    n, k = len(wrong), sum(wrong)
    return {
        "violations": k / n,
        "low": float(lower(k, n, 0.025)),
        "high": float(clopper_pearson(k, n, 0.025)),
        "coverage": float(np.mean(coverage)),
        "coverage_sd": float(np.std(coverage, ddof=1)) if n > 1 else 0.0,
        "certified": float(np.mean(np.asarray(coverage) > 0)),
    }


# — FPR at TPR —


def outliers(n: int, draws: int) -> dict[str, dict[str, float]]:
    """A certificate of TPR and FPR beside the empirical threshold; "coverage" is the share of OOD rejected."""
    wrong: dict[str, list[bool]] = {"certified": [], "uncorrected": []}
    kept: dict[str, list[float]] = {"certified": [], "uncorrected": []}
    for seed in range(draws):
        rng = np.random.default_rng([n, seed, 1])
        inside, outside = rng.normal(size=n), SHIFT + rng.normal(size=n)
        certificate = certify_fpr(inside, {"ood": outside}, None, TPR, DELTA)
        if certificate.feasible:
            tau = math.inf if certificate.tau is None else certificate.tau
            fpr, bound = float(norm.cdf(tau - SHIFT)), certificate.outliers[0].bound
            wrong["certified"].append(norm.cdf(tau) < TPR or (bound is not None and fpr > bound))
            kept["certified"].append(1 - fpr)
        else:
            wrong["certified"].append(False)
            kept["certified"].append(0.0)
        tau = threshold_at_tpr(inside, TPR)
        wrong["uncorrected"].append(bool(norm.cdf(tau) < TPR))
        kept["uncorrected"].append(float(1 - norm.cdf(tau - SHIFT)))
    return {name: violations(wrong[name], kept[name]) for name in wrong}


# — deviation —


def deviation(n: int, draws: int) -> dict[str, float]:
    """True mean deviation of the setting that conformal control takes, over draws, and the share of draws in which it is above α.

    Row i deviates with probability .1 at all, then up to a uniform setting: D(g) = .1 (1 − g / G) on average.
    """
    truth = []
    for seed in range(draws):
        rng = np.random.default_rng([n, seed, 2])
        last = np.where(rng.random(n) < DEVIATING, rng.integers(0, SETTINGS, n), -1)
        at = crc_threshold(last[:, None] >= np.arange(SETTINGS + 1), ALPHA)
        truth.append(0.0 if at is None else DEVIATING * (1 - min(at, SETTINGS) / SETTINGS))
    spread = float(np.std(truth, ddof=1)) if draws > 1 else 0.0
    return {
        "mean": float(np.mean(truth)),
        "standard_error": spread / math.sqrt(draws),
        "beyond": float(np.mean(np.array(truth) > ALPHA)),
    }


# — drift —


def alarmed_at(watch: Watch, rng: Rng, rate: float, inputs: int) -> int | None:
    """After how many inputs there is an alarm; None for never."""
    for count, passed in enumerate(rng.binomial(LOOK, rate, inputs // LOOK).tolist(), 1):
        watch.update_("stage0", LOOK, passed)
        if watch.alarms:
            return count * LOOK
    return None


def drift(runs: int, inputs: int) -> dict[str, dict[str, float | None]]:
    """Alarms without drift against the interval and against the estimate, and with drift against the interval."""
    found: dict[str, list[int | None]] = {"null": [], "estimate": [], "drifted": []}
    for seed in range(runs):
        rng = np.random.default_rng([seed, 3])
        passed = int(rng.binomial(VALIDATED, RATE))
        make = functools.partial(Watch.of_counts, ["stage0"], [VALIDATED], [passed], DELTA)
        estimated = make().to_dict()
        estimated["stages"][0] |= {"low": passed / VALIDATED, "high": passed / VALIDATED}
        found["null"].append(alarmed_at(make(), np.random.default_rng([seed, 4]), RATE, inputs))
        found["estimate"].append(alarmed_at(Watch.from_dict(estimated), np.random.default_rng([seed, 4]), RATE, inputs))
        found["drifted"].append(alarmed_at(make(), np.random.default_rng([seed, 5]), CHANGED, inputs))
    result: dict[str, dict[str, float | None]] = {}
    for name, alarms in found.items():
        there = [at for at in alarms if at is not None]
        k = len(there)
        result[name] = {
            "alarms": k / runs,
            "low": float(lower(k, runs, 0.025)),
            "high": float(clopper_pearson(k, runs, 0.025)),
            "median_inputs": float(np.median(there)) if there else None,
        }
    return result


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, print, write results/cascade-guarantee.json."""
    now = commit()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--quick", action="store_true", help="10 draws, one size: that it works, no result")
    chosen = parser.parse_args(argv)
    if chosen.draws < 1:
        parser.error(f"--draws {chosen.draws}: expected 1 or more")
    draws, sizes, runs, inputs = (10, SIZES[:1], 3, 10_000) if chosen.quick else (chosen.draws, SIZES, RUNS, INPUTS)
    figures: dict[str, Any] = {"draws": draws, "selective": {}, "fpr": {}, "deviation": {}, "drift": {}}
    for n in sizes:
        figures["selective"][str(n)] = selective(n, draws)
        figures["fpr"][str(n)] = outliers(n, draws)
        figures["deviation"][str(n)] = deviation(n, draws)
        for part in ("selective", "fpr"):
            for name, each in figures[part][str(n)].items():
                interval = f"{100 * each['low']:.1f}–{100 * each['high']:.1f}"
                print(
                    f"{part}, n = {n:,}, {name}: wrong {100 * each['violations']:.1f} % ({interval}), coverage {each['coverage']:.3f}"
                )
        kept = figures["deviation"][str(n)]
        print(f"deviation, n = {n:,}: {kept['mean']:.5f} ± {kept['standard_error']:.5f}, α = {ALPHA}", flush=True)
    figures["drift"] = drift(runs, inputs)
    for name, alarms in figures["drift"].items():
        print(f"drift, {name}: alarms in {100 * (alarms['alarms'] or 0):.1f} % of {runs} runs")
    title, _, about = (__doc__ or "").split("\n\n", 2)
    name = "cascade-guarantee" + ("-quick" if chosen.quick else "")
    note = " ".join(f"{title} {about}".split())
    print("wrote", write(name, figures, commit=now, seeds=list(range(draws)), repeats=1, note=note))


if __name__ == "__main__":
    main()
