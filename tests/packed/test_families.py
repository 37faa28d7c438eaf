"""Every model family of the package, packed in several ways: values, isolation, round trips, the contract, compiled and exported."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ensemble_contract import check_ensemble
from packed_members import assert_alone, assert_complete, assert_isolated, drawn, near
from quorate.models import MLP, RNN, VGG, CNN1d, DepthwiseNet, LeNet, MultiExitResNet, ResNet, ViT, WideResNet
from quorate.packed import PackedEnsemble, pack, pack_members, unpack

IMAGE, LINE = (3, 8, 8), (3, 12)
Make = Callable[[int], nn.Module]  # of a width, to which all its widths are proportional

FAMILIES: dict[str, tuple[Make, tuple[int, ...]]] = {
    "mlp": (lambda w: MLP(IMAGE, 3, (3 * w, 2 * w), norm=True), IMAGE),
    "lenet": (lambda w: LeNet(IMAGE, 3, (w, 2 * w), (3 * w, w)), IMAGE),
    "resnet8": (lambda w: ResNet(IMAGE, 3, depth=8, width=w), IMAGE),
    "vit": (lambda w: ViT(IMAGE, 3, patch=4, width=4 * w, depth=2, heads=w // 3), IMAGE),
    "vit mean": (lambda w: ViT(IMAGE, 3, patch=4, width=2 * w, depth=1, heads=w // 3, pool="mean"), IMAGE),
    "cnn1d": (lambda w: CNN1d(LINE, 3, (w, 2 * w), kernel=3), LINE),
    "cnn1d plain": (lambda w: CNN1d(LINE, 3, (w, w), kernel=3, residual=False), LINE),
    "lstm": (lambda w: RNN(LINE, 3, "lstm", w, layers=2), LINE),
    "lstm both ways": (lambda w: RNN(LINE, 3, "lstm", w, bidirectional=True, pool="mean"), LINE),
    "gru both ways": (lambda w: RNN(LINE, 3, "gru", w, layers=2, bidirectional=True), LINE),
}
DEEP: dict[str, tuple[Make, tuple[int, ...]]] = {
    "resnet18": (lambda w: ResNet(IMAGE, 3, depth=18, width=w), IMAGE),
    "resnet50": (lambda w: ResNet(IMAGE, 3, depth=50, width=w), IMAGE),
    "resnet18 imagenet": (lambda w: ResNet((3, 32, 32), 3, depth=18, width=w, stem="imagenet"), (3, 32, 32)),
    "vgg": (lambda w: VGG(IMAGE, 3, depth=16, width=w, pools=3, positions=1, hidden=(2 * w, w)), IMAGE),
}
FIXED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {  # widths that have no free unit
    "wide": (lambda: WideResNet(IMAGE, 3, depth=10, width=1), IMAGE),
    "depthwise": (lambda: DepthwiseNet(IMAGE, 3, width=0.1), IMAGE),
}
SETTINGS = [(2, 1.0), (3, 3.0), (4, 2.0), (2, 1.5)]


def batch(shape: tuple[int, ...], rows: int = 4) -> Tensor:
    return torch.randn(rows, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def check(
    model: nn.Module, narrow: Callable[[], nn.Module] | None, x: Tensor, members: int, alpha: float, isolation: bool
) -> None:
    torch.manual_seed(0)
    packed = drawn(pack(model.double(), members, alpha, example=x[:1]))
    assert_complete(packed)
    assert_alone(packed, x, narrow)
    if isolation:
        assert_isolated(packed, x)
    again = pack_members([unpack(packed, m) for m in range(members)], example=x[:1])
    near(again.eval()(x), packed.eval()(x))
    state, other = packed.network.state_dict(), again.network.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[key], other[key]) for key in state)
    fresh = pack(model.double(), members, alpha)
    fresh.load_state_dict(packed.state_dict())
    assert torch.equal(fresh.eval()(x), packed(x))


MORE = ("mlp", "vit", "lstm both ways")  # of which every setting is quick enough


@pytest.mark.parametrize(
    ("name", "members", "alpha"),
    [pytest.param(n, *s, marks=() if n in MORE or s == (4, 2.0) else pytest.mark.slow) for n in FAMILIES for s in SETTINGS],
)
def test_small_families(name: str, members: int, alpha: float) -> None:
    make, shape = FAMILIES[name]
    check(make(12), lambda: make(int(12 * alpha / members)), batch(shape), members, alpha, isolation=members == 4)


@pytest.mark.parametrize(("members", "alpha"), [(2, 1.0), pytest.param(4, 2.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name", ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in DEEP if name != "resnet18")]
)
def test_deep_families(name: str, members: int, alpha: float) -> None:
    make, shape = DEEP[name]
    check(make(4), lambda: make(int(4 * alpha / members)), batch(shape), members, alpha, isolation=True)


@pytest.mark.parametrize(("members", "alpha"), [(2, 1.0), pytest.param(3, 3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["wide", pytest.param("depthwise", marks=pytest.mark.slow)])
def test_families_of_fixed_widths(name: str, members: int, alpha: float) -> None:
    make, shape = FIXED[name]
    check(make(), make if alpha == members else None, batch(shape), members, alpha, isolation=True)


@pytest.mark.parametrize(
    "name",
    ["cnn1d", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "vit", "vit mean", "lstm both ways", "gru both ways"))],
)
def test_the_contract(name: str) -> None:
    make, shape = FAMILIES[name]
    check_ensemble(lambda: pack(make(12), members=4, alpha=2), batch(shape, 5).float())


RECURRENT = ("lstm", "lstm both ways", "gru both ways")  # which run outside of a compiled graph
QUICK = ("lenet", "cnn1d plain")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own, where a graph breaks
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FAMILIES])
def test_compiled_and_exported(name: str) -> None:
    make, shape = FAMILIES[name]
    packed, x = pack(make(12), members=2, alpha=2).eval(), batch(shape).float()
    expected = packed(x)
    compiled = torch.compile(packed, backend="eager", fullgraph=name not in RECURRENT, dynamic=True)
    torch.testing.assert_close(compiled(x), expected, rtol=0, atol=1e-5)
    torch._dynamo.reset()
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    for rows in (x, x[:1], x.repeat(3, *(1 for _ in shape))):
        torch.testing.assert_close(program(rows), packed(rows), rtol=0, atol=1e-5)


def test_dropout_and_stochastic_depth_draw_for_each_member() -> None:
    torch.manual_seed(0)
    for model, shape in (
        (MLP(IMAGE, 3, (24,), dropout=0.5), IMAGE),
        (ViT(IMAGE, 3, patch=4, width=24, depth=2, heads=4, dropout=0.3, stochastic_depth=0.5), IMAGE),
        (RNN(LINE, 3, "gru", 24, layers=2, dropout=0.5), LINE),
    ):
        one = model.double()
        packed, x = pack(one, members=3, alpha=3, init="copy"), batch(shape, 16)
        near(packed.eval()(x)[1], packed(x)[0])  # equal members
        rows = packed.train()(x)
        assert not torch.allclose(rows[0], rows[1])
        assert_isolated(drawn(packed), x)


def test_a_network_with_exits_is_refused_with_a_way_out() -> None:
    model = MultiExitResNet(IMAGE, 3, depth=8, width=8)
    for example in (None, batch(IMAGE).float()):
        with pytest.raises(ValueError, match=r"expected .*got .*; ") as caught:
            pack(model, example=example)
        assert "\n" not in str(caught.value)
        assert "DeepEnsemble" in str(caught.value) or "Linear" in str(caught.value)


def test_copies_live_apart() -> None:
    make, shape = FAMILIES["vit"]
    packed: PackedEnsemble = pack(make(12).double(), members=2, alpha=2)
    twin, x = copy.deepcopy(packed), batch(shape)
    expected = packed.eval()(x)
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.zero_()
    assert torch.equal(twin.eval()(x), expected)
    near(twin.each(torch.stack([x, x])), expected)
