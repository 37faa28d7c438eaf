"""Bundles of programs that exist already: kinds, costs, watch, golden outputs and class names against what went in, and every refusal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny_onnx
from quorate.cascade import Policy, simulate
from quorate.cascade.drift import Watch
from quorate.cascade.policy import StagePolicy
from quorate.outputs import Outputs
from quorate.runtime import Program, Sparse, load_bundle
from quorate.runtime.assembling import save_programs
from quorate.runtime.members import onnx_member

pytestmark = pytest.mark.deciding

RNG = np.random.default_rng(9)
N, F, C = 30, 4, 3
WEIGHTS = [RNG.normal(size=(C, F)).astype(np.float32) for _ in range(2)]
X = RNG.normal(size=(N, F)).astype(np.float32)
Y = RNG.integers(0, C, N)
OUTPUTS = Outputs([X @ w.T for w in WEIGHTS], labels=Y, names=["a", "b"], classes=["x", "y", "z"], costs=[12, 12])
POLICY = Policy.of(OUTPUTS, [(0.3, None)], [0.1, 0.4])


def programs(folder: Path, macs: float | None = 12, batch: int | str = "n") -> list[Program]:
    made = []
    for name, weight in zip("ab", WEIGHTS, strict=True):
        path = folder / f"{name}.onnx"
        path.write_bytes(tiny_onnx.linear(weight, batch=batch))
        made.append(onnx_member(path, macs=macs))
    return made


def test_everything_that_goes_in_is_there(tmp_path: Path) -> None:
    manifest = save_programs(
        programs(tmp_path), POLICY, tmp_path / "b", example=X[:5], name="n", validation=OUTPUTS, test=OUTPUTS,
        preprocessing={"crop": 8}, about={"who": "me"}, rtol=0.01, atol=0.02,
    )  # fmt: skip
    runtime = load_bundle(tmp_path / "b", digest=manifest.digest)
    found, expected = runtime.predict(X), simulate(POLICY, OUTPUTS)
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_allclose(found.probs, expected.probs, atol=1e-6)
    assert (manifest.policy, manifest.classes, manifest.name) == (POLICY, ("x", "y", "z"), "n")
    assert manifest.costs == {"unit": "MACs", "total": 24.0}
    assert manifest.watch == Watch.of(POLICY, OUTPUTS).to_dict()
    assert (manifest.golden.rows, manifest.golden.rtol, manifest.golden.atol) == (5, 0.01, 0.02)
    assert manifest.preprocessing == {"crop": 8}
    assert manifest.provenance["who"] == "me"
    assert set(manifest.provenance["versions"]) >= {"quorate", "python", "numpy"}


def test_without_a_policy(tmp_path: Path) -> None:
    full = save_programs(
        programs(tmp_path, None), None, tmp_path / "b", example=X, kind="logits", combine="logits", test=_mean_logits()
    )
    assert full.policy is not None
    np.testing.assert_allclose(load_bundle(tmp_path / "b").predict(X).probs, _mean_logits().probs(), atol=1e-6)
    assert full.costs == {"unit": "unknown", "total": 0.0}
    assert (full.name, full.watch, full.classes) == ("b", None, ("x", "y", "z"))
    last = save_programs(programs(tmp_path), None, tmp_path / "b", example=X, kind="logits", combine="last")
    assert last.policy is not None
    assert [stage.join for stage in last.policy.stages] == ["replace", "replace"]
    gaussian = save_programs(programs(tmp_path), None, tmp_path / "b", example=X, kind="values")
    assert gaussian.policy is None


def _mean_logits() -> Outputs:
    return Outputs(OUTPUTS.values, combine="logits", labels=Y, names=["a", "b"], classes=["x", "y", "z"])


def test_one_unknown_cost_makes_all_the_policys(tmp_path: Path) -> None:
    first, second = programs(tmp_path)
    second = replace(second, ports=replace(second.ports, macs=None))
    found = save_programs([first, second], POLICY, tmp_path / "b", example=X)
    assert [stage.ports.macs for stage in found.stages] == [None, None]
    assert found.costs == {"unit": "units of the policy", "total": 24.0}


def refusing(message: str, folder: Path, made: Any = None, policy: Policy | None = POLICY, **options: Any) -> None:
    given = programs(folder) if made is None else made
    with pytest.raises(ValueError, match=message) as refusal:
        save_programs(given, policy, folder / "b", **({"example": X} | options))
    assert "\n" not in str(refusal.value)
    assert not (folder / "b").exists()


def test_what_makes_no_bundle(tmp_path: Path) -> None:
    made = programs(tmp_path)
    refusing(r"programs are \['b', 'a'\]: expected the policy's stages in its order, \['a', 'b'\]", tmp_path, made[::-1])
    refusing(r"programs \[\]: expected at least one", tmp_path, [], None, kind="logits")
    ticket = replace(made[0], sparse={"w": Sparse(np.ones(1, np.float32), np.ones((1,), bool))})
    refusing("each with all of its weights inside", tmp_path, [ticket, made[1]])
    refusing("programs don't say what they give, expected one of logits", tmp_path, made, None)
    refusing("programs don't say what they give", tmp_path, made, None, kind="logits", combine="sum")
    refusing("kind='probs': the policy has 'logits', leave it out", tmp_path, made, kind="probs")
    refusing("combine='last': the policy has 'probs', leave it out", tmp_path, made, combine="last")
    top1 = Policy((StagePolicy("a", "replace"), StagePolicy("b", "replace")), kind="top1", combine="last")
    refusing("the policy is over top1, labels alone", tmp_path, made, top1)
    refusing(r"the example has shape \(0, 4\): expected some rows", tmp_path, made, example=X[:0])
    refusing(r"stage 'a' takes float32 \(B, 4\), the example is float64 \(30, 4\)", tmp_path, made, example=X.astype(float))
    refusing(r"stage 'a' takes float32 \(B, 4\), the example is float32 \(30, 3\)", tmp_path, made, example=X[:, :3])
    refusing("stage 'a' gives NaN or infinite values on the example", tmp_path, made, example=X * np.float32(np.inf))
    other = replace_names(OUTPUTS, ["b", "a"])
    for what in ("validation", "test"):
        refusing(r"Outputs are of \['b', 'a'\]: expected those of the bundle's stages in order", tmp_path, made, **{what: other})
    for what in ("validation", "test"):
        numbers = Outputs(OUTPUTS.values, kind="values", names=["a", "b"])
        refusing("Outputs hold values combined by probs, the bundle logits by probs", tmp_path, made, **{what: numbers})
    gaussian = Outputs([np.zeros((1, 30, 4))] * 2, kind="gaussian", names=["a", "b"])
    refusing("Outputs hold gaussian", tmp_path, made, None, kind="values", test=gaussian)
    refusing("classes has 2 names for 3 outputs", tmp_path, made, classes=["x", "y"])
    (tmp_path / "b.onnx").write_bytes(tiny_onnx.linear(RNG.normal(size=(5, F))))
    wide = [made[0], onnx_member(tmp_path / "b.onnx")]
    refusing(r"the stages give \{'a': 3, 'b': 5\} outputs a row: expected as many from each", tmp_path, wide)


def replace_names(outputs: Outputs, names: list[str]) -> Outputs:
    return Outputs(outputs.values, labels=outputs.labels, names=names)
