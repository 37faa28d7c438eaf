"""What holds for every model: shapes, gradients, determinism, tracing, no module used twice, export."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from ensemble_contract import check_ensemble
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP, RNN, VGG, CNN1d, DepthwiseNet, LeNet, ResNet, ViT, WideResNet
from quorate.packed import pack

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
    "wide_resnet": (lambda: WideResNet((2, 9, 7), 5, depth=10, width=1), (2, 9, 7)),
    "wide_resnet16": (lambda: WideResNet((1, 8, 8), 4, depth=16, width=2, dropout=0.2), (1, 8, 8)),
    "vgg": (lambda: VGG((2, 32, 34), 5, depth=11, width=4), (2, 32, 34)),
    "vgg13": (lambda: VGG((1, 17, 16), 3, depth=13, width=2, pools=2, positions=3, hidden=(8, 7), dropout=0.2), (1, 17, 16)),
    "depthwise": (lambda: DepthwiseNet((2, 9, 11), 5, width=0.1), (2, 9, 11)),
    "depthwise_large": (lambda: DepthwiseNet((3, 40, 33), 4, width=0.2, stem="imagenet", dropout=0.1), (3, 40, 33)),
    "vit": (lambda: ViT((2, 8, 12), 5, patch=4, width=12, depth=2, heads=3), (2, 8, 12)),
    "vit_mean": (
        lambda: ViT((1, 6, 6), 4, 2, 8, 3, 2, mlp_ratio=1.5, pool="mean", dropout=0.1, stochastic_depth=0.2),
        (1, 6, 6),
    ),
    "cnn1d": (lambda: CNN1d((3, 21), 5, width=(6, 8), blocks=2, kernel=5), (3, 21)),
    "cnn1d_plain": (lambda: CNN1d((2, 9), 4, width=(5,), kernel=3, stride=3, residual=False, dropout=0.2), (2, 9)),
    "lstm": (lambda: RNN((3, 11), 5, hidden=6), (3, 11)),
    "gru": (lambda: RNN((2, 7), 4, "gru", 5, 2, bidirectional=True, dropout=0.2), (2, 7)),
    "gru_mean": (lambda: RNN((2, 7), 4, "gru", 5, pool="mean"), (2, 7)),
    "lstm_mean": (lambda: RNN((2, 7), 4, "lstm", 5, bidirectional=True, pool="mean"), (2, 7)),
}
TENSORS = {"vit", "vit_mean", "lstm", "gru", "gru_mean", "lstm_mean"}  # forward does more than call modules and add
PACKED = ["wide_resnet", "wide_resnet16", "vgg", "vgg13", "depthwise"]


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


def test_traces_and_uses_each_module_once(case, request):
    model, x = case
    model.eval()
    traced = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(traced(x), model(x))
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    assert sorted(called) == sorted(leaves)
    steps = {"call_method", "get_attr"} if request.node.callspec.params["case"] in TENSORS else set()
    assert {node.op for node in traced.graph.nodes} <= {"placeholder", "call_module", "call_function", "output"} | steps


def test_traces_in_training_too(case):
    model, x = case
    traced = torch.fx.symbolic_trace(model.train())
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    torch.testing.assert_close(traced(x), expected)


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


def slowly(names):
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize(
    "name", ["mlp", "resnet8", "vit", "lstm", *slowly(["lenet", "cnn1d", "wide_resnet", "vgg", "depthwise", "vit_mean", "gru"])]
)
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # PyTorch's, about its own recurrent layers
def test_exports(name):
    make, shape = MODELS[name]
    model, x = make(), torch.randn(6, *shape)
    program = torch.export.export(model.eval(), (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", min=2)}})
    torch.testing.assert_close(program.module()(x[:3]), model(x[:3]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide_resnet", "vgg", "depthwise", "vit", "cnn1d", "lstm", "gru"])
@pytest.mark.filterwarnings("ignore")  # PyTorch's, about its own exporter
def test_onnx(name, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    make, shape = MODELS[name]
    model, x = make().eval(), torch.randn(6, *shape)
    batch = {"x": {0: torch.export.Dim("batch", min=2)}}
    torch.onnx.export(model, (x,), tmp_path / "m.onnx", input_names=["x"], dynamic_shapes=batch, dynamo=True, verbose=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for rows in (x, x[:3]):
        (logits,) = session.run(None, {"x": rows.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(rows).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PACKED)
def test_packs(name):
    make, shape = MODELS[name]
    x = torch.randn(4, *shape)
    packed = pack(make(), members=2, alpha=2, example=x[:2])
    assert packed(x).shape == (2, *make()(x).shape)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg13", "vit_mean", "cnn1d", "gru"])
@pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")
def test_deep_ensembles_keep_the_contract(name):
    make, shape = MODELS[name]
    check_ensemble(lambda: DeepEnsemble(make() for _ in range(2)), torch.randn(5, *shape))


def test_one_input_of_any_size_where_the_size_plays_no_part():
    for model in (
        ResNet((3, 32, 32), 7, depth=8),
        WideResNet((3, 32, 32), 7, depth=10, width=1),
        DepthwiseNet((3, 32, 32), 7, 0.1),
    ):
        assert [model.eval()(torch.zeros(1, 3, *size)).shape for size in ((1, 1), (5, 40))] == [(1, 7), (1, 7)]
    for model in (CNN1d((3, 32), 7, width=(4,)), RNN((3, 32), 7, hidden=4)):
        assert [model.eval()(torch.zeros(1, 3, length)).shape for length in (1, 41)] == [(1, 7), (1, 7)]


def test_every_relu_is_its_own_module():
    relus = [m for make, _ in MODELS.values() for m in make().modules() if isinstance(m, nn.ReLU | nn.ReLU6)]
    assert len({id(m) for m in relus}) == len(relus)
    assert not any(m.inplace for m in relus)
