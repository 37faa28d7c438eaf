"""S in a file, row blocks, going on from a state, and that a refused update changes nothing."""

from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest

from quorate.distil.game import Game

SHAPE = (11, 3)


@pytest.fixture
def ds():
    rng = np.random.default_rng(0)
    return [rng.normal(size=SHAPE).astype(np.float32) for _ in range(3)]


def same(one, other):
    assert (one.rounds, one.eta, one.joint) == (other.rounds, other.eta, other.joint)
    np.testing.assert_array_equal(one.scores, other.scores)
    np.testing.assert_array_equal(one.log_normaliser, other.log_normaliser)
    for a, b in zip(one.weights(), other.weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("joint", [False, True])
def test_in_a_file_and_in_memory_agree_bit_for_bit(tmp_path, ds, joint):
    path = tmp_path / "new" / "scores.npy"
    stored, held = Game.stored(path, *SHAPE, 0.4, joint=joint, block=4), Game(*SHAPE, 0.4, joint=joint, block=4)
    for t, d in enumerate(ds, 1):
        np.save(tmp_path / f"d{t}.npy", d)
        mapped = np.load(tmp_path / f"d{t}.npy", mmap_mode="r")
        np.testing.assert_array_equal(stored.edge(mapped), held.edge(d))
        np.testing.assert_array_equal(stored.update(mapped), held.update(d))
        same(stored, held)
        np.testing.assert_array_equal(np.load(path, allow_pickle=False), held.scores)  # on the disk when update returns
    np.testing.assert_array_equal(stored.certificate().bound, held.certificate().bound)
    assert isinstance(stored.scores, np.memmap)
    assert [p.name for p in path.parent.iterdir()] == ["scores.npy"]


def test_the_file_starts_as_zeros_and_is_not_overwritten(tmp_path):
    game = Game.stored(tmp_path / "s.npy", 3, 2, 1.0)
    assert game.scores.shape == (3, 2)
    assert not game.scores.any()
    assert not game.scores.flags.writeable
    assert (tmp_path / "s.npy").stat().st_size == 128 + 4 * 6
    with pytest.raises(ValueError, match=r"s\.npy exists: go on with it by Game\.of"):
        Game.stored(tmp_path / "s.npy", 3, 2, 1.0)


def feeds(d):
    yield "array", d
    yield "generator", (d[a : a + 2] for a in range(0, 11, 2))
    yield "callable", lambda: iter([d[:1], d[1:1], d[1:10], d[10:]])
    yield "iterator of one block", iter([d])
    yield "list", d.tolist()


@pytest.mark.parametrize("at", ["memory", "file"])
def test_row_blocks_are_the_array(tmp_path, ds, at):
    whole = Game(*SHAPE, 0.4, block=4)
    whole.update(ds[0])
    for number, (name, _) in enumerate(feeds(ds[1])):
        options = {"block": 4}
        game = Game(*SHAPE, 0.4, **options) if at == "memory" else Game.stored(tmp_path / f"{number}.npy", *SHAPE, 0.4, **options)
        game.update(dict(feeds(ds[0]))[name])
        np.testing.assert_array_equal(game.scores, whole.scores, err_msg=name)
        np.testing.assert_allclose(game.log_z, whole.log_z, atol=1e-14)
        np.testing.assert_allclose(game.edge(dict(feeds(ds[1]))[name]), whole.edge(ds[1]), atol=1e-14)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("at", ["memory", "file", "mapped by the caller"])
def test_going_on_is_as_if_nothing_had_happened(tmp_path, ds, joint, at):
    path = tmp_path / "s.npy"
    whole = Game(*SHAPE, 0.4, joint=joint, block=4)
    for d in ds[:2]:
        whole.update(d)
    np.save(path, whole.scores)
    state = json.loads(json.dumps(whole.state(), allow_nan=False))
    scores = {"memory": lambda: np.load(path), "file": lambda: path}.get(at, lambda: np.load(path, mmap_mode="r+"))()
    resumed = Game.of(scores, **state, block=4)
    same(resumed, whole)
    np.testing.assert_array_equal(resumed.log_z, whole.log_z)
    whole.update(ds[2])
    resumed.update(ds[2])
    same(resumed, whole)
    np.testing.assert_array_equal(resumed.log_z, whole.log_z)
    assert resumed.state() == whole.state()
    if at != "memory":
        np.testing.assert_array_equal(np.load(path), whole.scores)


def test_going_on_without_the_history_knows_its_sum(ds):
    whole = Game(*SHAPE, 0.4)
    for d in ds[:2]:
        whole.update(d)
    resumed = Game.of(whole.scores.copy(), 2, 0.4)
    assert resumed.log_z == []
    np.testing.assert_allclose(resumed.log_normaliser, math.log(22) + np.sum(whole.log_z, axis=0), rtol=1e-12)
    np.testing.assert_array_equal(resumed.update(ds[2]), whole.update(ds[2]))
    assert resumed.rounds == 3
    assert len(Game.of(resumed.scores, **resumed.state()).log_z) == 1


def test_scores_given_are_the_games_and_a_round_of_zeros_is_a_round():
    scores = np.zeros((2, 2), np.float32)
    game = Game.of(scores, 4, 1.0)
    assert not game.certificate().max_error.any()
    game.update(np.ones((2, 2)))
    assert scores.tolist() == [[1, 1], [1, 1]]


def broken(d):
    bad = d.astype(np.float64)
    bad[7, 1] = math.nan
    bad[9, 0] = -math.inf
    yield bad, r"d has NaN or infinite values in rows 7(, 9)?: mend these rows"
    yield iter([bad[:4], bad[4:]]), "d has NaN or infinite values in rows 7, 9: mend these rows"
    yield (lambda: (bad[a : a + 1] for a in range(11))), "in rows 7: mend"
    huge = d.astype(np.float64)
    huge[[5, 10], 2] = 1e39, 1e300
    yield huge, r"d takes the scores beyond float32 in rows 5(, 10)?: scale or clip the outputs"
    yield iter([huge]), "beyond float32 in rows 5"
    yield d[:, :2], r"d has shape \(11, 2\): expected \(11, 3\), \(samples, outputs\)"
    yield iter([d[:5]]), r"d has 5 rows, block by block: expected \(11, 3\)"
    yield iter([d, d[:1]]), "d has more than 11 rows, block by block"
    yield iter([d[:5], d[5:, 0]]), r"d from row 5 on is a block of shape \(6,\): expected \(rows, 3\)"
    yield d.astype(np.int64), "d has dtype int64: expected float16, float32 or float64, convert it"


@pytest.mark.parametrize("at", ["memory", "file"])
@pytest.mark.parametrize("which", range(len(list(broken(np.zeros(SHAPE))))))
def test_a_refused_update_changes_nothing(tmp_path, ds, at, which):
    path = tmp_path / "s.npy"
    game = Game(*SHAPE, 0.4, block=4) if at == "memory" else Game.stored(path, *SHAPE, 0.4, block=4)
    whole = Game(*SHAPE, 0.4, block=4)
    for g in (game, whole):
        g.update(ds[0])
    bad, message = list(broken(ds[1]))[which]
    with pytest.raises(ValueError, match=message) as caught:
        game.update(bad)
    assert "\n" not in str(caught.value)
    same(game, whole)
    assert game.state() == whole.state()
    if at == "file":
        np.testing.assert_array_equal(np.load(path), whole.scores)
        assert [p.name for p in tmp_path.iterdir()] == ["s.npy"]
    game.update(ds[1])
    whole.update(ds[1])
    same(game, whole)


def test_a_stream_that_fails_by_itself_changes_nothing(tmp_path, ds):
    def failing():
        yield ds[1][:6]
        raise RuntimeError("the student stopped")

    for game in (Game(*SHAPE, 0.4, block=4), Game.stored(tmp_path / "s.npy", *SHAPE, 0.4, block=4)):
        game.update(ds[0])
        with pytest.raises(RuntimeError, match="the student stopped"):
            game.update(failing())
        np.testing.assert_array_equal(game.scores, ds[0])
        assert game.rounds == 1


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("at", ["memory", "file"])
def test_memory_beside_the_arrays_does_not_grow_with_the_samples(tmp_path, joint, at):
    shape = (20_000, 100)  # 8 MB of S
    d = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    game = Game(*shape, 0.5, joint=joint) if at == "memory" else Game.stored(tmp_path / "s.npy", *shape, 0.5, joint=joint)
    calls = {
        "update": lambda: game.update(d),
        "edge": lambda: game.edge(d),
        "weights": lambda: sum(1 for _ in game.weight_blocks()),
        "certificate": game.certificate,
        "going on": lambda: Game.of(tmp_path / "s.npy" if at == "file" else game.scores, **game.state()),
    }
    for name, call in calls.items():
        call()
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 6.5e6, f"{name}: {peak / 1e6:.1f} MB"  # six blocks of 1 MiB
