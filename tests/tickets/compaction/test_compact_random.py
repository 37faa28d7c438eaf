"""Random networks with random zeros, in fp64, against the originals on inputs other than the example."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.tickets.compaction import compact, removable

STEPS = (
    "conv", "conv", "conv", "strided", "pointwise", "dilated", "circular", "depthwise", "grouped", "norm", "norm", "prelu", "relu", "relu_",
    "functional", "sigmoid", "residual", "residual_", "iadd", "stale", "scale", "concatenate", "chunk", "gate", "maxpool", "avgpool",
    "border", "scalars", "twice", "sliced", "product", "quotient",
)  # fmt: skip


class Net(nn.Module):
    """A random program on (B, 3, 9, 7) or (B, 3, 12, 10), ended by a mean, a flattened view or nothing but two linear layers."""

    def __init__(self, steps: list[str], end: str, rng: np.random.Generator) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.parts = nn.ModuleList()
        width = 3
        for step in ["conv", *steps]:
            part: nn.Module = nn.Identity()
            new = int(rng.integers(2, 7)) * 2
            if step in ("conv", "strided", "pointwise", "dilated", "circular"):
                kernel = 1 if step == "pointwise" else 3
                part = nn.Conv2d(
                    width, new, kernel, stride=2 if step == "strided" else 1, bias=bool(rng.integers(2)),
                    padding=0 if step == "pointwise" else 2 if step == "dilated" else 1, dilation=2 if step == "dilated" else 1,
                    padding_mode="circular" if step == "circular" else "zeros",
                )  # fmt: skip
                width = new
            elif step == "depthwise":
                part = nn.Conv2d(width, 2 * width, 3, padding=1, groups=width)
                width *= 2
            elif step == "grouped":
                part = nn.Conv2d(width, width, 3, padding=1, groups=2 if width % 2 == 0 else 1, bias=False)
            elif step == "norm":
                part = nn.BatchNorm2d(width, eps=0.1)
            elif step == "prelu":
                part = nn.PReLU(width)
            elif step in ("residual", "residual_", "iadd", "stale", "twice", "product", "quotient"):
                part = nn.Conv2d(width, width, 3, padding=1)
            elif step == "concatenate":
                part = nn.Conv2d(width, new, 1)
                width += new
            elif step == "chunk":
                part = nn.Conv2d(width, 2 * new, 1)
                width = new
            elif step == "gate":
                part = nn.Sequential(nn.Linear(width, new), nn.ReLU(), nn.Linear(new, width), nn.Sigmoid())
            elif step in ("maxpool", "avgpool", "border"):
                pools = {"maxpool": nn.MaxPool2d(3, 2, 1), "avgpool": nn.AvgPool2d(2, 1), "border": nn.AvgPool2d(3, 1, 1)}
                part = pools[step]
            self.parts.append(part)
        self.hidden = nn.Linear(width * (6 if end == "positions" else 1), 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for step, part in zip(["conv", *self.steps], self.parts, strict=True):
            x = self._step(step, part, x)
        if self.end == "positions":
            x = F.adaptive_avg_pool2d(x, (2, 3))
            x = x.view(x.shape[0], -1)
        elif self.end == "mean":
            x = x.mean((2, 3))
        else:  # channels last
            x = x.permute(0, 2, 3, 1).flatten(1, 2).amax(1)
        out: Tensor = self.head(F.gelu(self.hidden(x)))
        return out

    def _step(self, step: str, part: nn.Module, x: Tensor) -> Tensor:
        if step == "relu":
            return x.relu()
        if step == "relu_":
            return F.relu(x * 1.0, inplace=True)
        if step == "functional":
            return F.leaky_relu(F.dropout(x, 0.5, self.training), 0.1)
        if step == "sigmoid":
            return torch.sigmoid(x)
        if step == "residual":
            return x + part(x)
        if step == "residual_":
            y = part(x)
            y += x
            return F.relu_(y)
        if step == "iadd":
            y = x * 1.0
            z = y
            y += part(x)
            return z
        if step == "stale":
            y = part(x)
            z = y[:, :, :, :]
            F.relu_(z)
            return y
        if step == "scale":
            return 0.5 * x - 1.0
        if step == "concatenate":
            return torch.cat([x, F.relu(part(x))], 1)
        if step == "chunk":
            a, b = part(x).chunk(2, 1)
            return a * torch.sigmoid(b)
        if step == "gate":
            b, c, _, _ = x.shape
            return x * part(F.adaptive_avg_pool2d(x, 1).view(b, c)).view(b, c, 1, 1).expand_as(x)
        if step == "scalars":
            return x / x.shape[2] + x.size(1)
        if step == "twice":
            return part(F.relu(part(x)))
        if step == "sliced":
            return torch.cat([x[:, :1], x[:, 1:, ...]], 1)
        if step == "product":
            return x * part(x)
        if step == "quotient":
            return x / (1.0 + part(x).abs())
        out: Tensor = part(x)
        return out


def emptied(model: nn.Module, rng: np.random.Generator, share: float) -> nn.Module:
    """Rows, columns and single weights at 0, statistics and gains anywhere, some gains and shifts 0."""
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if not tensor.is_floating_point():
                continue
            values = rng.normal(size=tuple(tensor.shape)) if name != "running_var" else rng.uniform(0.3, 2, tuple(tensor.shape))
            if values.ndim > 1:
                values /= np.sqrt(values[0].size * (1 - share))
                values[rng.random(values.shape) < share / 2] = 0
                values[rng.random(len(values)) < share] = 0
                values[:, rng.random(values.shape[1]) < share / 2] = 0
            elif name != "running_var":
                values[rng.random(len(values)) < share] = 0
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(values))
    return model


def check(seed: int, steps: list[str], end: str, share: float) -> int:
    """Compare on inputs of two sizes; how many channels went."""
    shrinking = [i for i, step in enumerate(steps) if step in ("strided", "maxpool", "avgpool")]
    steps = [step for i, step in enumerate(steps) if i not in shrinking[2:]]  # the image is small
    rng = np.random.default_rng(seed)
    model = emptied(Net(steps, end, rng).double(), rng, share).eval()
    example = torch.from_numpy(rng.normal(size=(2, 3, 9, 7)))
    small = compact(model, example)
    for shape in ((3, 3, 9, 7), (1, 3, 12, 10)):
        x = torch.from_numpy(rng.normal(size=shape) * 3)
        with torch.no_grad():
            expected, found = model(x), small(x)
        if expected.isfinite().all():
            scale = max(1.0, float(expected.abs().max()))
            assert float((expected - found).abs().max()) < 1e-11 * scale, (seed, steps, end, share)
    plan = removable(model, example)
    if not {"depthwise", "grouped"} & {*steps}:  # a single group that stays is a plain convolution, of which more can go
        assert removable(small, example) == {}, (seed, steps, end, share)
    return sum(sum(kept.before) - len(kept.inputs) - len(kept.outputs) for kept in plan.values())


@settings(max_examples=20)
@given(
    st.integers(0, 2**31), st.lists(st.sampled_from(STEPS), max_size=6), st.sampled_from(("positions", "mean", "last")),
    st.sampled_from((0.2, 0.5, 0.8)),
)  # fmt: skip
def test_random_networks_keep_their_outputs(seed: int, steps: list[str], end: str, share: float) -> None:
    check(seed, steps, end, share)


@pytest.mark.slow
@settings(max_examples=400)
@given(
    st.integers(0, 2**31), st.lists(st.sampled_from(STEPS), max_size=9), st.sampled_from(("positions", "mean", "last")),
    st.sampled_from((0.1, 0.3, 0.5, 0.8, 0.95)),
)  # fmt: skip
def test_many_random_networks_keep_their_outputs(seed: int, steps: list[str], end: str, share: float) -> None:
    check(seed, steps, end, share)


@pytest.mark.parametrize("step", sorted({*STEPS} - {"scalars", "sliced", "twice", "grouped"}))
def test_every_followed_step_lets_channels_go(step: str) -> None:
    assert sum(check(seed, [step, "pointwise"], "mean", 0.5) for seed in range(2)) > 0
