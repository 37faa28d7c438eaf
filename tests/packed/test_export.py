"""torch.export and autocast of packed networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from quorate.models import LeNet, ResNet
from quorate.packed import PackedEnsemble, pack

MODELS = {"resnet": (lambda: ResNet((3, 8, 8), 4, depth=8, width=8), 3), "lenet": (lambda: LeNet((1, 8, 8), 4), 1)}


@pytest.fixture(params=MODELS)
def packed_and_input(request: pytest.FixtureRequest) -> tuple[PackedEnsemble, torch.Tensor]:
    torch.manual_seed(0)
    make, channels = MODELS[request.param]
    return pack(make()).eval(), torch.randn(5, channels, 8, 8)


def test_export_with_a_free_batch_size(packed_and_input: tuple[PackedEnsemble, torch.Tensor]) -> None:
    packed, x = packed_and_input
    program = torch.export.export(packed, (x,), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},))
    for batch in (x, x[:1], x[:2].repeat(9, 1, 1, 1)):
        torch.testing.assert_close(program.module()(batch), packed(batch), rtol=0, atol=1e-5)
    names = {node.target for node in program.graph.nodes if node.op == "call_function"}
    assert not any("einsum" in str(name) for name in names)


def test_autocast(packed_and_input: tuple[PackedEnsemble, torch.Tensor]) -> None:
    packed, x = packed_and_input
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = packed(x)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), packed(x), rtol=0.1, atol=0.1)


def test_subgroups_and_one_row_export() -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16, bias=False), nn.ReLU(), nn.Linear(16, 3))
    packed = pack(model, members=2, gamma=2).eval()
    x = torch.randn(1, 6)
    torch.testing.assert_close(torch.export.export(packed, (x,)).module()(x), packed(x))
