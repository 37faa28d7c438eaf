"""From a model to a packed ensemble (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

M members of α/M times the model's width, side by side in its own graph.

Shapes: the ensemble takes what the model takes, (B, …), and gives (M, B, classes).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from fractions import Fraction

from torch import Tensor, nn

from quorate.packed.build import Pairs, build, check_plain, finished, plan
from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.initial import fixed_scale, fresh_
from quorate.packed.layers.widths import Alpha, exact, whole
from quorate.packed.members import put_
from quorate.packed.proving import check_batch, check_example
from quorate.packed.swapped import swapped
from quorate.packed.trace import Untraceable

INITS = ("fresh", "copy")


class LooksTrainedWarning(UserWarning):
    """`pack` drew fresh weights for a model that looks trained."""


def looks_trained(model: nn.Module) -> bool:
    """Whether a BatchNorm of the model has seen batches. Models without BatchNorm never look trained."""
    counts = [b for name, b in model.named_buffers() if name.split(".")[-1] == "num_batches_tracked" and not b.is_meta]
    return any(bool(count > 0) for count in counts)


def pack(
    model: nn.Module,
    members: int = 4,
    alpha: Alpha = 2,
    gamma: int = 1,
    init: str = "fresh",
    example: Tensor | None = None,
    skip: Collection[str] = (),
) -> PackedEnsemble:
    """Pack M members of α/M times the width of `model` into one network. `model` is untouched.

    The model is traced by torch.fx and packed step by step; one that cannot be traced is packed module by module, which takes an
    example (`swapped.py`). Linear, convolutions, norms, attention, Transformer, embedding and recurrent layers are replaced; bare
    parameters are widened; concatenations, reshapes, attention heads are followed member by member; other modules: see
    `register_packing`. Modules without parameters before the first layer (normalisation) stay as they are, and optional arguments
    of forward keep their defaults. Parameters and MACs against the model: interior layers α²/(M · γ), first and last layers α.

    Args:
        model: a plain model, (B, …) → logits (B, classes).
        members: M ≥ 1.
        alpha: α > 0; α · every width must divide by M (times the layer's own groups; attention: α/M · heads must be whole). √M keeps
            the model's size; α = M is a Deep Ensemble in one pass.
        gamma: γ ≥ 1, for interior layers only; a convolution lowers it where fewer than 64 channels per group would be left.
            A Linear takes it exactly. `explain()` tells.
        init: "fresh" draws each group anew at the scale of the layer it replaces (`initial.py`), from torch's global generator;
            "copy" starts every member as the given model, for α = M and γ = 1 only.
        example: a batch of raw inputs. With it all shapes are known, the output's is checked, and isolation is proved by poisoning each
            member with NaN (on a copy, in evaluation mode). Without it the rules for each step stand alone.
        skip: names of modules to keep whole: each member gets a copy of its own, which is not stepped into and keeps its values. With
            parameters of their own they need α = M. One that reads the raw input and has no parameters to train is shared by all.

    Returns: a PackedEnsemble in the modes of `model` and with its parameters' requires_grad, dtype and device.

    Raises:
        ValueError: a step that cannot be packed, widths that do not divide (it names the nearest that do), a shared or
            twice-used module, tied weights, or an illegal argument.

    Warns: LooksTrainedWarning if init is "fresh" and a norm of `model` has seen batches.

    Source: Laurent et al., Packed-Ensembles for Efficient Uncertainty Estimation, ICLR 2023, arXiv:2210.09184, §3.
    """
    check_plain("model", model)
    members, gamma, widen = whole("members", members), whole("gamma", gamma), exact(alpha)
    if init not in INITS:
        raise ValueError(f'init: expected "fresh" or "copy", got {init!r}; pass one of the two')
    if init == "copy" and (widen != members or gamma != 1):
        raise ValueError(
            f'init: "copy" expects alpha = members = {members} and gamma = 1, so that each member has the model\'s widths, '
            f'got alpha {alpha} and gamma {gamma}; change them or use init="fresh"'
        )
    check_batch(example)
    ensemble, pairs = _converted(model, members, widen, alpha, gamma, example, skip)
    if init == "fresh" and looks_trained(model):
        warnings.warn(
            f'{type(model).__name__} looks trained (a BatchNorm has seen batches), but its weights are not used: init="fresh" '
            'draws new ones; use init="copy" with alpha = members to start from it',
            LooksTrainedWarning,
            stacklevel=2,
        )
    fixed = fixed_scale(layer for _, _, layer in pairs) if init == "fresh" else None
    for _, packed, layer in pairs:
        if init == "fresh":
            fresh_(packed, layer, fixed)
        else:
            for m in range(members):
                put_(packed, m, layer)
    if example is not None:
        check_example(ensemble, model, example)
    return ensemble


def _converted(
    model: nn.Module, members: int, widen: Fraction, alpha: Alpha, gamma: int, example: Tensor | None, skip: Collection[str]
) -> tuple[PackedEnsemble, Pairs]:
    """The ensemble, uninitialised, with what each of its layers replaces."""
    try:
        steps = plan(model, members, widen, example, skip)
    except Untraceable:
        if example is None:
            raise
        return swapped(model, members, widen, alpha, gamma, example, skip)
    built = build(steps, members, widen, gamma)
    return finished(built, steps, members, alpha, gamma), built.pairs
