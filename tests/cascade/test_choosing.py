"""Policy.fit: what it refuses, in one line each; what it certifies; conformal control holds on average over draws."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Policy, simulate
from quorate.cascade.choosing import aim_of, cost_limit
from quorate.cascade.deviation import deviations
from quorate.cascade.exits import Exits
from quorate.cascade.fitting import nested
from quorate.cascade.guarantee.certificate import Certificate
from quorate.cascade.guarantee.policies import certify_deviation_policy
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding


def drawn(seed: int, n: int = 300, stages: int = 2, ood: bool = False, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    signal = np.eye(3)[labels] * rng.uniform(0, 5, (n, 1)) * (not ood)
    values = [signal + rng.normal(0, 1.2, (n, 3)) for _ in range(stages)]
    return Outputs(values, **({"labels": labels, "costs": [1.0, 3.0, 5.0][:stages]} | options))


VAL, CAL, FAR = drawn(1), drawn(2), {"far": drawn(3, ood=True)}
UNLABELLED, UNPRICED = drawn(1, labels=None), drawn(1, costs=None)
FEWER = Outputs([value[..., :2] for value in VAL.values], labels=np.zeros(VAL.n, int), costs=VAL.costs)
WRONG = Outputs(VAL.values, labels=(VAL.predictions() + 1) % 3, costs=VAL.costs)
TOP1 = Outputs([(VAL.predictions(), VAL.probs().max(-1))] * 2, kind="top1", labels=VAL.labels, costs=[1.0, 1.0])

REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"window": "best"}, "window='best': expected one of paper, optimal"),
    ({"val": VAL.prefix(1)}, "1 stage"),
    ({"val": VAL.prefix(1), "window": "optimal"}, "1 stage"),
    ({"target": "auroc"}, "expected one of coverage@risk=R"),
    ({"target": "coverage@risk=5"}, "a share and not per cent"),
    ({"budget": 0.5, "max_cost": 2.0, "window": "optimal"}, "budget and max_cost: expected one of them"),
    ({"budget": 1.5, "window": "optimal"}, "expected a share in (0, 1]"),
    ({"budget": 0.0, "window": "optimal"}, "expected a share in (0, 1]"),
    ({"budget": math.nan, "window": "optimal"}, "expected a share in (0, 1]"),
    ({"max_cost": -1.0, "window": "optimal"}, "max_cost=-1.0: expected a number > 0"),
    ({"max_cost": math.nan, "window": "optimal"}, "max_cost=nan: expected a number > 0"),
    ({"max_cost": 0.5, "window": "optimal"}, "less than 1, what the first stage alone costs"),
    ({"max_cost": 0.5, "window": "single"}, "less than 1, what the first stage alone costs"),
    ({"max_cost": 0.5, "window": "random"}, "less than 1, what the first stage alone costs"),
    ({"val": UNPRICED, "budget": 0.5, "window": "optimal"}, "needs the stages' costs"),
    ({"budget": 0.5}, "the paper's window has a width and no deviation or budget"),
    ({"deviation": 0.1}, "the paper's window has a width and no deviation or budget"),
    ({"deviation": 0.1, "budget": 0.5, "window": "optimal"}, "deviation and a limit of cost: expected one of them"),
    ({"deviation": 1.1, "window": "optimal"}, "deviation=1.1: expected a share"),
    ({"deviation": math.nan, "window": "random"}, "deviation=nan: expected a share"),
    ({"width": 0.0}, "width=0.0: expected a share > 0"),
    ({"width": 1.5, "window": "optimal"}, "width=1.5: expected a share > 0"),
    ({"width": math.nan, "window": "random"}, "width=nan: expected a share > 0"),
    ({"target": "accuracy"}, "no threshold to put a window around"),
    ({"target": "accuracy", "window": "optimal"}, "no threshold to put a window around"),
    ({"val": drawn(1, stages=3), "target": "nll"}, "no threshold to put a window around"),
    ({"val": UNLABELLED}, "no labels"),
    ({"val": UNLABELLED, "window": "optimal", "budget": 0.5}, "no labels"),
    ({"val": UNLABELLED, "window": "optimal", "target": "nll", "budget": 0.5}, "no labels"),
    ({"val": WRONG}, "no threshold reaches risk"),
    ({"val": WRONG, "window": "optimal"}, "no threshold reaches coverage@risk=0.1 on validation data, the least risk is"),
    ({"val": WRONG, "window": "optimal", "budget": 0.5}, "no threshold reaches"),
    ({"val": WRONG, "window": "random"}, "no threshold reaches"),
    ({"tau": "shared", "window": "optimal"}, "tau='shared': only the paper's window of two stages"),
    ({"tau": "shared", "val": drawn(1, stages=3)}, "tau='shared': only the paper's window of two stages"),
    ({"tau": "mine"}, "tau='mine'"),
    ({"temperature": "warm", "window": "optimal"}, "temperature='warm': expected 'none' or 'fit'"),
    ({"temperature": "fit", "window": "optimal", "uncertainty": "energy"}, "does not act on energy"),
    ({"uncertainty": "confidence", "window": "optimal"}, "expected one of msp"),
    ({"window": "agreement"}, "the first stage 'stage0' has 1 member"),
    ({"val": TOP1, "window": "agreement"}, "needs every class's score"),
    ({"val": TOP1, "window": "optimal", "target": "nll", "budget": 0.6}, "the NLL needs scores of every class"),
    ({"target": "fpr@tpr=0.9", "window": "optimal", "budget": 0.5}, "needs OOD rows"),
    ({"target": "fpr@tpr=0.9", "val": drawn(1, stages=3)}, "needs OOD rows to set a τ for every stage"),
    ({"target": "fpr@tpr=0.9", "limits": {0: 0.1}}, "knows no errors: leave limits out"),
    ({"target": "fpr@tpr=0.9", "error_costs": [1, 1, 1], "ood": FAR}, "knows no errors"),
    ({"target": "accuracy", "limits": {0: 0.1}, "window": "optimal", "budget": 0.5}, "limits per class play no part"),
    ({"target": "accuracy", "ood": FAR, "window": "optimal", "budget": 0.5}, "OOD rows play no part"),
    ({"target": "accuracy", "ood": FAR, "window": "optimal", "deviation": 0.1}, "OOD rows play no part"),
    ({"limits": {3: 0.1}}, "limits={3: 0.1}: expected class numbers"),
    ({"limits": {-1: 0.1}}, "limits={-1: 0.1}: expected class numbers"),
    ({"limits": {0: math.nan}}, "limits={0: nan}: expected class numbers"),
    ({"limits": {0: -0.1}}, "limits={0: -0.1}: expected class numbers"),
    ({"val": WRONG, "limits": {0: 0.0}, "window": "optimal"}, "no threshold reaches coverage@risk=0.1 with limits {0: 0.0}"),
    ({"error_costs": [1, 1]}, "error costs of shape"),
    ({"error_costs": [1, 1, -1], "window": "single", "budget": 0.5}, "error costs of shape"),
    ({"error_costs": [1, 1, 1], "target": "nll", "window": "single", "budget": 0.5}, "nll knows no errors"),
    ({"error_costs": [1, 1], "target": "accuracy", "window": "single", "deviation": 0.05}, "error_costs play no part in windows"),
    ({"error_costs": [1, 1], "target": "accuracy", "window": "single", "deviation": 0.05, "cal": CAL}, "error costs of shape"),
    ({"beta": 2.0}, "beta=2.0, alpha=None play no part without OOD rows"),
    ({"alpha": 0.5, "window": "optimal"}, "play no part without OOD rows"),
    ({"beta": -1.0, "ood": FAR}, "beta=-1.0"),
    ({"alpha": 1.0, "ood": FAR, "window": "optimal"}, "alpha=1.0"),
    ({"cal_ood": FAR}, "cal_ood without cal"),
    ({"window": "random", "cal": CAL}, "window='random' is a baseline and gets no certificate"),
    ({"ood": FAR, "cal": CAL, "target": "coverage@risk=0.4"}, "give cal_ood"),
    ({"delta": 0.0, "cal": CAL}, "delta"),
    ({"delta": 1.0, "cal": CAL, "window": "optimal"}, "delta"),
    ({"cal": drawn(2, labels=None)}, "no labels"),
    ({"cal": CAL.prefix(1)}, "not among"),
    ({"conformal": 0.05, "cal": CAL}, "conformal: it chooses among optimal windows"),
    ({"conformal": 0.05, "window": "optimal", "cal": CAL, "deviation": 0.1}, "conformal: it chooses among optimal windows"),
    ({"conformal": 0.05, "window": "optimal", "cal": CAL, "budget": 0.5}, "conformal: it chooses among optimal windows"),
    ({"conformal": 0.05, "window": "optimal", "cal": CAL, "tau": "shared"}, "tau='shared'"),
    ({"conformal": 0.05, "window": "optimal"}, "conformal control needs calibration rows"),
    ({"conformal": 0.0, "window": "optimal", "cal": CAL}, "alpha=0.0: expected"),
    ({"conformal": math.nan, "window": "optimal", "cal": CAL}, "alpha=nan: expected"),
    ({"conformal": 0.05, "window": "optimal", "cal": CAL, "val": VAL.prefix(1)}, "one stage has no window"),
    ({"ood": {"far": drawn(3, stages=1)}, "window": "optimal"}, "not among"),
    ({"seed": -1, "window": "random"}, "seed=-1, expected an integer ≥ 0"),
    ({"seed": 1.5, "window": "optimal", "budget": 0.5}, "seed=1.5, expected an integer ≥ 0"),
    ({"target": None}, "target None: expected text"),
    ({"target": "accuracy", "window": "optimal"}, "or window='optimal' within a budget"),
    ({"budget": "0.5", "window": "optimal"}, "budget='0.5': expected a number"),
    ({"val": drawn(1, costs=[1e308, 1e308]), "budget": 0.5, "window": "optimal"}, "too large to be added up"),
    ({"val": None}, "val is NoneType: expected Outputs"),
    ({"cal": np.zeros(3)}, "cal is ndarray: expected Outputs"),
    ({"cal": VAL}, "cal are the validation rows"),
    ({"cal": FEWER}, "cal has width=2, val 3: give outputs of the same models over the same classes"),
    ({"cal": drawn(2, classes=["c", "a", "b"]), "val": drawn(1, classes=["a", "b", "c"])}, "cal has classes=('c', 'a', 'b')"),
    ({"ood": FAR["far"]}, "ood is Outputs: expected a dict"),
    ({"ood": {"far": np.zeros(3)}}, "ood['far'] is ndarray: expected Outputs"),
    ({"ood": {"far": FEWER}, "window": "optimal"}, "ood['far'] has width=2, val 3"),
    ({"ood": FAR, "cal": CAL, "cal_ood": {"far": FEWER}}, "cal_ood['far'] has width=2, val 3"),
    ({"limits": [0.1]}, "limits is list: expected a dict"),
    ({"limits": {"a": 0.1}}, "limits={'a': 0.1}: expected class numbers"),
    ({"limits": {True: 0.1}}, "limits={True: 0.1}: expected class numbers"),
    ({"limits": {0: "0.1"}}, "limits={0: '0.1'}: expected class numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("asked", "message"), REFUSALS)
def test_refusals(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Policy.fit(**({"val": VAL, "target": "coverage@risk=0.1"} | asked))
    text = str(caught.value)
    assert message in text, text
    assert "\n" not in text, text


def test_outputs_of_other_kinds_and_values_are_refused() -> None:
    values = Outputs([np.zeros((4, 2))] * 2, kind="values", labels=np.zeros((4, 2)), costs=[1.0, 1.0])
    with pytest.raises(ValueError, match="is for classification"):
        Policy.fit(values, target="accuracy", window="single", deviation=0.1)
    for bad in (np.nan, np.inf):
        broken = [np.asarray(value).copy() for value in VAL.values]
        broken[1][..., 7, 0] = bad
        with pytest.raises(ValueError, match=r"stage1.*7"):
            Outputs(broken, labels=VAL.labels)


def test_impossible_probabilities_refuse_the_nll() -> None:
    probs = np.eye(3)[[0, 1, 2, 0]]
    val = Outputs([probs, probs], kind="probs", labels=[0, 1, 2, 1], costs=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"probability 0 in 1 rows, first \[3\]"):
        Policy.fit(val, target="nll", window="optimal", budget=0.6)


def test_limits_of_cost() -> None:
    assert cost_limit(None, None, None) is None
    assert cost_limit((1.0, 3.0), 0.5, None) == 2.0
    assert cost_limit((1.0, 3.0), None, 2.5) == 2.5
    aim = aim_of(VAL, "risk@coverage=0.8", budget=0.25, max_cost=None, width=0.2, seed=3)
    assert (aim.limit, aim.width, aim.seed, str(aim.goal)) == (1.0, 0.2, 3, "risk@coverage=0.8")


@pytest.mark.parametrize("window", ["paper", "optimal", "single"])
@pytest.mark.parametrize("target", ["coverage@risk=0.2", "risk@coverage=0.8", "fpr@tpr=0.9", "accuracy"])
def test_calibration_rows_give_a_certificate(window: Any, target: str) -> None:
    if (window, target) == ("paper", "accuracy"):
        return
    options = {"deviation": 0.05} if target == "accuracy" else {}
    policy = Policy.fit(VAL, target=target, window=window, cal=CAL, delta=0.1, **options)  # type: ignore[arg-type]
    assert policy.certificate is not None
    certificate = Certificate.from_dict(policy.certificate)
    assert certificate.delta == 0.1
    assert certificate.rows == CAL.n
    assert Policy.from_json(policy.to_json()) == policy
    if target.startswith("coverage"):
        assert certificate.feasible
        assert policy.sequence is not None
        assert tuple(stage.tau for stage in policy.stages) in policy.sequence
        assert simulate(policy, CAL).accepted.sum() == certificate.accepted


def test_nll_gets_no_certificate() -> None:
    assert Policy.fit(VAL, target="nll", window="single", budget=0.6, cal=CAL).certificate is None


def test_too_few_calibration_rows_are_infeasible_not_an_error() -> None:
    policy = Policy.fit(VAL, target="coverage@risk=0.01", window="optimal", cal=CAL.rows(np.arange(20)))
    assert policy.certificate is not None
    assert policy.certificate["feasible"] is False
    assert policy.certificate["needed"]


@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("target", ["coverage@risk=0.1", "accuracy", "fpr@tpr=0.9"])
def test_the_family_is_nested_and_ends_with_the_full_ensemble(stages: int, target: str) -> None:
    val = drawn(5, stages=stages)
    family = nested(val, aim_of(val, target, budget=None, max_cost=None))
    assert len(family) > 3
    assert [s.window for s in family[-1].stages[:-1]] == [(None, None)] * (stages - 1)
    assert len({tuple(s.tau for s in policy.stages) for policy in family}) == 1
    exits = Exits.under(family[0], val)
    on = [[s.goes_on(exits.uncertainty[k]) for k, s in enumerate(p.stages[:-1])] for p in family]
    for narrow, wide in itertools.pairwise(on):
        assert all((one <= other).all() for one, other in zip(narrow, wide, strict=True))
    np.testing.assert_array_equal(simulate(family[-1], val).probs, val.probs())


@pytest.mark.parametrize(("stages", "n", "alpha"), [(2, 60, 0.1), (3, 99, 0.05)])
def test_conformal_control_holds_on_average_over_draws(stages: int, n: int, alpha: float) -> None:
    """E D ≤ α over calibration draws, on rows that nothing was chosen on."""
    val, cal, test = drawn(6, 250, stages), drawn(7, 20_000, stages), drawn(8, 20_000, stages)
    rng, target = np.random.default_rng(0), "coverage@risk=0.1"
    family = nested(val, aim_of(val, target, budget=None, max_cost=None))
    assert Policy.fit(val, target=target, window="optimal", conformal=alpha, cal=cal) in [
        certify_deviation_policy(family, cal, alpha)
    ]
    exits = Exits.under(family[0], test)
    taus = [stage.tau for stage in family[0].stages]
    routes = [exits.stage([stage.window for stage in policy.stages[:-1]]) for policy in family]
    deviation = [deviations(exits, at, taus).mean() for at in routes]
    found, costs = [], []
    for _ in range(200):
        certificate = certify_deviation_policy(family, cal.rows(rng.choice(cal.n, n, replace=False)), alpha).certificate or {}
        at = len(family) - 1 if certificate["tau"] is None else int(certificate["tau"])
        found.append(deviation[at])
        costs.append(exits.spent[routes[at]].mean())
    assert np.mean(found) <= alpha + 3 * np.std(found) / 200**0.5
    assert np.mean(found) >= 0.2 * alpha
    assert np.mean(costs) < 0.9 * exits.spent[-1]


def test_conformal_control_that_cannot_hold_sends_all_on() -> None:
    policy = Policy.fit(VAL, target="coverage@risk=0.1", window="optimal", conformal=0.01, cal=CAL.rows(np.arange(50)))
    assert policy.certificate is not None
    assert policy.certificate["feasible"] is False
    assert policy.stages[0].window == (None, None)


def test_ood_rows_for_the_calibration_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="cal_ood without ood: the thresholds would know nothing of OOD rows, give both or none"):
        Policy.fit(VAL, target="coverage@risk=0.1", cal=CAL, cal_ood={"far": CAL})


def test_a_mix_is_certified_as_it_was_chosen_for() -> None:
    options: dict[str, Any] = {"target": "coverage@risk=0.4", "window": "optimal", "budget": 0.6, "cal": CAL, "beta": 0.5}
    few, many = {"far": drawn(4, n=100, ood=True)}, {"far": drawn(5, n=900, ood=True)}
    fitted = Policy.fit(VAL, ood=few, cal_ood=many, **options)
    assert fitted.certificate is not None
    assert (fitted.certificate["alpha"], fitted.certificate["beta"]) == (0.75, 0.5)  # 300 rows and 100, as in validation
    assert fitted == Policy.fit(VAL, ood=few, cal_ood=many, alpha=0.75, **options)
