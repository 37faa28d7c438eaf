"""Random architectures: the proof passes, members are isolated exactly, and each is what unpacking gives, for shared and own inputs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from packed_members import assert_alone, assert_isolated, drawn
from quorate.packed import pack

PIXELS = 9
IMAGE_STEPS = (
    "conv",
    "depthwise",
    "residual",
    "cat",
    "excite",
    "pool",
    "scale",
    "swap",
    "split",
    "group norm",
    "mean",
    "shuffle",
)
TOKEN_STEPS = (
    "linear",
    "mlp",
    "attention",
    "module attention",
    "norm",
    "scale",
    "chunk",
    "mix",
    "recurrent",
    "positions",
    "tokens",
)


def act(kind: int) -> nn.Module:
    return (nn.ReLU(), nn.GELU(), nn.Tanh(), nn.Identity())[kind]


class OnImages(nn.Module):
    """One step (B, w, 3, 3) → (B, w, 3, 3)."""

    def __init__(self, step: str, w: int, choice: int) -> None:
        super().__init__()
        self.step, self.w, self.act = step, w, act(choice)
        groups = {"depthwise": w, "conv": (1, 2, 1, 2)[choice]}.get(step, 1)
        wide = {"cat": 2 * w, "split": 2 * w}.get(step, w)
        self.conv = nn.Conv2d(
            wide if step == "cat" else w, w if step == "cat" else wide, 3, padding=1, groups=groups, bias=choice < 2
        )
        self.norm = nn.GroupNorm(2, w) if step == "group norm" else nn.BatchNorm2d(w) if choice % 2 else nn.Identity()
        if step == "excite":
            self.squeeze, self.excite = nn.Conv2d(w, w // 2, 1), nn.Conv2d(w // 2, w, 1)
        if step == "scale":
            self.scale = nn.Parameter(torch.ones(w, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        step = self.step
        if step == "cat":
            y = self.conv(torch.cat([h, h.abs()], 1))
        elif step == "split":
            parts = self.conv(h.to(self.conv.weight.dtype)).split([self.w, self.w], 1)
            y = parts[0] * parts[1].sigmoid()
        else:
            y = self.conv(h)
        y = self.act(self.norm(y))
        if step in ("residual", "scale"):
            y = h + (y * self.scale if step == "scale" else y)
        elif step == "excite":
            y = y * self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))).sigmoid()
        elif step == "pool":
            y = F.max_pool2d(y, 3, 1, 1)
        elif step == "swap":
            y = torch.cat(y.chunk(2, 1)[::-1], 1)
        elif step == "mean":
            y = y - y.mean(1, keepdim=True) * y.amax((2, 3), keepdim=True)
        elif step == "shuffle":
            y = y.view(y.shape[0], 2, self.w // 2, 3, 3).transpose(1, 2).flatten(1, 2)
        return y


class OnTokens(nn.Module):
    """One step (B, N, w) → (B, N′, w)."""

    def __init__(self, step: str, w: int, choice: int, tokens: int) -> None:
        super().__init__()
        self.step, self.w, self.heads, self.act = step, w, w // 2, act(choice)
        if step in ("linear", "mlp", "chunk"):
            self.inner = nn.Linear(w, w if step == "linear" else 2 * w, bias=choice > 0)
            self.outer = nn.Linear(2 * w, w) if step == "mlp" else nn.Identity()
        elif step == "attention":
            self.inner, self.outer = nn.Linear(w, 3 * w), nn.Linear(w, w)
        elif step == "module attention":
            self.inner = nn.MultiheadAttention(w, self.heads, batch_first=True, bias=choice > 0)
        elif step == "norm":
            self.inner = nn.LayerNorm(w, elementwise_affine=choice > 0) if choice < 3 else nn.RMSNorm(w)
        elif step == "scale":
            self.scale = nn.Parameter(torch.ones(w))
        elif step == "mix":
            self.inner = nn.Linear(tokens, tokens)
        elif step == "recurrent":
            self.inner = (nn.GRU, nn.LSTM, nn.RNN, nn.GRU)[choice](w, w, batch_first=True)
        elif step == "positions":
            self.positions = nn.Parameter(torch.randn(1, tokens, w))
        elif step == "tokens":
            self.token = nn.Parameter(torch.randn(1, 1, w))

    def forward(self, t: Tensor) -> Tensor:
        step = self.step
        if step in ("linear", "mlp"):
            return t + self.outer(self.act(self.inner(t)))
        if step == "chunk":
            parts = self.inner(t).chunk(2, -1)
            return parts[0] * self.act(parts[1])
        if step == "attention":
            b, n, _ = t.shape
            parts = self.inner(t).reshape(b, n, 3, self.heads, 2).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
            return t + self.outer(y.transpose(1, 2).reshape(b, n, self.w))
        if step == "module attention":
            return t + self.inner(t, t, t, need_weights=False)[0]
        if step == "mix":
            return self.inner(t.transpose(1, 2)).transpose(1, 2)
        if step == "recurrent":
            return self.inner(t)[0]
        if step == "tokens":
            return torch.cat([self.token.expand(t.shape[0], -1, -1), t[:, 1:]], 1)
        y: Tensor = self.inner(t) if step == "norm" else t * self.scale if step == "scale" else t + self.positions
        return y


class Network(nn.Module):
    def __init__(self, images: list[tuple[str, int]], tokens: list[tuple[str, int]], unit: int, first: int, pool: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, unit, 3, padding=1, bias=first == 0)
        self.images = nn.Sequential(*(OnImages(step, unit, choice) for step, choice in images))
        self.tokens = nn.Sequential(*(OnTokens(step, unit, choice, PIXELS) for step, choice in tokens))
        self.pool = pool
        self.head = nn.Linear(unit, 3)

    def forward(self, x: Tensor) -> Tensor:
        t = self.tokens(self.images(self.stem(x)).flatten(2).transpose(1, 2))
        y: Tensor = self.head(t.mean(1) if self.pool else t[:, 0])
        return y


@st.composite
def networks(draw: Any) -> tuple[tuple[Any, ...], int, int]:
    """(arguments of Network beside its width, members, M / α)."""
    images = draw(st.lists(st.tuples(st.sampled_from(IMAGE_STEPS), st.integers(0, 3)), max_size=3))
    tokens = draw(st.lists(st.tuples(st.sampled_from(TOKEN_STEPS), st.integers(0, 3)), max_size=3))
    return (images, tokens, draw(st.integers(0, 1)), draw(st.booleans())), draw(st.integers(1, 3)), draw(st.integers(1, 2))


@settings(max_examples=40, deadline=None)
@given(networks(), st.integers(0, 99))
def test_members_are_isolated_and_are_narrow_networks(made: tuple[tuple[Any, ...], int, int], seed: int) -> None:
    (images, tokens, first, pool), members, ratio = made
    torch.manual_seed(seed)

    def make(unit: int) -> nn.Module:
        return Network(images, tokens, unit, first, pool).double()

    x = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    packed = drawn(pack(make(8), members, members if ratio == 1 else members / 2, example=x), seed)
    assert_alone(packed, x, lambda: make(8 // ratio))
    assert_isolated(packed, x)


@settings(max_examples=15, deadline=None)
@given(networks(), st.integers(1, 2))
def test_without_an_example_it_is_the_same_or_an_error(made: tuple[tuple[Any, ...], int, int], gamma: int) -> None:
    (images, tokens, first, pool), members, ratio = made
    alpha = members if ratio == 1 else members / 2
    model = Network(images, tokens, 16, first, pool).double()
    x = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    proved = drawn(pack(model, members, alpha, gamma, example=x))
    try:
        blind = pack(model, members, alpha, gamma)
    except ValueError as error:
        text = str(error)
        assert "\n" not in text
        return
    blind.load_state_dict(proved.state_dict())
    assert torch.equal(blind.eval()(x), proved.eval()(x))
