# ruff: noqa: ARG005
"""What is refused where members are narrower than the model, what an example is needed for, and models that are refused whole."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter

from packed_members import Between, Parts, Step, fitting, images
from quorate.packed import pack

Refused = dict[str, tuple[Step, Parts | None, str]]
NARROW: Refused = {  # where members are narrower than the model
    "a wide buffer": (
        lambda s, h, x: h * s.b,
        lambda w: {"b": torch.ones(w, 1, 1)},
        r"got a constant \(b\) as wide as the channels; make it a layer's",
    ),
    "wide numbers": (lambda s, h, x: h + torch.arange(s.w)[:, None, None], None, "as wide as the channels"),
    "one channel less": (
        lambda _, h, x: h[:, 1:],
        None,
        "expected a size that α/M = 1/2 divides, got 1; the nearest that do: 2; change it",
    ),
    "padded channels": (lambda _, h, x: F.pad(h, (0, 0, 0, 0, 0, 8)), None, "step 'pad': .*add channels by a 1×1 convolution"),
    "split oddly": (
        lambda _, h, x: h.split([3, 5], 1)[0],
        None,
        "expected a size that α/M = 1/2 divides, got 3; the nearest that do: 2 and 4",
    ),
    "a part of a parameter": (
        lambda s, h, x: h[:, :4] * s.p[:4],
        lambda w: {"p": Parameter(torch.ones(w, 1, 1))},
        "expected parameter 'p' in full along its width, got a slice",
    ),
    "an odd parameter": (
        lambda s, h, x: s.l(h.mean((2, 3))) + s.p,
        lambda w: {"l": nn.Linear(w, 7), "p": Parameter(torch.ones(7))},
        "got 7; the nearest that do: 6 and 8",
    ),
    "one head": (
        lambda s, h, x: s.l(h.flatten(2).transpose(1, 2)).unflatten(-1, (3, 8)).sum(-2),
        lambda w: {"l": nn.Linear(w, 3 * w)},
        "expected heads that α/M = 1/2 divides, got 3; legal are 2 and 4",
    ),
    "odd groups": (lambda s, h, x: s.n(h), lambda w: {"n": nn.GroupNorm(8, w)}, "cannot pack module 'n' .GroupNorm."),
}


@pytest.mark.parametrize("name", NARROW)
def test_refused_where_members_are_narrower(name: str) -> None:
    step, parts, message = NARROW[name]
    for example in (None, images().float()):
        with pytest.raises(ValueError, match=message if example is not None else "expected") as caught:
            pack(fitting(step, parts), members=2, alpha=1, example=example)
        assert "\n" not in str(caught.value)


BLIND: Refused = {  # told by an example alone
    "unknown rank": (
        lambda s, h, x: s.l(x.flatten(1)).unflatten(1, (-1, 4)).mean(1),
        lambda w: {"l": nn.Linear(48, 16 * w)},
        "expected a tensor whose dimensions are known, got one of unknown shape; pass example=",
    ),
    "pixels by number": (
        lambda s, h, x: h.view(-1, s.w, 16),
        None,
        "expected a shape that can be followed, got .*; pass example=",
    ),
    "shared tensors": (lambda s, h, x: h + x[:, :1], None, r"got a tensor that all members share \(getitem\); pass example="),
}


@pytest.mark.parametrize("name", BLIND)
def test_refused_without_an_example_alone(name: str) -> None:
    step, parts, message = BLIND[name]
    features = {"unknown rank": lambda _: 4}.get(name)
    with pytest.raises(ValueError, match=message) as caught:
        pack(Between(step, parts, features=features), members=2, alpha=1)
    assert "\n" not in str(caught.value)


def test_a_refusal_names_the_module_around_the_step() -> None:
    class Block(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.channel_shuffle(x, 2)

    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(Block()), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(
        ValueError, match=r"cannot pack step 'channel_shuffle' in module '1\.0': expected a step that keeps members"
    ):
        pack(model)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = Parameter(torch.eye(8))
        self.d = nn.Linear(8, 8)
        self.d.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c(self.d(self.b(self.a(x))))
        return y


class Several(nn.Module):
    def __init__(self, join: Any) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.join = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 8), join

    def forward(self, x: Tensor) -> Any:
        return self.join(self, self.stem(x))


WHOLE: dict[str, tuple[nn.Module, str]] = {
    "images": (
        nn.Sequential(nn.Conv2d(3, 8, 1)),
        r"step 'output': expected logits \(B, classes\), got \(B, 8, 0.2, 0.3\)|got \(B, 8, .*\); end the model",
    ),
    "no layer": (nn.Sequential(nn.Flatten()), "expected logits .*which no layer made"),
    "norm first": (
        nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)),
        "module '0': expected a Linear or convolution first, got BatchNorm2d",
    ),
    "lstm last": (nn.Sequential(nn.Linear(4, 8), nn.Unflatten(1, (1, 8)), nn.LSTM(8, 8, batch_first=True)), "expected"),
    "two outputs": (Several(lambda s, h: (s.one(h), s.two(h))), r"expected one tensor \(B, classes\), got tuple"),
    "behind the head": (
        Several(lambda s, h: behind(s, h)),
        "module 'two': expected a layer before the last one, got one behind it; add no layer to class scores",
    ),
    "head and features": (
        Several(lambda s, h: mixed(s, h)),
        "module .one.: expected a layer before the last one",
    ),
    "tied weights": (Tied(), "module 'd': expected its weight to be used once, but module 'b' uses it too; give each place"),
    "data-dependent branch": (
        Several(lambda s, h: s.one(h) if h.sum() > 0 else s.two(h)),
        "Several cannot be traced by torch.fx .*DeepEnsemble",
    ),
    "embedding of features": (
        nn.Sequential(nn.Linear(4, 8), nn.Embedding(8, 8), nn.Linear(8, 3)),
        "module '1': expected indices that all members share",
    ),
}


def behind(s: Any, h: Tensor) -> Tensor:
    one = s.one(h)
    y: Tensor = s.two(one) + one
    return y


def mixed(s: Any, h: Tensor) -> Tensor:
    y: Tensor = s.one(h) + s.two(h) + h
    return y


@pytest.mark.parametrize("name", WHOLE)
def test_refused_models(name: str) -> None:
    model, message = WHOLE[name]
    with pytest.raises(ValueError, match=message) as caught:
        pack(model)
    assert "\n" not in str(caught.value)


def test_operator_tables_hold_no_step_that_joins_rows() -> None:
    """Sizes and items aside, no rule is written for what lets one row read another without naming a dimension."""
    from quorate.packed.rules import FUNCTIONS, METHODS

    assert not {
        torch.cdist,
        torch.cov,
        torch.corrcoef,
        torch.outer,
        torch.inner,
        torch.dot,
        F.batch_norm,
        operator.setitem,
    } & set(FUNCTIONS)
    assert not {"unique", "scatter", "index_add", "view_as", "copy_", "set_", "item", "tolist"} & set(METHODS)
