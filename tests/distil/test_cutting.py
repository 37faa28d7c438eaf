"""Students cut from a teacher in depth and resolution are the networks that one would write by hand; fresh weights come from the seed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.data.normalise import Normalise
from quorate.distil.cutting import Cut, cut
from quorate.distil.depths import pattern, spread
from quorate.distil.resolution import _fewer_positions
from quorate.models.cnn1d import CNN1d
from quorate.models.lenet import LeNet
from quorate.models.mlp import MLP
from quorate.models.resnet import ResNet
from quorate.models.rnn import RNN
from quorate.models.vit import ViT
from quorate.models.wide_resnet import WideResNet
from user_architectures import ARCHITECTURES, Encoder, Inverted, Mixer, Tokens, Transformer, stirred


def same(student: nn.Module, by_hand: nn.Module, shape: tuple[int, ...]) -> None:
    """The two give the same for any batch in evaluation mode."""
    for rows in (1, 3):
        x = torch.randn(rows, *shape[1:])
        torch.testing.assert_close(student.eval()(x), by_hand.eval()(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "depth", "kept"),
    [
        (1, 0.5, [0]),
        (2, 0.5, [1]),
        (3, 0.5, [1, 2]),
        (4, 0.5, [1, 3]),
        (5, 0.5, [1, 3, 4]),
        (6, 0.25, [2, 5]),
        (7, 0.01, [6]),
        (4, 1, [0, 1, 2, 3]),
        (9, 1 / 3, [2, 5, 8]),
    ],
)
def test_what_stays_is_spread_evenly_and_ends_the_run(count: int, depth: float, kept: list[int]) -> None:
    assert spread(count, depth) == kept


@pytest.mark.parametrize(
    ("row", "period"),
    [
        ([("a",), ("b",)] * 3, 2),
        ([("a",)] * 4, 1),
        ([("a",), ("b",), ("a",), ("b", "tail")], 2),
        ([("a",), ("b",), ("c",)], 1),
        ([("a",), ("b",), ("a",)], 1),
        ([("a",), ("a",), ("b",)] * 2, 3),
    ],
)
def test_patterns_of_segments(row: list[tuple[str, ...]], period: int) -> None:
    assert pattern(row) == period


def test_half_the_blocks_of_a_residual_network() -> None:
    torch.manual_seed(0)
    model = stirred(ResNet((3, 16, 16), 5, 20, width=4))
    by_hand = copy.deepcopy(model)
    by_hand.layer1 = nn.Sequential(model.layer1[1], model.layer1[2])
    for name in ("layer2", "layer3"):
        stage = getattr(model, name)
        setattr(by_hand, name, nn.Sequential(stage[0], stage[2]))
    same(cut(model, torch.randn(1, 3, 16, 16), Cut(depth=0.5), start="sliced"), by_hand, (1, 3, 16, 16))


def test_a_pre_activation_network_keeps_what_ends_its_stages() -> None:
    torch.manual_seed(0)
    model = stirred(WideResNet((3, 8, 8), 5, depth=28, width=1))
    student = cut(model, torch.randn(1, 3, 8, 8), Cut(depth=0.5), start="sliced")
    names = {name.split(".", 2)[2] for name, _ in student.named_parameters()}
    ends = {name for name, _ in model.named_parameters() if name.rpartition(".")[0] in dict(model.named_children())}
    assert ends <= names  # the stem, the last normalisation and the head
    convolutions = [sum(isinstance(m, nn.Conv2d) for m in net.modules()) for net in (model, student)]
    assert convolutions == [1 + 2 * 12 + 2, 1 + 2 * (2 + 1 + 2 + 1 + 2) + 2]


def test_whole_patterns_of_a_transformer_go() -> None:
    torch.manual_seed(0)
    model = stirred(Transformer())
    by_hand = copy.deepcopy(model)
    by_hand.blocks = nn.Sequential(model.blocks[1], model.blocks[3])
    same(cut(model, torch.randn(1, 20, 6), Cut(depth=0.5), start="sliced"), by_hand, (1, 20, 6))
    vit = stirred(ViT((3, 8, 8), 5, width=16, depth=5, heads=2))
    by_hand = copy.deepcopy(vit)
    by_hand.blocks = nn.Sequential(vit.blocks[2], vit.blocks[4])
    same(cut(vit, torch.randn(1, 3, 8, 8), Cut(depth=0.4), start="sliced"), by_hand, (1, 3, 8, 8))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("directions", [1, 2])
def test_stacked_recurrent_layers_go_from_the_first_on(cell: str, directions: int) -> None:
    torch.manual_seed(0)
    model = stirred(RNN((4, 9), 5, cell, 8, 4, bidirectional=directions == 2, dropout=0.2))
    by_hand = RNN((4, 9), 5, cell, 8, 2, bidirectional=directions == 2, dropout=0.2)
    by_hand.fc.load_state_dict(model.fc.state_dict())
    with torch.no_grad():
        for name, parameter in by_hand.recurrent.named_parameters():
            parameter.copy_(getattr(model.recurrent, name.replace("_l1", "_l2")))  # layers 0 and 2 of 4
    student = cut(model, torch.randn(1, 4, 9), Cut(depth=0.5), start="sliced")
    same(student, by_hand, (1, 4, 9))
    assert [m.dropout for m in student.modules() if isinstance(m, nn.RNNBase)] == [0.2]
    one = cut(model, torch.randn(1, 4, 9), Cut(depth=0.25))
    assert [(m.num_layers, m.dropout) for m in one.modules() if isinstance(m, nn.RNNBase)] == [(1, 0.0)]


def test_layers_of_an_encoder_go() -> None:
    torch.manual_seed(0)
    model = stirred(Encoder())
    by_hand = copy.deepcopy(model)
    by_hand.encoder.layers = nn.ModuleList([model.encoder.layers[1], model.encoder.layers[2]])
    by_hand.encoder.num_layers = 2
    same(cut(model, torch.randn(1, 20, 6), Cut(depth=0.5), start="sliced"), by_hand, (1, 20, 6))


class Pooled(nn.Module):
    """A network behind an average over pixels or steps."""

    def __init__(self, network: nn.Module, divisor: int) -> None:
        super().__init__()
        self.network, self.divisor = network, divisor

    def forward(self, x: Tensor) -> Tensor:
        pool = F.avg_pool2d if x.dim() == 4 else F.avg_pool1d
        return self.network(pool(x, self.divisor))


@pytest.mark.parametrize("divisor", [2, 4])
@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (ResNet((3, 18, 16), 5, 8, width=4), (1, 3, 18, 16)),
        (CNN1d((4, 41), 5, width=(4, 8)), (1, 4, 41)),
        (RNN((4, 20), 5, hidden=6), (1, 4, 20)),
        (Inverted(8), (1, 3, 32, 32)),
    ],
)
def test_a_coarser_student_reads_averages(model: nn.Module, shape: tuple[int, ...], divisor: int) -> None:
    model = stirred(copy.deepcopy(model))
    student = cut(model, torch.randn(shape), Cut(resolution=divisor), start="sliced")
    same(student, Pooled(copy.deepcopy(model), divisor), shape)


def test_the_average_is_taken_behind_the_normalisation_of_raw_inputs() -> None:
    torch.manual_seed(0)
    network = stirred(ResNet((3, 16, 16), 5, 8, width=4))
    normalise = Normalise((100.0, 120.0, 90.0), (50.0, 60.0, 70.0), (3, 16, 16))
    x = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    student = cut(nn.Sequential(normalise, network), x, Cut(resolution=2), start="sliced").eval()
    expected = network.eval()(F.avg_pool2d(normalise(x), 2))
    torch.testing.assert_close(student(x), expected)


def test_channels_on_the_last_axis() -> None:
    model = stirred(Encoder())
    student = cut(model, torch.randn(1, 20, 6), Cut(resolution=4), start="sliced").eval()
    x = torch.randn(3, 20, 6)
    averages = x.reshape(3, 5, 4, 6).mean(2)
    torch.testing.assert_close(student(x), model.eval()(averages), rtol=1e-5, atol=1e-5)


def test_a_linear_layer_behind_a_flatten_is_made_anew() -> None:
    layer = nn.Linear(3 * 4 * 6, 5)
    found = _fewer_positions(layer, (3, 4, 6), (3, 2, 3))
    weight = layer.weight.detach().reshape(5, 3, 4, 6)
    by_hand = torch.zeros(5, 3, 2, 3)
    for o, c, i, j in itertools.product(range(5), range(3), range(2), range(3)):
        by_hand[o, c, i, j] = weight[o, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum()
    torch.testing.assert_close(found.weight.detach().reshape(5, 3, 2, 3), by_hand)
    features = torch.randn(2, 3, 2, 3)  # the same sum for features that are constant in each region
    spread_out = features.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(found(features.flatten(1)), layer(spread_out.flatten(1)))


def test_a_network_with_a_flatten_takes_a_smaller_input() -> None:
    model = LeNet((1, 28, 28), 10)
    student = cut(model, torch.randn(1, 1, 28, 28), Cut(width=0.5, resolution=2))
    assert student(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    linear = next(layer for layer in student.modules() if isinstance(layer, nn.Linear))
    assert linear.in_features < 784 / 4


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("start", ["fresh", "sliced"])
def test_gradients_reach_all_of_a_student_of_a_frozen_teacher(name: str, start: str) -> None:
    kind, shape = ARCHITECTURES[name]
    model, x = kind().requires_grad_(False).eval(), torch.randn(shape)
    before = copy.deepcopy(model.state_dict())
    student = cut(model, x, Cut(width=0.5), seed=3, start=start)  # type: ignore[arg-type]
    assert student.training
    student(torch.randn(6, *shape[1:])).square().sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_fresh_weights_are_the_seed_s_and_disturb_no_generator() -> None:
    model, x = stirred(ResNet((3, 8, 8), 5, 14, width=8)), torch.randn(2, 3, 8, 8)
    generator = torch.get_rng_state()
    one, two, other = (cut(model, x, Cut(width=0.5), seed) for seed in (4, 4, 5))
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    weights = [(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True) if a.dim() > 1]
    assert not any(torch.equal(a, b) for a, b in weights)
    torch.manual_seed(77)
    again = cut(stirred(model, 9), x, Cut(width=0.5), 4)  # whatever the teacher's weights are
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), again.state_dict().values(), strict=True))


def test_how_fresh_weights_are_drawn() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 64, 3, groups=32), nn.ConvTranspose2d(64, 48, 2), nn.Flatten()
    )
    model.append(nn.Linear(48 * 25, 40))
    student = cut(stirred(model), torch.randn(2, 3, 8, 8), Cut(), seed=1)
    layers = [module for module in student.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    wanted = [(2 / (9 * 64)) ** 0.5, (2 * 32 / (9 * 64)) ** 0.5, (2 / (4 * 48)) ** 0.5]
    for layer, std in zip(layers, wanted, strict=True):
        assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.1)
        assert abs(float(layer.weight.detach().mean())) < 0.1 * std
    norm = next(module for module in student.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.equal(norm.weight, torch.ones(64))
    assert torch.equal(norm.running_var, torch.ones(64))
    assert torch.equal(norm.running_mean, torch.zeros(64))
    linear = next(module for module in student.modules() if isinstance(module, nn.Linear))
    assert float(linear.weight.detach().abs().max()) <= 1 / linear.in_features**0.5


def test_bare_parameters_are_drawn_at_their_scale() -> None:
    torch.manual_seed(0)
    model = Transformer(64)
    with torch.no_grad():
        model.positions.mul_(0.02).add_(3.0)
    student = cut(model, torch.randn(1, 20, 6), Cut(), seed=1)
    parameters = {name.split(".", 2)[2]: parameter.detach() for name, parameter in student.named_parameters()}
    assert not torch.equal(parameters["positions"], model.positions)
    assert float(parameters["positions"].mean()) == pytest.approx(3.0, abs=0.005)
    assert float(parameters["positions"].std()) == pytest.approx(0.02, rel=0.1)
    assert torch.equal(parameters["blocks.0.scale"], torch.full((64,), 0.5))  # all alike: no scale to draw at
    assert torch.equal(parameters["blocks.2.norm1.weight"], torch.ones(64))


def test_the_whole_teacher_is_a_student_too() -> None:
    model = stirred(Tokens())
    x = torch.randint(0, 50, (3, 9))
    assert torch.equal(cut(model, x, Cut(), start="sliced").eval()(x), model.eval()(x))


def test_depth_width_and_resolution_together() -> None:
    torch.manual_seed(0)
    model = stirred(ResNet((3, 16, 16), 5, 14, width=8))
    by_hand = ResNet((3, 16, 16), 5, 14, width=4)
    with torch.no_grad():
        for name, tensor in by_hand.state_dict().items():
            tensor.copy_(model.state_dict()[name][tuple(slice(0, size) for size in tensor.shape)])
    by_hand.layer1 = nn.Sequential(by_hand.layer1[1])
    student = cut(model, torch.randn(1, 3, 16, 16), Cut(0.5, 0.5, 2), start="sliced")
    same(student, Pooled(by_hand, 2), (1, 3, 16, 16))


def test_a_cut_is_plain_data() -> None:
    given = Cut(0.5, 0.375, 2)
    assert Cut(**json.loads(json.dumps(dataclasses.asdict(given)))) == given
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.depth = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 0}, r"depth: expected a share in \(0, 1\], got 0"),
        ({"depth": True}, "depth: expected a share"),
        ({"width": 1.01}, "width: expected a share"),
        ({"width": "half"}, "width: expected a share"),
        ({"resolution": 3}, "resolution: expected a divisor of 1, 2 or 4, got 3"),
        ({"resolution": True}, "resolution: expected a divisor"),
        ({"resolution": 2.0}, "resolution: expected a divisor"),
    ],
)
def test_a_cut_checks_its_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cut(**options)  # type: ignore[arg-type]


NOT_CUT = [
    (MLP((3,), 4, hidden=(5, 5)), (2, 3), Cut(depth=0.5), "depth: expected segments that can go at 0.5, got none"),
    (MLP((3,), 4, hidden=()), (2, 3), Cut(width=0.5), "width: expected channels that can go"),
    (MLP((3,), 4), (2, 3), Cut(resolution=2), "no axis of steps or pixels that is known"),
    (Transformer(), (2, 20, 6), Cut(resolution=2), "does not run on the smaller input"),
    (Mixer(), (2, 3, 16, 16), Cut(resolution=4), "does not run on the smaller input"),
    (CNN1d((4, 3), 5, (8,)), (2, 4, 3), Cut(resolution=4), r"reads is smaller \(shape \(4, 3\)\)"),
    (nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Conv1d(8, 2, 1)), (2, 4, 8), Cut(resolution=2), r"become \(2, 4\)"),
    (nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), (2, 3, 8), Cut(resolution=2), "expected a layer with weights, got none"),
]


@pytest.mark.parametrize(("model", "shape", "size", "message"), NOT_CUT)
def test_what_cannot_be_cut_says_why(model: nn.Module, shape: tuple[int, ...], size: Cut, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        cut(model, torch.randn(shape), size)
    assert "\n" not in str(raised.value)


def test_start_and_seed_are_checked() -> None:
    with pytest.raises(ValueError, match='start: expected "fresh" or "sliced"'):
        cut(MLP((3,), 4), torch.randn(2, 3), Cut(), start="warm")  # type: ignore[arg-type]
    for seed in (-1, 1.0, True):
        with pytest.raises(ValueError, match="seed: expected an int of at least 0"):
            cut(MLP((3,), 4), torch.randn(2, 3), Cut(), seed)  # type: ignore[arg-type]
