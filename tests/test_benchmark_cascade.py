"""The benchmarks of cascades: splits, rivals, what is simulated, and a small run of every script on made-up outputs."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

import torch
from torch import nn

import quorate
from quorate import metrics
from quorate.cascade import Policy, simulate
from quorate.cascade.target import parse
from quorate.outputs import Outputs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "record", "tables", "deciding", "packed_speed", "anytime_overhead", "cascade_pools", "cascade_rivals", "cascade_imagenet",
    "cascade_frugal", "cascade_fashion", "cascade_executed", "cascade_windows", "cascade_scale", "cascade_planner", "cascade_guarantee",
)  # fmt: skip
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """A benchmark by name; threads and results are the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    threads = torch.get_num_threads()
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def written(tmp_path: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return found


def logits(rng: np.random.Generator, labels: NDArray, members: int, strength: float = 4.0) -> NDArray[np.float32]:
    """Members (M, N, 4) that agree mostly."""
    signal = strength * np.eye(4)[labels] + rng.normal(size=(len(labels), 4))
    return (signal + rng.normal(size=(members, len(labels), 4))).astype(np.float32)


def top1(scores: NDArray[np.float32]) -> tuple[NDArray, NDArray]:
    """Class and probability (K, N) of logits (K, N, C)."""
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    return scores.argmax(-1), (probs / probs.sum(-1, keepdims=True)).max(-1)


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A folder like that of the ImageNet predictions: the four networks that are compared in pairs, and one whose cost nobody knows."""
    rng = np.random.default_rng(0)
    names = [
        "timm_mobilenetv3_large_100", "timm_efficientnet_b3a", "timm_mixnet_m", "timm_efficientnet_b1", "timm_gluon_senet154",
        "timm_resnet34", "timm_resnext50_32x4d", "unknown",
    ]  # fmt: skip
    label = rng.integers(0, 4, 1500)
    pred, conf = top1(np.concatenate([logits(rng, label, 1, 2.5 + 0.3 * k) for k in range(len(names))]))
    folder = tmp_path / "networks"
    folder.mkdir()
    np.savez(
        folder / "imagenet_val_top1_14models.npz", models=np.array(names), pred=pred.astype(np.uint16),
        conf=conf.astype(np.float32), label=label.astype(np.uint16),
    )  # fmt: skip
    costs = [0.23, 2.01, 0.36, 0.71, 20.77, 3.67, 4.26, ""]
    lines = ["model,gmacs", *(f"{name},{cost}" for name, cost in zip(names, costs, strict=True)), "other,4.1"]
    (folder / "model_costs.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Run folders deep-0, wide1.5-0 and wide4-0, and an unfinished deep-1."""
    folder = tmp_path / "runs"
    for name, members, macs in (("deep-0", 4, 100.0), ("wide1.5-0", 1, 150.0), ("wide4-0", 1, 400.0), ("deep-1", 4, 100.0)):
        run = folder / name
        (run / "outputs").mkdir(parents=True)
        status = "running" if name == "deep-1" else "finished"
        (run / "run.json").write_text(json.dumps({"format": "quorate-run/1", "status": status, "data": {"name": "toy"}}))
        rng = np.random.default_rng(1)
        names = [f"member{m}" for m in range(members)]
        for part in ("validation", "calibration", "test", "ood-kmnist", "ood-notmnist"):
            labels = rng.integers(0, 4, 1200)
            values = logits(rng, labels, members, 1.0 if part.startswith("ood") else 5.0)
            known = None if part.startswith("ood") else labels
            Outputs(list(values), labels=known, names=names, costs=[macs] * members).save(run / "outputs" / f"{part}.safetensors")
    return folder


def services(rows: int = 400) -> Outputs:
    """Three models, each dearer and better than the one before."""
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 4, rows)
    pred, conf = top1(np.concatenate([logits(rng, labels, 1, strength) for strength in (2.0, 3.0, 4.0)]))
    return Outputs([*zip(pred, conf, strict=True)], kind="top1", labels=labels, names=["a", "b", "c"], costs=[1.0, 3.0, 10.0])


# — pools and splits —


def test_a_split_has_every_row_once(load: Load) -> None:
    pools = load("cascade_pools")
    parts, again, other = (pools.split(services(), seed) for seed in (3, 3, 4))
    assert [part.n for part in parts] == [80, 120, 200]
    np.testing.assert_array_equal(np.sort(np.concatenate([part.ids for part in parts])), np.arange(400))
    np.testing.assert_array_equal(parts.test.ids, again.test.ids)
    assert (parts.test.ids != other.test.ids).any()


def test_networks_without_a_known_cost_are_left_out(load: Load, networks: Path) -> None:
    found = load("cascade_pools").imagenet(networks)
    assert "unknown" not in found.names
    assert dict(zip(found.names, found.costs, strict=True))["timm_efficientnet_b3a"] == 2.01
    assert found.kind == "top1"


def test_a_chain_keeps_rows_and_costs_in_its_own_order(load: Load) -> None:
    pools, outputs = load("cascade_pools"), services()
    found = pools.chain(outputs, ["c", "a"])
    assert (found.names, found.costs) == (("c", "a"), (10.0, 1.0))
    np.testing.assert_array_equal(found.values[0][0], outputs.values[2][0])
    assert list(pools.pool(outputs)) == ["a", "b", "c"]


def test_runs_are_those_of_complete_seeds(load: Load, runs: Path) -> None:
    pools = load("cascade_pools")
    assert list(pools.runs(runs)) == [0]
    with pytest.raises(ValueError, match=r"has no finished runs deep-1, wide1\.5-1, wide4-1: train them first$"):
        pools.runs(runs, [1])
    with pytest.raises(ValueError, match=r"has no seed with finished runs deep-SEED"):
        pools.runs(runs / "deep-0")
    half, other = pools.outside(pools.runs(runs)[0]["deep"])
    assert not set(half["kmnist"].ids) & set(other["kmnist"].ids)


# — rivals —


def test_the_scanned_figure_is_that_of_the_metrics(load: Load) -> None:
    figure, rng = load("cascade_rivals").figure, np.random.default_rng(0)
    for risk in (0.0, 0.05, 0.3):
        u, errors = rng.random(200), rng.random(200) < 0.2
        assert figure(u, errors, parse(f"coverage@risk={risk}")) == metrics.coverage_at_risk(u, errors, risk)
        assert figure(u, errors, parse("accuracy")) == 1 - errors.mean()


@pytest.mark.parametrize("target", ["accuracy", "coverage@risk=0.1"])
def test_a_rival_says_what_its_policy_does(load: Load, target: str) -> None:
    rivals, outputs, goal = load("cascade_rivals"), services(), parse(target)
    pairs = rivals.one_threshold(outputs, goal, 4)
    assert len({choice.models for choice in pairs}) == 6
    for choice in [*rivals.singles(outputs, goal), *pairs]:
        policy = rivals.as_policy(outputs, choice, goal, outputs.n)
        if policy is None:  # at this risk nothing can be accepted
            assert choice.figure == 0
            continue
        found = simulate(policy, outputs)
        errors = found.label != outputs.truth()
        assert found.mean_macs == pytest.approx(choice.cost)
        if goal.level is None:
            assert 1 - errors.mean() == pytest.approx(choice.figure)
        else:
            assert found.accepted.mean() >= choice.figure - 1e-12  # a τ per exit does no worse than one for both
            assert errors[found.accepted].mean() <= goal.level


def test_the_papers_rival_sends_a_fifth_on(load: Load) -> None:
    rivals, outputs = load("cascade_rivals"), services()
    assert rivals.paper_window(outputs, parse("accuracy")) == []
    found = {choice.models: choice for choice in rivals.paper_window(outputs, parse("coverage@risk=0.1"))}
    assert found["b", "c"].cost == pytest.approx(3 + 0.2 * 10, abs=0.1)
    window = Policy.fit(load("cascade_pools").chain(outputs, ["b", "c"]), target="coverage@risk=0.1").stages[0].window
    assert found["b", "c"].windows == (window,)


def test_the_best_within_a_limit(load: Load) -> None:
    rivals = load("cascade_rivals")
    choices = [rivals.Choice(("a",), (), *each) for each in ((1.0, 0.5), (2.0, 0.7), (1.5, 0.7), (9.0, 0.9))]
    assert rivals.within(choices, 2.0) == choices[2]
    assert rivals.within(choices, 9.0) == choices[3]
    assert rivals.within(choices, 0.5) is None


def test_figures_on_test_rows_by_hand(load: Load) -> None:
    rivals = load("cascade_rivals")
    labels, conf = np.zeros(4, np.int64), np.array([0.9, 0.8, 0.7, 0.6])
    test = Outputs([(np.array([0, 1, 0, 1]), conf)], kind="top1", labels=labels, names=["a"], costs=[2.0])
    policy = Policy.of(test, taus=[0.35], target="coverage@risk=0.4")
    cal = test.rows(np.arange(4))
    figures = rivals.tested(replace(policy, sequence=((0.35,),)), cal, test, parse("coverage@risk=0.4"))
    assert (figures["cost"], figures["accuracy"], figures["coverage"]) == (2.0, 0.5, 0.75)
    assert figures["risk"] == pytest.approx(1 / 3)
    assert (figures["exceeded"], figures["certified"], figures["certified_coverage"]) == (0.0, 0.0, 0.0)
    assert figures["certified_risk"] is None


# — Fashion-MNIST —


def test_scod_and_fpr_are_those_of_the_metrics(load: Load, runs: Path) -> None:
    fashion, pools = load("cascade_fashion"), load("cascade_pools")
    run = pools.runs(runs)[0]["wide4"]
    parts, (near, far) = pools.parts(run), pools.outside(run)
    found = {what: fashion.fit(parts.validation, near, what, "none", None) for what in fashion.TARGETS}
    figures = fashion.figures(found, parts.test, far)
    routed, tau = simulate(found["scod"], parts.test), found["scod"].stages[0].tau
    errors = routed.label != parts.test.truth()
    outside = np.concatenate([simulate(found["scod"], each).uncertainty for each in far.values()])
    assert figures["scod_risk"] == pytest.approx(metrics.scod_risk(routed.uncertainty, errors, outside, tau=tau, alpha=0.5))
    assert fashion.spent(found["scod"], parts.test, far, "scod") == 400
    own = {name: simulate(found["fpr"], each) for name, each in far.items()}
    assert figures["fpr:kmnist"] == own["kmnist"].accepted.mean()
    assert found["fpr"].uncertainty == "energy"
    kept = simulate(found["coverage"], parts.validation)
    assert (kept.label != parts.validation.truth())[kept.accepted].mean() <= fashion.RISK


def test_all_columns_are_executed(load: Load, runs: Path) -> None:
    fashion, pools = load("cascade_fashion"), load("cascade_pools")
    there = pools.runs(runs)[0]
    found = {}
    for name, (run, groups, _) in fashion.COLUMNS.items():
        found[name] = Policy.of(fashion.grouped(there[run].outputs("validation"), groups))
    made = {"deep": 4, "wide1.5": 1, "wide4": 1}
    ensembles = {
        name: quorate.DeepEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(4, 4)) for _ in range(n)]) for name, n in made.items()
    }
    times = fashion.executed(ensembles, found, torch.randn(20, 1, 2, 2), 2)
    assert list(times) == list(fashion.COLUMNS)
    assert all(time > 0 for time in times.values())


# — simulated guarantees —


def test_the_population_has_the_risk_it_is_said_to_have(load: Load) -> None:
    module = load("cascade_guarantee")
    rows = module.Rows.draw(np.random.default_rng(0), 400_000)
    for tau in (0.5, 0.737, 1.0):
        assert rows.errors[rows.u <= tau].mean() == pytest.approx(module.true_risk(tau), abs=2e-3)
    assert module.true_risk(0.7368) == pytest.approx(0.05, abs=1e-4)


def test_uncorrected_thresholds_fail_and_certified_ones_do_not(load: Load) -> None:
    found = load("cascade_guarantee").selective(1000, 20)
    safe = found["fixed sequence, start from validation"]
    assert safe["violations"] <= 0.2
    assert safe["coverage"] > found["fixed sequence from the first threshold"]["coverage"]
    assert safe["coverage"] > 0.5
    assert found["uncorrected"]["violations"] > 0.25
    assert found["nearest risk"]["violations"] > 0.25


def test_violations_by_hand(load: Load) -> None:
    found = load("cascade_guarantee").violations([False] * 58 + [True], [0.0] * 29 + [0.5] * 30)
    assert found["violations"] == pytest.approx(1 / 59)
    assert found["low"] < 1 / 59 < found["high"]
    assert load("cascade_guarantee").violations([False] * 10, [1.0] * 10)["high"] == pytest.approx(1 - 0.025**0.1)
    assert (found["coverage"], found["certified"]) == (pytest.approx(15 / 59), pytest.approx(30 / 59))


def test_conformal_control_and_drift(load: Load) -> None:
    module = load("cascade_guarantee")
    kept = module.deviation(1000, 60)
    assert 0 < kept["mean"] <= module.ALPHA + 2 * kept["standard_error"]
    alarms = module.drift(4, 20_000)
    assert alarms["null"]["alarms"] == 0
    assert module.alarmed_at(module.Watch.of_counts(["stage0"], [10_000], [2_000]), np.random.default_rng(0), 0.4, 5_000) <= 2_000


# — windows, time —


def test_the_optimal_window_passes_no_more(load: Load, runs: Path) -> None:
    module, pools = load("cascade_windows"), load("cascade_pools")
    val, _, test = (each.regroup([1, 3]) for each in pools.parts(pools.runs(runs)[0]["deep"]))
    for target in module.FASHION_TARGETS:
        paper, optimal = module.compared(val, test, target)
        assert optimal["validation_passed"] <= paper["validation_passed"]
        assert optimal["validation_deviation"] <= paper["validation_deviation"] + 1e-12
        assert optimal["no_more"] == 1
        assert optimal["test_saving"] == pytest.approx(1 - optimal["test_passed"] / paper["test_passed"])


@pytest.mark.slow
def test_everyone_goes_on_in_the_full_ensemble(load: Load) -> None:
    module = load("cascade_executed")
    case = module.resnets(16)["ResNet-14 → ResNet-20"]
    assert module.everyone(case.policy).stages[0].window == (None, None)
    found = module.compare(case, 8, 16, 1)
    assert 1 < found["mac_gain"] < 4
    assert set(found["gain"]) == {"stream", "request"}
    assert set(module.compare(case, 1, 2, 1)["gain"]) == {"request"}


# — the scripts —


def run(load: Load, script: str, arguments: Sequence[str]) -> None:
    load(script).main([*arguments, "--quick"])


@pytest.mark.slow
def test_imagenet_script(load: Load, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load, "cascade_imagenet", [str(networks)])
    found = written(tmp_path, "cascade-imagenet-quick")["figures"]
    assert {"accuracy|planner|0.65", "coverage|planner|1.2", "coverage|single|0.65"} <= found.keys()
    assert found["accuracy|planner|0.65"]["cost"]["mean"] <= 0.7
    assert "planner, accuracy at 0.65 GMACs:" in capsys.readouterr().out


@pytest.mark.slow
def test_frugal_script(load: Load, tmp_path: Path) -> None:
    outputs = services(1000)
    pred, conf = (np.stack([value[i] for value in outputs.values]) for i in (0, 1))
    file = tmp_path / "command.npz"
    np.savez(
        file, models=np.array(outputs.names), pred=pred, conf=conf, label=outputs.truth(), cost_per_10k=np.array([1.0, 3.0, 10.0])
    )
    run(load, "cascade_frugal", [str(file)])
    found = written(tmp_path, "cascade-frugal-quick")
    assert "FrugalML reports up to 90 %" in found["note"]
    assert found["figures"]["single|matching"]["cost"]["mean"] == 10
    assert found["figures"]["service|a"]["saving"]["mean"] == pytest.approx(0.9)
    assert "planner|matching" in found["figures"]


@pytest.mark.slow
def test_fashion_script(load: Load, runs: Path, tmp_path: Path) -> None:
    run(load, "cascade_fashion", [str(runs)])
    found = written(tmp_path, "cascade-fashion-quick")["figures"]
    assert list(found) == list(load("cascade_fashion").COLUMNS)
    assert found["single"]["macs"]["mean"] == 100
    assert found["ensemble"]["macs"]["mean"] == 400
    assert found["paper [1, 3]"]["macs"]["mean"] < 200


def test_windows_script(load: Load, runs: Path, networks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load, "cascade_windows", ["--runs", str(runs), "--imagenet", str(networks)])
    found = written(tmp_path, "cascade-windows-quick")["figures"]
    assert "Fashion-MNIST|conformal" in found
    assert "mobilenetv3_large_100 → efficientnet_b3a, risk@coverage=0.8|optimal" in found
    assert "every time: NOT MET" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        load("cascade_windows").main([])


def test_scale_script(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def once(call: Callable[[], object]) -> tuple[list[float], int]:
        call()
        return [0.25, 0.5, 1.0], 12_000

    monkeypatch.setattr(load("cascade_scale"), "measure", once)
    run(load, "cascade_scale", [])
    found = written(tmp_path, "cascade-scale-quick")["figures"]
    largest = found["fit paper, 2 stages, logits"]["600"]
    assert (largest["seconds"], largest["least"], largest["per_window"], largest["peak_over_outputs"]) == (0.5, 0.25, 0.5, 0.5)
    assert found["certify, 2 stages, logits"]["300"]["per_window"] is None
    assert "certify_policy, 2 stages, logits: 0.50 s at 600 rows, ≤ 2 s met; × 1.0 for × 2 the rows" in capsys.readouterr().out


def test_guarantee_script(load: Load, tmp_path: Path) -> None:
    run(load, "cascade_guarantee", [])
    found = written(tmp_path, "cascade-guarantee-quick")
    assert set(found["figures"]) == {"draws", "selective", "fpr", "deviation", "drift"}
    assert len(found["seeds"]) == 10


@pytest.mark.slow
def test_executed_script(load: Load, tmp_path: Path) -> None:
    run(load, "cascade_executed", ["--batches", "1", "4"])
    found = written(tmp_path, "cascade-executed-quick")["figures"]
    assert set(found) == {"ResNet-14 → ResNet-20, batch 1", "ResNet-14 → ResNet-20, batch 4"}


@pytest.mark.slow
def test_planner_script(load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(load, "cascade_planner", [])
    found = written(tmp_path, "cascade-planner-quick")["figures"]
    assert found["large"]["accuracy"]["members"] == 4
    assert found["large"]["accuracy"]["seconds"] > 0
    assert 0 <= found["gap"]["accuracy"]["most"] < 0.2
    assert "accuracy: gap at most" in capsys.readouterr().out
