"""Models that torch.fx cannot trace, packed module by module: right for every member, proved on the example, or refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from packed_members import assert_alone, assert_complete, assert_isolated, drawn, images, near
from quorate.packed import PackedLinear, pack, pack_members, unpack

X = images(4)


def checked(h: Tensor) -> Tensor:
    """A branch on values, which tracing cannot follow."""
    if not bool(h.isfinite().all()) and h.shape[0] < 0:
        raise ValueError("odd")
    return h


class Rows(nn.Module):
    """A loop over the rows, a branch on a shape, and layers of several kinds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.body = nn.ModuleList([nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(2, width), nn.PReLU()])
        self.recurrent = nn.GRU(width, width, batch_first=True)
        self.attention = nn.MultiheadAttention(width, width // 2, batch_first=True)
        self.last, self.head = nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = checked(self.norm(self.stem(x)).relu())
        for layer in self.body:
            h = h + layer(h) if h.shape[-1] > 1 else layer(h)
        h = torch.stack([checked(row) for row in h])
        t = self.recurrent(h.flatten(2).transpose(1, 2))[0]
        t = t + self.attention(t, t, t, need_weights=False)[0]
        y: Tensor = self.head(self.last(t).mean(1))
        return y


@pytest.mark.parametrize(("members", "alpha"), [(2, 1), (3, 3), (4, 2)])
def test_members_are_hand_written_narrow_models(members: int, alpha: int) -> None:
    torch.manual_seed(0)
    packed = drawn(pack(Rows(12).double(), members, alpha, example=X))
    assert packed.program.member is None
    assert_alone(packed, X, lambda: Rows(12 * alpha // members))
    assert_isolated(packed, X)
    assert_complete(packed)
    assert [type(m).__name__ for m in unpack(packed, 0).children()] == [type(m).__name__ for m in Rows(12).children()]


def test_roles_and_counts() -> None:
    rows = {row.name: row for row in pack(Rows(16), 4, 2, example=X.float()).explain()}
    assert rows["stem"].role == "first"
    assert rows["head"].role == "last"
    assert rows["body.0"].role == rows["recurrent"].role == rows["attention"].role == "interior"
    assert rows["norm"].role == rows["last"].role == rows["body.2"].role == "norm"
    assert (rows["stem"].parameters, rows["head"].parameters, rows["body.0"].parameters) == (32 * 28, 4 * (8 * 3 + 3), 4 * 8 * 8)


def test_copy_flags_state_and_round_trip() -> None:
    source = Rows(8).double().eval()
    source.norm.train()
    source.stem.weight.requires_grad_(False)
    before = copy.deepcopy(source.state_dict())
    packed = pack(source, members=3, alpha=3, init="copy", example=X)
    assert [n for n, p in packed.named_parameters() if not p.requires_grad] == ["network.stem.weight"]
    assert packed.network.get_submodule("norm").training
    assert not packed.training
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    for row in packed.eval()(X):
        near(row, source.eval()(X))
    fresh = pack(Rows(8).double(), members=3, alpha=3, example=X)
    fresh.load_state_dict(packed.state_dict())
    near(fresh.eval()(X), packed(X))
    twin = copy.deepcopy(packed)
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.zero_()
    near(twin(X), fresh(X))
    again = pack_members([unpack(twin, m) for m in range(3)], example=X)
    near(again.eval()(X), twin(X))


class Model(nn.Module):
    """Something untraceable around a first layer, a step that a test gives, and a head."""

    def __init__(self, step: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.stem, self.head, self.step = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(128, 3), step
        for name, part in parts.items():
            self.register_parameter(name, part) if isinstance(part, nn.Parameter) else self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.step(self, checked(self.stem(x))).flatten(1))
        return y


class Centre(nn.Module):
    """A norm of the user's own: statistics in a buffer, that members would share."""

    mean: Tensor

    def __init__(self, uses: str) -> None:
        super().__init__()
        self.uses = uses
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x - self.mean
        mean = x.mean()
        if self.uses != "batch":
            self.mean = 0.9 * self.mean + 0.1 * mean.detach()
        return x - mean if self.uses != "running" else x


MIXING: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "mean of rows": lambda _, h: h - h.mean(0),
    "a trace of the mean of rows": lambda _, h: h - 1e-9 * h.mean(0),
    "the row before": lambda _, h: torch.stack([h[i] + h[i - 1] for i in range(len(h))]),
    "sorted rows": lambda _, h: h[h.flatten(1).sum(1).argsort()],
    "mean of rows in training": lambda s, h: h - h.mean(0) if s.training else h,
    "functional batch norm": lambda _, h: F.batch_norm(h, None, None, training=True),
}
SEEN = "expected members that do not see each other, but member 0 reaches another one there"


@pytest.mark.parametrize("name", MIXING)
def test_rows_that_are_mixed_are_found(name: str) -> None:
    with pytest.raises(ValueError, match=SEEN) as caught:
        pack(Model(MIXING[name]), members=2, alpha=2, example=X.float())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("uses", ["batch", "both", "running"])
@pytest.mark.parametrize("rows", [1, 4])
def test_statistics_of_the_users_own_are_found(uses: str, rows: int) -> None:
    """Also those that are only used in evaluation, and only kept in training."""
    with pytest.raises(ValueError, match=SEEN):
        pack(Model(lambda s, h: s.centre(h), centre=Centre(uses)), members=2, alpha=2, example=X[:rows].float())


def _twice(s: Any, h: Tensor) -> Tensor:
    y: Tensor = s.a(s.a(h))
    return y


def _tied() -> dict[str, nn.Module]:
    a, b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
    b.weight = a.weight
    return {"a": a, "b": b}


def _wide() -> dict[str, nn.Module]:
    return {"a": nn.Conv2d(8, 8, 1)}


REFUSED: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "rows counted": (Model(lambda _, h: h / len(h)), {}, "member 0: expected the same logits alone as among the others"),
    "NaN swept away": (
        Model(lambda _, h: h - h.nan_to_num().mean(0)),
        {},
        "its forward does not treat the rows of a batch one by one",
    ),
    "half of the rows": (
        Model(lambda _, h: torch.cat([h[: len(h) // 2] * 2, h[len(h) // 2 :]])),
        {},
        "member 0: expected the same",
    ),
    "a layer used twice": (
        Model(_twice, **_wide()),
        {},
        "module 'a': expected forward to use it once, but it uses it 2 times; give each",
    ),
    "a layer not used": (
        Model(lambda _, h: h, **_wide()),
        {},
        "module 'a': expected forward to use it once, but it does not use it",
    ),
    "tied weights": (
        Model(lambda s, h: s.b(s.a(h)), **_tied()),
        {},
        "module 'b': expected weights of its own, but module 'a' has the same",
    ),
    "a bare parameter": (
        Model(lambda s, h: h * s.p, p=nn.Parameter(torch.ones(()))),
        {},
        r"cannot pack module '' \(Model\): expected parameters inside layers only, got 'p'",
    ),
    "a weight in a function": (
        Model(lambda s, h: s.a(h) + F.conv2d(h, s.a.weight), **_wide()),
        {},
        "Model: expected members that run as it does, but on the example they fail with RuntimeError",
    ),
    "gamma": (Model(lambda _, h: h), {"gamma": 2}, "gamma: expected 1 for Model, which torch.fx cannot trace, got 2"),
    "widths that do not divide": (
        Model(lambda _, h: h),
        {"members": 3, "alpha": 1},
        r"cannot pack module 'stem' \(Conv2d\): .*nearest that do: 6 and 9",
    ),
    "literal widths": (Model(lambda _, h: h.view(-1, 8, 16)), {"alpha": 1}, "expected"),
    "no layers": (nn.Sequential(nn.Flatten(), nn.Softmax(1)), {}, "expected"),
    "an example of another shape": (
        Model(lambda _, h: h),
        {"example": torch.zeros(2, 3, 5, 5)},
        r"example: expected a batch that the model takes, but it fails on \(2, 3, 5, 5\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    model, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        pack(model, **{"members": 2, "alpha": 2, "example": X.float()} | options)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_not_logits() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return checked(self.stem(x))

    with pytest.raises(
        ValueError, match=r"model: expected logits \(4, classes\) on the example, got \(4, 8, 4, 4\); end the model"
    ):
        pack(Maps(), members=2, alpha=2, example=X.float())


def test_an_example_is_needed() -> None:
    with pytest.raises(
        ValueError, match=r"Rows cannot be traced by torch.fx .*: expected a forward\(x\) without branches or loops"
    ):
        pack(Rows(8), members=2, alpha=1)


def test_hooks_are_refused() -> None:
    model = Rows(8)
    model.head.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"module 'head' \(Linear\): expected no hooks"):
        pack(model, members=2, alpha=1, example=X.float())


def test_exported_where_the_members_forward_can_be() -> None:
    class Shapes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(48, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x.flatten(1))
            y: Tensor = self.head(h if h.shape[1] > 100 else h.relu())
            return y

    packed = pack(Shapes(), members=2, alpha=1, example=X.float()).eval()
    program = torch.export.export(packed, (X.float(),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)).module()
    for rows in (X[:1].float(), X.float()):
        torch.testing.assert_close(program(rows), packed(rows), rtol=0, atol=1e-5)
    assert sum(isinstance(m, PackedLinear) for m in packed.modules()) == 2
