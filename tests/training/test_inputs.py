"""Members' own orders and augmentations: what each one sees, that a training of all is the trainings of each, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.baselines import MCDropout, SnapshotEnsemble
from quorate.data import Augmentation, Data, Split, digits
from quorate.ensemble import DeepEnsemble, OutputLayer
from quorate.models import MLP
from quorate.training import Loader, Settings, fit
from quorate.training.inputs import GOLDEN, check_inputs, member_seed
from quorate.training.mixing import draw, mix, mix_each

DIGITS = digits()
PLAIN = Data.build("plain", *DIGITS.splits().values(), DIGITS.ood, DIGITS.classes)
AUGMENTED = Data.build("digits", *DIGITS.splits().values(), DIGITS.ood, DIGITS.classes, Augmentation(pad=2, flip=True, fill=3))
OWN = ("own_augmentation", "own_order")


def rows(count: int, size: int = 4) -> Split:
    """Images whose pixels all hold the row's number; ids are not row numbers, labels are row numbers."""
    x = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, size, size))
    return Split(x, np.arange(count), np.arange(count)[::-1] + 100)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=5, unique=True))
def test_members_seeds_are_seeds_and_differ(seed: int, members: list[int]) -> None:
    seeds = [member_seed(seed, m) for m in members]
    assert len(set(seeds)) == len(members)
    assert all(0 <= each < 2**32 and type(each) is int for each in seeds)
    assert seeds[0] == (seed + members[0] * GOLDEN) % 2**32
    assert member_seed(seed, 0) == seed


def test_neighbouring_seeds_have_no_members_seed_in_common() -> None:
    seeds = [member_seed(seed, m) for seed in range(300) for m in range(64)]
    assert len(set(seeds)) == len(seeds)
    assert GOLDEN % 2 == 1


@given(st.integers(1, 30), st.integers(1, 35), st.integers(1, 4), st.integers(0, 9), st.booleans())
def test_each_members_batches_are_those_of_a_loader_of_its_own(
    count: int, size: int, members: int, seed: int, augmented: bool
) -> None:
    augmentation = Augmentation(pad=1, flip=True, fill=200) if augmented else None
    own = Loader(rows(count), size, seed, True, augmentation, "own_order", members)
    alone = [Loader(rows(count), size, member_seed(seed, m), True, augmentation) for m in range(members)]
    for _ in range(2):
        epoch = list(own)
        assert len(epoch) == len(own) == len(alone[0])
        seen = torch.cat([y for _, y in epoch], 1)
        assert all(len(set(member)) == len(member) for member in seen.tolist())  # a row at most once
        for (x, y), *others in zip(epoch, *alone, strict=True):
            for m, (x_alone, y_alone) in enumerate(others):
                assert torch.equal(x[m], x_alone)
                assert torch.equal(y[m], y_alone)


def test_members_of_one_order_have_augmentations_of_their_own() -> None:
    data, augmentation = rows(12), Augmentation(pad=2, flip=True, fill=255)
    loader = Loader(data, 4, 5, True, augmentation, "own_augmentation", 3)
    for epoch in range(2):
        for start, (x, y) in zip((0, 4, 8), loader, strict=True):
            taken = loader.order(epoch)[start : start + 4]
            assert y.tolist() == taken.tolist()
            for m in range(3):
                expected = augmentation.apply(data.batch(taken)[0], member_seed(5, m), epoch, data.ids[taken])
                assert torch.equal(x[m], expected)
            assert not torch.equal(x[0], x[1])
    shared = Loader(data, 4, 5, True, augmentation)
    for (x, y), (x_shared, y_shared) in zip(Loader(data, 4, 5, True, augmentation, "own_augmentation", 3), shared, strict=True):
        assert torch.equal(x[0], x_shared)
        assert torch.equal(y, y_shared)


def test_orders_of_members_and_epochs_all_differ() -> None:
    loader = Loader(rows(30), 10, 1, True, None, "own_order", 3)
    orders = {tuple(loader.order(epoch, m)) for epoch in range(3) for m in range(3)}
    assert len(orders) == 9
    assert all(sorted(order) == list(range(30)) for order in orders)


@given(st.integers(0, 14), st.sampled_from(OWN))
def test_from_any_point_the_same_batches_follow(stop: int, inputs: Any) -> None:
    def batches(loader: Loader, count: int) -> list[list[int]]:
        epochs = itertools.chain.from_iterable(iter(loader) for _ in range(5))
        return [[*x.flatten().tolist(), *y.flatten().tolist()] for x, y in itertools.islice(epochs, count)]

    first, resumed, whole = (Loader(rows(23), 5, 3, True, Augmentation(pad=1, fill=200), inputs, 2) for _ in range(3))
    batches(first, stop)
    assert set(first.state_dict()) == {"epoch", "step"}
    resumed.load_state_dict(first.state_dict())
    assert batches(resumed, 15 - stop) == batches(whole, 15)[stop:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"inputs": "own"},
            "inputs='own', shuffle=True: expected 'shared', 'own_augmentation', or 'own_order' with shuffle=True",
        ),
        ({"inputs": "own_order", "shuffle": False}, "inputs='own_order', shuffle=False: expected .* with shuffle=True"),
        ({"inputs": "own_order", "members": 0}, "members=0, seed=0: expected at least one member"),
        ({"inputs": "own_order", "seed": 2**32}, "members=1, seed=4294967296: expected .* a seed < 2³² for its own inputs"),
    ],
)
def test_a_loader_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        Loader(rows(9), 2, **{"shuffle": True, **options})
    assert "\n" not in str(refusal.value)


@given(st.integers(1, 4), st.sampled_from([(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)]), st.booleans(), st.integers(0, 50))
def test_each_members_batch_is_mixed_by_itself(members: int, alphas: tuple[float, float], regression: bool, step: int) -> None:
    settings = Settings(mixup=0.5 if regression else alphas[0], cutmix=0.0 if regression else alphas[1], seed=3)
    generator = torch.Generator().manual_seed(step)
    x = torch.randint(0, 256, (members, 5, 2, 6, 7), generator=generator, dtype=torch.uint8)
    y = torch.rand(members, 5, 2, generator=generator) if regression else torch.randint(0, 4, (members, 5), generator=generator)
    draws = [draw(settings, step, (5, 2, 6, 7), m) for m in range(members)]
    mixed, parts = mix_each(x, y, draws)
    for m in range(members):
        alone = Settings(mixup=settings.mixup, cutmix=settings.cutmix, seed=member_seed(3, m))
        expected, shares = mix(x[m], y[m], draw(alone, step, (5, 2, 6, 7)))
        assert torch.equal(mixed[m], expected.to(mixed.dtype))
        assert [float(share[m]) for share, _ in parts] == [share for share, _ in shares]
        assert all(torch.equal(own[m], targets) for (_, own), (_, targets) in zip(parts, shares, strict=True))
    unmixed, (only,) = mix_each(x, y, [None] * members)
    assert unmixed is x
    assert only[0].tolist() == [1.0] * members
    assert only[1] is y


class Odd(nn.Module):
    """An ensemble of two linear members whose ``each`` is what a test makes it."""

    def __init__(self, own: Callable[[Tensor], Tensor] | None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(64, 8)) for _ in range(2))
        if own is not None:
            self.each = own

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part(x.float()) for part in self.parts])


def fail(x: Tensor) -> Tensor:
    return x.float() @ torch.zeros(3, 3)


def refuse(x: Tensor) -> Tensor:
    raise ValueError(f"no {x.dtype}")


def single() -> nn.Module:
    return DeepEnsemble([nn.Sequential(DIGITS.normalise(), MLP(DIGITS.shape, 8, (4,), dropout=0.2))]).members[0]


@pytest.mark.parametrize(
    ("ensemble", "data", "options", "message"),
    [
        (
            lambda: Odd(None),
            DIGITS,
            {"inputs": "own_order"},
            r"inputs='own_order': Odd takes one input for all members: expected",
        ),
        (lambda: OutputLayer(Odd(None), nn.Tanh(), "logits"), DIGITS, {"inputs": "own_order"}, "OutputLayer takes one input for"),
        (lambda: Odd(fail), DIGITS, {"inputs": "own_order"}, r"Odd\.each can't take \(2, 2, 1, 8, 8\) \(.*\): expected \(M, B"),
        (lambda: Odd(refuse), DIGITS, {"inputs": "own_order"}, r"^inputs='own_order': no torch\.uint8$"),
        (
            lambda: Odd(lambda x: torch.zeros(x.shape[1], 8)),
            DIGITS,
            {"inputs": "own_order"},
            r"Odd\.each gives \(2, 8\) for \(2, 2, 1, 8, 8\), expected \(2, 2, 8\)",
        ),
        (
            lambda: MCDropout(single(), 3),
            DIGITS,
            {"inputs": "own_order"},
            "MCDropout trains one network, not its members, expected",
        ),
        (
            lambda: SnapshotEnsemble(single(), 2),
            AUGMENTED,
            {"inputs": "own_augmentation", "cycles": 2},
            "inputs='own_augmentation': SnapshotEnsemble trains one network, not its members, expected inputs='shared'",
        ),
        (
            lambda: DeepEnsemble([single()]),
            PLAIN,
            {"inputs": "own_augmentation"},
            r"plain has no augmentation and nothing is mixed, so all members would see the same: expected data with",
        ),
        (
            lambda: DeepEnsemble([single()]),
            AUGMENTED,
            {"inputs": "own_augmentation", "augment": False},
            "augment=False and nothing is",
        ),
        (
            lambda: DeepEnsemble([single()]),
            DIGITS,
            {"inputs": "own"},
            "inputs='own': expected one of shared, own_augmentation, own_order",
        ),
        (lambda: DeepEnsemble([single()]), DIGITS, {"inputs": None}, "inputs=None: expected text"),
    ],
)
def test_what_is_refused(ensemble: Callable[[], nn.Module], data: Data, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        fit(ensemble(), data, epochs=2, accelerator="cpu", progress=False, **options)
    assert "\n" not in str(refusal.value)


def test_what_is_possible_passes_the_check() -> None:
    ensemble = DeepEnsemble([single(), single()]).train()
    for data, options in [
        (AUGMENTED, {"inputs": "own_augmentation"}),
        (PLAIN, {"inputs": "own_augmentation", "mixup": 0.3}),
        (PLAIN, {"inputs": "own_augmentation", "cutmix": 0.3}),
        (DIGITS, {"inputs": "own_order"}),
    ]:
        check_inputs(ensemble, Settings(**options), data, 2)
    check_inputs(Odd(None), Settings(), DIGITS, 2)
    assert all(module.training for module in ensemble.modules())
