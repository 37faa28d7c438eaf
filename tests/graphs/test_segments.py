"""A chain of segments gives what the model gives, and is cut where it says."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.data.normalise import Normalise
from quorate.graphs.modes import ByMode
from quorate.graphs.segments import Boundary, Chain, chain
from quorate.models.cnn1d import CNN1d
from quorate.models.depthwise import DepthwiseNet
from quorate.models.lenet import LeNet
from quorate.models.mlp import MLP
from quorate.models.resnet import ResNet
from quorate.models.rnn import RNN
from quorate.models.vgg import VGG
from quorate.models.vit import ViT
from quorate.models.wide_resnet import WideResNet
from user_architectures import ARCHITECTURES, Attention, Tokens, stirred

PACKAGE = {
    "mlp": (lambda: MLP((3, 4, 4), 5, hidden=(16, 16, 16), norm=True, dropout=0.1), (2, 3, 4, 4)),
    "lenet": (lambda: LeNet((1, 28, 28), 10), (2, 1, 28, 28)),
    "resnet8": (lambda: ResNet((3, 16, 16), 10, 8, width=8), (2, 3, 16, 16)),
    "resnet18": (lambda: ResNet((3, 32, 32), 10, 18, stem="imagenet", width=4), (2, 3, 32, 32)),
    "resnet50": (lambda: ResNet((3, 16, 16), 10, 50, width=4), (2, 3, 16, 16)),
    "wide": (lambda: WideResNet((3, 16, 16), 10, depth=10, width=1, dropout=0.1), (2, 3, 16, 16)),
    "vgg": (lambda: VGG((3, 32, 32), 10, depth=11, width=4, hidden=(8,), dropout=0.2), (2, 3, 32, 32)),
    "depthwise": (lambda: DepthwiseNet((3, 16, 16), 10, width=0.25), (2, 3, 16, 16)),
    "cnn1d": (lambda: CNN1d((4, 40), 5, width=(8, 16), blocks=2, dropout=0.1), (2, 4, 40)),
    "lstm": (lambda: RNN((4, 20), 5, hidden=8, layers=2, bidirectional=True, dropout=0.1), (2, 4, 20)),
    "gru": (lambda: RNN((4, 20), 5, cell="gru", hidden=8, pool="mean"), (2, 4, 20)),
    "vit": (lambda: ViT((3, 8, 8), 5, width=24, depth=2, heads=2, stochastic_depth=0.2, dropout=0.1), (2, 3, 8, 8)),
}
ALL = {**PACKAGE, **ARCHITECTURES}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    kind, shape = ALL[name]
    return stirred(kind()), torch.randn(shape)


@pytest.mark.parametrize("name", ALL)
def test_the_chain_gives_the_model_s_outputs_bit_for_bit_in_both_modes(name: str) -> None:
    model, x = made(name)
    found = chain(model.eval(), x[:1])
    assert not found.training
    for rows in (1, 2, 5):
        batch = torch.randn(rows, *x.shape[1:])
        assert torch.equal(found(batch), model(batch))
    assert len(found.segments) > 2
    batch = torch.randn(6, *x.shape[1:])
    for module in (model, found):
        torch.manual_seed(3)
        module.train()(batch)
    torch.manual_seed(3)
    expected = model(batch)
    torch.manual_seed(3)
    assert torch.equal(found(batch), expected)
    buffers = {name.split(".", 2)[2]: tensor for name, tensor in found.named_buffers()}
    used = dict(model.named_buffers())
    assert all(torch.equal(used[name], tensor) for name, tensor in buffers.items())


@pytest.mark.parametrize("name", ALL)
def test_boundaries_are_the_tensors_between_the_segments(name: str) -> None:
    model, x = made(name)
    found = chain(model.eval(), x)
    assert found.given.shape == tuple(x.shape[1:])
    for segment, boundary in zip(found.segments, found.boundaries, strict=False):
        x = segment(x)
        assert tuple(x.shape[1:]) == boundary.shape
        assert boundary.axis is not None
        assert 1 <= boundary.axis < x.dim()


def test_where_a_residual_network_is_cut() -> None:
    found = chain(ResNet((3, 16, 16), 10, 8, width=8), torch.randn(2, 3, 16, 16))
    shapes = [(8, 16, 16), (8, 16, 16), (16, 8, 8), (32, 4, 4), (32, 1, 1), (32,)]
    assert found.boundaries == tuple(Boundary(shape, 1) for shape in shapes)
    assert found.given == Boundary((3, 16, 16), 1)
    assert [*dict(found.segments[0].named_parameters())] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert "layer1.0.conv2.weight" in dict(found.segments[1].named_parameters())


def test_what_stands_before_the_first_layer_is_a_segment_of_its_own() -> None:
    model = nn.Sequential(Normalise((100.0,) * 3, (50.0,) * 3, (3, 16, 16)), ResNet((3, 16, 16), 10, 8, width=4)).eval()
    x = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    found = chain(model, x)
    assert torch.equal(found(x), model(x))
    assert torch.equal(found.segments[0](x), (x - 100.0) / 50.0)
    assert found.boundaries[0] == Boundary((3, 16, 16), 1)
    assert not [*found.segments[0].parameters()]


def test_recurrent_layers_are_one_step_and_channels_are_on_the_last_axis() -> None:
    found = chain(RNN((4, 20), 5, hidden=8, pool="mean", layers=2), torch.randn(2, 4, 20))
    assert found.boundaries == (Boundary((20, 4), 2), Boundary((20, 8), 2), Boundary((8,), 1))
    found = chain(Tokens(), torch.randint(0, 50, (2, 9)))
    assert found.boundaries[0] == Boundary((9, 16), 2)


def test_attention_and_mlp_of_a_transformer_are_two_segments() -> None:
    model, x = made("transformer")
    found = chain(model, x)
    kinds = ["attention" if any("attention" in name for name, _ in s.named_modules()) else "mlp" for s in found.segments[2:10]]
    assert kinds == ["attention", "mlp"] * 4
    assert any(name == "norm" for name, _ in found.segments[9].named_modules())  # the last one ends the last block


class Functional(nn.Module):
    """Dropout and attention as functions that ask the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b = nn.Linear(6, 8), Attention(8, 2, fused=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), 0.3, training=self.training)
        x = F.alpha_dropout(x, p=0.25, training=self.training)
        return self.b(self.attention(x).mean(1))


def test_functional_dropout_follows_the_mode() -> None:
    model, x = Functional(), torch.randn(4, 5, 6)
    found = chain(model, x)
    kept = [module for module in found.modules() if isinstance(module, nn.Dropout | nn.AlphaDropout)]
    assert [module.p for module in kept] == [0.3, 0.25]
    assert sum(isinstance(module, ByMode) for module in found.modules()) == 1
    assert "0.1" in repr(next(module for module in found.modules() if isinstance(module, ByMode)))
    for mode in (True, False):
        model.train(mode)
        found.train(mode)
        torch.manual_seed(0)
        expected = model(x)
        torch.manual_seed(0)
        assert torch.equal(found(x), expected)


class Method(nn.Module):
    """A method whose constants go by the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).clamp(-1.0, max=0.5 if self.training else 0.25)


def test_constants_of_methods_follow_the_mode() -> None:
    model, x = Method(), 5 * torch.randn(8, 3)
    found = chain(model, x)
    assert torch.equal(found(x), model(x))
    assert torch.equal(found.eval()(x), model.eval()(x))
    assert not torch.equal(found.train()(x), model(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return x + torch.randn_like(x) if self.training else x


class Fewer(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if self.training else self.a(x) + 1


@pytest.mark.parametrize("kind", [Branching, Fewer])
def test_other_steps_in_training_are_refused(kind: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="same steps in training and in evaluation, but the two part at"):
        chain(kind(), torch.randn(2, 3))


def test_the_model_stays_as_it_is_and_shares_nothing() -> None:
    model, x = made("inverted")
    model.blocks[0].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    found = chain(model, x)
    assert torch.equal(torch.get_rng_state(), generator)
    assert [module.training for module in model.modules()] == modes
    mine = {tensor.data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    assert not mine & {tensor.data_ptr() for tensor in [*found.parameters(), *found.buffers()]}
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


class InPlace(nn.Module):
    """Steps that write into what they are given, at the start of two segments and through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(F.relu(x, inplace=True))
        y = x.max(2, keepdim=True)[0]
        x += 1.0
        flat = x.flatten(1)
        flat.mul_(2.0)
        return self.b(x + y)


def test_writing_steps_leave_what_they_are_given() -> None:
    model, x = InPlace().eval(), torch.randn(2, 3, 6)
    found, kept = chain(model, x), x.clone()
    given, between = found(x), [x]
    assert torch.equal(x, kept)
    copies = [x.clone()]
    for segment in found.segments:
        between.append(segment(between[-1]))
        copies.append(between[-1].clone())
    assert all(torch.equal(one, two) for one, two in zip(between, copies, strict=True))
    assert torch.equal(given, model(x.clone()))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(torch.relu(self.a(x)))))


def test_a_layer_used_twice_stays_one() -> None:
    found = copy.deepcopy(chain(Tied(), torch.randn(2, 4)))
    assert found.segments[0].a is found.segments[1].a
    assert sum(parameter.numel() for parameter in found.parameters()) == 30


def test_state_dicts_go_from_one_chain_to_another() -> None:
    (model, x), (other, _) = made("modern"), made("modern")
    one, two = chain(model.eval(), x), chain(stirred(other, 5).eval(), x)
    assert not torch.equal(one(x), two(x))
    two.load_state_dict(one.state_dict())
    assert torch.equal(one(x), two(x))


class Rowwise(nn.Module):
    """Rows are merged with steps inside, and the number of rows is asked of the input, late."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)).reshape(-1, 5))
        return self.c(y.reshape(x.shape[0], 2, -1).flatten(1))


def test_merged_rows_are_no_cut_and_the_number_of_rows_is_asked_anew() -> None:
    model, x = Rowwise().eval(), torch.randn(3, 2, 4)
    found = chain(model, x)
    assert [boundary.shape for boundary in found.boundaries] == [(2, 5), (2, 6), (12,)]
    for rows in (1, 4):
        batch = torch.randn(rows, 2, 4)
        assert torch.equal(found(batch), model(batch))


class Returning(nn.Module):
    """Gives what `result` makes of the input and a layer's outputs."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.a, self.result = nn.Linear(3, 3), result

    def forward(self, x: Tensor) -> object:
        return self.result(x, self.a(x))


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x, y: (x, y), "expected one tensor of outputs"),
        (lambda _, y: y.shape[0], "expected one tensor of outputs"),
        (lambda x, _: x, "computed from the input, got none"),
        (lambda _, y: y.T, "expected rows first"),
        (lambda _, y: y.sum(), "expected rows first"),
        (lambda _, y: y.reshape(2, 3), "does not run on inputs of shape"),
        (lambda x, y: y if y.sum() > 0 else x, "cannot be traced"),
        (lambda _, y: y @ torch.ones(4, 4), "does not run on the example"),
    ],
)
def test_what_is_no_chain_is_refused(result: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        chain(Returning(result), torch.randn(2, 3))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("example", [(torch.randn(2, 3),), torch.randn(3), torch.randn(0, 3), None])
def test_an_example_is_a_batch(example: object) -> None:
    with pytest.raises(ValueError, match="example: expected a tensor"):
        chain(nn.Linear(3, 3), example)  # type: ignore[arg-type]


def test_a_model_is_a_module() -> None:
    with pytest.raises(ValueError, match=r"expected an nn\.Module"):
        chain(torch.relu, torch.randn(2, 3))  # type: ignore[arg-type]


class InTrainingOnly(Branching):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if not self.training or x.sum() > 0 else x


def test_a_training_forward_that_cannot_be_traced_is_refused() -> None:
    with pytest.raises(ValueError, match="in training mode"):
        chain(InTrainingOnly(), torch.randn(2, 3))


def test_a_chain_has_a_boundary_between_each_two_segments() -> None:
    with pytest.raises(ValueError, match="one between each two of 2 segments, got 0"):
        Chain([nn.Identity(), nn.Identity()], [], Boundary((3,), 1))


def test_one_layer_is_one_segment() -> None:
    model, x = nn.Linear(3, 2), torch.randn(2, 3)
    found = chain(model, x)
    assert len(found.segments) == 1
    assert torch.equal(found(x), model(x))


STEPS = st.sampled_from(["linear", "norm", "relu", "dropout", "residual", "twice"])


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


@settings(deadline=None, max_examples=25)
@given(steps=st.lists(STEPS, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_any_row_of_steps_is_followed(steps: list[str], seed: int) -> None:
    torch.manual_seed(seed)
    shared = nn.Linear(4, 4)
    kinds = {
        "linear": lambda: nn.Linear(4, 4),
        "norm": lambda: nn.BatchNorm1d(4),
        "relu": lambda: nn.ReLU(inplace=True),
        "dropout": lambda: nn.Dropout(0.5),
        "residual": lambda: Residual(nn.Sequential(nn.ReLU(), nn.Linear(4, 4))),
        "twice": lambda: shared,
    }
    model = stirred(nn.Sequential(*(kinds[step]() for step in steps), nn.Linear(4, 2))).eval()
    x = torch.randn(3, 4)
    found = chain(model, x)
    assert torch.equal(found(x.clone()), model(x.clone()))
    begins = sum(step in ("linear", "residual", "twice") for step in steps)
    assert len(found.segments) == 1 + begins + (steps[0] in ("norm", "relu", "dropout"))
