"""M recurrent networks over time, as one fused call for each member or as one loop for all.

    LSTM (Hochreiter & Schmidhuber 1997; forget gate, Gers et al. 2000; projection r = W_hr h', Sak et al. 2014, arXiv:1402.1128)
        i, f, o = σ(W x + b + U h + d)    g = tanh(…)    c' = f c + i g    h' = o tanh c'
    GRU (Cho et al. 2014, arXiv:1406.1078, with the reset after the product, as in cuDNN)
        r, z = σ(W x + b + U h + d)    n = tanh(W x + b + r (U h + d))    h' = n + z (h − n)
    Elman's RNN (1990)
        h' = tanh or ReLU (W x + b + U h + d)

Shapes, with K = layers · directions: inputs (M, B, T, C), or (M, T, B, C) without `batch_first`; states h, of an LSTM h and c,
(M, K, B, H) each; weights (M, …) in the order of torch's own flat list. Outputs are as the inputs, of directions · H numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Mode = Literal["LSTM", "GRU", "RNN_TANH", "RNN_RELU"]
GATES = {"LSTM": 4, "GRU": 3, "RNN_TANH": 1, "RNN_RELU": 1}
States = tuple[Tensor, ...]  # (h,), of an LSTM (h, c)
Result = tuple[list[Tensor], list[States]]  # for each member


@dataclass(frozen=True)
class Recurrence:
    """What a recurrence does beside its weights: the settings of nn.LSTM, nn.GRU or nn.RNN."""

    mode: Mode
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    projected: bool

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    def names(self) -> list[str]:
        """The parameters' names, in the order in which the fused kernels take them."""
        kinds = [
            "weight_ih",
            "weight_hh",
            *(("bias_ih", "bias_hh") if self.bias else ()),
            *(("weight_hr",) if self.projected else ()),
        ]
        ends = ("", "_reverse")[: self.directions]
        return [f"{kind}_l{layer}{end}" for layer in range(self.num_layers) for end in ends for kind in kinds]


def one_chunk(weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies that lie in one piece of memory, all matrices before all biases: what cuDNN wants, lest it copies and warns at each call."""
    order = sorted(range(len(weights)), key=lambda i: weights[i].dim() == 1)
    flat = torch.cat([weights[i].reshape(-1) for i in order])
    pieces = flat.split([weights[i].numel() for i in order])
    placed = {i: piece.view(weights[i].shape) for i, piece in zip(order, pieces, strict=True)}
    return [placed[i] for i in range(len(weights))]


def _beyond(x: Tensor, mode: Mode) -> bool:
    """Whether autocast would ask oneDNN for an LSTM in a dtype that this processor does not compute in."""
    if (
        mode != "LSTM"
        or x.device.type != "cpu"
        or not torch.is_autocast_enabled("cpu")
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    onednn = torch.ops.mkldnn
    half = torch.get_autocast_dtype("cpu") == torch.float16
    return not (onednn._is_mkldnn_fp16_supported() if half else onednn._is_mkldnn_bf16_supported())


def one_by_one(how: Recurrence, x: Tensor, states: States, weights: Sequence[Tensor], training: bool) -> Result:
    """Each member by PyTorch's fused kernel, in order. Under autocast an LSTM keeps the weights' dtype on a CPU that lacks autocast's."""
    kernel = getattr(torch._VF, how.mode.lower())
    settings = (how.bias, how.num_layers, how.dropout, training, how.bidirectional, how.batch_first)
    full = _beyond(x, how.mode)
    if full:
        x, states = x.to(weights[0].dtype), tuple(state.to(weights[0].dtype) for state in states)
    outs, lasts = [], []
    with torch.autocast("cpu", enabled=False) if full else nullcontext():
        for one, *rest in zip(x.unbind(0), *(s.unbind(0) for s in states), *(w.unbind(0) for w in weights), strict=True):
            own, flat = [state.contiguous() for state in rest[: len(states)]], rest[len(states) :]
            out, *last = kernel(one, tuple(own) if len(own) > 1 else own[0], one_chunk(flat) if x.is_cuda else flat, *settings)
            outs.append(out)
            lasts.append(tuple(last))
    return outs, lasts


_outside: list[Callable[..., Result]] = []


def uncompiled() -> Callable[..., Result]:
    """`one_by_one` outside of the graphs of torch.compile, which cannot hold fused kernels; like nn.LSTM they break the graph."""
    if not _outside:  # made when needed: torch._dynamo takes seconds to import
        _outside.append(torch.compiler.disable(one_by_one))
    return _outside[0]


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(M, N, C) times (M, G, C) transposed, plus (M, G): (M, N, G)."""
    w = weight.transpose(1, 2)
    return torch.bmm(x, w) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, w)


def _direction(how: Recurrence, x: Tensor, states: States, weights: Sequence[Tensor], reverse: bool) -> tuple[Tensor, States]:
    """One layer in one direction: x (M, T, B, C), states (M, B, H) → (M, T, B, H) and the last states."""
    w_ih, w_hh = weights[:2]
    b_ih, b_hh = weights[2:4] if how.bias else (None, None)
    members, steps, batch, _ = x.shape
    once = b_ih if b_ih is None or b_hh is None or how.mode == "GRU" else b_ih + b_hh
    given = _product(x.reshape(members, steps * batch, -1), w_ih, once).unflatten(1, (steps, batch)).unbind(1)
    h, c = states[0], states[-1]
    recur = w_hh.transpose(1, 2)
    outs = []
    for gates in reversed(given) if reverse else given:
        if how.mode == "GRU":
            r, z, n = gates.chunk(3, -1)
            hr, hz, hn = _product(h, w_hh, b_hh).chunk(3, -1)
            n = torch.addcmul(n, torch.sigmoid(r + hr), hn).tanh()
            h = n + torch.sigmoid(z + hz) * (h - n)
        elif how.mode == "LSTM":
            i, f, g, o = torch.baddbmm(gates, h, recur).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * g.tanh()
            h = torch.sigmoid(o) * c.tanh()
            h = _product(h, weights[-1], None) if how.projected else h
        else:
            h = torch.baddbmm(gates, h, recur)
            h = h.tanh() if how.mode == "RNN_TANH" else h.relu()
        outs.append(h)
    if reverse:
        outs.reverse()
    return torch.stack(outs, 1), (h, c) if how.mode == "LSTM" else (h,)


def batched(how: Recurrence, x: Tensor, states: States, weights: Sequence[Tensor], training: bool) -> Result:
    """All members in one loop over time, unrolled where it is traced; a few batched products and element-wise steps at a time."""
    x = x.transpose(1, 2) if how.batch_first else x
    per = len(weights) // (how.num_layers * how.directions)
    lasts: list[States] = []
    for layer in range(how.num_layers):
        if layer and how.dropout:
            x = F.dropout(x, how.dropout, training)
        outs = []
        for direction in range(how.directions):
            k = layer * how.directions + direction
            own = tuple(state[:, k] for state in states)
            out, last = _direction(how, x, own, weights[k * per : (k + 1) * per], reverse=direction == 1)
            outs.append(out)
            lasts.append(last)
        x = outs[0] if len(outs) == 1 else torch.cat(outs, -1)
    x = x.transpose(1, 2) if how.batch_first else x
    ends = [torch.stack(each, 1).unbind(0) for each in zip(*lasts, strict=True)]
    return list(x.unbind(0)), list(zip(*ends, strict=True))
