"""Students cut from a teacher: fewer segments, a smaller input, fewer channels, of any network that torch.fx can follow.

    depth         of each run of segments that keep the shape ⌈depth · k⌉ stay (quorate.distil.depths)
    resolution    an average pooling before the first layer with weights (quorate.distil.resolution)
    width         of each n channels that can go the first ⌈width · n⌉ stay (quorate.graphs.widths)

in this order. No table of architectures is asked: stages and channels are found in the traced graph.

A ladder prices every combination by quorate.cost. Of sizes with as many multiply-adds the one with the most parameters stays. What cannot
be cut (a teacher whose stages have one block each has no smaller depth) is left out, with the reason.

Shapes: a student takes the teacher's inputs (B, *shape) and gives outputs of the teacher's shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from torch import Tensor, nn

from quorate.cost.counting import Cost, count
from quorate.distil.depths import shallower
from quorate.distil.redrawing import redraw_
from quorate.distil.resolution import coarser
from quorate.graphs.segments import Chain, chain, check_input, flattened
from quorate.graphs.widths import narrowed

DIVISORS = (1, 2, 4)


@dataclass(frozen=True)
class Cut:
    """What stays of a teacher.

    Attributes:
        depth: share of the segments of each run, in (0, 1].
        width: share of the channels of each set, in (0, 1].
        resolution: 1, 2 or 4: so many steps, or that many pixels in each direction, are averaged to one.

    Raises:
        ValueError: a share outside (0, 1], another divisor.
    """

    depth: float = 1.0
    width: float = 1.0
    resolution: int = 1

    def __post_init__(self) -> None:
        for name, value in (("depth", self.depth), ("width", self.width)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ValueError(f"{name}: expected a share in (0, 1], got {value!r}; pass for example 0.5")
        if type(self.resolution) is not int or self.resolution not in DIVISORS:
            raise ValueError(f"resolution: expected a divisor of 1, 2 or 4, got {self.resolution!r}; pass one of the three")


@dataclass(frozen=True)
class Size:
    """A size of student: what stays of the teacher, multiply-adds per input, scalars in parameters."""

    cut: Cut
    macs: int
    parameters: int


@dataclass(frozen=True)
class Ladder:
    """Sizes by rising multiply-adds, and why others were left out, one sentence each."""

    sizes: tuple[Size, ...]
    skipped: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[Size]:
        return iter(self.sizes)

    def __getitem__(self, place: int) -> Size:
        return self.sizes[place]


def cut(model: nn.Module, example: Tensor, size: Cut, seed: int = 0, start: Literal["fresh", "sliced"] = "fresh") -> Chain:
    """A student of the teacher's form, smaller.

    Args:
        model: the teacher, an eager module of one tensor to one tensor in any mode; it is left as it is.
        example: an input (B, *shape) of it; any values will do.
        size: what stays.
        seed: of the new weights; the global generators stay as they are.
        start: "fresh" draws all weights anew (quorate.distil.redrawing), "sliced" keeps the teacher's at what stays.

    Returns:
        A :class:`quorate.graphs.segments.Chain` in training mode; all its parameters are its own and are trained.

    Raises:
        ValueError: a model that cannot be traced or sliced into segments, another start, a negative seed; a depth or width below 1 at
            which nothing can go; a resolution that the network does not take.
    """
    if start not in ("fresh", "sliced"):
        raise ValueError(f'start: expected "fresh" or "sliced", got {start!r}; pass one of the two')
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed: expected an int of at least 0, got {seed!r}; pass for example 0")
    example = check_input(example)
    whole = chain(model, example)
    student = chain(sized(whole, example, size), example)
    if start == "fresh":
        redraw_(student, seed)
    return student.requires_grad_(True).train()


def reduced(whole: Chain, example: Tensor, depth: float, resolution: int) -> Chain:
    """A chain cut in depth and resolution. Raises ValueError as :func:`cut`."""
    made = shallower(whole, depth) if depth < 1 else whole
    return coarser(made, example, resolution) if resolution > 1 else made


def sized(whole: Chain, example: Tensor, size: Cut) -> nn.Module:
    """A chain cut to a size, in modules of its own or of the chain. Raises ValueError as :func:`cut`."""
    made = reduced(whole, example, size.depth, size.resolution)
    return narrowed(made, example, size.width) if size.width < 1 else made


def ladder(
    model: nn.Module,
    example: Tensor,
    depths: Sequence[float] = (0.5, 1.0),
    widths: Sequence[float] = (0.25, 0.375, 0.5, 0.75),
    resolutions: Sequence[int] = (1, 2),
    budget: float | None = None,
) -> Ladder:
    """The sizes of student to which a teacher can be cut, each combination of these.

    Args:
        model: the teacher; it is left as it is.
        example: an input (B, *shape) of it; sizes are counted on one row.
        depths: shares of the segments, in (0, 1].
        widths: shares of the channels, in (0, 1].
        resolutions: divisors 1, 2 or 4.
        budget: the most multiply-adds per input; None for no limit.

    Raises:
        ValueError: what :func:`cut` refuses of the model; a share or divisor that :class:`Cut` refuses; a budget
            that is not positive; no size at all, or none within the budget (the cheapest is named).
    """
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, (int, float)) or not budget > 0):
        raise ValueError(f"budget: expected a positive number of multiply-adds, got {budget!r}; pass None for no limit")
    wanted = [Cut(depth, width, resolution) for depth, resolution, width in product(depths, resolutions, widths)]
    example = check_input(example)
    found, skipped = _priced(chain(model, example), example, wanted)
    if not found:
        why = f": {skipped[0]}" if skipped else ""
        raise ValueError(
            f"depths, widths and resolutions: expected sizes that {type(model).__name__} can be cut to, got none{why}"
        )
    sizes: list[Size] = []
    for size in sorted(found, key=lambda size: (size.macs, -size.parameters)):
        if sizes and sizes[-1].macs == size.macs:
            skipped.append(
                f"{_named(size.cut)}: as many multiply-adds ({size.macs}) as {_named(sizes[-1].cut)}, not more parameters"
            )
        else:
            sizes.append(size)
    if budget is None:
        return Ladder(tuple(sizes), tuple(skipped))
    if sizes[0].macs > budget:
        raise ValueError(
            f"budget: expected at least {sizes[0].macs} multiply-adds, which the cheapest student has ({_named(sizes[0].cut)}), "
            f"got {budget}; raise it or pass smaller depths, widths or coarser resolutions"
        )
    skipped += [
        f"{_named(size.cut)}: {size.macs} multiply-adds, above the budget of {budget}" for size in sizes if size.macs > budget
    ]
    return Ladder(tuple(size for size in sizes if size.macs <= budget), tuple(skipped))


def _named(cut: Cut) -> str:
    return f"depth {cut.depth:g}, width {cut.width:g}, resolution {cut.resolution}"


def _priced(whole: Chain, example: Tensor, wanted: Sequence[Cut]) -> tuple[list[Size], list[str]]:
    """Every size that can be cut, and the reasons for the others."""
    bases: dict[tuple[float, int], nn.Module | str] = {}
    found: list[Size] = []
    skipped: list[str] = []
    warned = False
    for cut in wanted:
        key = cut.depth, cut.resolution
        if key not in bases:
            try:
                bases[key] = flattened(reduced(whole, example, *key), example)  # one module is copied faster than many
            except ValueError as error:
                bases[key] = str(error)
                skipped.append(f"depth {cut.depth:g}, resolution {cut.resolution}: {error}")
        base = bases[key]
        if isinstance(base, str):
            continue
        try:
            made: nn.Module = narrowed(base, example, cut.width) if cut.width < 1 else base
        except ValueError as error:
            skipped.append(f"{_named(cut)}: {error}")
            continue
        cost: Cost = count(made, example[:1])
        if not warned:
            cost.warn_if_incomplete(stacklevel=3)
            warned = True
        found.append(Size(cut, cost.macs, cost.parameters))
    return found, skipped
