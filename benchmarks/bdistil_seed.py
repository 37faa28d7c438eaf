"""One seed of a task of bdistil_table.py: its data, its teacher, what was distilled, and students that learn outside of the loop.

Everything has a folder of its own. A finished one is read back, an interrupted training of labels or distillation goes on where it stopped;
one of a student outside of the loop begins anew. A folder of another training, or of another teacher, is refused.
"""

from __future__ import annotations

import bisect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import quorate
from bdistil_tasks import Task
from quorate import cost, runs
from quorate.cli.recipe import EnsembleChoice, build
from quorate.data import Data
from quorate.distil.cutting import Cut, cut
from quorate.distil.distillation import Distillation, distil
from quorate.distil.ensemble import Distilled
from quorate.distil.learner import BatchLoss, Training, check_settings
from quorate.distil.pool import Candidate, spec_of
from quorate.distil.rules import Rules
from quorate.distil.sources import pool_of
from quorate.distil.teacher import Teacher
from quorate.distil.views import Past, Views, outputs_on
from quorate.ensemble import collect, stage_macs
from quorate.files import write_json
from quorate.outputs import Outputs
from quorate.training import Settings, load_weights_
from quorate.training.fit import Fitted, versions
from quorate.training.identity import structure
from quorate.training.trainer import root_device
from quorate.training.weights import save_weights

BUDGET = 0.5
DEPTHS = (1.0, 0.75, 0.5, 0.25)
WIDTHS = tuple(k / 128 for k in range(1, 129))
NEAR = 0.98  # of the largest MACs within the limit: networks that have as many are equally large, and the deepest is taken


@dataclass
class Learned:
    """Students trained outside of the loop: as an ensemble, its outputs by part, and the facts of the training."""

    ensemble: Distilled
    outputs: dict[str, Outputs]
    facts: dict[str, Any]


@dataclass
class Seed:
    """What the methods of one seed share.

    Attributes:
        task: settings. data: by the seed's partition. seed: of everything random. folder: of the task's runs. progress: say what happens.
    """

    task: Task
    data: Data
    seed: int
    folder: Path
    progress: bool = True
    _macs: dict[tuple[float, float], int] = field(default_factory=dict)

    def run(self, name: str) -> Path:
        """The folder of a run of this seed, METHOD-SEED, or METHOD-SEED/PART for METHOD/PART."""
        method, _, part = name.partition("/")
        return self.folder / f"{method}-{self.seed}" / part

    def drawn(self, method: str, *numbers: int) -> int:
        """A seed for one network of a method, different from every other network's."""
        return int(np.random.SeedSequence([self.seed, *method.encode(), *numbers]).generate_state(1, np.uint32)[0])

    @cached_property
    def example(self) -> Tensor:
        """One raw input (1, *shape)."""
        return self.data.train.batch(np.arange(1))[0]

    @cached_property
    def teacher(self) -> Fitted:
        """One network, trained on labels."""
        network = build(EnsembleChoice("single", 1), lambda: self.task.network(self.data), self.data, self.seed)
        return self.fit(network, "teacher", self.seed)

    @cached_property
    def network(self) -> nn.Module:
        """The teacher without the ensemble around it: raw x → logits (B, L)."""
        ensemble = self.teacher.ensemble
        assert isinstance(ensemble, quorate.DeepEnsemble)
        return ensemble.members[0].eval()

    @cached_property
    def guide(self) -> Teacher:
        """The teacher as students ask it."""
        return Teacher.of(self.network, example=self.example, expect=self.data.width)

    @cached_property
    def g(self) -> np.ndarray:
        """The teacher's outputs (N, L) on the training rows, row-centred."""
        outputs = self.guide.on(self.data.train)
        return outputs - outputs.mean(1, keepdims=True)

    @cached_property
    def g_test(self) -> np.ndarray:
        """The teacher's logits (N, L) on the test rows."""
        return np.asarray(self.teacher.outputs["test"].values[0])[0]

    def fit(self, network: nn.Module, name: str, seed: int) -> Fitted:
        """Train a network on labels, as the teacher is trained."""
        ensemble = network if isinstance(network, quorate.DeepEnsemble) else quorate.DeepEnsemble([network])
        settings = {**self.task.teacher, "seed": seed}
        shown: dict[str, Any] = {"progress": self.progress, "label": f"{name}, seed {self.seed}"}
        return quorate.fit(ensemble, self.data, run=self.run(name), tensorboard=False, **shown, **settings)

    # — distillation —

    def distilled(self, name: str, kind: str, **rules: Any) -> Distillation:
        """The teacher taken apart by the loop, within the budget."""
        return distil(
            self.guide,
            list(self.task.students),
            self.data,
            base=self.network,
            run=self.run(name),
            rules=self.rules(**rules),
            loss={"kind": kind, **self.task.loss.get(kind, {})},
            progress=self.progress,
            label=f"{name}, seed {self.seed}",
            **{**self.task.training, "seed": self.seed},
        )

    def rules(self, **rules: Any) -> dict[str, Any]:
        """The task's rules, with some of them changed."""
        return {"budget": BUDGET, **self.task.rules, **rules}

    @cached_property
    def first(self) -> Distillation:
        """The distillation by potential, whose students' sizes the baselines have."""
        return self.distilled("bdistil-potential", "potential")

    @cached_property
    def pool(self) -> Any:
        """Of the students of :attr:`first`."""
        return pool_of(list(self.task.students), self.network, self.guide, self.example, Rules.of(self.rules()), self.guide.macs)

    @cached_property
    def cold(self) -> Any:
        """The same with fresh weights for every student."""
        rules = Rules.of(self.rules() | {"start": "fresh"})
        return pool_of(list(self.task.students), self.network, self.guide, self.example, rules, self.guide.macs)

    @property
    def candidates(self) -> list[Candidate]:
        """The accepted students of :attr:`first`, in order."""
        return [spec_of(row["candidate"]) for row in self.first.rounds]

    def unlinked(self, place: int, seed: int) -> nn.Module:
        """A fresh network of the size of an accepted student, raw x → (B, L)."""
        chain: nn.Module = self.pool.makes[self.candidates[place].size](seed)
        return chain

    # — single networks of a cost —

    def cut(self, size: Cut, seed: int) -> nn.Module:
        """A fresh network cut from the teacher, raw x → (B, L)."""
        chain: nn.Module = cut(self.network, self.example, size, seed)
        return chain

    def macs(self, depth: float, width: float) -> int:
        """Of a network cut from the teacher; at a width at which no channel goes that of all channels."""
        if (depth, width) not in self._macs:
            try:
                chain = self.cut(Cut(depth, width), 0)
            except ValueError:
                if width == 1:
                    raise
                return self.macs(depth, 1.0)
            self._macs[depth, width] = cost.macs(chain, self.example)
        return self._macs[depth, width]

    @cached_property
    def depths(self) -> tuple[float, ...]:
        """Those of :data:`DEPTHS` that the teacher can be cut to."""

        def possible(depth: float) -> bool:
            try:
                self.macs(depth, 1.0)
            except ValueError:
                return False
            return True

        return tuple(filter(possible, DEPTHS))

    def nearest(self, limit: float) -> Cut:
        """The cut with the most MACs that are not above the limit; the deepest of those within 2 % of it.

        Raises:
            ValueError: none costs so little.
        """
        found = []
        for depth in self.depths:
            fitting = bisect.bisect_right(WIDTHS, limit, key=lambda width, depth=depth: self.macs(depth, width))  # type: ignore[misc]
            found += [(self.macs(depth, width), depth, width) for width in WIDTHS[:fitting][-1:]]
        if not found:
            raise ValueError(f"no network cut from the teacher costs at most {limit:,.0f} MACs: expected a larger limit")
        most = max(macs for macs, _, _ in found)
        macs, depth, width = next(each for each in found if each[0] >= NEAR * most)
        return Cut(depth, 1.0 if macs == self.macs(depth, 1.0) else width)

    # — students outside of the loop —

    def learned(
        self,
        name: str,
        students: Sequence[nn.Module],
        loss: BatchLoss,
        seed: int,
        *,
        learner: nn.Module | None = None,
        earlier: Sequence[nn.Module] = (),
        **about: Any,
    ) -> Learned:
        """Train students on the teacher's outputs with the settings of the loop's students, or read them back.

        Args:
            name: of the folder. students: in order. loss: (f, g, S) → scalar, S of ``earlier``; of its kind ``about`` tells.
            seed: of order and augmentation. learner: what is trained, if it is not the only student.
            earlier: frozen students, whose S the loss gets.
        """
        trained = students[0] if learner is None else learner
        settings = Settings.of({**self.task.training, "seed": seed})
        check_settings(settings)
        folder = self.run(name)
        runs.check_usable(folder)
        identity = json.loads(json.dumps(self._identity(trained, settings, about)))
        with runs.Lock(folder):
            if (folder / "run.json").exists():
                record = runs.Run(folder)
                runs.check_identity(folder, record.facts["identity"], identity)
                if record.finished:
                    ensemble = Distilled(students)
                    load_weights_(ensemble, folder)
                    return Learned(ensemble, {part: record.outputs(part) for part in ("validation", "test")}, record.facts)
            facts = {"format": runs.FORMAT, "status": "running", "identity": identity, "data": self.data.summary()}
            write_json(folder / "run.json", facts)
            if self.progress:
                print(f"{name}, seed {self.seed}: {settings.epochs} epochs", flush=True)
            begun = time.perf_counter()
            views, online = self._train_(trained, earlier, loss, settings)
            facts["train_seconds"] = time.perf_counter() - begun
            return self._finished(folder, Distilled(students).cpu(), facts, views, online, earlier)

    def _train_(self, trained: nn.Module, earlier: Sequence[nn.Module], loss: BatchLoss, settings: Settings) -> tuple[int, bool]:
        """Rows that it is trained on in all, and whether as augmented views."""
        augmentation = self.data.augmentation if settings.augment else None
        online = augmentation is not None
        scores = np.zeros_like(self.g)
        if not online:
            for student in earlier:
                scores += outputs_on(student, earlier, self.data.train, 256, True) - self.g
        views = Views(self.data.train, settings.batch_size, settings.seed, augmentation)
        past = Past(earlier, self.guide.near(root_device(settings)), self.g, scores, True, online)
        Training(trained, past, loss, views, settings).advance_(settings.epochs)
        for student in earlier:
            student.cpu()
        return len(views) * views.batch_size * settings.epochs, online

    def _finished(
        self,
        folder: Path,
        ensemble: Distilled,
        facts: dict[str, Any],
        views: int,
        online: bool,
        earlier: Sequence[nn.Module],
    ) -> Learned:
        macs = stage_macs(ensemble, self.example)
        before = sum(cost.macs(student, (self.example, {})) for student in earlier)
        passed = (self.guide.macs or 0) + before if online else 0
        facts |= {
            "status": "finished",
            "versions": versions(),
            "machine": runs.machine() | {"threads": torch.get_num_threads()},
            "stage_macs": macs,
            "parameters": cost.parameters(ensemble),
            "training_macs": views * (3 * sum(macs) + passed),
        }
        parts = {"validation": self.data.validation, "test": self.data.test}
        outputs = {part: collect(ensemble, split, classes=self.data.classes, costs=macs) for part, split in parts.items()}
        save_weights(ensemble, folder)
        for part, stored in outputs.items():
            stored.save(folder / "outputs" / f"{part}.safetensors")
        write_json(folder / "run.json", facts)
        return Learned(ensemble, outputs, facts)

    def _identity(self, trained: nn.Module, settings: Settings, about: dict[str, Any]) -> dict[str, Any]:
        return {
            "settings": settings.deciding(),
            "data": self.data.fingerprint(),
            "teacher": self.guide.identity,
            "structure": structure(trained),
            "tensors": [list(t.shape) for t in trained.state_dict().values()],
            "about": about,
        }
