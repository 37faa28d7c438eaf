"""What a packed network has to keep, one test after the other: counts, values, gradients, isolation, order, round trips, errors, export.

The scale of fresh values, and bounds of each group: `test_initial.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packed_members import Between, assert_isolated, drawn, images, near
from quorate.cost import macs
from quorate.ensemble import member_loss
from quorate.models import RNN, ResNet, ViT, resnet18
from quorate.packed import PackedEnsemble, pack, pack_members, unpack

IMAGE = (3, 8, 8)


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("role", "gamma", "parameters", "cost"),
    [("interior", 1, 33_280, 32_768), ("first", 1, 66_048, 65_536), ("last", 1, 66_560, 65_536), ("interior", 2, 16_896, 16_384)],
)
def test_1_counts_of_linear_layers(role: str, gamma: int, parameters: int, cost: int) -> None:
    before, layer, behind = nn.Linear(8, 128), nn.Linear(128, 256), nn.Linear(256, 8)
    layers = {"interior": [before, layer, behind], "first": [layer, behind], "last": [before, layer]}[role]
    packed = pack(nn.Sequential(*layers), members=4, alpha=2, gamma=gamma)
    row = packed.explain()[layers.index(layer)]
    assert (row.role, row.parameters) == (role, parameters)
    others = sum(2 * n.in_features * n.out_features for n in layers if n is not layer)  # first and last ones cost α
    x = torch.zeros(1, layers[0].in_features)
    assert macs(packed, x) == cost + others
    assert packed(x).shape == (4, 1, layers[-1].out_features)


def test_1_counts_of_convolutions_and_of_resnet18() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 128, 3, bias=False), nn.Conv2d(128, 256, 1), nn.Conv2d(256, 256, 3, bias=False)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)),
    )
    rows = {row.name: row for row in pack(model, members=4, alpha=2, gamma=2).explain()}
    assert (rows["1"].parameters, rows["1"].gamma) == (73_728, 1)
    assert (rows["3"].parameters, rows["3"].gamma) == (294_912, 2)
    with torch.device("meta"):
        single, x = resnet18(classes=10, stem="cifar"), torch.empty(1, 3, 32, 32)
    assert (size(single), macs(single, x)) == (11_173_962, 555_422_720)
    for alpha, gamma, parameters, cost in ((2, 1, 11_190_440, 557_197_312), (2, 2, 8_175_784, 480_651_264)):
        packed = pack(single, members=4, alpha=alpha, gamma=gamma)
        assert (size(packed), macs(packed, x)) == (parameters, cost)
    packed = pack(single, members=4, alpha=4)
    assert (size(packed), macs(packed, x)) == (4 * size(single), 4 * macs(single, x))


def halves(width: int, depth: int) -> tuple[PackedEnsemble, list[nn.Module], Tensor, Tensor]:
    """A packed (2, 4, 1) ResNet in training, four separate ones of half the width with its values, and a batch."""
    torch.manual_seed(0)
    packed = drawn(pack(ResNet(IMAGE, 5, depth=depth, width=width).double(), members=4, alpha=2)).train()
    alone = [ResNet(IMAGE, 5, depth=depth, width=width // 2).double().train() for _ in range(4)]
    for m, model in enumerate(alone):
        model.load_state_dict(unpack(packed, m).state_dict())
    return packed, alone, torch.randn(6, *IMAGE, dtype=torch.float64), torch.arange(6) % 5


@pytest.mark.parametrize("width", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_2_packed_resnet18_is_four_of_half_the_width_in_training(width: int) -> None:
    packed, alone, x, _ = halves(width, 18)
    for _ in range(2):  # statistics accumulate
        rows = packed(x)
        for row, model in zip(rows, alone, strict=True):
            near(row, model(x))
    for m, model in enumerate(alone):
        given = unpack(packed, m).state_dict()
        for name, value in model.state_dict().items():
            near(given[name].double(), value.double())
    for row, model in zip(packed.eval()(x), alone, strict=True):
        near(row, model.eval()(x))


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}])
def test_3_gradients_of_the_default_loss_are_those_of_separate_trainings(options: dict[str, float]) -> None:
    packed, alone, x, y = halves(8, 14)
    member_loss(packed(x), y, **options).backward()
    holder = copy.deepcopy(packed)
    with torch.no_grad():
        for place, parameter in zip(holder.parameters(), packed.parameters(), strict=True):
            assert parameter.grad is not None
            place.copy_(parameter.grad)
    for m, model in enumerate(alone):
        F.cross_entropy(model(x), y, **options).backward()
        given = dict(unpack(holder, m).named_parameters())
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert (given[name] - parameter.grad).norm() < 1e-12 * parameter.grad.norm()


def tokens(h: Tensor) -> Tensor:
    return h.flatten(2).transpose(1, 2)


def attention(w: int) -> dict[str, Any]:
    return {"a": nn.MultiheadAttention(w, w // 4, batch_first=True)}


OPERATIONS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], Callable[[int], dict[str, Any]] | None, int]] = {
    "convolution": (lambda s, h, x: s.c(h), lambda w: {"c": nn.Conv2d(w, w, 3, padding=1)}, 16),  # noqa: ARG005
    "linear": (lambda s, h, x: s.c(tokens(h)), lambda w: {"c": nn.Linear(w, w)}, 16),  # noqa: ARG005
    "batch norm": (lambda s, h, x: s.c(h), lambda w: {"c": nn.BatchNorm2d(w)}, 16),  # noqa: ARG005
    "layer norm": (lambda s, h, x: s.c(tokens(h)), lambda w: {"c": nn.LayerNorm(w)}, 16),  # noqa: ARG005
    "group norm": (lambda s, h, x: s.c(h), lambda w: {"c": nn.GroupNorm(4, w)}, 16),  # noqa: ARG005
    "attention, q = k = v": (lambda s, h, x: (lambda t: s.a(t, t, t)[0])(tokens(h)), attention, 16),  # noqa: ARG005
    "attention, k = v": (lambda s, h, x: (lambda t: s.a(t.abs(), t, t)[0])(tokens(h)), attention, 16),  # noqa: ARG005
    "attention, distinct": (lambda s, h, x: (lambda t: s.a(t.abs(), t, t.relu())[0])(tokens(h)), attention, 16),  # noqa: ARG005
    "concatenation of channels": (lambda _, h, x: torch.cat([h, h.abs(), h.relu()], 1), None, 48),  # noqa: ARG005
    "concatenation of tokens": (lambda _, h, x: torch.cat([tokens(h), tokens(h).abs()], 1), None, 32),  # noqa: ARG005
    "concatenation of features": (lambda _, h, x: torch.cat([tokens(h), tokens(h).abs()], -1), None, 32),  # noqa: ARG005
    "lstm": (lambda s, h, x: s.c(tokens(h))[0], lambda w: {"c": nn.LSTM(w, w, 2, batch_first=True)}, 16),  # noqa: ARG005
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_4_no_member_depends_on_anothers_parameters(name: str) -> None:
    step, parts, features = OPERATIONS[name]
    model = Between(step, parts, 16, lambda w: features * w).double()
    assert_isolated(drawn(pack(model, members=4, alpha=2, example=images())), images())


def test_5_permuting_members_permutes_rows() -> None:
    packed, _, x, _ = halves(8, 8)
    order = [2, 0, 3, 1]
    permuted = pack_members([unpack(packed, m) for m in order]).eval()
    rows, other = packed.eval()(x), permuted(x)
    near(other, rows[order])
    near(other.softmax(-1).mean(0), rows.softmax(-1).mean(0))
    near(rows[2], unpack(packed, 2)(x))


def test_6_round_trips() -> None:
    packed, _, x, _ = halves(8, 8)
    members = [unpack(packed, m) for m in range(4)]
    again = pack_members(members)
    near(again.eval()(x), packed.eval()(x))
    for m, member in enumerate(members):
        near(member.eval()(x), packed(x)[m])
        values = unpack(again, m).state_dict()
        assert all(torch.equal(value, values[key]) for key, value in member.state_dict().items())
    other = pack(ResNet(IMAGE, 5, depth=8, width=8).double(), members=4, alpha=2)
    other.load_state_dict(packed.state_dict(), strict=True)
    assert torch.equal(other.eval()(x), packed(x))


def test_7_each_group_is_drawn_within_its_own_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 128, 3), nn.Conv2d(128, 256, 1), nn.Conv2d(256, 256, 3), nn.Flatten(), nn.Linear(256, 10))
    packed = pack(model, members=4, alpha=2, gamma=2)
    for row, inputs in zip(packed.explain(), (27, 64, 64 * 9, 128), strict=True):
        weight = packed.network.get_submodule(row.name).weight
        assert isinstance(weight, Tensor)
        groups = (
            weight.detach().reshape(row.groups, -1).abs().amax(1) if row.role != "first" else weight.detach().abs().amax()[None]
        )
        assert groups.max() <= 1 / math.sqrt(inputs)
        assert groups.min() > 0.9 / math.sqrt(inputs)


SMALL = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (SMALL, {"members": 3}, r"cannot pack module '1' \(Linear\): out_features: .* got 64; the nearest that do: 63 and 66"),
        (SMALL, {"alpha": 1.3}, "the nearest that do: 40 and 80"),
        (SMALL, {"alpha": -2}, "alpha: expected a positive number, got -2"),
        (SMALL, {"alpha": float("nan")}, "alpha: expected a positive"),
        (SMALL, {"members": -1}, "members: expected a positive int, got -1"),
        (SMALL, {"members": 2.0}, "members: expected a positive int, got 2.0"),
        (SMALL, {"gamma": 3}, r"cannot pack module '3' \(Linear\): .* equal groups, got 64; the nearest that do: 60 and 66"),
        (
            nn.Sequential(nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2)),
            {},
            "module '1': .*got ChannelShuffle; keep it whole with skip",
        ),
        (
            ViT(IMAGE, 3, patch=4, width=48, depth=1, heads=3),
            {},
            "expected heads that α/M = 1/2 divides, got 3; legal are 2 and 4",
        ),
        (
            nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 5).requires_grad_(False), nn.Linear(5, 2)),
            {},
            "got 5; the nearest that do: 4 and 6",
        ),
    ],
)
def test_8_odd_requests_say_what_would_work(model: nn.Module, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pack(model, **options)
    assert "\n" not in str(caught.value)


EXPORTED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda: ResNet(IMAGE, 4, depth=8, width=8), IMAGE),
    "vit": (lambda: ViT(IMAGE, 4, patch=4, width=32, depth=2, heads=4), IMAGE),
    "lstm": (lambda: RNN((3, 12), 4, "lstm", 16, bidirectional=True), (3, 12)),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_9_autocast(name: str) -> None:
    torch.manual_seed(0)
    make, shape = EXPORTED[name]
    packed, x = pack(make()).eval(), torch.randn(5, *shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = packed(x)
        packed.train()(x).float().sum().backward()
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), packed.eval()(x), rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in packed.parameters())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch's own exporter
@pytest.mark.parametrize("name", EXPORTED)
def test_9_onnx(name: str, tmp_path: Any) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    make, shape = EXPORTED[name]
    packed, x = pack(make()).eval(), torch.randn(5, *shape)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    with torch.no_grad():
        program = torch.onnx.export(packed, (x,), dynamo=True, dynamic_shapes=dynamic, input_names=["x"], verbose=False)
    assert program is not None
    program.save(str(tmp_path / "packed.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "packed.onnx"), providers=["CPUExecutionProvider"])
    for rows in (x, x[:1], x.repeat(3, *(1 for _ in shape))):
        (logits,) = session.run(None, {"x": rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), packed(rows), rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of PyTorch's own compiler
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_9_compiled(name: str) -> None:
    torch.manual_seed(0)
    make, shape = EXPORTED[name]
    packed, x = pack(make()).eval(), torch.randn(5, *shape)
    torch.testing.assert_close(torch.compile(packed)(x), packed(x), rtol=0, atol=1e-4)
    torch._dynamo.reset()
