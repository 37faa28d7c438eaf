"""Layers of torchvision and timm, spelt in those that packing knows.

Neither package is imported: layers are known by the full names of their classes. Each becomes an equivalent one of `torch.nn`
and traceable steps that holds the given parameters and statistics themselves: no value is lost, and what is frozen stays frozen.

    norms           to BatchNorm2d, LayerNorm, RMSNorm, GroupNorm; with timm's drop and act behind; of channels at dimension 1
    random depth    StochasticDepth, DropPath to this package's StochasticDepth
    "same" padding  padding that goes by the size of the input (TensorFlow's), then a plain convolution or pooling
    blur            a binomial filter of n taps is n − 1 means of two neighbours (Zhang, ICML 2019, arXiv:1904.11486, §3.2)
    attention       timm's, fused or not, with its heads counted by what they are given; latent queries
    VGG's head      timm's, which widens small images to the kernel

Window attention of torchvision (Swin, MaxViT) is kept whole and made anew at a member's width: `windows.py`.

Shapes: of each layer as in its own package, (B, C, H, W) or (B, N, C).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed.layers.depth import StochasticDepth, settings_of
from quorate.packed.registry import Rewrite, register_packing

META = torch.device("meta")
PADS: dict[str, Callable[..., nn.Module]] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "constant": nn.ZeroPad2d,
    "circular": nn.CircularPad2d,
}


def holding(new: nn.Module, module: nn.Module) -> nn.Module:
    """`new` with the parameters and buffers of `module` themselves in place of its own."""
    for name, parameter in module._parameters.items():
        new.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        new.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    return new


def in_turn(**parts: nn.Module) -> nn.Module:
    """Modules one after the other, without those that do nothing; one alone as it is."""
    real = OrderedDict((name, part) for name, part in parts.items() if type(part) is not nn.Identity)
    return next(iter(real.values())) if len(real) == 1 else nn.Sequential(real)


# — norms and linear layers —


def batch_norm(module: Any) -> nn.Module:
    """nn.BatchNorm2d."""
    settings = (module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
    return holding(nn.BatchNorm2d(*settings, device=META), module)


def layer_norm(module: Any) -> nn.Module:
    """nn.LayerNorm over the last dimensions."""
    return holding(nn.LayerNorm(module.normalized_shape, module.eps, module.elementwise_affine, device=META), module)


def rms_norm(module: Any) -> nn.Module:
    """nn.RMSNorm over the last dimensions."""
    return holding(nn.RMSNorm(module.normalized_shape, module.eps, module.elementwise_affine, device=META), module)


def group_norm(module: Any) -> nn.Module:
    """nn.GroupNorm."""
    return holding(nn.GroupNorm(module.num_groups, module.num_channels, module.eps, module.affine, device=META), module)


class ChannelsFirst(nn.Module):
    """A norm of the last dimension, for channels at dimension 1: (B, C, …) → (B, C, …)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, …) → (B, C, …)."""
        normed: Tensor = self.norm(x.movedim(1, -1))
        return normed.movedim(-1, 1)


def spelt(norm: Rewrite, first: bool = False, act: bool = False) -> Rewrite:
    """The rewrite of a norm. first: of channels at dimension 1. act: with the module's drop and act behind."""

    def rewrite(module: Any) -> nn.Module:
        new = ChannelsFirst(norm(module)) if first else norm(module)
        return in_turn(norm=new, drop=module.drop, act=module.act) if act else new

    return rewrite


def linear(module: Any) -> nn.Module:
    """nn.Linear."""
    return holding(nn.Linear(module.in_features, module.out_features, module.bias is not None, device=META), module)


def prelu(module: Any) -> nn.Module:
    """nn.PReLU."""
    return holding(nn.PReLU(module.num_parameters, device=META), module)


# — padding, blur, random depth —


class SamePadding(nn.Module):
    """Pads images so that a window at `stride` gives ⌈size / stride⌉ values, the odd one behind: (B, C, H, W) → (B, C, H', W').

    Args:
        kernel, stride, dilation: of the window, (vertical, horizontal).
        value: what is put around.
    """

    def __init__(
        self, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1), value: float = 0.0
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation, self.value = kernel, stride, dilation, value

    def short(self, size: int, axis: int) -> int:
        """How much a side of this size lacks."""
        stride = self.stride[axis]
        reach = (size + stride - 1) // stride * stride - stride + (self.kernel[axis] - 1) * self.dilation[axis] + 1
        return torch.sym_max(reach - size, 0)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H', W')."""
        high, wide = self.short(x.shape[-2], 0), self.short(x.shape[-1], 1)
        return F.pad(x, (wide // 2, wide - wide // 2, high // 2, high - high // 2), value=self.value)

    def extra_repr(self) -> str:
        return f"kernel={self.kernel}, stride={self.stride}, dilation={self.dilation}, value={self.value}"


def both(value: int | tuple[int, ...]) -> tuple[int, int]:
    """(vertical, horizontal)."""
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def convolution_same(module: Any) -> nn.Module:
    """Padding and nn.Conv2d."""
    plain = nn.Conv2d(
        module.in_channels, module.out_channels, module.kernel_size, module.stride, 0, module.dilation, module.groups,
        module.bias is not None, device=META,
    )  # fmt: skip
    return in_turn(pad=SamePadding(module.kernel_size, module.stride, module.dilation), conv=holding(plain, module))


def average_same(module: Any) -> nn.Module:
    """Padding and nn.AvgPool2d."""
    kernel, stride = both(module.kernel_size), both(module.stride)
    pool = nn.AvgPool2d(kernel, stride, 0, module.ceil_mode, module.count_include_pad)
    return in_turn(pad=SamePadding(kernel, stride), pool=pool)


def maximum_same(module: Any) -> nn.Module:
    """Padding and nn.MaxPool2d."""
    kernel, stride, dilation = both(module.kernel_size), both(module.stride), both(module.dilation)
    pool = nn.MaxPool2d(kernel, stride, 0, dilation, ceil_mode=module.ceil_mode)
    return in_turn(pad=SamePadding(kernel, stride, dilation, -torch.inf), pool=pool)


def blur(module: Any) -> nn.Module:
    """Padding and means of 2 × 2 neighbours."""
    if module.pad_mode not in PADS:
        raise ValueError(f"BlurPool2d: expected pad_mode of {', '.join(PADS)}, got {module.pad_mode!r}; choose one of these")
    means = [nn.AvgPool2d(2, 1) for _ in range(module.filt_size - 2)]
    return nn.Sequential(PADS[module.pad_mode](tuple(module.padding)), *means, nn.AvgPool2d(2, module.stride))


def depth(module: Any) -> nn.Module:
    """This package's StochasticDepth."""
    return StochasticDepth(*settings_of(module))


# — attention —


def heads(x: Tensor, size: int) -> Tensor:
    """(B, N, heads · size) → (B, heads, N, size)."""
    apart: Tensor = x.unflatten(-1, (-1, size)).transpose(1, 2)
    return apart


class Attention(nn.Module):
    """timm's self-attention with its own modules (Vaswani et al. 2017, arXiv:1706.03762, §3.2): (B, N, C) → (B, N, C').

    Args:
        module: timm's. Its attention dropout is a module here, so that both modes take the same steps.
    """

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.size, self.fused = int(module.head_dim), bool(module.fused_attn) and not module.attn_drop.p
        self.qkv, self.q_norm, self.k_norm = module.qkv, module.q_norm, module.k_norm
        self.attn_drop, self.norm = module.attn_drop, module.norm
        self.gate: nn.Module | None = module.gate
        self.proj, self.proj_drop = module.proj, module.proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(B, N, C) → (B, N, C'). Raises ValueError for a mask."""
        if attn_mask is not None or is_causal:
            raise ValueError("attention: expected none of attn_mask and is_causal, got one; leave them out, or skip the module")
        qkv = self.qkv(x).chunk(3, -1)
        q, k, v = (heads(qkv[i], self.size) for i in range(3))
        q, k = self.q_norm(q), self.k_norm(k)
        if self.fused:
            x_new = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
            x_new = self.attn_drop(weights) @ v
        x_new = self.norm(x_new.transpose(1, 2).flatten(2))
        if self.gate is not None:
            x_new = x_new * self.gate(x).sigmoid()
        out: Tensor = self.proj_drop(self.proj(x_new))
        return out


class LatentAttention(nn.Module):
    """timm's attention pooling by latent queries (Lee et al., ICML 2019, arXiv:1810.00825, eq. 11): (B, N, C) → (B, C), or (B, L, C)."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.size, self.pool = int(module.head_dim), module.pool
        self.latent = module.latent
        self.pos_embed: nn.Parameter | None = module.pos_embed
        self.q, self.kv, self.q_norm, self.k_norm = module.q, module.kv, module.q_norm, module.k_norm
        self.proj, self.proj_drop, self.norm = module.proj, module.proj_drop, module.norm
        self.mlp: nn.Module | None = module.mlp

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """(B, N, C) → (B, C), or (B, L, C) where there is no pooling. Raises ValueError for a mask."""
        if attn_mask is not None:
            raise ValueError("attention: expected no attn_mask, got one; leave it out, or skip the module")
        if self.pos_embed is not None:
            x = x + self.pos_embed
        kv = self.kv(x).chunk(2, -1)
        k, v = (heads(kv[i], self.size) for i in range(2))
        q = heads(self.q(self.latent.expand(x.shape[0], -1, -1)), self.size)
        x = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).flatten(2)
        x = self.proj_drop(self.proj(x))
        if self.mlp is not None:
            x = x + self.mlp(self.norm(x))
        return x[:, 0] if self.pool == "token" else x.mean(1) if self.pool == "avg" else x


class AtLeast(nn.Module):
    """Averages images to at least `size` × `size`; larger ones stay: (B, C, H, W) → (B, C, max(H, size), max(W, size))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H', W')."""
        return F.adaptive_avg_pool2d(x, (torch.sym_max(x.shape[-2], self.size), torch.sym_max(x.shape[-1], self.size)))

    def extra_repr(self) -> str:
        return f"size={self.size}"


def vgg_head(module: Any) -> nn.Module:
    """timm's ConvMlp of VGG."""
    size = AtLeast(int(module.input_kernel_size))
    return in_turn(pool=size, fc1=module.fc1, act1=module.act1, drop=module.drop, fc2=module.fc2, act2=module.act2)


# — the names —

NORM, ACT = "timm.layers.norm.", "timm.layers.norm_act."
REWRITES: dict[str, Rewrite] = {
    f"{ACT}BatchNormAct2d": spelt(batch_norm, act=True),
    **dict.fromkeys((f"{NORM}LayerNorm", f"{NORM}LayerNormFp32"), layer_norm),
    **dict.fromkeys((f"{NORM}LayerNorm2d", f"{NORM}LayerNorm2dFp32", f"{NORM}LayerNormExp2d"), spelt(layer_norm, first=True)),
    **dict.fromkeys((f"{ACT}LayerNormAct", f"{ACT}LayerNormActFp32"), spelt(layer_norm, act=True)),
    **dict.fromkeys((f"{ACT}LayerNormAct2d", f"{ACT}LayerNormAct2dFp32"), spelt(layer_norm, first=True, act=True)),
    **dict.fromkeys((f"{NORM}RmsNorm", f"{NORM}RmsNormFp32"), rms_norm),
    **dict.fromkeys((f"{NORM}RmsNorm2d", f"{NORM}RmsNorm2dFp32"), spelt(rms_norm, first=True)),
    **dict.fromkeys((f"{ACT}RmsNormAct", f"{ACT}RmsNormActFp32"), spelt(rms_norm, act=True)),
    **dict.fromkeys((f"{ACT}RmsNormAct2d", f"{ACT}RmsNormAct2dFp32"), spelt(rms_norm, first=True, act=True)),
    **dict.fromkeys((f"{NORM}GroupNorm", f"{NORM}GroupNorm1"), group_norm),
    **dict.fromkeys((f"{ACT}GroupNormAct", f"{ACT}GroupNorm1Act"), spelt(group_norm, act=True)),
    "torchvision.models.convnext.LayerNorm2d": spelt(layer_norm, first=True),
    "timm.layers.activations.PReLU": prelu,
    "timm.layers.linear.Linear": linear,
    **dict.fromkeys(("torchvision.ops.stochastic_depth.StochasticDepth", "timm.layers.drop.DropPath"), depth),
    "timm.layers.conv2d_same.Conv2dSame": convolution_same,
    "timm.layers.pool2d_same.AvgPool2dSame": average_same,
    "timm.layers.pool2d_same.MaxPool2dSame": maximum_same,
    "timm.layers.blur_pool.BlurPool2d": blur,
    "timm.layers.attention.Attention": Attention,
    "timm.layers.attention_pool.AttentionPoolLatent": LatentAttention,
    "timm.models.vgg.ConvMlp": vgg_head,
}

for _name, _rewrite in REWRITES.items():
    register_packing(_name, rewrite=_rewrite)
