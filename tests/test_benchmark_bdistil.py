"""The benchmarks of B-DISTIL: how their figures come about, by hand-worked values, and a small run of the whole table on digits."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("sklearn")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import metrics
from quorate.distil.cutting import Cut
from quorate.distil.links import Link
from quorate.distil.losses import distillation
from quorate.distil.pool import Candidate
from quorate.distil.student import run
from quorate.graphs.segments import Boundary
from quorate.models import LeNet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = (
    "record", "tables", "packed_speed", "tickets_tasks", "bdistil_tasks", "bdistil_seed", "bdistil_joint", "bdistil_methods",
    "bdistil_table", "bdistil_engines", "bdistil_latency",
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


# — figures —


def test_mixture_weights_are_those_of_least_nll(load: Load) -> None:
    simplex = load("bdistil_methods").simplex
    np.testing.assert_array_equal(simplex(np.array([[0.2, 0.9]])), [1.0])
    both = np.array(
        [[0.8, 0.2, 0.2], [0.2, 0.8, 0.8]]
    )  # with a = w₁: log(.2 + .6a) + 2 log(.8 − .6a) is greatest at a = 0.8/6·… = 0.0…
    shares = np.linspace(0, 1, 10_001)
    nll = -np.log(np.outer(shares, both[0]) + np.outer(1 - shares, both[1])).mean(1)
    assert simplex(both)[0] == pytest.approx(shares[nll.argmin()], abs=1e-3)
    np.testing.assert_allclose(simplex(np.array([[0.9, 0.9], [0.1, 0.2]])), [1, 0], atol=1e-6)
    assert np.isfinite(simplex(np.array([[0.0, 0.0], [0.5, 0.0]]))).all()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_mixture_weights_never_lose_to_equal_ones(seed: int, count: int) -> None:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        simplex = importlib.import_module("bdistil_methods").simplex
    finally:
        sys.path.remove(str(BENCHMARKS))
    p = np.random.default_rng(seed).uniform(0.01, 1, (count, 40))
    weights = simplex(p)
    assert weights.sum() == pytest.approx(1)
    assert weights.min() >= 0
    assert -np.log(weights @ p).mean() <= -np.log(p.mean(0)).mean() + 1e-12


def test_residual_is_what_earlier_students_left(load: Load) -> None:
    rng = torch.Generator().manual_seed(0)
    f1, f2, f3, g = (torch.randn(5, 4, generator=rng) for _ in range(4))
    f1, f2, g = (each - each.mean(-1, keepdim=True) for each in (f1, f2, g))
    s = (f1 - g) + (f2 - g)
    found = load("bdistil_methods").residual(2)(f3, g, s)
    centred = f3 - f3.mean(-1, keepdim=True)
    torch.testing.assert_close(found, (centred - (g - f1 - f2)).square().mean())


def test_figures_of_a_prefix_and_of_the_steps(load: Load) -> None:
    table, methods = load("bdistil_table"), load("bdistil_methods")
    labels, g = np.array([0, 1, 1]), np.array([[2.0, 0], [0, 1], [1, 0]])
    first = methods.Prefix.of([[1.0, 0], [0, 1], [1, 0]], 1, 30, 7, 100, 16)
    second = methods.Prefix.of([[0.0, 2], [0, 1], [0, 3]], 2, 50, 12, 250, 8)
    found = table.columns("m", methods.Result([first, second], 900), labels, g, 200)
    assert list(found) == ["m/prefix1", "m/prefix2", "m/full"]
    one, two = found["m/prefix1"], found["m/prefix2"]
    assert (one["accuracy"], two["accuracy"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (one["teacher_agreement"], two["teacher_agreement"]) == (1.0, pytest.approx(1 / 3))
    assert one["max_error"] == pytest.approx(0.5)  # centred: (1, −1) against (.5, −.5)
    assert one["mean_error"] == pytest.approx(0.5 / 3)
    assert one["nll"] == pytest.approx(float(np.log1p(np.exp([-1.0, -1, 1])).mean()))
    assert one["teacher_kl"] == pytest.approx(metrics.fidelity_kl(g, np.array([[1.0, 0], [0, 1], [1, 0]])))
    assert (one["macs"], one["macs_share"], one["parameters"], one["training_macs"]) == (30, 0.15, 7, 100)
    assert "right_to_wrong" not in one
    assert (two["right_to_wrong"], two["wrong_to_right"]) == (1, 1)
    assert found["m/full"] == {**two, "training_macs_all": 900.0, "carried_bytes_most": 16}
    mixed = methods.Prefix(np.log([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), None, 2, 1, 1, 1)
    plain = table.figures(mixed, labels, g, 10)
    assert not {"max_error", "carried_bytes"} & plain.keys()
    assert plain["nll"] == pytest.approx(-float(np.log([0.9, 0.8, 0.5]).mean()))


def test_differences_are_to_prefixes_of_the_same_sizes(load: Load) -> None:
    table = load("bdistil_table")
    found: dict[str, Any] = {
        "teacher": {"accuracy": 0.9, "nll": 0.1},
        "bdistil-potential/prefix1": {"accuracy": 0.8, "nll": 0.3},
        "no-links/prefix1": {"accuracy": 0.7, "nll": 0.4},
        "reshed/prefix1": {"accuracy": 0.75, "nll": 0.5},
        "no-reshed/prefix1": {"accuracy": 0.85, "nll": 0.25},
    }
    table.compare_(found)
    own = found["bdistil-potential/prefix1"]
    assert own["accuracy_over_teacher"] == pytest.approx(-0.1)
    assert own["accuracy_over_reshed"] == pytest.approx(0.05)
    assert own["nll_over_no_reshed"] == pytest.approx(0.05)
    assert "accuracy_over_reshed" not in found["no-links/prefix1"]
    assert "accuracy_over_teacher" not in found["teacher"]
    lines = table.verdicts([found])
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["met", "NOT MET"]


def test_only_columns_of_all_seeds_are_kept(load: Load) -> None:
    table = load("bdistil_table")
    seeds = [
        {"a/prefix1": {"x": 1.0}, "a/prefix2": {"x": 2.0}, "a/full": {"x": 2.0}},
        {"a/prefix1": {"x": 3.0}, "a/full": {"x": 3.0}},
    ]
    assert [list(each) for each in table.in_all(seeds)] == [["a/prefix1", "a/full"]] * 2


# — networks —


def cuttable(load: Load, tmp_path: Path) -> Any:
    """A seed whose teacher is a small network with random weights."""
    seed = load("bdistil_seed").Seed(SimpleNamespace(), SimpleNamespace(), 3, tmp_path)
    seed.__dict__ |= {"network": LeNet((1, 8, 8), 5, width=(8, 16), hidden=(32,)).eval(), "example": torch.zeros(1, 1, 8, 8)}
    return seed


def test_nearest_network_is_the_largest_within_the_limit(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = [k / 16 for k in range(1, 17)]
    monkeypatch.setattr(load("bdistil_seed"), "WIDTHS", tuple(widths))
    seed = cuttable(load, tmp_path)
    assert seed.depths == (1.0,)
    half = seed.macs(1.0, 0.5)
    for limit in (half, half - 1):
        found = seed.nearest(limit)
        assert seed.macs(1.0, found.width) <= limit < seed.macs(1.0, found.width + 1 / 16)
    assert seed.macs(1.0, 0.99) == seed.macs(1.0, 1.0)  # no channel goes
    assert seed.nearest(10**9) == Cut(1.0, 1.0)
    with pytest.raises(ValueError, match="at most 1 MACs: expected a larger limit"):
        seed.nearest(1)
    seed.__dict__["depths"] = (1.0, 0.5)
    seed._macs = {(1.0, width): round(990 * width) for width in widths} | {(0.5, width): round(1000 * width) for width in widths}
    assert seed.nearest(1000) == Cut(1.0, 1.0)  # 990 are as many as 1000
    seed._macs |= {(1.0, width): round(960 * width) for width in widths}
    assert seed.nearest(1000) == Cut(0.5, 1.0)
    seed._macs |= {(1.0, width): round(3000 * width) for width in widths}
    assert seed.nearest(100) == Cut(0.5, 1 / 16)


def test_every_network_has_a_seed_and_a_folder_of_its_own(load: Load, tmp_path: Path) -> None:
    seed, methods = cuttable(load, tmp_path), load("bdistil_methods")
    drawn = [seed.drawn(name, t) for name in methods.METHODS for t in range(5)]
    assert len(set(drawn)) == len(drawn)
    assert seed.drawn("joint", 1) == seed.drawn("joint", 1)
    assert seed.run("reshed/2") == tmp_path / "reshed-3" / "2"
    assert seed.run("teacher") == tmp_path / "teacher-3"
    assert methods.no_reshed_name(Cut(0.5, 0.25)) == "no-reshed/d0.5-w0.25"


@pytest.mark.parametrize(("here", "there"), [((3, 4, 4), (3, 4, 4)), ((3, 4, 4), (5, 2, 2)), ((3, 2, 2), (5, 4, 4))])
def test_open_links_give_the_same_with_a_gradient(load: Load, here: tuple[int, ...], there: tuple[int, ...]) -> None:
    link = Link(Boundary(here, 1), Boundary(there, 1))
    nn.init.constant_(link.alpha, 0.7)  # type: ignore[arg-type]
    h = torch.randn(2, *here, requires_grad=True)
    found = load("bdistil_joint").Open(link)(h)
    torch.testing.assert_close(found, link(h), rtol=0, atol=0)
    found.sum().backward()
    assert h.grad is not None
    assert h.grad.abs().sum() > 0


def test_students_together_give_what_they_give_in_turn(load: Load) -> None:
    from quorate.distil.pool import Pool

    model, x = LeNet((1, 8, 8), 5, width=(8, 16), hidden=(32,)).eval(), torch.rand(3, 1, 8, 8)
    sizes = [SimpleNamespace(cut=Cut(1.0, width)) for width in (0.25, 0.5)]
    pool = Pool.cut_from(model, x[:1], SimpleNamespace(sizes=sizes, skipped=()))
    first = pool.build(Candidate(0, seed=1), 0, [], x[:1])
    second = pool.build(Candidate(1, "all", seed=2), 1, [first], x[:1])
    for link in second.links:  # type: ignore[union-attr]
        nn.init.ones_(link.alpha)
    before = torch.stack(run([first.eval(), second.eval()], x)[0])
    together = load("bdistil_joint").Together([first, second])
    found, written = together(x, {})
    torch.testing.assert_close(found, before)
    assert written == {}
    found[1].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in first.parameters())  # through the links alone


def test_peak_counts_what_is_alive_at_once(load: Load) -> None:
    peak = load("bdistil_engines").peak_activations
    x = torch.zeros(256)

    def chain() -> torch.Tensor:
        h = x + 1
        for _ in range(5):
            h = h + 1  # the one before, this one
        return h

    assert peak(chain, [], x) == 2 * 1024
    assert peak(lambda: [x + 1, x + 2, x + 3], [], x) == 3 * 1024
    assert peak(lambda: x.view(2, 128).t(), [], x) == 0
    layer = nn.Linear(256, 2)
    assert peak(lambda: layer(x[None]), [layer], x) == 8


def test_first_round_is_the_loops(load: Load) -> None:
    seed = SimpleNamespace(task=SimpleNamespace(loss={"potential": {"tau": 2.0, "mse_weight": 0.5}}))
    loss, weights = load("bdistil_methods").first_round(seed)
    f, g = torch.randn(2, 4, 3)
    torch.testing.assert_close(loss(f, g), distillation(f, g, tau=2.0, mse_weight=0.5))
    assert weights == {"tau": 2.0, "mse_weight": 0.5}


# — the whole table —


def test_tasks_have_settings_that_exist(load: Load) -> None:
    from quorate.distil.learner import check_settings
    from quorate.distil.round_loss import LossSettings
    from quorate.distil.rules import Rules
    from quorate.training import Settings

    tasks, table = load("bdistil_tasks"), load("bdistil_table")
    for task in (*tasks.TASKS.values(), *map(table.shortened, tasks.TASKS.values())):
        check_settings(Settings.of(task.training))
        Settings.of(task.teacher)
        Rules.of({"budget": 0.5, **task.rules})
        for kind in ("potential", "barrier"):
            LossSettings.of({"kind": kind, **task.loss.get(kind, {})})


@pytest.mark.slow
def test_table_trains_reads_back_and_writes(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks, table, methods = load("bdistil_tasks"), load("bdistil_table"), load("bdistil_methods")
    brief = {"epochs": 1, "batch_size": 64, "lr": 0.05, "accelerator": "cpu"}
    rules = {"rounds": 2, "candidates": 1, "joint": True, "links": ("all",)}
    network = lambda data: LeNet(data.shape, data.width, width=(8, 16), hidden=(32,))  # noqa: E731
    tiny = tasks.Task(network, brief, (Cut(1.0, 0.25), Cut(1.0, 0.5)), brief, "Tiny digits.", rules)
    monkeypatch.setitem(tasks.TASKS, "digits", tiny)
    asked = ["digits", "--out", str(tmp_path / "runs"), "--seeds", "1"]
    table.main([*asked, "--only", "bdistil-potential", "reshed"])
    result = tmp_path / "results" / "bdistil-digits.json"
    assert not result.exists()
    table.main(asked)
    written = json.loads(result.read_text())
    figures = written["figures"]
    mean = {column: {key: each["mean"] for key, each in own.items()} for column, own in figures.items()}
    count = int(mean["bdistil-potential/full"]["networks"])
    assert next(iter(figures)) == "teacher"
    assert {column.split("/")[0] for column in list(figures)[1:]} == set(methods.METHODS)
    for name in set(methods.METHODS) - {"bdistil-barrier", "no-links"}:
        assert [f"{name}/prefix{t}" in figures for t in range(1, count + 2)] == [True] * count + [False]
    for t in range(1, count + 1):
        loop, single = mean[f"bdistil-potential/prefix{t}"], mean[f"no-reshed/prefix{t}"]
        assert single["macs"] <= loop["macs"] <= 0.5 * mean["teacher"]["macs"]
        assert mean[f"kd-single/prefix{t}"]["macs"] == single["macs"]
        assert mean[f"joint/prefix{t}"]["macs"] == loop["macs"]
        assert mean[f"reshed/prefix{t}"]["parameters"] == mean[f"boosting/prefix{t}"]["parameters"] <= loop["parameters"]
        assert "max_error" not in mean[f"reshed/prefix{t}"]
    for column in ("reshed/prefix1", "boosting/prefix1", "kd-independent/prefix1"):
        assert mean[column]["macs"] == mean["bdistil-potential/prefix1"]["macs"]
    assert mean["teacher"]["teacher_kl"] == pytest.approx(0, abs=1e-12)
    assert mean["teacher"]["max_error"] == pytest.approx(0, abs=1e-6)
    assert mean["teacher"]["teacher_agreement"] == 1
    assert mean["bdistil-potential/full"]["training_macs_all"] >= mean["bdistil-potential/full"]["training_macs"]
    assert "Tiny digits." in written["note"]
    assert "boosting networks of the T sizes" in written["note"]
    table.main(asked)  # all is read back
    assert json.loads(result.read_text())["figures"] == figures
    _latency_reads_these_runs(load, tmp_path, count)
    _another_training_is_refused(load, tmp_path, tiny)
    capsys.readouterr()
    for wrong in (["digits", "--path", "P"], ["dsa19"]):
        with pytest.raises(SystemExit):
            table.main(wrong)
        assert "expected" in capsys.readouterr().err


def _latency_reads_these_runs(load: Load, tmp_path: Path, count: int) -> None:
    latency = load("bdistil_latency")
    asked = ["digits", "--seeds", "1", "--batches", "2", "--repeats", "2", "--out", str(tmp_path / "runs"), "--no-onnx"]
    latency.main(asked)
    (found,) = json.loads((tmp_path / "results" / "bdistil-latency-digits.json").read_text())["figures"].values()
    prefixes = [f"prefix {t}" for t in range(1, count + 1)]
    assert {f"eager, {name}" for name in ("teacher", *prefixes)} < found["ms"].keys()
    assert list(found["macs_share"]) == prefixes
    assert f"eager, prefix {count} ÷ no-reshed {count}" in found["over"]
    assert all(size > 0 for size in found["activation_bytes"].values())
    with pytest.raises(ValueError, match="holds no finished run"):
        latency.main([*asked[:2], "7", *asked[3:]])


def _another_training_is_refused(load: Load, tmp_path: Path, tiny: Any) -> None:
    seed = load("bdistil_seed").Seed(tiny, load("bdistil_tasks").load("digits", None, 1), 1, tmp_path / "runs" / "digits", False)
    student = load("bdistil_methods").ChainStudent(seed.unlinked(0, 5), 0)
    with pytest.raises(ValueError, match="holds another run"):
        seed.learned("boosting/1", [student], lambda *each: each[0].mean(), 5, place=0)
