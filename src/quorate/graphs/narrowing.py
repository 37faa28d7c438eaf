"""Layers of a graph cut to fewer channels, in place.

Shapes: a convolution (out, in, …) becomes (out′, in′, …), a linear layer (F_out′, F_in′); batch normalisation and PReLU follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Kept:
    """What stays of a layer, as plain data; indices are those of the given layer, in order.

    Attributes:
        inputs: the channels (features) that it still reads; of a grouped convolution, batch normalisation or PReLU those that go through.
        outputs: the channels (features) that it still makes.
        before: how many there were, (inputs, outputs).
        constants: of the inputs that go those that are read and always have the same value other than 0, with that value.
        carrier: the input that stays and takes the constants over, with its value; None where the bias does.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    before: tuple[int, int]
    constants: dict[int, float]
    carrier: tuple[int, float] | None = None


def narrow_(module: nn.Module, kept: Kept) -> None:
    """Cut a layer to what stays, in place. Constants that go are added to the bias or to their carrier's column, in float64."""
    layer: Any = module
    rows, columns = list(kept.outputs), list(kept.inputs)
    if isinstance(module, (_BatchNorm, nn.PReLU)):
        for name in ("weight", "bias"):
            _cut_parameter_(module, name, rows)
        for name in ("running_mean", "running_var"):
            if module._buffers.get(name) is not None:
                module._buffers[name] = module._buffers[name][rows].clone()  # type: ignore[index]
        setattr(layer, "num_parameters" if isinstance(module, nn.PReLU) else "num_features", len(rows))
    elif isinstance(module, _ConvNd) and layer.groups > 1:
        layer.groups = layer.groups * len(columns) // layer.in_channels
        layer.in_channels, layer.out_channels = len(columns), len(rows)
        for name in ("weight", "bias"):
            _cut_parameter_(module, name, rows)
    else:
        _cut_dense_(layer, kept)
        names = ("in_channels", "out_channels") if isinstance(module, _ConvNd) else ("in_features", "out_features")
        for name, size in zip(names, (len(columns), len(rows)), strict=True):
            setattr(layer, name, size)


def _parameter(like: nn.Parameter, value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.to(like.device, like.dtype).clone(), requires_grad=like.requires_grad)


def _cut_parameter_(module: nn.Module, name: str, rows: list[int]) -> None:
    """Keep these rows of a parameter, if there is one."""
    given = module._parameters.get(name)
    if given is not None:
        module._parameters[name] = _parameter(given, given.detach()[rows])


def _cut_dense_(layer: Any, kept: Kept) -> None:
    """Rows and columns of a linear layer or convolution, with what the columns that go leave behind."""
    rows, columns, constants = list(kept.outputs), list(kept.inputs), list(kept.constants)
    given: nn.Parameter = layer.weight
    weight = given.detach()[rows]
    cut = weight[:, columns]
    _cut_parameter_(layer, "bias", rows)
    if constants:
        values = torch.tensor([*kept.constants.values()], dtype=torch.float64)
        left = torch.einsum("rc...,c->r...", weight[:, constants].to("cpu", torch.float64), values)  # (rows, *kernel)
        if kept.carrier is None:
            share = left.reshape(len(rows), -1).sum(1)
            bias = share if layer.bias is None else share + layer.bias.detach().to("cpu", torch.float64)
            layer.bias = _parameter(given if layer.bias is None else layer.bias, bias)
        else:
            channel, value = kept.carrier
            place = columns.index(channel)
            cut[:, place] = (cut[:, place].to("cpu", torch.float64) + left / value).to(cut.device, cut.dtype)
    layer.weight = _parameter(given, cut)
