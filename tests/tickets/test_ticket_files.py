"""Ticket files: bit-equal round trips, the size they promise, and every refusal, of damaged files above all."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate.files import load_arrays
from quorate.tickets.files import load_ticket, load_ticket_, save_ticket
from quorate.tickets.masks import apply_, draw

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Net(nn.Module):
    """Sparse and dense weights, a norm with a scalar buffer, a shared weight, and buffers of other dtypes."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 8, bias=False)
        self.out = nn.Linear(8, 8)
        if tied:
            self.out.weight = self.fc.weight
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("nothing", torch.zeros(0, 3))


def ticket(density=0.3, dtype=torch.float32, seed=0, tied=True):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Net(tied).to(dtype)
    masks = {name: draw(model.get_parameter(name).shape, 0, rng) for name in ("conv.weight", "fc.weight")}
    for name, mask in masks.items():
        masks[name] = draw(mask.shape, math.ceil(density * mask.numel()), rng)
    weights = [model.get_parameter(name) for name in masks]
    apply_(weights, list(masks.values()))
    return model, masks


def same(a, b):
    """Equal bit for bit."""
    a, b = a.detach().cpu().contiguous(), b.detach().cpu().contiguous()
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(BITS[a.element_size()]), b.reshape(-1).view(BITS[b.element_size()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("density", [0.5, 0.015])
def test_round_trip(tmp_path, dtype, density):
    model, masks = ticket(density, dtype)
    about = {"ticket": 2, "epoch": [1, 2.5, None], "name": "×"}
    save_ticket(model, masks, tmp_path / "t.safetensors", about)
    found = load_ticket(tmp_path / "t.safetensors")
    state = model.state_dict()
    assert found.tensors.keys() == state.keys()
    assert all(same(found.tensors[name], state[name]) for name in state)
    assert found.masks.keys() == masks.keys()
    assert all(torch.equal(found.masks[name], masks[name]) for name in masks)
    assert found.about == about
    assert found.tensors["out.weight"] is found.tensors["fc.weight"]
    other, _ = ticket(0.9, dtype, seed=1)
    into = load_ticket_(other, tmp_path / "t.safetensors")
    assert all(same(value, state[name]) for name, value in other.state_dict().items())
    assert all(torch.equal(into[name], masks[name]) for name in masks)
    assert other.out.weight is other.fc.weight
    kinds = {key.partition(":")[0] for key in load_arrays(tmp_path / "t.safetensors", "")[0]}
    assert kinds == {"whole", "live", "places" if density < 1 / 32 else "bits"}


ODD = [-0.0, 5e-8, -6e-8, math.inf, -math.inf, math.nan, 0.0, 1.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_odd_values_keep_their_bits(tmp_path, dtype):
    model = nn.Linear(10, 8, bias=False).to(dtype)
    masks = {"weight": torch.zeros(8, 10, dtype=torch.bool)}
    masks["weight"][:, 3] = True
    with torch.no_grad():
        model.weight.zero_()[:, 3] = torch.tensor(ODD, dtype=torch.float64).to(dtype)
        bits = model.weight.view(BITS[dtype.itemsize])
        bits[5, 3] += 5  # a NaN with a payload
        bits[2, 3] = 1  # the least denormal
    assert model.weight.isnan().sum() == 1
    save_ticket(model, masks, tmp_path / "t.safetensors")
    found = load_ticket(tmp_path / "t.safetensors")
    assert same(found.tensors["weight"], model.weight)
    assert torch.equal(found.masks["weight"], masks["weight"])  # two of the live ones are zero
    fresh = nn.Linear(10, 8, bias=False).to(dtype)
    load_ticket_(fresh, tmp_path / "t.safetensors")
    assert same(fresh.weight, model.weight)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 99), st.booleans())
def test_any_shape_and_density(tmp_path_factory, shape, density, seed, swapped):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    model = nn.Module()
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    model.w = nn.Parameter(weight.T.contiguous().T if swapped and len(shape) == 2 else weight)  # row-major or not
    mask = draw(shape, round(density * weight.numel()), np.random.default_rng(seed))
    model.w.data[~mask] = 0
    save_ticket(model, {"w": mask}, path)
    found = load_ticket(path)
    assert same(found.tensors["w"], model.w)
    assert torch.equal(found.masks["w"], mask)


@pytest.mark.parametrize("density", [0.3, 0.2, 0.1, 0.05, 0.03, 0.01])
def test_size(tmp_path, density):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 63, 3, bias=False), nn.Linear(63, 101))
    rng, masks = np.random.default_rng(0), {}
    for name in ("0.weight", "2.weight", "3.weight"):
        weight = model.get_parameter(name)
        masks[name] = draw(weight.shape, round(density * weight.numel()), rng)
        apply_([weight], [masks[name]])
    save_ticket(model, masks, tmp_path / "t.safetensors")
    data = (tmp_path / "t.safetensors").read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    assert header <= 300 + 130 * (len(model.state_dict()) + 2 * len(masks))
    sparse = sum(4 * int(m.sum()) + min(4 * int(m.sum()), -(-m.numel() // 8)) for m in masks.values())
    assert sparse <= sum(4 * int(m.sum()) + m.numel() / 8 + 1 for m in masks.values())
    rest = sum(v.numel() * v.element_size() for name, v in model.state_dict().items() if name not in masks)
    assert len(data) == sparse + rest + header


def test_equal_tickets_give_equal_bytes(tmp_path):
    for name in "ab":
        save_ticket(*ticket(), tmp_path / name, {"x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(
    "dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.uint16, torch.uint64, torch.int8, torch.complex64, torch.bool]
)
def test_other_dtypes_whole(tmp_path, dtype):
    model = nn.Module()
    model.register_buffer("b", torch.tensor([0.0, 1.0, 3.0]).to(dtype))
    model.register_buffer("c", torch.tensor(1.0).to(dtype))
    if dtype.is_complex:
        model.b = (model.b * 1j).conj()  # lazily conjugated
    save_ticket(model, {}, tmp_path / "t")
    found = load_ticket(tmp_path / "t").tensors
    assert all(found[name].dtype == dtype and found[name].tolist() == getattr(model, name).tolist() for name in ("b", "c"))
    assert not found["b"].is_conj()


def test_a_minus_zero_at_a_dead_place_is_a_zero(tmp_path):
    model = nn.Linear(2, 1, bias=False)
    model.weight.data[:] = torch.tensor([[-0.0, 2.0]])
    save_ticket(model, {"weight": torch.tensor([[False, True]])}, tmp_path / "t")
    assert same(load_ticket(tmp_path / "t").tensors["weight"], torch.tensor([[0.0, 2.0]]))


def changed(name, change):
    model, masks = ticket()
    masks[name] = change(masks[name])
    return model, masks


def lived(model, masks, name, value):
    with torch.no_grad():
        model.get_parameter(name)[~masks[name]] = value
    return model, masks


class Stateful(nn.Linear):
    def get_extra_state(self):
        return "text"


REFUSED = {
    "not zero": (lambda: lived(*ticket(), "conv.weight", 1.0), r"^'conv.weight' of the model: expected 0 where .* got 151 other values"),
    "NaN": (lambda: lived(*ticket(), "fc.weight", math.nan), r"^'fc.weight' of the model: expected 0 where its mask is False, got 44"),
    "unknown": (lambda: (ticket()[0], {"conv.wieght": ticket()[1]["conv.weight"]}), r"^the model has no weight 'conv.wieght'; did you"),
    "alias": (lambda: (ticket()[0], {"out.weight": ticket()[1]["fc.weight"]}), r"has no weight 'out.weight'"),
    "buffer": (lambda: (ticket()[0], {"flags": torch.ones(2, dtype=torch.bool)}), r"has no weight 'flags'"),
    "shape": (lambda: changed("fc.weight", lambda m: m[:2]), r"the mask of 'fc.weight' of the model: expected torch.bool \(8, 8\) on cpu"),
    "dtype": (lambda: changed("fc.weight", lambda m: m.float()), r"got torch.float32 \(8, 8\) on cpu; True means live"),
    "type": (lambda: changed("fc.weight", lambda m: m.numpy()), r"got ndarray; True"),
    "extra": (lambda: (Stateful(2, 2), {}), r"^'_extra_state': expected dense tensors with values, got str; a ticket can't hold it"),
    "meta": (lambda: (nn.Linear(2, 2, device="meta"), {}), r"^'weight': .* got a torch.strided tensor on meta"),
    "lazy": (lambda: (nn.LazyLinear(2), {}), r"^'weight': .* got a lazy tensor"),
    "complex": (lambda: (nn.Linear(2, 2, dtype=torch.complex128), {}), r"^'weight' is torch.complex128, which a ticket file can't hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refused_before_anything_is_written(tmp_path, name):
    make, message = REFUSED[name]
    model, masks = make()
    with pytest.raises(ValueError, match=message) as error:
        save_ticket(model, masks, tmp_path / "t")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("about", [{"x": math.nan}, {"x": (1, 2)}, {1: 2}, {"x": {1}}, {"x": torch.ones(1)}])
def test_about_must_survive_json(tmp_path, about):
    with pytest.raises(ValueError, match=r"^about: expected what JSON gives back as it was") as error:
        save_ticket(*ticket(), tmp_path / "t", about)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_models_of_another_structure(tmp_path):
    model, masks = ticket()
    path = tmp_path / "t"
    save_ticket(model, masks, path)
    wide, more, less = Net(), Net(), Net()
    wide.conv = nn.Conv2d(3, 9, 3)
    more.new = nn.Linear(1, 1)
    del less.flags
    unregistered = Net()
    unregistered.conv.register_buffer("weight_", unregistered.conv.weight.detach())
    cases = (
        (wide, r"has 'conv.weight' of shape \(8, 3, 3, 3\), the model of \(9, 3, 3, 3\); build"),
        (more, r"has no tensor 'new.weight', the model has; build"),
        (less, r"has a tensor 'flags', the model has none; build"),
        (Net().half(), r"has 'conv.weight' in torch.float32, the model in torch.float16; convert"),
        (Net(tied=False), r"has 'out.weight' shared with 'fc.weight', the model has it unshared; build"),
    )
    for other, message in cases:
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message) as error:
            load_ticket_(other, path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert all(same(value, before[name]) for name, value in other.state_dict().items())
    save_ticket(*ticket(tied=False), path)
    with pytest.raises(ValueError, match=r"has 'out\.weight' unshared, the model has it shared with 'fc.weight'"):
        load_ticket_(Net(), path)


def test_a_mask_of_what_is_no_parameter_of_the_model(tmp_path):
    model, frozen = nn.Linear(3, 2, bias=False), nn.Module()
    mask = torch.zeros(2, 3, dtype=torch.bool)
    model.weight.data.zero_()
    save_ticket(model, {"weight": mask}, tmp_path / "t")
    frozen.register_buffer("weight", torch.ones(2, 3))
    with pytest.raises(ValueError, match="has a mask of 'weight', which is no parameter of the model"):
        load_ticket_(frozen, tmp_path / "t")
    assert frozen.weight.all()


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    model, masks = ticket()
    path = tmp_path / "t"
    save_ticket(model, masks, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="could not write"):
        save_ticket(*ticket(seed=5), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["t"]
