"""The benchmarks of tickets: which rows the methods see, what figures they get, and a small run of each script."""

from __future__ import annotations

import gzip
import importlib
import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

import quorate
from quorate.metrics import pairwise_kl
from quorate.outputs import Outputs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "record",
    "tables",
    "packed_speed",
    "packed_rival",
    "tickets_tasks",
    "tickets_methods",
    "tickets_table",
    "tickets_overhead",
)
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Load]:
    """A benchmark by name; threads and results are the test's own."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in SCRIPTS:
        sys.modules.pop(name, None)
    monkeypatch.setattr(importlib.import_module("record"), "RESULTS", tmp_path / "results")
    threads, limit = torch.get_num_threads(), torch._dynamo.config.recompile_limit
    yield importlib.import_module
    torch.set_num_threads(threads)
    torch._dynamo.config.recompile_limit = limit
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture
def activities(tmp_path: Path) -> Path:
    """A file like DSA-19's: 19 activities of 8 subjects, two windows of 20 steps and three channels each."""
    y, subject = (part.ravel() for part in np.meshgrid(np.arange(19), np.repeat(np.arange(8), 2), indexing="ij"))
    x = np.random.default_rng(0).integers(0, 256, (len(y), 20, 3))
    path = tmp_path / "dsa.npz"
    np.savez(
        path,
        x=x.astype(np.uint8),
        y=y.astype(np.uint8),
        subject=subject.astype(np.uint8),
        lo=np.zeros(3, np.float32),
        hi=np.ones(3, np.float32),
        activities=np.array([f"a{k}" for k in range(19)]),
    )
    return path


def test_dsa19_holds_four_activities_out_and_keeps_subjects_apart(load: Load, activities: Path) -> None:
    tasks = load("tickets_tasks")
    data = tasks.dsa19(activities, 1)
    kept = [k for k in range(19) if k not in tasks.HELD_OUT]
    assert data.classes == tuple(f"a{k}" for k in kept)
    file = np.load(activities)
    for split in data.splits().values():
        np.testing.assert_array_equal(np.array(kept)[split.y], file["y"][split.ids])
        np.testing.assert_array_equal(np.unique(file["subject"][split.ids]), np.unique(split.groups))
    (outside,) = data.ood.values()
    assert set(file["subject"][outside.ids]) == set(file["subject"][data.test.ids]) == {6, 7}
    assert set(file["y"][outside.ids]) == set(tasks.HELD_OUT)
    assert [len(split) for split in data.splits().values()] == [4 * 30, 30, 30, 60]
    assert set(tasks.dsa19(activities, 1).train.ids) == set(data.train.ids) != set(tasks.dsa19(activities, 2).train.ids)


def test_fashion_mnist_is_a_stratified_part_with_few_ood_rows(load: Load, tmp_path: Path) -> None:
    tasks = load("tickets_tasks")
    rng = np.random.default_rng(0)
    for part, rows in (("train", 1000), ("t10k", 50)):
        for stem, values in (
            ("images-idx3", rng.integers(0, 256, (rows, 28, 28), np.uint8)),
            ("labels-idx1", (np.arange(rows) % 10).astype(np.uint8)),
        ):
            head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (tmp_path / f"{part}-{stem}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes(), 1))
    np.savez(tmp_path / "k.npz", x=rng.integers(0, 256, (2100, 28, 28), np.uint8))
    data = tasks.fashion_mnist(tmp_path, {"k": str(tmp_path / "k.npz")}, 3)
    assert [len(split) for split in data.splits().values()] == [80, 20, 20, 50]
    assert np.bincount(data.train.y).tolist() == [8] * 10
    assert len(data.ood["k"]) == tasks.OOD_ROWS
    network = tasks.TASKS["fashion-mnist"].network(data)
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
    assert sum(w.numel() for w in network.parameters()) == 174_970


def outputs(*probs: list[list[float]], labels: list[int]) -> Outputs:
    return Outputs([np.log(each)[None] for each in np.array(probs)], labels=labels, names=[f"m{k}" for k in range(len(probs))])


def test_quality_of_two_members_and_of_the_first(load: Load) -> None:
    table = load("tickets_table")
    one, two = [[0.9, 0.1], [0.4, 0.6]], [[0.2, 0.8], [0.3, 0.7]]
    clean = outputs(one, two, labels=[0, 1])
    parts = {"validation": clean, "test": clean, "ood-far": outputs(two, two, labels=[0, 0])}
    shifted = {"a": outputs(two, two, labels=[0, 1]), "b": clean}
    found = table.quality(parts, shifted)
    assert found["accuracy"] == 1.0
    assert found["nll"] == pytest.approx(-(np.log(0.55) + np.log(0.65)) / 2)
    assert found["disagreement"] == 0.5
    assert found["kl"] == pytest.approx(pairwise_kl(np.array([one, two])))
    assert found["member_accuracy"] == 0.75
    assert found["accuracy_corrupted"] == pytest.approx((0.5 + 1.0) / 2)
    assert found["nll_corrupted"] == pytest.approx((found["nll"] - (np.log(0.2) + np.log(0.7)) / 2) / 2)
    assert "auroc:far" in found
    assert "macs" not in found
    alone = table.quality(parts, shifted, 1)
    assert alone["nll"] == pytest.approx(-(np.log(0.9) + np.log(0.6)) / 2)
    assert not {"disagreement", "kl", "member_accuracy"} & alone.keys()
    gain = table.over(found, alone)
    assert gain["nll_over_single"] == pytest.approx(found["nll"] - alone["nll"])
    assert gain["accuracy_corrupted_over_single"] == pytest.approx(found["accuracy_corrupted"] - alone["accuracy_corrupted"])


def test_costs_are_shares_of_a_dense_run_or_those_of_the_ledger(load: Load) -> None:
    table = load("tickets_table")
    facts: dict[str, Any] = {"training_macs": 3000, "macs": 30, "parameters": 300, "train_seconds": 6.0}
    single = table.Cost.of(SimpleNamespace(facts=facts), 1 / 3)
    assert vars(single) == {"training_macs": 1000, "macs": 10, "parameters": 100, "train_seconds": 2}
    ledger = {"training_macs": 650, "inference_macs": {"total": 9}, "live_parameters": {"total": 60}}
    found = table.Cost.of(SimpleNamespace(facts=facts | {"ledger": ledger})).figures(single)
    assert found["train_seconds"] == 6.0
    assert (found["training_macs_ratio"], found["macs_ratio"], found["parameters_ratio"]) == (0.65, 0.9, 0.6)


class Fixed(nn.Module):
    """One member that says always the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(15.0).expand(1, len(x), 15)


def test_corrupted_outputs_are_kept_in_the_run(load: Load, activities: Path, tmp_path: Path) -> None:
    table, tasks = load("tickets_table"), load("tickets_tasks")
    data = tasks.dsa19(activities, 0)
    found = table.corrupted(Fixed(), data, tasks.TASKS["dsa19"], tmp_path)
    assert len(found) == 6
    assert {len(each) for each in found.values()} == {len(data.test)}
    assert {path.name for path in (tmp_path / "corrupted").iterdir()} == {f"{name}-3.safetensors" for name in found}
    again = table.corrupted(nn.Identity(), data, tasks.TASKS["dsa19"], tmp_path)  # not run
    np.testing.assert_array_equal(again["gain"].values[0], found["gain"].values[0])


def test_table_trains_reads_back_and_writes(
    load: Load, activities: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, methods = load("tickets_table"), load("tickets_methods")
    monkeypatch.setattr(methods, "EPOCHS", 2)
    monkeypatch.setattr(methods, "SWA_FROM", 1)
    monkeypatch.setattr(table, "METHODS", {name: methods.METHODS[name] for name in ("deep", "swa")})
    asked = ["dsa19", str(activities), "--out", str(tmp_path / "runs"), "--seeds", "0"]
    table.main([*asked, "--only", "deep"])
    result = tmp_path / "results" / "tickets-dsa19.json"
    assert not result.exists()
    table.main(asked)
    written = json.loads(result.read_text())
    figures = written["figures"]
    assert list(figures) == ["single", "deep", "swa"]
    assert figures["single"]["training_macs_ratio"]["mean"] == figures["swa"]["training_macs_ratio"]["mean"] == 1.0
    assert figures["deep"]["training_macs_ratio"]["mean"] == pytest.approx(3.0)
    assert figures["deep"]["macs_ratio"]["mean"] == pytest.approx(3.0)
    assert "nll_over_single" in figures["swa"]
    assert written["note"].startswith("Dense and sparse ensembles")
    assert "15 activities" in written["note"]
    before = result.read_text()
    table.main(asked)
    assert json.loads(before)["figures"] == json.loads(result.read_text())["figures"]
    capsys.readouterr()
    for wrong in (
        ["dsa19"],
        ["dsa19", "F", "--root", "D"],
        ["dsa19", "F", "--ood", "k=K"],
        ["cifar10", "--root", "D"],
        ["fashion-mnist", "--root", "D", "--ood", "k"],
    ):
        with pytest.raises(SystemExit):
            table.main(wrong)
        assert "expected" in capsys.readouterr().err


def test_overhead_weighs_moves_by_their_share(load: Load) -> None:
    overhead = load("tickets_overhead")
    times = {"random, plain": [2.0, 4.0], "random, move": [12.0, 4.0], "dense": [2.0, 4.0]}
    assert overhead.amortised(times, "random") == {"median": pytest.approx(1.025), "q1": 1.0125, "q3": 1.0375}


def test_overhead_runs(load: Load, tmp_path: Path) -> None:
    overhead = load("tickets_overhead")
    options = ["--smoke", "--threads", "1", "--allocator", "system", "--networks", "mlp", "--output", str(tmp_path / "results")]
    overhead.main(options)
    figures = json.loads((tmp_path / "results" / "tickets-overhead-system.json").read_text())["figures"]
    (found,) = (each for place, each in figures.items() if place != "settings")
    assert found["ms"].keys() == {"dense", "random, plain", "random, move", "gradient, plain", "gradient, move"}
    assert found["ratio"].keys() == {"dense, growth random", "dense, growth gradient"}


def test_cifar_is_read_and_its_network_fits(load: Load, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = {"train": 400, "test": 20}
    images = {f"x_{part}": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for part, n in rows.items()}
    np.savez(tmp_path / "c.npz", **images, **{f"y_{part}": np.arange(n) % 10 for part, n in rows.items()})
    np.savez(tmp_path / "o.npz", x=images["x_test"])
    tasks = load("tickets_tasks")
    data = tasks.cifar10(tmp_path / "c.npz", {"o": str(tmp_path / "o.npz")}, 0)
    task = tasks.TASKS["cifar10"]
    assert (len(data.test), list(data.ood), data.augmentation.flip) == (20, ["o"], True)
    assert task.network(data)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    quorate.training.Settings(**task.settings)
