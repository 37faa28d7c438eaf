"""From a model to a packed ensemble (Laurent et al., Packed-Ensembles, ICLR 2023, arXiv:2210.09184, §3).

The model is traced, each step is checked by its rule, and Linear, Conv2d and BatchNorm are replaced by packed ones: M members of
α/M times the model's width, side by side in its own graph.

Shapes: the ensemble takes what the model takes, (B, …), and gives (M, B, classes).
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from quorate.packed.build import Plan, build, check_plain, finished, plan
from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.initial import fresh_
from quorate.packed.isolation import prove_isolation
from quorate.packed.members import put_
from quorate.packed.widths import Alpha, exact, whole

INITS = ("fresh", "copy")


class LooksTrainedWarning(UserWarning):
    """`pack` drew fresh weights for a model that looks trained."""


def looks_trained(model: nn.Module) -> bool:
    """Whether a BatchNorm of the model has seen batches. Models without BatchNorm never look trained."""
    counts = [b for name, b in model.named_buffers() if name.split(".")[-1] == "num_batches_tracked" and not b.is_meta]
    return any(bool(count > 0) for count in counts)


@torch.no_grad()
def _check_example(ensemble: PackedEnsemble, model: nn.Module, plan: Plan, example: Tensor) -> None:
    """The shape of the model's output, and the proof of isolation."""
    if not isinstance(example, Tensor) or example.dim() < 1 or example.shape[0] < 1:
        raise ValueError(
            f"example: expected a batch of raw inputs as a tensor, got {type(example).__name__}; pass x of shape (B, …)"
        )
    single = copy.deepcopy(model).eval()(example)
    if single.dim() != 2 or single.shape[0] != example.shape[0]:
        raise ValueError(
            f"model: expected logits ({example.shape[0]}, classes) on the example, got {tuple(single.shape)}; "
            "end the model with flatten and a Linear layer"
        )
    prove_isolation(ensemble, plan.wide, example)


def pack(
    model: nn.Module,
    members: int = 4,
    alpha: Alpha = 2,
    gamma: int = 1,
    init: str = "fresh",
    example: Tensor | None = None,
) -> PackedEnsemble:
    """Pack M members of α/M times the width of `model` into one network. `model` is untouched.

    Takes models that torch.fx can trace, made of Linear, Conv2d, BatchNorm, Dropout, activations, pooling, padding, flatten and
    additions; every other step is refused by name. Modules without parameters before the first layer (normalisation)
    stay as they are. Parameters and MACs against the model: interior layers α²/(M · γ), first layers α, last layers α.

    Args:
        model: a plain model, (B, …) → logits (B, classes).
        members: M ≥ 1.
        alpha: α > 0; α · every width must divide by M (times the layer's own groups). √M keeps the model's size.
        gamma: γ ≥ 1, for interior layers only; a convolution lowers it where fewer than 64 channels per group would be left.
            A Linear takes it exactly. `explain()` tells.
        init: "fresh" draws each group anew at the scale of the layer it replaces (`initial.py`), from torch's global generator;
            "copy" starts every member as the given model, for α = M and γ = 1 only.
        example: a batch of raw inputs. With it the output's shape is checked and isolation is proved by poisoning each member
            with NaN (on a copy, in evaluation mode). Without it the rules for each step stand alone.

    Returns: a PackedEnsemble in the modes of `model` and with its parameters' requires_grad, dtype and device.

    Raises:
        ValueError: a step that cannot be packed, widths that do not divide (it names the nearest that do), a shared or
            twice-used module, an untraceable model, or an illegal argument.

    Warns: LooksTrainedWarning if init is "fresh" and a BatchNorm of `model` has seen batches.

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
    steps = plan(model, members, widen)
    built = build(steps, members, widen, gamma)
    if init == "fresh" and looks_trained(model):
        warnings.warn(
            f'{type(model).__name__} looks trained (a BatchNorm has seen batches), but its weights are not used: init="fresh" '
            'draws new ones; use init="copy" with alpha = members to start from it',
            LooksTrainedWarning,
            stacklevel=2,
        )
    for _, packed, layer in built.pairs:
        if init == "fresh":
            fresh_(packed, layer)
        else:
            for m in range(members):
                put_(packed, m, members, layer)
    ensemble = finished(built, steps, members, alpha, gamma)
    if example is not None:
        _check_example(ensemble, model, steps, example)
    return ensemble
