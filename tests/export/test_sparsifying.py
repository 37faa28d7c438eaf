"""sparsify: modules, tickets and ensembles as callables, equal to PyTorch; what can't be, and what runs dense instead."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("llvmlite")
pytest.importorskip("onnxscript")

from quorate.ensemble import DeepEnsemble
from quorate.export import Sparsified, sparsify
from quorate.runtime import Engine
from quorate.runtime.sparse.machine import host
from quorate.runtime.sparse.sparse import SparseNetwork
from quorate.tickets import Tickets, load_ticket, save_ticket

RULE = "chosen by rule, not tuned for 1 thread"


def sparse_(module: nn.Module, density: float = 0.2, seed: int = 0) -> dict[str, Tensor]:
    """Matrices with so many live weights; their masks."""
    generator = torch.Generator().manual_seed(seed)
    masks = {name: torch.rand(p.shape, generator=generator) < density for name, p in module.named_parameters() if p.ndim > 1}
    with torch.no_grad():
        for name, mask in masks.items():
            module.get_parameter(name).mul_(mask)
    return masks


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    ).eval()  # fmt: skip


def pruned(seed: int = 0) -> nn.Sequential:
    made = network(seed)
    sparse_(made, seed=seed)
    return made


def perceptron(seed: int = 0, density: float | None = None) -> nn.Sequential:
    torch.manual_seed(seed)
    made = nn.Sequential(nn.Flatten(), nn.Linear(192, 32)).eval()
    if density is not None:
        sparse_(made, density)
    return made


X = torch.randn(19, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def close(found: np.ndarray, want: Tensor) -> None:
    expected = want.detach().numpy()
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * float(np.abs(expected).max()))


@pytest.fixture(scope="module")
def made() -> tuple[nn.Module, Sparsified]:
    module = pruned()
    return module, sparsify(module, X, threads=1)


def test_a_module(made: tuple[nn.Module, Sparsified]) -> None:
    module, fast = made
    assert fast.engines == (Engine("network", "sparse", RULE),)
    assert isinstance(fast.networks[0], SparseNetwork)
    assert 0 < fast.bytes < sum(p.numel() * 4 for p in module.parameters())
    for rows in (1, 7, 8, 19):
        close(fast(X[:rows]), module(X[:rows]))
    close(fast(X[:3].numpy()), module(X[:3]))
    close(fast(X[::2]), module(X[::2]))
    close(fast(X.clone().requires_grad_()), module(X))
    found = fast.explain("latency")["network"]
    live = [line.density for line in found.lines if line.density is not None]
    assert len(live) == 3
    assert all(0.1 < density < 0.35 for density in live)


def test_tensors_are_not_copied(made: tuple[nn.Module, Sparsified]) -> None:
    assert np.shares_memory(made[1]._checked(X), X.numpy())


def test_threads_get_the_same(made: tuple[nn.Module, Sparsified]) -> None:
    _, fast = made
    want = fast(X)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(fast, [X] * 8):
            np.testing.assert_array_equal(found, want)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            X.double(),
            r"x is float64 \(19, 3, 8, 8\): expected float32 \('B', 3, 8, 8\) with at least one row; convert or reshape it",
        ),
        (X[:, :2], r"x is float32 \(19, 2, 8, 8\): expected"),
        (X[:0], r"x is float32 \(0, 3, 8, 8\): expected .* at least one row"),
        (X[0], r"x is float32 \(3, 8, 8\): expected"),
        (torch.empty(2, 3, 8, 8, device="meta"), r"x is on meta: expected a tensor on the CPU, x\.cpu\(\)"),
    ],
)
def test_inputs_that_it_does_not_take(made: tuple[nn.Module, Sparsified], x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made[1](x)


class First(nn.Module):
    """One number a row."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = pruned()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, 0]


@pytest.mark.parametrize("shape", [(12, 4, 4), ()])
def test_outputs_of_any_shape(shape: tuple[int, ...]) -> None:
    module = pruned()[:4] if shape else First()
    fast = sparsify(module, X[:4], threads=1)
    assert shape == () or fast.engines[0].name == "sparse"
    close(fast(X), module(X))
    assert fast(X).shape[1:] == shape


def test_an_ensemble_of_tickets_is_one_call() -> None:
    models = [network(m) for m in range(2)]
    ensemble = Tickets(models, [sparse_(model, seed=m) for m, model in enumerate(models)]).eval()
    told: list[str] = []
    fast = sparsify(ensemble, X[:4], threads=2, progress=told.append)
    assert [engine.stage for engine in fast.engines] == ["member0", "member1"]
    assert {engine.name for engine in fast.engines} == {"sparse"}
    assert told[:3] == ["exporting member0", "comparing member0", "exporting member1"]
    close(fast(X), ensemble(X))
    assert list(fast.explain("throughput")) == ["member0", "member1"]
    assert fast.bytes == sum(each.nbytes for each in fast.networks)


def test_dense_members_run_dense_among_sparse_ones() -> None:
    ensemble = DeepEnsemble([pruned(0), network(1)]).eval()
    fast = sparsify(ensemble, X[:4], threads=1)
    assert [engine.name for engine in fast.engines] == ["sparse", "dense"]
    assert "too many to gain" in fast.engines[1].why
    close(fast(X), ensemble(X))
    assert list(fast.explain()) == ["member0"]


def test_a_ticket_and_the_network_it_belongs_to(tmp_path: Path) -> None:
    grown, bare = perceptron(3), perceptron(4)
    masks = sparse_(grown)
    save_ticket(grown, masks, tmp_path / "t")
    before = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    ticket = load_ticket(tmp_path / "t")
    for given in (tmp_path / "t", ticket):
        close(sparsify((bare, given), X[:3], threads=1)(X), grown(X))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bare.state_dict().items())
    with pytest.raises(ValueError, match=r"the ticket has '1\.weight' of shape"):
        sparsify((nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), ticket), X)
    with pytest.raises(ValueError, match=r"a ticket alone has no layers: expected \(module, ticket\)"):
        sparsify(ticket, X)  # type: ignore[arg-type]


class Reading(nn.Module):
    """An ensemble whose second stage reads the first."""

    def stages(self) -> list[nn.Module]:
        first, second = nn.Module(), nn.Module()
        for stage, name, reads, writes in ((first, "one", (), ("h",)), (second, "two", ("h",), ())):
            stage.name, stage.reads, stage.writes, stage.drops = name, reads, writes, reads  # type: ignore[assignment]
        return [first, second]


class Several(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (Reading(), X, r"stage 'two' reads h of an earlier one: expected stages that look at x alone; save a bundle"),
        (Several(), X, r"the module gives tuple for 8 rows: expected floats \(B, …\), one tensor"),
        (nn.Flatten(0), X, r"the module gives torch\.float32 \(1536,\) for 8 rows: expected floats \(B, …\)"),
        (network(), X[:0], r"the example has shape \(0, 3, 8, 8\): expected some rows of raw input"),
        (network(), X[:, :1], r"stage 'network' fails on the example, float32 \(8, 1, 8, 8\)"),
        ("model", X, r"model is str: expected a module, an ensemble, or \(module, ticket\)"),
        ((network(), 3), X, r"model is a tuple of \['Sequential', 'int'\]: expected \(module, ticket or its file's path\)"),
    ],
)
def test_what_can_not_be_sparsified(model: object, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        sparsify(model, x)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_kernels_that_compute_otherwise_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SparseNetwork.run
    monkeypatch.setattr(SparseNetwork, "run", lambda self, names, feed: [array + 0.01 for array in run(self, names, feed)])
    with pytest.raises(
        ValueError, match=r"network: for 1 row kernels give values that differ from PyTorch's by up to 0\.01, expected"
    ):
        sparsify(perceptron(0, 0.2), X[:2])


def test_tuned_once_it_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUORATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("quorate.export.sparsifying.TRIALS", 1)
    module, told = perceptron(0, 0.2), list[str]()
    fast = sparsify(module, X[:2], threads=1, tune=True, progress=told.append)
    assert "tuning network: the whole network" in told
    close(fast(X), module(X))
    again = sparsify(module, X[:2], threads=1)
    assert again.engines == fast.engines
    assert "tuned" in again.engines[0].why
    with pytest.raises(ValueError, match=r"tune=True: network has nothing to tune: no layer has a kernel here"):
        sparsify(nn.Flatten(), X[:2], tune=True)


def test_without_llvmlite_it_runs_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    module = perceptron(0, 0.2)
    for memo in (host.here, host.started):
        memo.cache_clear()
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    with pytest.warns(
        RuntimeWarning, match=r"it runs dense in ONNX Runtime: llvmlite is not installed: install quorate\[sparse\]"
    ) as said:
        fast = sparsify(module, X[:2])
    assert said[0].filename == __file__
    close(fast(X), module(X))
    assert fast.bytes == 0
    with pytest.raises(ValueError, match=r"no network runs sparse: network: llvmlite is not installed"):
        fast.explain()
    with pytest.raises(ValueError, match=r"tune=True: llvmlite is not installed: install quorate\[sparse\], or leave it out"):
        sparsify(module, X[:2], tune=True)
