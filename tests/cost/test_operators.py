"""MACs of every layer kind against closed forms, sums of ones, and PyTorch's own flop counter (2 flops = 1 MAC)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from quorate import cost
from quorate.cost.operators import FORMULAS, FREE

ATEN = torch.ops.aten


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def counted(function, *args):
    """MACs of a batch of one worth of function(*args), all operators known."""
    result = cost.count(Call(function), tuple(a.unsqueeze(0) for a in args))
    assert result.unknown == {}
    return result.macs


def meta(*shape, dtype=None):
    return torch.empty(shape, device="meta", dtype=dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (5,), (5, 2)])
def test_linear(lead, bias):
    assert cost.macs(nn.Linear(7, 11, bias=bias), torch.zeros(3, *lead, 7)) == math.prod(lead) * 7 * 11


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    cin=st.integers(1, 2),
    cout=st.integers(1, 2),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    size=st.integers(5, 7),
)
def test_convolution_is_the_sum_of_a_convolution_of_ones(dims, groups, cin, cout, kernel, stride, padding, dilation, size):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](
        groups * cin, groups * cout, kernel, stride, padding, dilation, groups, bias=False
    )
    x = torch.ones(2, groups * cin, *[size + i for i in range(dims)])
    padded = F.pad(x[:1], [padding] * 2 * dims, value=1.0)
    ones = (F.conv1d, F.conv2d, F.conv3d)[dims - 1](padded, torch.ones_like(conv.weight), None, stride, 0, dilation, groups)
    assert cost.macs(conv, x) == ones.sum().item()


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.integers(1, 3),
    cin=st.integers(1, 2),
    cout=st.integers(1, 2),
    kernel=st.integers(2, 3),
    stride=st.integers(2, 3),
    dilation=st.integers(1, 2),
    padding=st.integers(0, 1),
)
def test_transposed_convolution_is_the_sum_of_one_of_ones(dims, groups, cin, cout, kernel, stride, dilation, padding):
    names = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
    conv = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1](
        groups * cin, groups * cout, kernel, stride, padding, output_padding=1, groups=groups, dilation=dilation
    )
    x = torch.ones(2, groups * cin, *[4 + i for i in range(dims)])
    ones = names[dims - 1](x[:1], torch.ones_like(conv.weight), None, stride, 0, 0, groups, dilation)  # nothing cropped
    assert cost.macs(conv, x) == ones.sum().item()


def test_convolution_written_out():
    assert cost.macs(nn.Conv2d(6, 6, 3, padding=1, groups=6), torch.zeros(2, 6, 5, 7)) == 6 * 35 * 9  # depthwise
    assert cost.macs(nn.Conv2d(4, 6, (3, 1), 2, groups=2), torch.zeros(2, 4, 9, 7)) == 6 * (4 * 4) * 2 * 3
    assert cost.macs(nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"), torch.zeros(1, 4, 5, 5)) == 6 * 25 * 36
    assert cost.macs(nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), torch.zeros(2, 4, 5, 5)) == 4 * 25 * 3 * 9


@pytest.mark.parametrize("bias_kv", [False, True])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attention(masked, need_weights, bias_kv):
    embed, heads, queries, keys = 12, 3, 5, 7
    mha = nn.MultiheadAttention(embed, heads, kdim=10, vdim=8, batch_first=True, add_bias_kv=bias_kv, add_zero_attn=bias_kv)
    example = {"query": torch.zeros(2, queries, embed), "key": torch.zeros(2, keys, 10), "value": torch.zeros(2, keys, 8)}
    example["need_weights"] = need_weights
    if masked:
        example["attn_mask"] = torch.ones(queries, keys, dtype=torch.bool).tril(2)
        example["key_padding_mask"] = torch.arange(keys).expand(2, keys) > 4
    projections = queries * embed * embed * 2 + keys * (10 + 8) * embed
    assert cost.macs(mha, example) == projections + queries * (keys + 2 * bias_kv) * 2 * embed


@pytest.mark.parametrize("norm_first", [False, True])
def test_transformer_layers(norm_first):
    length, memory, embed, wide = 6, 4, 8, 20
    x, mask = torch.zeros(3, length, embed), torch.arange(length).expand(3, length) > 3
    own = 4 * length * embed**2 + 2 * length**2 * embed
    cross = 2 * length * embed**2 + 2 * memory * embed**2 + 2 * length * memory * embed
    feed = 2 * length * embed * wide
    encoder = nn.TransformerEncoderLayer(embed, 2, wide, batch_first=True, norm_first=norm_first)
    assert cost.macs(encoder, x) == own + feed
    stack = nn.TransformerEncoder(encoder, 3, enable_nested_tensor=False)
    assert cost.macs(stack, {"src": x, "src_key_padding_mask": mask}) == 3 * (own + feed)  # padded positions count
    decoder = nn.TransformerDecoderLayer(embed, 2, wide, batch_first=True, norm_first=norm_first)
    assert cost.macs(decoder, (x, torch.zeros(3, memory, embed))) == own + cross + feed


def test_the_fast_path_of_encoders_is_off_only_while_counting():
    stack = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 20, batch_first=True), 2)
    result = cost.count(stack, torch.zeros(2, 6, 8))
    assert list(result.by_layer) == [f"layers.{i}.{name}" for i in (0, 1) for name in ("self_attn", "linear1", "linear2")]
    assert torch.backends.mha.get_fastpath_enabled()


class Recurrent(nn.Module):
    """A recurrent layer fed batch first whatever its own order; with lengths, a packed sequence."""

    def __init__(self, layer, lengths=None):
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, x):
        if self.lengths is not None:
            x = nn.utils.rnn.pack_padded_sequence(x, self.lengths, batch_first=True)
        elif not self.layer.batch_first:
            x = x.transpose(0, 1)
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("lengths", [None, torch.tensor([5, 3])])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    ("kind", "gates", "options"),
    [
        (nn.LSTM, 4, {}),
        (nn.LSTM, 4, {"proj_size": 3}),
        (nn.LSTM, 4, {"bias": False, "bidirectional": True}),
        (nn.LSTM, 4, {"proj_size": 3, "num_layers": 2, "bidirectional": True}),
        (nn.GRU, 3, {"num_layers": 3}),
        (nn.GRU, 3, {"num_layers": 2, "bidirectional": True}),
        (nn.RNN, 1, {"num_layers": 2, "nonlinearity": "relu"}),
        (nn.RNN, 1, {"bidirectional": True, "bias": False}),
    ],
)
def test_recurrent(kind, gates, options, batch_first, lengths):
    tokens = 5 if lengths is None else 4  # per input: 5 steps, or the mean of the lengths
    layers, ways, projection = options.get("num_layers", 1), 1 + options.get("bidirectional", False), options.get("proj_size", 0)
    state = projection or 6
    inputs = [7] + [ways * state] * (layers - 1)
    per_token = sum(ways * (gates * 6 * (size + state) + 6 * projection) for size in inputs)
    layer = kind(7, 6, batch_first=batch_first or lengths is not None, **options)
    result = cost.count(Recurrent(layer, lengths), torch.zeros(2, 5, 7))
    assert (result.macs, result.unknown) == (tokens * per_token, {})
    assert list(result.by_layer) == ["layer"]


def test_recurrent_cells():
    assert cost.macs(nn.LSTMCell(7, 6), torch.zeros(2, 7)) == 4 * 6 * 13
    assert cost.macs(nn.GRUCell(7, 6), torch.zeros(2, 7)) == 3 * 6 * 13


def test_bilinear_contracts_the_first_factor_then_the_second():
    assert cost.macs(nn.Bilinear(5, 7, 3), (torch.zeros(4, 5), torch.zeros(4, 7))) == 3 * 5 * 7 + 3 * 7
    assert cost.macs(nn.Bilinear(5, 7, 3), (torch.zeros(2, 6, 5), torch.zeros(2, 6, 7))) == 6 * (3 * 5 * 7 + 3 * 7)


def test_products_in_plain_functions():
    x, y, z, v = torch.zeros(3, 5), torch.zeros(5, 7), torch.zeros(4, 3, 5), torch.zeros(5)
    assert counted(lambda a, b: a @ b, x, y) == 3 * 5 * 7
    assert counted(lambda a, b: a[0] @ b[0], x, y) == 3 * 5 * 7
    assert counted(lambda a, b: torch.einsum("bhik,bkj->bhij", a, b), z, y) == 4 * 3 * 5 * 7
    assert counted(lambda a: torch.einsum("bhik,bhjk->bhij", a, a), z) == 4 * 3 * 3 * 5
    assert counted(lambda a: torch.bmm(a[0], a[0].mT), z) == 4 * 3 * 3 * 5
    assert counted(lambda a, b: torch.tensordot(a, b, dims=([2], [1])), x, y) == 3 * 5 * 7
    assert counted(lambda a, b: a[0] @ b[0], x, v) == 3 * 5
    assert counted(lambda a: torch.dot(a[0], a[0]), v) == 5
    assert counted(lambda a: torch.vdot(a[0], a[0]), v) == 5
    assert counted(lambda a, b: torch.addmv(a[0, :, 0], a[0], b[0]), x, v) == 3 * 5
    assert counted(lambda a, b: torch.addr(torch.zeros(3, 5), a[0, :, 0], b[0]), x, v) == 3 * 5
    assert counted(lambda a: torch.baddbmm(torch.zeros(4, 3, 3), a[0], a[0].mT), z) == 4 * 3 * 3 * 5
    assert counted(lambda a: torch.addbmm(torch.zeros(3, 3), a[0], a[0].mT), z) == 4 * 3 * 3 * 5
    assert counted(lambda a: torch.zeros(3, 3).addmm_(a[0], a[0].mT), x) == 3 * 3 * 5
    assert counted(lambda a: F.conv_tbc(a[0], torch.zeros(2, 5, 7), torch.zeros(7)), z) == (4 - 1) * 3 * 7 * 2 * 5


def test_vmap_counts_every_slice():
    weights = torch.zeros(6, 4, 5)
    assert counted(lambda x: torch.func.vmap(lambda w: F.linear(x[0], w))(weights), torch.zeros(3, 5)) == 6 * 3 * 4 * 5


SDPA = [
    (ATEN._scaled_dot_product_flash_attention, ()),
    (ATEN._scaled_dot_product_efficient_attention, (None, False)),
    (ATEN._scaled_dot_product_cudnn_attention, (None, False)),
]


@pytest.mark.parametrize(("operator", "rest"), SDPA)
def test_fused_attention(operator, rest):
    q, k = meta(2, 4, 6, 8, dtype=torch.half), meta(2, 4, 10, 8, dtype=torch.half)
    assert cost.macs(Call(lambda *a: operator(*a, *rest)), (q, k, k)) == 4 * 6 * 10 * 16


def test_attention_kernel_chosen_inside():
    def chosen(q, k, v):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return F.scaled_dot_product_attention(q, k, v)

    q, k = torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 10, 8)
    names = [chosen, F.scaled_dot_product_attention, lambda *a: ATEN._scaled_dot_product_attention_math(*a)]
    assert [cost.macs(Call(f), (q, k, k)) for f in names] == [4 * 6 * 10 * 16] * 3
    assert cost.macs(Call(F.scaled_dot_product_attention), (q, k, k[..., :3])) == 4 * 6 * 10 * (8 + 3)
    grouped = Call(lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True))
    assert cost.macs(grouped, (q, k[:, :2])) == 4 * 6 * 10 * 16


def test_operators_of_other_devices():
    x, w, out = meta(2, 6, 9, 9), meta(8, 3, 3, 3), meta(2, 8, 4, 4)
    for name in ("cudnn_convolution", "miopen_convolution", "mkldnn_convolution", "_conv_depthwise2d", "_slow_conv2d_forward"):
        assert FORMULAS[f"aten::{name}"]((x, w), out) == 2 * 8 * 16 * 3 * 9
    for name in ("cudnn_convolution_transpose", "slow_conv_transpose2d"):
        assert FORMULAS[f"aten::{name}"]((out, meta(8, 2, 3, 3)), x) == 2 * 8 * 16 * 2 * 9
    weights = [meta(24, 7), meta(24, 3), meta(24), meta(24), meta(3, 6)]
    for name in ("_cudnn_rnn", "miopen_rnn"):
        assert FORMULAS[f"aten::{name}"]((meta(5, 2, 7), weights, 5), None) == 10 * (24 * 10 + 18)
    assert FORMULAS["aten::_cudnn_rnn"]((meta(8, 7), weights, 5), None) == 8 * (24 * 10 + 18)  # packed
    assert FORMULAS["aten::_lstm_mps"]((meta(5, 2, 7), [meta(1, 2, 6)], weights), None) == 10 * (24 * 10 + 18)
    assert FORMULAS["aten::mkldnn_linear"]((meta(5, 2, 7), meta(3, 7)), None) == 10 * 21


def test_sampling_grid_is_a_product_and_its_use_is_free():
    def transform(theta):
        return F.grid_sample(torch.zeros(2, 1, 5, 4), F.affine_grid(theta, [2, 1, 5, 4], align_corners=True), align_corners=True)

    assert cost.macs(Call(transform), torch.zeros(2, 2, 3)) == 20 * 2 * 3


FREE_LAYERS = [
    *(nn.BatchNorm1d(4), nn.LayerNorm(6), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True), nn.RMSNorm(6)),
    *(nn.ReLU(True), nn.ELU(), nn.GELU(), nn.SiLU(), nn.Mish(), nn.Softplus(), nn.Hardswish(True), nn.PReLU(), nn.GLU()),
    *(nn.Softmax(1), nn.LogSoftmax(1), nn.LogSigmoid(), nn.RReLU(), nn.Tanhshrink(), nn.Softsign(), nn.Dropout()),
    *(nn.MaxPool1d(2), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(2), nn.AdaptiveMaxPool1d(2), nn.LPPool1d(2, 2)),
    *(nn.ZeroPad1d(1), nn.ReflectionPad1d(1), nn.ReplicationPad1d(1), nn.CircularPad1d(1), nn.Upsample(scale_factor=2)),
    *(nn.Flatten(), nn.Identity(), nn.LocalResponseNorm(2), nn.Upsample(scale_factor=2, mode="linear"), nn.ChannelShuffle(2)),
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", FREE_LAYERS, ids=lambda layer: type(layer).__name__)
def test_free_layers(layer, mode):
    with mode():
        result = cost.count(layer, torch.ones(2, 4, 6))
    assert (result.macs, result.by_layer, result.unknown) == (0, {}, {})


def test_free_functions():
    def mixed(x):
        x = torch.cat([x, x.flip(1), x.roll(1, 1)], 1).sort(1).values.topk(3, 1).values
        x = F.interpolate(x.reshape(2, 1, 3, 4), scale_factor=2, mode="bicubic")[:, 0] + torch.rand(()) + x.var(1).sum()
        index = torch.arange(3).expand(2, 3)
        x = x.gather(1, index.unsqueeze(-1).expand(2, 3, 8)).clamp(0, 1).masked_fill(torch.eye(3, 8) > 0, 0.0)
        x = x.index_add(1, index[0], x).cumsum(1).tril().repeat(1, 2, 1).std(1)
        return F.embedding(x.argmax(1), torch.zeros(8, 5)).add_(1).mul_(2).logsumexp(1) * F.one_hot(index[:, 0], 4).sum()

    result = cost.count(Call(mixed), torch.rand(2, 4, 4))
    assert (result.macs, result.unknown) == (0, {})


def test_tables_name_real_operators_once():
    assert not FREE & set(FORMULAS)
    elsewhere = {"aten::miopen_convolution_relu", "aten::miopen_convolution_add_relu"}
    for name in (FREE | set(FORMULAS)) - elsewhere:
        assert hasattr(ATEN, name.removeprefix("aten::")), name


def test_agrees_with_the_flop_counter():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 4, 4, groups=1)
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
            self.up = nn.ConvTranspose1d(8, 4, 3, 2, 1, 1, groups=2)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.stem(x).flatten(2).mT
            return self.head(self.up((x + self.attend(x, x, x)[0]).mT).mT)

    model, x = Mixed(), torch.zeros(3, 3, 16, 16)
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        model.train()(x)
    assert 2 * 3 * cost.macs(model, x) == flops.get_total_flops()
