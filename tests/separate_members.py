"""A packed layer against M separate plain ones with its values copied: outputs, gradients, statistics, and exact isolation.

A test gives two functions, which read the same leaf tensors: `packed(layer)` → (M, …), and `single(plain, m)` → (…).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-12  # float64, relative to 1 + |value|


def filled(layer: Any, seed: int = 0) -> Any:
    """The layer in float64, with random parameters and positive random statistics."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for tensor in (*layer.parameters(), *layer.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
        for tensor in layer.buffers():
            tensor.copy_(tensor.abs() + 1)
    return layer


def separate(layer: Any) -> list[Any]:
    """The M plain modules, with copies of the members' values."""
    plains = []
    for m in range(layer.members):
        plain = layer.plain()
        plain.load_state_dict({name: view.detach().clone() for name, view in layer.member(m).items()}, strict=True)
        plains.append(plain.train(layer.training))
    return plains


def placed(members: Tensor, layout: str, axis: int, batch: int = 0) -> Tensor:
    """(M, …) → one tensor: side by side on the batch axis in rows, else on `axis`."""
    return torch.cat(members.unbind(), batch if layout == "rows" else axis)


def taken(y: Tensor, members: int, layout: str, axis: int, batch: int = 0) -> Tensor:
    """The inverse for an output: gather and spread give rows."""
    return torch.stack(y.chunk(members, axis if layout == "channels" else batch))


def close(given: Tensor, expected: Tensor) -> None:
    """Equal shapes and values to TOLERANCE."""
    assert given.shape == expected.shape
    assert given.dtype == expected.dtype
    assert ((given - expected).abs() <= TOLERANCE * (1 + expected.abs())).all(), (given - expected).abs().max()


def _by_member(layer: Any, gradients: Sequence[Tensor | None]) -> list[dict[str, Tensor]]:
    """Gradients of the packed parameters as `member` slices them; an unused parameter's is zero."""
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
            parameter.copy_(torch.zeros_like(parameter) if gradient is None else gradient)
    names = {name for name, _ in layer.plain().named_parameters()}
    return [{name: view for name, view in twin.member(m).items() if name in names} for m in range(layer.members)]


def assert_members_equal(
    layer: Any, leaves: Sequence[Tensor], packed: Callable[[Any], Tensor], single: Callable[[Any, int], Tensor]
) -> None:
    """Outputs, gradients of all parameters and leaves, and buffers afterwards are those of M separate modules."""
    plains, parameters = separate(layer), list(layer.parameters())
    given = packed(layer)
    expected = torch.stack([single(plain, m) for m, plain in enumerate(plains)])
    close(given, expected)
    weights = torch.randn_like(given)
    sources = [*parameters, *leaves]
    gradients = torch.autograd.grad((given * weights).sum(), sources, allow_unused=True)
    (expected * weights).sum().backward()
    for m, views in enumerate(_by_member(layer, gradients[: len(parameters)])):
        for name, view in views.items():
            own = plains[m].get_parameter(name).grad
            close(view, torch.zeros_like(view) if own is None else own)
    for leaf, gradient in zip(leaves, gradients[len(parameters) :], strict=True):
        assert gradient is not None
        assert leaf.grad is not None
        close(gradient, leaf.grad)
        leaf.grad = None
    for m, plain in enumerate(plains):
        for name, buffer in plain.named_buffers():
            assert torch.allclose(layer.member(m)[name], buffer, rtol=TOLERANCE, atol=TOLERANCE)


def assert_isolated(layer: Any, packed: Callable[[Any], Tensor]) -> None:
    """The derivative of member i's output by member j's parameters is exactly 0, and by its own it is not."""
    given = packed(layer)
    for i in range(layer.members):
        target = (given[i] * torch.randn_like(given[i])).sum()
        gradients = torch.autograd.grad(target, list(layer.parameters()), retain_graph=True, allow_unused=True)
        views = _by_member(layer, gradients)
        for j, own in enumerate(views):
            assert any(bool(view.any()) for view in own.values()) == (i == j)


def settings_of(module: nn.Module, *names: str) -> dict[str, Any]:
    """The named settings that a module has."""
    return {name: getattr(module, name) for name in names if hasattr(module, name)}
