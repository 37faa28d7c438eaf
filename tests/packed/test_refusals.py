# ruff: noqa: ARG005
"""What cannot be packed is refused by name, on one line, with what to do: never packed to something else."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Parameter

from packed_members import Parts, Step, fitting, images
from quorate.packed import PackedConv2d, PackedLinear, pack

Refused = dict[str, tuple[Step, Parts | None, str]]
NO_WAY: Refused = {  # with and without an example
    "mean over the batch": (
        lambda _, h, x: h - h.mean(0),
        None,
        "step 'mean': expected a step along other dimensions than the batch",
    ),
    "mean over all": (lambda _, h, x: h - h.mean(), None, "step 'mean': expected a reduction over dimensions that are named"),
    "batch moved and softmaxed": (
        lambda _, h, x: h.permute(1, 2, 3, 0).softmax(-1).permute(3, 0, 1, 2),
        None,
        "'softmax': expected a step along other",
    ),
    "sorted rows": (lambda _, h, x: h.sort(0)[0], None, "step 'sort': expected a step along other dimensions than the batch"),
    "flipped rows": (lambda _, h, x: h + h.flip(0), None, "step 'flip': expected a step along other"),
    "one row": (lambda _, h, x: h + h[0], None, r"step 'getitem': expected all rows of the batch, got \[0\]; keep the rows"),
    "some rows": (lambda _, h, x: h + h[:1], None, "expected all rows of the batch, got .slice"),
    "rows joined": (
        lambda _, h, x: torch.cat([h, h], 0).chunk(2, 0)[0],
        None,
        "step 'cat': expected a step along other dimensions",
    ),
    "rows split": (lambda _, h, x: h.chunk(2, 0)[0], None, "step 'chunk': expected a step along other dimensions"),
    "padded batch": (
        lambda _, h, x: F.pad(h, (0, 0, 0, 0, 0, 0, 0, 1))[:-1],
        None,
        "step 'pad': expected padding of other dimensions",
    ),
    "batch and channels flattened": (
        lambda _, h, x: h.flatten(0, 1),
        None,
        "step 'flatten': expected flattening from dimension 1 on, got dimensions 0 to 1",
    ),
    "everything flattened": (
        lambda _, h, x: torch.flatten(h),
        None,
        "expected flattening from dimension 1 on, got dimensions 0 to|IndexError",
    ),
    "products of rows": (
        lambda _, h, x: h.flatten(1) @ h.flatten(1).t() @ h.flatten(1),
        None,
        "step 'matmul': expected two batches of matrices",
    ),
    "einsum over rows": (
        lambda _, h, x: torch.einsum("bchw,dchw->bchw", h, h),
        None,
        "step 'einsum': expected the batch's letter in all tensors",
    ),
    "einsum without letters": (lambda _, h, x: torch.einsum("b...->b...", h), None, "expected an equation with letters and ->"),
    "distances of rows": (
        lambda _, h, x: torch.cdist(h.flatten(1), h.flatten(1)),
        None,
        "step 'cdist': expected a step that keeps members apart",
    ),
    "repeated rows": (
        lambda _, h, x: h.repeat(2, 1, 1, 1),
        None,
        "step 'repeat': expected a shape that can be followed, got 2 at dimension 0",
    ),
    "squeeze of whatever": (
        lambda _, h, x: h.mean((2, 3), True).squeeze(),
        None,
        "expected a dimension that is named, got squeeze of all of size 1",
    ),
    "roll of everything": (lambda _, h, x: h.roll(1), None, "step 'roll': expected a dimension that is named"),
    "unknown step": (
        lambda _, h, x: F.unfold(h, 3),
        None,
        r"step 'unfold': .*got unfold; keep it whole with skip=\[its module\], say how",
    ),
    "shuffled by a function": (lambda _, h, x: F.channel_shuffle(h, 2), None, "got channel_shuffle"),
    "functional layer": (
        lambda s, h, x: F.conv2d(h, s.c.weight),
        lambda w: {"c": nn.Conv2d(w, w, 1, bias=False)},
        "got conv2d; use torch.nn modules",
    ),
    "functional norm": (lambda _, h, x: F.batch_norm(h, None, None, training=True), None, "got batch_norm; use torch.nn modules"),
    "raw input joined": (
        lambda _, h, x: torch.cat([h, x], 1),
        None,
        "'cat': expected the members' tensors alone, got a tensor that all members share",
    ),
    "channels by number": (
        lambda _, h, x: h[:, 0],
        None,
        "expected slices and plain numbers, of other dimensions than the width, got .0.",
    ),
    "channels by indices": (lambda s, h, x: h[:, s.i], lambda w: {"i": torch.arange(w)}, "got .i.; take channels by slices"),
    "channels by a step": (lambda _, h, x: h[:, ::2], None, "expected a slice of the width by plain numbers, got slice"),
    "channels as a slice's end": (
        lambda _, h, x: h[:, : h.shape[1] // 2],
        None,
        "expected a slice of the width by plain numbers",
    ),
    "no such dimension": (
        lambda _, h, x: h / h.size(4) + h.shape[2],
        None,
        "expected one of 4 dimensions, got dimension 4|example: expected a batch that the model takes",
    ),
    "another attribute": (lambda _, h, x: h.real, None, r"expected a size or a dtype, got \.real"),
    "transposed by T": (lambda _, h, x: h.flatten(1).T, None, r"got \.T; use the method transpose"),
    "made of channels": (lambda _, h, x: h + torch.arange(h.shape[1])[:, None, None], None, "step 'arange': .*zeros_like"),
    "parameters multiplied": (
        lambda s, h, x: h * (s.p * s.q),
        lambda w: {"p": Parameter(torch.ones(w, 1, 1)), "q": Parameter(torch.ones(w, 1, 1))},
        "'mul': .*got a parameter and a parameter; keep parameters in layers",
    ),
    "a layer's weight": (
        lambda s, h, x: s.c(h) * s.c.weight[0, 0, 0, 0],
        lambda w: {"c": nn.Conv2d(w, w, 1)},
        "'c.weight' to be read by its layer alone, got getitem of it; read sizes off tensors",
    ),
    "a layer's statistics": (
        lambda s, h, x: s.n(h) + s.n.running_mean.sum(),
        lambda w: {"n": nn.BatchNorm2d(w)},
        "'n.running_mean' to be read by its layer alone, got sum",
    ),
    "a parameter summed": (
        lambda s, h, x: h * s.p.sum(),
        lambda w: {"p": Parameter(torch.ones(w))},
        "got a parameter; combine the parameter with",
    ),
    "a product with a parameter": (
        lambda s, h, x: h.transpose(1, 3) @ s.p,
        lambda w: {"p": Parameter(torch.ones(w, w))},
        "step 'matmul': .*use a Linear for a product with parameters",
    ),
    "wrong width": (
        lambda s, h, x: s.m(h),
        lambda w: {"m": nn.Conv2d(2 * w, w, 1)},
        "module 'm': expected 16 channels, got 8; correct the model|example: expected a batch that the model takes, but it fails",
    ),
    "shuffle module": (
        lambda s, h, x: s.m(h),
        lambda w: {"m": nn.ChannelShuffle(2)},
        "module 'm': expected a module that can be packed, got ChannelShuffle",
    ),
    "bilinear": (
        lambda s, h, x: s.m(h.mean((2, 3)), h.mean((2, 3))),
        lambda w: {"m": nn.Bilinear(w, w, w)},
        "cannot pack module 'm'",
    ),
    "norm of other channels": (
        lambda s, h, x: s.m(h.flatten(2).transpose(1, 2)),
        lambda w: {"m": nn.BatchNorm1d(16)},
        "module 'm': expected the channels at dimension 1",
    ),
    "convolution of other channels": (
        lambda s, h, x: s.m(h.transpose(1, 2)),
        lambda w: {"m": nn.Conv2d(4, 4, 1)},
        "module 'm': expected the channels at dimension 1",
    ),
    "packed already": (
        lambda s, h, x: s.m(h),
        lambda w: {"m": PackedConv2d(w, w, 1, members=2)},
        "it is packed already|PackedConv2d",
    ),
    "packed already too": (
        lambda s, h, x: s.m(h.flatten(1)),
        lambda w: {"m": PackedLinear(16 * w, 16 * w, members=2)},
        "it is packed already|PackedLinear",
    ),
    "indices": (
        lambda s, h, x: s.m(h)[0],
        lambda w: {"m": nn.MaxPool2d(2, return_indices=True)},
        "module 'm': expected one output, got return_indices",
    ),
    "softmax without dim": (
        lambda s, h, x: s.m(h),
        lambda w: {"m": nn.Softmax(None)},
        "module 'm': expected a dimension that is named|Implicit dimension choice",
    ),
    "batch second": (lambda s, h, x: s.m(h.flatten(2))[0], lambda w: {"m": nn.LSTM(16, w)}, "module 'm': expected"),
    "heads that do not divide": (
        lambda s, h, x: s.m(h.flatten(2).transpose(1, 2), h.flatten(2).transpose(1, 2), h.flatten(2).transpose(1, 2))[0],
        lambda w: {"m": nn.MultiheadAttention(w, 1, batch_first=True)},
        "cannot pack module 'm' .MultiheadAttention.: .*heads",
    ),
}


@pytest.mark.parametrize("name", NO_WAY)
def test_refused_with_and_without_an_example(name: str) -> None:
    step, parts, message = NO_WAY[name]
    for example in (None, images().float()):
        with pytest.raises(ValueError, match=message) as caught:
            pack(fitting(step, parts), members=2, alpha=1, example=example)
        assert "\n" not in str(caught.value)
        if "example:" not in str(caught.value):
            assert str(caught.value).startswith("cannot pack ")
