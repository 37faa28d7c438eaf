# ruff: noqa: ARG005
"""Models that mix the rows of the batch or read how many there are: right for every member, or refused; never something else."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from packed_members import Between, Step, assert_alone, check_step, drawn, images
from quorate.packed import pack, unpack

MIXED_AND_RIGHT: dict[str, Step] = {  # of the raw input: the same for all members, and for inputs of their own each by itself
    "centred by the batch": lambda s, h, x: h + (x - x.mean()).mean(1, keepdim=True),
    "rows in reverse": lambda s, h, x: h + x.flip(0)[:, :1],
    "rows shifted": lambda s, h, x: h + x.roll(1, 0).sum(1, keepdim=True),
    "rows summed up": lambda s, h, x: h + x.cumsum(0).mean(1, keepdim=True),
    "products of rows": lambda s, h, x: h + (x.flatten(1) @ x.flatten(1).t()).mean(1)[:, None, None, None],
    "relative to the largest": lambda s, h, x: h + (x / x.abs().amax((0, 1, 2, 3), keepdim=True))[:, :1],
}


@pytest.mark.parametrize("name", MIXED_AND_RIGHT)
def test_steps_on_the_raw_input_may_mix_its_rows(name: str) -> None:
    check_step(MIXED_AND_RIGHT[name])


class Standardised(nn.Module):
    """Without parameters, on the raw input: kept whole, whatever is inside."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1 and bool(x.std() > 0):
            x = (x - x.mean(0)) / (x.std(0) + 1)
        return x


def test_a_module_on_the_raw_input_sees_each_members_rows_alone() -> None:
    model = nn.Sequential(Standardised(), nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    for example in (None, images()):
        packed = drawn(pack(model, members=2, alpha=2, example=example))
        assert_alone(packed, images(), lambda: copy.deepcopy(model))


LOST: dict[str, Step] = {  # nothing of the batch is left that could be laid beside members' rows
    "mean of all": lambda s, h, x: h + x.mean(),
    "mean of rows": lambda s, h, x: h + x.mean(0)[:1],
    "mean of rows, kept": lambda s, h, x: h + x.mean(0, keepdim=True).mean(1, keepdim=True),
    "first row": lambda s, h, x: h + x[0].mean(),
    "first row, kept": lambda s, h, x: h + x[0:1, :1],
    "norm": lambda s, h, x: h / torch.norm(x),
    "rows flattened": lambda s, h, x: h + x.reshape(-1, x.shape[0], 4, 4)[:, :1].mean(),
}


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_has_lost_its_rows_is_refused(name: str, rows: int) -> None:
    with pytest.raises(ValueError, match="keep the rows of the batch apart: no step may mix them or cut them") as caught:
        pack(Between(LOST[name]), members=2, alpha=1, example=images(rows).float())
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="pass example="):
        pack(Between(LOST[name]), members=2, alpha=1)


def test_a_batch_size_that_is_written_into_the_model_is_refused() -> None:
    for step in (lambda s, h, x: h.view(3, -1), lambda s, h, x: h + x.reshape(3, -1)[:, :1, None, None]):
        with pytest.raises(
            ValueError,
            match=r"step 'view': expected|keep the rows of the batch apart|but on the example twice it fails",
        ):
            pack(Between(step), members=2, alpha=1, example=images().float())


def test_drawing_steps_draw_for_each_member() -> None:
    torch.manual_seed(0)
    model = Between(lambda s, h, x: h + torch.rand_like(h) * 1e-3 + torch.nn.functional.dropout(h, 0.5, True)).double()
    packed = pack(model, members=2, alpha=2, init="copy", example=images())
    rows = packed.eval()(images())
    assert not torch.allclose(rows[0], rows[1])  # equal members, other draws
    assert rows.isfinite().all()
    one = unpack(packed, 0).eval()
    assert not torch.equal(one(images()), one(images()))


def test_other_sizes_than_the_examples() -> None:
    """What the example tells decides nothing about sizes that steps read at run time."""
    model = Between(
        lambda s, h, x: (h.flatten(2).softmax(-1) * h.shape[-1]).unflatten(-1, (h.shape[2], -1)).mean((2, 3)),
        features=lambda w: w,
    )
    packed = drawn(pack(model.double(), members=2, alpha=1, example=images()))
    for size in (3, 6, 9):
        x = torch.randn(2, 3, size, size, dtype=torch.float64)
        for m in range(2):
            torch.testing.assert_close(packed.eval()(x)[m], unpack(packed, m)(x), rtol=0, atol=1e-12)
