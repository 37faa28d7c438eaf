# ruff: noqa: ARG005
"""Steps in place change what is read later under the same name, and are refused where it is read under another."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packed_members import Between, Parts, Step, check_step, fitting, images
from quorate.packed import pack
from quorate.packed.trace import trace


def then(_: object, second: Tensor) -> Tensor:
    """The second, once the first has been computed."""
    return second


def views_of(h: Tensor) -> Tensor:
    flat = h.flatten(2)
    h.relu_()
    return flat


def parts_apart(h: Tensor) -> Tensor:
    """One row of pixels is changed, another one read."""
    rows = h.permute(2, 0, 1, 3)
    one, two = rows[0], rows[1]
    one *= 3
    return torch.cat([one, two, two, one], 2)


def items_of(h: Tensor) -> Tensor:
    halves = h.chunk(2, 1)
    halves[0].mul_(3)
    return torch.cat([halves[0], h], 1)


def added(h: Tensor, other: Tensor) -> Tensor:
    """+=, which changes what it is written on."""
    before = h
    h += other
    h *= 2
    return before


def counted(h: Tensor) -> Tensor:
    """+= of a number changes no tensor, and no other number."""
    rows = columns = h.shape[-1]
    rows += 1
    return h * rows / columns


ALLOWED: dict[str, tuple[Step, Parts | None]] = {
    "read later": (lambda s, h, x: then(h.relu_(), h), None),
    "read before and later": (lambda s, h, x: then(h.mul_(2), h) + h.mean((2, 3), keepdim=True), None),
    "in rows before, in channels later": (
        lambda s, h, x: h.permute(0, 2, 3, 1).abs().mean(-1)[:, None] + then(h.relu_(), h),
        None,
    ),
    "in channels, read in rows later": (lambda s, h, x: then(F.relu(h, inplace=True), h).permute(0, 2, 3, 1), None),
    "twice": (lambda s, h, x: then((h.add_(1), operator.imul(h, h)), h), None),
    "by a module": (
        lambda s, h, x: then(s.act(h), h) + h.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda w: {"act": nn.ReLU(inplace=True)},
    ),
    "of a part that is alone": (
        lambda s, h, x: parts_apart(h),
        None,
    ),
    "of the raw input": (lambda s, h, x: then(h, h + x.clone().mul_(2).mean(1, keepdim=True)), None),
    "by a parameter": (lambda s, h, x: then(h.add_(s.p), h), lambda w: {"p": nn.Parameter(torch.randn(w, 1, 1))}),
    "added to": (lambda s, h, x: added(h, h.tanh()), None),
    "added to, in rows": (lambda s, h, x: added(h.permute(0, 2, 3, 1), x.sum(1)[..., None]), None),
    "numbers": (lambda s, h, x: counted(h), None),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_is_read_later_is_the_steps_result(name: str) -> None:
    check_step(*ALLOWED[name])


REFUSED: dict[str, tuple[Step, Parts | None, str]] = {
    "a slice": (
        lambda s, h, x: then(h[:, :4].add_(1), h),
        None,
        "step 'add_': .* but 'stem' shares its memory and is read later; write",
    ),
    "a permutation": (lambda s, h, x: then(h.permute(0, 2, 3, 1).mul_(3.0), h), None, "step 'mul_': .*'stem' shares"),
    "a view made before": (lambda s, h, x: views_of(h), None, "step 'relu_': .*'flatten' shares its memory"),
    "a view of a view": (lambda s, h, x: then(h.flatten(2).unsqueeze(1).relu_(), h.flatten(1)), None, "'stem' shares"),
    "an item and its whole": (lambda s, h, x: items_of(h), None, "step 'mul_': .*'(stem|chunk)' shares"),
    "through dropout": (
        lambda s, h, x: then(s.d(h).relu_(), h),
        lambda w: {"d": nn.Dropout(0.5)},
        "step 'relu_': .*'stem' shares",
    ),
    "through a module": (
        lambda s, h, x: then(s.act(h.flatten(1)), h),
        lambda w: {"act": nn.ReLU(inplace=True)},
        "module 'act': .*'stem' shares",
    ),
    "added to a view": (lambda s, h, x: then(added(h.flatten(2), h.flatten(2).tanh()), h), None, "step 'add': .*'stem' shares"),
    "an output argument": (lambda s, h, x: then(torch.abs(h, out=h.view(h.shape)), h), None, "step 'abs_1': .*'stem' shares"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_read_later_through_another_name_is_refused(name: str) -> None:
    step, parts, message = REFUSED[name]
    for example in (None, images().float()):
        with pytest.raises(ValueError, match=message) as caught:
            pack(fitting(step, parts), members=2, alpha=1, example=example)
        assert "\n" not in str(caught.value)


def test_a_shared_buffer_cannot_take_up_members_values() -> None:
    model = Between(lambda s, h, x: then(s.b.add_(h.mean((1, 2, 3))), h), lambda w: {"b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"step 'add_': .*write it so that it gives a new tensor: members would share"):
        pack(model, members=2, alpha=1, example=images().float())


def test_steps_in_place_stay_in_place() -> None:
    """Only what reads them is changed, not what they do: they save memory in training."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(128, 2))
    names = [str(n.target) for n in trace(model).graph.nodes if n.op == "call_module"]
    assert names == ["0", "1", "2", "3"]
    assert pack(model).network.get_submodule("1").inplace


def test_the_users_tensors_are_untouched_by_the_proof() -> None:
    x = images().float()
    before = x.clone()
    pack(Between(lambda s, h, x: then(x.mul_(2), h) + x.mean(1, keepdim=True)), members=2, alpha=1, example=x)
    assert torch.equal(x, before)
