"""A bundle's ticket file and the trainer's are one format: each side reads what the other wrote, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from quorate.runtime.program import Sparse
from quorate.runtime.ticket import read_ticket, ticket_bytes
from quorate.tickets import load_ticket, save_ticket


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_both_ways(tmp_path: Path, density: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(37, 50, bias=False), nn.Linear(50, 11, bias=False)).to(dtype)
    masks = {name: torch.rand(weight.shape) < density for name, weight in model.named_parameters()}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(masks[name])
    held = {name: weight.detach().numpy() for name, weight in model.named_parameters()}
    data = ticket_bytes({name: Sparse(array[masks[name].numpy()], masks[name].numpy()) for name, array in held.items()})

    save_ticket(model, masks, tmp_path / "theirs")
    assert (tmp_path / "theirs").read_bytes() == data
    found = read_ticket((tmp_path / "theirs").read_bytes(), "theirs", {name: array.shape for name, array in held.items()})
    (tmp_path / "ours").write_bytes(data)
    ticket = load_ticket(tmp_path / "ours")
    for name, array in held.items():
        dead = np.where(masks[name].numpy(), array, array.dtype.type(0))  # no −0
        assert found[name].tobytes() == dead.tobytes()
        assert ticket.tensors[name].numpy().tobytes() == dead.tobytes()
        assert torch.equal(ticket.masks[name], masks[name])
