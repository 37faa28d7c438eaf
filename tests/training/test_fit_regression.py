"""A regression through the same fit: metrics per epoch, outputs, run folder, resume, the command line, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import quorate
from quorate import metrics
from quorate.cli.main import main
from quorate.data import Data, arrays
from quorate.training.metrics import GaussianNLL, GaussianRMSE

DRAW = np.random.default_rng(0)
X = DRAW.normal(size=(400, 3)).astype(np.float32)
Y = np.stack([50 + 9 * X[:, 0] + DRAW.normal(size=400), 1e-3 * X[:, 1] * (1 + 0.1 * DRAW.normal(size=400))], 1)


def data() -> Data:
    return arrays((X, Y), targets=["a", "b"], name="toy")


def ensemble(members: int = 2) -> quorate.DeepEnsemble:
    torch.manual_seed(0)
    found = data()
    return quorate.DeepEnsemble(
        [nn.Sequential(found.normalise(), quorate.models.MLP((3,), 4, (16,)), found.output()) for _ in range(members)], "gaussian"
    )


SETTINGS: dict[str, Any] = {
    "epochs": 30,
    "batch_size": 20,
    "optimizer": "adamw",
    "lr": 0.02,
    "weight_decay": 0.0,
    "progress": False,
}


def test_learns_in_the_units_of_the_targets(tmp_path: Path) -> None:
    fitted = quorate.fit(ensemble(), data(), run=tmp_path / "run", **SETTINGS)
    mean, variance = fitted.outputs["test"].gaussian()
    truth = fitted.outputs["test"].truth()
    assert metrics.rmse(mean[:, 0], truth[:, 0]) < 1.6
    assert 0.5 < np.sqrt(variance[:, 0]).mean() < 2
    assert metrics.rmse(mean[:, 1], truth[:, 1]) < 0.3 * truth[:, 1].std()
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").read_text().splitlines()))
    assert set(rows[0]) == {"epoch", "step", "lr", "train_loss", "val_nll", "val_rmse"}
    validation = fitted.outputs["validation"]
    assert float(rows[-1]["val_nll"]) == pytest.approx(metrics.gaussian_nll(*validation.gaussian(), validation.truth()), rel=1e-5)
    assert float(rows[-1]["val_rmse"]) == pytest.approx(metrics.rmse(validation.gaussian()[0], validation.truth()), rel=1e-5)
    again = quorate.fit(ensemble(), data(), run=tmp_path / "run", **SETTINGS)
    np.testing.assert_array_equal(again.outputs["test"].values[0], fitted.outputs["test"].values[0])


def test_metrics_over_batches_are_those_of_all_rows() -> None:
    outputs, targets = torch.randn(3, 50, 4), torch.randn(50, 2)
    means, log_variances = outputs.double().numpy()[..., :2], outputs.double().numpy()[..., 2:]
    moments = metrics.mixture_moments(means, np.exp(log_variances))
    nll, rmse = GaussianNLL(), GaussianRMSE()
    for rows in (slice(0, 7), slice(7, 50)):
        for metric in (nll, rmse):
            metric.update(outputs[:, rows], targets[rows])
    assert float(nll.compute()) == pytest.approx(metrics.gaussian_nll(*moments, targets.double().numpy()), rel=1e-12)
    assert float(rmse.compute()) == pytest.approx(metrics.rmse(moments[0], targets.double().numpy()), rel=1e-12)


class Stop(Exception):
    pass


class StopsAt(nn.Module):
    """Passes its input on; raises at a training step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step, self.seen = step, 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += self.training
        if self.training and self.seen == self.step:
            raise Stop
        return x


def test_resumes_to_the_same_bits(tmp_path: Path) -> None:
    def run(folder: Path, step: int) -> Any:
        whole = ensemble(1)
        whole.members[0].insert(1, StopsAt(step))  # type: ignore[operator]
        return quorate.fit(whole, data(), run=folder, **(SETTINGS | {"epochs": 3, "checkpoint_seconds": 1e-9}))

    straight = run(tmp_path / "a", 10**9)
    with pytest.raises(Stop):
        run(tmp_path / "b", 20)
    resumed = run(tmp_path / "b", 10**9)
    for name, tensor in straight.ensemble.state_dict().items():
        assert torch.equal(tensor, resumed.ensemble.state_dict()[name]), name
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()


def test_refuses_members_of_the_other_kind() -> None:
    with pytest.raises(ValueError, match="members give logits, a regression needs gaussian"):
        quorate.fit(quorate.DeepEnsemble([quorate.models.MLP((3,), 4)]), data(), epochs=1)
    classes = arrays((X, np.arange(400) % 2))
    with pytest.raises(ValueError, match="members give gaussian, a classification needs logits"):
        quorate.fit(ensemble(), classes, epochs=1)
    with pytest.raises(ValueError, match=r"expected \(members, 2, 4\), a mean and a log-variance per target"):
        quorate.fit(quorate.DeepEnsemble([quorate.models.MLP((3,), 2)], "gaussian"), data(), epochs=1)


@pytest.mark.parametrize("kind", ["single", "deep", "packed"])
def test_from_the_command_line(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "toy.npz", x=X, y=Y[:, 0], fold=np.arange(400) % 10)
    source = [
        "--data",
        "npz_rows",
        "--data.path",
        str(tmp_path / "toy.npz"),
        "--data.layout",
        "features",
        "--data.task",
        "regression",
    ]
    folds = ["--data.fold", "fold", "--data.test", "[3]"]
    model = ["--model", "MLP", "--model.hidden", "[8]", "--ensemble.kind", kind, "--ensemble.members", "2"]
    run = tmp_path / kind
    assert main(["train", *source, *folds, *model, "--fit.epochs", "2", "--fit.batch_size", "50", "--run", str(run)]) == 0
    out = capsys.readouterr().out
    assert "RMSE" in out
    assert "accuracy" not in out
    assert main(["evaluate", str(run), "--output", str(tmp_path / "t.json")]) == 0
    assert main(["evaluate", str(run), "--plots", str(tmp_path)]) == 1
    assert "these plots show classifications" in capsys.readouterr().err
    from quorate.cli.reload import reload

    again, found = reload(run)
    stored = quorate.runs.Run(run).outputs("test")
    np.testing.assert_array_equal(np.concatenate(quorate.collect(again, found.test).values), np.concatenate(stored.values))
