"""Outputs of stages of arrays: against each stage run by hand in any batches, what is carried, and every refusal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cascade import Cascade, Policy, simulate
from quorate.combination import softmax
from quorate.runtime.collecting import collect

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(3)
X = RNG.normal(size=(11, 4)).astype(np.float32)
FIRST, SECOND = (RNG.normal(size=(m, 4, 3)).astype(np.float32) for m in (2, 1))


class Linear:
    """x W per member; it carries x², which a later stage adds up, rows apart."""

    drops: tuple[str, ...] = ()

    def __init__(self, name: str, weights: np.ndarray, reads: tuple[str, ...] = (), macs: float | None = None) -> None:
        self.name, self.weights, self.reads, self.macs = name, weights, reads, macs
        self.writes = () if reads else ("square",)
        self.seen: list[int] = []

    def __call__(self, x: Any, carry: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.seen.append(len(x))
        assert set(carry) == set(self.reads)
        more = carry["square"].sum(-1, keepdims=True) if self.reads else 0
        return x @ self.weights + more, {} if self.reads else {"square": x * x}


def chain() -> list[Linear]:
    return [Linear("a", FIRST, macs=12), Linear("b", SECOND, ("square",), macs=24)]


@pytest.mark.parametrize("batch_size", [1, 3, 11, 500])
def test_every_row_of_every_stage_in_any_batches(batch_size: int) -> None:
    stages = chain()
    told: list[tuple[int, int]] = []
    found = collect(
        stages,
        X,
        np.arange(11) % 3,
        kind="logits",
        combine="logits",
        ids=np.arange(50, 61),
        classes=["x", "y", "z"],
        batch_size=batch_size,
        progress=lambda done, total: told.append((done, total)),
    )
    np.testing.assert_allclose(found.values[0], X @ FIRST, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.values[1], X @ SECOND + np.square(X).sum(-1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert (found.names, found.kind, found.combine, found.ordered, found.costs) == (
        ("a", "b"),
        "logits",
        "logits",
        True,
        (12, 24),
    )
    assert found.classes == ("x", "y", "z")
    assert found.ids.tolist() == list(range(50, 61))
    assert found.truth().tolist() == [k % 3 for k in range(11)]
    assert max(stages[0].seen) <= batch_size
    assert sum(stages[1].seen) == 11
    assert told[-1] == (11, 11)
    assert [done for done, _ in told] == [min(batch_size * (k + 1), 11) for k in range(len(told))]


def test_what_it_stores_decides_as_the_executed_cascade() -> None:
    outputs = collect(chain(), X, kind="logits")
    policy = Policy.of(outputs, [(0.3, None)])
    executed, simulated = Cascade(chain(), policy).predict(X), simulate(policy, outputs)
    np.testing.assert_array_equal(executed.stage, simulated.stage)
    np.testing.assert_allclose(executed.uncertainty, simulated.uncertainty, rtol=1e-5, atol=1e-6)
    assert 0 < simulated.stage.sum() < 11


def test_inputs_may_be_mapped_and_costs_given(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    found = collect(chain(), mapped, kind="logits", costs=[5, 7.5], batch_size=4)
    assert found.costs == (5.0, 7.5)
    assert found.ids.tolist() == list(range(11))
    assert found.labels is None
    unknown = [Linear("a", FIRST, macs=1), Linear("b", SECOND)]
    assert collect(unknown, X, kind="logits").costs is None
    assert not collect(unknown, X, kind="logits").ordered


@pytest.mark.parametrize("kind", ["values", "gaussian"])
def test_regressions_keep_their_targets(kind: Any) -> None:
    stage = Linear("r", RNG.normal(size=(3, 4, 2)).astype(np.float64))
    y = RNG.normal(size=(11, 2 if kind == "values" else 1))
    found = collect([stage], X, y, kind=kind, combine="last", batch_size=5)
    assert (found.kind, found.combine, found.values[0].shape) == (kind, "last", (3, 11, 2))  # type: ignore[union-attr]
    np.testing.assert_array_equal(found.truth(), y)


def test_probabilities_are_checked() -> None:
    def stage(x: Any, _: Any) -> tuple[Any, dict[str, Any]]:
        return softmax(x)[None], {}

    for key, value in {"name": "p", "reads": (), "writes": (), "drops": (), "macs": None}.items():
        setattr(stage, key, value)
    found = collect([stage], X, kind="probs")  # type: ignore[list-item]
    np.testing.assert_allclose(found.probs(), softmax(X))
    with pytest.raises(ValueError, match="is not probabilities in rows 0, 1, 2, 3, 4"):
        collect([Linear("a", FIRST)], X, kind="probs")


def test_logits_among_probabilities() -> None:
    first, second = chain()
    found = collect([first, second], X, kind="probs", kinds=["logits", "logits"], batch_size=4)
    np.testing.assert_allclose(found.values[0], softmax(X @ FIRST), rtol=1e-5, atol=1e-6)
    assert found.kind == "probs"
    for kinds in (["logits"], ["probs", "values"]):
        refusing("expected 'probs' of each, or 'logits' among 'probs'", kind="probs", kinds=kinds)
    refusing("expected 'logits' of each", kinds=["probs", "logits"])


def refusing(message: str, stages: Any = None, x: Any = X, labels: Any = None, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        collect(chain() if stages is None else stages, x, labels, **({"kind": "logits"} | options))
    assert "\n" not in str(refusal.value)


def test_what_cannot_be_collected() -> None:
    refusing("batch_size=0: expected at least 1", batch_size=0)
    for options in ({"kind": "top1"}, {"kind": "logit"}, {"combine": "mean"}):
        refusing("expected stages that give logits, probs, values or gaussian, combined by probs, logits, last", **options)
    refusing("there are no stages", [])
    refusing(r"inputs are ndarray of shape \(0, 4\): expected an array", x=X[:0])
    refusing(r"inputs are list of shape \(\): expected an array", x=[[1.0]])
    refusing(r"labels have shape \(3,\) for 11 rows", labels=[0, 1, 2])
    refusing("ids must differ", ids=[1] * 11)
    refusing(r"costs \[1\]: expected 2 finite numbers", costs=[1])
    refusing(r"stage 'b' reads \['square'\], which no earlier stage writes", chain()[1:])
    refusing("labels out of range in rows 10", labels=[*[0] * 10, 3])


def test_stages_that_break_off() -> None:
    bad = X.copy()
    bad[7, 2] = np.nan
    refusing("stage 'a' has NaN or infinite values in rows 17", x=bad, ids=np.arange(10, 21), batch_size=2)

    class Growing(Linear):
        def __call__(self, x: Any, carry: Any) -> tuple[Any, dict[str, Any]]:
            members, written = super().__call__(x, carry)
            return members.repeat(len(self.seen), 0), written

    refusing(r"stage 'g' gave float32 \(4, 4, 3\) from row 4 on, float32 \(2, B, 3\) before", [Growing("g", FIRST)], batch_size=4)

    class Short(Linear):
        def __call__(self, x: Any, carry: Any) -> tuple[Any, dict[str, Any]]:
            members, written = super().__call__(x, carry)
            return members[:, 1:], written

    refusing(r"stage 's' has shape \(2, 10, 3\): expected \(members, 11, classes\)", [Short("s", FIRST)])
