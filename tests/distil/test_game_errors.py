"""What a game refuses, and in which words: one line that says what was expected, what came and what to do."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from quorate.distil.game import Game


def refuses(message, call):
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, 2.0, "3", True, None])
@pytest.mark.parametrize("name", ["samples", "outputs", "block"])
def test_counts(tmp_path, name, value):
    if name == "block" and value is None:
        return
    sizes = {"samples": 3, "outputs": 2, name: value}
    refuses(rf"{name}={value!r}: expected a whole number ≥ 1", lambda: Game(**sizes, eta=1.0))
    refuses(rf"{name}={value!r}: expected a whole number ≥ 1", lambda: Game.stored(tmp_path / "s.npy", **sizes, eta=1.0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("eta", [0, -0.1, math.nan, math.inf, 1e101, 1e-101, "0.1", None, True, np.ones(1)])
def test_steps(tmp_path, eta):
    message = r"eta=.*: expected a step from 1e-100 to 1e100"
    refuses(message, lambda: Game(3, 2, eta))
    refuses(message, lambda: Game.stored(tmp_path / "s.npy", 3, 2, eta))
    refuses(message, lambda: Game.of(np.zeros((3, 2), np.float32), 0, eta))
    assert not list(tmp_path.iterdir())


class OnAnotherDevice:
    shape = (3, 2)

    def __getitem__(self, rows):
        return self

    def __array__(self, dtype=None, copy=None):
        raise TypeError("can't convert a tensor of\nanother device")


@pytest.mark.parametrize(
    ("d", "message"),
    [
        (np.zeros((3, 2, 1)), r"d has shape \(3, 2, 1\): expected \(3, 2\), \(samples, outputs\)"),
        (np.zeros((2, 3)), r"d has shape \(2, 3\): expected \(3, 2\)"),
        (np.zeros(6), r"d has shape \(6,\): expected \(3, 2\)"),
        ([[1.0, 2.0], [3.0]], r"a list is not one rectangular \(N, L\) array: give an array, or row blocks by a generator"),
        ([np.zeros((3, 2))], r"d has shape \(1, 3, 2\)"),
        (np.zeros((3, 2), np.int32), "d has dtype int32: expected float16, float32 or float64, convert it"),
        (np.zeros((3, 2), complex), "d has dtype complex128"),
        (np.zeros((3, 2), object), "d has dtype object"),
        (np.zeros((3, 2), np.longdouble), "d has dtype (float128|longdouble|float96)"),
        (np.full((3, 2), np.nan), "d has NaN or infinite values in rows 0, 1, 2: mend these rows"),
        (5.0, r"d is float: expected an array \(3, 2\), or its row blocks \(n, 2\)"),
        ("rows", "d is str: expected an array"),
        ({"d": 1}, "d is dict: expected an array"),
        (lambda: 3, "d is int: expected an array"),
        (iter([np.zeros((3, 1))]), r"d from row 0 on is a block of shape \(3, 1\): expected \(rows, 2\)"),
        (iter([np.zeros((1, 2)), [[1.0], [1.0, 2.0]]]), r"d from row 1 on can't be read as an array \("),
        (iter([]), r"d has 0 rows, block by block: expected \(3, 2\)"),
        (
            OnAnotherDevice(),
            r"d from row 0 on can't be read as an array \(can't convert a tensor of another device\): give NumPy",
        ),
    ],
)
def test_students(d, message):
    game = Game(3, 2, 1.0)
    if not hasattr(d, "__next__"):
        refuses(message, lambda: game.edge(d))
        refuses(message, lambda: game.split_edge(d))
        refuses(message, lambda: game.log_z_of(d))
    refuses(message, lambda: game.update(d))
    assert game.rounds == 0


def test_many_bad_rows_are_named_in_short():
    d = np.full((9, 1), np.inf)
    refuses(r"in rows 0, 1, 2, 3, 4, …: mend", lambda: Game(9, 1, 1.0).update(d))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([3], r"rows 3 … 3 are asked for: expected rows 0 … 2"),
        ([-1, 0], r"rows -1 … 0 are asked for"),
        ([True, False], r"rows are given as bool of shape \(2,\)"),
        ([0.0], r"rows are given as float64 of shape \(1,\)"),
        (1, r"rows are given as int64 of shape \(\)"),
        ([[0]], r"rows are given as int64 of shape \(1, 1\)"),
    ],
)
def test_rows_of_weights(rows, message):
    refuses(message, lambda: Game(3, 2, 1.0).weights(rows))


@pytest.mark.parametrize("dtype", [np.float16, int, "nonsense", None])
def test_dtypes_of_weights(dtype):
    refuses("dtype=.*: expected float32 or float64", lambda: Game(3, 2, 1.0).weights(dtype=dtype))
    refuses("dtype=.*: expected float32 or float64", lambda: next(Game(3, 2, 1.0).weight_blocks(dtype)))


def test_no_certificate_before_the_first_round():
    refuses("no student is in the game yet: update it with the first one's", Game(3, 2, 1.0).certificate)


def read_only():
    array = np.zeros((3, 2), np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((3, 2)), r"scores are float64 of shape \(3, 2\): expected a float32 array \(samples, outputs\)"),
        (np.zeros((3, 2), ">f4"), r"scores are >f4 of shape"),
        (np.zeros(3, np.float32), r"scores are float32 of shape \(3,\)"),
        (np.zeros((3, 0), np.float32), r"scores are float32 of shape \(3, 0\)"),
        ([[0.0]], "scores are list: expected"),
        (read_only(), "scores are read-only: give a copy, or the path of their .npy file"),
        (
            np.float32([[0, 1], [np.nan, 1], [1, np.inf]]),
            "scores have NaN or infinite values in rows 1(, 2)?: take those of a finished",
        ),
    ],
)
@pytest.mark.parametrize("block", [1, None])
def test_scores_to_go_on_with(scores, message, block):
    refuses(message, lambda: Game.of(scores, 1, 1.0, block=block))


def test_states_that_are_not_of_these_scores():
    game = Game(3, 2, 0.5)
    for seed in range(2):
        game.update(np.random.default_rng(seed).normal(size=(3, 2)))
    state, scores = game.state(), game.scores.copy()
    later = Game.of(scores.copy(), **state)
    later.update(np.ones((3, 2)))
    message = (
        r"scores are not those of round 2 at eta=0\.5 \(ln C is off by .*\): take the scores, rounds, eta and log_z of one state"
    )
    refuses(message, lambda: Game.of(later.scores, **state))
    refuses("scores are not those of round 2 at eta=0.6", lambda: Game.of(scores, **state | {"eta": 0.6}))
    refuses("scores are not those of round 0", lambda: Game.of(scores, 0, 0.5))
    refuses(
        r"log_z has entries \[\(2,\), \(2,\)\]: expected at most 1, one per round",
        lambda: Game.of(scores, **state | {"rounds": 1}),
    )
    refuses(r"log_z has entries .*of shape \(1,\)", lambda: Game.of(scores, **state | {"joint": True}))
    refuses("log_z has entries", lambda: Game.of(scores, **state | {"log_z": [[0.0, math.nan]]}))
    refuses(r"rounds=-1: expected a whole number ≥ 0", lambda: Game.of(scores, **state | {"rounds": -1}))
    np.testing.assert_array_equal(Game.of(scores, **state).scores, game.scores)


def test_files_that_are_no_scores(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npy does not exist: expected the scores of a game, an \.npy file"):
        Game.of(tmp_path / "none.npy", 0, 1.0)
    (tmp_path / "text.npy").write_text("no array")
    refuses(r"text\.npy is not a readable \.npy file \(", lambda: Game.of(tmp_path / "text.npy", 0, 1.0))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    refuses(r"pickled\.npy is not a readable \.npy file \(", lambda: Game.of(str(tmp_path / "pickled.npy"), 0, 1.0))
    np.save(tmp_path / "double.npy", np.zeros((3, 2)))
    refuses(r"scores are float64 of shape \(3, 2\)", lambda: Game.of(tmp_path / "double.npy", 0, 1.0))
    np.save(tmp_path / "cut.npy", np.zeros((30, 2), np.float32))
    with (tmp_path / "cut.npy").open("r+b") as file:
        file.truncate(200)
    refuses(r"cut\.npy is not a readable \.npy file \(", lambda: Game.of(tmp_path / "cut.npy", 0, 1.0))


def test_a_full_disk_leaves_the_round_before(tmp_path, monkeypatch):
    game = Game.stored(tmp_path / "s.npy", 3, 2, 1.0)
    game.update(np.ones((3, 2)))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("quorate.distil.game._write_header", full)
    with pytest.raises(OSError, match=r"could not write .*s\.npy: No space left on device"):
        game.update(np.ones((3, 2)))
    monkeypatch.undo()
    assert game.rounds == 1
    assert np.load(tmp_path / "s.npy").tolist() == [[1, 1]] * 3
    assert json.loads(json.dumps(game.state()))["rounds"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["s.npy"]
