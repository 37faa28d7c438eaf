"""`pack` against separate networks of the member's width: values, statistics, gradients, isolation, counts, flags."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.cost import macs
from quorate.data import Normalise
from quorate.models import MLP, LeNet, ResNet, resnet18
from quorate.packed import LayerRow, LooksTrainedWarning, PackedConv2d, PackedEnsemble, PackedLinear, pack, unpack


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("alpha", "gamma", "parameters", "cost"),
    [(2, 1, 11_190_440, 557_197_312), (2, 2, 8_175_784, 480_651_264), (4, 1, 4 * 11_173_962, 4 * 555_422_720)],
)
def test_resnet18_counts(alpha: int, gamma: int, parameters: int, cost: int) -> None:
    with torch.device("meta"):
        single, example = resnet18(classes=10, stem="cifar"), torch.empty(1, 3, 32, 32)
    packed = pack(single, members=4, alpha=alpha, gamma=gamma)
    assert size(packed) == parameters == sum(row.parameters for row in packed.explain())
    assert macs(packed, example) == cost
    assert packed(example).shape == (4, 1, 10)


def members_in_training(width: int) -> tuple[PackedEnsemble, list[nn.Module], Tensor, Tensor]:
    """A packed ResNet-8 of `width`, four separate ones of half the width with the same values, and a batch."""
    torch.manual_seed(0)
    packed = pack(ResNet((3, 8, 8), 5, depth=8, width=width).double(), members=4, alpha=2)
    alone = [ResNet((3, 8, 8), 5, depth=8, width=width // 2).double() for _ in range(4)]
    with torch.no_grad():
        for name, value in packed.network.named_parameters():
            single = [dict(model.named_parameters())[name] for model in alone]
            for one in single:
                one.normal_(0.5 if one.dim() == 1 else 0, 0.3)
            value.copy_(torch.stack(single) if value.dim() == 3 else torch.cat(single))
    return packed, [model.train() for model in alone], torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.arange(6) % 5


def test_packed_equals_separate_networks_in_training_with_statistics_and_gradients() -> None:
    packed, alone, x, y = members_in_training(16)
    for _ in range(2):  # statistics accumulate
        logits = packed(x)
        separate = torch.stack([model(x) for model in alone])
    assert (logits - separate).abs().max() < 1e-12
    torch.stack([F.cross_entropy(row, y) for row in logits]).sum().backward()
    for model in alone:
        F.cross_entropy(model(x), y).backward()
    packed(x)  # statistics once more, as the separate networks
    for name, value in packed.network.named_parameters():
        grads = [dict(model.named_parameters())[name].grad for model in alone]
        joined = torch.stack(grads) if value.dim() == 3 else torch.cat(grads)  # type: ignore[arg-type]
        assert value.grad is not None
        assert (value.grad - joined).norm() < 1e-12 * joined.norm()
    for name, value in packed.network.named_buffers():
        single = [dict(model.named_buffers())[name] for model in alone]
        joined = torch.cat(single) if value.dim() else single[0]
        assert (value - joined).abs().max() < 1e-12
    assert (packed.eval()(x) - torch.stack([model.eval()(x) for model in alone])).abs().max() < 1e-12


def test_derivative_of_one_member_by_another_is_exactly_zero() -> None:
    packed, _, x, _ = members_in_training(8)
    for i in range(4):
        gradients = torch.autograd.grad(packed(x)[i].square().sum(), tuple(packed.parameters()))
        for gradient in gradients:
            rows = gradient.unflatten(0, (4, -1)).flatten(1)
            assert all(bool(rows[j].any()) == (i == j) for j in range(4))


def test_permuting_members_permutes_rows() -> None:
    packed, _, x, _ = members_in_training(8)
    order = [2, 0, 3, 1]
    permuted = copy.deepcopy(packed)
    for tensor in (*permuted.parameters(), *permuted.buffers()):
        if tensor.dim():
            tensor.data = tensor.data.unflatten(0, (4, -1))[order].flatten(0, 1)
    rows, other = packed.eval()(x), permuted.eval()(x)
    torch.testing.assert_close(other, rows[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(other.softmax(-1).mean(0), rows.softmax(-1).mean(0), rtol=0, atol=1e-12)


def test_rows_of_the_batch_are_independent_and_evaluation_is_deterministic() -> None:
    packed, _, x, _ = members_in_training(8)
    packed.eval()
    assert torch.equal(packed(x), packed(x))
    torch.testing.assert_close(packed(x[[4, 1]]), packed(x)[:, [4, 1]], rtol=0, atol=1e-12)
    assert packed(x[:0]).shape == (4, 0, 5)


@pytest.mark.parametrize(("members", "alpha", "gamma"), [(1, 1, 1), (2, 1.5, 1), (3, 3, 2), (4, 2, 2), (5, 1.25, 1)])
@pytest.mark.parametrize(
    "model",
    [MLP((4, 4), 3, hidden=(40, 80, 120), dropout=0.1, norm=True), LeNet((1, 8, 8), 3, (20, 40), (60, 120))],
    ids=["mlp", "lenet"],
)
def test_other_models_and_settings(model: nn.Module, members: int, alpha: float, gamma: int) -> None:
    x = torch.randn(3, 4, 4) if isinstance(model, MLP) else torch.randn(3, 1, 8, 8)
    packed = pack(model.eval(), members, alpha, gamma, example=x)
    assert packed(x).shape == (members, 3, 3)
    for m in range(members):
        torch.testing.assert_close(unpack(packed, m)(x), packed(x)[m])


def test_normalisation_of_the_raw_input_stays_and_follows_the_dtype() -> None:
    x = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    model = nn.Sequential(Normalise((120.0, 110.0, 100.0), (60.0, 50.0, 40.0), (3, 8, 8)), ResNet((3, 8, 8), 5, 8, width=8))
    packed = pack(model, example=x)
    assert isinstance(packed.network.get_submodule("0"), Normalise)
    assert packed(x).dtype == torch.float32
    assert packed.double()(x).dtype == torch.float64
    assert packed.bfloat16()(x).dtype == torch.bfloat16
    assert next(row.name for row in packed.explain()) == "1.conv1"


def test_depthwise_and_grouped_convolutions() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(6, 16, 3, groups=2), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1, groups=4)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3)),
    ).double()
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    packed = pack(model, members=4, alpha=2, gamma=2, example=x)
    assert [row.groups for row in packed.explain()] == [8, 32, 16, 4]
    depthwise = packed.explain()[1]
    assert depthwise.lowered
    assert depthwise.why == "gamma 2 lowered to 1: a depthwise convolution has one channel per group already"
    for m in range(4):
        torch.testing.assert_close(unpack(packed, m)(x), packed(x)[m], rtol=0, atol=1e-12)


def test_explain() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 256, 3), nn.BatchNorm2d(256), nn.Conv2d(256, 256, 1, bias=False), nn.Conv2d(256, 64, 1)),
        *(nn.Conv2d(64, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32), nn.Linear(32, 10)),
    )
    spared = "gamma 2 is for interior layers"
    lowered = "gamma 2 lowered to 1: 128 channels in 8 groups leave 16 each, under 64"
    rows = [replace(row, backend="") for row in pack(model, members=4, alpha=2, gamma=2).explain()]
    assert rows == [
        LayerRow("0", "PackedConv2d", "first", 1, 1, False, spared, 512 * 28),
        LayerRow("1", "PackedBatchNorm2d", "norm", 4, 1, False, "", 1024),
        LayerRow("2", "PackedConv2d", "interior", 8, 2, False, "", 512 * 64),
        LayerRow("3", "PackedConv2d", "interior", 8, 2, False, "", 128 * 65),
        LayerRow("4", "PackedConv2d", "interior", 4, 1, True, lowered, 128 * 33),
        LayerRow("7", "PackedLinear", "interior", 8, 2, False, "", 64 * 17),
        LayerRow("8", "PackedLinear", "last", 4, 1, False, spared, 40 * 17),
    ]


def test_the_model_is_untouched_and_its_flags_are_kept() -> None:
    model = ResNet((3, 8, 8), 5, depth=8, width=8).double()
    model.eval()
    model.layer1.train()
    model.conv1.weight.requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    packed = pack(model, example=torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    modes = {name: m.training for name, m in model.named_modules()}
    assert {name: m.training for name, m in packed.network.named_modules()} == modes
    assert not packed.training
    frozen = [name for name, p in packed.named_parameters() if not p.requires_grad]
    assert frozen == ["network.conv1.weight"]
    assert {p.dtype for p in packed.parameters()} == {torch.float64}
    assert packed.combine == "probs"
    assert repr(packed).startswith("PackedEnsemble(\n  members=4, alpha=2, gamma=1\n")


def test_state_dict_and_deepcopy() -> None:
    packed, _, x, _ = members_in_training(8)
    other = pack(ResNet((3, 8, 8), 5, depth=8, width=8).double(), members=4, alpha=2)
    other.load_state_dict(packed.state_dict())
    expected = packed.eval()(x)
    assert torch.equal(other.eval()(x), expected)
    twin = copy.deepcopy(packed)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        next(twin.parameters()).zero_()
    assert torch.equal(packed(x), expected)
    assert all(type(m).__name__ != "Conv2d" for m in packed.modules())
    assert sum(isinstance(m, PackedConv2d | PackedLinear) for m in packed.modules()) == 10


def test_a_model_that_looks_trained_is_packed_fresh_only_with_a_warning() -> None:
    model = ResNet((3, 8, 8), 5, depth=8, width=8)
    model(torch.randn(2, 3, 8, 8))
    with pytest.warns(LooksTrainedWarning, match='ResNet looks trained .*init="copy"'):
        pack(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pack(model, members=2, alpha=2, init="copy")


MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"members": 3}, r"cannot pack module '1' \(Linear\): out_features: .* got 64; the nearest that do: 63 and 66"),
        ({"alpha": 1.3}, r"cannot pack module '1' \(Linear\): out_features: .* times 13/10 .*: 40 and 80"),
        ({"members": 0}, "members: expected a positive int, got 0"),
        ({"gamma": 0}, "gamma: expected a positive int, got 0"),
        ({"alpha": 0}, "alpha: expected a positive number, got 0"),
        ({"init": "zeros"}, 'init: expected "fresh" or "copy", got \'zeros\''),
        ({"init": "copy"}, 'init: "copy" expects alpha = members = 4 and gamma = 1, .* got alpha 2 and gamma 1'),
        ({"init": "copy", "alpha": 4, "gamma": 2}, "got alpha 4 and gamma 2"),
        ({"example": [1.0]}, "example: expected a batch of raw inputs as a tensor, got list"),
        ({"example": torch.zeros(0, 12)}, "example: expected a batch of raw inputs"),
        ({"example": torch.full((2, 12), torch.nan)}, "example: expected numbers at every step, got NaN at module '1'"),
        ({"model": 3}, "model: expected a plain nn.Module, got int"),
        ({"model": pack(MODEL)}, "model: expected a plain nn.Module, got PackedEnsemble"),
    ],
)
def test_odd_requests(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pack(**{"model": MODEL} | options)
    assert "\n" not in str(caught.value)


def test_gamma_that_does_not_divide_a_linear_is_an_error_and_not_lowered() -> None:
    model = nn.Sequential(nn.Linear(12, 20), nn.Linear(20, 20), nn.Linear(20, 5))
    assert pack(model, members=4, alpha=2, gamma=1)
    with pytest.raises(
        ValueError, match=r"cannot pack module '1' \(Linear\): in_features: .* 12 equal groups, got 20; .*: 18 and 24"
    ):
        pack(model, members=4, alpha=2, gamma=3)


def test_a_norm_that_does_not_divide_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.BatchNorm1d(9), nn.Linear(9, 2))
    with pytest.raises(
        ValueError, match=r"cannot pack module '2' \(BatchNorm1d\): num_features: .* got 9; the nearest that do: 8 and 10"
    ):
        pack(model)


def test_inputs_and_outputs_of_another_shape() -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.stem(x)).view(-1, 5)  # moves pixels into the batch

    with pytest.raises(ValueError, match=r"cannot pack step 'view': expected a shape that leaves the batch in front"):
        pack(Rows(), example=torch.zeros(2, 3, 2, 2))
    with pytest.raises(ValueError, match=r"cannot pack step 'view': expected a shape that leaves the batch in front"):
        pack(Rows())
    packed = pack(nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 5)))
    with pytest.raises(ValueError, match=r"expected the network to give \(4 · B, classes\) for a batch of 2, got \(8, 3, 5\)"):
        packed(torch.zeros(2, 3, 12))
    with pytest.raises(ValueError, match=r"PackedLinear: expected an input .*12.*, got \(2, 13\)"):
        pack(MODEL)(torch.zeros(2, 13))
    for wrong in (torch.zeros(2, 3, 12), torch.zeros(4)):
        with pytest.raises(ValueError, match=r"each: expected an input for each of 4 members \(M, B, …\), got"):
            packed.each(wrong)
