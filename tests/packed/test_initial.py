"""Fresh values: each group within its own bound, activations at the scale of a plain network of the member's width."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.models import MLP, RNN, VGG, ResNet, ViT
from quorate.packed import PackedConv2d, PackedGRU, PackedLinear, pack, unpack
from quorate.packed.initial import drawn, fixed_scale


def plain_vgg(width: int, scheme: str) -> nn.Module:
    """VGG-16 for 32×32 images without norms, `width` channels at first; PyTorch's own scheme, or He's."""
    layers: list[nn.Module] = []
    into = 3
    for factor in (1, 1, 0, 2, 2, 0, 4, 4, 4, 0, 8, 8, 8, 0, 8, 8, 8, 0):
        if factor == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(into, into := width * factor, 3, padding=1), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(into, 16 * width), nn.ReLU(), nn.Linear(16 * width, 16 * width), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(16 * width, 10))
    for module in model.modules():
        if scheme == "he" and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


MODELS: dict[str, tuple[Callable[[int], nn.Module], int]] = {  # and how many layers they have
    "vgg": (lambda w: VGG((3, 32, 32), 10, depth=16, width=w, hidden=(8 * w, 8 * w)), 16),
    "vgg without norms": (lambda w: plain_vgg(w, "torch"), 16),
    "vgg without norms, He": (lambda w: plain_vgg(w, "he"), 16),
    "vit": (lambda w: ViT((3, 32, 32), 10, patch=8, width=4 * w, depth=4, heads=w // 4), 1 + 4 * 5 + 1),
    "resnet": (lambda w: ResNet((3, 32, 32), 10, depth=14, width=w), 16),
    "gru": (lambda w: RNN((3, 40), 10, "gru", 4 * w, layers=2, bidirectional=True), 2),
}


def spreads(model: nn.Module, x: Tensor) -> list[float]:
    """Standard deviation of each layer's output, a ViT's norms included, in the order of execution."""
    found: list[float] = []
    kinds = (nn.Conv2d, nn.Linear, nn.LSTM, nn.GRU, PackedConv2d, PackedLinear, PackedGRU)

    def note(_: nn.Module, __: object, y: Any) -> None:
        found.append(float((y[0] if isinstance(y, tuple) else y).std()))

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, kinds)]
    with torch.no_grad():
        model.train()(x)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(
    ("name", "gamma"),
    [("vgg", 1), ("vgg", 2), ("vgg without norms", 2), ("vgg without norms, He", 1), ("vit", 1), ("resnet", 2), ("gru", 1)],
)
def test_activations_have_the_spread_of_a_plain_network_of_the_members_width(name: str, gamma: int) -> None:
    torch.manual_seed(1)
    make, layers = MODELS[name]
    x = torch.randn(8, 3, 40) if name == "gru" else torch.randn(8, 3, 32, 32)
    packed = torch.tensor([spreads(pack(make(32), members=4, alpha=2, gamma=gamma), x) for _ in range(3)])
    plain = torch.tensor([spreads(make(16), x) for _ in range(6)])  # a narrow network's spread varies from draw to draw
    ratio = (packed.log().mean(0) - plain.log().mean(0)).exp()
    assert len(ratio) in (layers, layers - 4, layers + 1) if name in ("vit", "resnet") else len(ratio) == layers
    assert ratio.min() > 1 / 1.5
    assert ratio.max() < 1.5


def test_torchs_own_scheme_stays_within_each_groups_bound() -> None:
    torch.manual_seed(2)
    packed = pack(MLP((30,), 7, hidden=(64, 128, 32)), members=4, alpha=2, gamma=2)
    widths = [30, 16, 32, 16]  # inputs of a group: α · in / (M · γ), the head's α · in / M
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    for layer, width in zip(layers, widths, strict=True):
        assert layer.fan_in(layer.plain(), "weight") == width
        for parameter in layer.parameters():
            groups = parameter.detach().unflatten(0, (4, -1)).flatten(1).abs()
            assert groups.max() <= 1 / math.sqrt(width)
        assert layer.weight.abs().max() > 0.9 / math.sqrt(width)


@pytest.mark.parametrize(
    "scheme",
    [
        lambda w: nn.init.normal_(w, std=0.2),
        nn.init.xavier_uniform_,
        nn.init.kaiming_normal_,
        nn.init.orthogonal_,
        lambda w: nn.init.uniform_(w, -0.01, 0.01),
    ],
)
def test_scale_follows_the_source_layers(scheme: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    sources = [m for m in model if isinstance(m, nn.Linear)]
    for layer in sources:
        scheme(layer.weight)
    packed = pack(model, members=4, alpha=2)
    layers = [m for m in packed.modules() if isinstance(m, PackedLinear)]
    for layer, source in zip(layers, sources, strict=True):
        mine, given = (w.std() * math.sqrt(w.shape[-1]) for w in (layer.weight, source.weight))
        assert mine.item() == pytest.approx(given.item(), rel=0.05)


def test_constants_stay_and_statistics_start_anew() -> None:
    model = ResNet((3, 8, 8), 4, depth=8, width=8)
    nn.init.zeros_(model.layer1[0].bn2.weight)  # type: ignore[index, union-attr, arg-type]
    nn.init.constant_(model.fc.bias, -2.5)
    nn.init.zeros_(model.fc.weight)
    nn.init.normal_(model.bn1.weight)
    model.bn1.running_mean += 3  # type: ignore[operator]
    packed = pack(model, members=2, alpha=2).network
    assert not packed.layer1.get_submodule("0").bn2.weight.any()  # type: ignore[union-attr, operator]
    assert (packed.fc.bias == -2.5).all()  # type: ignore[union-attr]
    assert not packed.fc.weight.any()  # type: ignore[union-attr, operator]
    assert (packed.bn1.weight == 1).all()  # type: ignore[union-attr]
    assert (packed.bn1.running_mean == 0).all()  # type: ignore[union-attr]
    assert int(packed.bn1.num_batches_tracked) == 0  # type: ignore[union-attr, arg-type]


def test_one_output_keeps_random_biases_and_plain_norms_pack() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False, momentum=None), nn.BatchNorm1d(8, eps=0.1), nn.Linear(8, 1)
    )
    packed = pack(model, members=4)
    bias = packed.network.get_submodule("3").bias
    assert len(bias.unique()) == 4  # type: ignore[operator, arg-type]
    assert packed.network.get_submodule("1").momentum is None
    assert packed.network.get_submodule("2").eps == 0.1
    assert not any(
        "running" in name
        for name, _ in pack(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False))).named_buffers()
    )


def test_members_differ_and_a_seed_repeats_them() -> None:
    def draw(seed: int) -> list[Tensor]:
        model = MLP((6,), 3, hidden=(8,))
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.uniform_(parameter)
        torch.manual_seed(seed)
        packed = pack(model)
        return [torch.cat([p.flatten() for p in unpack(packed, m).parameters()]) for m in range(4)]

    one, same, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], other[0])


def test_drawn_is_uniform_within_the_smaller_of_both_bounds() -> None:
    torch.manual_seed(4)
    like = torch.empty(100_000)
    source = torch.tensor([1.0, -1.0, 1.0, 1.0])  # √3 · rms is beyond the largest
    assert drawn(like, source, 0.5).abs().max() == pytest.approx(0.5, rel=1e-3)
    source = torch.tensor([0.0, 0.0, 0.0, 2.0])  # rms 1
    values = drawn(like, source, 2.0)
    assert values.abs().max() == pytest.approx(2 * math.sqrt(3), rel=1e-3)
    assert values.mean().item() == pytest.approx(0, abs=0.03)
    counts = torch.histc(values, 10)
    assert counts.min() > 9_500
    assert counts.max() < 10_500


SCHEMES: dict[str, Callable[[Tensor], Tensor]] = {
    "xavier": nn.init.xavier_normal_,
    "he": nn.init.kaiming_normal_,
    "he, outputs": lambda w: nn.init.kaiming_normal_(w, mode="fan_out"),
    "orthogonal": nn.init.orthogonal_,
    "lecun": lambda w: nn.init.normal_(w, std=w.shape[1] ** -0.5),
}


def test_one_scale_is_told_from_schemes_that_follow_sizes() -> None:
    torch.manual_seed(5)
    shapes = [(192, 64), (64, 64), (256, 64), (64, 256), (256, 256), (10, 64)]
    layers = [nn.Linear(into, out) for out, into in shapes]
    assert fixed_scale(layers) is None  # PyTorch's own
    for scheme in SCHEMES.values():
        for layer in layers:
            scheme(layer.weight)
        assert fixed_scale(layers) is None
        assert fixed_scale(layers[:3]) is None
    for layer in layers:
        nn.init.trunc_normal_(layer.weight, std=0.02, a=-0.04, b=0.04)
    scale = fixed_scale([nn.Conv2d(3, 64, 4), *layers])
    assert scale == pytest.approx(0.02 * 0.88, rel=0.1)
    assert fixed_scale(layers[:1]) is None
    assert fixed_scale([]) is None
