"""Counter-based randomness: published vectors, an integer reference, golden bits, statistics."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from quorate.data.counter import bits, splitmix64, uniforms

MASK = 2**64 - 1
WORDS = st.integers(0, MASK)


def reference(state: int, n: int) -> int:
    """SplitMix64 in Python integers: advance the state n + 1 times, then finalise."""
    z = (state + (n + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_published_vectors() -> None:
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert splitmix64(1234567, np.arange(5, dtype=np.uint64)).tolist() == expected


@settings(deadline=None)
@given(WORDS, st.lists(WORDS, max_size=3), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5))
def test_chain_against_python_integers(seed: int, counters: list[int], ids: list[int]) -> None:
    state = 0
    for value in (seed, *counters):
        state = reference(state, value)
    assert bits(seed, counters, np.array(ids, np.int64)).tolist() == [reference(state, i & MASK) for i in ids]


def test_golden() -> None:
    u = uniforms(7, 3, np.array([0, 1, 59_999, -1, 2**62]), 2)
    assert u.dtype == np.float64
    assert [x.hex() for x in u.tolist()] == GOLDEN
    many = np.concatenate([uniforms(s, e, np.arange(1000), d) for s in (0, 2**63) for e in (0, 9) for d in (0, 1, 2)])
    assert hashlib.sha256(many.astype("<f8").tobytes()).hexdigest() == GOLDEN_HASH


GOLDEN = ["0x1.5549896abc4a8p-1", "0x1.6e9c9e72626eep-2", "0x1.e0f90f4f05dc0p-6", "0x1.bd187747fea80p-1", "0x1.48146f033931dp-1"]
GOLDEN_HASH = "05e6c64fd1824a0ac43d37d32bc99c5cff98067cad4348bd5abbab717accf4f4"


def test_depends_on_the_id_alone_not_on_the_batch() -> None:
    ids = np.arange(100)
    whole = uniforms(1, 2, ids, 0)
    order = np.random.default_rng(0).permutation(100)
    np.testing.assert_array_equal(uniforms(1, 2, ids[order], 0), whole[order])
    np.testing.assert_array_equal(np.concatenate([uniforms(1, 2, ids[i : i + 1], 0) for i in ids]), whole)
    np.testing.assert_array_equal(uniforms(1, 2, ids.astype(np.uint8), 0), whole)
    assert uniforms(1, 2, np.zeros(0, np.int64), 0).shape == (0,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: uniforms(0, 0, np.arange(40_000), 0),
        lambda: uniforms(0, 0, np.arange(40_000) * 2**32, 0),
        lambda: np.array([uniforms(0, e, np.array([5]), 0)[0] for e in range(2_000)]),
        lambda: np.array([uniforms(0, 0, np.array([5]), d)[0] for d in range(2_000)]),
        lambda: np.array([uniforms(s, 0, np.array([5]), 0)[0] for s in range(2_000)]),
    ],
    ids=["ids", "sparse ids", "epochs", "draws", "seeds"],
)
def test_uniform_along_every_counter(make) -> None:
    u = make()
    assert u.min() >= 0
    assert u.max() < 1
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert stats.chisquare(np.histogram(u, 64, (0, 1))[0]).pvalue > 1e-3
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 4 / np.sqrt(len(u))


@pytest.mark.parametrize(
    "other",
    [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, -1, 0, 0), (0, 1, -1, 0), (0, 1, 0, -1)],
    ids=["seed", "epoch", "draw", "id", "seed up epoch down", "epoch up draw down", "epoch up id down"],
)
def test_neighbouring_counters_are_independent(other: tuple[int, int, int, int]) -> None:
    ids = np.arange(40_000)
    seed, epoch, draw, shift = other
    a = uniforms(5, 5, ids, 5)
    b = uniforms(5 + seed, 5 + epoch, ids + shift, 5 + draw)
    table = np.histogram2d(a, b, 16, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(table.ravel()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("seed", "epoch", "ids", "draw", "said"),
    [
        (-1, 0, [0], 0, "seed must be an integer in"),
        (2**64, 0, [0], 0, "seed must be"),
        (True, 0, [0], 0, "got True"),
        (0.5, 0, [0], 0, "got 0.5"),
        (0, -1, [0], 0, "counter"),
        (0, 0, [0], "a", "got 'a'"),
        (0, 0, [0.5], 0, "1-D integer array, got shape .* of float64"),
        (0, 0, [[0]], 0, "1-D integer array"),
    ],
)
def test_refuses(seed, epoch, ids, draw, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        uniforms(seed, epoch, np.array(ids), draw)
    assert "\n" not in str(caught.value)
