"""The product of packed linear layers, y = x · Wᵀ + b for G blocks at once (Laurent et al., ICLR 2023, arXiv:2210.09184, §3).

    ∂L/∂x = g · W        ∂L/∂W = gᵀ · x        ∂L/∂b = Σ_rows g        with g = ∂L/∂y      (reverse mode)
    ẏ = ẋ · Wᵀ + x · Ẇᵀ + ḃ                                                               (forward mode)

Autograd of torch.bmm computes xᵀ · g, which lies transposed in memory, so that every training step copies the gradient of every weight
into the layout of its parameter; that of torch.mm, and so of nn.Linear, does not. Here ∂L/∂W is computed as it is stored. The operator
costs some time of its own, so that small weights keep torch's; so do compiled, exported and traced programs, which choose layouts.

Shapes: x (G, R, in), weight (G, out, in), bias (G, out) or None → (G, R, out), for any R, 0 included.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from torch import Tensor

WORTHWHILE = 2**17  # weights of all blocks from which on a copied gradient takes longer than an operator in Python


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x · Wᵀ + b by torch's own operators."""
    matrix = weight.transpose(1, 2)
    return torch.bmm(x, matrix) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, matrix)


class _Product(torch.autograd.Function):
    """`_affine` with ∂L/∂W in the layout of W; differentiable any number of times, in both modes, and under torch.func's transforms."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _affine(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:  # noqa: ARG004
        x, weight, _ = inputs
        for_x, for_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if for_weight else None, weight if for_x else None)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        return (
            None if weight is None else torch.bmm(grad, weight),
            None if x is None else torch.bmm(grad.transpose(1, 2), x),
            grad.sum(1) if ctx.needs_input_grad[2] else None,
        )

    @staticmethod
    def jvp(ctx: Any, x_dot: Tensor | None, weight_dot: Tensor | None, bias_dot: Tensor | None) -> Tensor:
        x, weight = ctx.saved_tensors
        terms = [] if x_dot is None else [_affine(x_dot, weight, None)]
        terms += [] if weight_dot is None else [_affine(x, weight_dot, None)]
        terms += [] if bias_dot is None else [bias_dot.unsqueeze(1).expand(-1, x.shape[1], -1)]
        return reduce(torch.add, terms)


def _as_autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors as torch.autocast gives them to a product: what it does around an operator, not inside a custom one's backward."""
    first = tensors[0]
    assert first is not None
    device = first.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or not x.is_floating_point() or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x · Wᵀ + b: (G, R, in), (G, out, in), (G, out) or None → (G, R, out), with a weight gradient that needs no copy.

    Values are torch.baddbmm's to the bit, dtypes under autocast and refusals of other shapes (RuntimeError) too.
    """
    eager = not (torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]
    if eager and torch.is_grad_enabled() and weight.requires_grad and weight.numel() >= WORTHWHILE:
        y: Tensor = _Product.apply(*_as_autocast(x, weight, bias))
        return y
    return _affine(x, weight, bias)
