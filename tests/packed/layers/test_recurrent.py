"""PackedLSTM, PackedGRU and PackedRNN against M separate networks: values, states, gradients, isolation, both backends, every option."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.recurrent import PackedGRU, PackedLSTM, PackedRecurrent, PackedRNN

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # of nn.LSTM alike

KINDS: dict[str, tuple[type[PackedRecurrent], dict[str, Any]]] = {
    "lstm": (PackedLSTM, {}),
    "projected": (PackedLSTM, {"proj_size": 2}),
    "gru": (PackedGRU, {}),
    "tanh": (PackedRNN, {}),
    "relu": (PackedRNN, {"nonlinearity": "relu"}),
}
B, T, C, H = 3, 4, 4, 6


def made(kind: str, members: int = 2, **options: Any) -> PackedRecurrent:
    cls, more = KINDS[kind]
    layer: PackedRecurrent = cls(C, H, members, **{"alpha": members, "dtype": torch.float64} | more | options)
    return layer


def plains(layer: PackedRecurrent) -> list[nn.Module]:
    """Each member as a plain layer with a copy of its values, in the mode of the packed one."""
    found = []
    for m in range(layer.members):
        plain: Any = layer.plain()
        plain.load_state_dict(layer.member(m))
        found.append(plain.train(layer.training))
    return found


def parts(x: Tensor, axis: int, members: int) -> list[Tensor]:
    return list(x.chunk(members, axis))


def flat(result: tuple[Tensor, Any]) -> list[Tensor]:
    """Output and states in one list."""
    return [result[0], *(result[1] if isinstance(result[1], tuple) else (result[1],))]


def reference(layer: PackedRecurrent, single: Sequence[nn.Module], x: Tensor, hx: list[Tensor], layout: str) -> list[Tensor]:
    """Output and last states of separate networks, put together as the layout says."""
    members, lstm, rows = layer.members, isinstance(layer, PackedLSTM), layout != "channels"
    batch = 0 if layer.batch_first else 1
    if layout == "rows":
        own = parts(x, batch, members)
    else:
        own = [x] * members if layer.first else parts(x, 2, members)
    states = [
        [s] * members if s.shape[1:] == (B, layer_size) else parts(s, 1 if rows else 2, members)
        for s, layer_size in zip(hx, state_sizes(layer), strict=False)
    ]
    outs = []
    for m, plain in enumerate(single):
        given = tuple(s[m].contiguous() for s in states)
        outs.append(flat(plain(own[m], (given if lstm else given[0]) if given else None)))
    join = [batch if rows else 2] + [1 if rows else 2] * (2 if lstm else 1)
    return [torch.cat(each, axis) for each, axis in zip(zip(*outs, strict=True), join, strict=True)]


def state_sizes(layer: PackedRecurrent) -> list[int]:
    hidden = layer.hidden_size // layer.members
    return [layer.proj_size // layer.members or hidden, hidden]


def an_input(layer: PackedRecurrent, layout: str) -> Tensor:
    rows = layer.members * B if layout == "rows" else B
    width = layer.input_size // (layer.members if layout == "rows" and not layer.first else 1)
    shape = (rows, T, width) if layer.batch_first else (T, rows, width)
    return torch.randn(shape, dtype=layer.get_parameter("weight_ih_l0").dtype, requires_grad=True)


def initial(layer: PackedRecurrent, layout: str, kind: str) -> list[Tensor]:
    """Initial states: none, own for each member, or shared."""
    count, m = layer.num_layers * (1 + layer.bidirectional), layer.members
    sizes = state_sizes(layer)[: 2 if isinstance(layer, PackedLSTM) else 1]
    shapes = {
        "none": [],
        "shared": [(count, B, size) for size in sizes],
        "own": [(count, B, m * size) if layout == "channels" else (count, m * B, size) for size in sizes],
    }[kind]
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def run(layer: PackedRecurrent, x: Tensor, hx: list[Tensor], layout: Any) -> list[Tensor]:
    given = None if not hx else tuple(hx) if isinstance(layer, PackedLSTM) else hx[0]
    return flat(layer(x, given, layout=layout))


@settings(max_examples=120, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    backend=st.sampled_from(PackedRecurrent.BACKENDS),
    members=st.integers(1, 3),
    place=st.sampled_from(
        [("channels", True), ("rows", True), ("spread", True), ("channels", False), ("rows", False), ("gather", False)]
    ),
    options=st.fixed_dictionaries(
        {
            "num_layers": st.integers(1, 2),
            "bias": st.booleans(),
            "batch_first": st.booleans(),
            "bidirectional": st.booleans(),
            "last": st.booleans(),
        }
    ),
    states=st.sampled_from(["none", "own", "shared"]),
    seed=st.integers(0, 9),
)
def test_equals_separate_networks(
    kind: str, backend: str, members: int, place: tuple[str, bool], options: dict[str, bool], states: str, seed: int
) -> None:
    torch.manual_seed(seed)
    layout, first = place
    layer = made(kind, members, first=first, **options)
    layer.set_backend_(backend)
    single = plains(layer)
    x, hx = an_input(layer, layout), initial(layer, layout, states)
    ours, theirs = run(layer, x, hx, layout), reference(layer, single, x, hx, layout)
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() < 1e-12
    factors = [torch.randn_like(a) for a in ours]
    inputs = [x, *hx]
    grads = [
        torch.autograd.grad(sum((a * f).sum() for a, f in zip(outs, factors, strict=True)), [*inputs, *weights])
        for outs, weights in (
            (ours, list(layer.parameters())),
            (theirs, [p for plain in single for p in plain.parameters()]),
        )
    ]
    for a, b in zip(grads[0][: len(inputs)], grads[1][: len(inputs)], strict=True):
        assert (a - b).abs().max() < 1e-11
    per, (mine, others) = len(list(layer.parameters())), (g[len(inputs) :] for g in grads)
    for m in range(members):
        for a, b in zip(mine, others[m * per : (m + 1) * per], strict=True):
            assert (a[m] - b).abs().max() < 1e-11


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", PackedRecurrent.BACKENDS)
@pytest.mark.parametrize("layout", ["channels", "rows"])
def test_isolation(kind: str, backend: str, layout: Any) -> None:
    layer = made(kind, 3, bidirectional=True, num_layers=2)
    layer.set_backend_(backend)
    x = an_input(layer, layout)
    for outs in run(layer, x, [], layout):
        axis = 2 if layout == "channels" else 1
        for m, out in enumerate(parts(outs, axis, 3)):
            grads = torch.autograd.grad(out.sum(), [x, *layer.parameters()], retain_graph=True)
            seen = torch.stack([part.abs().sum() for part in parts(grads[0], axis, 3)])
            others = [i for i in range(3) if i != m]
            assert seen[m] > 0
            assert not seen[others].any()
            assert grads[1][m].any()
            assert not any(grad[others].any() for grad in grads[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_draws_as_separate_networks_in_turn(kind: str) -> None:
    layer = made(kind, 2, dropout=0.5, num_layers=3)
    x = an_input(layer, "channels")
    torch.manual_seed(3)
    ours = run(layer, x, [], None)
    torch.manual_seed(3)
    theirs = reference(layer, plains(layer), x, [], "channels")
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(ours, theirs, strict=True))
    layer.eval()
    assert torch.equal(run(layer, x, [], None)[0], run(layer, x, [], None)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_batched_dropout(kind: str) -> None:
    torch.manual_seed(0)
    layer = made(kind, 2, dropout=1.0, num_layers=2, bidirectional=True)
    x = an_input(layer, "channels")
    layer.set_backend_("batched")
    ours, theirs = run(layer, x, [], None), reference(layer, plains(layer), x, [], "channels")  # all between layers is dropped
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(ours, theirs, strict=True))
    layer = made(kind, 2, dropout=0.5, num_layers=2, first=True)
    layer.set_backend_("batched")
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter[1] = parameter[0]
    a, b = parts(run(layer, an_input(layer, "channels"), [], None)[0], 2, 2)
    assert not torch.equal(a, b)
    layer.eval()
    a, b = parts(run(layer, an_input(layer, "channels"), [], None)[0], 2, 2)
    assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_start_and_names(kind: str) -> None:
    cls, more = KINDS[kind]
    layer = cls(16, 32, 4, **more | ({"proj_size": 8} if kind == "projected" else {}), num_layers=2, bidirectional=True)
    gates, out = {"lstm": 4, "projected": 4, "gru": 3}.get(kind, 1), 4 if kind == "projected" else 16
    assert layer.get_parameter("weight_ih_l0").shape == (4, gates * 16, 8)
    assert layer.get_parameter("weight_ih_l1_reverse").shape == (4, gates * 16, 2 * out)
    assert layer.get_parameter("weight_hh_l1").shape == (4, gates * 16, out)
    assert (layer.input_size, layer.hidden_size, layer.groups, layer.gamma) == (32, 64, 4, 1)
    plain = layer.plain()
    assert list(layer.member(1)) == list(plain.state_dict())
    assert layer.member(1)["weight_hh_l0"].data_ptr() == layer.get_parameter("weight_hh_l0")[1].data_ptr()
    bounds = torch.stack([p.abs().amax() for p in layer.parameters()])
    assert (bounds <= 1 / 16**0.5).all()
    assert (bounds[0] > 0.24).all()
    assert cls.fan_in(plain, "weight_ih_l0") == 16


@pytest.mark.parametrize("kind", KINDS)
def test_first_and_last_widths(kind: str) -> None:
    cls, more = KINDS[kind]
    layer = cls(3, 8, 4, 2, **more, first=True, last=True)
    assert layer.input_size == 3
    assert (layer.proj_size or layer.hidden_size) == 4 * (more.get("proj_size") or 8)
    assert layer(torch.randn(5, 2, 3))[0].shape == (5, 2, 4 * (more.get("proj_size") or 8))


def settings_of(module: nn.Module) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}


@pytest.mark.parametrize("change", ["num_layers", "bias", "batch_first", "dropout", "bidirectional", "single_dropout"])
@pytest.mark.parametrize("kind", KINDS)
def test_like_and_plain_carry_every_setting(kind: str, change: str) -> None:
    values: dict[str, Any] = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.3, "bidirectional": True}
    options = {change: values[change]} if change in values else {}
    make: Any = {"lstm": nn.LSTM, "projected": nn.LSTM, "gru": nn.GRU}.get(kind, nn.RNN)
    module = make(C, H, **KINDS[kind][1], **{"num_layers": 2} | options, dtype=torch.float64)
    if change == "single_dropout":  # has no effect, and PyTorch warned when it was made
        module = make(C, H, **KINDS[kind][1], dtype=torch.float64)
        module.dropout = 0.3
    layer = KINDS[kind][0].like(module, Packing(2, Fraction(2)))
    assert settings_of(layer.plain()) == settings_of(module)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    first = KINDS[kind][0].like(module, Packing(2, Fraction(2), first=True, last=True))
    assert (first.first, first.last, first.input_size) == (True, True, C)
    assert f"dropout={module.dropout}" in repr(layer)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "lstm",
            {"alpha": Fraction(1, 3)},
            "input_size: expected a width that times 1/3 divides into 2 .* nearest .* 6, got|nearest",
        ),
        ("lstm", {"proj_size": 6}, "proj_size: expected 0 or a size under hidden_size = 6, got 6; 0 projects nothing"),
        ("lstm", {"proj_size": 4, "alpha": 1, "last": True}, "proj_size: expected less than the member's hidden size 3, got 4"),
        ("gru", {"dropout": 1.5}, r"dropout: expected a probability in \[0, 1\], got 1.5"),
        ("gru", {"num_layers": 0}, "num_layers: expected a positive int, got 0"),
        ("tanh", {"nonlinearity": "gelu"}, 'nonlinearity: expected "tanh" or "relu", got \'gelu\''),
        ("tanh", {"layout": "spread"}, "layout: .* got 'spread' for a layer that is not first"),
    ],
)
def test_refused_settings(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        made(kind, 2, **options)
    assert "\n" not in str(error.value)


def test_refused_inputs() -> None:
    layer = made("lstm", 2, batch_first=True)
    x = torch.randn(4, T, 2 * C, dtype=torch.float64)
    h = torch.zeros(1, 4, 5)
    sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([4, 3, 2, 2]), batch_first=True)
    for bad, layout, message in (
        (sequence, None, "PackedLSTM: expected a padded tensor, got a PackedSequence; pad it with"),
        (x[0], None, r"expected an input \(B, T, 8\) in layout 'channels', got \(4, 8\); add a batch axis"),
        (x[..., :5], None, r"got \(4, 4, 5\)"),
        (x[:3, :, :C], "rows", r"expected an input \(2 · B, T, 4\) in layout 'rows', got \(3, 4, 4\)"),
        (x, "spread", "got 'spread'"),
    ):
        with pytest.raises(ValueError, match=message):
            layer(bad, layout=layout)
    with pytest.raises(
        ValueError, match=r"h_0: expected \(1, 4, 12\) in layout 'channels', or \(1, 4, 6\) for all members, got \(1, 4, 5\)"
    ):
        layer(x, (h, h))
    with pytest.raises(ValueError, match=r"hx: expected the pair \(h_0, c_0\) for an LSTM, got Tensor"):
        layer(x, h)
    with pytest.raises(ValueError, match=r"h_0: expected \(1, 8, 6\) in layout 'gather', .* got list"):
        made("gru", 2, batch_first=True)(x, [h], layout="gather")
    with pytest.raises(ValueError, match="expected a backend of loop, batched, got 'cudnn'"):
        layer.set_backend_("cudnn")
