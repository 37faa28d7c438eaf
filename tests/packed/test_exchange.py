"""Members out of a packed ensemble and plain models into one: nothing is lost either way, nothing unlike is joined."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.data import Normalise
from quorate.models import MLP, ResNet
from quorate.packed import PackedLinear, pack, pack_members, unpack


def trained(model: nn.Module, x: Tensor) -> nn.Module:
    """Random values everywhere, and statistics from a batch."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.train()(x)
    return model


IMAGES = torch.randn(5, 3, 8, 8, dtype=torch.float64)
VECTORS = torch.randn(5, 12, dtype=torch.float64)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "resnet": (lambda: ResNet((3, 8, 8), 4, depth=8, width=8), IMAGES, 1),
    "mlp": (lambda: MLP((12,), 4, hidden=(24, 48), dropout=0.2, norm=True), VECTORS, 1),
    "norms": (
        lambda: nn.Sequential(
            nn.Linear(12, 8), nn.BatchNorm1d(8, affine=False), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 4)
        ),
        VECTORS,
        1,
    ),
    "subgroups": (
        lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 4)),
        VECTORS,
        3,
    ),
    "groups": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, groups=1), nn.Conv2d(16, 16, 3, groups=16), nn.Flatten(), nn.Linear(256, 4)),
        IMAGES,
        1,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_unpacking_and_packing_again_keeps_everything(name: str) -> None:
    make, x, gamma = MODELS[name]
    packed = trained(pack(make().double(), members=4, alpha=2, gamma=gamma), x)
    members = [unpack(packed, m) for m in range(4)]  # type: ignore[arg-type]
    again = pack_members(members)
    assert (again.members, again.alpha, again.gamma) == (4, 4, 1)
    for training in (False, True):
        if training and name == "mlp":
            break  # dropout
        rows = packed.train(training)(x)
        for m, member in enumerate(members):
            torch.testing.assert_close(member.train(training)(x), rows[m], rtol=0, atol=1e-12)
        torch.testing.assert_close(again.train(training)(x), rows, rtol=0, atol=1e-12)
    state, other = (net.network.state_dict() for net in (packed, again))  # type: ignore[union-attr]
    assert state.keys() == other.keys()
    assert all(torch.allclose(state[key], other[key], rtol=0, atol=1e-12) for key in state)


def test_unpacked_members_are_plain_networks_of_the_members_width() -> None:
    packed = pack(ResNet((3, 8, 8), 4, depth=8, width=16), members=4, alpha=2, gamma=1)
    half = ResNet((3, 8, 8), 4, depth=8, width=8)
    member = unpack(packed, 3)
    half.load_state_dict(member.state_dict())  # names and shapes agree
    assert {type(m) for m in member.modules()} & {nn.Conv2d, nn.Linear, nn.BatchNorm2d} == {nn.Conv2d, nn.Linear, nn.BatchNorm2d}
    assert not any(isinstance(m, PackedLinear) for m in member.modules())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(half.eval()(x), member.eval()(x))


def test_packed_models_give_what_each_of_them_gives() -> None:
    models = [trained(ResNet((3, 8, 8), 4, depth=8, width=w).double(), IMAGES) for w in (6, 6, 6)]
    rows = pack_members(models).eval()(IMAGES)
    for model, row in zip(models, rows, strict=True):
        torch.testing.assert_close(model.eval()(IMAGES), row, rtol=0, atol=1e-12)
    assert pack_members(models[:1])(IMAGES).shape == (1, 5, 4)


def test_copy_starts_every_member_as_the_model() -> None:
    model = trained(ResNet((3, 8, 8), 4, depth=8, width=6).double(), IMAGES).eval()
    packed = pack(model, members=3, alpha=3, init="copy", example=IMAGES)
    for row in packed(IMAGES):
        torch.testing.assert_close(row, model(IMAGES), rtol=0, atol=1e-12)
    counts = {int(v) for k, v in packed.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {1}


def test_unpacking_copies_values_flags_and_draws_nothing() -> None:
    packed = pack(ResNet((3, 8, 8), 4, depth=8, width=8)).eval()
    packed.network.conv1.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    state, before = torch.get_rng_state(), packed(IMAGES.float())
    member = unpack(packed, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert [name for name, p in member.named_parameters() if not p.requires_grad] == ["conv1.weight"]
    assert not any(m.training for m in member.modules())
    with torch.no_grad():
        for tensor in (*member.parameters(), *member.buffers()):
            tensor.zero_()
    assert torch.equal(packed(IMAGES.float()), before)


@pytest.mark.parametrize("m", [-1, 4, True, 1.0, None])
def test_no_such_member(m: Any) -> None:
    with pytest.raises(ValueError, match="m: expected a member from 0 to 3, got"):
        unpack(pack(nn.Sequential(nn.Linear(2, 2))), m)


def test_unpacking_a_plain_model() -> None:
    with pytest.raises(ValueError, match="packed: expected a PackedEnsemble, got Linear"):
        unpack(nn.Linear(2, 2), 0)  # type: ignore[arg-type]


def small(width: int = 8, act: type[nn.Module] = nn.ReLU, p: float = 0.1, mean: float = 0.5) -> nn.Module:
    return nn.Sequential(Normalise((mean,) * 4, (1.0,) * 4, (4,)), nn.Linear(4, width), act(), nn.Dropout(p), nn.Linear(width, 2))


class Functional(nn.Module):
    def __init__(self, factor: float, twice: bool = False) -> None:
        super().__init__()
        self.layer, self.factor, self.twice = nn.Linear(4, 2), factor, twice

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) * self.factor
        return y.relu() if self.twice else y


class Offset(nn.Module):
    offset: Tensor

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("offset", torch.tensor(offset))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x - self.offset)
        return y


def test_shared_buffers_are_kept() -> None:
    models = [Offset(2.0), Offset(2.0)]
    packed, x = pack_members(models), torch.randn(3, 4)
    torch.testing.assert_close(packed(x)[1], models[1](x))
    torch.testing.assert_close(unpack(packed, 0)(x), models[0](x))


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([], "models: expected at least one model, got none"),
        ([small(), 3], r"models\[1\]: expected a plain nn.Module, got int"),
        ([small(), pack(small())], r"models\[1\]: expected a plain nn.Module, got PackedEnsemble"),
        ([small(), small(9)], "equal settings at module '1', but out_features is 8 in model 0 and 9 in model 1"),
        ([small(), small(), small(act=nn.Tanh)], "module '2', but class is 'ReLU' in model 0 and 'Tanh' in model 2"),
        ([small(), small(p=0.2)], r"module '3', but p is 0\.1 in model 0 and 0\.2 in model 1"),
        (
            [small(), small(mean=0.4)],
            "equal values, which all members will share, of mean at module '0', but models 0 and 1 differ",
        ),
        ([small(), small().double()], "module '0', but models 0 and 1 differ; convert the models"),
        (
            [nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2)).double()],
            "equal shape, dtype and device of weight at module '0'",
        ),
        (
            [nn.Sequential(nn.Linear(4, 2)), nn.Sequential(nn.Linear(4, 2, bias=False))],
            "expected equal shape, dtype and device of bias",
        ),
        ([Functional(2.0), Functional(3.0)], "expected one architecture, but models 0 and 1 differ at step 'mul'"),
        ([Functional(2.0), Functional(2.0, twice=True)], "models 0 and 1 differ at"),
    ],
)
def test_models_that_do_not_belong_together(models: list, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pack_members(models)
    assert "\n" not in str(caught.value)


def test_packing_members_leaves_the_models_as_they_are() -> None:
    models = [trained(ResNet((3, 8, 8), 4, depth=8, width=4), IMAGES.float()) for _ in range(2)]
    before = [copy.deepcopy(model.state_dict()) for model in models]
    packed = pack_members(models)
    with torch.no_grad():
        for tensor in (*packed.parameters(), *packed.buffers()):
            tensor.zero_()
    for model, state in zip(models, before, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
