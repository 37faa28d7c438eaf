"""Ensembles of tickets in run folders: small files, read back bit-equal, and what is damaged; further training keeps the zeros."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from quorate.ensemble import DeepEnsemble
from quorate.tickets import Tickets, load_ticket, load_tickets, save_tickets
from quorate.training import Fitted, load_weights_
from quorate.training.weights import save_weights
from tiny_tickets import LIVE, SIZES, dst, edst, network, quick, same

NAMES = ["member0.safetensors", "member1.safetensors"]
SETTINGS: dict[str, Any] = {"epochs": 4}


def made() -> Any:
    return edst(2, factors=(0.1,))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return quick(made(), tmp_path_factory.mktemp("runs") / "run", **SETTINGS)


@pytest.fixture
def folder(fitted: Fitted, tmp_path: Path) -> Path:
    """A copy of the run that a test may spoil."""
    assert fitted.path is not None
    return Path(shutil.copytree(fitted.path, tmp_path / "run"))


def test_only_tickets_are_kept(fitted: Fitted) -> None:
    assert fitted.path is not None
    assert sorted(path.name for path in (fitted.path / "tickets").iterdir()) == NAMES
    assert not (fitted.path / "weights.safetensors").exists()
    ensemble = fitted.ensemble
    assert isinstance(ensemble, Tickets)
    for m, name in enumerate(NAMES):
        ticket = load_ticket(fitted.path / "tickets" / name)
        assert same(ticket.tensors, ensemble.members[m].state_dict())
        assert same(ticket.masks, ensemble.ticket_masks[m])
        assert ticket.about == fitted.facts["tickets"][m] == ensemble.about[m]
        assert ticket.about["epoch"] == 3 + m
    plain = load_tickets(fitted.path / "tickets", network)  # without fit or the run
    assert same(plain.state_dict(), ensemble.state_dict())


def test_read_back_bit_equal(fitted: Fitted, folder: Path) -> None:
    again = quick(edst(2, seed=5, factors=(0.1,)), folder, **SETTINGS)
    assert same(again.ensemble.state_dict(), fitted.ensemble.state_dict())
    assert again.ensemble.about == fitted.ensemble.about
    assert not again.ensemble.training
    fresh = edst(2, seed=7)
    load_weights_(fresh, folder)
    assert same(fresh.state_dict(), fitted.ensemble.state_dict())
    for name, outputs in fitted.outputs.items():
        assert all(np.array_equal(a, b) for a, b in zip(again.outputs[name].values, outputs.values, strict=True))
        assert again.outputs[name].costs == outputs.costs


def test_copies_and_state_dicts(fitted: Fitted) -> None:
    fresh = made()
    fresh.load_state_dict(fitted.ensemble.state_dict())
    for twin in (copy.deepcopy(fitted.ensemble), pickle.loads(pickle.dumps(fitted.ensemble)), fresh):
        assert same(twin.state_dict(), fitted.ensemble.state_dict())
        assert [{n: int(mask.sum()) for n, mask in masks.items()} for masks in twin.ticket_masks] == [LIVE, LIVE]


def spoil(folder: Path, how: str) -> None:
    second = folder / "tickets" / NAMES[1]
    if how == "missing":
        second.unlink()
    elif how == "cut":
        second.write_bytes(second.read_bytes()[:-40])
    elif how == "nonsense":
        second.write_bytes(b"nonsense")
    elif how == "more":
        shutil.copy(second, second.with_name("member2.safetensors"))
    elif how == "gone":
        shutil.rmtree(second.parent)
    else:
        other = edst(2, dense="9.weight") if how == "other weights" else DeepEnsemble([nn.Linear(2, 2), nn.Linear(2, 2)])
        if how == "other weights":
            save_tickets(other, second.parent)
        else:
            save_tickets(Tickets(list(other.members), [{}, {}]), second.parent)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"tickets/member1.safetensors does not exist: expected a ticket file"),
        ("gone", r"tickets/member0.safetensors does not exist: expected a ticket file"),
        ("cut", r"tickets/member1.safetensors is not a readable safetensors file"),
        ("nonsense", r"tickets/member1.safetensors is not a readable safetensors file"),
        ("more", r"tickets/member2.safetensors is a ticket too many: expected those of 2 members"),
        ("other weights", r"tickets/member0.safetensors has other sparse weights than member 0: they differ in '9.weight'"),
        ("other network", r"tickets/member0.safetensors has no tensor '0.mean', the model has; build the model as"),
    ],
)
def test_damaged_folders(how: str, message: str, folder: Path) -> None:
    spoil(folder, how)
    fresh = made()
    before = copy.deepcopy(fresh.state_dict())
    for read in (lambda: load_weights_(fresh, folder), lambda: quick(fresh, folder, **SETTINGS)):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as refusal:
            read()
        assert "\n" not in str(refusal.value)
    assert same(fresh.state_dict(), before)  # all or nothing


def test_a_submodule_of_that_name_is_none(tmp_path: Path) -> None:
    ensemble = DeepEnsemble([nn.Linear(2, 2)])
    ensemble.save_members = ensemble.load_members_ = nn.Linear(2, 2)
    save_weights(ensemble, tmp_path)
    load_weights_(ensemble, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


@pytest.mark.parametrize(
    "settings", [{"optimizer": "adamw", "lr": 0.01}, {"averaging": "ema", "ema_decay": 0.8, "schedule": "cosine"}]
)
def test_tickets_are_trained_further_with_their_masks(settings: dict[str, Any], fitted: Fitted, tmp_path: Path) -> None:
    assert isinstance(fitted.ensemble, Tickets)
    masks = copy.deepcopy(fitted.ensemble.ticket_masks)
    more = Tickets(copy.deepcopy(list(fitted.ensemble.members)), masks)
    run = quick(more, tmp_path / "run", epochs=1, **settings)
    for m, member in enumerate(more.members):
        assert same(more.ticket_masks[m], masks[m])
        for name in SIZES:
            weight, former = member.get_parameter(name), fitted.ensemble.members[m].get_parameter(name)
            assert not weight[~masks[m][name]].any()
            assert not torch.equal(weight, former)
    assert run.outputs["test"].costs == fitted.outputs["test"].costs
    again = Tickets(copy.deepcopy(list(fitted.ensemble.members)), masks)
    assert same(quick(again, tmp_path / "run", epochs=1, **settings).ensemble.state_dict(), more.state_dict())


def test_before_any_training_all_is_live(tmp_path: Path) -> None:
    ensemble = dst()
    assert all(bool(mask.all()) for masks in ensemble.ticket_masks for mask in masks.values())
    assert ensemble.about == [{}, {}]
    ensemble.save_members(tmp_path)
    fresh = dst()
    fresh.load_members_(tmp_path)
    assert same(fresh.state_dict(), ensemble.state_dict())
