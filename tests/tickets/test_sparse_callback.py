"""The callback in Lightning's own loop: as SparseTraining by hand, accumulated, clipped, bf16, manual, resumed; each error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.tickets import Gradient, Random, SparseCallback, SparseTraining, digest
from quorate.training.imports import lightning

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*resuming from a checkpoint that ended before the epoch ended"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided"),
]
SIZES = (6, 6, 6, 6, 4)


class Batches:
    """Five batches, the last smaller; a list without any state."""

    def __len__(self) -> int:
        return len(SIZES)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for at, rows in enumerate(SIZES):
            yield batch(at, rows)


def batch(at: int, rows: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(at)
    return {"name": "x", "pair": (torch.randn(rows, 8, generator=generator), torch.randint(0, 6, (rows,), generator=generator))}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6))


class Module(lightning().LightningModule):  # type: ignore[misc]
    def __init__(self, manual: bool = False, stop_at: int = -1) -> None:
        super().__init__()
        self.body, self.automatic_optimization, self.stop_at = network(), not manual, stop_at

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:  # noqa: ARG002
        x, y = batch["pair"]
        if self.global_step == self.stop_at:
            raise KeyError("stop")
        loss = nn.functional.cross_entropy(self.body(x), y)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.body.parameters(), 0.05)


def callback(**settings: Any) -> SparseCallback:
    settings = {"density": 0.4, "every": 2, "network": lambda module: module.body, "example": torch.zeros(1, 8)} | settings
    return SparseCallback(**settings)


def trainer(folder: Path, sparse: SparseCallback, epochs: int = 3, **more: Any) -> Any:
    saving = more.pop("callbacks", [])
    settings = {
        "logger": False,
        "enable_checkpointing": bool(saving),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return lightning().Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, default_root_dir=folder, callbacks=[sparse, *saving], **settings | more
    )


def by_hand(epochs: int, several: int, cast: Callable[[], Any], clip: float | None) -> tuple[nn.Module, SparseTraining]:
    """What the callback has to do, in a loop of its own."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 0.05)
    sparse = SparseTraining(model, optimizer, 0.4, every=2, example=torch.zeros(1, 8))
    for _ in range(epochs):
        rows = 0
        optimizer.zero_grad()
        for at, each in enumerate(Batches()):
            x, y = each["pair"]
            rows += len(x)
            with cast():
                loss = nn.functional.cross_entropy(model(x), y)
            (loss / several).backward()
            if (at + 1) % several == 0 or at + 1 == len(SIZES):
                if clip is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), clip)
                sparse.rows, rows = rows, 0
                optimizer.step()
                optimizer.zero_grad()
    return model, sparse


@pytest.mark.parametrize(
    ("settings", "several", "cast", "clip"),
    [
        ({}, 1, lambda: torch.autocast("cpu", enabled=False), None),
        ({"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}, 2, lambda: torch.autocast("cpu", enabled=False), 0.1),
        ({"precision": "bf16-mixed"}, 1, lambda: torch.autocast("cpu", torch.bfloat16), None),
        ({"manual": True}, 1, lambda: torch.autocast("cpu", enabled=False), None),
    ],
    ids=["plain", "accumulated and clipped", "bf16", "manual"],
)
def test_it_trains_as_by_hand(
    tmp_path: Path, settings: dict[str, Any], several: int, cast: Callable[[], Any], clip: float | None
) -> None:
    module, masked = Module(manual=settings.pop("manual", False)), callback()
    trainer(tmp_path, masked, **settings).fit(module, Batches())
    model, sparse = by_hand(3, several, cast, clip)
    found = masked.sparse
    assert found is not None
    assert found.ledger is not None
    assert sparse.ledger is not None
    assert digest(found.masks) == digest(sparse.masks)
    assert (found.step, found.moves) == (sparse.step, sparse.moves)
    assert found.ledger.state_dict() == sparse.ledger.state_dict()
    assert found.ledger.rows == 3 * sum(SIZES)
    for mine, theirs in zip(module.body.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("growth", [Gradient(2), Random()], ids=str)
@pytest.mark.parametrize("step", [3, 5, 9])
def test_a_run_resumed_from_a_checkpoint_is_the_run(tmp_path: Path, step: int, growth: Gradient | Random) -> None:
    checkpoint = lightning().callbacks.ModelCheckpoint(
        tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1, save_on_train_epoch_end=False
    )
    whole, first = Module(), callback(growth=growth)
    trainer(tmp_path, first, callbacks=[checkpoint]).fit(whole, Batches())
    if step % len(SIZES):
        rest: Any = Rest(step % len(SIZES))
    else:
        rest = Batches()
    again, second = Module(), callback(growth=growth)
    with torch.no_grad():
        again.body[0].weight.zero_()
    trainer(tmp_path, second).fit(again, rest, ckpt_path=str(tmp_path / f"step={step}.ckpt"), weights_only=True)
    assert first.sparse is not None
    assert second.sparse is not None
    a, b = first.state_dict(), second.state_dict()
    for key in ("step", "moves", "ledger", "owed", "counted"):
        assert a[key] == b[key]
    assert digest(first.sparse.masks) == digest(second.sparse.masks)
    assert digest(first.sparse.ever) == digest(second.sparse.ever)
    assert all(torch.equal(x, y) for x, y in zip(whole.body.parameters(), again.body.parameters(), strict=True))


class Rest(Batches):
    """The batches from one on, the first time: a loader that knows where it was, as exact resumption needs."""

    def __init__(self, skip: int) -> None:
        self.skip = skip

    def __iter__(self) -> Iterator[dict[str, Any]]:
        skip, self.skip = self.skip, 0
        for at in range(skip, len(SIZES)):
            yield batch(at, SIZES[at])

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def test_a_second_fit_goes_on_and_another_network_begins(tmp_path: Path) -> None:
    module, masked = Module(), callback()
    trainer(tmp_path, masked, 1).fit(module, Batches())
    assert masked.sparse is not None
    masks, weight = masked.sparse.masks, module.body[0].weight
    module.body(torch.randn(3, 8)).sum().backward()
    assert bool((weight.grad[~masks["0.weight"]] != 0).any())  # no hook is left
    module.zero_grad()
    values = weight.detach().clone()
    seen = []

    class Look(lightning().Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
            if batch_idx == 0:
                seen.append((weight.detach().clone(), digest(masked.sparse.masks)))

    trainer(tmp_path, masked, 1, callbacks=[Look()]).fit(module, Batches())
    assert torch.equal(seen[0][0], values)
    assert seen[0][1] == digest(masks)
    assert masked.sparse.step == 10
    assert masked.sparse.ledger is not None
    assert masked.sparse.ledger.rows == 2 * sum(SIZES)
    trainer(tmp_path, masked, 1).fit(Module(), Batches())
    assert masked.sparse.step == 5


def test_after_an_exception_no_hook_is_left(tmp_path: Path) -> None:
    module, masked = Module(stop_at=3), callback()
    with pytest.raises(KeyError, match="stop"):
        trainer(tmp_path, masked).fit(module, Batches())
    module.zero_grad()
    module.body(torch.randn(3, 8)).sum().backward()
    assert masked.sparse is not None
    assert masked.sparse.step == 3
    assert bool((module.body[0].weight.grad[~masked.sparse.masks["0.weight"]] != 0).any())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^unknown argument 'densty'.*density.* \(known: density, growth, pattern, .*, seed\)$"):
        SparseCallback(densty=0.3)
    with pytest.raises(ValueError, match=r"^unknown argument 'rows'.* \(known: "):
        SparseCallback(rows=3)
    with pytest.raises(ValueError, match=r"^optimizer=1: expected one of the module's 1, counted from 0$"):
        trainer(tmp_path, callback(optimizer=1)).fit(Module(), Batches())
    with pytest.raises(ValueError, match="density 3: expected a share of live weights"):
        trainer(tmp_path, callback(density=3)).fit(Module(), Batches())
    assert callback().state_dict() == {}
