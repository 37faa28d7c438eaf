"""Tasks: figures against their definitions, row by row; the costs of errors; what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.cascade.exits import Exits
from quorate.cascade.target import parse
from quorate.cascade.task import check_same_chain, error_losses, make_task

pytestmark = pytest.mark.deciding


def drawn(seed: int, n: int = 30, count: int = 3, classes: int = 3, labelled: bool = True) -> Exits:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, n)
    label = np.where(rng.random((count, n)) < 0.6, truth, rng.integers(0, classes, (count, n)))
    costs = tuple(float(c) for c in rng.integers(1, 5, count))
    names = tuple(f"s{k}" for k in range(count))
    return Exits(names, rng.integers(0, 6, (count, n)) / 4, label, costs, truth if labelled else None, rng.random((count, n)))


def spec() -> tuple[Exits, Exits]:
    """Uncertainty 1 − certainty of four ID rows, the second wrong, and four OOD rows."""
    inside = Exits(("a",), 1 - np.array([[0.9, 0.8, 0.7, 0.4]]), np.array([[0, 1, 0, 0]]), (1.0,), np.zeros(4, np.int64))
    return inside, Exits(("a",), 1 - np.array([[0.85, 0.6, 0.3, 0.2]]), np.zeros((1, 4), np.int64), (1.0,))


@pytest.mark.parametrize(
    ("beta", "alpha", "risk"), [(1, None, 0.5), (0.5, None, 0.375), (2, None, 0.75), (1, 0.8, 0.25 / 0.65), (1, 0.5, 0.5)]
)
def test_scod_by_hand(beta: float, alpha: float | None, risk: float) -> None:
    inside, outside = spec()
    for goal in ("coverage@risk=0.1", "risk@coverage=0.75"):
        task = make_task(parse(goal), inside, {"ood": outside}, None, beta, alpha)
        exit_at = np.zeros(8, np.int64)
        found = task.figures(exit_at, task.exits.accepted(exit_at, [0.3 + 1e-9]))
        assert found.coverage == pytest.approx(0.75)
        assert found.risk == pytest.approx(risk, abs=1e-12)
        assert found.cost == pytest.approx(1)
        assert found.figure == (found.coverage if goal.startswith("coverage") else found.risk)
    assert round(0.25 / 0.65, 4) == 0.3846


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["coverage@risk=0.1", "risk@coverage=0.5", "fpr@tpr=0.9", "accuracy", "nll"]),
    st.booleans(),
)
def test_figures_are_their_definitions(seed: int, target: str, with_ood: bool) -> None:
    rng = np.random.default_rng(seed)
    n, m = (int(x) for x in rng.integers(1, 12, 2))
    goal, inside, count = parse(target), drawn(seed, n), 3
    ood = goal.figure == "fpr" or (with_ood and goal.level is not None)
    outside = {"far": drawn(seed + 1, m, labelled=False), "near": drawn(seed + 2, 2, labelled=False)} if ood else None
    costs = rng.integers(0, 4, (3, 3)).astype(float) if goal.figure in ("coverage", "risk", "accuracy") and seed % 2 else None
    beta, alpha = 0.5 + seed % 3, 0.3 if seed % 5 else None
    task = make_task(goal, inside, outside, costs, beta, alpha)
    total = n + (m + 2 if ood else 0)
    exit_at, accepted = rng.integers(0, count, total), rng.random(total) < 0.7
    accepted |= goal.level is None
    found = task.figures(exit_at, accepted)
    cover = wrong = below = cost = 0.0
    share = (n / total if alpha is None else alpha) if ood and goal.figure != "fpr" else 1.0
    for row in range(total):
        k, is_id = int(exit_at[row]), row < n
        spent = sum(inside.costs[: k + 1])
        if goal.figure == "fpr":
            cost += is_id * spent / n
            cover += is_id * accepted[row] / n
            wrong += (not is_id) * accepted[row] / (m + 2)
            continue
        weight = share / n if is_id else (1 - share) / (m + 2)
        cost += weight * spent
        if not accepted[row]:
            continue
        cover += is_id / n
        below += weight
        if not is_id:
            wrong += weight * beta
        elif goal.figure == "nll":
            assert inside.loss is not None
            wrong += weight * inside.loss[k, row]
        else:
            assert inside.truth is not None
            said, true = inside.label[k, row], inside.truth[row]
            wrong += weight * (float(said != true) if costs is None else costs[true, said])
    risk = wrong if goal.figure in ("fpr", "accuracy", "nll") else wrong / below if below else math.nan
    figure = {"coverage": cover, "accuracy": 1 - risk}.get(goal.figure, risk)
    np.testing.assert_allclose(found, (figure, cover, risk, cost), rtol=1e-12, atol=1e-15)
    assert task.inside == n
    assert task.forced == (goal.level is None)


def test_the_order_and_number_of_ood_sets_change_nothing() -> None:
    inside, far, near = drawn(0), drawn(1, 8), drawn(2, 5)
    exit_at = np.zeros(43, np.int64)
    figures = []
    for sets in ({"far": far, "near": near}, {"near": near, "far": far}, {"all": Exits.concat([near, far])}):
        task = make_task(parse("coverage@risk=0.2"), inside, sets)
        figures.append(task.figures(exit_at, task.exits.accepted(exit_at, [0.5, None, None])))
    np.testing.assert_allclose(figures[1:], figures[:1] * 2, rtol=1e-12)


def test_which_figure_is_better() -> None:
    exits = drawn(3)
    for target, up in [("coverage@risk=0.1", True), ("accuracy", True), ("risk@coverage=0.5", False), ("nll", False)]:
        task = make_task(parse(target), exits)
        assert task.better(0.6, 0.5) is up
        assert task.better(0.5, 0.6) is not up
        assert not task.better(0.5, 0.5)
        assert not task.better(math.nan, 0.5)


def test_some_rows_keep_the_weights_sums() -> None:
    task = make_task(parse("coverage@risk=0.1"), drawn(4, 20), {"ood": drawn(5, 10)}, None, 2.0, 0.7)
    for index in (np.arange(0, 30, 2), np.arange(30) % 2 == 0, np.arange(28, -1, -2)):
        part = task.rows(index)
        assert part.exits.n == 15
        assert part.inside == 10
        for name in ("cover", "weight", "traffic"):
            assert getattr(part, name).sum() == pytest.approx(getattr(task, name).sum())
        np.testing.assert_array_equal(part.loss, task.loss[:, ::2])
    assert task.rows(np.arange(20, 30)).cover.sum() == 0  # nothing to weigh up


def test_costs_of_errors_by_hand() -> None:
    exits = Exits(("a",), np.zeros((1, 4)), np.array([[0, 1, 2, 0]]), (1.0,), np.array([0, 2, 2, 1]))
    np.testing.assert_array_equal(error_losses(exits), [[0, 1, 0, 1]])
    np.testing.assert_array_equal(error_losses(exits, [1, 5, 7]), [[0, 7, 0, 5]])
    table = [[0.5, 1, 2], [3, 0, 4], [5, 6, 0.25]]  # what is right may cost too
    np.testing.assert_array_equal(error_losses(exits, table), [[0.5, 6, 0.25, 3]])
    np.testing.assert_array_equal(error_losses(exits, [1, 5, 7, 9]), [[0, 7, 0, 5]])  # a class that is not in these rows


@pytest.mark.parametrize(
    "costs", [[1, 2], [[1, 2, 3]], np.ones((3, 3, 3)), 2.0, [1, -1, 1], [1, math.nan, 1], [1, math.inf, 1], [[0, 1], [1, 0]], []]
)
def test_costs_that_are_refused(costs: Any) -> None:
    with pytest.raises(ValueError, match=r"^error costs of shape .*: expected finite numbers ≥ 0.* at least 3 classes$"):
        error_losses(replace(drawn(6), truth=np.full(30, 2)), costs)


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("fpr@tpr=0.9", {}, "needs OOD rows"),
    ("fpr@tpr=0.9", {"outside": {}}, "needs OOD rows"),
    ("accuracy", {"outside": {"ood": drawn(8)}}, "accepts everything, OOD rows play no part"),
    ("nll", {"outside": {"ood": drawn(8)}}, "accepts everything, OOD rows play no part"),
    ("nll", {"error_costs": [1, 1, 1]}, "nll knows no errors"),
    ("nll", {"inside": replace(drawn(8), loss=None)}, "nll needs scores of every class and labels"),
    ("accuracy", {"inside": drawn(8, labelled=False)}, "these rows have no labels"),
    ("coverage@risk=0.1", {"outside": {"ood": drawn(8)}, "beta": -1.0}, "beta=-1.0"),
    ("coverage@risk=0.1", {"outside": {"ood": drawn(8)}, "beta": math.nan}, "beta=nan"),
    ("coverage@risk=0.1", {"outside": {"ood": drawn(8)}, "alpha": 0.0}, "alpha=0.0"),
    ("coverage@risk=0.1", {"outside": {"ood": drawn(8)}, "alpha": 1.0}, "alpha=1.0"),
    ("fpr@tpr=0.9", {"outside": {"ood": drawn(8)}, "error_costs": [1, 1, 1]}, "fpr@tpr=0.9 knows no errors"),
]


@pytest.mark.parametrize(("target", "asked", "message"), REFUSALS)
def test_refusals(target: str, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_task(parse(target), **({"inside": drawn(7)} | asked))
    assert "\n" not in str(caught.value)


def test_an_infinite_nll_is_refused_with_its_rows() -> None:
    exits = drawn(9)
    assert exits.loss is not None
    loss = exits.loss.copy()
    loss[1, 4] = math.inf
    with pytest.raises(
        ValueError, match=r"^the true class has probability 0 in 1 rows, first \[4\], so that the NLL is infinite"
    ):
        make_task(parse("nll"), replace(exits, loss=loss))


def test_chains_must_be_the_same() -> None:
    check_same_chain([drawn(0), drawn(1)])
    with pytest.raises(ValueError, match="expected the same stages for all rows"):
        check_same_chain([drawn(0), drawn(0, count=2)])


def test_ood_rows_of_another_chain_are_refused() -> None:
    one, other = (
        Exits((name,), np.array([[0.1, 0.2]]), np.zeros((1, 2), np.int64), (1.0,), np.zeros(2, np.int64)) for name in ("a", "b")
    )
    with pytest.raises(ValueError, match="expected the same stages for all rows"):
        make_task(parse("fpr@tpr=0.9"), one, {"far": other})
