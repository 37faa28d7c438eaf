"""A module as a stage of the executor: modes, devices, what leaves it; and the shortcuts that one row at a time needs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import Tensor, nn

from quorate.ensemble import WrappedStage, device_of
from quorate.ensemble.staging import in_training


class Tiny(nn.Module):
    """A stage with a dropout deep inside, that notes whether autograd was recording."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.name, self.reads, self.writes, self.drops = "tiny", (), (), ()
        self.body = nn.Sequential(nn.Identity(), nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)))
        self.nothing = None
        self.dtype, self.fails = dtype, False
        self.recorded: list[bool] = []

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        self.recorded.append(torch.is_grad_enabled())
        if self.fails:
            raise OSError("gone")
        return self.body(x)[None].to(self.dtype), {}


def test_every_part_is_put_into_eval_mode_also_when_only_one_deep_inside_is_not() -> None:
    module = Tiny().eval()
    stage, x = WrappedStage(module), torch.ones(64, 3)
    expected = stage(x, {})[0]
    for mode in (lambda: module.body[1][1].train(), lambda: module.train(), lambda: module.body.append(nn.Dropout(0.9))):
        mode()
        assert in_training(module)
        np.testing.assert_array_equal(stage(x, {})[0], expected)
        assert not in_training(module)
        assert not any(part.training for part in module.modules())


def test_modules_with_empty_places_and_shared_parts_are_walked() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    module.register_module("empty", None)
    module.append(module[0])
    assert not in_training(module)
    module[1].training = True
    assert in_training(module)


@pytest.mark.parametrize("recording", [True, False])
def test_autograd_is_off_inside_and_as_before_afterwards(recording: bool) -> None:
    module = Tiny().eval()
    stage = WrappedStage(module)
    with torch.set_grad_enabled(recording):
        stage(torch.ones(1, 3), {})
        assert torch.is_grad_enabled() is recording
        module.fails = True
        with pytest.raises(OSError, match="gone"):
            stage(torch.ones(1, 3), {})
        assert torch.is_grad_enabled() is recording
    assert module.recorded == [False, False]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_logits_leave_as_float32_arrays(dtype: torch.dtype) -> None:
    module = Tiny(dtype).eval()
    found = WrappedStage(module)(np.ones((2, 3), np.float32), {})[0]
    assert (found.dtype, found.shape) == (np.float32, (1, 2, 2))
    np.testing.assert_array_equal(found, module(torch.ones(2, 3), {})[0].detach().float().numpy())


def test_the_device_is_followed_when_the_module_moves_or_its_first_tensor_goes() -> None:
    module = Tiny().eval()
    stage = WrappedStage(module)
    assert stage._device() == device_of(module) == torch.device("cpu")
    module.to("meta")
    assert stage._device() == device_of(module) == torch.device("meta")
    module.body[1][0].weight = None
    module.body[1][0].bias = nn.Parameter(torch.zeros(2))
    assert stage._device() == device_of(module) == torch.device("cpu")
    without = nn.Module()
    without.name, without.reads, without.writes, without.drops = "without", (), (), ()
    stage = WrappedStage(without)
    assert stage._device() == torch.device("cpu")
    without.register_buffer("late", torch.zeros(1, device="meta"))
    assert stage._device() == device_of(without) == torch.device("meta")
