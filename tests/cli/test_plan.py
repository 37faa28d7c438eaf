"""`quorate plan` on models made up for it: the table, the policy that is written, and requests that can't be met."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import quorate.cli.plan as command
from quorate.cascade import Policy, simulate
from quorate.cascade.guarantee import Certificate
from quorate.cascade.planner import plan
from quorate.cascade.task import Figures
from quorate.cli.main import main
from quorate.cli.sources import How
from quorate.cli.stored import Parts, pool
from quorate.combination import softmax
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.report import plans as table
from quorate.runs import FORMAT

pytestmark = pytest.mark.deciding

N, C = 900, 4
TOP1 = ["--kind", "top1", "--values", "pred,conf", "--labels", "label", "--names_array", "models", "--split", "0.4", "0.4"]
PRICES = ["--costs", "small=1", "middle=3", "large=9"]
FAST = ["--most", "2", "--front", "4"]


def models(seed: int = 0, n: int = N, known: bool = True, ordered: bool = False) -> Outputs:
    """Three models, the dearer the better; on OOD rows none knows anything."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    hard = rng.normal(size=(n, C))
    strengths = (2.0, 3.0, 4.5) if known else (0.5, 0.5, 0.5)
    values = [
        (s * np.eye(C)[labels] + hard + 0.7 * rng.normal(size=(n, C))).astype(np.float32) if known else s * hard
        for s in strengths
    ]
    return Outputs(
        values,
        labels=labels if known else None,
        costs=[1.0, 3.0, 9.0],
        names=["small", "middle", "large"],
        ordered=ordered,
        ids=np.arange(n) + 10_000 * seed,
    )


def write_top1(path: Path, seed: int = 0) -> None:
    outputs = models(seed)
    probs = np.stack([softmax(value[0]) for value in outputs.values])
    np.savez(path, pred=probs.argmax(-1), conf=probs.max(-1), label=outputs.truth(), models=np.array(outputs.names))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_top1(tmp_path / "all.npz")
    models().save(tmp_path / "all.safetensors")
    models(1, 500, known=False).save(tmp_path / "far.safetensors")
    return tmp_path


@pytest.mark.slow
def test_the_front_of_an_archive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--output", "policy.json", "--report", "plan.json", "--unit", "cents"]
    asked = ["all.npz", *TOP1, *PRICES, *FAST, "--target", "coverage@risk=0.1", "--confidence", "0.9", "--budget", "0.5"]
    assert main(["plan", *asked, *files, "--seed", "5"]) == 0
    printed = capsys.readouterr()
    report = json.loads((folder / "plan.json").read_text())
    assert "the coverage named with a risk is what those rows had" in " ".join(printed.out.split())
    how = How("top1", ["pred,conf"], "label", names_array="models")
    given = pool(["all.npz"], how, Parts(split=[0.4, 0.4], seed=5))
    costs = {"small": 1.0, "middle": 3.0, "large": 9.0}
    priced, judged = (
        {n: Outputs(o.values, kind="top1", labels=o.labels, ids=o.ids, costs=[costs[n]]) for n, o in (part or {}).items()}
        for part in (given.validation, given.calibration)
    )
    expected = plan(priced, "coverage@risk=0.1", budget=0.5, cal=judged, delta=0.1, most=2, front=4, seed=5)
    assert [each["figure"] for each in report["plans"]] == [each.figures.figure for each in expected]
    assert [each["certificate"] for each in report["plans"]] == [each.policy.certificate for each in expected]
    assert report["confidence"] == 0.9
    assert all(each["cost"] <= 6.5 for each in report["plans"])
    best = table.best(expected, "coverage@risk=0.1")
    assert report["chosen"] == best + 1
    policy = Policy.load(folder / "policy.json")
    assert policy == expected[best].policy
    assert Certificate.from_dict(policy.certificate).delta == pytest.approx(0.1 / len(expected))
    assert "cents/input" in printed.out
    assert f"*{best + 1}" in printed.out
    assert "3 models, 360 validation rows, 360 calibration rows" in printed.err
    assert f"wrote plan {best + 1} to policy.json" in printed.err


def test_dependent_stages_of_a_file_keep_their_own_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exits = models(ordered=True)
    exits.save(folder / "exits.safetensors")
    asked = ["exits.safetensors", "--target", "coverage@risk=0.1", "--split", "0.5", "0.5", *FAST]
    assert main(["plan", *asked, "--most", "3", "--output", "p.json", "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith(
        "`coverage@risk=0.1`\n\n|  | stages | cost/input | of all | sent on | coverage | risk | certified |"
    )
    policy = Policy.load(folder / "p.json")
    assert set(exits.names[: len(policy.stages)]) == {stage.name for stage in policy.stages}
    certificate = Certificate.from_dict(policy.certificate)
    assert [part.name for part in certificate.exits] == [stage.name for stage in policy.stages]
    assert simulate(policy, exits).stage.max() < 3


def test_a_run_with_ood_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(folder / "run/run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}, "identity": {}})
    for part, outputs in (("validation", models(2, 400)), ("calibration", models(3, 400)), ("ood-far", models(4, 500, False))):
        outputs.save(folder / "run" / "outputs" / f"{part}.safetensors")
    asked = ["run", "--target", "fpr@tpr=0.9", "--ood", "far", "--ood_split", "0.5", "0.5", *FAST, "--output", "p.json"]
    assert main(["plan", *asked]) == 0
    assert "TPR ≥ 90.00 %, FPR ≤" in capsys.readouterr().out
    assert Certificate.from_dict(Policy.load(folder / "p.json").certificate).outliers[0].rows == 250
    assert main(["plan", "run", "--target", "coverage@risk=0.2", "--ood", "far", *FAST]) == 1
    assert "give --cal_ood or --ood_split" in capsys.readouterr().err


def test_choosing_another_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["all.safetensors", "--target", "accuracy", "--split", "0.5", "0.5", *FAST]
    assert main(["plan", *asked, "--choose", "1", "--output", "p.json", "--report", "r.json"]) == 0
    assert "accuracy ≥" in capsys.readouterr().out
    first = json.loads((folder / "r.json").read_text())["plans"][0]
    assert [stage.name for stage in Policy.load(folder / "p.json").stages] == [stage["name"] for stage in first["stages"]]
    (folder / "p.json").unlink()
    assert main(["plan", *asked, "--choose", "99", "--output", "p.json"]) == 1
    assert "--choose 99: expected 1 …" in capsys.readouterr().err
    assert not (folder / "p.json").exists()


def test_without_calibration_rows_nothing_is_certified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "all.safetensors", "--target", "accuracy", *FAST, "--report", "r.json"]) == 0
    assert "no calibration rows, so nothing is certified" in capsys.readouterr().err
    assert all(each["certificate"] is None for each in json.loads((folder / "r.json").read_text())["plans"])
    assert main(["plan", "all.safetensors", "--target", "nll", "--split", "0.5", "0.5", *FAST, "--temperature", "fit"]) == 0
    assert "nll has no certificate, they are left alone" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_progress_is_told_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "SPEAK_S", 0.0)
    assert main(["plan", "all.safetensors", "--target", "accuracy", *FAST]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("planning: ")]
    assert lines[-1] == "planning: 100 %"
    assert len(lines) > 1


def test_an_interrupt_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("quorate.cascade.planner.plan", stopped)
    assert main(["plan", "all.safetensors", "--target", "accuracy", "--output", "p.json"]) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("quorate plan: stopped")
    assert not (folder / "p.json").exists()


@pytest.mark.parametrize(
    ("options", "status", "expected"),
    [
        ([], 2, "target"),
        (["--target", "coverage@risk=5"], 1, "a share and not per cent"),
        (["--target", "accuracy", "--confidence", "1"], 1, "--confidence 1: expected a share"),
        (["--target", "accuracy", "--output", "p.txt"], 2, "--output p.txt: expected a name that ends in .json"),
        (["--target", "accuracy", "--report", "p"], 2, "--report p: expected a name that ends in .json"),
        (["--target", "accuracy", "--choose", "0"], 2, "--choose 0"),
        (["--target", "accuracy", "--joins", "sum"], 2, "joins"),
        (["--target", "accuracy", "--budget", "0.5", "--max_cost", "3"], 1, "max_cost"),
        (["--target", "accuracy", "--budget", "0.01"], 1, "small"),
        (["--target", "accuracy", "--kind", "probs"], 1, "--kind is for .npz and .csv files"),
        (["--target", "fpr@tpr=0.9"], 1, "needs OOD rows to tell apart: give --ood"),
        (
            ["--target", "coverage@risk=0.1", "--ood", "x=far.safetensors", "--cal_ood", "x=far.safetensors"],
            1,
            "no other calibration",
        ),
        (["--target", "accuracy", "--costs", "small=1"], 1, "'all/middle' none"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_what_cannot_be_planned(capsys: pytest.CaptureFixture[str], options: list[str], status: int, expected: str) -> None:
    assert main(["plan", "all.safetensors", *FAST, *options]) == status
    error = capsys.readouterr().err.splitlines()[-1]
    assert expected in error
    assert error.startswith("quorate plan: ")


def test_a_target_that_no_plan_meets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = models()
    wrong = Outputs(known.values, labels=(known.truth() + 1) % C, ids=known.ids, costs=known.costs, names=known.names)
    wrong.save(folder / "wrong.safetensors")
    assert main(["plan", "wrong.safetensors", *FAST, "--target", "coverage@risk=0.001", "--output", "p.json"]) == 1
    assert "least risk" in capsys.readouterr().err
    assert not (folder / "p.json").exists()


@pytest.mark.usefixtures("folder")
def test_members_without_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "all.npz", *TOP1, "--target", "accuracy"]) == 1
    assert "'small' has no costs: give --costs NAME=COST" in capsys.readouterr().err


def test_the_best_plan_is_a_certified_one() -> None:
    plans = plan({"a": models().rows(np.arange(300))}, "coverage@risk=0.2", most=2, front=5)
    assert table.best(plans, "coverage@risk=0.2") == len(plans) - 1
    given = Certificate("risk", True, 0.2, 0.05, "single", 10, None, 1.0, 10, 0.0, 0.0, 0.1, 1, 0, "x")
    marked = [replace(each, policy=replace(each.policy, certificate=None)) for each in plans]
    assert len(marked) > 1
    marked[0] = replace(plans[0], policy=replace(plans[0].policy, certificate=given.to_dict()))
    assert table.best(marked, "coverage@risk=0.2") == 0
    same = [replace(plans[0], figures=Figures(0.5, 1.0, 0.5, cost)) for cost in (3.0, 1.0)]
    assert table.best(same, "accuracy") == 1
    assert table.best([same[0], replace(same[1], figures=Figures(0.6, 1.0, 0.6, 1.0))], "risk@coverage=1") == 0
