"""MACs by parameter: closed forms of the layers, shared and computed weights, copies, and the forward fractions of sparse networks."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from quorate import cost, models
from quorate.cost.owners import Owners
from quorate.tickets.density import erk


class Call(nn.Module):
    """A function of parameters `a` (3, 3) and `b` (3, 3) and of x, as a module."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3))
        self.function = function

    def forward(self, *args):
        return self.function(self, *args)


def by_parameter(model, *args):
    result = cost.count(model, args)
    assert result.unknown == {}
    return result.by_parameter


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 2),
    st.sampled_from([nn.Conv2d, nn.ConvTranspose2d]), st.booleans(),
)  # fmt: skip
def test_convolutions(groups, inputs, outputs, kernel, stride, padding, kind, bias):
    padding = min(padding, kernel - 1)
    layer = kind(groups * inputs, groups * outputs, kernel, stride, padding, groups=groups, bias=bias)
    x = torch.zeros(2, groups * inputs, 5, 7)
    positions = x[0, 0] if kind is nn.ConvTranspose2d else layer(x)[0, 0]
    expected = {"weight": positions.numel() * groups * inputs * outputs * kernel**2}
    assert by_parameter(layer, x) == expected
    assert by_parameter(layer.to("meta"), x.to("meta")) == expected


@pytest.mark.parametrize("bias", [True, False])
def test_linear_on_sequences(bias):
    assert by_parameter(nn.Linear(5, 4, bias=bias), torch.zeros(2, 3, 5)) == {"weight": 3 * 20}


@pytest.mark.parametrize("kdim", [None, 5])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_projections(kdim, device):
    layer = nn.MultiheadAttention(8, 2, kdim=kdim, vdim=kdim, batch_first=True).to(device)
    q, k = torch.zeros(2, 3, 8, device=device), torch.zeros(2, 4, kdim or 8, device=device)
    found = by_parameter(layer, q, k, k)
    if kdim is None:
        assert found == {"in_proj_weight": 64 * (3 + 4 + 4), "out_proj.weight": 64 * 3}
    else:
        expected = {"q_proj_weight": 64 * 3, "k_proj_weight": 40 * 4, "v_proj_weight": 40 * 4, "out_proj.weight": 64 * 3}
        assert found == expected
    own = 2 * 3 * 4 * (4 + 4)  # heads · L_query · L_key · (E + V)
    assert cost.macs(layer, (q, k, k)) == sum(found.values()) + own


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers(kind, gates, device):
    layer, x = kind(5, 4, 2, batch_first=True, bidirectional=True).to(device), torch.zeros(2, 3, 5, device=device)
    found = by_parameter(layer, x)
    assert found == {name: 3 * p.numel() for name, p in layer.named_parameters() if name.startswith("weight")}
    assert found["weight_ih_l1_reverse"] == 3 * gates * 4 * 8
    with torch.inference_mode():
        assert by_parameter(layer, x) == found


def test_operators_with_several_weights():
    owners = Owners(layer := nn.LSTM(5, 4))
    weights = [p.detach() for p in layer.parameters()]
    total = 6 * (80 + 64)
    for name, args in (("_cudnn_rnn", (None, weights, 4)), ("mkldnn_rnn_layer", (None, *weights))):
        assert owners.shares(f"aten::{name}", args, total) == {"weight_ih_l0": 480, "weight_hh_l0": 384}


def test_bilinear():
    assert by_parameter(nn.Bilinear(2, 3, 5), torch.zeros(4, 2), torch.zeros(4, 3)) == {"weight": 5 * (2 + 1) * 3}


def test_a_shared_weight_goes_by_its_first_name_over_all_its_uses():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    model[1].weight = model[2].weight = model[0].weight
    assert by_parameter(model, torch.zeros(2, 4, 3)) == {"0.weight": 3 * 4 * 9}
    twice = nn.Sequential(layer := nn.Conv2d(1, 1, 3, padding=1), layer)
    assert by_parameter(twice, torch.zeros(1, 1, 5, 5)) == {"0.weight": 2 * 25 * 9}


X = torch.zeros(2, 3)
FUNCTIONS = {
    "itself": (lambda m, x: x @ m.a, {"a": 9}),
    "transposed": (lambda m, x: x @ m.a.T, {"a": 9}),
    "a view of two rows": (lambda m, x: F.linear(x, m.a[1:]), {"a": 6}),
    "a strided view": (lambda m, x: x @ m.a[:, ::2], {"a": 6}),
    "expanded": (lambda m, x: x[:, None] @ m.a.expand(2, 3, 3), {"a": 9}),
    "detached": (lambda m, x: x @ m.a.detach(), {"a": 9}),
    "in another dtype": (lambda m, x: x.double() @ m.a.double(), {"a": 9}),
    "contiguous": (lambda m, x: x @ m.a.T.contiguous().view(3, 3), {"a": 9}),
    "a copy of a copy": (lambda m, x: x.half() @ m.a.clone().half(), {"a": 9}),
    "computed": (lambda m, x: x @ (m.a - m.a.mean()), {}),
    "computed, then cast": (lambda m, x: x.double() @ (m.a * 2).double(), {}),
    "written over": (lambda m, x: x @ torch.zeros(3, 3).copy_(m.a), {}),
    "on the left": (lambda m, x: (m.a @ x.T).T, {"a": 9}),
    "in einsum": (lambda m, x: torch.einsum("bi,ij->bj", x, m.a), {"a": 9}),
    "added up only": (lambda m, x: torch.addmm(m.a[0], x, m.b), {"b": 9}),
    "added up in a batch": (lambda m, x: torch.baddbmm(m.a[:1], x[:, None], m.b.expand(2, 3, 3)), {"b": 9}),
    "two of them": (lambda m, x: x @ m.b + x @ m.a, {"b": 9, "a": 9}),
    "not in a product": (lambda m, x: x * m.a[0] + m.b[0], {}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_a_parameter(name, device):
    function, expected = FUNCTIONS[name]
    model = Call(function).to(device)
    x = X.to(device)
    if name == "written over" and device == "meta":
        model.function = lambda m, x: x @ torch.zeros(3, 3, device="meta").copy_(m.a)
    assert by_parameter(model, x) == expected
    with torch.inference_mode():
        assert by_parameter(model, x) == expected


def test_a_product_of_two_parameters_is_the_first_ones():
    assert by_parameter(Call(lambda m, x: x @ (m.b @ m.a)), X[:1]) == {"b": 27}


def test_parameters_in_one_storage_are_told_apart():
    flat = torch.randn(18)
    model = Call(lambda m, x: x @ m.a + F.linear(x, m.b[2:]).sum())
    model.a, model.b = nn.Parameter(flat[:9].view(3, 3)), nn.Parameter(flat[9:].view(3, 3))
    assert model.a.untyped_storage().data_ptr() == model.b.untyped_storage().data_ptr()
    assert by_parameter(model, X) == {"a": 9, "b": 3}


def test_a_storage_that_is_gone_belongs_to_nobody():
    def many(m, x):
        for _ in range(50):  # storages are freed and made anew all along
            x = x.double() @ m.a.double() + x.double() @ torch.randn(3, 3, dtype=torch.float64)
        return x

    assert by_parameter(Call(many), X) == {"a": 50 * 9}


def test_parametrised_weights():
    model = parametrizations.weight_norm(nn.Linear(3, 5))
    assert by_parameter(model, X) == {}
    masked = nn.Linear(3, 5)
    parametrize.register_parametrization(masked, "weight", nn.Identity())
    assert by_parameter(masked, X) == {"parametrizations.weight.original": 15}
    spectral = parametrizations.spectral_norm(nn.Linear(3, 5))
    assert by_parameter(spectral, X[:1]) == {"parametrizations.weight.original": 15}  # W v, of which σ is made
    assert by_parameter(spectral, X) == {"parametrizations.weight.original": 7}  # rounded down: 15 for two inputs


def test_autocast_with_and_without_its_cache():
    model, x = nn.Sequential(nn.Linear(3, 5), nn.Conv1d(1, 2, 1)), torch.zeros(2, 1, 3)
    expected = by_parameter(model, x)
    assert expected == {"0.weight": 15, "1.weight": 10}
    with torch.autocast("cpu", torch.bfloat16):
        assert by_parameter(model, x) == expected
        model(x)
        assert by_parameter(model, x) == expected
        assert torch.is_autocast_cache_enabled()


def test_tensors_without_a_storage_are_nobodys():
    model = Call(lambda m, x: torch.sparse.mm(m.s, x.T).T)
    model.s = nn.Parameter(torch.eye(3).to_sparse())
    result = cost.count(model, X)
    assert result.by_parameter == {}
    assert result.unknown == {"aten::_sparse_addmm": 1}


def test_a_cost_warns_of_what_it_lacks():
    known = cost.count(nn.Linear(3, 3), X)
    known.warn_if_incomplete()
    lacking = cost.Cost(1, 1, {"": 1}, {"aten::fft": 2}, {})
    with pytest.warns(cost.UnknownOperatorWarning, match=r"got aten::fft \(2×\); the count is a lower bound") as caught:
        lacking.warn_if_incomplete(stacklevel=1)
    assert caught[0].filename == __file__


NETWORKS = {
    "resnet20": (lambda: models.resnet20(), (3, 32, 32)),
    "resnet50": (lambda: models.resnet50(stem="imagenet"), (3, 64, 64)),
    "WRN-10-2": (lambda: models.WideResNet(depth=10, width=2), (3, 32, 32)),
    "MLP": (lambda: models.MLP((3, 4, 4), 5, (7, 9)), (3, 4, 4)),
    "VGG": (lambda: models.VGG(), (3, 32, 32)),
    "RNN": (lambda: models.RNN((6, 20), 5), (6, 20)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_mac_of_a_network_without_attention_is_a_weights(name):
    make, shape = NETWORKS[name]
    with torch.device("meta"):
        model, x = make(), torch.zeros(2, *shape)
    result = cost.count(model, x)
    assert sum(result.by_parameter.values()) == result.macs
    weights = {name: p.numel() for name, p in model.named_parameters() if p.dim() > 1}
    assert result.by_parameter.keys() == weights.keys()
    assert all(result.by_parameter[name] % size == 0 for name, size in weights.items())  # each meets whole positions


def test_vision_transformer():
    with torch.device("meta"):
        model = models.ViT((3, 16, 16), 10, patch=4, width=24, depth=2, heads=3)
    result = cost.count(model, torch.zeros(2, 3, 16, 16, device="meta"))
    tokens = 16 + 1
    assert result.macs - sum(result.by_parameter.values()) == 2 * 3 * tokens**2 * (8 + 8)  # depth · heads · L² · (E + V)
    assert result.by_parameter == {
        name: p.numel() * (1 if "head" in name else 16 if "patch" in name or p.dim() == 4 else tokens)
        for name, p in model.named_parameters()
        if name in result.by_parameter
    }


def fraction(model, shape, density):
    """f_S / f_D of one forward pass where all convolutions and linear layers have ERK densities."""
    names = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    densities = erk({name: tuple(model.get_parameter(name).shape) for name in names}, density)
    result = cost.count(model, torch.zeros(1, *shape, device="meta"))
    assert set(result.by_parameter) == set(names)
    return sum(densities[name] * macs for name, macs in result.by_parameter.items()) / result.macs


@pytest.mark.parametrize(
    ("make", "shape", "density", "expected"),
    [
        (lambda: models.WideResNet(depth=28, width=10), (3, 32, 32), 0.2, 0.3396),
        (lambda: models.WideResNet(depth=28, width=10), (3, 32, 32), 0.1, 0.1686),
        (lambda: models.resnet50(1000, stem="imagenet"), (3, 224, 224), 0.2, 0.4138),
        (lambda: models.resnet50(1000, stem="imagenet"), (3, 224, 224), 0.1, 0.2418),
        (lambda: models.resnet18(10, stem="cifar"), (3, 32, 32), 0.2, 0.508),
    ],
)
def test_forward_fractions_of_sparse_networks(make, shape, density, expected):
    with torch.device("meta"):
        model = make()
    assert fraction(model, shape, density) == pytest.approx(expected, abs=6e-4 if expected == 0.508 else 6e-5)


def test_looking_up_leaves_no_trace():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    before = copy.deepcopy(model.state_dict())
    cost.count(model.train(), torch.randn(4, 3))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
