"""Saved after every step and gone on with, bit for bit, across moves, escapes and moves that are owed; wrong states are refused whole."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from quorate.tickets import NM, Blocks, ConstantFanIn, Gradient, Random, SparseTraining, Unstructured, digest

ESCAPES, STEPS = (5,), 8
Order = Literal["state last", "state first", "state to the constructor"]


def built(state: dict[str, Any] | None = None, seed: int = 0) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
    if state is not None:
        model.load_state_dict(state)
    return model, torch.optim.AdamW(model.parameters(), 0.05)


def sparse_on(model: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], **more: Any) -> SparseTraining:
    return SparseTraining(model, optimizer, settings.pop("density", 0.4), example=torch.zeros(1, 8), rows=6, **settings, **more)


def step_(model: nn.Module, optimizer: torch.optim.Optimizer, sparse: SparseTraining, step: int, overflow_at: int) -> None:
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(6, 8, generator=generator), torch.randint(0, 8, (6,), generator=generator)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    if step == overflow_at:
        loss = loss + (model[3].weight * torch.where(sparse.masks["3.weight"], 0.0, torch.inf)).nansum()
    loss.backward()
    optimizer.step()


def escape_(sparse: SparseTraining) -> None:
    if sparse.step in ESCAPES:
        sparse.move_(0.8)


def everything(model: nn.Module, optimizer: torch.optim.Optimizer, sparse: SparseTraining) -> list[Any]:
    return [
        digest(sparse.masks), digest(sparse.ever), sparse.step, sparse.moves, sparse.ledger and sparse.ledger.state_dict(),
        *model.state_dict().values(), *(v for w in model.parameters() for v in optimizer.state[w].values()),
    ]  # fmt: skip


def assert_equal(a: list[Any], b: list[Any]) -> None:
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, Tensor) else x == y


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize(
    ("settings", "overflow_at", "order"),
    [
        ({"growth": Gradient()}, 0, "state last"),
        ({"growth": Gradient()}, 3, "state first"),
        ({"growth": Gradient(2), "seed": 3}, 0, "state to the constructor"),
        ({"growth": Gradient(3)}, 6, "state to the constructor"),
        ({"growth": Random(), "seed": 5}, 0, "state last"),
        ({"growth": Random(), "pattern": Blocks(2, 4)}, 0, "state to the constructor"),
        ({"growth": Gradient(), "pattern": ConstantFanIn(0.9)}, 0, "state last"),
        ({"growth": Random(), "pattern": NM(1, 4), "density": 0.25, "distribution": "uniform"}, 0, "state first"),
    ],
    ids=str,
)
def test_a_resumed_run_is_the_run(settings: dict[str, Any], overflow_at: int, order: Order) -> None:
    model, optimizer = built()
    sparse = sparse_on(model, optimizer, dict(settings), every=3)
    sparse.gather_at = ESCAPES
    saved = []
    for step in range(STEPS + 1):
        if step:
            step_(model, optimizer, sparse, step, overflow_at)
        for escape in (False, True):  # before and after an escape
            if escape:
                escape_(sparse)
            saved.append((step, escape, through_a_file([model.state_dict(), optimizer.state_dict(), sparse.state_dict()])))
    assert sparse.moves == (2 if settings["growth"] == Gradient(3) else 3)
    expected = everything(model, optimizer, sparse)
    for step, escaped, (weights, moments, state) in saved:
        if order == "state to the constructor":
            model, optimizer = built(weights, seed=9)
            optimizer.load_state_dict(moments)
            sparse = sparse_on(model, optimizer, dict(settings), every=3, state=state)
        else:
            model, optimizer = built(seed=9)
            sparse = sparse_on(model, optimizer, dict(settings), every=3)
            loads: list[Callable[[], object]] = [
                lambda model=model, weights=weights: model.load_state_dict(weights),
                lambda optimizer=optimizer, moments=moments: optimizer.load_state_dict(moments),
                lambda sparse=sparse, state=state: sparse.load_state_dict(state),
            ]
            for load in loads if order == "state last" else loads[::-1]:
                load()
        if not escaped:
            escape_(sparse)
        for later in range(step + 1, STEPS + 1):
            step_(model, optimizer, sparse, later, overflow_at)
            escape_(sparse)
        assert_equal(everything(model, optimizer, sparse), expected)


def change(**values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | values


def without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {name: value for name, value in state.items() if name != key}


def in_masks(key: str, name: str, value: Tensor) -> Callable[[dict[str, Any]], Any]:
    return lambda state: state | {key: state[key] | {name: value}}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: 3, r"the state has format 'int': expected 'quorate-sparse-training/1', from SparseTraining.state_dict\(\)"),
        (lambda _: {}, "the state has format None: expected"),
        (change(format="quorate-ticket/1"), "the state has format 'quorate-ticket/1': expected"),
        (without("kept"), "the state lacks 'kept': expected all of what"),
        (change(seed=4), r"another seed \(there 4, here 0\): build alike"),
        (change(every=7), r"another every \(there 7, here 2\)"),
        (change(growth="Random()"), r"another growth \(there 'Random\(\)', here 'Gradient\(batches=1\)'\)"),
        (change(pattern="NM(n=2, m=4)"), r"another pattern \(there 'NM\(n=2, m=4\)', here 'Unstructured\(\)'\)"),
        (change(shapes={"0.weight": [2, 2]}), r"another shapes \(there {'0.weight': \[2, 2\]}, here "),
        (change(budget={"0.weight": 3}), "another budget"),
        (change(ledger=None), "the state is of a training without a ledger, this one is with: pass example= in both or neither"),
        (change(ledger={"rows": 3}), "state: expected network, rows, forward, gradient, got rows"),
        (change(step=-1), "the state has step=-1: expected an integer of at least 0, it is damaged"),
        (change(owed="x"), "the state has owed='x': expected"),
        (
            in_masks("masks", "0.weight", torch.zeros(3, dtype=torch.uint8)),
            r"packed bits are torch.uint8 of shape \(3,\): expected",
        ),
        (
            in_masks("masks", "0.weight", torch.full((16,), 255, dtype=torch.uint8)),
            "masks have 128 live weights in '0.weight': expected ",
        ),
        (
            in_masks("masks", "0.weight", torch.ones(16, dtype=torch.uint8)),
            "masks have 16 live weights in '0.weight': expected ",
        ),
        (
            in_masks("ever", "odd", torch.zeros(3)),
            r"the state's ever name 'odd': expected the weights \['0.weight', '3.weight'\]",
        ),
        (change(masks={}), "the state's masks lack '0.weight': expected those of all 2 weights, it is damaged"),
        (change(kept={"odd": torch.zeros(2)}), "the state's kept name 'odd'"),
        (
            change(kept={"0.weight": torch.zeros(2)}),
            r"gradient of '0.weight' has shape \(2,\): expected \(16, 8\), it is damaged",
        ),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    model, optimizer = built()
    sparse = sparse_on(model, optimizer, {}, every=2)
    for step in range(1, 4):
        step_(model, optimizer, sparse, step, 0)
    before = everything(model, optimizer, sparse)
    with pytest.raises(ValueError, match=message) as raised:
        sparse.load_state_dict(damage(sparse.state_dict() | {"step": 1}))
    assert "\n" not in str(raised.value)
    assert_equal(everything(model, optimizer, sparse), before)


def test_masks_that_lack_the_pattern_are_refused() -> None:
    model, optimizer = built()
    sparse = sparse_on(model, optimizer, {"pattern": NM(2, 4), "density": 0.5, "distribution": "uniform"}, every=2)
    state = sparse.state_dict()
    state["masks"]["0.weight"] = torch.tensor([0b00001111] * 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"^the state's masks of '0.weight' have not the form of NM\(n=2, m=4\): it is damaged$"):
        sparse.load_state_dict(state)


def test_a_refused_state_leaves_no_hooks_behind() -> None:
    model, optimizer = built()
    with pytest.raises(ValueError, match="the state has format None"):
        sparse_on(model, optimizer, {"pattern": Unstructured()}, every=2, state={})
    value = model[0].weight.clone()
    model(torch.randn(4, 8)).square().sum().backward()
    assert bool((model[0].weight.grad != 0).all())
    assert torch.equal(model[0].weight, value)


def test_a_state_saved_with_a_ledger_needs_one() -> None:
    model, optimizer = built()
    first = sparse_on(model, optimizer, {}, every=2)
    state = first.state_dict()
    first.remove()
    with pytest.raises(ValueError, match="the state is of a training with a ledger, this one is without"):
        SparseTraining(model, optimizer, 0.4, every=2, state=state)
