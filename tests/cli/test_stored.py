"""Stored outputs from the command line: every format, splits, costs, and sources that do not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cli.costs import Costs, read_costs
from quorate.cli.sources import How, Source, read
from quorate.cli.stored import Parts, pool, whole
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.runs import FORMAT

pytestmark = pytest.mark.deciding

N, C = 40, 3


def outputs(seed: int = 0, stages: int = 1, first: int = 0, n: int = N, **options: Any) -> Outputs:
    rng = np.random.default_rng(seed)
    values = [rng.normal(size=(1, n, C)).astype(np.float32) for _ in range(stages)]
    labels = np.arange(first, first + n) % C
    return Outputs(values, **({"labels": labels, "ids": np.arange(first, first + n), "costs": [1.0] * stages} | options))


def write_run(path: Path, parts: dict[str, Outputs]) -> Path:
    write_json(path / "run.json", {"format": FORMAT, "status": "finished", "data": {"name": "d"}, "identity": {}})
    for name, each in parts.items():
        each.save(path / "outputs" / f"{name}.safetensors")
    return path


def write_npz(path: Path, n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {
        "pred": rng.integers(0, C, (2, n)),
        "conf": rng.uniform(0.4, 1, (2, n)),
        "label": rng.integers(0, C, n),
        "models": np.array(["small", "large"]),
        "key": np.array([f"r{i}" for i in range(n)]),
    }
    np.savez(path, **arrays)
    return arrays


TOP1 = How(kind="top1", values=["pred,conf"], labels="label", ids="key", names_array="models")


def test_an_archive_of_several_models_is_a_pool_of_them(tmp_path: Path) -> None:
    arrays = write_npz(tmp_path / "all.npz")
    found = pool([str(tmp_path / "all.npz")], TOP1, costs=Costs({"small": 1.0, "large": 4.0, "other": 9.0}, table=True))
    assert list(found.validation) == ["small", "large"]
    large = found.validation["large"]
    assert (large.values[0][0] == arrays["pred"][1]).all()
    assert (large.values[0][1] == arrays["conf"][1]).all()
    assert (large.truth() == arrays["label"]).all()
    assert large.ids.tolist() == arrays["key"].tolist()
    assert large.costs == (4.0,)
    assert found.calibration is None


def test_csv_columns_are_a_stage_each_word(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("a;b;c;d;y\n.25;.75;.5;.5;cat\n.5;.5;.125;.875;dog\n")
    how = How("probs", ["a,b", "c,d"], "y", names=["one", "two"], class_names=["dog", "cat"], delimiter=";", combine="last")
    found = read(file, how)
    assert found.names == ("one", "two")
    assert found.combine == "last"
    assert found.values[1][0].tolist() == [[0.5, 0.5], [0.125, 0.875]]
    assert found.truth().tolist() == [1, 0]
    assert read(file, how, labelled=False).labels is None


def test_arrays_of_logits_are_a_stage_each(tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(2, 5, C))
    np.savez(tmp_path / "x.npz", first=z, second=z[0], y=np.zeros(5, int))
    found = read(tmp_path / "x.npz", How("logits", ["first", "second"], "y", combine="logits", ordered=True))
    assert (found.members, found.combine, found.ordered) == ((2, 1), "logits", True)


def test_the_split_is_a_random_draw_by_ids(tmp_path: Path) -> None:
    one, two = outputs(1), outputs(2).rows(np.arange(N)[::-1])
    one.save(tmp_path / "one.safetensors")
    two.save(tmp_path / "two.safetensors")
    given = [str(tmp_path / "one.safetensors"), f"b={tmp_path / 'two.safetensors'}"]
    found = pool(given, How(), Parts(split=[0.4, 0.35], seed=3))
    assert found.calibration is not None
    for part, rows in ((found.validation, 16), (found.calibration, 14)):
        assert list(part) == ["one", "b"]
        assert part["one"].n == rows
        assert (part["one"].ids == part["b"].ids).all()
        assert (part["b"].values[0] == two.aligned(part["one"].ids).values[0]).all()
    chosen, certified = (set(part["one"].ids.tolist()) for part in (found.validation, found.calibration))
    assert not chosen & certified
    again = pool(given, How(), Parts(split=[0.4, 0.35], seed=4))
    assert set(again.validation["one"].ids.tolist()) != chosen
    assert set(pool(given, How(), Parts(split=[0.4], seed=3)).validation["one"].ids.tolist()) == chosen
    assert pool(given, How(), Parts(split=[0.4], seed=3)).calibration is None


def test_every_row_is_as_likely_for_calibration(tmp_path: Path) -> None:
    outputs().save(tmp_path / "x.safetensors")
    counts = np.zeros(N)
    for seed in range(200):
        found = pool([str(tmp_path / "x.safetensors")], How(), Parts(split=[0.25, 0.5], seed=seed))
        assert found.calibration is not None
        counts[found.calibration["x"].ids] += 1
    assert abs(counts - 100).max() < 5 * np.sqrt(50)


def test_calibration_files_are_matched_in_order(tmp_path: Path) -> None:
    for name, first in (("a", 0), ("b", 0), ("ca", 100), ("cb", 100)):
        outputs(1, first=first).rows(np.random.default_rng(len(name)).permutation(N)).save(tmp_path / f"{name}.safetensors")
    files = [str(tmp_path / f"{name}.safetensors") for name in ("a", "b", "ca", "cb")]
    found = pool(files[:2], How(), Parts(calibration=files[2:], split=[0.5]))
    assert found.calibration is not None
    assert found.validation["a"].n == 20
    assert set(found.calibration["b"].ids.tolist()) == set(range(100, 140))
    assert (found.calibration["a"].ids == found.calibration["b"].ids).all()


def test_runs_have_parts_of_their_own_and_files_beside_them_take_these_rows(tmp_path: Path) -> None:
    parts = {
        "validation": outputs(1, 2, n=10),
        "calibration": outputs(2, 2, first=10, n=8),
        "ood-far": outputs(3, 2, labels=None),
    }
    run = write_run(tmp_path / "run", parts)
    outputs(4, costs=[7.0]).save(tmp_path / "more.safetensors")
    found = pool([str(run), str(tmp_path / "more.safetensors")], How())
    assert found.calibration is not None
    assert list(found.validation) == ["run/stage0", "run/stage1", "more"]
    assert found.validation["more"].ids.tolist() == list(range(10))
    assert found.calibration["more"].ids.tolist() == list(range(10, 18))
    assert found.validation["more"].costs == (7.0,)
    alone = pool([str(run)], How(), Parts(ood=["far"], ood_split=[0.5, 0.25]))
    assert list(alone.validation) == ["stage0", "stage1"]
    assert (alone.ood["far"]["stage1"].n, alone.cal_ood["far"]["stage0"].n) == (20, 10)
    assert not set(alone.ood["far"]["stage0"].ids.tolist()) & set(alone.cal_ood["far"]["stage0"].ids.tolist())
    (run / "outputs" / "calibration.safetensors").unlink()
    assert pool([str(run)], How()).calibration is None


def test_dependent_stages_stay_together(tmp_path: Path) -> None:
    outputs(0, 3, ordered=True).save(tmp_path / "exits.safetensors")
    found = pool([str(tmp_path / "exits.safetensors")], How(), costs=Costs({"stage0": 1.0, "exits/stage1": 2.0, "stage2": 3.0}))
    assert found.alone == "exits"
    assert found.validation["exits"].costs == (1.0, 2.0, 3.0)


def test_ood_files_have_no_labels(tmp_path: Path) -> None:
    write_npz(tmp_path / "in.npz")
    arrays = write_npz(tmp_path / "out.npz")
    np.savez(tmp_path / "out.npz", **{name: array for name, array in arrays.items() if name != "label"})
    parts = Parts(ood=[f"far={tmp_path / 'out.npz'}"], cal_ood=[f"far={tmp_path / 'out.npz'}"])
    found = pool([str(tmp_path / "in.npz")], TOP1, parts)
    assert found.ood["far"]["small"].labels is None
    assert found.cal_ood["far"]["large"].n == N
    fresh, sets = whole([str(tmp_path / "in.npz")], TOP1, [f"far={tmp_path / 'out.npz'}"])
    assert fresh["in"].names == ("small", "large")
    assert sets["far"]["in"].n == N


def test_costs_by_name_or_table(tmp_path: Path) -> None:
    file = tmp_path / "costs.csv"
    file.write_text("model,top1,gmacs\na,0.7,1.5\nunknown,,\nb,0.8,0\n")
    found = read_costs([str(file)], "model,gmacs")
    assert found is not None
    assert dict(found.by_name) == {"a": 1.5, "b": 0.0}
    assert found.assign({"x": ["a"], "y": ["b"]}) == {"x": [1.5], "y": [0.0]}
    named = read_costs(["k=v=2", "w=3"], None)
    assert named is not None
    assert named.assign({"k=v": ["stage0"], "w": ["stage0"]}) == {"k=v": [2.0], "w": [3.0]}
    assert read_costs(None, None) is None


@pytest.mark.parametrize(
    ("given", "columns", "expected"),
    [
        (None, "a,b", "--cost_columns is for --costs FILE.csv"),
        (["x.csv"], None, "needs one FILE.csv and --cost_columns"),
        (["x.csv"], "a", "needs one FILE.csv and --cost_columns"),
        (["gone.csv"], "a,b", "gone.csv does not exist"),
        (["a"], None, "--costs a: expected a member's name and its cost"),
        (["a=-1"], None, "finite number ≥ 0"),
        (["a=nan"], None, "finite number ≥ 0"),
        (["=1"], None, "finite number ≥ 0"),
        (["a=1", "a=2"], None, "'a' has a cost already"),
    ],
)
def test_costs_that_cannot_be_read(given: list[str] | None, columns: str | None, expected: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=expected):
        read_costs(given, columns)


def test_cost_tables_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "c.csv"
    for content, expected in (
        (b"a,c\n1,2\n", r"0 columns 'b'"),
        (b"a,b\nx\n", r"line 2: expected"),
        (b"a,b\nx,many\n", r"line 2: expected"),
        (b"a,b\nx,1\nx,2\n", r"line 3: 'x' has a cost already"),
        (b"a,b\n\xff,1\n", "not a readable CSV file"),
    ):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=expected):
            read_costs([str(file)], "a,b")


def test_costs_that_do_not_fit_the_members() -> None:
    with pytest.raises(ValueError, match="gives 'b' none: give each member one cost"):
        Costs({"a": 1.0}).assign({"a": ["s"], "b": ["t"]})
    with pytest.raises(ValueError, match="two, by 'a/s' and 's'"):
        Costs({"a/s": 1.0, "s": 2.0}).assign({"a": ["s"]})
    with pytest.raises(ValueError, match="unknown member of --costs 'tiny'"):
        Costs({"a": 1.0, "tiny": 2.0}).assign({"a": ["s"]})
    with pytest.raises(ValueError, match="gives 'a/s' none"):  # of two stages called s neither is meant
        Costs({"s": 1.0}, table=True).assign({"a": ["s", "t"], "b": ["s"]})


@pytest.mark.parametrize(
    ("text", "name", "path"), [("d/x.npz", "x", "d/x.npz"), ("m=d/x.npz", "m", "d/x.npz"), ("m=a=b", "m", "a=b")]
)
def test_names_of_sources(text: str, name: str, path: str) -> None:
    assert Source.of(text) == Source(name, Path(path))


@pytest.mark.parametrize("text", ["=x.npz", "x="])
def test_half_a_source(text: str) -> None:
    with pytest.raises(ValueError, match="expected PATH, or NAME=PATH"):
        Source.of(text)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (How(), "never guessed, give --kind"),
        (How(kind="top1"), "never guessed, give --kind"),
        (How("top1", ["pred"]), "expected LABELS,PROBABILITIES per stage"),
        (How("logits", ["pred,conf"]), "expected the name of one array per stage"),
        (How("logits", ["pred,conf,label"]), "expected the name of one array per stage"),
        (How("top1", ["pred,conf,label"]), "expected LABELS,PROBABILITIES per stage"),
        (How("top1", ["pred,nothing"]), "no array 'nothing'"),
        (How("top1", ["pred,conf"], names=["a"]), "all.npz: names"),
        (How("top1", ["pred,conf"], names=["a", "b"], names_array="models"), "both name the stages"),
        (How("top1", ["pred,conf"], names_array="label"), "expected the stages' names as text"),
    ],
)
def test_archives_that_are_not_what_was_said(tmp_path: Path, how: How, expected: str) -> None:
    write_npz(tmp_path / "all.npz")
    with pytest.raises(ValueError, match=expected):
        read(tmp_path / "all.npz", how)


def test_files_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    (tmp_path / "x.csv").write_text("a\n1\n")
    with pytest.raises(ValueError, match=r"x\.txt: expected a run folder, or a file that ends in"):
        read(tmp_path / "x.txt", How())
    with pytest.raises(ValueError, match=r"--names_array is for \.npz files"):
        read(tmp_path / "x.csv", How("values", ["a"], names_array="n"))


A, B = "a.safetensors", "b.safetensors"
CASES = [
    ([A, A], {}, "two sources are called 'a'"),
    (["gone"], {}, "does not exist: expected a run folder"),
    (["run"], {"split": [0.5]}, "--split is for files"),
    (["run", A], {"calibration": [A]}, "--calibration is for files"),
    ([A], {"split": [0.5, 0.6]}, "sum to at most 1"),
    ([A], {"split": [0.5, -0.1]}, "expected one or two shares"),
    ([A], {"split": [0.2, 0.2, 0.2]}, "expected one or two shares"),
    ([A], {"split": [0.01, 0.5]}, "leaves a part without any"),
    ([A], {"split": [0.5, 0.2], "calibration": [B]}, "both say what the calibration rows are"),
    ([A], {"calibration": [A, B]}, "names 2 files for 1 sources"),
    ([A], {"seed": -1}, "--seed -1"),
    ([A, B], {"split": [0.5]}, r"b\.safetensors: 20 ids are not in"),
    ([A], {"ood": ["far"]}, "expected NAME=FILE"),
    ([A], {"ood": ["far="]}, "expected NAME=FILE"),
    ([A], {"ood": [f"={A}"]}, "expected NAME=FILE"),
    ([A], {"ood": [f"x={A}", f"x={B}"]}, "there is a set 'x' already"),
    (["run"], {"ood": ["near"]}, "no outputs 'ood-near'"),
    ([A], {"ood_split": [0.5, 0.5]}, "--ood_split divides what --ood names"),
    ([A], {"ood": [f"x={B}"], "ood_split": [0.5]}, "expected two"),
    ([A], {"ood": [f"x={B}"], "ood_split": [0.5, 0.6]}, "--ood_split 0.5 0.6"),
]


@pytest.mark.parametrize(("given", "parts", "expected"), CASES, ids=lambda value: str(value)[:40])
def test_sources_that_do_not_go_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], parts: dict[str, Any], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", {"validation": outputs(n=10), "calibration": outputs(n=10)})
    outputs(1).save(A)
    outputs(1, first=40).save(B)
    with pytest.raises((ValueError, FileNotFoundError), match=expected) as caught:
        pool(given, How(), Parts(**parts))
    assert "\n" not in str(caught.value)


def test_rows_without_ids_are_matched_by_position_only_when_that_is_safe(tmp_path: Path) -> None:
    write_npz(tmp_path / "a.npz")
    write_npz(tmp_path / "b.npz", n=30)
    bare = How("top1", ["pred,conf"], "label", names_array="models")
    with pytest.raises(ValueError, match=r"b\.npz has 30 rows, .*a\.npz 40: give --ids"):
        pool([str(tmp_path / "a.npz"), str(tmp_path / "b.npz")], bare)
    outputs().save(tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match=r"a\.npz has no row ids to match"):
        pool([str(tmp_path / "c.safetensors"), str(tmp_path / "a.npz")], bare)
    with pytest.raises(ValueError, match=r"--kind is for \.npz and \.csv files, there are none"):
        pool([str(tmp_path / "c.safetensors")], bare)
    found = pool([str(tmp_path / "a.npz"), f"again={tmp_path / 'a.npz'}"], bare)
    assert list(found.validation) == ["a/small", "a/large", "again/small", "again/large"]
