"""Ensembles of tickets: the contract, the cost of live weights, files, cascades, packing, and tickets put in later."""

from __future__ import annotations

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn

import quorate
from ensemble_contract import check_ensemble
from quorate.cascade import Cascade, Policy
from quorate.metrics import nll, pairwise_disagreement, pairwise_kl
from quorate.models import MLP, LeNet
from quorate.models.resnet import ResNet
from quorate.models.vit import ViT
from quorate.tickets.ensemble import Tickets, load_tickets, save_tickets
from quorate.tickets.files import load_ticket
from quorate.tickets.ledger import Ledger
from quorate.tickets.masks import apply_, draw
from quorate.tickets.weights import sparse_weights

IMAGE = (3, 8, 8)
NETWORKS = {
    "mlp": lambda: MLP(IMAGE, 3, (16, 12), norm=True),
    "lenet": lambda: LeNet(IMAGE, 3, width=(4, 8), hidden=(16, 12)),
    "resnet8": lambda: ResNet(IMAGE, 3, depth=8, width=8),
    "vit": lambda: ViT(IMAGE, 3, patch=4, width=12, depth=1, heads=2),
}


def ticket(make, rng, density=0.4):
    model = make()
    masks = {name: draw(w.shape, math.ceil(density * w.numel()), rng) for name, w in sparse_weights(model).items()}
    apply_([model.get_parameter(name) for name in masks], list(masks.values()))
    return model, masks


def tickets(make=NETWORKS["lenet"], members=3, seed=0, density=0.4):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    pairs = [ticket(make, rng, density) for _ in range(members)]
    return Tickets([model for model, _ in pairs], [masks for _, masks in pairs])


def images(rows=6):
    return torch.rand(rows, *IMAGE, generator=torch.Generator().manual_seed(0))


def outputs(ensemble, x):
    with torch.no_grad():
        return ensemble.eval()(x)


@pytest.mark.parametrize("network", ["mlp", "lenet", "vit", pytest.param("resnet8", marks=pytest.mark.slow)])
def test_the_contract(network):
    rng = np.random.default_rng(0)

    def make():
        pairs = [ticket(NETWORKS[network], rng) for _ in range(3)]
        return Tickets([model for model, _ in pairs], [masks for _, masks in pairs])

    check_ensemble(make, images())


def test_gaussian_tickets():
    rng = np.random.default_rng(0)

    def make():
        pairs = [ticket(lambda: MLP((4,), 2, (8,)), rng) for _ in range(2)]
        return Tickets([model for model, _ in pairs], [masks for _, masks in pairs], kind="gaussian")

    check_ensemble(make, torch.randn(5, 4))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("density", [0.1, 0.5])
def test_stages_cost_their_live_weights(network, density):
    ensemble, x = tickets(NETWORKS[network], 2, density=density), images(2)
    dense = quorate.macs(ensemble.members[0], x)
    for stage, member, masks in zip(quorate.stages(ensemble, x), ensemble.members, ensemble.ticket_masks, strict=True):
        cost = quorate.cost.count(member, x)
        sparse = sum(macs * masks[name].double().mean().item() for name, macs in cost.by_parameter.items() if name in masks)
        rest = dense - sum(macs for name, macs in cost.by_parameter.items() if name in masks)
        assert stage.macs == pytest.approx(sparse + rest, abs=0.51)
        assert stage.macs < (density + 0.05) * dense + rest
        ledger = Ledger.of_model(member, x, list(masks))
        assert stage.macs == ledger.inference_macs({name: int(mask.sum()) for name, mask in masks.items()})


def test_stage_macs_by_hand_in_collect_and_cascade():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(256, 3))
    masks = {"0.weight": torch.zeros(4, 3, 3, 3, dtype=torch.bool), "2.weight": torch.zeros(3, 256, dtype=torch.bool)}
    masks["0.weight"].view(-1)[:5] = masks["2.weight"].view(-1)[:7] = True
    for name, mask in masks.items():
        model.get_parameter(name).data.mul_(mask)
    ensemble, x = Tickets([model], [masks]), images()
    found = quorate.collect(ensemble, x.numpy())
    assert list(found.costs) == [64 * 5 + 7]  # a live weight of the convolution meets 8 · 8 positions
    assert quorate.macs(model, x) == 64 * 108 + 768
    said = Cascade(quorate.stages(ensemble, x), Policy.of(found)).predict(x.numpy())
    assert said.probs is not None
    np.testing.assert_allclose(said.probs, outputs(ensemble, x)[0].softmax(-1).numpy(), atol=1e-6)


def test_masks_are_buffers_that_go_along():
    ensemble = tickets()
    names = {f"masks.{m}.{name.replace('.', '/')}" for m, masks in enumerate(ensemble.ticket_masks) for name in masks}
    assert names <= ensemble.state_dict().keys()
    assert set(dict(ensemble.named_buffers())) >= names
    twin = copy.deepcopy(ensemble)
    saved = io.BytesIO()
    torch.save(ensemble, saved)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    meta = copy.deepcopy(ensemble).to("meta")
    for other in (twin, loaded, copy.deepcopy(ensemble).bfloat16()):
        for own, theirs in zip(ensemble.ticket_masks, other.ticket_masks, strict=True):
            assert own.keys() == theirs.keys()
            assert all(theirs[name].dtype == torch.bool and torch.equal(own[name], theirs[name]) for name in own)
            assert all(theirs[name] is not own[name] for name in own)
    assert all(mask.is_meta for masks in meta.ticket_masks for mask in masks.values())
    fresh = tickets(seed=1)
    assert quorate.stages(fresh, images(1))[0].macs == quorate.stages(ensemble, images(1))[0].macs
    fresh.load_state_dict(ensemble.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), ensemble.state_dict().values(), strict=True))


def test_the_given_masks_are_copied():
    model, masks = ticket(NETWORKS["mlp"], np.random.default_rng(0))
    ensemble = Tickets([model], [masks])
    before = copy.deepcopy(masks)
    for mask in masks.values():
        mask.zero_()
    assert all(torch.equal(ensemble.ticket_masks[0][name], before[name]) for name in before)


def test_identical_tickets_are_one():
    """No two disagree, and the ensemble is the member."""
    model, masks = ticket(NETWORKS["lenet"], np.random.default_rng(0))
    ensemble, x = Tickets([copy.deepcopy(model) for _ in range(3)], [masks] * 3), images(20)
    found = quorate.collect(ensemble, x.numpy())
    members = np.concatenate([np.asarray(value) for value in found.values])
    probs = torch.from_numpy(members).double().softmax(-1).numpy()
    assert pairwise_disagreement(probs) == 0
    assert pairwise_kl(probs) == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(found.probs(), outputs(model, x).double().softmax(-1).numpy(), atol=1e-7)


def test_the_mean_is_of_probabilities():
    """p = [.9, .1] and [.2, .8] with y = 0: mean .55, NLL .5978."""
    models = [nn.Linear(1, 2, bias=False) for _ in range(2)]
    for model, p in zip(models, ([0.9, 0.1], [0.2, 0.8]), strict=True):
        model.weight.data[:, 0] = torch.tensor(p).log()
    ensemble = Tickets(models, [{"weight": torch.ones(2, 1, dtype=torch.bool)}] * 2)
    x = torch.ones(1, 1)
    mean = quorate.mean_probs(outputs(ensemble, x))
    torch.testing.assert_close(mean, torch.tensor([[0.55, 0.45]]))
    probs = quorate.collect(ensemble, x.numpy()).probs()
    assert nll(probs, np.array([0])) == pytest.approx(0.5978, abs=5e-5)


@pytest.mark.parametrize("network", ["mlp", "lenet", "resnet8"])
def test_tickets_can_be_packed(network):
    ensemble, x = tickets(NETWORKS[network]), images()
    packed = quorate.pack_members(list(ensemble.members), example=images(2))
    torch.testing.assert_close(outputs(packed, x), outputs(ensemble, x), atol=1e-5, rtol=1e-5)


def test_a_folder_of_tickets(tmp_path):
    ensemble, x = tickets(), images()
    outputs(ensemble.train(), x)
    paths = save_tickets(ensemble, tmp_path / "kept", [{"phase": m} for m in range(3)])
    assert [path.name for path in paths] == ["member0.safetensors", "member1.safetensors", "member2.safetensors"]
    assert [load_ticket(path).about for path in paths] == [{"phase": m} for m in range(3)]
    for source in (tmp_path / "kept", str(tmp_path / "kept"), paths):
        loaded = load_tickets(source, NETWORKS["lenet"])
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), ensemble.state_dict().values(), strict=True))
        assert loaded.state_dict().keys() == ensemble.state_dict().keys()
        assert torch.equal(outputs(loaded, x), outputs(ensemble, x))
    back = load_tickets(paths[::-1], NETWORKS["lenet"], kind="gaussian")
    assert back.kind == "gaussian"
    assert torch.equal(outputs(back, x), outputs(ensemble, x).flip(0))
    save_tickets(tickets(seed=1), tmp_path / "kept")  # in place of the older ones
    assert not torch.equal(outputs(load_tickets(tmp_path / "kept", NETWORKS["lenet"]), x), outputs(ensemble, x))


def test_folders_that_are_refused(tmp_path):
    ensemble = tickets()
    save_tickets(ensemble, tmp_path)
    with pytest.raises(ValueError, match=r"expected a folder for 2 tickets, got one that holds member2\.safetensors; remove it"):
        save_tickets(tickets(members=2, seed=1), tmp_path)
    assert torch.equal(outputs(load_tickets(tmp_path, NETWORKS["lenet"]), images()), outputs(ensemble, images()))
    (tmp_path / "member1.safetensors").unlink()
    with pytest.raises(ValueError, match=r"without a gap, got member0\.safetensors, member2\.safetensors; pass the files' paths"):
        load_tickets(tmp_path, NETWORKS["lenet"])
    for folder in (tmp_path / "none", tmp_path / "member0.safetensors"):
        with pytest.raises(ValueError, match=r"expected a folder with member0\.safetensors and on without a gap, got no ticket"):
            load_tickets(folder, NETWORKS["lenet"])
    with pytest.raises(ValueError, match=r"has 'classifier\.linear1\.weight' of shape|has no tensor|has a tensor"):
        load_tickets([tmp_path / "member0.safetensors"], NETWORKS["mlp"])
    with pytest.raises(ValueError, match=r"DeepEnsemble\(\[\]\): expected at least one model"):
        load_tickets([], NETWORKS["mlp"])
    with pytest.raises(ValueError, match=r"^about: expected one dict for each of the 3 members, got 1; pass them in order$"):
        save_tickets(ensemble, tmp_path / "new", [{}])
    spoilt = tickets()
    spoilt.members[2].classifier.linear1.weight.data.fill_(1)
    with pytest.raises(ValueError, match=r"^'classifier\.linear1\.weight' of member 2: expected 0 where its mask is False"):
        save_tickets(spoilt, tmp_path / "new")
    assert not (tmp_path / "new").exists()  # not even the members that are right


def pair():
    return ticket(NETWORKS["mlp"], np.random.default_rng(0))


def flipped(masks, name):
    return {**masks, name: ~masks[name]}


class Slashed(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module("a/b", nn.Linear(2, 2))


NAME = next(iter(pair()[1]))
ONES = torch.ones(2, 2, dtype=torch.bool)
REFUSED = {
    "too few masks": (lambda m, _: ([m], []), r"^masks: expected one dict for each of the 1 members, got 0; pass them in order$"),
    "not zero": (lambda m, k: ([m], [flipped(k, NAME)]), rf"^'{NAME}' of member 0: expected 0 where its mask is False, got \d+ other"),
    "unknown": (lambda m, _: ([m], [{"fc9.weight": ONES}]), r"^member 0 has no weight 'fc9.weight'"),
    "shape": (lambda m, _: ([m], [{NAME: ONES}]), rf"^the mask of '{NAME}' of member 0: expected torch.bool .* got torch.bool \(2, 2\)"),
    "device": (lambda m, k: ([m], [{NAME: k[NAME].to("meta")}]), r"on cpu, got .* on meta; True means live"),
    "slash": (lambda *_: ([Slashed()], [{"a/b.weight": ONES}]), r"^'a/b.weight' of member 0: expected a weight's name without '/'"),
    "none": (lambda *_: ([], []), r"expected at least one model"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        Tickets(*make(*pair()))
    assert "\n" not in str(error.value)


def test_a_ticket_put_in_later():
    ensemble, x = tickets(members=2), images()
    model, masks = ticket(NETWORKS["lenet"], np.random.default_rng(7), density=0.1)
    outputs(model.train(), x)
    first, before = outputs(ensemble, x)[0], quorate.stages(ensemble, x)[1].macs
    held = ensemble.ticket_masks[1]
    ensemble.set_ticket_(1, model.state_dict(), masks)
    assert torch.equal(outputs(ensemble, x)[1], outputs(model, x))
    assert torch.equal(outputs(ensemble, x)[0], first)
    assert all(ensemble.ticket_masks[1][name] is held[name] and torch.equal(held[name], masks[name]) for name in masks)
    assert quorate.stages(ensemble, x)[1].macs < 0.5 * before
    with torch.no_grad():
        model.classifier.linear1.weight.zero_()
    assert ensemble.members[1].classifier.linear1.weight.any()  # a copy


def tied():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def test_a_ticket_that_does_not_fit_changes_nothing():
    ensemble = tickets(members=2)
    model, masks = ticket(NETWORKS["lenet"], np.random.default_rng(7))
    state, name = model.state_dict(), "classifier.linear1.weight"
    cases = (
        ((2, state, masks), r"^m: expected a member's number in 0 … 1, got 2; members are counted from 0$"),
        ((True, state, masks), r"^m: .* got True"),
        ((0, state, {name: masks[name]}), r"^masks: expected those of member 0's \d+ sparse weights, got others in '\S+head.weight'"),
        ((0, {name: state[name]}, masks), r"^the ticket has no tensor '\S+conv1.weight', the model has"),
        ((0, {**state, "q": state[name]}, masks), r"^the ticket has a tensor 'q', the model has none"),
        ((0, {**state, name: state[name].T}, masks), r"^the ticket has '\S+1.weight' of shape"),
        ((0, {**state, name: state[name].double()}, masks), r"^the ticket has '\S+1.weight' in torch.float64, the model in torch.float32"),
        ((0, {**state, name: torch.ones_like(state[name])}, masks), r"^'\S+1.weight' of the ticket: expected 0 where its mask is False"),
        ((0, state, {**masks, name: masks[name].float()}), r"^the mask of '\S+1.weight' of the ticket: expected torch.bool"),
    )  # fmt: skip
    before = copy.deepcopy(ensemble.state_dict())
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            ensemble.set_ticket_(*arguments)
        assert "\n" not in str(error.value)
        assert all(torch.equal(value, before[key]) for key, value in ensemble.state_dict().items())
    shared = Tickets([tied()], [{"0.weight": torch.ones(3, 3, dtype=torch.bool)}])
    other = {key: value.clone() for key, value in tied().state_dict().items()}
    shared.set_ticket_(0, other, shared.ticket_masks[0])
    other["1.weight"] += 1
    with pytest.raises(
        ValueError, match=r"^'1.weight' of the ticket: expected the values of '0.weight', with which the member shares"
    ):
        shared.set_ticket_(0, other, shared.ticket_masks[0])
