"""Links: values against loops and hand-worked tables, that no gradient passes, and what can't be brought together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from quorate.cost import macs
from quorate.distil.links import Incompatible, Link, check
from quorate.graphs.segments import Boundary

KINDS = {  # shape of an activation with 3 channels, with 5, the axis
    "flat": ((3,), (5,), 1),
    "1-D": ((3, 7), (5, 7), 1),
    "2-D": ((3, 4, 6), (5, 4, 6), 1),
    "3-D": ((3, 2, 3, 4), (5, 2, 3, 4), 1),
    "tokens": ((7, 3), (7, 5), 2),
    "channels last": ((4, 6, 3), (4, 6, 5), 3),
}


def linked(source: Any, target: Any, axis: int | None = 1, gate: bool = True, there: Any = "same") -> Link:
    return Link(Boundary(tuple(source), axis), Boundary(tuple(target), axis if there == "same" else there), gate)


def test_equal_shapes_need_no_projection_and_the_gate_starts_at_zero() -> None:
    for shape, axis in (((4, 3, 3), 1), ((5, 4), 2), ((6,), 1), ((4, 3, 3), None)):
        link, h = linked(shape, shape, axis), torch.randn(2, *shape)
        assert isinstance(link.project, nn.Identity)
        assert [*dict(link.named_parameters())] == ["alpha"]
        assert torch.equal(link(h), torch.zeros_like(h))
        with torch.no_grad():
            link.alpha.fill_(-1.5)  # type: ignore[union-attr]
        assert torch.equal(link(h), -1.5 * h)


def test_without_a_gate_it_is_the_projection_alone() -> None:
    h = torch.randn(2, 3, 5)
    assert torch.equal(linked((3, 5), (3, 5), gate=False)(h), h)
    assert not [*linked((3, 5), (3, 5), gate=False).parameters()]
    link = linked((3, 5), (4, 5), gate=False)
    assert link.alpha is None
    assert torch.equal(link(h), link.project(h))


@pytest.mark.parametrize("kind", KINDS)
def test_the_projection_acts_on_channels_at_every_position_alone(kind: str) -> None:
    source, target, axis = KINDS[kind]
    link, h = linked(source, target, axis).double(), torch.randn(4, *source, dtype=torch.float64)
    assert [name for name, _ in link.project.named_parameters()] == ["weight"]  # no bias
    with torch.no_grad():
        link.alpha.fill_(0.7)  # type: ignore[union-attr]
        found = link(h)
    weight = link.project.weight.detach().reshape(5, 3)  # type: ignore[union-attr, operator]
    expected = 0.7 * torch.einsum("oc,bc...->bo...", weight, h.movedim(axis, 1)).movedim(1, axis)
    assert found.shape == (4, *target)
    assert (found - expected).abs().max() < 1e-14


RESIZED = [  # (source, target, values in, values out) of one channel
    ((1, 4), (1, 2), [1.0, 2, 3, 6], [1.5, 4.5]),
    ((1, 5), (1, 2), [1.0, 2, 3, 4, 8], [2.0, 5.0]),  # means of positions 0-2 and 2-4
    ((1, 2), (1, 4), [1.0, 5], [1.0, 1, 5, 5]),
    ((1, 3), (1, 5), [1.0, 2, 3], [1.0, 1, 2, 2, 3]),  # ⌊j · 3/5⌋
    ((1, 2, 2), (1, 1, 1), [1.0, 2, 3, 6], [3.0]),
    ((1, 1, 2), (1, 2, 4), [1.0, 5], [1.0, 1, 5, 5] * 2),
    ((1, 4, 1), (1, 2, 3), [1.0, 3, 5, 9], [1.0, 1, 1, 5, 5, 5]),  # more positions in the end: the nearest in both directions
    ((1, 4, 1), (1, 1, 2), [1.0, 3, 5, 9], [4.5, 4.5]),  # fewer: means
    ((1, 2, 1, 2), (1, 1, 1, 1), [1.0, 2, 3, 6], [3.0]),
    ((1, 1, 1, 2), (1, 2, 1, 2), [1.0, 2], [1.0, 2, 1, 2]),
]


@pytest.mark.parametrize(("source", "target", "given", "expected"), RESIZED)
def test_positions_are_averaged_or_repeated(source: Any, target: Any, given: list[float], expected: list[float]) -> None:
    found = linked(source, target, gate=False)(torch.tensor(given).reshape(1, *source))
    assert found.shape == (1, *target)
    assert found.flatten().tolist() == expected


def test_resize_and_projection_together_and_where_it_is_cheaper() -> None:
    h = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    down = linked((2, 4, 4), (5, 2, 2), gate=False).double()
    weight = down.project.weight.detach()[:, :, 0, 0]  # type: ignore[union-attr, operator, index]
    small = h.reshape(3, 2, 2, 2, 2, 2).mean((3, 5))
    assert (down(h) - torch.einsum("oc,bchw->bohw", weight, small)).abs().max() < 1e-14
    up = linked((2, 2, 2), (5, 4, 4), gate=False).double()
    weight = up.project.weight.detach()[:, :, 0, 0]  # type: ignore[union-attr, operator, index]
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (up(small) - torch.einsum("oc,bchw->bohw", weight, large)).abs().max() < 1e-14
    assert macs(down, h) == macs(up, small) == 2 * 5 * 2 * 2  # the projection is at the smaller number of positions


def test_no_gradient_reaches_the_source() -> None:
    for target in ((3, 4), (5, 4), (5, 8), (5, 2)):
        h = torch.randn(2, 3, 4, requires_grad=True)
        link = linked((3, 4), target)
        with torch.no_grad():
            link.alpha.fill_(0.5)  # type: ignore[union-attr]
        link(h).square().sum().backward()
        assert h.grad is None
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in link.parameters())
        assert not linked((3, 4), (3, 4), gate=False)(h).requires_grad


def test_at_gate_zero_alpha_gets_a_gradient_and_the_projection_none() -> None:
    link, h = linked((3, 4), (5, 4)), torch.randn(2, 3, 4)
    link(h).sum().backward()
    assert link.alpha is not None
    expected = float(link.project(h).sum().detach())
    assert float(link.alpha.grad) == pytest.approx(expected, rel=1e-5)  # type: ignore[arg-type]
    assert float(link.project.weight.grad.abs().sum()) == 0.0  # type: ignore[union-attr, operator]


@pytest.mark.parametrize(
    ("source", "axis", "target", "there", "told"),
    [
        ((3, 4), 1, (3, 4, 4), 1, "as many axes"),
        ((3, 4), 1, (4, 3), 2, "same one"),
        ((7, 3), 2, (6, 3), 2, "same number of tokens"),
        ((7, 3), 2, (6, 5), 2, "same number of tokens"),
        ((4, 6, 3), 3, (4, 5, 3), 3, "same number of tokens"),
        ((3, 4), None, (5, 4), 1, "axis of the channels is not known"),
        ((3, 4), 1, (5, 4), None, "axis of the channels is not known"),
        ((4, 3, 5), 2, (4, 3, 6), 2, "or on the last"),  # channels in the middle
        ((4, 3, 5), 2, (4, 2, 5), 2, "or on the last"),
        ((3, 2, 2, 2, 2), 1, (5, 2, 2, 2, 2), 1, "at most 3 axes"),
        ((), None, (3,), 1, "not known"),
    ],
)
def test_what_does_not_fit_is_refused(source: Any, axis: Any, target: Any, there: Any, told: str) -> None:
    one, two = Boundary(source, axis), Boundary(target, there)
    with pytest.raises(Incompatible, match=told) as caught:
        Link(one, two)
    assert "\n" not in str(caught.value)
    assert f"from an activation of shape {source} to one of {target}" in str(caught.value)
    with pytest.raises(ValueError, match=told):
        check(one, two)


def test_equal_shapes_fit_whatever_the_axes() -> None:
    for axis, there in ((None, None), (1, None), (1, 2), (2, 2)):
        link, h = linked((4, 3, 5), (4, 3, 5), axis, gate=False, there=there), torch.randn(2, 4, 3, 5)
        assert torch.equal(link(h), h)


def test_copies_devices_and_precisions() -> None:
    link = linked((3, 4), (5, 8))
    twin = copy.deepcopy(link)
    twin.load_state_dict(link.state_dict())
    with torch.no_grad():
        twin.alpha.fill_(1.0)  # type: ignore[union-attr]
    half: Tensor = twin.to(torch.bfloat16)(torch.randn(2, 3, 4, dtype=torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert link.to("meta")(torch.empty(2, 3, 4, device="meta")).shape == (2, 5, 8)
