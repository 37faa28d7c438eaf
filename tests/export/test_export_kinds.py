"""Every kind of ensemble through a bundle: what the runtime says is what PyTorch says, row by row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ensemble_contract import doubtful, lived
from quorate import Cascade, collect, stages
from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.cascade import Policy, stream
from quorate.distil.early import early_students
from quorate.distil.ensemble import Distilled
from quorate.ensemble import DeepEnsemble, OutputLayer
from quorate.export import save_bundle
from quorate.models import MLP, RNN, VGG, CNN1d, DepthwiseNet, LeNet, MultiExitResNet, ResNet, ViT, WideResNet
from quorate.packed import pack
from quorate.runtime import Runtime, load_bundle
from small_distillations import DATA, own, sums
from test_contract import Students, images, raw

IMAGE, LINE = (3, 8, 8), (3, 12)
Make = Callable[[], nn.Module]


def rows(*shape: int, count: int = 21) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(5))


def digits(count: int = 21) -> Tensor:
    return torch.as_tensor(DATA.train.batch(np.arange(count))[0])


def round_trip(make: Make, x: Tensor, folder: Path) -> tuple[nn.Module, Runtime, Policy | None]:
    """Saved and loaded; every stage's outputs, the policy's decisions, and what one row alone gives are PyTorch's."""
    torch.manual_seed(0)
    ensemble = lived(make, x)
    outputs = collect(ensemble, list(x), batch_size=8)
    policy = None
    if outputs.kind == "logits":
        policy = Policy.of(outputs, [(doubtful(outputs, k), None) for k in range(1, outputs.stages)], [0.6] * outputs.stages)
    save_bundle(ensemble, policy, folder, example=x[:5])
    runtime = load_bundle(folder, threads=1, batch_size=8)
    found = runtime.outputs(x.numpy())
    assert (found.kind, found.combine, found.names) == (outputs.kind, outputs.combine, outputs.names)
    for got, want in zip(found.values, outputs.values, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    assert [stage.macs for stage in runtime.stages] == list(outputs.costs or ())
    if policy is not None:
        want, got = Cascade(stages(ensemble), policy, batch_size=8).predict(x), runtime.predict(x.numpy())
        assert len(set(got.stage)) == min(2, outputs.stages) or outputs.stages > 2, "rows leave at different stages"
        for key in ("label", "stage", "accepted", "macs"):
            np.testing.assert_array_equal(getattr(got, key), getattr(want, key))
        assert got.probs is not None
        assert want.probs is not None
        np.testing.assert_allclose(got.probs, want.probs, rtol=0, atol=1e-5)
        np.testing.assert_allclose(runtime.predict(x.numpy()[3:4]).probs, want.probs[3:4], rtol=0, atol=1e-5)  # type: ignore[arg-type]
    return ensemble, runtime, policy


def weighted(kind: Any = "logits") -> nn.Module:
    data = sums(outputs=2)
    students = own(2, DATA if kind == "logits" else data)
    if kind == "gaussian":
        for student in students:
            student.last = nn.Linear(6, 4)
    return Distilled(students, kind=kind, weights=[1.0, 2.5])


QUICK: dict[str, tuple[Make, Tensor]] = {
    "packed": (lambda: pack(MLP(IMAGE, 3, (16, 12), dropout=0.2, norm=True), members=2, alpha=2), rows(*IMAGE)),
    "students with carry": (lambda: Distilled(own(2)), digits()),
    "regression": (lambda: DeepEnsemble([nn.Linear(5, 4)], kind="gaussian"), rows(5)),
}
SLOW: dict[str, tuple[Make, Tensor]] = {
    "parts of a sequence": (
        lambda: Distilled(early_students(LINE, 3, 2, cell="gru", hidden=[4, 5], pool="running")),
        rows(*LINE),
    ),
    "deep of different members, raw bytes": (
        lambda: DeepEnsemble([raw(MLP(IMAGE, 3, (8,), norm=True)), raw(MLP(IMAGE, 3, (6,)))]),
        images(21),
    ),
    "deep": (lambda: DeepEnsemble(raw(ResNet(IMAGE, 3, depth=8, width=4)) for _ in range(2)), images(21)),
    "students that drop what they carried": (Students, rows(10)),
    "weighted students": (weighted, digits()),
    "weighted regression": (lambda: weighted("values"), rows(5)),
    "weighted regression with variances": (lambda: weighted("gaussian"), rows(5)),
    "parts by LSTM": (lambda: Distilled(early_students(LINE, 3, 3, layers=2, hidden=5, pool="mean")), rows(*LINE)),
    "exits of one network": (lambda: MultiExitResNet(IMAGE, 3, depth=8, width=4), rows(*IMAGE)),
    "exits that are averaged": (lambda: MultiExitResNet(IMAGE, 3, depth=8, width=4, combine="probs"), rows(*IMAGE)),
    "snapshots": (lambda: Warm(3), rows(5)),
    "MC dropout": (lambda: MCDropout(MLP((5,), 3, (8,), dropout=0.4), members=3), rows(5)),
    "packed with one more layer": (lambda: OutputLayer(pack(MLP((5,), 4, (16,)), members=2), nn.Tanh()), rows(5)),
}
PACKED: dict[str, tuple[Make, tuple[int, ...]]] = {
    "lenet": (lambda: LeNet(IMAGE, 3, (12, 24), (36, 12)), IMAGE),
    "resnet": (lambda: ResNet(IMAGE, 3, depth=18, width=4), IMAGE),
    "wide resnet": (lambda: WideResNet(IMAGE, 3, depth=10, width=1), IMAGE),
    "vgg": (lambda: VGG(IMAGE, 3, depth=16, width=4, pools=3, positions=1, hidden=(8, 4)), IMAGE),
    "vit": (lambda: ViT(IMAGE, 3, patch=4, width=24, depth=1, heads=4), IMAGE),
    "depthwise": (lambda: DepthwiseNet(IMAGE, 3, width=0.1), IMAGE),
    "cnn1d": (lambda: CNN1d(LINE, 3, (12, 24), kernel=3), LINE),
    "lstm": (lambda: RNN(LINE, 3, "lstm", 12, layers=2), LINE),
    "gru both ways": (lambda: RNN(LINE, 3, "gru", 12, bidirectional=True, pool="mean"), LINE),
}


class Warm(SnapshotEnsemble):
    """Snapshots that differ, as after a training; all of them run in training too."""

    def __init__(self, members: int) -> None:
        super().__init__(nn.Linear(5, 3), members)
        for member in self.members:
            nn.init.normal_(member.weight)


@pytest.mark.parametrize("kind", QUICK)
def test_quick_kinds(kind: str, tmp_path: Path) -> None:
    make, x = QUICK[kind]
    round_trip(make, x, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("kind", SLOW)
def test_kinds(kind: str, tmp_path: Path) -> None:
    make, x = SLOW[kind]
    round_trip(make, x, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("family", PACKED)
def test_packed_families(family: str, tmp_path: Path) -> None:
    make, shape = PACKED[family]
    ensemble, runtime, _ = round_trip(lambda: pack(make(), members=2, alpha=2), rows(*shape), tmp_path / "bundle")
    assert runtime.stages[0].ports.members.shape == (2, 3)
    assert runtime.stages[0].macs == pytest.approx(stages(ensemble, rows(*shape, count=1))[0].macs)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_sequence_is_answered_while_it_arrives(cell: Any, tmp_path: Path) -> None:
    x = rows(*LINE)
    make = lambda: Distilled(early_students(LINE, 3, fractions=[0.3, 1.0], cell=cell, hidden=[4, 6]))  # noqa: E731
    ensemble, runtime, policy = round_trip(make, x, tmp_path / "bundle")
    chunks = [x[..., :2], x[..., 2:7], x[..., 7:]]
    want = stream(stages(ensemble), chunks, policy)
    got = runtime.stream([chunk.numpy() for chunk in chunks])
    np.testing.assert_array_equal(got.prediction.label, want.prediction.label)
    np.testing.assert_array_equal(got.prediction.stage, want.prediction.stage)
    np.testing.assert_allclose(got.prediction.probs, want.prediction.probs, rtol=0, atol=1e-5)  # type: ignore[arg-type]
    assert [stage.ports.input.name for stage in runtime.stages if stage.ports.input] == ["part", "part"]
