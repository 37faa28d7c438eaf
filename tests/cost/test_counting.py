"""What `count` attributes, reports, refuses and leaves untouched."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from quorate import cost
from quorate.cost import UnknownOperatorWarning


@torch.library.custom_op("quorate_tests::fused_product", mutates_args=())
def fused_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


class Nested(nn.Module):
    """Counted work at three levels, by modules and by functions, with one module used twice and one never."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.weight = nn.Parameter(torch.ones(5, 4, 1, 1))
        self.twice = nn.Linear(5, 5)
        self.unused = nn.Linear(9, 9)
        self.alias = self.twice
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x):
        x = F.conv2d(self.stem(x), self.weight).mean((2, 3))
        return self.alias(self.twice(x).relu()) @ torch.ones(5, 2) * self.scale


def test_every_operation_belongs_to_the_innermost_module():
    result = cost.count(Nested(), torch.zeros(2, 3, 6, 6))
    layers = {"stem.0": 36 * 4 * 27, "": 36 * 20 + 10, "twice": 50}
    assert result.by_layer == layers
    assert list(result.by_layer) == list(layers)
    assert result.macs == sum(layers.values())
    assert result.parameters == 108 + 8 + 20 + 30 + 90 + 1
    assert result.unknown == {}


def test_hooks_of_the_user_belong_to_their_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].register_forward_pre_hook(lambda _, args: (args[0] @ torch.ones(4, 4),))
    model[0].register_forward_hook(lambda *args: args[2] @ torch.ones(4, 4))
    assert cost.count(model, torch.zeros(2, 4)).by_layer == {"0": 32, "1": 32}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_size_does_not_matter(batch):
    assert cost.macs(Nested(), torch.zeros(batch, 3, 6, 6)) == 36 * 4 * 27 + 36 * 20 + 60


def test_meta_inference_half_and_compiled_count_alike():
    model, x = Nested(), torch.zeros(2, 3, 6, 6)
    expected = cost.count(model, x)
    assert cost.count(copy.deepcopy(model).to("meta"), x.to("meta")) == expected
    with torch.inference_mode():
        assert cost.count(model, torch.zeros(2, 3, 6, 6)) == expected
    with torch.autocast("cpu", torch.bfloat16):
        assert cost.count(model, x) == expected
    assert cost.macs(torch.compile(model, backend="eager"), x) == expected.macs


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_count_alike_everywhere(kind):
    layer, x = kind(5, 4, 2, batch_first=True, bidirectional=True), torch.zeros(2, 3, 5)
    expected = cost.macs(layer, x)
    with torch.inference_mode():
        assert cost.macs(layer, x) == expected
    assert cost.macs(copy.deepcopy(layer).to("meta"), x.to("meta")) == expected


def test_example_forms():
    class Stage(nn.Module):
        def forward(self, x, carry, scale=1.0):
            return x @ carry["nested"]["w"] * scale, {}

    x, carry = torch.zeros(2, 3), {"nested": {"w": torch.zeros(3, 5)}}
    assert cost.macs(Stage(), (x, carry)) == 15
    assert cost.macs(Stage(), {"x": x, "carry": carry, "scale": 2.0}) == 15
    assert cost.macs(nn.Linear(3, 5), x) == 15


class Restless(nn.Module):
    """Changes a buffer in place and another by assignment, and draws numbers, even in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2, 4), persistent=False)

    def forward(self, x):
        self.calls += 1
        self.last = x + torch.rand(x.shape)
        return self.dropout(F.batch_norm(self.frozen(self.norm(x)), self.norm.running_mean, self.norm.running_var, training=True))

    def train(self, mode=True):  # noqa: ARG002
        raise AssertionError("counting must not call train() or eval()")


@pytest.mark.parametrize("fails", [False, True])
def test_leaves_the_model_and_the_generator_as_found(fails):
    model, x, wrong = Restless(), torch.randn(2, 4), torch.randn(2, 5)
    buffers = dict(model.named_buffers())
    values = {name: value.clone() for name, value in buffers.items()}
    random = torch.get_rng_state()
    if fails:
        with pytest.raises(RuntimeError):
            cost.count(model, wrong)
    else:
        cost.count(model, x)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in model.named_buffers():
        assert value is buffers[name]
        assert torch.equal(value, values[name])
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._forward_hooks_always_called for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.is_grad_enabled()


def test_a_module_that_recovers_from_an_error_keeps_the_attribution():
    class Recovers(nn.Module):
        def __init__(self):
            super().__init__()
            self.wrong, self.right = nn.Linear(3, 3), nn.Linear(4, 3)

        def forward(self, x):
            try:
                return self.wrong(x)
            except RuntimeError:
                return self.right(x) @ torch.ones(3, 2)

    assert cost.count(Recovers(), torch.zeros(2, 4)).by_layer == {"right": 12, "": 6}


UNKNOWN = {
    "aten::_cdist_forward": lambda x: torch.cdist(x, x, p=1),
    "aten::_fft_r2c": lambda x: torch.fft.rfft(x),
    "aten::_int_mm": lambda x: torch._int_mm(x.to(torch.int8), torch.ones(32, 8, dtype=torch.int8)),
    "aten::_sparse_addmm": lambda x: torch.sparse.mm(torch.eye(32).to_sparse(), x),
    "aten::addmm (sparse_coo)": lambda x: torch.addmm(x, torch.eye(32).to_sparse(), x),
    "aten::linalg_inv_ex": lambda x: torch.linalg.inv_ex(x + 2 * torch.eye(32)),
    "quorate_tests::fused_product": lambda x: fused_product(x, x),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_operators_are_reported(name):
    def twice(x):
        return UNKNOWN[name](x), UNKNOWN[name](x), F.linear(x, torch.zeros(1, 32))

    x = torch.zeros(32, 32)
    result = cost.count(Call(twice), x)
    assert result.unknown[name] == 2
    assert result.macs == 32
    with pytest.warns(UnknownOperatorWarning, match="lower bound") as caught:
        assert cost.macs(Call(twice), x) == 32
    mine = [w for w in caught if w.category is UnknownOperatorWarning]
    assert len(mine) == 1
    assert f"{name} (2×)" in str(mine[0].message)
    assert mine[0].filename == __file__


def test_a_composite_custom_operator_is_counted_by_its_parts():
    library = torch.library.Library("quorate_tests", "FRAGMENT")
    library.define("composite(Tensor a) -> Tensor")
    library.impl("composite", lambda a: a @ a.mT, "CompositeImplicitAutograd")
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            result = cost.count(Call(torch.ops.quorate_tests.composite), torch.zeros(2, 3, 5))
            assert (result.macs, result.unknown) == (45, {})


def test_higher_order_operators_are_reported():
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x @ x.mT, lambda x: x @ x.mT, (x,))

    assert cost.count(Branch(), torch.zeros(2, 3, 5)).unknown == {"cond": 1}


def test_work_across_the_batch_needs_a_batch_of_one():
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 5))
    with pytest.raises(ValueError, match=r"multiple of the batch of 3, got 20 in 'parametrizations.weight.0'.*batch of 1"):
        cost.count(spectral, torch.zeros(3, 3))
    assert cost.count(spectral, torch.zeros(1, 3)).by_layer == {"parametrizations.weight.0": 20, "": 15}
    assert cost.count(spectral, torch.zeros(2, 3)).by_layer == {"parametrizations.weight.0": 10, "": 15}  # shared by the inputs


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (lambda x: x, torch.zeros(1, 3), "model: expected an nn.Module, got function; wrap"),
        (nn.LazyLinear(3), torch.zeros(1, 3), "model: expected known shapes, got lazy weight, bias; run"),
        (nn.Linear(3, 3), [[1.0]], "example: expected torch inputs, got list; pass a tensor, a tuple"),
        (nn.Linear(3, 3), (1.0, {"a": "b"}), "example: expected at least one tensor, got none; pass"),
        (nn.Linear(3, 3), torch.zeros(()), r"batch of at least 1, got shape \(\); add"),
        (nn.Linear(3, 3), torch.zeros(0, 3), r"batch of at least 1, got shape \(0, 3\); add"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refusals(model, example, message):
    with pytest.raises(ValueError, match=message) as error:
        cost.macs(model, example)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_models_are_refused():
    scripted = nn.Sequential(torch.jit.script(nn.Linear(3, 3)))
    with pytest.raises(ValueError, match="got a scripted one; count the module it was made from"):
        cost.count(scripted, torch.zeros(1, 3))
    assert cost.parameters(scripted) == 12


def test_parameters_count_shared_ones_once_and_no_buffers():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    assert cost.parameters(model) == 12 + 12 + 6
    model[1].weight = model[0].weight
    assert cost.parameters(model) == 12 + 3 + 6
    model[0].weight.requires_grad_(False)
    assert cost.parameters(model) == 12 + 3 + 6
    with pytest.raises(ValueError, match=r"model: expected an nn\.Module, got list; wrap"):
        cost.parameters([torch.zeros(3)])


def test_training_is_three_forward_passes():
    assert cost.training_macs(1_000, 50_000, 250) == 3 * 1_000 * 50_000 * 250
    assert cost.training_macs(7, 0, 3) == 0


@pytest.mark.parametrize(("name", "args"), [("forward_macs", (-1, 1, 1)), ("samples", (1, 2.5, 1)), ("epochs", (1, 1, "9"))])
def test_training_refusals(name, args):
    with pytest.raises(ValueError, match=f"{name}: expected an int of at least 0, got .*; pass a whole number"):
        cost.training_macs(*args)
