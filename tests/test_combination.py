"""Members to one prediction, against SciPy and plain float64 means; rows independent of each other, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from quorate.combination import LastTop1, Running, entropy_of, log_softmax, logsumexp, softmax

pytestmark = pytest.mark.deciding

TRACKS = ("energy", "max_logit", "entropy", "votes")


def logits(seed: int, m: int, rows: int, classes: int, dtype: type = np.float32, scale: float = 5.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(m, rows, classes)) * scale).astype(dtype)


def joined(stages: list[np.ndarray], kind: str = "logits", combine: str = "probs", joins: tuple[str, ...] = ()) -> Running:
    state = Running(kind, combine, TRACKS if kind == "logits" else TRACKS[2:])
    for members, join in zip(stages, joins or ("mean",) * len(stages), strict=True):
        state.add_(members, join)
    return state


def same(a: Running, b: Running) -> None:
    assert a.count == b.count
    assert a.tracked.keys() == b.tracked.keys()
    np.testing.assert_array_equal(a.total, b.total)
    for name, value in a.tracked.items():
        np.testing.assert_array_equal(value, b.tracked[name])


# --- functions of logits ---------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 40), st.sampled_from([1e-3, 1.0, 50.0, 1e4]), st.floats(0.05, 20))
def test_softmax_and_its_relatives_are_scipys(seed: int, rows: int, classes: int, scale: float, temperature: float) -> None:
    z = logits(seed, 1, rows, classes, np.float64, scale)[0]
    np.testing.assert_allclose(softmax(z), scipy.special.softmax(z, -1), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(softmax(z, temperature), scipy.special.softmax(z / temperature, -1), rtol=1e-9, atol=1e-300)
    np.testing.assert_allclose(log_softmax(z), scipy.special.log_softmax(z, -1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(logsumexp(z), scipy.special.logsumexp(z, -1), rtol=1e-12, atol=1e-12)


def test_extreme_logits_and_temperatures_stay_finite() -> None:
    z = np.array([[1000.0, 0.0], [-1000.0, -1000.0], [3e38, -3e38]], np.float32)
    np.testing.assert_array_equal(softmax(z), [[1, 0], [0.5, 0.5], [1, 0]])
    np.testing.assert_allclose(logsumexp(z), [1000, np.log(2) - 1000, np.float32(3e38)])
    np.testing.assert_array_equal(softmax([[2.0, 1.0, 2.0]], temperature=1e-308), [[0.5, 0, 0.5]])
    np.testing.assert_allclose(softmax([[2.0, 1.0]], temperature=1e300), [[0.5, 0.5]])


def test_whole_numbers_and_float16_are_worked_on_in_float64() -> None:
    for z in (np.array([[3, 1, 1]]), np.array([[3, 1, 1]], np.float16)):
        np.testing.assert_array_equal(softmax(z), softmax([[3.0, 1.0, 1.0]]))
        assert softmax(z).dtype == np.float64


def test_entropy_is_scipys_with_0_log_0_equal_to_0() -> None:
    p = np.random.default_rng(0).dirichlet(np.ones(7), 50)
    np.testing.assert_allclose(entropy_of(p), scipy.stats.entropy(p, axis=-1), rtol=1e-12)
    np.testing.assert_array_equal(entropy_of(np.array([[1.0, 0, 0], [0, 1, 0]])), [0, 0])
    np.testing.assert_allclose(entropy_of(np.array([[0.5, 0.5, 0]])), [np.log(2)])
    assert not np.signbit(entropy_of(np.array([[1.0, 0]]))).any()


# --- the running combination -----------------------------------------------------------------------------------------


def test_probabilities_are_averaged_over_all_members_of_all_stages() -> None:
    stages = [logits(1, 2, 9, 4), logits(2, 3, 9, 4, np.float16)]
    p = np.concatenate([scipy.special.softmax(z.astype(np.float64), -1) for z in stages])
    state = joined(stages)
    assert state.count == 5
    np.testing.assert_allclose(state.probs(), p.mean(0), rtol=1e-12)
    np.testing.assert_allclose(state.probs(2.5), scipy.special.softmax(np.log(p.mean(0)) / 2.5, -1), rtol=1e-12)
    z = np.concatenate([z.astype(np.float64) for z in stages])
    np.testing.assert_allclose(state.mean("energy"), -scipy.special.logsumexp(z, -1).mean(0), rtol=1e-12)
    np.testing.assert_allclose(state.mean("max_logit"), -z.max(-1).mean(0), rtol=1e-12)
    np.testing.assert_allclose(state.mean("entropy"), scipy.stats.entropy(p, axis=-1).mean(0), rtol=1e-9)
    np.testing.assert_allclose(state.mean("votes"), np.eye(4)[p.argmax(-1)].mean(0))
    np.testing.assert_allclose(joined([p[:2], p[2:]], "probs").probs(0.5), state.probs(0.5), rtol=1e-9)


def test_logits_are_averaged_where_the_ensemble_says_so() -> None:
    stages = [logits(1, 2, 9, 4), logits(2, 1, 9, 4)]
    state = joined(stages, combine="logits")
    mean = np.concatenate(stages).astype(np.float64).mean(0)
    np.testing.assert_allclose(state.logits(), mean, rtol=1e-12)
    np.testing.assert_allclose(state.probs(0.7), scipy.special.softmax(mean / 0.7, -1), rtol=1e-12)


@pytest.mark.parametrize(
    ("combine", "join"), [("last", "mean"), ("last", "replace"), ("probs", "replace"), ("logits", "replace")]
)
def test_last_and_replace_forget_the_earlier_members(combine: str, join: str) -> None:
    first, second = logits(1, 2, 9, 4), logits(2, 3, 9, 4)
    same(joined([first, second], "logits", combine, ("mean", join)), joined([second], "logits", combine))


def test_nothing_is_tracked_that_was_not_asked_for() -> None:
    state = Running("logits", "probs", ("energy",))
    state.add_(logits(0, 2, 3, 4))
    assert set(state.tracked) == {"energy"}


def test_probabilities_of_exactly_0_survive_a_temperature() -> None:
    state = Running("probs")
    state.add_(np.array([[[1.0, 0, 0], [0.5, 0.5, 0]]]))
    np.testing.assert_array_equal(state.probs(3.0), [[1, 0, 0], [0.5, 0.5, 0]])


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    classes=st.sampled_from([1, 2, 7, 8, 10, 33, 130]),
    combine=st.sampled_from(["probs", "logits", "last"]),
    dtype=st.sampled_from([np.float32, np.float64]),
    transposed=st.booleans(),
)
def test_a_row_does_not_depend_on_its_neighbours_order_or_layout(
    seed: int, sizes: list[int], classes: int, combine: str, dtype: type, transposed: bool
) -> None:
    n = sum(sizes)
    stages = [logits(seed, 2, n, classes, dtype), logits(seed + 1, 1, n, classes, dtype)]
    whole = joined(stages, combine=combine)
    order = np.random.default_rng(seed).permutation(n)
    parts = []
    for rows in np.split(order, np.cumsum(sizes)[:-1]):
        batch = [members[:, rows] for members in stages]
        if transposed:  # the same numbers, columns first in memory
            batch = [np.ascontiguousarray(members.transpose(2, 1, 0)).transpose(2, 1, 0) for members in batch]
        parts.append(joined(batch, combine=combine))
    same(Running.concat(parts), whole.take(order))
    for temperature in (1.0, 1.7):
        np.testing.assert_array_equal(
            np.concatenate([part.probs(temperature) for part in parts]), whole.probs(temperature)[order]
        )


@pytest.mark.parametrize("rows", [slice(2, 5), np.array([4, 0, 2])])
def test_a_taken_state_goes_on_alone(rows: slice | np.ndarray) -> None:
    first, second = logits(1, 2, 6, 3), logits(2, 2, 6, 3)
    whole, untouched = joined([first]), joined([first])
    part = whole.take(rows)
    part.add_(second[:, rows])
    same(whole, untouched)
    same(part, joined([first, second]).take(rows))
    empty = Running("logits", "logits", ("votes",)).take(rows)
    empty.add_(first[:, rows])
    np.testing.assert_allclose(empty.logits(), first[:, rows].mean(0, np.float64), rtol=1e-12)


def test_members_that_were_given_are_never_written_to() -> None:
    members = np.full((2, 3, 4), 0.25)
    state = Running("probs")
    state.add_(members)
    state.add_(members)
    np.testing.assert_array_equal(members, 0.25)


# --- labels with one probability -------------------------------------------------------------------------------------


def test_top1_stages_replace_each_other() -> None:
    state = LastTop1()
    assert state.take(slice(0, 0)).top_probs.shape == (0,)
    state.add_((np.array([1, 2, 3]), np.array([0.5, 0.25, 1.0], np.float32)))
    state.add_((np.array([3, 2, 1]), np.array([0.75, 0.5, 0.125], np.float32)), "replace")
    np.testing.assert_array_equal(state.labels, [3, 2, 1])
    assert state.top_probs.dtype == np.float64
    part = LastTop1.concat([state.take(np.array([2])), state.take(slice(0, 2))])
    np.testing.assert_array_equal(part.labels, [1, 3, 2])
    np.testing.assert_array_equal(part.top_probs, [0.125, 0.75, 0.5])
    with pytest.raises(ValueError, match="join='mean': labels with one probability can't be averaged, use 'replace'"):
        state.add_((np.array([1]), np.array([0.5])), "mean")


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("top1",), "'top1' can't be combined as class scores: expected 'logits' or 'probs'"),
        (("values", "probs"), "'values' can't be combined"),
        (("logits", "median"), "combine='median': expected one of probs, logits, last"),
        (("probs", "logits"), "combine='logits' needs members of kind 'logits'.*use combine='probs'"),
    ],
)
def test_combinations_that_make_no_sense(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Running(*arguments)


def test_members_of_another_shape_no_members_and_no_mean_logits() -> None:
    state = Running()
    for read in (state.probs, lambda: Running.concat([state])):
        with pytest.raises(ValueError, match="no member has been added yet: call add_ first"):
            read()
    state.add_(logits(0, 1, 5, 3))
    with pytest.raises(ValueError, match=r"shape \(5, 4\) where the earlier ones have \(5, 3\): members must agree"):
        state.add_(logits(0, 1, 5, 4))
    with pytest.raises(ValueError, match="only for combine='logits', not 'probs': use probs"):
        state.logits()
    state.add_(logits(0, 1, 7, 4), "replace")  # a new beginning may have another shape
    assert state.probs().shape == (7, 4)
