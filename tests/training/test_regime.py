"""The protocol of regimes, by a small one: what is called when, what is kept over an interruption, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quorate.data import digits
from quorate.ensemble import DeepEnsemble
from quorate.models import MLP
from quorate.training import Fitted, Loader, Regime, Settings, fit
from quorate.training.regime import regime_of

DATA = digits()  # 650 rows: 6 steps of 100 in each of 2 epochs
EPOCHS, STEPS = 2, 6


class Stopped(Exception):
    """A training that is broken off, as by a kill."""


class Counting(Regime):
    """Halves the learning rate from step 3 on, counts steps in its state, and notes every call; breaks off at a step or at the end."""

    def __init__(self, ensemble: Counted, settings: Settings, loader: Loader) -> None:
        super().__init__(ensemble)
        self.said = (settings.epochs, len(loader))
        self.calls: list[Any] = ensemble.calls
        self.count = torch.zeros((), dtype=torch.int64)

    def lr_factor(self, step: int) -> float:
        return 1.0 if step < 3 else 0.5

    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:
        if state is not None:
            self.count = state["deep"]["counts"][0]
        self.optimizer = optimizer
        self.calls.append(("begin", int(self.count), state is not None, len(optimizer.param_groups[0]["params"])))

    def after_step_(self, step: int) -> None:
        self.count = self.count + 1
        self.calls.append(("step", step, int(self.count), self.optimizer.param_groups[0]["lr"]))
        if step == self.ensemble.stop:  # type: ignore[attr-defined]
            raise Stopped

    def evaluated(self, step: int) -> nn.Module:
        if self.calls[-1] != ("evaluated", step):
            self.calls.append(("evaluated", step))
        return DeepEnsemble([self.ensemble.members[0]])  # type: ignore[attr-defined]

    def after_validation_(self, step: int, members: list[dict[str, float]]) -> None:
        self.calls.append(("validated", step, len(members), sorted(members[0])))

    def finish_(self) -> None:
        self.calls.append(("finish", int(self.count)))
        if self.ensemble.stop == "finish":  # type: ignore[attr-defined]
            raise Stopped

    def stop_(self) -> None:
        self.calls.append(("stop",))

    def facts(self) -> dict[str, Any]:
        self.calls.append(("facts",))
        return {"count": int(self.count), "parameters": 7}

    def state_dict(self) -> dict[str, Any]:
        return {"deep": {"counts": [self.count], "text": "a", "none": None}}


class Counted(DeepEnsemble):
    """Two members under the regime."""

    def __init__(self, stop: int | str = 0) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(DATA.normalise(), MLP(DATA.shape, 8, (8,), norm=True)) for _ in range(2))
        self.calls: list[Any] = []
        self.stop = stop

    def regime(self, settings: Settings, loader: Loader) -> Regime:
        return Counting(self, settings, loader)


def quick(ensemble: nn.Module, run: Path | None = None, **options: Any) -> Fitted:
    chosen = {"epochs": EPOCHS, "batch_size": 100, "lr": 0.1, "schedule": "constant", "accelerator": "cpu", **options}
    return fit(ensemble, DATA, run=run, progress=False, tensorboard=False, **chosen)


def steps(first: int, last: int) -> list[Any]:
    return [("step", step, step, 0.1 if step <= 3 else 0.05) for step in range(first, last + 1)]


def ends(epoch: int) -> list[Any]:
    step = epoch * STEPS
    return [("evaluated", step), ("validated", step, 1, ["val_accuracy", "val_nll"])]


def known(calls: list[Any]) -> list[Any]:
    """Without figures that other versions of the members' scores may add."""
    return [(*call[:3], ["val_accuracy", "val_nll"]) if call[0] == "validated" else call for call in calls]


def test_what_is_called_and_when() -> None:
    ensemble = Counted()
    run = quick(ensemble)
    whole = [*steps(1, 6), *ends(1), *steps(7, 12), *ends(2), ("finish", 12), ("stop",), ("facts",)]
    parameters = len(list(ensemble.parameters()))
    assert known(ensemble.calls) == [("begin", 0, False, parameters), *whole]
    assert run.facts["count"] == 12
    assert run.facts["parameters"] == 7  # its facts replace others
    assert [row["lr"] for row in run.metrics] == pytest.approx([0.05, 0.05])
    assert len(run.member_metrics) == EPOCHS  # of one member, validated twice


@pytest.mark.parametrize(("stop", "saved", "seconds"), [(1, 0, 60), (9, 8, 1e-9), (9, 0, 60), (12, 11, 1e-9), ("finish", 12, 60)])
def test_its_state_is_kept(stop: int | str, saved: int, seconds: float, tmp_path: Path) -> None:
    """Also of a run that was over, but for its end: nothing is trained then."""
    broken = Counted(stop)
    with pytest.raises(Stopped):
        quick(broken, tmp_path / "run", checkpoint_seconds=seconds)
    assert broken.calls[-1] == ("stop",)
    again = Counted()
    run = quick(again, tmp_path / "run", checkpoint_seconds=seconds)
    begin, *rest = known(again.calls)
    assert begin[:3] == ("begin", saved, saved > 0)
    first_end = ends(1) if saved < STEPS else []
    trained = [*steps(saved + 1, 6), *first_end, *steps(max(saved, 6) + 1, 12), *(ends(2) if saved < 12 else [])]
    assert rest == [*trained, ("finish", 12), ("stop",), ("facts",)]
    assert run.facts["count"] == 12
    whole = quick(Counted())
    assert run.metrics == whole.metrics
    assert all(
        torch.equal(a, b) for a, b in zip(run.ensemble.state_dict().values(), whole.ensemble.state_dict().values(), strict=True)
    )


def test_a_finished_run_is_read_back_without_it(tmp_path: Path) -> None:
    quick(Counted(), tmp_path / "run")
    again = Counted(1)
    assert quick(again, tmp_path / "run").facts["count"] == 12
    assert again.calls == []


def test_the_plain_regime() -> None:
    ensemble, settings, loader = DeepEnsemble([nn.Linear(2, 2)]), Settings(), Loader(DATA.train, 100)
    plain = regime_of(ensemble, settings, loader)
    assert type(plain) is Regime
    assert plain.learner is plain.evaluated(3) is plain.ensemble is ensemble
    assert (plain.lr_factor(7), plain.facts(), plain.state_dict()) == (1.0, {}, {})
    learner = Counted()
    learner.learner = learner.members[0]
    assert Regime(learner).learner is learner.members[0]


def test_a_submodule_of_that_name_is_none() -> None:
    ensemble = DeepEnsemble([nn.Sequential(nn.Flatten(), nn.Linear(64, 8))])
    ensemble.regime = nn.Linear(2, 2)
    assert type(regime_of(ensemble, Settings(), Loader(DATA.train, 100))) is Regime
    ensemble = Counted()
    found = regime_of(ensemble, Settings(epochs=3), Loader(DATA.train, 100, shuffle=True))
    assert isinstance(found, Counting)
    assert found.said == (3, 6)


def test_another_answer_is_refused(tmp_path: Path) -> None:
    class Wrong(Counted):
        def regime(self, settings: Settings, loader: Loader) -> Any:
            return {"settings": settings, "loader": loader}

    with pytest.raises(ValueError, match=r"Wrong.regime gave a dict: expected a quorate.training.Regime"):
        quick(Wrong(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_averaged_weights_are_validated_instead() -> None:
    """Once there are averages the regime is not told of figures, which are not of what it trains."""
    ensemble = Counted()
    quick(ensemble, averaging="ema", ema_decay=0.9)
    assert not any(call[0] in ("evaluated", "validated") for call in ensemble.calls)
    assert sum(call[0] == "step" for call in ensemble.calls) == 12
