"""PackedLinear: published counts, M separate nn.Linear in float64 in every layout and backend, isolation, start values, refusals."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from quorate.packed.layers.arrangement import Packing, last_to_rows, rows_to_last, spread
from quorate.packed.layers.linear import PackedLinear


def size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("options", "parameters", "weight", "out"),
    [
        ({}, 33_280, (4, 128, 64), 512),
        ({"first": True}, 66_048, (4, 128, 128), 512),
        ({"last": True}, 66_560, (4, 256, 64), 1024),
        ({"gamma": 2}, 16_896, (8, 64, 32), 512),
        ({"bias": False}, 32_768, (4, 128, 64), 512),
        ({"first": True, "last": True}, 132_096, (4, 256, 128), 1024),
        ({"alpha": 1.5}, 18_816, (4, 96, 48), 384),
    ],
)
def test_counts(options: dict[str, Any], parameters: int, weight: tuple[int, ...], out: int) -> None:
    layer = PackedLinear(128, 256, members=4, **{"alpha": 2} | options)
    assert size(layer) == parameters
    assert layer.weight.shape == weight
    assert layer(torch.randn(3, layer.in_features)).shape == (3, out)


def block(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A plain layer of these values."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(bias)
    return layer


def by_hand(layer: PackedLinear, rows: Tensor) -> Tensor:
    """Rows (M · B, …, C) → rows, by one nn.Linear per member and subgroup."""
    outputs = []
    for m, x in enumerate(rows.chunk(layer.members)):
        mine = range(m * layer.gamma, (m + 1) * layer.gamma)
        biases = [None] * (m + 1) * layer.gamma if layer.bias is None else layer.bias.chunk(layer.members * layer.gamma)
        parts = zip(mine, x.chunk(layer.gamma, -1), strict=True)
        outputs.append(torch.cat([block(layer.weight[g], biases[g])(part) for g, part in parts], -1))
    return torch.cat(outputs)


@settings(max_examples=80, deadline=None)
@given(
    members=st.integers(1, 4),
    alpha=st.sampled_from([1, 2, 3, Fraction(3, 2)]),
    gamma=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    place=st.sampled_from(["first", "last", "both", "interior"]),
    layout=st.sampled_from(["channels", "rows", "other"]),
    backend=st.sampled_from(PackedLinear.BACKENDS),
    bias=st.booleans(),
    batch=st.integers(0, 3),
    between=st.lists(st.integers(1, 3), max_size=2),
    strided=st.booleans(),
)
def test_every_layout_is_separate_linear_layers(
    members: int,
    alpha: int | Fraction,
    gamma: int,
    widths: tuple[int, int],
    place: str,
    layout: Any,
    backend: str,
    bias: bool,
    batch: int,
    between: list[int],
    strided: bool,
) -> None:
    first, last = place in ("first", "both"), place in ("last", "both")
    gamma, layout = 1 if first or last else gamma, ("spread" if first else "gather") if layout == "other" else layout
    into, out = (2 * w * members * gamma for w in widths)
    layer = PackedLinear(into, out, members, alpha, gamma, bias, first, last, layout, dtype=torch.float64).set_backend_(backend)
    assert layer.in_features == (into if first else into * alpha)
    assert layer.out_features == out * (members if last else alpha)
    own = layer.in_features if first else layer.in_features // members
    width, rows = (own, batch * members) if layout == "rows" else (layer.in_features, batch)
    x = torch.randn(rows, *between, width, dtype=torch.float64)
    x = x.transpose(0, -1).contiguous().transpose(0, -1) if strided else x
    given_rows = x if layout == "rows" else spread(x, members) if first else last_to_rows(x, members)
    expected = by_hand(layer, given_rows)
    expected = rows_to_last(expected, members) if layout == "channels" else expected
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", PackedLinear.BACKENDS)
@pytest.mark.parametrize("gamma", [1, 2])
@pytest.mark.parametrize("layout", ["channels", "rows", "gather"])
def test_gradients_are_those_of_separate_layers(layout: Any, gamma: int, backend: str) -> None:
    layer = PackedLinear(12, 24, 3, 1, gamma, dtype=torch.float64).set_backend_(backend)
    x = torch.randn(*((6, 5, 4) if layout == "rows" else (2, 5, 12)), dtype=torch.float64, requires_grad=True)
    layer(x, layout).sin().sum().backward()
    for m in range(3):
        plain = layer.plain()
        with torch.no_grad():
            for name, view in layer.member(m).items():
                getattr(plain, name).copy_(view)
        mine = (x if layout == "rows" else last_to_rows(x, 3))[2 * m : 2 * m + 2].detach().requires_grad_()
        plain(mine).sin().sum().backward()
        packed = copy.deepcopy(layer)
        for name, parameter in packed.named_parameters():
            parameter.data = layer.get_parameter(name).grad  # so that `member` shows the gradients
        for name, view in packed.member(m).items():
            torch.testing.assert_close(plain.get_parameter(name).grad, view, rtol=1e-12, atol=1e-14)
        assert x.grad is not None
        rows = x.grad if layout == "rows" else last_to_rows(x.grad, 3)
        torch.testing.assert_close(mine.grad, rows[2 * m : 2 * m + 2], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("backend", PackedLinear.BACKENDS)
@pytest.mark.parametrize(("layout", "first"), [("rows", False), ("rows", True), ("spread", True), ("gather", False)])
def test_members_never_meet(layout: Any, first: bool, backend: str) -> None:
    """A NaN in a member's parameters, or in an input that only it reads, reaches none of the others' rows."""
    layer = PackedLinear(6, 6, 3, 2, first=first, layout=layout).set_backend_(backend)
    x = torch.randn(6 if layout == "rows" else 2, layer.in_features if first or layout == "gather" else 4)
    with torch.no_grad():
        layer.member(1)["weight"].fill_(math.nan)
        layer.member(1)["bias"].fill_(math.nan)
    out = layer(x)
    assert out.chunk(3)[1].isnan().all()
    assert not torch.cat([out.chunk(3)[0], out.chunk(3)[2]]).isnan().any()
    layer.zero_grad()
    out.chunk(3)[0].sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad[1:].any()


def test_rows_are_read_and_given_without_copies() -> None:
    layer = PackedLinear(8, 12, 2, 2, layout="rows")
    x = torch.randn(6, 5, 8)
    seen: list[int] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    with Spy(), torch.no_grad():
        layer(x)
    aten = torch.ops.aten
    views = {aten.view.default, aten.transpose.int, aten.unsqueeze.default, aten._unsafe_view.default}
    assert [op for op in seen if op not in views] == [aten.baddbmm.default]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_like_takes_all_that_a_linear_layer_is(first: bool, bias: bool, frozen: bool) -> None:
    source = nn.Linear(12, 24, bias, dtype=torch.float64).requires_grad_(not frozen)
    packing = Packing(4, Fraction(2), 1 if first else 3, first, False)
    layer = PackedLinear.like(source, packing)
    assert (layer.in_features, layer.out_features, layer.gamma) == (12 if first else 24, 48, packing.gamma)
    assert layer.weight.dtype == torch.float64
    assert (layer.bias is not None) == bias
    head = PackedLinear.like(NonDynamicallyQuantizableLinear(12, 24), Packing(4, Fraction(2), last=True))
    assert head.out_features == 96


def test_like_keeps_the_subgroups_of_a_member_taken_out() -> None:
    one = PackedLinear(24, 48, 2, 1, gamma=3).plain()
    assert type(one) is PackedLinear
    again = PackedLinear.like(one, Packing(2, Fraction(2), 1))
    assert (again.gamma, again.members, again.weight.shape) == (3, 2, (6, 8, 4))
    assert PackedLinear.fan_in(one, "weight") == 4
    assert PackedLinear.fan_in(nn.Linear(7, 3), "bias") == 7


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("options", "fan_in"), [({}, 32), ({"gamma": 2}, 16), ({"first": True}, 64), ({"last": True}, 32)])
def test_initial_values_fill_the_bound_of_the_groups_fan_in(options: dict[str, Any], fan_in: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer, bound = PackedLinear(64, 512, 4, 2, **options), 1 / math.sqrt(fan_in)
    for group in (*layer.weight, layer.bias):
        assert group.abs().max() <= bound
        assert group.abs().max() > 0.9 * bound
        assert group.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    before = layer.weight.clone()
    layer.reset_parameters()
    assert not torch.equal(before, layer.weight)


def test_backends_agree_and_share_a_state_dict() -> None:
    layer = PackedLinear(64, 64, 4, 2, gamma=2)
    twin = PackedLinear(64, 64, 4, 2, gamma=2).set_backend_("loop")
    assert (layer.backend, twin.backend) == ("baddbmm", "loop")
    twin.load_state_dict(layer.state_dict())
    assert sorted(layer.state_dict()) == ["bias", "weight"]
    x = torch.randn(8, 3, 128)
    torch.testing.assert_close(layer(x), twin(x), rtol=0, atol=1e-5)
    assert copy.deepcopy(twin).backend == "loop"


@pytest.mark.parametrize("backend", PackedLinear.BACKENDS)
def test_autocast_runs_in_bfloat16(backend: str) -> None:
    layer = PackedLinear(8, 8, 2, layout="rows").set_backend_(backend)
    x = torch.randn(6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x), rtol=0.05, atol=0.05)
    out.float().sum().backward()
    assert layer.weight.grad is not None


@pytest.mark.parametrize(
    ("batch", "gamma", "backend"),
    [
        (torch.export.Dim.DYNAMIC, 2, "baddbmm"),
        (torch.export.Dim("batch", min=1), 1, "baddbmm"),
        (torch.export.Dim("batch", min=1), 2, "loop"),
    ],
)
def test_export_with_a_dynamic_batch(batch: Any, gamma: int, backend: str) -> None:
    layers = [
        PackedLinear(6, 8, 2, first=True),
        PackedLinear(8, 8, 2, 2, gamma),
        PackedLinear(8, 8, 2, 2, gamma, layout="gather"),
        PackedLinear(8, 8, 2, 2, gamma, layout="rows"),
    ]
    net, x = nn.Sequential(*(layer.set_backend_(backend) for layer in layers)).eval(), torch.randn(7, 5, 6)
    program = torch.export.export(net, (torch.randn(3, 5, 6),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(x), net(x))


@pytest.mark.parametrize("layout", ["channels", "rows", "gather"])
def test_compiled_equals_eager(layout: Any) -> None:
    layer = PackedLinear(12, 12, 3, 2, gamma=2, layout=layout)
    x = torch.randn(3, 5, 8 if layout == "rows" else 24)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="eager")(x), layer(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PackedLinear(64, 63, 4),
            r"out_features: expected a width that times 2 divides into 4 equal groups, got 63; .*62 and 64",
        ),
        (lambda: PackedLinear(64, 64, 3), r"in_features: .* got 64; the nearest that do: 63 and 66"),
        (lambda: PackedLinear(64, 64, 4, 2, gamma=3), r"in_features: .* into 12 equal groups, got 64; .*: 60 and 66"),
        (lambda: PackedLinear(5, 64, 4, 1.5), r"in_features: .* times 3/2 .* got 5; the nearest that do: 8"),
        (lambda: PackedLinear(64, 64, 4, gamma=2, first=True), "gamma: expected 1 for a first layer, got 2"),
        (lambda: PackedLinear(64, 64, 0), "members: expected a positive int, got 0"),
        (lambda: PackedLinear(64, 64, 4, -2), "alpha: expected a positive number, got -2"),
        (lambda: PackedLinear(8, 8, 2, layout="row"), "layout: expected one of channels, rows, spread, gather, got 'row'"),  # type: ignore[arg-type]
        (
            lambda: PackedLinear(8, 8, 2, layout="spread"),
            "layout: .* got 'spread' for a layer that is not first; pass first=True",
        ),
        (
            lambda: PackedLinear(8, 8, 2, first=True)(torch.zeros(3, 8), "gather"),
            "layout: .* a first layer, got 'gather'; .* 'spread'",
        ),
        (lambda: PackedLinear(8, 8, 2)(torch.zeros(16)), r"expected an input \(B, …, 16\) in layout 'channels', got \(16,\)"),
        (lambda: PackedLinear(8, 8, 2)(torch.zeros(3, 8)), r"expected an input \(B, …, 16\) in layout 'channels', got \(3, 8\)"),
        (
            lambda: PackedLinear(8, 8, 2)(torch.zeros(3, 8), "rows"),
            r"expected an input \(2 · B, …, 8\) in layout 'rows', got \(3, 8\)",
        ),
        (lambda: PackedLinear(8, 8, 2).set_backend_("nhwc"), "PackedLinear: expected a backend of baddbmm, loop, got 'nhwc'"),
        (lambda: PackedLinear.like(nn.Bilinear(2, 2, 2), Packing(2, Fraction(2))), "expected an nn.Linear, got Bilinear"),
        (lambda: PackedLinear.like(PackedLinear(8, 8, 2), Packing(2, Fraction(2))), "expected an nn.Linear, got PackedLinear"),
    ],
)
def test_refusals(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_member_that_there_is_not() -> None:
    with pytest.raises(IndexError):
        PackedLinear(8, 8, 2, gamma=2).member(2)


def test_repr_names_what_is_packed() -> None:
    text = "members=4, gamma=2, bias=True, first=False, last=False, layout=rows, backend=baddbmm"
    assert text in repr(PackedLinear(64, 64, 4, gamma=2, layout="rows"))
