"""``collect``: the same Outputs from every kind of data, streamed, with modes given back and every misfit named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from quorate.data import Split
from quorate.ensemble import DeepEnsemble, collect, stage_macs

N = 11
X = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])


def ensemble(members: int = 2) -> DeepEnsemble:
    torch.manual_seed(1)
    return DeepEnsemble([nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3)) for _ in range(members)])


class Stream(IterableDataset[Any]):
    """Rows whose number nobody knows, or says wrongly."""

    def __init__(self, rows: list[Any], said: int | None = None) -> None:
        self.rows, self.said = rows, said

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)

    def __len__(self) -> int:
        if self.said is None:
            raise TypeError("unknown")
        return self.said


class Endless(IterableDataset[Any]):
    """The same without ``__len__``."""

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


pairs = list(zip(X, Y, strict=True))
SOURCES: dict[str, Any] = {
    "split": Split(X.numpy(), Y.numpy(), np.arange(N)),
    "dataset": TensorDataset(X, Y),
    "list": pairs,
    "loader": DataLoader(TensorDataset(X, Y), batch_size=5),
    "iterable": Endless(),
    "iterable with a wrong length": Stream(pairs, said=3),
    "loader of an iterable": DataLoader(Endless(), batch_size=4),
    "loader of ready batches": DataLoader(Stream([(X[:7], Y[:7]), (X[7:], Y[7:])], said=2), batch_size=None),
    "loader with a sampler": DataLoader(TensorDataset(X.flip(0), Y.flip(0)), batch_size=3, sampler=list(range(N))[::-1]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_data_gives_the_same_outputs(source: str) -> None:
    model = ensemble().eval()
    with torch.no_grad():
        expected = model(X).numpy()
    outputs = collect(model, SOURCES[source], batch_size=3)
    assert (outputs.kind, outputs.combine, outputs.names, outputs.ordered) == ("logits", "probs", ("member0", "member1"), False)
    assert outputs.labels is not None
    assert outputs.labels.tolist() == Y.tolist()
    assert outputs.ids.tolist() == list(range(N))
    assert outputs.costs == (35.0, 35.0)
    for value, member in zip(outputs.values, expected, strict=True):
        assert value.dtype == np.float32
        np.testing.assert_allclose(value[0], member, atol=1e-6)


@given(st.integers(1, 30))
def test_the_batch_size_does_not_matter(size: int) -> None:
    model = ensemble()
    np.testing.assert_allclose(
        collect(model, TensorDataset(X, Y), batch_size=size).values[1], collect(model, TensorDataset(X, Y)).values[1], atol=1e-6
    )


def test_ids_classes_and_costs_are_stored() -> None:
    split = Split(X.numpy(), Y.numpy(), np.arange(N)[::-1] + 40)
    outputs = collect(ensemble(), split, classes=("a", "b", "c"), costs=[7.0, 8.5])
    assert outputs.ids.tolist() == [*range(50, 39, -1)]
    assert (outputs.classes, outputs.costs) == (("a", "b", "c"), (7.0, 8.5))


@pytest.mark.parametrize("data", [Split(X.numpy(), None, np.arange(N)), list(X), DataLoader(list(X), batch_size=4), X])
def test_unlabelled_data_give_unlabelled_outputs(data: Any) -> None:
    outputs = collect(ensemble(), data)
    assert outputs.labels is None
    assert len(outputs) == N


def test_fewer_or_more_rows_than_the_dataset_has() -> None:
    data = TensorDataset(X, Y)
    assert len(collect(ensemble(), DataLoader(data, batch_size=4, drop_last=True))) == 8
    twice = collect(ensemble(), DataLoader(data, batch_size=4, sampler=[3, 4, *range(N)]))
    assert twice.labels is not None
    assert twice.labels.tolist() == [0, 1, *Y.tolist()]


def test_a_stage_may_hold_several_members_and_carry() -> None:
    class First(nn.Module):
        name, reads, writes, drops = "first", (), ("kept", "unused"), ()

        def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            assert not carry
            return x[None, :, :3], {"kept": x * 2, "unused": x}

    class Second(nn.Module):
        name, reads, writes, drops = "second", ("kept",), (), ("kept",)

        def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            assert list(carry) == ["kept"]
            return torch.stack([x[:, :3], carry["kept"][:, 1:]]), {}

    class Both(nn.Module):
        combine = "logits"

        def stages(self) -> list[nn.Module]:
            return [First(), Second()]

    outputs = collect(Both(), list(X), batch_size=4)
    assert (outputs.members, outputs.ordered, outputs.combine, outputs.costs) == ((1, 2), True, "logits", (0.0, 0.0))
    np.testing.assert_array_equal(outputs.values[1][1], 2 * X[:, 1:])


def test_half_precision_is_stored_as_float32() -> None:
    outputs = collect(DeepEnsemble([nn.Linear(4, 3)]).to(torch.bfloat16), list(X.to(torch.bfloat16)))
    assert outputs.values[0].dtype == np.float32


def test_training_modes_are_given_back() -> None:
    model = ensemble().train()
    model.members[0][1].eval()
    before = [part.training for part in model.modules()]
    first = collect(model, list(X))
    assert [part.training for part in model.modules()] == before
    np.testing.assert_array_equal(first.values[0], collect(model, list(X)).values[0])  # no dropout while collecting
    with pytest.raises(RuntimeError):
        collect(model, list(X[:, :3]))
    assert [part.training for part in model.modules()] == before


class Ready(Dataset[Tensor]):
    """Rows made when asked for."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, i: int) -> Tensor:
        if i >= self.rows:
            raise IndexError(i)
        return torch.full((4,), i / self.rows)


def test_memory_does_not_grow_beyond_the_stored_outputs() -> None:
    model = DeepEnsemble([nn.Linear(4, 100) for _ in range(2)])
    collect(model, Ready(10), batch_size=64)

    def overhead(rows: int) -> int:
        tracemalloc.start()
        outputs = collect(model, Ready(rows), batch_size=64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak - sum(value.nbytes for value in outputs.values)

    small, large = overhead(500), overhead(4000)
    assert large - small < 0.15 * 3500 * 2 * 100 * 4  # ids and the check for NaN; a second copy of the logits would be 1.0


def test_nan_rows_are_named() -> None:
    class Breaking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[None, :, :3].log()

    x = torch.ones(10, 4)
    x[6, 1], x[9, 2] = -1.0, 0.0
    with pytest.raises(ValueError, match=r"ensemble has NaN or infinite values in rows 6, 9"):
        collect(Breaking(), list(x), batch_size=4)


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[None, :1]


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (list(X), {"batch_size": 0}, "batch_size=0: expected at least 1"),
    ([], {}, "the data has no rows: expected at least one"),
    ([], {"costs": [1.0, 1.0]}, "the data has no rows: expected at least one"),
    (Stream([]), {"costs": [1.0, 1.0]}, "the data has no rows: expected at least one"),
    (
        iter(X),
        {},
        r"data of type generator|data of type .*iterator.*: expected a quorate\.data\.Split, a torch Dataset or a DataLoader",
    ),
    (
        DataLoader(TensorDataset(X), shuffle=True),
        {},
        r"draws its rows at random \(RandomSampler\).*expected one with shuffle=False",
    ),
    (DataLoader(TensorDataset(X), sampler=SubsetRandomSampler([1, 2])), {}, "SubsetRandomSampler"),
    (DataLoader(TensorDataset(X), sampler=WeightedRandomSampler([1.0], 2)), {}, "WeightedRandomSampler"),
    (TensorDataset(X, Y, Y), {}, r"batches of \(Tensor, Tensor, Tensor\): expected \(x, y\) or x alone, with x a tensor"),
    ([{"x": row} for row in X], {}, r"batches of \(dict\): expected \(x, y\)"),
    (list(X), {"costs": [1.0]}, "expected 2 finite numbers"),
    (list(X), {"classes": ("a", "b")}, "2 class names for 3"),
]


@pytest.mark.parametrize(("data", "options", "message"), REFUSED)
def test_collect_refuses(data: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        collect(ensemble(), data, **options)
    assert "\n" not in str(refusal.value)


def test_a_stage_that_loses_rows_is_named() -> None:
    with pytest.raises(ValueError, match=r"stage 'ensemble' returned shape \(1, 1, 4\): expected \(members, 4, classes\)"):
        collect(Wrong(), list(X), batch_size=4, costs=[1.0])


class Gives(nn.Module):
    """A stage that returns what it is told to, whatever it declares."""

    def __init__(self, answer: Callable[[Tensor], Any], **declared: tuple[str, ...]) -> None:
        super().__init__()
        self.name, self.answer = "gives", answer
        self.reads, self.writes, self.drops = (declared.get(what, ()) for what in ("reads", "writes", "drops"))

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> Any:  # noqa: ARG002
        return self.answer(x)


class Pair(nn.Module):
    """The stage in question, and one that reads ``h``."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, Gives(lambda x: (x[None], {}), reads=("h",))
        self.second.name = "reader"

    def stages(self) -> list[nn.Module]:
        return [self.first, self.second]


H = ("h",)
BROKEN: list[tuple[nn.Module, str]] = [
    (Gives(lambda x: (x[None], {}), writes=H), r"stage 'gives' wrote \[\], it declares \['h'\]: return what is declared"),
    (Gives(lambda x: (x[None], {"h": x, "g": x}), writes=H), r"stage 'gives' wrote \['g', 'h'\], it declares \['h'\]"),
    (Gives(lambda x: (x[None], {"h": x}), writes=("g", "h")), r"stage 'gives' wrote \['h'\], it declares \['g', 'h'\]"),
    (Gives(lambda x: (x[None], {"h": x})), r"stage 'reader' reads \['h'\], which no earlier stage writes \(carried: \[\]\)"),
    (Gives(lambda x: (x[None], {"h": x}), writes=H, drops=H), r"stage 'reader' reads \['h'\], which no earlier stage writes"),
    (Gives(lambda x: (x[None], {"h": x.sum()}), writes=H), r"wrote 'h' of type Tensor, shape \(\), for \d rows: carried arrays are"),
    (Gives(lambda x: (x[None], {"h": x.T}), writes=H), r"wrote 'h' of type Tensor, shape \(4, \d\), for \d rows"),
    (Gives(lambda x: (x[None], {"h": x.tolist()}), writes=H), r"wrote 'h' of type list, shape \(\), for \d rows"),
    (Gives(lambda x: x[None], writes=H), r"stage 'gives' returned Tensor: expected \(members, dict of what it writes\)"),
    (Gives(lambda x: [x[None], {"h": x}], writes=H), r"stage 'gives' returned list: expected \(members, dict"),
    (Gives(lambda x: (x[None], x), writes=H), r"stage 'gives' returned tuple: expected \(members, dict"),
    (Gives(lambda x: (x, {"h": x}), writes=H), r"stage 'gives' returned shape \(\d, 4\): expected \(members, \d, classes\)"),
    (Gives(lambda x: ([x], {"h": x}), writes=H), r"stage 'gives' returned list: expected a tensor \(members, \d, classes\)"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "message"), BROKEN)
@pytest.mark.parametrize("run", [lambda e: collect(e, list(X), batch_size=3, costs=[1.0, 1.0]), lambda e: stage_macs(e, X[:3])])
def test_stages_that_break_their_contract_are_named(run: Callable[[nn.Module], Any], first: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        run(Pair(first))
    assert "\n" not in str(refusal.value)


def test_a_network_that_returns_no_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"stage 'ensemble' returned dict: expected a tensor \(members, 1, classes\)"):
        collect(Named(), list(X))


class Named(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x}
