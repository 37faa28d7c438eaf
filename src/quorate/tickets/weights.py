"""Which parameters of a network are made sparse: the weights of convolutions, linear layers and attention projections.

Biases, norms and embeddings never are (Liu et al. 2022, arXiv 2106.14568, §3). A weight is known by its name in
``model.named_parameters()``; one that several modules share counts once, by its first name.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from quorate._validation import nearest

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
"""Of ``nn.MultiheadAttention``; its output projection is a linear layer."""


def unwrapped(model: nn.Module) -> nn.Module:
    """The network itself, without the wrappers of ``torch.compile`` and data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = getattr(model, "module", None)
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
            vector, both lists at once, or nothing that could be sparse.
    """
    network = unwrapped(model)
    named = dict(network.named_parameters())
    dense = [dense] if isinstance(dense, str) else list(dense)
    for name in [*dense, *(only or ())]:
        if name not in named:
            raise ValueError(
                f"no parameter is called {name!r}{nearest(name, list(named))}: expected names of model.named_parameters()"
            )
    if only is not None:
        if dense:
            raise ValueError("got both `dense` and `only`: name the weights that stay dense, or those that are sparse")
        found = {name: named[name] for name in ([only] if isinstance(only, str) else only)}
    else:
        known = {id(weight) for weight in _eligible(network, set(dense))}
        found = {name: weight for name, weight in named.items() if id(weight) in known and name not in dense}
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


def _eligible(network: nn.Module, dense: set[str]) -> Iterable[nn.Parameter]:
    for prefix, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            names: tuple[str, ...] = PROJECTIONS
        elif isinstance(module, _ConvNd | nn.Linear):
            names = ("weight",)
        else:
            continue
        for name in names:
            if parametrize.is_parametrized(module, name):
                original = f"{prefix}.parametrizations.{name}.original".removeprefix(".")
                if not any(each.startswith(original) for each in dense):
                    raise ValueError(
                        f"{f'{prefix}.{name}'.removeprefix('.')!r} is computed by a parametrisation, a mask on what it is computed from "
                        f"would not make it sparse: remove the parametrisation, or pass dense=[{original!r}]"
                    )
                continue
            weight = getattr(module, name, None)
            if isinstance(weight, nn.Parameter):
                yield weight
