"""What the tests of compact share: networks filled with known kinds of values, channels emptied, outputs compared."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """fp64, no value 0, running variances positive."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.25)
                if tensor.dim() > 1:
                    tensor *= torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1, 1)
    return model.eval()


def zero_(*tensors: Tensor) -> None:
    with torch.no_grad():
        for tensor in tensors:
            tensor.zero_()


def agree(model: nn.Module, small: nn.Module, *shapes: tuple[int, ...]) -> None:
    """Same outputs on inputs that are not the example, in evaluation mode."""
    torch.manual_seed(5)
    model, small = copy.deepcopy(model).eval(), copy.deepcopy(small).eval()
    with torch.no_grad():
        for shape in shapes:
            x = 2 * torch.randn(shape, dtype=torch.float64)
            expected = model(x)
            assert float((small(x) - expected).abs().max()) <= 1e-12 * float(expected.abs().max())


def emptied(model: nn.Module, share: float = 0.3, seed: int = 0) -> nn.Module:
    """Rows and columns of hidden layers at 0, statistics, gains and shifts drawn; biases too."""
    generator = torch.Generator().manual_seed(seed)

    def among(size: int) -> Tensor:
        return torch.rand(size, generator=generator) < share

    with torch.no_grad():
        layers = [m for m in model.modules() if isinstance(m, (_ConvNd, nn.Linear))]
        for layer in layers:
            if layer.weight.std() < 0.05:  # of a transformer: let its branches be felt
                layer.weight *= 5
            if layer.bias is not None:
                layer.bias.normal_(generator=generator)
            layer.weight[among(layer.weight.shape[0])] = 0
            if layer.weight.shape[1] > 3:
                layer.weight[:, among(layer.weight.shape[1])] = 0
        for norm in [m for m in model.modules() if isinstance(m, _BatchNorm)]:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            for tensor, low, high in (
                (norm.weight, 0.5, 1.5),
                (norm.bias, -1, 1),
                (norm.running_mean, -0.5, 0.5),
                (norm.running_var, 0.5, 2),
            ):
                tensor.uniform_(low, high, generator=generator)
    return model
