"""Stochastic depth: residual branches dropped at random in training (Huang et al., ECCV 2016, arXiv:1603.09382, eq. 2), per member.

    y = x · d / (1 − p),   d ~ Bernoulli(1 − p)      with `scale`, as in torchvision and timm; without it y = x · d

    mode "row"      one draw for each row of a batch, and of a packed layer for each row of each member
    mode "batch"    one draw for a whole batch, and of a packed layer one for each member

Outside of training, and for p = 0, y = x. Draws come from torch's global generator of the device.

Shapes: any x (B, …); packed channels (B, M · C, …), or tokens (B, …, M · C) with axis = −1; packed rows (M · B, …). The output is alike.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from torch import Tensor, nn

from quorate.packed.layers.arrangement import Layout, PackedLayer, Packing
from quorate.packed.layers.widths import whole

Mode = Literal["row", "batch"]


def draws(like: Tensor, size: tuple[int, ...], p: float, scale: bool) -> Tensor:
    """0 with probability p, else 1 or, if `scale`, 1 / (1 − p); of this size, in the dtype and on the device of `like`."""
    kept = like.new_empty(size).bernoulli_(1 - p)
    return kept.div_(1 - p) if scale and p < 1 else kept


def settings_of(module: nn.Module) -> tuple[float, bool, Mode]:
    """(p, scale, mode) of a StochasticDepth of this package or of torchvision, or of timm's DropPath."""
    package, name = type(module).__module__.partition(".")[0], type(module).__name__
    found: Any = module
    if isinstance(module, StochasticDepth):
        return module.p, module.scale, module.mode
    if (package, name) == ("torchvision", "StochasticDepth"):
        return found.p, True, found.mode
    if (package, name) == ("timm", "DropPath"):
        return found.drop_prob or 0.0, found.scale_by_keep, "row"
    raise ValueError(
        f"module: expected StochasticDepth of quorate or torchvision, or timm's DropPath, got {type(module).__qualname__} "
        f"of {type(module).__module__}; put quorate's StochasticDepth in its place"
    )


class StochasticDepth(nn.Module):
    """Drops rows of a residual branch in training.

    Args:
        p: probability of a drop, in [0, 1].
        scale: whether what is kept is divided by 1 − p.
        mode: "row", a draw for each row, or "batch", one for all.

    Raises ValueError for another p or mode.
    """

    mode: Mode

    def __init__(self, p: float, scale: bool = True, mode: Mode = "row") -> None:
        super().__init__()
        if isinstance(p, bool) or not isinstance(p, int | float) or not 0 <= p <= 1:
            raise ValueError(f"p: expected a probability in [0, 1], got {p!r}; 0 drops nothing")
        if mode not in ("row", "batch"):
            raise ValueError(f'mode: expected "row" or "batch", got {mode!r}; "row" draws for each row of a batch')
        self.p, self.scale, self.mode = float(p), bool(scale), mode

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) → (B, …)."""
        if not self.training or self.p == 0:
            return x
        rows = x.shape[0] if self.mode == "row" else 1
        return x * draws(x, (rows, *(1,) * (x.dim() - 1)), self.p, self.scale)

    def extra_repr(self) -> str:
        return f"p={self.p}, scale={self.scale}, mode={self.mode!r}"


class PackedStochasticDepth(StochasticDepth, PackedLayer):
    """M stochastic depths, each member with draws of its own.

    Args:
        p, scale, mode: as in StochasticDepth.
        members: M.
        layout: "channels" or "rows".
        axis: where channels hold the members: 1, or −1 for tokens (B, …, M · C). Rows do not need it.

    Raises:
        ValueError: an illegal argument, or an input whose channels or rows do not divide among the members.
    """

    def __init__(
        self,
        p: float,
        members: int,
        scale: bool = True,
        mode: Mode = "row",
        layout: Layout = "channels",
        axis: Literal[1, -1] = 1,
    ) -> None:
        super().__init__(p, scale, mode)
        if axis not in (1, -1) or isinstance(axis, bool):
            raise ValueError(f"axis: expected 1 or -1, got {axis!r}; channels are in dimension 1, those of tokens in the last")
        self.members = self.groups = whole("members", members)
        self.layout, self.axis = layout, axis
        self._rows(None)

    @classmethod
    def like(cls, module: nn.Module, packing: Packing) -> Self:
        """The packed layer for a StochasticDepth (also torchvision's) or a timm DropPath, with axis = 1."""
        p, scale, mode = settings_of(module)
        return cls(p, packing.members, scale, mode)

    def plain(self) -> StochasticDepth:
        """One member's layer."""
        return StochasticDepth(self.p, self.scale, self.mode)

    def member(self, m: int) -> dict[str, Tensor]:  # noqa: ARG002
        """Nothing: there are no parameters."""
        return {}

    def _rows(self, layout: Layout | None) -> bool:
        used = self.layout if layout is None else layout
        if used not in ("channels", "rows"):
            raise ValueError(f'layout: expected "channels" or "rows", got {used!r}; stochastic depth gives what it takes')
        return used == "rows"

    def forward(self, x: Tensor, layout: Layout | None = None) -> Tensor:
        """Channels → channels, or rows → rows."""
        rows = self._rows(layout)
        axis = 0 if rows else self.axis % x.dim()
        if x.dim() <= axis or x.shape[axis] % self.members:
            what = "(M · B, …)" if rows else "(B, M · C, …)" if self.axis == 1 else "(B, …, M · C)"
            raise ValueError(
                f"PackedStochasticDepth: expected an input {what} of M = {self.members}, got {tuple(x.shape)}; "
                f"check layout and axis, which are {'rows' if rows else 'channels'} and {self.axis}"
            )
        if not self.training or self.p == 0:
            return x
        if rows and self.mode == "row":
            return super().forward(x)
        each = x.shape[axis] // self.members
        size = (1 if rows or self.mode == "batch" else x.shape[0], self.members)
        kept = draws(x, size, self.p, self.scale).unsqueeze(-1).expand(*size, each).flatten(1)
        shape = [1] * x.dim()
        shape[0], shape[axis] = kept.shape[0], kept.shape[1]
        return x * kept.reshape(shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, members={self.members}, layout={self.layout!r}, axis={self.axis}"
