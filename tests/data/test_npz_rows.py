"""One .npz with all rows: groups stay whole, folds are the test split, quantised values come back, refusals name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from quorate.data import arrays
from quorate.data.npz_rows import dequantise, group_rows, npz_rows

RNG = np.random.default_rng(0)
N = 240
X = RNG.integers(0, 256, (N, 6, 4)).astype(np.uint8)  # (N, L, C)
Y = RNG.integers(0, 3, N)
PERSON = np.arange(N) % 12
LO, HI = np.linspace(-3, 1, 4), np.linspace(1, 4, 4)


def write(path: Path, **changes: Any) -> Path:
    keys = {
        "x": X,
        "y": Y.astype(np.uint8),
        "person": PERSON.astype(np.uint8),
        "city": np.array(["Bonn", "Cork", "Oslo", "Rome"])[PERSON % 4],
        "names": np.array(["walk", "run", "sit"]),
        "lo": LO,
        "hi": HI,
        **changes,
    }
    np.savez(path, **{key: value for key, value in keys.items() if value is not None})
    return path


def test_whole_groups_and_the_fold_as_test(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    data = npz_rows(path, layout="nlc", groups="person", fold="person", test=[2, 11], classes="names", seed=4, name="n")
    assert data.classes == ("walk", "run", "sit")
    assert data.shape == (4, 6)
    np.testing.assert_array_equal(data.test.ids, np.flatnonzero(np.isin(PERSON, [2, 11])))
    people = [set(PERSON[split.ids].tolist()) for split in data.splits().values()]
    assert sum(map(len, people)) == len(set.union(*people)) == 12
    for split in data.splits().values():
        np.testing.assert_array_equal(split.x, X[split.ids].transpose(0, 2, 1))
        np.testing.assert_array_equal(split.y, Y[split.ids])
    assert json.loads(json.dumps(data.preprocessing))["test"] == [2, 11]


def test_cut_by_fractions_without_a_fold(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz")
    whole = npz_rows(path, layout="nlc", groups="city", fractions=(0.4, 0.3, 0.3), fold="person", test=[0, 4, 8])
    assert {PERSON[i] % 4 for i in whole.test.ids} == {0}
    data = npz_rows(path, layout="nlc", fractions=(0.4, 0.1, 0.2, 0.3), seed=7, name="arrays")
    other = arrays((X.transpose(0, 2, 1), Y), fractions=(0.4, 0.1, 0.2, 0.3), seed=7)
    assert data.fingerprint() == other.fingerprint()
    assert npz_rows(path, layout="nlc", fractions=(0.4, 0.1, 0.2, 0.3), seed=8).fingerprint() != other.fingerprint()


def test_text_columns_labels_and_keys(tmp_path: Path) -> None:
    words = np.array(["sit", "walk", "run"])[Y]
    path = write(tmp_path / "a.npz", x=None, y=None, values=X, word=words, fold=np.array(["7", "8"])[PERSON % 2])
    data = npz_rows(path, layout="nlc", x="values", y="word", fold="fold", test=[8])  # as a command line gives "8"
    assert data.classes == ("run", "sit", "walk")
    np.testing.assert_array_equal(np.array(data.classes)[data.train.y], words[data.train.ids])
    np.testing.assert_array_equal(data.test.ids % 2, 1)
    own = npz_rows(path, layout="nlc", x="values", y="word", classes=("walk", "sit", "run"))
    np.testing.assert_array_equal(np.array(own.classes)[own.test.y], words[own.test.ids])
    with pytest.raises(ValueError, match=r"a\.npz: 'word' must hold names among the classes \['walk', 'run'\], got 'sit'$"):
        npz_rows(path, layout="nlc", x="values", y="word", classes=["walk", "run"])


def test_rows_of_no_group_stand_alone(tmp_path: Path) -> None:
    whose = np.where(np.arange(N) % 4 == 0, "", np.char.add("p", (PERSON % 6).astype(str)))
    path = write(tmp_path / "a.npz", whose=whose, part=(PERSON % 6 < 2).astype(int))
    options: dict[str, Any] = {"layout": "nlc", "groups": "whose", "fold": "part", "test": [1]}
    with pytest.raises(ValueError, match=r"no 'whose' may have rows both in the test split and outside it, got 1 such, '':"):
        npz_rows(path, **options)
    data = npz_rows(path, **options, ungrouped="")
    lone = np.flatnonzero(whose == "")
    assert sum(len(np.intersect1d(split.ids, lone)) > 0 for split in data.splits().values()) >= 3
    assert len(np.unique(group_rows(path, "whose", whose, ""))) == len(lone) + len(set(whose.tolist()) - {""})


@given(column=st.lists(st.integers(-5, 5), min_size=1), k=st.integers(0, 9))
@settings(deadline=None)
def test_group_rows(column: list[int], k: int) -> None:
    values = np.array(column)
    alone = column[k % len(column)]
    groups = group_rows(Path("f"), "k", values, alone)
    for i, a in enumerate(column):
        for j, b in enumerate(column):
            assert (groups[i] == groups[j]) == (i == j or (a == b != alone))


def test_regression(tmp_path: Path) -> None:
    targets = RNG.normal(size=(N, 2))
    features = RNG.normal(size=(N, 5)).astype(np.float32)
    path = write(tmp_path / "a.npz", x=features, y=targets, one=np.arange(N), units=np.array(["kg", "m"]))
    two = npz_rows(path, layout="features", task="regression", fold="person", test=[0])
    assert (two.task, two.targets) == ("regression", ("y0", "y1"))
    np.testing.assert_array_equal(two.test.y, targets[two.test.ids].astype(np.float32))
    assert npz_rows(path, layout="features", task="regression", targets="units").targets == ("kg", "m")
    one = npz_rows(path, layout="features", y="one", task="regression")
    assert one.targets == ("one",)
    np.testing.assert_array_equal(one.train.y[:, 0], one.train.ids)
    assert one.train.y.dtype == np.float32
    assert npz_rows(path, layout="features", y="one", task="regression", targets=["age"]).targets == ("age",)
    with pytest.raises(ValueError, match=r"targets must name the 2 columns of 'y', got \['kg'\]"):
        npz_rows(path, layout="features", task="regression", targets=["kg"])
    with pytest.raises(ValueError, match=r"'names' must hold numbers \(N,\) or \(N, D\) for regression, got shape \(3,\)"):
        npz_rows(path, layout="features", y="names", task="regression")
    with pytest.raises(ValueError, match=r"a\.npz: targets must be .* 240 rows of x, got shape \(4, 1\)"):
        npz_rows(path, layout="features", y="lo", task="regression")
    with pytest.raises(
        ValueError, match="'y' must hold integers or names, got float64: for numbers to predict, task='regression'"
    ):
        npz_rows(path, layout="features")


def test_quantised_values_come_back(tmp_path: Path) -> None:
    path = write(tmp_path / "a.npz", low=np.float32(-80.5), high=np.float32(20))
    np.savez(tmp_path / "far.npz", x=X[:9])
    data = npz_rows(path, layout="nlc", scale=("lo", "hi"), ood={"far": tmp_path / "far.npz"})
    exact = LO + (HI - LO) * X.astype(np.float64) / 255
    np.testing.assert_array_equal(data.test.x, exact[data.test.ids].transpose(0, 2, 1).astype(np.float32))
    np.testing.assert_array_equal(data.ood["far"].x, exact[:9].transpose(0, 2, 1).astype(np.float32))
    assert data.preprocessing is not None
    assert data.preprocessing["scale"] == {"lo": LO.tolist(), "hi": HI.tolist()}
    single = npz_rows(path, layout="nlc", scale=["low", "high"])
    np.testing.assert_allclose(single.train.x, -80.5 + 100.5 * X[single.train.ids].transpose(0, 2, 1) / 255, rtol=1e-6)


def test_the_ends_of_the_scale_and_what_it_refuses() -> None:
    ends = dequantise(np.array([[0, 255], [255, 0]], np.uint8), np.array([-1, 2.5]), np.array([7.5, 2.5]), "w")
    np.testing.assert_array_equal(ends, [[-1, 2.5], [7.5, 2.5]])
    x = np.zeros((2, 3), np.uint8)
    with pytest.raises(ValueError, match="w: scale is for values quantised to uint8, got float32: drop scale"):
        dequantise(x.astype(np.float32), LO, HI, "w")
    with pytest.raises(ValueError, match=r"w: lo and hi must be numbers, .* shape \(\) or \(3,\), got shapes \(4,\) and \(4,\)"):
        dequantise(x, LO, HI, "w")
    for low, high in ((1, 0), (0, np.nan), (-np.inf, 0)):
        with pytest.raises(ValueError, match=r"finite with lo ≤ hi, got .* in channel 0"):
            dequantise(x, np.array(low), np.array(high), "w")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"y": "label", "groups": "who"}, r"a\.npz must hold the keys .* got \['city', .*\]: \['label', 'who'\] are missing"),
        ({"layout": "nchw"}, r"a\.npz, x: layout 'nchw' has 4 axes, got shape \(240, 6, 4\)"),
        (
            {"groups": "lo"},
            r"a\.npz: 'lo' must hold an integer or a string per row of x, shape \(240,\), got shape \(4,\) of float64",
        ),
        ({"fold": "names", "test": ["run"]}, r"'names' must hold an integer or a string per row"),
        ({"y": "names"}, r"'names' must hold an integer or a string per row"),
        ({"fold": "person"}, r"fold \(a column\) and test \(its values\) go together, got fold='person' and test=None"),
        ({"test": [1]}, "go together, got fold=None"),
        ({"fold": "city", "test": "Bonn"}, "test must be a sequence of values of the column 'city', at least one, got 'Bonn'"),
        ({"fold": "person", "test": 1}, "test must be a sequence of values of the column 'person', at least one, got 1$"),
        ({"fold": "person", "test": np.array(1)}, r"test must be a sequence .* got array\(1\)$"),
        ({"fold": "city", "test": []}, "at least one, got \\[\\]"),
        ({"fold": "person", "test": [3, 12]}, "test must be values of the column 'person', got 12: it holds 0, 1, 2"),
        ({"fold": "person", "test": ["3"]}, "got '3': it holds 0"),
        ({"fold": "person", "test": [True]}, "got True: it holds 0"),
        (
            {"fold": "city", "test": ["Cork", "Rome", "Oslo", "Bonn"]},
            "test must leave rows to train on, .* all that 'city' holds",
        ),
        (
            {"groups": "person", "fold": "y", "test": [1]},
            r"no 'person' may have rows both .* got 12 such, 0, 1, 2, 3, 4 and 7 more",
        ),
        ({"ungrouped": ""}, "ungrouped is an entry of the column groups=, got '' without it"),
        ({"groups": "person", "ungrouped": ""}, "ungrouped must be an entry of the column 'person', got ''"),
        ({"classes": "person"}, r"'person' must be a 1-D array of names, got shape \(240,\) of uint8"),
        ({"classes": ["a", "b"]}, r"labels must be in 0\.\.1 for 2 classes, got label 2"),
        ({"targets": ["kg"]}, "classes are for classification and targets for regression, got .* for classification: drop them"),
        ({"task": "regression", "classes": "names"}, "got 'names' for regression: drop them"),
        ({"task": "ranking"}, "task must be 'classification' or 'regression', got 'ranking'"),
        ({"scale": 3}, "scale must be the two keys of lo and hi, got 3$"),
        ({"scale": "lo"}, "scale must be the two keys of lo and hi, got 'lo'"),
        ({"scale": ("lo", "names")}, "lo and hi must be numbers"),
        ({"fractions": (0.5, 0.5)}, "fractions must be 4, for train, validation, calibration, test"),
    ],
)
def test_refuses(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=said) as caught:
        npz_rows(path, **{"layout": "nlc", **options})
    assert "\n" not in str(caught.value)


def test_refuses_contents_and_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        npz_rows(tmp_path / "none.npz", layout="nlc")
    for changes, said in (
        ({"x": X[:0], "y": Y[:0]}, r"b\.npz: 'x' must hold at least one row, got shape \(0, 4, 6\)"),
        ({"y": Y - 1}, r"b\.npz: labels must be at least 0, got -1"),
        ({"x": np.full((N, 6, 4), np.nan)}, r"b\.npz: x must be finite"),
        ({"x": X.astype(np.int32)}, r"b\.npz: x must be uint8"),
    ):
        with pytest.raises(ValueError, match=said):
            npz_rows(write(tmp_path / "b.npz", **changes), layout="nlc")
    np.savez(tmp_path / "far.npz", z=X[:9])
    with pytest.raises(ValueError, match=r"far\.npz must hold the keys \['x'\], got \['z'\]"):
        npz_rows(write(tmp_path / "b.npz"), layout="nlc", ood={"far": tmp_path / "far.npz"})
