"""Small networks as a user writes them, of kinds that the package has no class for."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, width // 4, 1), nn.Conv2d(width // 4, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))


class InvertedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * inputs
        self.widen, self.norm1 = nn.Conv2d(inputs, hidden, 1, bias=False), nn.BatchNorm2d(hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False)
        self.norm2 = nn.GroupNorm(hidden // 4, hidden)
        self.excite = SqueezeExcite(hidden)
        self.narrow, self.norm3 = nn.Conv2d(hidden, outputs, 1), nn.BatchNorm2d(outputs)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm1(self.widen(x)), inplace=True)
        y = self.norm3(self.narrow(self.excite(F.silu(self.norm2(self.depthwise(y))))))
        return x + y if self.residual else y


class Inverted(nn.Module):
    """(B, 3, 16, 16) → (B, 7)."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        wide = 3 * width // 2
        sizes = [(width, width, 1), (width, width, 1), (width, wide, 2), (wide, wide, 1), (wide, wide, 1)]
        self.blocks = nn.ModuleList(InvertedBlock(*size) for size in sizes)
        self.fc, self.p = nn.Linear(wide, 7), 0.2

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.fc(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), self.p, self.training))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.heads, self.fused = nn.Linear(width, 3 * width), nn.Linear(width, width), heads, fused

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=0.1 if self.training else 0.0)
        else:
            mixed = F.dropout((q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5).softmax(-1), 0.1, training=self.training)
            y = mixed @ v
        return self.out(y.transpose(1, 2).reshape(B, N, C))


class AttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads, fused)
        self.norm2, self.mlp = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)),
        )
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.scale * self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """(B, 20, 6) → (B, 5); pre-normalisation, a class token, positions."""

    def __init__(self, width: int = 32, heads: int = 4, fused: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.positions, self.token = nn.Parameter(torch.randn(1, 20, width)), nn.Parameter(torch.randn(1, 1, width))
        self.blocks = nn.Sequential(*(AttentionBlock(width, heads, fused) for _ in range(4)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.token.expand(x.shape[0], -1, -1)
        x = torch.cat((tokens, self.embed(x) + self.positions), dim=1)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


def unit(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UShaped(nn.Module):
    """(B, 3, 16, 16) → (B, 4); skips from the way down to the way up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a, self.b, self.c = unit(3, width), unit(width, 2 * width, 2), unit(2 * width, 4 * width, 2)
        self.up = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.d, self.e = unit(4 * width, 2 * width), unit(3 * width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        d = self.d(torch.cat([self.up(self.c(b)), b], 1))
        e = self.e(torch.cat([F.interpolate(d, size=a.shape[-2:], mode="nearest"), a], 1))
        return self.head(e.mean((-2, -1)))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.across = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.along = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.along(self.norm2(x))


class Mixer(nn.Module):
    """(B, 3, 16, 16) → (B, 5)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(16, width) for _ in range(4)))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


class TwoBranches(nn.Module):
    """(B, 4, 30) → (B, 3); two kernels side by side, instance and group normalisation."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.short, self.long = nn.Conv1d(4, width, 3, padding=1), nn.Conv1d(4, 2 * width, 5, padding=2)
        self.norm = nn.InstanceNorm1d(2 * width, affine=True, track_running_stats=True)
        self.mixed, self.norm2 = nn.Conv1d(3 * width, 2 * width, 3, padding=1), nn.GroupNorm(1, 2 * width)
        self.head = nn.Linear(2 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([F.relu(self.short(x)), torch.tanh(self.norm(self.long(x)))], 1)
        return self.head(self.norm2(self.mixed(y)).amax(-1))


class ChannelNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width) + 0.5), nn.Parameter(torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt((x - mean).pow(2).mean(1, keepdim=True) + 1e-6)
        return self.weight[:, None, None] * x + self.bias.view(1, -1, 1, 1)


class Modern(nn.Module):
    """(B, 3, 16, 16) → (B, 5); a normalisation written by hand, a depthwise convolution, channels last in the block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 4, 4), ChannelNorm(width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale, self.head = nn.Parameter(0.5 * torch.ones(width)), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y = self.scale * self.down(F.gelu(self.up(self.depthwise(x).permute(0, 2, 3, 1))))
        return self.head((x + y.permute(0, 3, 1, 2)).mean([-2, -1]))


class Shuffled(nn.Module):
    """(B, 3, 8, 8) → (B, 4); grouped convolution and a channel shuffle by sizes that the forward computes."""

    def __init__(self, width: int = 16, groups: int = 4) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 1, groups=groups)
        self.c, self.head, self.groups = nn.Conv2d(width, width, 3, padding=1), nn.Linear(width, 4), groups

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        B, C, H, W = x.size()
        x = x.view(B, self.groups, C // self.groups, H, W).transpose(1, 2).contiguous().view(B, C, H, W)
        return self.head(self.c(x).mean((2, 3)))


class Tokens(nn.Module):
    """(B, 9) indices → (B, 3): an embedding, stacked recurrent layers in both directions."""

    def __init__(self, width: int = 16, cell: type[nn.RNNBase] = nn.LSTM) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, width)
        self.recurrent = cell(width, 2 * width, 3, batch_first=True, bidirectional=True, dropout=0.1)
        self.head = nn.Linear(4 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embed(x))[0][:, -1])


class Encoder(nn.Module):
    """(B, 20, 6) → (B, 5): PyTorch's own encoder, then its attention."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(width), enable_nested_tensor=False)
        self.attention, self.head = nn.MultiheadAttention(width, heads, batch_first=True), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.embed(x))
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head((x + y)[:, 0])


IMAGE, SMALL, STEPS, SERIES = (2, 3, 16, 16), (2, 3, 8, 8), (2, 20, 6), (2, 4, 30)
ARCHITECTURES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "inverted": (Inverted, IMAGE),
    "transformer": (Transformer, STEPS),
    "u-shaped": (UShaped, IMAGE),
    "mixer": (Mixer, IMAGE),
    "two branches": (TwoBranches, SERIES),
    "modern": (Modern, IMAGE),
    "shuffled": (Shuffled, SMALL),
    "encoder": (Encoder, STEPS),
}


def stirred(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with parameters and statistics that differ from where they start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.add_(0.2 * noise if "var" in name else 0.2 * (noise - 0.5))
    return model
