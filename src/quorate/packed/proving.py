"""What an example proves of a new ensemble: the shape of its output, that members are apart, and what each member gives alone."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.isolation import prove_inputs_apart, prove_isolation
from quorate.packed.layers.arrangement import spread
from quorate.packed.members import alone
from quorate.packed.trace import WAY_OUT


def check_batch(example: Tensor | None) -> None:
    """ValueError unless this is a batch of raw inputs, or none."""
    if example is not None and (not isinstance(example, Tensor) or example.dim() < 1 or example.shape[0] < 1):
        raise ValueError(
            f"example: expected a batch of raw inputs as a tensor, got {type(example).__name__}; pass x of shape (B, …)"
        )


@torch.no_grad()
def check_example(ensemble: PackedEnsemble, model: nn.Module, example: Tensor) -> None:
    """The shape of the model's output, and the proof of isolation."""
    single = copy.deepcopy(model).eval()(example.clone())
    if not isinstance(single, Tensor) or single.dim() != 2 or single.shape[0] != example.shape[0]:
        came = tuple(single.shape) if isinstance(single, Tensor) else type(single).__name__
        raise ValueError(
            f"model: expected logits ({example.shape[0]}, classes) on the example, got {came}; "
            "end the model with flatten and a Linear layer"
        )
    names = [row.name for row in ensemble.explain()]
    traced = ensemble.program.member is not None
    inputs = example if traced else spread(example, ensemble.members)
    twice = spread(torch.cat([example, example]), ensemble.members)  # training may need more rows than one
    try:
        prove_isolation(ensemble.network, ensemble.members, names, ensemble.program.places, inputs)
        if not traced:  # what no rule has seen may mix rows in training alone
            prove_isolation(ensemble.network, ensemble.members, names, ensemble.program.places, twice, training=True)
        prove_inputs_apart(ensemble, example)
        _check_members(ensemble, example)
    except (RuntimeError, IndexError, TypeError) as error:
        reason = " ".join(str(error).partition("While executing")[0].split())[:300]
        raise ValueError(
            f"{type(model).__name__}: expected members that run as it does, but on the example they fail with "
            f"{type(error).__name__}: {reason}; {WAY_OUT}"
        ) from error


def _check_members(ensemble: PackedEnsemble, example: Tensor) -> None:
    """ValueError unless each member alone, as a plain model, gives its row. A model that draws in evaluation mode shows nothing."""
    trial = copy.deepcopy(ensemble).eval()
    together = trial(example.clone())
    if not torch.equal(together, trial(example.clone())):
        return
    for m in range(ensemble.members):
        row = alone(trial, m)(example.clone())
        if not torch.allclose(row, together[m], rtol=1e-3, atol=1e-3 * float(together.abs().max())):
            raise ValueError(
                f"member {m}: expected the same logits alone as among the others, got a difference of "
                f"{float((row - together[m]).abs().max()):.2g}: its forward does not treat the rows of a batch one by one; {WAY_OUT}"
            )
