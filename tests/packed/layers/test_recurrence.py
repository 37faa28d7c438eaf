"""Recurrence under autocast, torch.export and torch.compile, in both backends, and the weights' place in memory for cuDNN."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from quorate.packed.layers.recurrence import one_chunk
from quorate.packed.layers.recurrent import PackedGRU, PackedLSTM, PackedRecurrent, PackedRNN

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # of nn.LSTM alike

KINDS: dict[str, tuple[type[PackedRecurrent], dict[str, Any]]] = {
    "lstm": (PackedLSTM, {}),
    "projected": (PackedLSTM, {"proj_size": 2}),
    "gru": (PackedGRU, {}),
    "relu": (PackedRNN, {"nonlinearity": "relu"}),
}
B, T, C, H = 3, 4, 4, 6


def made(kind: str, **options: Any) -> PackedRecurrent:
    cls, more = KINDS[kind]
    layer: PackedRecurrent = cls(C, H, 2, **{"alpha": 2} | more | options)
    return layer


def flat(result: tuple[Tensor, Any]) -> list[Tensor]:
    """Output and states in one list."""
    return [result[0], *(result[1] if isinstance(result[1], tuple) else (result[1],))]


def test_weights_in_one_chunk() -> None:
    layer = made("projected", dtype=torch.float64, num_layers=2, bidirectional=True)
    weights = [layer.get_parameter(name)[1] for name in layer.how.names()]
    copies = one_chunk(weights)
    assert all(torch.equal(a, b) for a, b in zip(weights, copies, strict=True))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == 1
    assert copies[0].untyped_storage().nbytes() == 8 * sum(w.numel() for w in weights)
    matrices, biases = [w for w in copies if w.dim() == 2], [w for w in copies if w.dim() == 1]
    places = [w.storage_offset() for w in (*matrices, *biases)]
    assert places == sorted(places)


@pytest.mark.parametrize("backend", PackedRecurrent.BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_autocast(kind: str, backend: str) -> None:
    layer = made(kind, bidirectional=True)
    layer.set_backend_(backend)
    x = torch.randn(T, B, 2 * C, requires_grad=True)
    full = flat(layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        for given in (x, x.bfloat16()):
            half = flat(layer(given))
            assert all((a - b).abs().max() < 0.05 for a, b in zip(full, half, strict=True))
    sum(out.float().sum() for out in half).backward()


def grid(*quick: tuple[str, ...]) -> list[Any]:
    """All kinds, backends and layouts that are exported, but for the quick ones marked as slow."""
    every = itertools.product(("lstm", "projected", "gru", "relu"), PackedRecurrent.BACKENDS, ("channels", "spread"))
    return [pytest.param(*case, marks=() if case in quick else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("kind", "backend", "layout"), grid(("lstm", "loop", "channels"), ("gru", "batched", "spread")))
def test_exported_with_a_dynamic_batch(kind: str, backend: str, layout: Any) -> None:
    layer = made(kind, first=True, layout=layout, batch_first=True, num_layers=2).eval()
    layer.set_backend_(backend)
    program = torch.export.export(layer, (torch.randn(3, T, C),), dynamic_shapes={"input": {0: torch.export.Dim("batch")}})
    x = torch.randn(5, T, C)
    for a, b in zip(flat(program.module()(x)), flat(layer(x)), strict=True):
        assert (a - b).abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # PyTorch's own, where a graph breaks
@pytest.mark.parametrize("kind", ["lstm", pytest.param("gru", marks=pytest.mark.slow)])
def test_compiled(kind: str) -> None:
    layer = made(kind, batch_first=True)
    x = torch.randn(B, T, 2 * C)
    for backend in PackedRecurrent.BACKENDS:
        layer.set_backend_(backend)
        expected, gradients = flat(layer(x)), list(layer.parameters())
        compiled: Any = torch.compile(layer, fullgraph=backend == "batched", backend="aot_eager")
        for _ in range(2):
            ours = flat(compiled(x))
        for a, b in zip(ours, expected, strict=True):
            assert (a - b).abs().max() < 1e-6
        for a, b in zip(
            torch.autograd.grad(ours[0].sum(), gradients), torch.autograd.grad(expected[0].sum(), gradients), strict=True
        ):
            assert (a - b).abs().max() < 1e-5
