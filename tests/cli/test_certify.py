"""`quorate evaluate --certify`: deployed policies on fresh rows, stored or raw, and rows that can't certify them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from quorate.cascade import Policy, StagePolicy, simulate
from quorate.cascade.guarantee import Certificate, recertify
from quorate.cli.certify import for_policy
from quorate.cli.main import main
from quorate.combination import softmax
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.report.certificates import claim, verdict
from quorate.runs import FORMAT

C = 3


def fresh(n: int = 400, wrong: int = 8, seed: int = 0, **options: Any) -> Outputs:
    """Two members of equal logits, of which ``wrong`` rows have another label."""
    rng = np.random.default_rng(seed)
    said = rng.integers(0, C, n)
    values = [(4 * np.eye(C)[said] + 0.1 * rng.normal(size=(n, C))).astype(np.float32) for _ in range(2)]
    labels = said.copy()
    labels[:wrong] = (labels[:wrong] + 1) % C
    return Outputs(values, **({"labels": labels, "costs": [1.0, 2.0], "names": ["a", "b"]} | options))


def policy(target: str | None = "coverage@risk=0.05", **options: Any) -> Policy:
    stages = (StagePolicy("a", window=(0.05, None), tau=0.5, cost=1.0), StagePolicy("b", tau=0.5, cost=2.0))
    return Policy(stages, target=target, **options)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    policy().save("p.json")
    fresh().save("new.safetensors")
    return tmp_path


@pytest.mark.deciding
def test_a_policy_that_holds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--policy", "p.json", "--certify", "new.safetensors", "--output", "again.json"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    bound = float(beta.ppf(0.95, 9, 392))
    for text in ("coverage@risk=0.05", "2.00 %", f"≤ {100 * bound:.2f} %", "100.00 %", "95 %", "holds"):
        assert text in printed.out
    renewed = Policy.load(folder / "again.json")
    assert renewed.stages == policy().stages
    found = Certificate.from_dict(renewed.certificate)
    assert (found.rows, found.errors, found.feasible) == (400, 8.0, True)
    assert found.bound == pytest.approx(bound)
    routed = simulate(policy(), fresh())
    assert [part.rows for part in found.exits] == [int((routed.stage == k).sum()) for k in (0, 1)]


@pytest.mark.deciding
@pytest.mark.parametrize(
    ("wrong", "options", "expected"),
    [
        (40, [], "policy p: coverage@risk=0.05 does not hold"),
        (14, [], "policy p: coverage@risk=0.05 too few rows: about"),
        (8, ["--confidence", "0.9999"], "too few rows: about"),
    ],
)
def test_a_policy_that_does_not_hold(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: int, options: list[str], expected: str
) -> None:
    fresh(wrong=wrong).save("new.safetensors")
    asked = ["--policy", "p.json", "--certify", "new.safetensors", "--output", "again.json", "--format", "markdown", *options]
    assert main(["evaluate", *asked]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert expected in printed.err
    assert printed.out.startswith("| policy | target | risk met | bound |")
    assert not Certificate.from_dict(Policy.load(folder / "again.json").certificate).feasible


@pytest.mark.deciding
def test_the_stated_number_of_rows_does(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh(wrong=14).save("new.safetensors")
    assert main(["evaluate", "--policy", "p.json", "--certify", "new.safetensors"]) == 1
    more = int(capsys.readouterr().err.split("about ")[1].split()[0].replace(",", ""))
    n = 400 + more
    fresh(n, round(n * 14 / 400)).save(folder / "more.safetensors")
    assert main(["evaluate", "--policy", "p.json", "--certify", "more.safetensors"]) == 0


@pytest.mark.deciding
def test_the_confidence_is_that_of_the_policys_own_certificate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = recertify(policy(), fresh(), delta=0.01)
    replace(policy(), certificate=own.to_dict()).save(folder / "p.json")
    assert main(["evaluate", "--policy", "p.json", "--certify", "new.safetensors"]) == 0
    assert "99 %" in capsys.readouterr().out


@pytest.mark.deciding
def test_targets_without_a_risk_get_a_bound_or_the_limit_given(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy("accuracy").save(folder / "p.json")
    asked = ["evaluate", "--policy", "p.json", "--certify", "new.safetensors"]
    assert main(asked) == 0
    assert "bound only" in capsys.readouterr().out
    assert main([*asked, "--risk", "0.04"]) == 0
    assert "holds" in capsys.readouterr().out
    assert main([*asked, "--risk", "0.01"]) == 1
    assert "does not hold" in capsys.readouterr().err


@pytest.mark.deciding
def test_all_policies_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_json(folder / "run/run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}, "identity": {}})
    fresh(seed=1).save(folder / "run/outputs/validation.safetensors")
    asked = ["evaluate", "run", "--certify", "new.safetensors"]
    assert main(asked) == 1
    assert "has no policies: give --policy FILE" in capsys.readouterr().err
    policy().save(folder / "run/policies/one.json")
    whole = Policy((StagePolicy("a+b", tau=0.5, cost=3.0),), target="coverage@risk=0.03")  # of stages that were merged
    whole.save(folder / "run/policies/two.json")
    assert main([*asked, "--output", "renewed"]) == 1
    assert capsys.readouterr().err.startswith("quorate evaluate: policy two: coverage@risk=0.03 too few rows")
    assert Certificate.from_dict(Policy.load(folder / "renewed/one.json").certificate).feasible
    assert not Certificate.from_dict(Policy.load(folder / "renewed/two.json").certificate).feasible
    assert main([*asked, "--output", "renewed.json"]) == 1
    assert "expected a folder" in capsys.readouterr().err
    assert main(["evaluate", "run", "--certify", "run/outputs/validation.safetensors"]) == 1
    assert "these rows chose the policies" in capsys.readouterr().err
    assert main(["evaluate", "run", "--certify", "run"]) == 1
    assert "expected files" in capsys.readouterr().err


@pytest.mark.deciding
def test_ood_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n = 300
    Outputs([np.zeros((1, n, C), np.float32)] * 2, names=["a", "b"]).save(folder / "far.safetensors")
    policy("fpr@tpr=0.9").save(folder / "p.json")
    asked = ["evaluate", "--policy", "p.json", "--certify", "new.safetensors"]
    assert main([*asked, "--ood", "far=far.safetensors"]) == 0
    text = capsys.readouterr().out
    assert "OOD far" in text
    assert f"{100 * float(beta.ppf(1 - 0.025, 1, n)):.2f} %" in text  # none of them accepted, at δ/2
    mixed = recertify(policy(), fresh(), ood={"far": Outputs.load(folder / "far.safetensors")})
    replace(policy(), certificate=mixed.to_dict()).save(folder / "p.json")
    assert main(asked) == 1
    assert "it was certified for a mix with OOD rows" in capsys.readouterr().err
    assert main([*asked, "--ood", "far=far.safetensors", "--beta", "0.5", "--alpha", "0.8"]) == 0


@pytest.mark.deciding
def test_sources_of_each_stage(folder: Path) -> None:
    whole = fresh()
    first = Outputs([whole.values[0]], labels=whole.labels, names=["logits"])
    second = Outputs([softmax(whole.values[1])], kind="probs", labels=whole.labels).rows(np.arange(400)[::-1])
    first.save(folder / "first.safetensors")
    second.save(folder / "second.safetensors")
    stages = (StagePolicy("a", window=(0.05, None), tau=0.5, kind="logits"), StagePolicy("b", tau=0.5))
    Policy(stages, kind="probs", target="coverage@risk=0.05").save(folder / "p.json")
    asked = ["evaluate", "--policy", "p.json", "--certify", "a=first.safetensors", "b=second.safetensors", "--output", "q.json"]
    assert main(asked) == 0
    found = Certificate.from_dict(Policy.load(folder / "q.json").certificate)
    probs = Outputs([softmax(value) for value in whole.values], kind="probs", labels=whole.labels, names=["a", "b"])
    assert found == recertify(Policy(stages, kind="probs", target="coverage@risk=0.05"), probs)


@pytest.mark.deciding
def test_stages_that_are_not_there() -> None:
    whole = fresh()
    one = Outputs([whole.values[0]], labels=whole.labels)
    top1 = Outputs([(np.zeros(400, int), np.ones(400))], kind="top1", labels=whole.labels)
    assert for_policy(policy(), {"x": whole}) is whole
    assert for_policy(policy(), {"a": one, "b": one}).names == ("a", "b")
    with pytest.raises(ValueError, match=r"stage 'b' is not among \['a', 'c'\]: name the sources as it does"):
        for_policy(policy(), {"a": one, "c": one})
    with pytest.raises(ValueError, match="stage 'b' holds top1 combined by last, the policy is for logits combined by probs"):
        for_policy(policy(), {"a": one, "b": top1})
    with pytest.raises(ValueError, match="a and b have different labels"):
        for_policy(policy(), {"a": one, "b": Outputs([whole.values[0]], labels=np.zeros(400, int))})


@pytest.mark.deciding
@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        (["run", "--confidence", "0.9"], 1, "--confidence is for --certify"),
        (["run", "--kind", "probs"], 1, "--kind is for --certify"),
        ([], 2, "runs"),
        (["one", "two", "--certify", "new.safetensors"], 1, "with 2 run folders"),
        (["--certify", "new.safetensors"], 1, "with 0 run folders"),
        (["--policy", "p.json", "--certify", "new.safetensors", "--plots", "x"], 1, "--plots is for the table"),
        (["--policy", "p.json", "--certify", "new.safetensors", "--corruptions"], 1, "--corruptions is for the table"),
        (["--policy", "p.json", "--certify", "new.safetensors", "--inputs", "x"], 1, "--inputs needs the run folder"),
        (["run", "--certify", "new.safetensors", "--inputs", "x"], 1, "expected --certify with one .npz"),
        (["--policy", "p.json", "--certify", "new.safetensors", "--confidence", "95"], 1, "--confidence 95"),
        (["--policy", "p.json", "--certify", "new.safetensors", "--output", "x.md"], 1, "the name of a .json file"),
        (["--policy", "p.json", "d/p.json", "--certify", "new.safetensors"], 1, "two files of one name"),
        (["--policy", "gone.json", "--certify", "new.safetensors"], 1, "gone.json does not exist"),
        (["--policy", "p.json", "--certify", "gone.npz"], 1, "gone.npz does not exist"),
        (["--policy", "p.json", "--certify", "bare.safetensors"], 1, "p.json: these Outputs have no labels"),
    ],
)
def test_what_cannot_be_certified(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], status: int, expected: str
) -> None:
    fresh(labels=None).save(folder / "bare.safetensors")
    assert main(["evaluate", *arguments]) == status
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.deciding
def test_certificates_in_words() -> None:
    given = Certificate("selective risk", True, 0.05, 0.05, "bonferroni", 10, 1.0, 0.5, 5, 0.0, 0.0, 0.04, 3, 0, "x")
    assert claim(None) == "–"
    assert claim(given) == "50.00 % at risk ≤ 5.00 %"
    assert claim(replace(given, feasible=False, needed=1200)) == "infeasible, needs 1,200 more rows"
    assert claim(replace(given, feasible=False, needed=None)) == "infeasible"
    assert claim(replace(given, kind="risk", target=None)) == "risk ≤ 4.00 %"
    assert claim(replace(given, kind="risk", target=None), "accuracy") == "accuracy ≥ 96.00 %"
    assert claim(replace(given, kind="deviation", delta=None)) == "deviation ≤ 5.00 %"
    assert claim(replace(given, kind="fpr", target=0.9)) == "TPR ≥ 90.00 %"
    assert verdict(given) == "holds"
    assert verdict(replace(given, feasible=False, needed=None)) == "does not hold"


def test_raw_inputs_are_run_through_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    run = tmp_path / "run"
    data = ["--data", "digits", "--model", "MLP", "--model.hidden", "[16]"]
    asked = [*data, "--ensemble.kind", "deep", "--ensemble.members", "2", "--fit.epochs", "1", "--run", str(run)]
    assert main(["train", *asked]) == 0
    from quorate.cli.reload import reload

    test_rows = reload(run)[1].test
    test = Outputs.load(run / "outputs" / "test.safetensors")
    Policy.fit(Outputs.load(run / "outputs" / "validation.safetensors"), target="risk@coverage=0.5").save(run / "policies/p.json")
    np.savez(tmp_path / "new.npz", images=np.asarray(test_rows.x), y=test_rows.y, id=test_rows.ids)
    capsys.readouterr()
    raw = ["--certify", str(tmp_path / "new.npz"), "--inputs", "images", "--labels", "y", "--risk", "0.9", "--ids", "id"]
    status = main(["evaluate", str(run), *raw, "--output", str(tmp_path / "raw.json")])
    stored = ["--certify", str(run / "outputs" / "test.safetensors"), "--risk", "0.9", "--output", str(tmp_path / "stored.json")]
    assert main(["evaluate", str(run), *stored]) == status
    assert Policy.load(tmp_path / "raw.json").certificate == Policy.load(tmp_path / "stored.json").certificate
    assert test.n == Certificate.from_dict(Policy.load(tmp_path / "raw.json").certificate).rows
    np.savez(tmp_path / "new.npz", images=np.asarray(test_rows.x)[:, :, :4], y=test_rows.y)
    capsys.readouterr()
    assert main(["evaluate", str(run), *raw[:-2]]) == 1
    assert "as in the run's own data" in capsys.readouterr().err
    np.savez(tmp_path / "new.npz", images=np.asarray(test_rows.x), y=-test_rows.y)
    assert main(["evaluate", str(run), *raw[:-2]]) == 1
    assert "new.npz: labels must be at least 0" in capsys.readouterr().err
    assert main(["evaluate", str(run), *raw, "--kind", "probs"]) == 1
    assert "--kind is for stored outputs" in capsys.readouterr().err
    for ood in (["far"], ["far=new.npz", "far=new.npz"]):
        assert main(["evaluate", str(run), *raw, "--ood", *ood]) == 1
        assert f"--ood {' '.join(ood)}: expected NAME=FILE" in capsys.readouterr().err
    np.savez(tmp_path / "far.npz", images=np.asarray(test_rows.x)[:50] * 0)
    Policy.fit(Outputs.load(run / "outputs" / "validation.safetensors"), target="fpr@tpr=0.5").save(run / "policies/p.json")
    np.savez(tmp_path / "new.npz", images=np.asarray(test_rows.x), y=test_rows.y)
    main(["evaluate", str(run), *raw[:4], "--labels", "y", "--ood", f"far={tmp_path / 'far.npz'}"])
    assert "OOD far" in capsys.readouterr().out
