"""Layers of torchvision and timm, by classes of the same names, against their formulas; then packed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed import StochasticDepth, pack, unpack
from quorate.packed.registry import rewritten
from quorate.packed.spelling import REWRITES, SamePadding


def fake(name: str, parent: type[nn.Module] = nn.Module, forward: Callable[..., Tensor] | None = None) -> type[Any]:
    """A class under the full name of another package's."""
    package, _, own = name.rpartition(".")
    return type(own, (parent,), {"__module__": package, "forward": forward or parent.forward})


def values_(module: nn.Module) -> nn.Module:
    """All parameters and statistics other than they start."""
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return module


def respelt(module: nn.Module) -> nn.Module:
    """What packing makes of it, in the same mode."""
    return rewritten(nn.Sequential(module))[0]


def equal(module: nn.Module, x: Tensor) -> nn.Module:
    """The new spelling, after values were compared in both modes, and what became of the parameters' names."""
    new = respelt(module)
    assert type(new) is not type(module)
    assert new.training == module.training
    for training in (True, False):
        assert (new.train(training)(x) - module.train(training)(x)).abs().max() < 1e-12
    assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in module.parameters())
    for tensor, given in zip(new.state_dict().values(), module.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, given)  # statistics went the same way
    return new


def channels_first(kind: type[nn.Module]) -> Callable[..., Tensor]:
    """The forward of a norm of the last dimension for channels at dimension 1."""
    return lambda self, x: kind.forward(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def acted(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """… with drop and act behind."""
    return lambda self, x: self.act(self.drop(forward(self, x)))


def with_act(module: Any) -> Any:
    """With what a norm of timm has behind it."""
    module.drop, module.act = nn.Identity(), nn.LeakyReLU(0.3, inplace=True)
    return module


NORM, ACT = "timm.layers.norm.", "timm.layers.norm_act."
first_layer, first_rms = channels_first(nn.LayerNorm), channels_first(nn.RMSNorm)
NORMS: dict[str, Callable[[], Any]] = {
    "BatchNormAct2d": lambda: with_act(fake(f"{ACT}BatchNormAct2d", nn.BatchNorm2d, acted(nn.BatchNorm2d.forward))(6, 0.1, 0.3)),
    "BatchNormAct2d without statistics": lambda: with_act(
        fake(f"{ACT}BatchNormAct2d", nn.BatchNorm2d, acted(nn.BatchNorm2d.forward))(6, 0.1, None, False, False)
    ),
    "LayerNorm": lambda: fake(f"{NORM}LayerNorm", nn.LayerNorm)(5, 0.1),
    "LayerNorm without bias": lambda: fake(f"{NORM}LayerNorm", nn.LayerNorm)(5, 0.1, bias=False),
    "LayerNorm2d": lambda: fake(f"{NORM}LayerNorm2d", nn.LayerNorm, first_layer)(6, 0.1),
    "torchvision's": lambda: fake("torchvision.models.convnext.LayerNorm2d", nn.LayerNorm, first_layer)(6, 0.1),
    "LayerNormAct2d": lambda: with_act(fake(f"{ACT}LayerNormAct2d", nn.LayerNorm, acted(first_layer))(6, 0.1)),
    "RmsNorm": lambda: fake(f"{NORM}RmsNorm", nn.RMSNorm)(5, 0.1),
    "RmsNorm plain": lambda: fake(f"{NORM}RmsNorm", nn.RMSNorm)(5, 0.1, False),
    "RmsNormAct2d": lambda: with_act(fake(f"{ACT}RmsNormAct2d", nn.RMSNorm, acted(first_rms))(6, 0.1)),
    "GroupNorm1": lambda: fake(f"{NORM}GroupNorm1", nn.GroupNorm)(1, 6, 0.1),
    "GroupNormAct": lambda: with_act(fake(f"{ACT}GroupNormAct", nn.GroupNorm, acted(nn.GroupNorm.forward))(3, 6, 0.1, False)),
    "PReLU": lambda: fake("timm.layers.activations.PReLU", nn.PReLU)(6),
    "Linear": lambda: fake("timm.layers.linear.Linear", nn.Linear)(5, 7, bias=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_hold_what_is_given(name: str) -> None:
    torch.manual_seed(0)
    module = values_(NORMS[name]().double())
    for parameter in list(module.parameters())[:1]:
        parameter.requires_grad_(False)
    new = equal(module, torch.randn(4, 6, 3, 5, dtype=torch.float64))
    assert [p.requires_grad for p in new.parameters()] == [p.requires_grad for p in module.parameters()]
    holding = REWRITES[f"{type(module).__module__}.{type(module).__name__}"](module)
    assert all(a is b for a, b in zip(holding.parameters(), module.parameters(), strict=True))


def test_a_norm_with_nothing_behind_keeps_its_name() -> None:
    norm = fake(f"{ACT}BatchNormAct2d", nn.BatchNorm2d)(6)
    norm.drop = norm.act = nn.Identity()
    assert type(respelt(norm)) is nn.BatchNorm2d


def test_random_depth() -> None:
    ours = fake("torchvision.ops.stochastic_depth.StochasticDepth")()
    ours.p, ours.mode = 0.3, "batch"
    timm = fake("timm.layers.drop.DropPath")()
    timm.drop_prob, timm.scale_by_keep = None, False
    one, two = respelt(ours), respelt(timm)
    assert isinstance(one, StochasticDepth)
    assert isinstance(two, StochasticDepth)
    assert (one.p, one.scale, one.mode) == (0.3, True, "batch")
    assert (two.p, two.scale, two.mode) == (0.0, False, "row")


def sides(size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)) -> list[int]:
    """TensorFlow's "SAME": what is put left, right, above, below."""
    found = []
    for n, k, s, d in reversed(list(zip(size, kernel, stride, dilation, strict=True))):
        total = max((math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n, 0)
        found += [total // 2, total - total // 2]
    return found


def padded(self: Any, x: Tensor) -> Tensor:
    """A convolution or a mean with that padding."""
    if isinstance(self, nn.AvgPool2d):
        return F.avg_pool2d(
            F.pad(x, sides(x.shape[2:], *[(v, v) for v in (self.kernel_size, self.stride)])), self.kernel_size, self.stride
        )
    around = F.pad(x, sides(x.shape[2:], self.kernel_size, self.stride, self.dilation))
    return F.conv2d(around, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


Conv2dSame = fake("timm.layers.conv2d_same.Conv2dSame", nn.Conv2d, padded)
AvgPool2dSame = fake("timm.layers.pool2d_same.AvgPool2dSame", nn.AvgPool2d, padded)
pair = st.tuples(st.integers(1, 5), st.integers(1, 5))


@hypothesis.given(size=st.tuples(st.integers(5, 12), st.integers(5, 12)), kernel=pair, stride=pair, dilation=pair)
@hypothesis.settings(deadline=None, max_examples=40)
def test_same_padding_is_tensorflow_s(
    size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> None:
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    assert torch.equal(SamePadding(kernel, stride, dilation, 7.0)(x), F.pad(x, sides(size, kernel, stride, dilation), value=7.0))
    conv = Conv2dSame(2, 3, kernel, stride, 0, dilation).double()
    new = respelt(conv)
    assert new(x).shape[2:] == tuple(math.ceil(n / s) for n, s in zip(size, stride, strict=True))
    assert (new(x) - conv(x)).abs().max() < 1e-12
    assert new.conv.weight.data_ptr() != conv.weight.data_ptr()  # of a copy of the model


def test_pooling_with_same_padding() -> None:
    x = torch.randn(2, 3, 7, 8, dtype=torch.float64) - 5
    largest = fake("timm.layers.pool2d_same.MaxPool2dSame", nn.MaxPool2d)((3, 2), (2, 2), 0, (1, 1))
    around = F.pad(x, sides((7, 8), (3, 2), (2, 2)), value=-torch.inf)
    assert torch.equal(respelt(largest)(x), F.max_pool2d(around, (3, 2), 2))
    mean = AvgPool2dSame(3, 2)
    assert torch.equal(respelt(mean)(x), mean(x))


@pytest.mark.parametrize("mode", ["reflect", "replicate", "constant", "circular"])
@pytest.mark.parametrize(("taps", "stride"), [(2, 2), (3, 2), (5, 3)])
def test_blur_is_a_binomial_filter(mode: str, taps: int, stride: int) -> None:
    torch.manual_seed(0)
    module = fake("timm.layers.blur_pool.BlurPool2d")()
    module.filt_size, module.stride, module.pad_mode, module.padding = taps, stride, mode, [2, 2, 1, 1]
    x, row = torch.randn(2, 3, 9, 10, dtype=torch.float64), torch.tensor([math.comb(taps - 1, k) for k in range(taps)]).double()
    weight = torch.outer(row, row) / row.sum() ** 2
    expected = F.conv2d(F.pad(x, module.padding, mode=mode), weight.expand(3, 1, -1, -1), stride=stride, groups=3)
    assert (respelt(module)(x) - expected).abs().max() < 1e-12


def test_blur_refuses_another_padding() -> None:
    module = fake("timm.layers.blur_pool.BlurPool2d")()
    module.pad_mode = "odd"
    with pytest.raises(ValueError, match="BlurPool2d: expected pad_mode of reflect, replicate, constant, circular, got 'odd'"):
        respelt(module)


def by_torch(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Attention without projections (B, N, C)."""
    module = nn.MultiheadAttention(q.shape[-1], heads, bias=False, batch_first=True, dtype=q.dtype)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.eye(q.shape[-1]).repeat(3, 1))
        module.out_proj.weight.copy_(torch.eye(q.shape[-1]))
    attended: Tensor = module(q, k, v, need_weights=False)[0]
    return attended


def each_head(norm: nn.Module, x: Tensor, size: int) -> Tensor:
    """A norm of every head, (B, N, heads · size)."""
    return torch.cat([norm(part) for part in x.split(size, -1)], -1)


def attended(self: Any, x: Tensor) -> Tensor:
    """Self-attention without dropout."""
    q, k, v = self.qkv(x).chunk(3, -1)
    q, k = each_head(self.q_norm, q, self.head_dim), each_head(self.k_norm, k, self.head_dim)
    y = self.norm(by_torch(q, k, v, q.shape[-1] // self.head_dim))
    return self.proj(y * self.gate(x).sigmoid() if self.gate else y)  # type: ignore[no-any-return]


def attention(
    width: int = 8, heads: int = 2, fused: bool = True, drop: float = 0.0, norms: bool = False, gated: bool = False
) -> Any:
    """A module with the parts that timm's Attention has."""
    module, size = fake("timm.layers.attention.Attention", forward=attended)(), width // heads
    module.head_dim, module.fused_attn, module.attn_drop = size, fused, nn.Dropout(drop)
    module.qkv, module.proj, module.proj_drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(0)
    module.q_norm, module.k_norm = (nn.LayerNorm(size) if norms else nn.Identity() for _ in range(2))
    module.norm, module.gate = nn.LayerNorm(width) if norms else nn.Identity(), nn.Linear(width, width) if gated else None
    return module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("drop", [0.0, 0.4])
@pytest.mark.parametrize("norms", [True, False])
def test_attention(fused: bool, drop: float, norms: bool) -> None:
    torch.manual_seed(0)
    module = attention(fused=fused, drop=drop, norms=norms, gated=norms).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    expected = module(x)
    new = respelt(module).eval()
    assert (new(x) - expected).abs().max() < 1e-12
    assert set(new.state_dict()) == set(module.state_dict())
    assert (new.train()(x) - expected).abs().max() < 1e-12 or drop
    with pytest.raises(ValueError, match="expected none of attn_mask and is_causal, got one"):
        new(x, is_causal=True)


def gathered(self: Any, x: Tensor) -> Tensor:
    """Attention of latent queries."""
    k, v = self.kv(x if self.pos_embed is None else x + self.pos_embed).chunk(2, -1)
    q = each_head(self.q_norm, self.q(self.latent), self.head_dim).expand(len(x), -1, -1)
    y = self.proj(by_torch(q, k, v, q.shape[-1] // self.head_dim))
    y = y + self.mlp(self.norm(y)) if self.mlp else y
    return {"token": y[:, 0], "avg": y.mean(1), "": y}[self.pool]  # type: ignore[no-any-return]


def latent(width: int = 8, heads: int = 2, queries: int = 3, pool: str = "token") -> Any:
    """A module with the parts that timm's AttentionPoolLatent has."""
    module = fake("timm.layers.attention_pool.AttentionPoolLatent", forward=gathered)()
    module.head_dim, module.pool, module.mlp = width // heads, pool, nn.Linear(width, width) if queries > 1 else None
    module.latent, module.pos_embed = nn.Parameter(torch.randn(1, queries, width)), nn.Parameter(torch.randn(5, width))
    module.q, module.kv, module.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
    module.q_norm, module.k_norm, module.norm = nn.LayerNorm(width // heads), nn.Identity(), nn.LayerNorm(width)
    module.proj_drop = nn.Identity()
    return module


@pytest.mark.parametrize("pool", ["token", "avg", ""])
@pytest.mark.parametrize("queries", [1, 3])
def test_latent_attention(pool: str, queries: int) -> None:
    torch.manual_seed(0)
    module, x = latent(pool=pool, queries=queries).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    new = respelt(module)
    assert (new(x) - module(x)).abs().max() < 1e-12
    assert set(new.state_dict()) == set(module.state_dict())
    with pytest.raises(ValueError, match="expected no attn_mask, got one"):
        new(x, torch.zeros(5, 5))


@pytest.mark.parametrize("size", [3, 6, 9])
def test_vgg_head(size: int) -> None:
    module = fake("timm.models.vgg.ConvMlp")()
    module.input_kernel_size, module.fc1, module.fc2 = 6, nn.Conv2d(2, 3, 6), nn.Conv2d(3, 4, 1)
    module.act1, module.drop, module.act2 = nn.ReLU(), nn.Dropout(0.5), nn.ReLU(True)
    module, x = module.double(), torch.randn(2, 2, size, 8, dtype=torch.float64)
    wide = x if size >= 6 else F.adaptive_avg_pool2d(x, (6, 8))
    assert (respelt(module).eval()(x) - module.fc2(module.fc1(wide).relu()).relu()).abs().max() < 1e-12


class Net(nn.Module):
    """A convolution, such layers as channels first, tokens with attention, a pooled head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv2dSame(3, 16, 3, 2)
        self.norm = NORMS["BatchNormAct2d"]().__class__(16)
        self.norm.drop, self.norm.act = nn.Identity(), nn.SiLU(inplace=True)
        self.deep = Conv2dSame(16, 16, 3, 2, groups=16)
        self.pool = AvgPool2dSame(2, 2)
        self.first = NORMS["LayerNorm2d"]().__class__(16)
        self.attention, self.pooled = attention(16, 4, norms=True, gated=True, drop=0.1), latent(16, 4, 2)
        self.pooled.pos_embed = None
        self.head = fake("timm.layers.linear.Linear", nn.Linear)(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, 5)."""
        x = self.first(self.pool(self.deep(self.norm(self.stem(x)))))
        return self.head(self.pooled(self.attention(x.flatten(2).transpose(1, 2))))


def test_a_network_of_them_packs() -> None:
    torch.manual_seed(0)
    net, x = Net().double(), torch.randn(3, 3, 15, 18, dtype=torch.float64)
    packed = pack(net, members=4, alpha=2, example=x)
    assert packed.program.member is not None
    other = torch.randn(2, 3, 20, 9, dtype=torch.float64)  # padded otherwise
    for y in (x, other):
        logits = packed.eval()(y)
        assert logits.shape == (4, len(y), 5)
        assert all((unpack(packed, m)(y) - logits[m]).abs().max() < 1e-12 for m in range(4))
    copies = pack(net.eval(), members=2, alpha=2, init="copy", example=x)
    assert (copies(x) - net(x)).abs().max() < 1e-12
    gradients = torch.autograd.grad(packed.train()(x)[1].square().sum(), tuple(packed.parameters()))
    for gradient in gradients:
        rows = gradient.unflatten(0, (4, -1)).flatten(1)
        assert all(not rows[m].any() for m in (0, 2, 3))
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)


def test_heads_that_do_not_divide() -> None:
    net = nn.Sequential(nn.Linear(4, 12), attention(12, 3), nn.Flatten(), nn.Linear(24, 2))
    with pytest.raises(ValueError, match="heads that α/M = 1/2 divides, got 3; legal are 2 and 4"):
        pack(net, members=4, alpha=2, example=torch.randn(2, 2, 4))


def test_one_module_under_two_names_is_rewritten_under_both() -> None:
    net = nn.Module()
    net.one = net.two = fake("timm.layers.linear.Linear", nn.Linear)(2, 2)
    new = rewritten(net)
    assert type(new.one) is type(new.two) is nn.Linear
    assert new.one.weight is new.two.weight


def test_the_given_model_stays_as_it_is() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    pack(net, members=2, alpha=1, example=torch.randn(2, 3, 16, 16))
    assert type(net.stem).__name__ == "Conv2dSame"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
