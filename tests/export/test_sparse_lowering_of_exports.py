"""Networks as they are exported become layers, and give what ONNX Runtime gives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from drafted_graphs import compare
from quorate import models
from quorate.export import programs
from quorate.export.tickets import whole_weights
from quorate.runtime.session import open_session
from quorate.runtime.sparse.graphs.lowering import lower
from quorate.runtime.sparse.network import live
from quorate.tickets import Tickets
from sparse_reference import evaluate

pytestmark = pytest.mark.slow

NETWORKS: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...], dict[str, int]]] = {
    "wide resnet": (lambda: models.WideResNet(depth=16, width=1), (3, 32, 32), {"Conv": 15, "Mean": 1, "Linear": 1}),
    "resnet 50": (lambda: models.resnet50(stem="imagenet"), (3, 64, 64), {"Conv": 53, "Pool": 1, "Mean": 1, "Linear": 1}),
    "vgg": (lambda: models.VGG((3, 32, 32), 10), (3, 32, 32), {"Conv": 13, "Pool": 5, "Mean": 1, "Linear": 1}),
    "lenet": (lambda: models.LeNet((1, 28, 28), 10), (1, 28, 28), {"Conv": 2, "Pool": 2, "Flatten": 1, "Linear": 3}),
    "mlp": (lambda: models.MLP((784,), 10, (64, 64)), (784,), {"Linear": 3}),
    "sequences": (lambda: models.CNN1d((9, 128), 6), (9, 128), {"Conv": 10, "Mean": 1, "Linear": 1}),
    "depthwise": (lambda: models.DepthwiseNet((3, 32, 32), 10), (3, 32, 32), {"Conv": 35, "Foreign": 17, "Mean": 1, "Linear": 1}),
    "transformer": (lambda: models.ViT((3, 32, 32), 10), (3, 32, 32), {"Conv": 1, "Foreign": 1, "Linear": 1}),
}


def drawn_ticket(network: torch.nn.Module) -> Tickets:
    """A tenth of the weights live, and a batch normalisation that is not the identity."""
    masks: dict[str, Any] = {}
    for name, weight in network.named_parameters():
        if weight.ndim >= 2:
            masks[name] = torch.rand_like(weight) < 0.1
            weight.data.mul_(masks[name])
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.bias.data.normal_()
    return Tickets([network.eval()], [masks])


@pytest.mark.parametrize("name", NETWORKS)
def test_exports_become_layers(name: str) -> None:
    torch.manual_seed(0)
    make, shape, expected = NETWORKS[name]
    x = torch.randn(2, *shape).numpy()
    ticket = drawn_ticket(make())
    (program,) = programs(ticket, x)
    weights = whole_weights(program)
    network = lower(program.onnx, weights)
    assert Counter(type(layer).__name__ for layer in network.layers) == expected
    wanted = open_session(program.onnx, name, threads=1, external=weights).run(["members"], {"x": x})[0]
    compare(evaluate(network, {"x": x}), {"members": wanted})
    assert wanted.shape[0] == 1
    assert list(network.unsqueezed) == ["members"]
    held = sum(int(np.count_nonzero(weight)) for weight in weights.values())
    if "Foreign" not in expected:
        dense = sum(weight.size for weight in weights.values())
        assert held <= sum(map(live, network.layers)) < 0.2 * dense + 10_000
