"""Packed LSTM, GRU and RNN: M recurrent networks side by side (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

Every parameter is nn.LSTM's, nn.GRU's or nn.RNN's own with a leading axis for the members; each member's gates see its own input and states
only. The equations are in `recurrence.py`. Parameters start uniform within ± 1/√(a member's hidden size), as PyTorch's.

Shapes, with M members of input C, hidden size H and output O = H (of an LSTM with projection its size), D = 2 directions if bidirectional,
K = layers · D, written for batch_first (else T comes before the batch):

    layout                 input                                 output              h_0, h_n
    "channels"             (B, T, M · C); first (B, T, C)        (B, T, M · D · O)   (K, B, M · O)
    "rows"                 (M · B, T, C)                         (M · B, T, D · O)   (K, M · B, O)
    "spread", "gather"     (B, T, C) first; (B, T, M · C)        as rows             as rows

c_0 and c_n of an LSTM have H in place of O. Initial states (K, B, O) are taken for states that all members share.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.nn.utils.rnn import PackedSequence

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.options import Backends, checked_layout
from quorate.packed.layers.recurrence import GATES, Mode, Recurrence, States, batched, one_by_one, uncompiled
from quorate.packed.layers.widths import Alpha, exact, whole, widened


def parted(x: Tensor, axis: int, members: int) -> Tensor:
    """A view (M, …) of a tensor in which members lie one after the other along `axis`."""
    view: Tensor = x.unflatten(axis, (members, x.shape[axis] // members)).movedim(axis, 0)
    return view


class PackedRecurrent(nn.Module, PackedLayer, Backends):
    """What PackedLSTM, PackedGRU and PackedRNN share.

    Attributes:
        input_size, hidden_size, proj_size: packed widths, M · the members'; of a first layer the shared input's.
        backend: "loop", PyTorch's fused kernel for each member in turn, or "batched", one loop over time with batched products for all:
            GRUs and RNNs of small batches are faster so on a CPU, most LSTMs are not. Both agree to rounding and share one state dict.

    torch.compile: "loop" breaks the graph as nn.LSTM does; "batched" is traced whole, unrolled. torch.export: a dynamic batch and, as for
    nn.LSTM, a fixed T; in ONNX "loop" is M LSTM or GRU operators. On CUDA each call copies a member's weights into one piece, for cuDNN.
    """

    BACKENDS: ClassVar[tuple[str, ...]] = ("loop", "batched")

    def __init__(
        self,
        mode: Mode,
        input_size: int,
        hidden_size: int,
        members: int,
        alpha: Alpha,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        first: bool,
        last: bool,
        layout: Layout,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.members = self.groups = whole("members", members)
        widen, head = exact(alpha), Fraction(members)
        into, hidden = whole("input_size", input_size), whole("hidden_size", hidden_size)
        if isinstance(proj_size, bool) or not isinstance(proj_size, int) or not 0 <= proj_size < hidden:
            raise ValueError(
                f"proj_size: expected 0 or a size under hidden_size = {hidden}, got {proj_size!r}; 0 projects nothing"
            )
        if isinstance(dropout, bool) or not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
            raise ValueError(
                f"dropout: expected a probability in [0, 1], got {dropout!r}; it acts between layers, 0 drops nothing"
            )
        self.input_size = into if first else widened("input_size", into, widen, members)
        self.hidden_size = widened("hidden_size", hidden, head if last and not proj_size else widen, members)
        self.proj_size = widened("proj_size", proj_size, head if last else widen, members) if proj_size else 0
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"proj_size: expected less than the member's hidden size {self.hidden_size // members}, got {self.proj_size // members} "
                "of a last layer; raise alpha or hidden_size"
            )
        self.first, self.last, self.layout = bool(first), bool(last), checked_layout(layout, bool(first))
        self.num_layers, self.bias, self.batch_first = whole("num_layers", num_layers), bool(bias), bool(batch_first)
        self.dropout, self.bidirectional, self.mode, self.backend = float(dropout), bool(bidirectional), mode, self.BACKENDS[0]
        how, h = self.how, self.hidden_size // members
        out, fed = self.proj_size // members or h, self.input_size if first else self.input_size // members
        for name in how.names():
            kind, layer = name.removesuffix("_reverse").split("_l")
            width = fed if layer == "0" else out * how.directions
            sizes = {"weight_ih": (GATES[mode] * h, width), "weight_hh": (GATES[mode] * h, out), "weight_hr": (out, h)}
            shape = (members, *sizes.get(kind, (GATES[mode] * h,)))
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def how(self) -> Recurrence:
        """The settings that every member has."""
        return Recurrence(
            self.mode, self.num_layers, self.bias, self.batch_first, self.dropout, self.bidirectional, self.proj_size > 0
        )

    def reset_parameters(self) -> None:
        """Draw all parameters anew, uniform within ± 1/√(a member's hidden size)."""
        bound = 1 / math.sqrt(self.hidden_size // self.members)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    @classmethod
    def fan_in(cls, module: nn.Module, name: str) -> int:  # noqa: ARG003
        """The hidden size, which gives all parameters their scale."""
        assert isinstance(module, nn.RNNBase)
        return module.hidden_size

    @classmethod
    def _like(cls, module: nn.RNNBase, packing: Packing, **more: Any) -> Self:
        names = ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
        options = {name: getattr(module, name) for name in names} | {"first": packing.first, "last": packing.last} | more
        weight: Tensor = module.get_parameter("weight_ih_l0")
        sizes, where = (module.input_size, module.hidden_size), {"device": weight.device, "dtype": weight.dtype}
        layer: Self = skip_init(cls, *sizes, packing.members, packing.alpha, **options, **where)
        return layer

    def _plain(self, cls: Callable[..., nn.RNNBase], **more: Any) -> nn.RNNBase:
        into = self.input_size if self.first else self.input_size // self.members
        options = {name: getattr(self, name) for name in ("num_layers", "bias", "batch_first", "bidirectional")} | more
        weight = self._weight("weight_ih_l0")
        plain = cls(into, self.hidden_size // self.members, **options, device="meta", dtype=weight.dtype)
        plain.to_empty(device=weight.device)
        plain.dropout = self.dropout  # afterwards, for PyTorch warns of a dropout that a single layer has no place for
        return plain

    def _weight(self, name: str) -> Tensor:
        found: Tensor = getattr(self, name)
        return found

    def member(self, m: int) -> dict[str, Tensor]:
        """Views of member m's parameters, named as the plain layer's."""
        return {name: self._weight(name)[m] for name in self.how.names()}

    def _parted(self, input: Tensor, layout: Layout) -> Tensor:
        """The members' inputs as a view (M, …)."""
        if isinstance(input, PackedSequence):
            raise ValueError(
                f"{type(self).__name__}: expected a padded tensor, got a PackedSequence; pad it with "
                "torch.nn.utils.rnn.pad_packed_sequence and pick each sequence's last valid step from the output"
            )
        axis, rows = 0 if self.batch_first else 1, layout == "rows"
        width = self.input_size // self.members if rows and not self.first else self.input_size
        if input.dim() != 3 or input.shape[2] != width or (rows and input.shape[axis] % self.members):
            batch = f"{self.members} · B" if rows else "B"
            order = f"({batch}, T, {width})" if self.batch_first else f"(T, {batch}, {width})"
            raise ValueError(
                f"{type(self).__name__}: expected an input {order} in layout {layout!r}, got {tuple(input.shape)}; "
                "add a batch axis where there is none, and check layout and batch_first"
            )
        if self.first and not rows:
            return input.expand(self.members, *input.shape)
        return parted(input, axis if rows else 2, self.members)

    def _state(self, name: str, state: object, size: int, batch: int, layout: Layout) -> Tensor:
        """An initial state as a view (M, K, B, size)."""
        count, members, wide = self.num_layers * self.how.directions, self.members, layout == "channels"
        own = (count, batch, members * size) if wide else (count, members * batch, size)
        shape = tuple(state.shape) if isinstance(state, Tensor) else ()
        if isinstance(state, Tensor) and shape == own:
            return parted(state, 2 if wide else 1, members)
        if isinstance(state, Tensor) and shape == (count, batch, size):
            return state.expand(members, *shape)
        raise ValueError(
            f"{name}: expected {own} in layout {layout!r}, or {(count, batch, size)} for all members, got "
            f"{shape if isinstance(state, Tensor) else type(state).__name__}; pass None to start from 0"
        )

    def _states(self, x: Tensor, hx: object, layout: Layout) -> States:
        """Initial states of all members, from what was given or 0."""
        lstm, batch = self.mode == "LSTM", x.shape[1 if self.batch_first else 2]
        hidden = self.hidden_size // self.members
        sizes = (self.proj_size // self.members or hidden, hidden)[: 2 if lstm else 1]
        if hx is None:
            count = self.num_layers * self.how.directions
            return tuple(x.new_zeros(count, batch, size).expand(self.members, count, batch, size) for size in sizes)
        if lstm and (not isinstance(hx, tuple | list) or len(hx) != 2):
            raise ValueError(f"hx: expected the pair (h_0, c_0) for an LSTM, got {type(hx).__name__}; pass None to start from 0")
        given = tuple(hx) if lstm and isinstance(hx, tuple | list) else (hx,)
        return tuple(self._state(*each, batch, layout) for each in zip(("h_0", "c_0"), given, sizes, strict=False))

    def _run(self, input: Tensor, hx: object, layout: Layout | None) -> tuple[Tensor, States]:
        used = self.layout if layout is None else checked_layout(layout, self.first)
        x = self._parted(input, used)
        states = self._states(x, hx, used)
        weights = [self._weight(name) for name in self.how.names()]
        run = batched if self.backend == "batched" else uncompiled() if torch.compiler.is_dynamo_compiling() else one_by_one
        outs, lasts = run(self.how, x, states, weights, self.training)
        if used == "channels":
            return torch.cat(outs, -1), tuple(torch.cat(last, -1) for last in zip(*lasts, strict=True))
        axis = 0 if self.batch_first else 1
        return torch.cat(outs, axis), tuple(torch.cat(last, 1) for last in zip(*lasts, strict=True))

    def extra_repr(self) -> str:
        return (
            f"input_size={self.input_size}, hidden_size={self.hidden_size}, members={self.members}, num_layers={self.num_layers}, "
            f"bias={self.bias}, batch_first={self.batch_first}, dropout={self.dropout}, bidirectional={self.bidirectional}, "
            f"proj_size={self.proj_size}, first={self.first}, last={self.last}, layout={self.layout!r}, backend={self.backend!r}"
        )


class PackedLSTM(PackedRecurrent):
    """M LSTMs. Sizes are those of the single network.

    Args:
        input_size, hidden_size, proj_size: widths of the single network's layer; α times each must divide by M.
        members: M.
        alpha: widening α.
        num_layers, bias, batch_first, dropout, bidirectional: as in nn.LSTM; every member drops out for itself.
        first: reads the shared input. last: each member gives the single network's width, proj_size or else hidden_size.
        layout: see the module's table.

    Raises:
        ValueError: a width that does not divide (it names the nearest that do), an illegal setting, an input or states of another shape, or
            a PackedSequence.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        members: int,
        alpha: Alpha = 2,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, proj_size, first, last, layout, device, dtype)
        super().__init__("LSTM", input_size, hidden_size, members, alpha, *options)

    @classmethod
    def like(cls, module: nn.LSTM, packing: Packing) -> Self:
        """The packed layer for an nn.LSTM, uninitialised."""
        return cls._like(module, packing, proj_size=module.proj_size)

    def plain(self) -> nn.RNNBase:
        """One member's nn.LSTM, uninitialised."""
        return self._plain(nn.LSTM, proj_size=self.proj_size // self.members)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, layout: Layout | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """input, (h_0, c_0) → output, (h_n, c_n); see the module's table."""
        output, (h, c) = self._run(input, hx, layout)
        return output, (h, c)


class PackedGRU(PackedRecurrent):
    """M GRUs. Arguments and errors as in PackedLSTM, without projection."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        members: int,
        alpha: Alpha = 2,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = (num_layers, bias, batch_first, dropout, bidirectional, 0, first, last, layout, device, dtype)
        super().__init__("GRU", input_size, hidden_size, members, alpha, *options)

    @classmethod
    def like(cls, module: nn.GRU, packing: Packing) -> Self:
        """The packed layer for an nn.GRU, uninitialised."""
        return cls._like(module, packing)

    def plain(self) -> nn.RNNBase:
        """One member's nn.GRU, uninitialised."""
        return self._plain(nn.GRU)

    def forward(self, input: Tensor, hx: Tensor | None = None, layout: Layout | None = None) -> tuple[Tensor, Tensor]:
        """input, h_0 → output, h_n; see the module's table."""
        output, (h,) = self._run(input, hx, layout)
        return output, h


class PackedRNN(PackedRecurrent):
    """M Elman networks of tanh or ReLU. Arguments and errors as in PackedLSTM, without projection; `nonlinearity` as in nn.RNN."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        members: int,
        alpha: Alpha = 2,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        first: bool = False,
        last: bool = False,
        layout: Layout = "channels",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f'nonlinearity: expected "tanh" or "relu", got {nonlinearity!r}; choose one of both')
        options = (num_layers, bias, batch_first, dropout, bidirectional, 0, first, last, layout, device, dtype)
        super().__init__("RNN_TANH" if nonlinearity == "tanh" else "RNN_RELU", input_size, hidden_size, members, alpha, *options)
        self.nonlinearity = nonlinearity

    @classmethod
    def like(cls, module: nn.RNN, packing: Packing) -> Self:
        """The packed layer for an nn.RNN, uninitialised."""
        return cls._like(module, packing, nonlinearity=module.nonlinearity)

    def plain(self) -> nn.RNNBase:
        """One member's nn.RNN, uninitialised."""
        return self._plain(nn.RNN, nonlinearity=self.nonlinearity)

    def forward(self, input: Tensor, hx: Tensor | None = None, layout: Layout | None = None) -> tuple[Tensor, Tensor]:
        """input, h_0 → output, h_n; see the module's table."""
        output, (h,) = self._run(input, hx, layout)
        return output, h
