"""The settings of sparse training: drop rates within phases, and every value that is refused before anything is trained or written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate.tickets import DST, EDST, NM, Gradient, Moves, Random, Static, drop_rate
from quorate.tickets.moves import checked_density
from tiny_tickets import DATA, PLAIN, dst, edst, network, quick


@pytest.mark.parametrize(
    ("options", "step", "rate"),
    [
        ({}, 10, 0.5),
        ({}, 19, 0.5),
        ({}, 20, 0.0),  # the phase's last step
        ({}, 25, 0.0),  # beyond it
        ({"rate": 0.3, "until": 0.5}, 14, 0.3),
        ({"rate": 0.3, "until": 0.5}, 15, 0.0),
        ({"rate": 0.3, "decay": "rigl"}, 15, 0.15),
        ({"rate": 0.3, "decay": "rigl", "until": 0.5}, 14, drop_rate("rigl", 0.3, 0.8)),
        ({"rate": 0.3, "decay": "cosine"}, 15, 0.005 + 0.295 / 2),
        ({"rate": 0.3, "decay": "cosine", "until": 0.8}, 18, 0.0),
    ],
)
def test_the_rate_within_a_phase(options: dict[str, Any], step: int, rate: float) -> None:
    assert Moves(**options).rate_at(step, 10, 20) == pytest.approx(rate, abs=1e-15)


@given(st.floats(0.01, 1), st.integers(2, 60), st.integers(1, 60))
def test_masks_move_in_every_phase_that_is_not_refused(until: float, phase: int, every: int) -> None:
    moves = Moves(growth=Random(), every=every, until=until)
    x = torch.zeros(1, 1, 8, 8)
    try:
        moves.check(network(), 0.5, x, phase, 1)
    except ValueError as error:
        assert "are not within" in str(error)  # noqa: PT017
        assert not any(moves.rate_at(step, 0, phase) for step in range(every, phase + 1))
    else:
        for first in (0, 1, every // 2, every, 7 * every + 1):  # wherever the phase begins
            assert any(moves.rate_at(s, first, first + phase) for s in range(first + 1, first + phase + 1) if s % every == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every=0: expected an integer of at least 1, optimiser steps between two moves"),
        ({"every": 2.0}, "every=2.0: expected an integer"),
        ({"every": True}, "every=True: expected an integer"),
        ({"rate": 0.0}, r"rate=0.0: expected a share of the live weights in \(0, 1\]; growth=Static\(\) keeps masks as they are"),
        ({"rate": math.nan}, "rate=nan: expected a share"),
        ({"rate": 1.5}, "rate=1.5: expected a share"),
        ({"rate": "half"}, "rate='half': expected a share"),
        ({"rate": 0.001, "decay": "cosine"}, r"rate=0.001: expected a share of the live weights in \[0.005, 1\]"),
        ({"decay": "linear"}, "decay='linear': expected one of constant, cosine, rigl"),
        ({"until": 0}, r"until=0: expected a share of each phase in \(0, 1\]"),
        ({"until": 1.01}, "until=1.01: expected a share of each phase"),
        ({"distribution": "ekr"}, "distribution='ekr': expected one of erk, uniform, mac_aware"),
        ({"choose": "best"}, "choose='best': expected 'accuracy', 'nll', 'last' or 'average'"),
        (
            {"choose": "average", "averaged": 0},
            "averaged=0: expected an integer of at least 1, epochs whose weights are averaged",
        ),
        ({"choose": "average", "averaged": 2.5}, "averaged=2.5: expected an integer"),
        ({"averaged": 3}, "averaged=3 is for choose='average', not 'accuracy': set that too"),
        ({"choose": "average", "pattern": NM()}, r"choose='average' keeps .* no pattern: expected Unstructured\(\), not NM\("),
        ({"growth": Random}, r"growth=Random itself: expected Gradient\(\), Random\(\) or Static\(\)"),
        ({"growth": "random"}, r"growth='random': expected Gradient\(\), Random\(\) or Static\(\)"),
        ({"pattern": NM}, "pattern=NM itself: expected Unstructured"),
        ({"pattern": None}, "pattern=None: expected Unstructured"),
        ({"denze": ()}, "unknown argument 'denze'; did you mean 'dense'"),
        ({"warmup": 1}, r"unknown argument 'warmup' \(known: growth, pattern, every,"),
    ],
)
def test_moves_that_are_refused(options: dict[str, Any], message: str) -> None:
    for make in (lambda: Moves.of(options), lambda: EDST(network(), 2, **options), lambda: DST([network()], **options)):
        with pytest.raises(ValueError, match=message) as refusal:
            make()
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("density", "message"),
    [
        (0, r"density 0: expected a share of live weights in \(0, 1\]"),
        (-0.1, r"density -0.1: expected a share of live weights in \(0, 1\]"),
        (1.0001, r"density 1.0001: expected a share"),
        (math.nan, r"density nan: expected a share"),
        ("0.2", r"density='0.2': expected a number in \(0, 1\], or numbers by weight name"),
        (True, "density=True: expected a number"),
        ({"1.weight": 1.5}, r"density of '1.weight' is 1.5: expected a share of live weights in \[0, 1\]"),
        ({"1.weight": math.nan}, "density of '1.weight' is nan"),
        ({"1.weight": None}, "density of '1.weight' is None"),
    ],
)
def test_densities_that_are_refused(density: Any, message: str) -> None:
    for make in (lambda: checked_density(density), lambda: EDST(network(), 2, density), lambda: DST([network()], density)):
        with pytest.raises(ValueError, match=message) as refusal:
            make()
        assert "\n" not in str(refusal.value)


def test_one_dense_weight_may_be_named_as_text() -> None:
    assert Moves(dense="9.weight").dense == ("9.weight",)
    assert Moves(dense=["9.weight"]) == Moves(dense=("9.weight",))
    with pytest.raises(ValueError, match=r"no parameter is called '9.wait'; did you mean '9.weight'"):
        EDST(network(), 2, dense=["9.wait"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 0}, "members=0: expected an integer of at least 1, one per refinement"),
        ({"members": True}, "members=True: expected an integer"),
        ({"escape": 0}, r"escape=0: expected a share of the live weights in \(0, 1\]"),
        ({"escape": math.nan}, "escape=nan: expected a share"),
        ({"escape": "all"}, "escape='all': expected a share"),
        ({"exploration": 0}, "exploration=0: expected an integer of at least 1, epochs before the first refinement"),
        ({"exploration": 1.5}, "exploration=1.5: expected an integer"),
        ({"factors": []}, r"factors=\[\]: expected a finite factor > 0"),
        ({"factors": 0.1}, "factors=0.1: expected a finite factor > 0"),
        ({"growth": Static()}, r"growth=Static\(\) with several members: an escape moves masks"),
        ({"kind": "probs"}, "kind='probs'"),
    ],
)
def test_edst_that_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        EDST(network(), **{"members": 3, **options})
    assert "\n" not in str(refusal.value)
    EDST(network(), 1, growth=Static())  # without an escape


def test_networks_that_are_refused() -> None:
    one, other = network(0), network(1)
    other[9] = nn.Linear(12, 7)
    with pytest.raises(ValueError, match="DST got networks of several structures: expected sparse weights of the same names"):
        DST([one, other])
    other[9] = one[9]
    with pytest.raises(ValueError, match="DST got networks that share parameters: expected each to have its own"):
        DST([one, other])
    with pytest.raises(ValueError, match="same model"):
        DST([one, one])
    with pytest.raises(ValueError, match="at least one"):
        DST([])
    for make in (lambda: EDST(nn.Flatten(), 2), lambda: DST([nn.Flatten()])):
        with pytest.raises(ValueError, match="Flatten has no weight that could be sparse") as refusal:
            make()
        assert "\n" not in str(refusal.value)


FIT: list[tuple[Any, dict[str, Any], dict[str, Any], str]] = [
    (edst, {"density": 0.01}, {}, "'1.weight' of shape .* keep 1 of 72 weights, a density too low to keep one weight per output"),
    (dst, {"density": 0.01}, {}, "a density too low to keep one weight per output"),
    (
        dst,
        {"density": {"1.weight": 0.5}, "distribution": "erk"},
        {},
        "density by name and the sparse weights differ in '4.weight'",
    ),
    (edst, {}, {"epochs": 4}, "epochs=4 with exploration=2 leave 2 for 3 refinements"),
    (edst, {}, {"epochs": 9}, "leave 7 for 3 equal refinements: expected epochs=8 or 11, or an exploration of 3"),
    (edst, {"exploration": None}, {"epochs": 4}, "with a third for the exploration leave 2 for 3 refinements"),
    (edst, {"factors": (1.0, 0.1, 0.01)}, {}, "a refinement of 2 epochs can't have 3 parts"),
    (edst, {"every": 12}, {}, "every=12 steps between two moves .* not within a phase, which has 12: expected every < 12"),
    (edst, {"exploration": 1, "every": 6}, {"epochs": 7}, "not within a phase, which has 6: expected every < 6"),
    (edst, {"until": 0.5, "every": 6}, {}, "not within the 6 that until=0.5 leaves of a phase's 12: expected every < 6"),
    (dst, {"every": 12}, {"epochs": 2}, r"not within a phase, which has 12: .* or growth=Static\(\)"),
    (
        dst,
        {"growth": Gradient(5)},
        {},
        r"growth=Gradient\(batches=5\) averages over more steps than every=4: expected batches ≤ every",
    ),
    (edst, {"choose": "average", "averaged": 3}, {}, "averaged=3 epochs are not within a ticket's phase, which has 2: expected"),
    (dst, {"choose": "average"}, {"epochs": 4}, "averaged=5 epochs are not within a ticket's phase, which has 4: expected"),
    (
        edst,
        {},
        {"schedule": "cosine"},
        "schedule='cosine': EDST's timeline has rates of its own .*: expected schedule='constant'",
    ),
    (edst, {}, {"schedule": "step", "milestones": [3]}, "schedule='step': EDST's timeline"),
    (edst, {}, {"warmup_epochs": 2.5}, "warmup_epochs=2.5: expected at most the exploration's 2"),
    (edst, {}, {"averaging": "ema"}, "averaging='ema' averages weights over different masks: EDST expects averaging='none'"),
    (dst, {}, {"averaging": "swa", "swa_start": 2, "swa_lr": 0.1}, "averaging='swa' .*: DST expects averaging='none'"),
    (dst, {}, {"loss": "mean"}, "loss='mean': DST's members are runs of their own, expected loss='sum'"),
    (edst, {}, {"inputs": "own_order"}, "inputs='own_order': EDST trains one network, not its members"),
    (edst, {"growth": Gradient()}, {"precision": "16-mixed"}, r"precision='16-mixed' leaves out steps, .* or growth=Random\(\)"),
]


@pytest.mark.parametrize(("make", "options", "settings", "message"), FIT, ids=[f"{m.__name__}-{o}-{s}" for m, o, s, _ in FIT])
def test_trainings_that_are_refused_before_anything_is_written(
    make: Any, options: dict[str, Any], settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    ensemble = make(**options)
    before = {name: tensor.clone() for name, tensor in ensemble.state_dict().items()}
    with pytest.raises(ValueError, match=message) as refusal:
        quick(ensemble, tmp_path / "run", **settings)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in ensemble.state_dict().items())


def test_what_is_shown_tells_the_settings_apart() -> None:
    """A run folder knows its ensemble by what it prints."""
    shown = {
        repr(edst(**options)) for options in ({}, {"rate": 0.4}, {"escape": 0.7}, {"growth": Gradient(2)}, {"factors": (0.2,)})
    }
    assert len(shown) == 5
    assert repr(dst()) != repr(dst(until=0.5))
    assert f"density={PLAIN['density']}" in repr(dst())
    assert DATA.shape == (1, 8, 8)
