"""Which parameters of a network are made sparse: the weights of convolutions, linear layers and attention projections.

Biases, norms and embeddings never are (Liu et al. 2022, arXiv 2106.14568, §3), nor is a weight tied to an embedding. A weight is known by
its name in ``model.named_parameters()``; one that several modules share counts once, by its first name. A transposed convolution's weight
is (in, out, …): what patterns and budgets say of outputs holds for its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from quorate._validation import nearest

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Of ``nn.MultiheadAttention``; its output projection is a linear layer."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of ``torch.compile`` and data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def sparse_weights(model: nn.Module, dense: Iterable[str] = (), only: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """The weights that can be sparse, by name, in the model's order.

    Args:
        model: any network; wrappers are looked through.
        dense: names of weights that stay dense.
        only: names of the weights to take instead, of any module, such as a recurrent layer's or your own.

    Raises:
        ValueError: a name that no parameter has (the nearest is given), a weight that is computed from others (a parametrisation), a
            vector, one without a shape yet, both lists at once, or nothing that could be sparse.
    """
    network = unwrapped(model)
    named = dict(network.named_parameters())
    dense = [dense] if isinstance(dense, str) else list(dense)
    only = [only] if isinstance(only, str) else only if only is None else list(only)
    for name in [*dense, *(only or ())]:
        if name not in named:
            raise ValueError(
                f"no parameter is called {name!r}{nearest(name, list(named))}: expected names of model.named_parameters()"
            )
    if only is not None:
        if dense:
            raise ValueError("got both `dense` and `only`: name the weights that stay dense, or those that are sparse")
        found = {name: weight for name, weight in named.items() if name in only}
    else:
        known = {id(weight) for weight in _eligible(network, set(dense))}
        found = {name: weight for name, weight in named.items() if id(weight) in known and name not in dense}
    empty = [name for name, weight in found.items() if isinstance(weight, UninitializedParameter)]
    if empty:
        raise ValueError(f"{empty[0]!r} has no shape yet: run the network on one batch before it is made sparse")
    flat = [name for name, weight in found.items() if weight.dim() < 2]
    if flat:
        raise ValueError(
            f"{flat[0]!r} is a vector of shape {tuple(found[flat[0]].shape)}: expected weights of at least two dimensions"
        )
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no weight that could be sparse: expected convolutions, linear layers or attention, or the names "
            "of your own weights in `only`"
        )
    return found


def check_optimizer(weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    """A ValueError unless the optimiser trains all of the weights that are not frozen."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = [name for name, weight in weights.items() if id(weight) not in trained and weight.requires_grad]
    if left:
        whose = "none of them" if len(left) == len(weights) else f"not {left[0]!r}"
        raise ValueError(
            f"the optimiser trains {whose} of the model's {len(weights)} sparse weights: make it from this model's parameters (after "
            "the model was moved or copied), or name what it leaves out in dense=[…]"
        )


def _eligible(network: nn.Module, dense: set[str]) -> Iterable[nn.Parameter]:
    embeddings = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    for prefix, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names: tuple[str, ...] = PROJECTIONS
        elif isinstance(module, _ConvNd | nn.Linear):
            names = ("weight",)
        else:
            continue
        for name in names:
            if parametrize.is_parametrized(module, name):
                sources = [
                    f"parametrizations.{name}.{each}" for each, _ in module.parametrizations[name].named_parameters(recurse=False)
                ]
            elif isinstance(weight := getattr(module, name, None), nn.Parameter):
                if id(weight) not in embeddings:
                    yield weight
                continue
            elif isinstance(weight, Tensor):  # of torch.nn.utils.weight_norm, spectral_norm, prune
                sources = [each for each, _ in module.named_parameters(recurse=False) if each.startswith(f"{name}_")]
            else:
                continue
            sources = [f"{prefix}.{each}".removeprefix(".") for each in sources]
            if not dense.intersection(sources):
                raise ValueError(
                    f"{f'{prefix}.{name}'.removeprefix('.')!r} is computed from {', '.join(sources) or 'elsewhere'}, a mask on that would "
                    f"not make it sparse: remove the parametrisation, or pass dense={sources[:1]}"
                )
