"""``fit``: it learns, the same call gives the same bits, and what it leaves behind is complete, readable and refuses to be mixed up."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from quorate import Outputs
from quorate.data import Data, digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP, LeNet
from quorate.packed import pack
from quorate.runs import Lock, Run
from quorate.training import Fitted, Loader, fit, load_weights_

DATA = digits()
PARTS = ["validation", "calibration", "test", "ood-held_out"]
OUTPUTS = [f"outputs/{part}.safetensors" for part in sorted(PARTS)]
FILES = [".lock", "members.csv", "metrics.csv", *OUTPUTS, "run.json", "weights.safetensors"]


def deep(members: int = 2, width: int = 16, seed: int = 0) -> DeepEnsemble:
    torch.manual_seed(seed)
    return DeepEnsemble(
        nn.Sequential(DATA.normalise(), MLP(DATA.shape, len(DATA.classes), (width,), dropout=0.1, norm=True))
        for _ in range(members)
    )


def quick(ensemble: nn.Module, run: Path | None = None, data: Data = DATA, **options: Any) -> Fitted:
    chosen = {"epochs": 2, "batch_size": 100, "lr": 0.1, "accelerator": "cpu", "progress": False, "tensorboard": False, **options}
    return fit(ensemble, data, run=run, **chosen)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("runs") / "one"
    return quick(deep(), folder, about={"recipe": "a", "levels": (1, 2)}, tensorboard=True, weight_decay=1e-3)


def test_it_learns_digits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(DATA.normalise(), MLP(DATA.shape, len(DATA.classes), (64,), norm=True))
    fitted = quick(DeepEnsemble([model]), epochs=15, batch_size=32, augment=False)
    test = fitted.outputs["test"]
    assert float((~test.errors()).mean()) > 0.9
    losses = [row["train_loss"] for row in fitted.metrics]
    assert losses[-1] < 0.2 * losses[0]
    assert (fitted.facts["status"], fitted.path, fitted.ensemble.training) == ("finished", None, False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: deep(1),
        lambda: deep(3),
        lambda: DeepEnsemble([nn.Sequential(DATA.normalise(), LeNet(DATA.shape, 8))]),
        lambda: pack(deep(1, 32).members[0], members=4, alpha=2),
    ],
    ids=["single", "deep", "lenet", "packed"],
)
def test_every_ensemble_trains(make: Any) -> None:
    ensemble = make()
    before = {name: p.clone() for name, p in ensemble.named_parameters()}
    fitted = quick(ensemble, epochs=1)
    assert fitted.ensemble is ensemble
    assert all(not torch.equal(p, before[name]) for name, p in ensemble.named_parameters())
    assert list(fitted.outputs) == PARTS
    assert sum(fitted.outputs["test"].members) == len(ensemble(DATA.test.batch([0])[0]))


def test_the_seed_decides_everything_and_the_global_state_nothing() -> None:
    def bits(noise: int, **options: Any) -> bytes:
        ensemble = deep()
        torch.manual_seed(noise)
        np.random.seed(noise)  # noqa: NPY002
        return quick(ensemble, epochs=1, **options).outputs["test"].values[1].tobytes()

    assert bits(1) == bits(2)
    assert bits(1) != bits(1, seed=1)


def test_torchs_random_state_and_signals_are_left_as_they_were() -> None:
    ensemble = deep()
    torch.manual_seed(5)
    expected = torch.rand(3)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    torch.manual_seed(5)
    quick(ensemble, epochs=1)
    assert torch.equal(torch.rand(3), expected)  # else models made one after the other would start alike
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_it_trains_in_train_mode_whatever_the_mode_before() -> None:
    ensemble = deep().eval()
    statistics = ensemble.members[0][1].layers.norm1.running_mean
    before = statistics.clone()
    quick(ensemble, epochs=1)
    assert not torch.equal(statistics, before)


def test_the_rows_of_metrics_say_what_the_outputs_say(finished: Fitted) -> None:
    row, validation = finished.metrics[-1], finished.outputs["validation"]
    assert list(row) == ["epoch", "step", "lr", "train_loss", "val_accuracy", "val_ece", "val_nll"]
    assert [each["step"] for each in finished.metrics] == [6, 12]
    assert row["val_accuracy"] == pytest.approx(float((~validation.errors()).mean()), abs=1e-9)
    picked = validation.probs()[np.arange(len(validation)), validation.truth()]
    assert row["val_nll"] == pytest.approx(float(-np.log(picked).mean()), rel=1e-5)
    assert finished.metrics[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("loss", ["sum", "mean"])
def test_the_train_loss_is_the_mean_over_members_and_rows(loss: str) -> None:
    seen: list[Tensor] = []
    ensemble = deep(3)
    ensemble.register_forward_hook(lambda module, _, logits: seen.append(logits.detach()) if module.training else None)
    options = {"seed": 7, "label_smoothing": 0.1}
    fitted = quick(ensemble, epochs=1, batch_size=90, lr=1e-3, loss=loss, **options)
    targets = [y for _, y in Loader(DATA.train, 90, seed=7, shuffle=True)]
    each = [
        functional.cross_entropy(member.double(), y, label_smoothing=0.1)
        for logits, y in zip(seen, targets, strict=True)
        for member in logits
    ]
    assert fitted.metrics[0]["train_loss"] == pytest.approx(float(torch.stack(each).mean()), rel=1e-6)


def test_it_says_nothing_and_writes_nothing_unless_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    quick(deep(), epochs=1, tensorboard=True)
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def test_a_run_folder_is_complete(finished: Fitted) -> None:
    folder = finished.path
    assert folder is not None
    there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "tensorboard" not in p.parts)
    assert there == FILES
    assert any((folder / "tensorboard").glob("events.*"))
    facts = json.loads((folder / "run.json").read_text())
    assert (facts["format"], facts["status"], facts["seed"]) == ("quorate-run/1", "finished", 0)
    assert facts["identity"]["about"] == {"recipe": "a", "levels": [1, 2]}
    assert facts["identity"]["settings"]["weight_decay"] == 1e-3
    assert facts["stage_macs"] == [64 * 16 + 16 * 8] * 2
    assert facts["macs"] == 2 * facts["stage_macs"][0]
    assert facts["training_macs"] == 3 * facts["macs"] * 600 * 2  # 6 batches of 100, 2 epochs
    assert facts["parameters"] == 2 * (64 * 16 + 2 * 16 + 16 * 8 + 8)
    assert facts["train_seconds"] > 0
    assert {"torch", "lightning", "quorate"} <= set(facts["versions"])
    weights = load_file(folder / "weights.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in finished.ensemble.state_dict().items())


def test_nothing_that_remains_is_a_pickle(finished: Fitted) -> None:
    assert finished.path is not None
    for file in finished.path.rglob("*"):
        if file.is_file():
            head = file.read_bytes()[:4]
            assert head[:2] != b"PK", f"{file} is an archive"
            assert head[:1] != b"\x80", f"{file} is a pickle"


def test_outputs_hold_every_part_with_its_ids_and_costs(finished: Fitted) -> None:
    assert finished.path is not None
    record = Run(finished.path)
    assert (record.finished, record.ood, record.name) == (True, ("held_out",), "one")
    splits = {**DATA.splits(), **{f"ood-{name}": split for name, split in DATA.ood.items()}}
    for part in PARTS:
        stored, split = record.outputs(part), splits[part]
        assert isinstance(stored, Outputs)
        assert (stored.classes, stored.costs) == (DATA.classes, (1152.0, 1152.0))
        assert stored.ids.tolist() == split.ids.tolist()
        assert (stored.labels is None) == (split.y is None)
        with torch.no_grad():
            logits = finished.ensemble(torch.from_numpy(split.x.copy()))
        np.testing.assert_allclose(stored.values[1][0], logits[1], atol=1e-5)


def test_a_finished_run_is_read_back_without_training(finished: Fitted) -> None:
    assert finished.path is not None
    (finished.path / "resume.ckpt").write_bytes(b"left by a crash just before the end")
    written = {p: p.stat().st_mtime_ns for p in finished.path.rglob("*") if p.suffix in (".json", ".safetensors", ".csv")}
    other = deep(seed=9)
    other.register_forward_hook(lambda module, *_: pytest.fail("it trains") if module.training else None)
    again = quick(other, finished.path, about={"recipe": "a", "levels": [1, 2]}, weight_decay=1e-3, checkpoint_seconds=5)
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert not (finished.path / "resume.ckpt").exists()
    assert again.metrics == finished.metrics
    assert again.facts == finished.facts
    assert not other.training
    for part in PARTS:
        assert again.outputs[part].values[0].tobytes() == finished.outputs[part].values[0].tobytes()
    x = DATA.test.batch([0, 1])[0]
    with torch.no_grad():
        assert torch.equal(other(x), finished.ensemble(x))


def test_weights_load_by_themselves(finished: Fitted, tmp_path: Path) -> None:
    assert finished.path is not None
    fresh = deep(seed=3).train()
    load_weights_(fresh, finished.path)
    x = DATA.test.batch([4])[0]
    assert torch.equal(fresh(x), finished.ensemble(x))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit this ensemble: .*size mismatch"):
        load_weights_(deep(width=17), finished.path)
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors does not exist: expected the weights of a finished run"):
        load_weights_(fresh, tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        load_weights_(fresh, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.2}, r"settings\.lr: 0\.1 there, 0\.2 now"),
        ({"epochs": 3, "seed": 4}, r"settings\.epochs: 2 there, 3 now, settings\.seed: 0 there, 4 now"),
        ({"about": {"recipe": "b"}}, r"about\.levels: \[1, 2\] there, None now, about\.recipe: 'a' there, 'b' now"),
        ({"data": digits(seed=1)}, r"data: '.*' there"),
        ({"data": digits(held_out=())}, "expected .members, 2, 10."),
    ],
)
def test_changed_settings_are_refused_by_name(finished: Fitted, change: dict[str, Any], message: str) -> None:
    same = {"about": {"recipe": "a", "levels": [1, 2]}, "weight_decay": 1e-3}
    with pytest.raises(ValueError, match=message) as refusal:
        quick(deep(), finished.path, **{**same, **change})
    assert "\n" not in str(refusal.value)


def test_another_ensemble_is_refused(finished: Fitted) -> None:
    with pytest.raises(ValueError, match=r"ensemble\.tensors\.members\.0\.1\.layers\.head\.weight: \['float32', 8, 16\] there"):
        quick(deep(width=12), finished.path, about={"recipe": "a", "levels": [1, 2]}, weight_decay=1e-3)


def test_folders_that_can_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"foreign is not empty \(it has 'thesis.tex'\) and holds no run: choose another folder"):
        quick(deep(), tmp_path / "foreign")
    assert [p.name for p in (tmp_path / "foreign").iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match=r"thesis\.tex is a file: expected a run folder"):
        quick(deep(), tmp_path / "foreign" / "thesis.tex")
    with Lock(tmp_path / "held"), pytest.raises(BlockingIOError, match="held is in use by another process: wait for it"):
        quick(deep(), tmp_path / "held")


def test_ensembles_and_data_that_do_not_fit() -> None:
    plain = MLP(DATA.shape, 8, (4,))
    with pytest.raises(
        ValueError, match=r"gives \(2, 8\) for 2 rows: .*plain model goes in as quorate\.DeepEnsemble\(\[model\]\)"
    ):
        quick(nn.Sequential(DATA.normalise(), plain))
    with pytest.raises(ValueError, match=r"gives \(1, 2, 10\) for 2 rows: expected \(members, 2, 8\)"):
        quick(DeepEnsemble([nn.Sequential(DATA.normalise(), MLP(DATA.shape, 10, (4,)))]))
    for ensemble in (DeepEnsemble([plain]), DeepEnsemble([nn.Sequential(DATA.normalise(), MLP((1, 9, 9), 8))])):
        with pytest.raises(ValueError, match=r"can't take the data's torch\.uint8 inputs of shape \(1, 8, 8\)") as refusal:
            quick(ensemble)
        assert "\n" not in str(refusal.value)
