# ruff: noqa: ARG005
"""Every step with a rule is what each member alone would do: hand-written narrow models, both modes, inputs of the members' own."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packed_members import Parts, Step, assert_alone, check_step, drawn, images, near
from quorate.packed import pack, unpack
from quorate.packed.kinds import ELEMENTS, SPATIAL
from quorate.packed.rules import FUNCTIONS, METHODS
from quorate.packed.rules.elementwise import unary

Widths = Callable[[int], int] | None


def shaped(_: Any, h: Tensor, x: Tensor) -> Tensor:  # noqa: ARG001
    b, _, rows, _ = h.shape
    return F.avg_pool2d(h, (rows, h.size(-1))).view(b, -1)


IMAGES: dict[str, tuple[Step, Widths]] = {
    "functions": (lambda _, h, x: F.gelu(F.relu(F.hardtanh(F.silu(torch.tanh(h))), inplace=True)), None),
    "more functions": (lambda _, h, x: torch.clamp(torch.abs(-h), max=0.5) + F.leaky_relu(h, 0.3), None),
    "methods": (lambda _, h, x: h.relu_().sqrt().contiguous().clone().sigmoid().to(torch.float64), None),
    "dtype of another": (lambda _, h, x: h.to(h.dtype).type_as(x).abs(), None),
    "residual": (lambda _, h, x: h + F.relu(h), None),
    "arithmetic": (lambda _, h, x: (1 - h) * 2 / 3 + h**2 - torch.sub(h, h.tanh()), None),
    "in place": (lambda _, h, x: operator.iadd(h.clone(), h.abs()).mul_(0.5).add_(1), None),
    "extremes of two": (lambda _, h, x: torch.maximum(h, -h) + torch.minimum(h, h.square()), None),
    "choices": (lambda _, h, x: torch.where(h > h.mean((2, 3), keepdim=True), h, 0.1 * h).masked_fill(h < -1, 0.5), None),
    "gate": (lambda _, h, x: h * F.adaptive_avg_pool2d(h, 1).sigmoid(), None),
    "pools": (lambda _, h, x: F.adaptive_max_pool2d(F.avg_pool2d(F.max_pool2d(h, 3, 1), 1), (1, 2)), lambda w: 2 * w),
    "pad and scale": (lambda _, h, x: F.interpolate(F.pad(h, (1, 1, 0, 2)), scale_factor=0.5), lambda w: 9 * w),
    "mean": (lambda _, h, x: h.mean((2, 3)), lambda w: w),
    "mean of the last": (lambda _, h, x: h.mean(-1), lambda w: 4 * w),
    "mean of flat": (lambda _, h, x: torch.mean(h.flatten(2), dim=2), lambda w: w),
    "extremes": (lambda _, h, x: h.amax(dim=[-2, -1], keepdim=True) + torch.sum(h, (2, 3), keepdim=True), lambda w: w),
    "variance": (lambda _, h, x: h / (h.var((2, 3), keepdim=True) + 1), None),
    "sorted": (lambda _, h, x: h.flatten(2).topk(3, 2).values + h.max(-1)[0][:, :, :3], lambda w: 3 * w),
    "along channels": (lambda _, h, x: h.softmax(1).cumsum(1).flip(1).roll(1, 1) + F.normalize(h) + h.sort(1)[0], None),
    "standardised by channels": (lambda _, h, x: (h - h.mean(1, keepdim=True)) / (h.std(1, keepdim=True) + 1e-3), None),
    "channels are gone": (
        lambda _, h, x: torch.stack([h.amax(1), h.mean(1), h.logsumexp(1), h.argmax(1) * h.prod(1)], 1),
        lambda w: 64,
    ),
    "shape": (shaped, lambda w: w),
    "view": (lambda _, h, x: h.view(h.size(0), -1), None),
    "view with literals": (lambda s, h, x: h.reshape(-1, 16 * s.w), None),
    "reshape": (lambda s, h, x: torch.reshape(h, (h.shape[0], 16 * s.w)), None),
    "view of channels": (lambda _, h, x: F.adaptive_avg_pool2d(h, 1).view(h.size(0), h.size(1)), lambda w: w),
    "part of the shape": (lambda _, h, x: F.avg_pool2d(h, h.size()[2:]), lambda w: w),
    "number of dimensions": (lambda _, h, x: h / h.dim() + h.ndim, None),
    "flat twice": (lambda _, h, x: torch.flatten(h.flatten(start_dim=1, end_dim=2), 1).flatten(1), None),
    "squeezed": (lambda _, h, x: h.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1).unsqueeze(1), lambda w: w),
    "expanded": (lambda s, h, x: h.mean((2, 3), keepdim=True).expand(-1, s.w, 4, 4) + h.amax((2, 3), True).expand_as(h), None),
    "channels shuffled": (
        lambda _, h, x: h.view(h.shape[0], 2, h.shape[1] // 2, 4, 4).transpose(1, 2).reshape(h.shape[0], -1, 4, 4),
        None,
    ),
    "groups of channels": (lambda s, h, x: (lambda r: (r * r.softmax(1)).sum(1))(h.unflatten(1, (2, -1))), lambda w: 8 * w),
    "pixels to channels": (
        lambda s, h, x: h.view(-1, s.w, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(-1, 4 * s.w, 2, 2),
        None,
    ),
    "channels in front": (
        lambda _, h, x: h.permute(1, 2, 3, 0).softmax(0).permute(3, 0, 1, 2) + h.transpose(0, 1).softmax(0).transpose(0, 1),
        None,
    ),
    "halves": (lambda s, h, x: torch.cat([h[:, s.w // 2 :], h[:, : s.w // 2]], 1), None),
    "chunks": (lambda _, h, x: torch.cat([h.chunk(2, 1)[1], h.chunk(2, 1)[0].sigmoid()], 1), None),
    "splits": (
        lambda s, h, x: torch.cat(h.split([s.w // 4, 3 * s.w // 4], 1)[::-1], 1) + torch.cat(h.split(s.w // 4, 1)[::-1], 1),
        None,
    ),
    "slices": (lambda _, h, x: h[..., 1:, ::2][:, :, None], lambda w: 6 * w),
    "first channel": (lambda _, h, x: h + h[:, :1], None),
    "patches joined": (lambda _, h, x: torch.cat([h[:, :, a::2, b::2] for a in (0, 1) for b in (0, 1)], 1), None),
    "stacked": (
        lambda _, h, x: torch.stack([h, h.relu()], 1).flatten(1, 2) + torch.stack([h, h.abs()], 2).flatten(1, 2),
        lambda w: 32 * w,
    ),
    "unbound": (lambda _, h, x: h.unbind(2)[0] * h.unbind(-1)[3], lambda w: 4 * w),
    "sizes as numbers": (lambda _, h, x: h.sum((2, 3)) / (h.size(2) * h.size(3)) / h.shape[1] ** 0.5, lambda w: w),
    "the batch as a number": (
        lambda _, h, x: h / h.shape[0] + h.permute(0, 2, 3, 1).permute(0, 3, 1, 2) * x.shape[0] + h.clamp(max=h.size(0)),
        None,
    ),
    "computing with the batch": (lambda _, h, x: h / (h.shape[0] + 1) * (x.shape[0] * x.size(0)), None),
    "pixels up to the batch": (lambda _, h, x: F.leaky_relu(h, 1 / h.shape[0])[:, :, :2].mean((2, 3)), lambda w: w),
    "made of sizes": (
        lambda _, h, x: h + torch.arange(h.shape[-1]) + torch.linspace(0, 1, 4) + torch.zeros_like(h) + torch.ones_like(h),
        None,
    ),
    "made of the batch": (
        lambda _, h, x: h + torch.arange(x.shape[0])[:, None, None, None] * torch.arange(h.size(0))[:, None, None, None],
        None,
    ),
    "the raw input too": (
        lambda _, h, x: torch.where(x[:, :1] > 0, h, 0.1 * h) + x.sum((1, 2, 3), keepdim=True) / x.size(-1),
        None,
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_steps_on_images(name: str) -> None:
    step, features = IMAGES[name]
    check_step(step, None, features, narrower=name != "pixels up to the batch")


MODULES: dict[str, tuple[Any, Parts]] = {
    "batch norm": (lambda s, h, x: s.n(h), lambda w: {"n": nn.BatchNorm2d(w, eps=0.1, momentum=0.3)}),
    "batch norm without statistics": (lambda s, h, x: s.n(h), lambda w: {"n": nn.BatchNorm2d(w, track_running_stats=False)}),
    "batch norm of lines": (lambda s, h, x: s.n(h.flatten(2)), lambda w: {"n": nn.BatchNorm1d(w, affine=False)}),
    "instance norm": (lambda s, h, x: s.n(h), lambda w: {"n": nn.InstanceNorm2d(w, affine=True)}),
    "group norm": (lambda s, h, x: s.n(h), lambda w: {"n": nn.GroupNorm(2, w)}),
    "layer norm of pixels": (lambda s, h, x: s.n(h), lambda w: {"n": nn.LayerNorm((w, 4, 4))}),
    "layer norm of channels last": (
        lambda s, h, x: s.n(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        lambda w: {"n": nn.LayerNorm(w)},
    ),
    "slopes": (lambda s, h, x: s.n(s.m(h)), lambda w: {"n": nn.PReLU(w), "m": nn.PReLU()}),
    "depthwise": (lambda s, h, x: s.n(h), lambda w: {"n": nn.Conv2d(w, w, 3, padding=1, groups=w)}),
    "squeeze and excite": (
        lambda s, h, x: h * s.b(s.a(h.mean((2, 3), keepdim=True)).relu()).sigmoid(),
        lambda w: {"a": nn.Conv2d(w, w // 4, 1), "b": nn.Conv2d(w // 4, w, 1)},
    ),
    "squeeze by linear layers": (
        lambda s, h, x: h * s.b(s.a(h.mean((2, 3))).relu()).sigmoid()[:, :, None, None],
        lambda w: {"a": nn.Linear(w, w // 4), "b": nn.Linear(w // 4, w)},
    ),
    "transposed convolution": (lambda s, h, x: s.n(h)[:, :, :4, :4], lambda w: {"n": nn.ConvTranspose2d(w, w, 2, 2)}),
    "concatenations": (
        lambda s, h, x: s.a(torch.cat([h, s.b(h), h.abs()], 1)),
        lambda w: {"a": nn.Conv2d(5 * w // 2, w, 1), "b": nn.Conv2d(w, w // 2, 1)},
    ),
    "a linear layer on pixels": (lambda s, h, x: s.n(h), lambda w: {"n": nn.Linear(4, 4)}),
    "unflattened": (lambda s, h, x: s.n(h.flatten(1)), lambda w: {"n": nn.Unflatten(1, (w, 4, 4))}),
    "buffers": (lambda s, h, x: h * s.a + s.b, lambda w: {"a": torch.tensor(1.5), "b": torch.linspace(0, 1, 16).view(4, 4)}),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_on_images(name: str) -> None:
    check_step(*MODULES[name])


SETTINGS: dict[str, tuple[Any, ...]] = {
    "Threshold": (0.1, 0.2),
    "Dropout": (0.3,),
    "LPPool": (2, 2),
    "MaxPool": (2,),
    "AvgPool": (2,),
    "AdaptiveMaxPool": (3,),
    "AdaptiveAvgPool": (3,),
    "ZeroPad": (1,),
    "ConstantPad": (1, 0.5),
    "ReflectionPad": (2,),
    "ReplicationPad": (1,),
    "CircularPad": (1,),
    "UpsamplingNearest": (None, 2),
    "UpsamplingBilinear": ((7, 9),),
    "Softplus": (2.0,),
    "Hardtanh": (-0.5, 0.7),
}


@pytest.mark.parametrize(
    "kind", sorted([*ELEMENTS, *SPATIAL, nn.Upsample], key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__
)
def test_modules_without_parameters(kind: type[nn.Module]) -> None:
    name = kind.__name__
    arguments = SETTINGS.get(name, SETTINGS.get(name[:-2], ())) if kind is not nn.Upsample else (None, 2)
    rank = SPATIAL.get(kind, 2)
    shape = (3, *(4,) * rank)
    first = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank](3, 4, 3, padding=1)
    body = nn.Sequential(first, kind(*arguments), nn.Flatten())
    features = body(torch.zeros(2, *shape)).shape[1]
    x = torch.randn(3, *shape, dtype=torch.float64)
    packed = drawn(pack(nn.Sequential(*body, nn.Linear(features, 3)).double(), members=2, alpha=1, example=x))
    assert_alone(packed, x)


def test_every_elementwise_function_and_method_is_one() -> None:
    """A step in the tables for tensors of any rank changes each element alone, whatever is around it."""
    drawing = ("dropout", "alpha_dropout", "rand_like", "randn_like", "bernoulli", "bernoulli_", "cuda", "half")
    extra: dict[str, tuple[Any, ...]] = {
        **dict.fromkeys(("clamp", "clamp_", "clamp_min", "clamp_max", "full_like"), (0.2,)),
        "to": (torch.float64,),
        "type": (torch.float64,),
        "_threshold": (0.1, 0.2),
    }
    calls: list[tuple[str, Callable[..., Tensor]]] = [
        *((str(getattr(f, "__name__", f)), f) for f, rule in FUNCTIONS.items() if rule is unary),
        *((m, lambda x, *a, m=m: getattr(x, m)(*a)) for m, rule in METHODS.items() if rule is unary),
    ]
    x = torch.rand(2, 6)
    assert len(calls) > 80
    for name, call in calls:
        if name in drawing:
            continue
        source = x > 0.5 if name == "logical_not" else x
        whole = call(source.clone(), *extra.get(name, ()))
        columns = torch.cat([call(source[:, i : i + 1].clone(), *extra.get(name, ())) for i in range(6)], 1)
        torch.testing.assert_close(whole, columns, equal_nan=True)


def test_numbers_of_the_single_network_outside_of_shapes_stay_as_they_are() -> None:
    """A number that forward has computed in Python is a setting, as a dropout's p is: members keep it."""
    x = images()

    class Scaled(nn.Module):
        def __init__(self, width: int, scale: float) -> None:
            super().__init__()
            self.stem, self.head, self.scale = nn.Linear(48, width), nn.Linear(width, 3), scale

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.stem(x.flatten(1)) * self.scale)
            return y

    packed = drawn(pack(Scaled(8, 8**-0.5).double(), members=2, alpha=1, example=x))
    narrow = Scaled(4, 8**-0.5).double()
    narrow.load_state_dict(unpack(packed, 1).state_dict())
    near(packed(x)[1], narrow(x))
