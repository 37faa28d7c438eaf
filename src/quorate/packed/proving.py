"""What an example proves of a new ensemble: the shape of its output, that members are apart, and what each member gives alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.isolation import prove_inputs_apart, prove_isolation
from quorate.packed.layers.arrangement import spread
from quorate.packed.swapped import check_members


def check_batch(example: Tensor | None) -> None:
    """ValueError unless this is a batch of raw inputs, or none."""
    if example is not None and (not isinstance(example, Tensor) or example.dim() < 1 or example.shape[0] < 1):
        raise ValueError(
            f"example: expected a batch of raw inputs as a tensor, got {type(example).__name__}; pass x of shape (B, …)"
        )


@torch.no_grad()
def check_example(ensemble: PackedEnsemble, model: nn.Module, example: Tensor) -> None:
    """The shape of the model's output, and the proof of isolation."""
    single = copy.deepcopy(model).eval()(example)
    if not isinstance(single, Tensor) or single.dim() != 2 or single.shape[0] != example.shape[0]:
        came = tuple(single.shape) if isinstance(single, Tensor) else type(single).__name__
        raise ValueError(
            f"model: expected logits ({example.shape[0]}, classes) on the example, got {came}; "
            "end the model with flatten and a Linear layer"
        )
    names = [row.name for row in ensemble.explain()]
    traced = ensemble.program.member is not None
    inputs = example if traced else spread(example, ensemble.members)
    prove_isolation(ensemble.network, ensemble.members, names, ensemble.program.places, inputs)
    prove_inputs_apart(ensemble, example)
    if not traced:
        check_members(ensemble, example)
