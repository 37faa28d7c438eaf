"""Members on inputs of their own: values and gradients against the plain modules in float64; members' losses; what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from quorate.data import GaussianOutput
from quorate.ensemble import DeepEnsemble, OutputLayer, each, gaussian_loss, member_loss


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def members(count: int = 3, outputs: int = 4) -> list[nn.Module]:
    torch.manual_seed(0)
    made = [
        nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, outputs)).double() for _ in range(count - 1)
    ]
    return [*made, nn.Linear(5, outputs).double()]


def test_each_member_is_its_module_on_its_batch_with_its_gradients_and_statistics() -> None:
    plain, x, y = members(), draw(3, 7, 5), torch.randint(0, 4, (3, 7), generator=torch.Generator().manual_seed(1))
    ensemble = DeepEnsemble(copy.deepcopy(plain))
    outputs = each(ensemble, x)
    member_loss(outputs, y, label_smoothing=0.1).backward()
    for m, module in enumerate(plain):
        alone = module(x[m])
        assert torch.equal(outputs[m], alone)
        functional.cross_entropy(alone, y[m], label_smoothing=0.1).backward()
        for name, p in module.named_parameters():
            torch.testing.assert_close(ensemble.members[m].get_parameter(name).grad, p.grad, rtol=1e-12, atol=1e-16)
        for name, buffer in module.named_buffers():
            assert torch.equal(ensemble.members[m].get_buffer(name), buffer)


def test_inputs_of_other_members_have_exactly_no_gradient() -> None:
    x = draw(3, 7, 5).requires_grad_()
    outputs = each(DeepEnsemble(members()), x)
    for m, row in enumerate(outputs):
        (gradient,) = torch.autograd.grad((row * draw(7, 4, seed=2)).sum(), x, retain_graph=True)
        assert all(bool((gradient[j] != 0).any()) == (j == m) for j in range(3))


def test_an_output_layer_comes_after_each_member() -> None:
    layer = GaussianOutput((1.0, -2.0), (3.0, 0.5)).double()
    plain, x = members(), draw(3, 6, 5)
    outputs = OutputLayer(DeepEnsemble(plain), layer).each(x)
    for m, module in enumerate(plain):
        torch.testing.assert_close(outputs[m], layer(module(x[m])), rtol=1e-12, atol=1e-14)


def test_it_is_compiled_whole_and_runs_in_bfloat16() -> None:
    ensemble, x = DeepEnsemble(members()).eval(), draw(3, 4, 5)
    compiled = torch.compile(ensemble.each, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), ensemble.each(x))
    with torch.autocast("cpu", torch.bfloat16):
        low = ensemble.float().each(x.float())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.double(), ensemble.double().each(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("shape", [(2, 7, 5), (4, 7, 5), (5,)])
def test_another_number_of_batches_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^x of shape \(.*\): expected \(3, B, …\), a batch for each member$"):
        DeepEnsemble(members()).each(torch.zeros(shape, dtype=torch.float64))


def test_members_of_different_widths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"members returned shapes \[\(7, 4\), \(7, 3\)\]: expected \(B, C\) from each"):
        DeepEnsemble([nn.Linear(5, 4), nn.Linear(5, 3)]).each(torch.zeros(2, 7, 5))


def test_ensembles_without_the_method_are_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each = nn.Linear(5, 3)  # a submodule of that name is not the contract's method

    for ensemble in (Net(), nn.Linear(5, 3)):
        with pytest.raises(ValueError, match=r"^(Net|Linear) takes one input for all members: expected a method each\(x\)"):
            each(ensemble, torch.zeros(1, 7, 5))


@given(st.integers(1, 5), st.integers(1, 9), st.integers(2, 6), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_members_losses_add_up(count: int, batch: int, classes: int, own: bool, smoothing: float) -> None:
    logits = draw(count, batch, classes)
    shape = (count, batch) if own else (batch,)
    y = torch.randint(0, classes, shape, generator=torch.Generator().manual_seed(3))
    losses = member_loss(logits, y, smoothing, "none")
    expected = [
        functional.cross_entropy(row, y[m] if own else y, label_smoothing=smoothing) for m, row in enumerate(logits.unbind())
    ]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses.sum(), member_loss(logits, y, smoothing), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(losses.mean(), member_loss(logits, y, smoothing, "mean"), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("own", [False, True])
def test_gaussian_members_losses_add_up(own: bool) -> None:
    outputs, y = draw(3, 6, 4), draw(3, 6, 2, seed=4) if own else draw(6, 2, seed=4)
    losses = gaussian_loss(outputs, y, "none")
    for m in range(3):
        mean, log_variance = outputs[m, :, :2], outputs[m, :, 2:]
        squared = (mean - (y[m] if own else y)) ** 2 / log_variance.exp()
        torch.testing.assert_close(losses[m], 0.5 * (squared + log_variance + math.log(2 * math.pi)).sum(1).mean())
    torch.testing.assert_close(losses.sum(), gaussian_loss(outputs, y), rtol=1e-12, atol=0)
    torch.testing.assert_close(losses.mean(), gaussian_loss(outputs, y, "mean"), rtol=1e-12, atol=0)
    with pytest.raises(
        ValueError, match=r"targets of shape \(3, 6\): expected \(6, 2\), .*, or \(3, 6, 2\) for one batch per member"
    ):
        gaussian_loss(outputs, torch.zeros(3, 6))
    with pytest.raises(ValueError, match="reduction='max': expected 'sum' or 'mean' over members, or 'none' for each one's loss"):
        gaussian_loss(outputs, y, "max")  # type: ignore[arg-type]
