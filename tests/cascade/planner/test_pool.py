"""Members matched by their rows; every pool that doesn't go together refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from quorate.cascade.planner import join_pool
from quorate.cascade.planner.pool import check_like, read_pool
from quorate.combination import softmax
from quorate.outputs import Outputs

pytestmark = pytest.mark.deciding
LABELS = np.array([0, 1, 2, 1])


def outputs(seed: int = 0, stages: int = 1, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    given: dict[str, Any] = {"labels": LABELS, "costs": [1.0 + k for k in range(stages)], "ids": [10, 11, 12, 13]} | options
    values = [rng.normal(size=(4, 3)) for _ in range(stages)]
    if given.get("kind") == "probs":
        values = [softmax(v) for v in values]
    if given.get("kind") == "top1":
        values = [(v.argmax(1), softmax(v).max(1)) for v in values]  # type: ignore[misc]
    return Outputs(values, **given)


def test_members_are_matched_by_ids() -> None:
    a, b = outputs(1), outputs(2)
    pool = read_pool({"a": a, "b": b.rows([2, 0, 3, 1])})
    assert pool.names == ("a", "b")
    assert pool.costs == (1.0, 1.0)
    assert pool.after == (None, None)
    assert np.array_equal(pool.outputs.values[1], b.values[0])
    assert np.array_equal(pool.outputs.ids, a.ids)
    assert np.array_equal(join_pool({"b": b, "a": a}).values[0], b.values[0])


def test_stages_become_members_and_dependent_ones_keep_their_order() -> None:
    pool = read_pool({"a": outputs(1), "exits": outputs(2, 3, ordered=True), "free": outputs(3, 2)})
    assert pool.names == ("a", "exits/stage0", "exits/stage1", "exits/stage2", "free/stage0", "free/stage1")
    assert pool.after == (None, None, 1, 2, None, None)
    assert pool.costs == (1.0, 1.0, 2.0, 3.0, 1.0, 2.0)
    chain = pool.chain([4, 0])
    assert chain.names == ("free/stage0", "a")
    assert chain.costs == (1.0, 1.0)
    assert not chain.ordered


def test_logits_beside_probabilities_are_softmaxed() -> None:
    a, b = outputs(1), outputs(2, kind="probs")
    pool = read_pool({"a": a, "b": b})
    assert pool.outputs.kind == "probs"
    assert pool.kinds == ("logits", None)
    assert np.allclose(pool.outputs.values[0], softmax(a.values[0]))
    assert np.array_equal(pool.outputs.values[1], b.values[0])


def test_kind_and_combination_are_kept_where_all_agree() -> None:
    assert read_pool({"a": outputs(1, combine="logits"), "b": outputs(2, combine="logits")}).outputs.combine == "logits"
    assert read_pool({"a": outputs(1, kind="top1"), "b": outputs(2, kind="top1")}).outputs.combine == "last"
    assert read_pool({"a": outputs(1, costs=None)}).outputs.costs is None


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({}, "pool is {}: expected a dict from at least one name to Outputs"),
        ([1], "pool is list: expected a dict"),
        ({"a": 1}, "{'a': int}: expected a dict"),
        ({"a": outputs(), "b": outputs(costs=None)}, "'b' has no costs: give costs="),
        ({"a": outputs(), "b": outputs(kind="top1")}, "'b' gives only its top class, 'a' gives logits: give top1 for all"),
        ({"a": outputs(), "b": outputs(combine="logits")}, "'a' is combined by probs, 'b' by logits"),
        ({"a": outputs(), "b": outputs(classes=["x", "y", "z"])}, "'a' has classes None, 'b' has ('x', 'y', 'z')"),
        ({"a": outputs(), "b": outputs(ids=["10", "11", "12", "13"])}, "row ids of type int64, 'b' of type"),
        (
            {"a": outputs(), "b": outputs(ids=[10, 11, 98, 99])},
            "2 rows of 'a' are missing from 'b' and 2 the other way round: give the 2 common ones",
        ),
        ({"a": outputs(), "b": outputs().rows([0, 1, 2])}, "1 rows of 'a' are missing from 'b' and 0 the other way round"),
        ({"a": outputs(), "b": outputs(labels=None)}, "'a' has labels, 'b' has none"),
        ({"a": outputs(labels=None), "b": outputs()}, "'b' has labels, 'a' has none"),
        ({"a": outputs(), "b": outputs(labels=[0, 1, 2, 2])}, "'a' and 'b' have different labels for 1 rows"),
        ({"a": outputs(1, 2), "a/stage1": outputs()}, "expected each name once"),
        ({"a": Outputs([np.ones((4, 1))], kind="values", costs=[1.0])}, "'a' holds regression outputs (values)"),
        (
            {"a": outputs(), "b": Outputs([np.ones((4, 5))], labels=LABELS, ids=[10, 11, 12, 13], costs=[1.0])},
            "'a' has width 3, 'b' has 5",
        ),
    ],
)
def test_pools_that_do_not_go_together(pool: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_pool(pool, "pool", costs=True)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"a": outputs()}, "cal has members ['a'], the pool has ['a', 'b']"),
        ({"a": outputs(kind="probs"), "b": outputs(kind="probs")}, "cal has kind='probs', the pool 'logits'"),
    ],
)
def test_other_rows_need_the_same_members(other: dict[str, Outputs], message: str) -> None:
    pool = read_pool({"a": outputs(), "b": outputs(1)})
    check_like("cal", read_pool({"a": outputs(4), "b": outputs(5)}), pool)
    with pytest.raises(ValueError) as error:
        check_like("cal", read_pool(other), pool)
    assert message in str(error.value)


def test_other_rows_need_logits_of_the_same_members() -> None:
    pool = read_pool({"a": outputs(), "b": outputs(1, kind="probs")})
    with pytest.raises(ValueError, match="cal gives logits for other members than the pool"):
        check_like("cal", read_pool({"a": outputs(kind="probs"), "b": outputs(1)}), pool)
