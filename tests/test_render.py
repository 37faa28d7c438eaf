"""The tables in README.md and benchmarks/RESULTS.md: cells, rows, provenance, and the check that they are what was measured."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from runtime_figures import FIGURES as RUNTIME
from sparse_figures import EXPECTED
from sparse_figures import FIGURES as SPARSE

pytestmark = pytest.mark.deciding

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "render.py"


@pytest.fixture
def render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """render.py on results, README.md and RESULTS.md of its own."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("benchmarks_render", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECORDED", tmp_path / "results")
    monkeypatch.setattr(module, "README", tmp_path / "README.md")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "RESULTS.md")
    return module


def test_cells(render: ModuleType) -> None:
    def cell(key: str, mean: float | None, sd: float | None = None, n: int = 5) -> str:
        text: str = render.cell(key, {"mean": mean, "sd": sd, "n": n, "seeds": 5})
        return text

    assert render.cell("nll", None) == cell("accuracy", None, n=0) == "–"
    assert cell("accuracy", 0.98765, 0.0123) == "98.77 % ± 1.23"
    assert cell("risk_met", 0.01, 0.002, 3) == "1.00 % ± 0.20 (3 of 5 seeds)"
    assert cell("risk_met", 0.01, None, 1) == "1.00 % (1 of 5 seeds)"
    assert cell("reach", 0.25, 0.0) == "25.00 % ± 0.00"
    assert cell("tpr_met", 0.951, 0.01, 2) == "95.10 % ± 1.00 (2 of 5 seeds)"
    assert cell("auroc:9", 0.5) == "50.00 %"
    assert cell("aurc", 0.0012345, 0.0001) == "1.234 ± 0.100"
    assert cell("ece", 0.01234567, 0.001) == "0.0123 ± 0.0010"
    assert cell("latency_ms", 12.34, 0.56, 4) == "12.3 ± 0.6 (4 of 5 seeds)"
    assert cell("macs", 123_456) == "123 k"
    assert cell("accuracy_over_single", -0.0123, 0.004) == "-1.23 points ± 0.40"
    assert cell("nll_over_single", 0.0123, 0.004) == "+0.0123 ± 0.0040"
    assert cell("training_macs_ratio", 0.6498, 0.1) == "0.650 ×"
    assert cell("accuracy_corrupted", 0.5) == "50.00 %"
    assert cell("kl", 0.1234567) == "0.1235"
    assert cell("parameters", 999, 0.0) == "999"
    assert cell("training_macs", 2.5e12, 1.0, 4) == "2.5 T (4 of 5 seeds)"


def entries(**means: float) -> dict[str, dict[str, Any]]:
    return {key.replace("__", ":"): {"mean": mean, "sd": None, "n": 2, "seeds": 2} for key, mean in means.items()}


FIGURES = {
    "single": entries(latency_ms=9.0, latency_spread_ms=1.0, accuracy=0.5, auroc__b=0.6, auroc__a=0.7, fpr__a=0.1, tpr_met=0.94),
    "cascade": entries(accuracy=0.75, coverage_at_risk=0.5, risk_met=0.01, reach=0.2, fpr__a=0.3),
}


def result(figures: dict[str, Any], **changed: Any) -> dict[str, Any]:
    machine = {"processor": "P", "cores": 2, "python": "3.11.1", "threads": 2}
    versions = {"torch": "2.1", "numpy": "1.2"}
    facts = {"note": "N", "date": "2024-05-06", "commit": "abc", "machine": machine, "versions": versions, "seeds": [0, 1]}
    return facts | {"figures": figures} | changed


def test_table_has_the_rows_of_any_column_in_order(render: ModuleType) -> None:
    rows = [line.strip("| ").split(" | ") for line in render.table(result(FIGURES)).splitlines()]
    assert rows[0] == ["single", "cascade"]
    assert rows[2:] == [
        ["accuracy", "50.00 %", "75.00 %"],
        ["coverage at 1 % risk", "–", "50.00 %"],
        ["risk met on test", "–", "1.00 %"],
        ["rows sent on", "–", "20.00 %"],
        ["OOD AUROC, a", "70.00 %", "–"],
        ["OOD AUROC, b", "60.00 %", "–"],
        ["FPR at 95 % TPR, a", "10.00 %", "30.00 %"],
        ["TPR met on test", "94.00 %", "–"],
        ["ms per 1,000 inputs, batch 256", "9.0", "–"],
    ]


def test_the_readme_shows_reach_behind_the_risk_but_no_rates_at_95_percent(render: ModuleType) -> None:
    keys = render.README_KEYS
    assert keys[keys.index("risk_met") + 1] == "reach"
    text = render.table(result(FIGURES), keys)
    assert "rows sent on" in text
    assert "AUROC, a" in text
    assert "TPR" not in text


def test_provenance(render: ModuleType) -> None:
    end = "2024-05-06, seeds 0–1; P, 2 cores, 2 threads, Python 3.11.1, PyTorch 2.1, NumPy 1.2."
    assert render.provenance(result({})) == f"Commit abc, {end}"
    assert render.provenance(result({}, trained_at=["abc"])) == f"Commit abc, {end}"
    assert render.provenance(result({}, trained_at=["abc", "old"])) == f"Commit abc (trained at abc, old), {end}"
    assert render.provenance(result({}, trained_at=["old"])) == f"Commit abc (trained at old), {end}"
    bare = result(
        {}, seeds=[3], versions={"numpy": "1.2"}, machine={"processor": "P", "cores": 1, "python": "3.12", "threads": None}
    )
    assert render.provenance(bare) == "Commit abc, 2024-05-06, seed 3; P, 1 cores, Python 3.12, NumPy 1.2."


SPEED = {"nll": {"1000": {"seconds": 0.5}, "10": {"seconds": 0.25, "peak_over_own_input": 9.0, "peak_over_outputs": 9.0}}}
SPEED["nll"]["1000"] |= {"peak_over_own_input": 2.0, "peak_over_outputs": 1.5}


def test_deciding_shows_both_ratios_at_the_most_rows(render: ModuleType) -> None:
    assert render.deciding(result(SPEED)).splitlines() == [
        "| | 10 rows | 1,000 rows | peak ÷ the call's own input | peak ÷ one stage's outputs |",
        "|---|---|---|---|---|",
        "| `nll` | 0.250 s | 0.500 s | 2.00 × | 1.50 × |",
    ]


def summary(mean: float, sd: float = 0.01, n: int = 3) -> dict[str, Any]:
    return {"mean": mean, "sd": sd, "n": n, "seeds": 3}


SAMPLES: dict[str, Any] = {
    "deciding": SPEED,
    "first-times": {
        "toy": {"single": {"seconds_per_epoch": 2.5, "epochs": 12}, "deep": {"seconds_per_epoch": 10.0, "epochs": 6}}
    },
    "uci": {
        "toy single": {"rmse": summary(2.5), "nll": summary(1.25), "crps": summary(1), "interval_coverage": summary(0.9)},
        "toy published": {"rmse": summary(2), "nll": summary(1.5)},
    },
    "shift-digits": {"deep|0": {"accuracy": summary(0.9), "ece": summary(0.0125)}, "deep|mean": {"accuracy": summary(0.5)}},
    "input-pipeline": {
        "seconds": {"median": 12.5, "least": 12, "most": 13},
        "model_share": {"median": 0.925, "least": 0.92, "most": 0.93},
    },
    "input-folder": {"10000": {"first": {"seconds": 9}, "later": {"seconds": 0.5, "most": 0.75, "process_seconds": 4}}},
}
SAMPLES |= RUNTIME | SPARSE
SAMPLES["shift-cifar10"] = SAMPLES["shift-digits"]
SHARE = {"median": 1.125, "q1": 1, "q3": 1.25}
CALLS = {"single, a": {"median": 2.0}, "packed, a": {"median": 4.0}, "packed, b": {"median": 2.25}}
SAMPLES["packed-inference"] = {
    "settings": {"repeats": 5},
    "net, batch 1": {"ms": CALLS, "fastest": {"single": "single, a", "packed": "packed, b"}, "ratio": SHARE},
}
SAMPLES["tickets-overhead"] = SAMPLES["packed-inference"]
SAMPLES["packed-inference-batch1"] = SAMPLES["packed-inference"]
SAMPLES["packed-training"] = {
    "net, batch 2": {
        "ms": CALLS,
        "ratio": {"single": SHARE, "other": SHARE},
        "memory": {"packed_over_expected": 0.5, "packed": {"peak_mib": 123.4}},
    }
}
SAMPLES["bdistil-digits"] = {
    "teacher": {"accuracy": summary(0.9), "nll": summary(0.25), "macs": summary(4e6)},
    "bdistil-potential/prefix1": {
        "networks": summary(1),
        "macs_share": summary(0.25),
        "accuracy": summary(0.5),
        "training_macs": summary(2e9),
    },
    "bdistil-potential/full": {"networks": summary(2.5), "macs_share": summary(0.5), "teacher_kl": summary(0.125)},
}
SAMPLES["bdistil-fashion-mnist"] = SAMPLES["bdistil-dsa19"] = SAMPLES["bdistil-digits"]
EARLY = {"sequence": summary(0.2), "macs": summary(4000), "accuracy": summary(0.75), "nll": summary(1)}
SAMPLES["bdistil-early-dsa19"] = {
    "students/part1": EARLY,
    "cascade": {name: EARLY[name] for name in ("accuracy", "sequence", "macs")},
}
SAMPLES["bdistil-latency-dsa19"] = {
    "seed 0, batch 1": {
        "ms": {"eager, teacher": {"median": 1.5}, "onnxruntime, teacher": {"median": 0.25}, "staged": {"median": 2}},
        "overhead": SHARE,
        "activation_bytes": {"teacher": 2000},
        "weight_bytes": {"teacher": 40_000},
    }
}
SAMPLES["bdistil-latency-fashion-mnist"] = SAMPLES["bdistil-latency-dsa19"]
SAMPLES["bdistil-game"] = {
    "samples": 2000, "outputs": 3, "calls": {"edge": {"seconds": 0.5, "least": 0.25, "most": 1, "peak_bytes": 2_500_000}},
}  # fmt: skip

COVERED = {name: summary(0.5) for name in ("coverage", "risk", "exceeded", "certified_risk", "certified_exceeded")}
SAMPLES["cascade-imagenet"] = {
    "accuracy|single|0.4": {"accuracy": summary(0.75), "cost": summary(0.36)},
    "accuracy|planner|0.4": {"accuracy": summary(0.8), "cost": summary(0.4)},
    "coverage|planner|20.8": {**COVERED, "certified_coverage": summary(0.25), "cost": summary(20)},
    "coverage|planner|0.4": {**COVERED, "certified_coverage": summary(0.125), "cost": summary(0.375)},
    "coverage|paper|0.4": {"coverage": summary(0.5), "cost": summary(0.3)},
}
SAMPLES["cascade-frugal"] = {
    "service|A": {"accuracy": summary(0.75), "cost": summary(25), "saving": summary(-0.5)},
    "single|0.5": {"accuracy": summary(0.75), "cost": summary(25), "saving": summary(0.5)},
    "planner|matching": {"accuracy": summary(0.9), "cost": summary(12.5), "saving": summary(0.75)},
}
SAMPLES["cascade-fashion"] = {
    "single": {"accuracy": summary(0.9), "fpr:kmnist": summary(0.5), "macs": summary(2e6), "latency_ms": summary(12.5)},
    "paper [1, 3]": {"coverage_at_risk": summary(0.75), "risk_met": summary(0.02), "macs": summary(3.8e6)},
}
GAIN = {"median": 2.0, "q1": 1.75, "q3": 2.25, "over_mac_gain": 0.8}
SAMPLES["cascade-executed"] = {"net, batch 64": {"mac_gain": 2.5, "overhead_us": 125, "gain": {"stream": GAIN, "request": GAIN}}}
SAMPLES["cascade-windows"] = {
    "pair, accuracy|paper": {"validation_passed": summary(0.2), "test_passed": summary(0.2), "test_deviation": summary(0.125)},
    "pair, accuracy|optimal": {"validation_passed": summary(0.1), "test_passed": summary(0.1), "test_saving": summary(0.5)},
    "pair|conformal": {"kept": summary(0.996), "test_passed": summary(0.3)},
}
TIME = {"seconds": 0.5, "per_window": 0.25, "peak_over_outputs": 1.5}
SAMPLES["cascade-scale"] = {
    "fit, 3 stages": {"1000": TIME, "100": TIME | {"seconds": 0.125}},
    "certify": {"1000": TIME | {"per_window": None}, "100": TIME},
}
SAMPLES["cascade-planner"] = {
    "large": {"accuracy": {"members": 12, "rows": 100_000, "seconds": 20.25, "peak_bytes": 5e8}},
    "gap": {"accuracy": {"pools": 6, "median": 0.0025, "most": 0.0075}},
}
VIOLATIONS = {"violations": 0.025, "low": 0.02, "high": 0.03, "coverage": 0.5, "coverage_sd": 0.125}
SAMPLES["cascade-guarantee"] = {
    "selective": {"300": {"a": VIOLATIONS, "b": VIOLATIONS}},
    "fpr": {"300": {"certified": VIOLATIONS}},
    "deviation": {"300": {"mean": 0.00375, "standard_error": 0.001, "beyond": 0.25}},
    "drift": {"null": {"alarms": 0.0, "low": 0, "high": 0.0125, "median_inputs": None}},
}
SAMPLES["cascade-guarantee"]["drift"]["drifted"] = {"alarms": 1.0, "low": 0.975, "high": 1.0, "median_inputs": 12_300.0}


@pytest.mark.parametrize(
    ("renderer", "name", "lines"),
    [
        ("times", "first-times", ["| `toy-single.yaml` | 2.5 | 12 | 0.5 |", "| `toy-deep.yaml` | 10.0 | 6 | 1.0 |"]),
        (
            "uci",
            "uci",
            [
                "| toy | single | 2.5000 ± 0.0100 | 1.2500 ± 0.0100 | 1.0000 ± 0.0100 | 90.00 % ± 1.00 | – |",
                "| toy | published | 2.0000 ± 0.0100 | 1.5000 ± 0.0100 | – | – | – |",
            ],
        ),
        (
            "shift",
            "shift-digits",
            ["| deep | 0 | 90.00 % ± 1.00 | – | 0.0125 ± 0.0100 | – | – |", "| deep | mean | 50.00 % ± 1.00 | – | – | – | – |"],
        ),
        ("spread", "input-pipeline", ["| seconds | 12.50 s | 12.00 s | 13.00 s |", "| model | 92.50 % | 92.00 % | 93.00 % |"]),
        ("ratios", "packed-inference", ["| net, batch 1 | single | 1.12 | 1.00–1.25 | single, a 2; packed, b 2.25 |"]),
        (
            "ratios",
            "packed-training",
            [
                "| net, batch 2 | single | 1.12 | 1.00–1.25 | single, a 2; packed, b 2.25 |",
                "|  | other | 1.12 | 1.00–1.25 |  |",
                "| | peak memory expected | 0.50 | | 123 MiB |",
            ],
        ),
        ("starts", "input-folder", ["| 10,000 | 9.00 s | 0.50 s | 0.75 s | 4.00 s |"]),
    ],
)
def test_other_parts(render: ModuleType, renderer: str, name: str, lines: list[str]) -> None:
    assert getattr(render, renderer)(result(SAMPLES[name])).splitlines()[2:] == lines


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "bdistil-digits",
            [
                "| teacher | – | 1 | 90.00 % ± 1.00 | 0.2500 ± 0.0100 | – | – | – |",
                "| B-DISTIL, potential | 1 | 0.250 | 50.00 % ± 1.00 | – | – | – | 2 G |",
                "| B-DISTIL, potential, all | 2.5 | 0.500 | – | – | 0.1250 ± 0.0100 | – | – |",
            ],
        ),
        (
            "bdistil-early-dsa19",
            [
                "| mean of the students | 20 % | 4 k | 75.00 % ± 1.00 | 1.0000 ± 0.0100 |",
                "| cascade, share on average | 20 % ± 1 | 4 k | 75.00 % ± 1.00 | – |",
            ],
        ),
        (
            "bdistil-latency-dsa19",
            [
                "| seed 0, batch 1 | teacher | 1.500 | 0.250 | 2 kB | 40 kB |",
                "| | staged ÷ students alone | 1.125 × (1.000–1.250) | | | |",
            ],
        ),
        ("bdistil-game", ["| edge | 0.50 | 0.25–1.00 | 2.5 MB |"]),
    ],
)
def test_parts_of_distillation(render: ModuleType, name: str, lines: list[str]) -> None:
    assert render.OTHERS[name][1](result(SAMPLES[name])).splitlines()[2:] == lines


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        (
            "cascade-imagenet",
            [
                "| 0.4 | 75.00 % ± 1.00 | – | 80.00 % ± 1.00 | – | – | 12.50 % ± 1.00 |",
                "| 20.8 | – | – | – | – | – | 25.00 % ± 1.00 |",
                "",
                "| GMACs at most |  | GMACs met | coverage | risk met | splits above 5 % "
                "| coverage, threshold read on test rows | certified coverage | risk met | splits above 5 % |",
                "|---|---|---|---|---|---|---|---|---|---|",
                "| 0.4 | best pair, paper's window | 0.30 | 50.00 % ± 1.00 | – | – | – | – | – | – |",
                "|  | planner | 0.38 | 50.00 % ± 1.00 | 50.00 % ± 1.00 | 50 % | – | 12.50 % ± 1.00 | 50.00 % ± 1.00 | 50 % |",
                "| 20.8 | planner | 20.00 | 50.00 % ± 1.00 | 50.00 % ± 1.00 | 50 % | – | 25.00 % ± 1.00 | 50.00 % ± 1.00 | 50 % |",
            ],
        ),
        (
            "cascade-frugal",
            [
                "| A |  | 75.00 % ± 1.00 | 25.00 ± 0.01 | -50.0 % ± 1.0 |",
                "| best single service | 0.5 | 75.00 % ± 1.00 | 25.00 ± 0.01 | 50.0 % ± 1.0 |",
                "| planner | as accurate on validation rows | 90.00 % ± 1.00 | 12.50 ± 0.01 | 75.0 % ± 1.0 |",
            ],
        ),
        (
            "cascade-fashion",
            [
                "| single | 90.00 % ± 1.00 | – | – | – | 50.00 % ± 1.00 | – | – | 2 M | 12.5 ± 0.0 |",
                "| paper [1, 3] | – | 75.00 % ± 1.00 | 2.00 % ± 1.00 | – | – | – | – | 3.8 M | – |",
            ],
        ),
        (
            "cascade-executed",
            [
                "| net, batch 64 | stream | 2.50 × | 2.00 × | 1.75–2.25 | 0.800 | 125 µs |",
                "|  | request | 2.50 × | 2.00 × | 1.75–2.25 | 0.800 |  |",
            ],
        ),
        (
            "cascade-windows",
            [
                "| pair, accuracy | paper | 20.00 % ± 1.00 | 20.00 % ± 1.00 | – | – | 12.50 % ± 1.00 |",
                "| pair, accuracy | optimal | 10.00 % ± 1.00 | 10.00 % ± 1.00 | 50.00 % ± 1.00 | – | – |",
                "",
                "| conformal control, α = .005 | decisions kept, test | sent on, test |",
                "|---|---|---|",
                "| pair | 99.600 % ± 1.000 | 30.00 % ± 1.00 |",
            ],
        ),
        (
            "cascade-scale",
            [
                "| fit, 3 stages | 0.125 s | 0.500 s | 0.25 s | × 4.0 | 1.50 × |",
                "| certify | 0.500 s | 0.500 s | – | × 1.0 | 1.50 × |",
            ],
        ),
        (
            "cascade-planner",
            [
                "| accuracy | 12 | 100,000 | 20.2 | 500 MB |",
                "",
                "| beam against every chain | pools | median gap | largest gap |",
                "|---|---|---|---|",
                "| accuracy | 6 | 0.25 % | 0.75 % |",
            ],
        ),
        (
            "cascade-guarantee",
            [
                "| a | 2.5 % (2.0–3.0), 0.500 ± 0.125 |",
                "| b | 2.5 % (2.0–3.0), 0.500 ± 0.125 |",
                "",
                "| TPR ≥ 95 %, and the FPR's bound | n = 300: wrong, OOD rejected |",
                "|---|---|",
                "| certified | 2.5 % (2.0–3.0), 0.500 ± 0.125 |",
                "",
                "| conformal control, α = .005 | n = 300 |",
                "|---|---|",
                "| mean deviation over draws | 0.375 % ± 0.100 |",
                "| draws above α | 25 % |",
                "",
                "| drift watch | runs with an alarm | inputs until then, median |",
                "|---|---|---|",
                "| no drift, the interval | 0.0 % (0.0–1.2) | – |",
                "| drift, the interval | 100.0 % (97.5–100.0) | 12,300 |",
            ],
        ),
    ],
)
def test_parts_of_cascades(render: ModuleType, name: str, lines: list[str]) -> None:
    assert render.OTHERS[name][1](result(SAMPLES[name])).splitlines()[2:] == lines


@pytest.mark.parametrize("name", list(EXPECTED))
def test_parts_of_the_sparse_runtime(render: ModuleType, name: str) -> None:
    assert render.OTHERS[name][1](result(SAMPLES[name])).splitlines()[2:] == EXPECTED[name]


def put(render: ModuleType, **changed: Any) -> None:
    """Results and a README.md for render."""
    render.RECORDED.mkdir(parents=True, exist_ok=True)
    for name in render.TABLES | render.SPARSE | render.FIRST:
        (render.RECORDED / f"{name}.json").write_text(json.dumps(result(FIGURES, **changed)))
    for name in render.OTHERS:
        (render.RECORDED / f"{name}.json").write_text(json.dumps(result(SAMPLES[name])))
    marked = "\n".join(
        f"before\n<!-- begin {name} -->\nold\n<!-- end {name} -->\nafter"
        for name in [*render.TABLES, *render.SPARSE, *render.IN_README]
    )
    if not render.README.exists():
        render.README.write_text(marked)


def test_render_writes_and_checks(render: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    put(render)
    assert render.main(["--check"]) == 1
    assert capsys.readouterr().err == "README.md, RESULTS.md disagree with benchmarks/results: run python benchmarks/render.py\n"
    assert not render.RESULTS.exists()  # a check writes nothing
    assert render.main([]) == 0
    text = render.README.read_text(encoding="utf-8")
    assert "-->\nold\n<!--" not in text
    assert text.count("before\n<!-- begin") == text.count("-->\nafter") == 13
    assert text.count("| accuracy | 50.00 % | 75.00 % |") == 4
    assert "| `nll` | 0.250 s | 0.500 s | 2.00 × | 1.50 × |" in render.RESULTS.read_text(encoding="utf-8")
    assert render.main(["--check"]) == 0
    put(render, commit="def")
    assert render.main(["--check"]) == 1


def test_render_names_what_is_missing_or_broken_in_one_line(render: ModuleType) -> None:
    put(render)
    path = render.RECORDED / "table-digits.json"
    path.write_text("{")
    with pytest.raises(
        SystemExit, match=rf"^{re.escape(str(path))} is not readable as JSON \(.*\): measure it anew with [^\n]*$"
    ):
        render.main([])
    path.unlink()
    with pytest.raises(SystemExit) as stopped:
        render.main(["--check"])
    assert stopped.value.code == f"{path} is missing: measure it with python benchmarks/tables.py --digits"
    assert render.COMMANDS.keys() == {*render.TABLES, *render.SPARSE, *render.FIRST, *render.OTHERS}


@pytest.mark.parametrize("gone", ["begin", "end"])
def test_render_needs_both_marks(render: ModuleType, gone: str) -> None:
    put(render)
    render.README.write_text(render.README.read_text().replace(f"<!-- {gone} table-digits -->", ""))
    message = r"^README.md has no block <!-- begin table-digits --> … <!-- end table-digits -->: put both lines where .* belongs$"
    with pytest.raises(SystemExit, match=message):
        render.main([])
