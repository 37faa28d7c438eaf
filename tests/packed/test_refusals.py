"""Every step without a rule is refused by name, with what to do in place of it, on one line."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed import PackedConv2d, PackedLinear, pack

Between = Callable[[Any, Tensor], Any]


class Image(nn.Module):
    """A convolution, any step, and a head; `step(self, hidden)` gets (B, 8, 6, 6) hidden values."""

    def __init__(self, step: Between, **modules: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 5)
        self.register_buffer("wide", torch.ones(1, 8, 1, 1))
        for name, module in modules.items():
            self.add_module(name, module)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.step(self, self.stem(x)).flatten(1))
        return y


REFUSED: dict[str, tuple[Between, dict[str, nn.Module], str]] = {
    "cat": (lambda _, h: torch.cat([h, h], 1), {}, "step 'cat': .*got cat; concatenations are not packed yet"),
    "stack": (lambda _, h: torch.stack([h, h]), {}, "got stack; concatenations"),
    "permute": (lambda _, h: h.permute(0, 2, 3, 1), {}, "step 'permute': .*keep the batch at dimension 0"),
    "transpose": (lambda _, h: h.transpose(1, 2), {}, "got transpose; keep the batch"),
    "T": (lambda _, h: h.T, {}, r"got \.T; keep the batch"),
    "index": (lambda _, h: h[:, :4], {}, "step 'getitem': expected no indexing"),
    "softmax": (lambda _, h: F.softmax(h, 1), {}, "got softmax; return logits"),
    "layer_norm": (lambda _, h: F.layer_norm(h, (6,)), {}, "got layer_norm; use BatchNorm"),
    "matmul": (lambda _, h: h @ h, {}, "got matmul; it is not packed yet: use Linear"),
    "sort": (lambda _, h: h.sort(1), {}, "got sort; it is not packed yet"),
    "mean over channels": (
        lambda _, h: h.mean(1),
        {},
        r"step 'mean': expected a reduction over dimensions ≥ 2, got dim=\[1\] of 4",
    ),
    "mean over all": (lambda _, h: h.mean(), {}, "got dim=None of 4"),
    "mean over channels, counted from the end": (lambda _, h: h.amax((-3, -1)), {}, r"got dim=\(-3, -1\) of 4"),
    "pad of channels": (lambda _, h: F.pad(h, (0, 0, 0, 0, 2, 2)), {}, "step 'pad': expected padding of dimensions ≥ 2 of 4"),
    "pooling of lines of features": (
        lambda _, h: F.max_pool2d(h.flatten(2), 2),
        {},
        "expected a tensor of 4 dimensions, got one of 3",
    ),
    "a module on another rank": (
        lambda net, h: net.m(h),
        {"m": nn.MaxPool1d(2)},
        "module 'm': expected an input of 3 dimensions, got one of 4",
    ),
    "indices": (
        lambda _, h: F.max_pool2d(h, 2, return_indices=True),
        {},
        "got max_pool2d_with_indices; it is not packed yet",
    ),
    "indices of a module": (
        lambda net, h: net.m(h),
        {"m": nn.MaxPool2d(2, return_indices=True)},
        "module 'm': expected one output",
    ),
    "flatten all": (lambda _, h: torch.flatten(h), {}, "expected flattening from dimension 1 on, got dimensions 0 to -1"),
    "flatten module": (lambda net, h: net.m(h), {"m": nn.Flatten(0, 1)}, "module 'm': expected flattening from dimension 1 on"),
    "flatten to a size": (lambda _, h: h.flatten(h.dim() - 3), {}, "expected literal dimensions"),
    "view of two": (lambda _, h: h.view(-1, 4, 6, 6), {}, r"expected the shape \(batch, -1\), got \(-1, 4, 6, 6\)"),
    "view of batches": (lambda _, h: h.reshape(2, -1), {}, r"expected the shape \(batch, -1\), got \(2, -1\)"),
    "view of sizes": (lambda _, h: h.view(h.size(0) * 2, -1), {}, r"expected the shape \(batch, -1\), got \(mul, -1\)"),
    "channels as a number": (lambda _, h: h / h.size(1), {}, r"got a size of the packed network \(size\)"),
    "computing with channels": (lambda _, h: h / (h.shape[1] * 2), {}, "expected no use of the number of channels"),
    "channels as an argument": (lambda _, h: F.avg_pool2d(h, h.shape[1]), {}, "expected one tensor and plain numbers"),
    "a shape of all": (lambda _, h: h.view(h.shape), {}, "expected the shape"),
    "adding shapes": (
        lambda _, h: h.view(operator.add(h.shape[2:], (1,))),
        {},
        "expected operands with the members' channels, got sizes",
    ),
    "no such dimension": (lambda _, h: h / h.size(4) + h.shape[2], {}, "expected one of 4 dimensions, got dimension 4"),
    "another attribute": (lambda _, h: h.real, {}, r"expected a size or a dtype, got \.real"),
    "a wide buffer": (lambda net, h: h * net.wide, {}, r"got a tensor that all members share \(wide\); put a layer between"),
    "different ranks": (
        lambda _, h: h + h.mean((2, 3)),
        {},
        "expected operands of the same channels and dimensions, got .B, 8, …. of 4",
    ),
    "different widths": (
        lambda net, h: h + net.m(h),
        {"m": nn.Conv2d(8, 4, 1)},
        r"got \(B, 8, …\) of 4 dimensions and \(B, 4, …\)",
    ),
    "wrong width": (
        lambda net, h: net.m(h),
        {"m": nn.Conv2d(4, 8, 1)},
        "module 'm': expected 4 channels, got 8; correct the model",
    ),
    "linear on images": (
        lambda net, h: net.m(h),
        {"m": nn.Linear(6, 6)},
        "module 'm': expected an input of 2 dimensions, got one of 4",
    ),
    "layer norm": (lambda net, h: net.m(h), {"m": nn.LayerNorm(6)}, "module 'm': .*got LayerNorm; use BatchNorm"),
    "group norm": (lambda net, h: net.m(h), {"m": nn.GroupNorm(2, 8)}, "got GroupNorm; use BatchNorm"),
    "prelu": (lambda net, h: net.m(h), {"m": nn.PReLU()}, "got PReLU; its slope would be shared"),
    "transposed": (lambda net, h: net.m(h), {"m": nn.ConvTranspose2d(8, 8, 2)}, "got ConvTranspose2d; it is not packed yet"),
    "attention": (
        lambda net, h: net.m(h.flatten(2), h.flatten(2), h.flatten(2)),
        {"m": nn.MultiheadAttention(36, 2)},
        "module 'm': expected one tensor as input",
    ),
    "recurrent": (
        lambda net, h: net.m(h.flatten(2)),
        {"m": nn.LSTM(36, 8)},
        "module 'm': .*got LSTM; it is not packed yet.*DeepEnsemble",
    ),
    "shuffle": (lambda net, h: net.m(h), {"m": nn.ChannelShuffle(2)}, "got ChannelShuffle; it is not packed yet"),
    "glu": (lambda net, h: net.m(h), {"m": nn.GLU(1)}, "got GLU; it is not packed yet"),
    "packed linear": (
        lambda net, h: net.m(h.flatten(1)),
        {"m": PackedLinear(288, 8, 2)},
        "got PackedLinear; it is packed already",
    ),
    "packed conv": (lambda net, h: net.m(h), {"m": PackedConv2d(8, 8, 1, 2)}, "got PackedConv2d; it is packed already"),
    "a parameter": (lambda net, h: h * net.stem.weight.sum(), {}, "step 'stem_weight': expected parameters inside layers only"),
    "two outputs": (lambda _, h: h.chunk(2, 1), {}, "got chunk; keep the batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    step, modules, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        pack(Image(step, **modules))
    assert str(caught.value).startswith("cannot pack ")
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_module_around_the_step() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x], 1)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(Block()), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match=r"cannot pack step 'cat' in module '1\.0': expected a step that keeps members apart"):
        pack(model)


ENDS: dict[str, tuple[nn.Module, str]] = {
    "images": (nn.Sequential(nn.Conv2d(3, 8, 1)), r"expected logits \(B, classes\), got a tensor of 4 dimensions"),
    "no layer": (nn.Sequential(nn.Flatten()), "expected logits .*got one that no Linear or Conv2d made"),
    "norm first": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)),
        "module '0': expected a Linear or Conv2d first, got BatchNorm2d",
    ),
    "bare layer": (nn.Linear(4, 4), r"expected parameters inside layers only, got weight; .*nn.Sequential\(layer\)"),
}


@pytest.mark.parametrize("name", ENDS)
def test_refused_ends(name: str) -> None:
    model, message = ENDS[name]
    with pytest.raises(ValueError, match=message):
        pack(model)
