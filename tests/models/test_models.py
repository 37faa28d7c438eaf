"""What holds for every model: shapes, gradients, determinism, tracing, no module used twice."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from quorate.models import MLP, LeNet, ResNet

MODELS = {
    "mlp": (lambda: MLP((2, 5), 3, hidden=(7, 6), dropout=0.3, norm=True), (2, 5)),
    "linear": (lambda: MLP((4,), 1, hidden=()), (4,)),
    "lenet": (lambda: LeNet((2, 11, 9), 4, width=(3, 5), hidden=(8,)), (2, 11, 9)),
    "lenet8": (lambda: LeNet((1, 8, 8), 10, hidden=()), (1, 8, 8)),
    "resnet8": (lambda: ResNet((2, 9, 7), 5, depth=8, width=6), (2, 9, 7)),
    "resnet14": (lambda: ResNet((1, 8, 8), 10, depth=14, width=4), (1, 8, 8)),
    "resnet18": (lambda: ResNet((4, 13, 17), 5, depth=18, stem="imagenet", width=8), (4, 13, 17)),
    "resnet34": (lambda: ResNet((3, 8, 8), 5, depth=34, width=4), (3, 8, 8)),
    "resnet50": (lambda: ResNet((3, 16, 9), 5, depth=50, stem="cifar", width=4), (3, 16, 9)),
}


@pytest.fixture(params=MODELS)
def case(request):
    torch.manual_seed(0)
    make, shape = MODELS[request.param]
    return make(), torch.randn(6, *shape)


def test_shapes_and_gradients(case):
    model, x = case
    logits = model(x)
    assert logits.shape == (6, model(x[:2]).shape[1])
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_evaluation_does_not_depend_on_the_batch(case):
    model, x = case
    model.double()(x.double())  # moves the running statistics away from their start
    model.eval()
    whole = model(x.double())
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    torch.testing.assert_close(model(x.double()[order]), whole[order], rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.cat([model(row[None]) for row in x.double()]), whole, rtol=0, atol=1e-12)


def test_traces_and_uses_each_module_once(case):
    model, x = case
    model.eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    assert sorted(called) == sorted(leaves)
    assert {node.op for node in traced.graph.nodes} <= {"placeholder", "call_module", "call_function", "output"}


@pytest.mark.parametrize("name", MODELS)
def test_state_round_trip_and_seed(name):
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(6, *shape)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(0)
    again = make()
    for (key, value), (_, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(value, other), key
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(again.eval()(x), model.eval()(x))


@pytest.mark.parametrize("name", ["mlp", "lenet", "resnet8"])
def test_exports(name):
    make, shape = MODELS[name]
    model, x = make(), torch.randn(6, *shape)
    program = torch.export.export(model.eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    torch.testing.assert_close(program.module()(x[:3]), model(x[:3]), rtol=1e-4, atol=1e-5)


def test_one_input_may_be_evaluated_at_any_size_by_a_resnet():
    model = ResNet((3, 32, 32), 7, depth=8).eval()
    assert [model(torch.zeros(1, 3, *size)).shape for size in ((1, 1), (5, 40))] == [(1, 7), (1, 7)]


def test_every_relu_is_its_own_module():
    relus = [m for make, _ in MODELS.values() for m in make().modules() if isinstance(m, nn.ReLU)]
    assert len({id(m) for m in relus}) == len(relus)
    assert not any(m.inplace for m in relus)
