"""Options that packed linear and convolution layers share: γ by place, the layout, and the backend that computes the products.

    place      first: reads the shared input, γ = 1; last: M times the single network's outputs, γ = 1
    layout     "spread" reads the shared input, so of a first layer only; "gather" reads channels, so never of one
    backend    a way to compute the same numbers, in the same order, from the same state dict (they agree to rounding)

γ > 1 in interior layers only: Laurent et al., ICLR 2023, arXiv:2210.09184, §3.
"""

from __future__ import annotations

from typing import ClassVar, Self, cast, get_args

from quorate.packed.layers.arrangement import Layout
from quorate.packed.layers.widths import whole

LAYOUTS: tuple[str, ...] = get_args(Layout)


def checked_gamma(gamma: int, first: bool, last: bool) -> int:
    """γ. Raises ValueError unless it is a positive int, and 1 for a first or last layer."""
    if whole("gamma", gamma) > 1 and (first or last):
        place = "first" if first else "last"
        raise ValueError(f"gamma: expected 1 for a {place} layer, got {gamma}; subgroups are for interior layers only")
    return gamma


def checked_layout(layout: object, first: bool) -> Layout:
    """The layout. Raises ValueError for one that there is not, or that a layer in this place cannot have."""
    if layout not in LAYOUTS:
        raise ValueError(
            f"layout: expected one of {', '.join(LAYOUTS)}, got {layout!r}; choose what the neighbours give and take"
        )
    if layout == "gather" and first:
        raise ValueError("layout: expected channels, rows or spread for a first layer, got 'gather'; a shared input is 'spread'")
    if layout == "spread" and not first:
        raise ValueError("layout: expected channels, rows or gather, got 'spread' for a layer that is not first; pass first=True")
    return cast(Layout, layout)


class Backends:
    """A layer with more than one way to compute its output; a mix-in.

    Attributes:
        BACKENDS: the names of the ways, the default first.
        backend: the one in use; no part of the state dict.
    """

    BACKENDS: ClassVar[tuple[str, ...]]
    backend: str

    def set_backend_(self, name: str) -> Self:
        """Use this backend from now on. Raises ValueError for a name that is not in BACKENDS."""
        if name not in self.BACKENDS:
            kind = type(self).__name__
            raise ValueError(f"{kind}: expected a backend of {', '.join(self.BACKENDS)}, got {name!r}; see {kind}.BACKENDS")
        self.backend = name
        return self
