# ruff: noqa: ARG005
"""Steps on tokens, attention, recurrence, products, and bare parameters: the same as in hand-written narrow models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from packed_members import Between, Parts, Step, assert_isolated, check_step, drawn, images
from quorate.packed import pack

Widths = Callable[[int], int] | None
HEAD = 2  # features of a head, of which a narrower member has fewer


def tokens(h: Tensor) -> Tensor:
    """(B, C, 4, 4) → (B, 16, C)."""
    return h.flatten(2).transpose(1, 2)


def attended(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """(B, heads, N, d) each → (B, N, C)."""
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2).flatten(2)


def by_reshape(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    t = tokens(h)
    b, n, c = t.shape
    parts = s.qkv(t).reshape(b, n, 3, s.w // HEAD, HEAD).permute(2, 0, 3, 1, 4)
    q, k, v = parts[0], parts[1], parts[2]
    weights = (q @ k.transpose(-2, -1) * HEAD**-0.5).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(b, n, c)


def by_chunk(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    t = tokens(h)
    chunks = s.qkv(t).chunk(3, -1)
    q, k, v = (chunks[i].unflatten(-1, (s.w // HEAD, HEAD)).transpose(1, 2) for i in range(3))
    return attended(q, k, v)


def by_literals(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    parts = s.qkv(tokens(h)).view(-1, 16, 3, s.w // HEAD, HEAD).permute(2, 0, 3, 1, 4).unbind(0)
    return attended(parts[0], parts[1], parts[2], is_causal=True)


def by_one_head(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    parts = s.qkv(tokens(h)).chunk(3, -1)
    return F.scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=s.mask, scale=0.3)


def by_einsum(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    parts = s.qkv(tokens(h)).chunk(3, -1)
    weights = torch.einsum("bnc,bmc->bnm", parts[0], parts[1]).softmax(-1)
    return torch.einsum("bnm,bmc->bnc", weights, parts[2])


def over_channels(s: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    parts = s.qkv(tokens(h)).chunk(3, -1)
    return parts[2] * (parts[0] * parts[1]).sum(1, keepdim=True).softmax(-1)


def qkv(w: int) -> dict[str, nn.Module | Tensor]:
    return {"qkv": nn.Linear(w, 3 * w)}


def class_token(s: Any, h: Tensor, x: Tensor) -> Tensor:
    t = torch.cat([s.token.expand(x.shape[0], -1, -1), tokens(h)], 1) + s.positions
    return s.norm(t)[:, 0]


TOKENS: dict[str, tuple[Step, Parts | None, Widths]] = {
    "reshape": (by_reshape, qkv, None),
    "chunk": (by_chunk, qkv, None),
    "literals": (by_literals, qkv, None),
    "one head and a mask": (by_one_head, lambda w: {**qkv(w), "mask": torch.ones(16, 16).tril().bool()}, None),
    "einsum": (by_einsum, qkv, None),
    "over channels": (over_channels, qkv, None),
    "module": (
        lambda s, h, x: s.a(tokens(h), tokens(h), tokens(h))[0],
        lambda w: {"a": nn.MultiheadAttention(w, w // HEAD, batch_first=True)},
        None,
    ),
    "module with its weights": (
        lambda s, h, x: s.a(tokens(h).transpose(0, 1), tokens(h).abs().transpose(0, 1), tokens(h).transpose(0, 1))[1],
        lambda w: {"a": nn.MultiheadAttention(w, w // HEAD)},
        lambda w: 256,
    ),
    "encoder layer": (
        lambda s, h, x: s.a(tokens(h)),
        lambda w: {"a": nn.TransformerEncoderLayer(w, w // HEAD, 2 * w, 0.0, batch_first=True)},
        None,
    ),
    "class token": (
        class_token,
        lambda w: {
            "token": Parameter(torch.zeros(1, 1, w)),
            "positions": Parameter(torch.randn(1, 17, w)),
            "norm": nn.LayerNorm(w),
        },
        lambda w: w,
    ),
    "mixed along tokens": (lambda s, h, x: s.l(h.flatten(2)).transpose(1, 2), lambda w: {"l": nn.Linear(16, 16)}, None),
    "tokens in the batch": (
        lambda s, h, x: s.l(tokens(h).flatten(0, 1)).unflatten(0, (-1, 16)),
        lambda w: {"l": nn.Linear(w, w)},
        None,
    ),
    "tokens joined": (lambda s, h, x: torch.cat([tokens(h), tokens(h).tanh()], 1).mean(1), None, lambda w: w),
    "lstm": (lambda s, h, x: s.r(tokens(h))[0], lambda w: {"r": nn.LSTM(w, w, batch_first=True)}, None),
    "lstm, steps first": (
        lambda s, h, x: s.r(tokens(h).transpose(0, 1))[0].transpose(0, 1),
        lambda w: {"r": nn.LSTM(w, w)},
        None,
    ),
    "gru's last state": (lambda s, h, x: s.r(tokens(h))[1][-1], lambda w: {"r": nn.GRU(w, w, 2, batch_first=True)}, lambda w: w),
    "states of both ways": (
        lambda s, h, x: torch.cat([s.r(tokens(h))[1][0], s.q(tokens(h))[1]], 0).transpose(0, 1).flatten(1),
        lambda w: {"r": nn.LSTM(w, w, batch_first=True, bidirectional=True), "q": nn.RNN(w, w, batch_first=True)},
        lambda w: 3 * w,
    ),
    "gates": (
        lambda s, h, x: s.l(tokens(h)).chunk(2, -1)[0] * s.m(tokens(h)).split(s.w, -1)[1].sigmoid(),
        lambda w: {"l": nn.Linear(w, 2 * w), "m": nn.Linear(w, 2 * w)},
        None,
    ),
    "products over channels": (
        lambda s, h, x: torch.bmm(tokens(h), h.flatten(2)) + torch.matmul(tokens(h), h.flatten(2)),
        None,
        lambda w: 256,
    ),
    "a shared matrix": (
        lambda s, h, x: h @ s.m,
        lambda w: {"m": torch.randn(4, 4, generator=torch.Generator().manual_seed(0))},
        None,
    ),
}


@pytest.mark.parametrize("name", TOKENS)
def test_steps_on_tokens(name: str) -> None:
    check_step(*TOKENS[name])


def parameter(*shape: int) -> Parameter:
    return Parameter(torch.randn(shape))


PARAMETERS: dict[str, tuple[Step, Parts, Widths]] = {
    "per channel": (lambda s, h, x: h * s.p + s.q, lambda w: {"p": parameter(w, 1, 1), "q": parameter(1, w, 1, 1)}, None),
    "one for all": (lambda s, h, x: h * s.p.exp() + s.q, lambda w: {"p": parameter(), "q": parameter(1)}, None),
    "per pixel": (lambda s, h, x: h * s.p, lambda w: {"p": parameter(4, 4)}, None),
    "in the last axis": (lambda s, h, x: (tokens(h) + s.p) * s.q, lambda w: {"p": parameter(16, w), "q": parameter(w)}, None),
    "used twice": (lambda s, h, x: h * s.p + h.relu() * s.p.sigmoid(), lambda w: {"p": parameter(w, 1, 1)}, None),
    "items": (lambda s, h, x: h * s.p[0] + s.p[1], lambda w: {"p": parameter(2, w, 1, 1)}, None),
    "reshaped": (
        lambda s, h, x: h * s.p.view(1, -1, 1, 1) + s.q[None, :, None, None],
        lambda w: {"p": parameter(w), "q": parameter(w)},
        None,
    ),
    "transposed": (lambda s, h, x: h.flatten(2) * s.p.t(), lambda w: {"p": parameter(16, w)}, None),
    "expanded": (lambda s, h, x: s.p.expand(x.shape[0], s.w, 4, 4) + h, lambda w: {"p": parameter(1, w, 1, 1)}, None),
    "repeated": (lambda s, h, x: s.p.repeat(x.shape[0], 1, 1, 1) + h, lambda w: {"p": parameter(1, w, 1, 1)}, None),
    "joined to channels": (
        lambda s, h, x: torch.cat([h, s.p.expand(h.shape[0], -1, 4, 4)], 1),
        lambda w: {"p": parameter(1, w, 1, 1)},
        lambda w: 32 * w,
    ),
    "some positions": (lambda s, h, x: tokens(h) + s.p[:, :16], lambda w: {"p": parameter(1, 20, w)}, None),
    "behind the head": (lambda s, h, x: h.flatten(1) * s.p.abs(), lambda w: {"p": parameter(1)}, None),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_bare_parameters(name: str) -> None:
    check_step(*PARAMETERS[name])


@pytest.mark.parametrize(
    "name", ["reshape", "chunk", "einsum", "module", "encoder layer", "class token", "states of both ways", "tokens in the batch"]
)
@pytest.mark.parametrize("alpha", [2, 4])
def test_members_are_isolated(name: str, alpha: int) -> None:
    step, parts, features = TOKENS[name]
    torch.manual_seed(0)
    packed = pack(Between(step, parts, 16, features).double(), members=4, alpha=alpha, example=images())
    assert_isolated(drawn(packed), images())
