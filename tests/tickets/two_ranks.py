"""Two data-parallel processes: ``python two_ranks.py FOLDER`` trains sparse in several ways; each writes what it saw as JSON."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from quorate.tickets import Gradient, Growth, Random, SparseTraining, digest

STEPS = 12  # five moves, one every two steps, and a step without


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 6)).double()


def batch(step: int, rank: int, micro: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * step + 10 * micro + rank)
    return torch.randn(5, 8, generator=generator, dtype=torch.float64), torch.randint(0, 6, (5,), generator=generator)


def step_(model: nn.Module, optimizer: torch.optim.Optimizer, step: int, ranks: list[int], micro: int, no_sync: bool) -> float:
    """One step on the ranks' batches, in micro-batches; the norm of the clipped gradients."""
    optimizer.zero_grad()
    for at in range(micro):
        x, y = (torch.cat(each) for each in zip(*(batch(step, rank, at) for rank in ranks), strict=True))
        alone = no_sync and at < micro - 1 and isinstance(model, DistributedDataParallel)
        with model.no_sync() if alone else nullcontext():  # type: ignore[operator]
            (nn.functional.cross_entropy(model(x), y) / micro).backward()
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.5))
    optimizer.step()
    return norm


def train(
    rank: int, growth: Growth, before: bool, micro: int = 1, no_sync: bool = True, bucket: bool = False, single: bool = False
) -> Any:
    """A run, sparse before or after the network is wrapped; ``single`` is one process with the data of both."""
    model: nn.Module = network(rank if before else 0)
    if single:
        model = network()
    elif not before:
        model = DistributedDataParallel(model, gradient_as_bucket_view=bucket)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    sparse = SparseTraining(model, optimizer, 0.4, growth=growth, every=2, seed=7 + rank)
    if before and not single:
        model = DistributedDataParallel(model, gradient_as_bucket_view=bucket)
    norms = [step_(model, optimizer, step, [0, 1] if single else [rank], micro, no_sync) for step in range(1, STEPS)]
    dead = any(bool(weight.grad[~sparse.masks[name]].any() or weight[~sparse.masks[name]].any()) for name, weight in sparse.weights.items()
               if weight.grad is not None)  # fmt: skip
    return {"digest": digest(sparse.masks), "moves": sparse.moves, "dead": dead, "norms": norms, "seed": sparse.seed}


def resumed(rank: int, folder: Path) -> Any:
    """Digests of a run, and of one that goes on from the first process's state in the middle of a window of gradients."""
    found = []
    for again in (False, True):
        model = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        sparse = SparseTraining(model, optimizer, 0.4, growth=Gradient(2), every=3)
        first = 1
        if again:
            weights, moments, state = torch.load(folder / "state.pt", weights_only=True)
            model.load_state_dict(weights)
            optimizer.load_state_dict(moments)
            sparse.load_state_dict(state)
            first = 6
        for step in range(first, STEPS):
            if step == 6 and not again and rank == 0:
                torch.save([model.state_dict(), optimizer.state_dict(), sparse.state_dict()], folder / "state.pt")
            step_(model, optimizer, step, [rank], 1, True)
        distributed.barrier()
        found.append([digest(sparse.masks), [float(each.detach().sum()) for each in model.parameters()]])
    return found


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 6)

    def forward(self, x: Tensor, both: bool) -> Tensor:
        return self.a(x) + (self.b(x) if both else 0)


def unused(rank: int) -> Any:
    """A branch that only the second process uses."""
    torch.manual_seed(0)
    model = DistributedDataParallel(Branches(), find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sparse = SparseTraining(model, optimizer, 0.4, every=1)
    first = sparse.masks["b.weight"]
    for step in range(3):
        torch.manual_seed(10 * step + rank)
        optimizer.zero_grad()
        model(torch.randn(4, 8), rank == 1).square().mean().backward()
        optimizer.step()
    return {"digest": digest(sparse.masks), "moved": not torch.equal(first, sparse.masks["b.weight"]), "moves": sparse.moves}


def refused(rank: int) -> Any:
    """What is raised on this process when the two are not alike."""
    messages = []

    def attempt(**settings: Any) -> SparseTraining | None:
        model = settings.pop("model", None) or network()
        optimizer = torch.optim.SGD(model.parameters(), 0.05)
        try:
            sparse = SparseTraining(model, optimizer, settings.pop("density", 0.4), **settings)
            if "state" not in settings:
                return sparse
        except (ValueError, RuntimeError, TypeError) as error:
            messages.append(f"{type(error).__name__}: {error}")
        return None

    sparse = attempt(every=3)
    assert sparse is not None
    state = sparse.state_dict()
    attempt(density=0.4 if rank else 7.0)  # one refuses
    attempt(density=0.4 if rank else 0.5)  # budgets differ
    attempt(model=nn.Linear(8, 6 + rank))  # networks differ
    attempt(dense=() if rank else 5)  # one can't even read it
    attempt(every=3, state=state | {"step": rank})  # steps differ
    attempt(every=3, state=state | ({"every": 9} if rank else {}))  # one refuses the state
    other = {name: bits.flip(0) for name, bits in state["masks"].items()}
    attempt(every=3, state=state | ({"masks": other} if rank else {}))  # masks differ
    return messages


def main() -> None:
    """Every way, and what came of it."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    child = os.fork()  # the imports take longer than the trainings
    rank = 0 if child else 1
    single = {"gradient": train(0, Gradient(), True, single=True), "micro": train(0, Gradient(), True, micro=2, single=True)}
    distributed.init_process_group(
        "gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = {
        "single": single,
        "gradient, before": train(rank, Gradient(), True),
        "gradient, after": train(rank, Gradient(), False, bucket=True),
        "gradient of two": train(rank, Gradient(2), False),
        "micro, no_sync": train(rank, Gradient(), True, micro=2, bucket=True),
        "micro, sync": train(rank, Gradient(), False, micro=2, no_sync=False),
        "random, before": train(rank, Random(), True),
        "random, after": train(rank, Random(), False),
        "resumed": resumed(rank, folder),
        "unused": unused(rank),
        "refused": refused(rank),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
