"""A chain with fewer segments: of each run of segments that keep the shape, ⌈depth · k⌉ stay, evenly spread.

A run is a row of segments with weights whose tensor has the same shape before and after; the segment that changes the shape before it
always stays. In a run that repeats a pattern (attention, then an MLP) whole patterns stay or go. Of k patterns the m = ⌈depth · k⌉
that stay are

    ⌈i · k / m⌉, i = 1 … m        the last always, so that what ends a stage (a last normalisation) is kept

Layers of an nn.TransformerEncoder are thinned in the same way, stacked recurrent layers (num_layers = k) from the first on, which
reads the inputs: layers ⌈i · k / m⌉ − ⌈k / m⌉ + 1.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.rnn import RNNBase

from quorate.distil.resolution import layered
from quorate.graphs.segments import Chain
from quorate.graphs.tracing import undisturbed
from quorate.graphs.widths import share


def spread(count: int, depth: float) -> list[int]:
    """Which of `count` stay, 0 … count − 1: ⌈depth · count⌉ evenly spread ones, the last among them."""
    kept = share(depth, count)
    return [-(-i * count // kept) - 1 for i in range(1, kept + 1)]


def signature(segment: nn.Module) -> tuple[str, ...]:
    """The kinds of the layers with weights in a segment, by which a pattern is recognised."""
    if not isinstance(segment, fx.GraphModule):
        return (type(segment).__name__,)
    steps = []
    for node in segment.graph.nodes:
        if node.op == "call_module":
            steps.append(type(segment.get_submodule(str(node.target))).__name__)
        elif node.op in ("call_function", "call_method"):
            steps.append(str(getattr(node.target, "__name__", node.target)))
    return tuple(steps)


def _stacked(module: nn.Module) -> int:
    """How many layers a module has that are thinned inside it; 0 if it is no stack."""
    if isinstance(module, nn.TransformerEncoder):
        return len(module.layers)
    return module.num_layers if isinstance(module, RNNBase) and module.num_layers > 1 else 0


def runs(chain: Chain) -> list[range]:
    """The rows of segments with weights that keep the shape of their tensor; those that are stacks themselves are in none."""
    shapes = [chain.given.shape, *(boundary.shape for boundary in chain.boundaries)]
    found: list[range] = []
    for i, segment in enumerate(list(chain.segments)[:-1]):
        if shapes[i] != shapes[i + 1] or not layered(segment) or any(_stacked(module) for module in segment.modules()):
            continue
        if found and found[-1].stop == i:
            found[-1] = range(found[-1].start, i + 1)
        else:
            found.append(range(i, i + 1))
    return found


def pattern(signatures: list[tuple[str, ...]]) -> int:
    """The length of the shortest pattern that, repeated, makes the row; 1 if there is none. The last may end in more steps."""
    for period in range(1, len(signatures) // 2 + 1):
        if len(signatures) % period == 0 and all(
            later[: len(first)] == first for first, later in zip(signatures, signatures[period:], strict=False)
        ):
            return period
    return 1


def shallower(chain: Chain, depth: float) -> Chain:
    """A copy of the chain with fewer segments and recurrent layers. Raises ValueError where nothing can go."""
    made = copy.deepcopy(chain)
    gone: set[int] = set()
    for run in runs(made):
        period = pattern([signature(made.segments[i]) for i in run])
        staying = spread(len(run) // period, depth)
        gone |= {run.start + place for place in range(len(run)) if place // period not in staying}
    thinned = False
    with undisturbed(made, seed=0):
        for name, module in list(made.named_modules()):
            if isinstance(module, nn.TransformerEncoder):
                staying = spread(len(module.layers), depth)
                thinned |= len(staying) < len(module.layers)
                module.layers = nn.ModuleList([module.layers[place] for place in staying])
                module.num_layers = len(staying)
            elif isinstance(module, RNNBase) and (fewer := _fewer_layers(module, depth)) is not None:
                made.set_submodule(name, fewer)
                thinned = True
    if depth < 1 and not gone and not thinned:
        raise ValueError(
            f"depth: expected segments that can go at {depth}, got none: each stage has one layer or block; leave the depth at 1"
        )
    kept = [i for i in range(len(made.segments)) if i not in gone]
    return Chain([made.segments[i] for i in kept], [made.boundaries[i] for i in kept[:-1]], made.given)


@torch.no_grad()
def _fewer_layers(module: RNNBase, depth: float) -> RNNBase | None:
    """A recurrent module with some of the stacked layers; None if all stay."""
    last = spread(module.num_layers, depth)
    kept = [place - last[0] for place in last]  # the first layer reads the inputs
    if len(kept) == module.num_layers:
        return None
    kind_of: Any = type(module)
    made: RNNBase = kind_of(
        module.input_size,
        module.hidden_size,
        len(kept),
        bias=module.bias,
        batch_first=module.batch_first,
        dropout=module.dropout if len(kept) > 1 else 0.0,
        bidirectional=module.bidirectional,
        device=module.weight_ih_l0.device,
        dtype=module.weight_ih_l0.dtype,
        **({"proj_size": module.proj_size} if module.proj_size else {}),
    )
    values = dict(module.named_parameters())
    for name, parameter in made.named_parameters():
        kind, _, rest = name.rpartition("_l")
        place, underscore, reverse = rest.partition("_")
        parameter.copy_(values[f"{kind}_l{kept[int(place)]}{underscore}{reverse}"])
    return made
