"""product: separate linear layers and torch's own operators, derivatives of all kinds, what is saved and copied, where it stands back."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import functional_call, grad, hessian, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from quorate.packed.layers import product as file
from quorate.packed.layers.linear import PackedLinear
from quorate.packed.layers.product import product

Parts = tuple[Tensor, Tensor, Tensor | None]
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.* is deprecated:DeprecationWarning")  # forward mode uses it in torch


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights too are multiplied by the own operator."""
    monkeypatch.setattr(file, "WORTHWHILE", 0)


def parts(
    bias: bool = True, wanted: str = "xwb", dtype: torch.dtype = torch.float64, sizes: tuple[int, ...] = (3, 5, 4, 2)
) -> Parts:
    """x, weight and bias of (blocks, rows, in, out), those in `wanted` with gradients."""
    blocks, rows, into, out = sizes
    x, weight, values = torch.randn(blocks, rows, into), torch.randn(blocks, out, into), torch.randn(blocks, out)
    x, weight, values = (t.to(dtype).requires_grad_(n in wanted) for n, t in zip("xwb", (x, weight, values), strict=True))
    return x, weight, values if bias else None


def owned(y: Tensor) -> bool:
    """Whether the own operator made it."""
    return "Product" in type(y.grad_fn).__name__


class Spy(TorchDispatchMode):
    """Notes the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(1, 6), st.integers(1, 6)),
    bias=st.booleans(),
    wanted=st.sampled_from(["xwb", "xw", "w", "wb"]),
    strided=st.booleans(),
)
def test_values_and_gradients_are_those_of_separate_layers(sizes: Any, bias: bool, wanted: str, strided: bool) -> None:
    x, weight, values = leaves = parts(bias, wanted, sizes=sizes)
    given_x = x.transpose(0, 1).contiguous().transpose(0, 1) if strided else x
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(file, "WORTHWHILE", 0)
        y = product(given_x, weight, values)
    assert owned(y)
    assert torch.equal(y, file._affine(given_x, weight, values))
    biases = [None] * sizes[0] if values is None else values.unbind()
    expected = torch.stack([F.linear(*block) for block in zip(x.unbind(), weight.unbind(), biases, strict=True)])
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-12)
    asked = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
    g = torch.randn_like(y)
    for mine, theirs in zip(torch.autograd.grad(y, asked, g), torch.autograd.grad(expected, asked, g), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("bias", "wanted"), [(True, "xwb"), (False, "xw"), (True, "w"), (True, "wb")])
def test_first_and_second_derivatives_in_both_modes(bias: bool, wanted: str) -> None:
    leaves = parts(bias, wanted, sizes=(2, 3, 4, 2))
    assert torch.autograd.gradcheck(
        product, leaves, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(product, leaves, check_fwd_over_rev=True)


@pytest.mark.usefixtures("always")
def test_tangents_of_the_bias_or_of_a_frozen_input_alone() -> None:
    x, weight, bias = parts(wanted="w")
    assert bias is not None
    for index, leaf in ((0, x), (2, bias)):
        tangent, rest = torch.randn_like(leaf), [x, weight, bias]

        def along(value: Tensor, index: int = index, rest: list[Tensor] = rest) -> Tensor:
            return product(*rest[:index], value, *rest[index + 1 :])

        rest[index] = torch.zeros_like(leaf)
        linear = along(tangent) - along(rest[index])
        torch.testing.assert_close(jvp(along, (leaf,), (tangent,))[1], linear, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("always")
def test_gradients_per_sample_and_hessians_by_torch_func() -> None:
    x, weight, bias = parts()

    def loss(weight: Tensor, bias: Tensor | None, rows: Tensor) -> Tensor:
        return product(rows, weight, bias).sin().sum()

    each = vmap(grad(loss), (None, None, 1))(weight.detach(), bias, x.detach().unsqueeze(2))
    for row in range(x.shape[1]):
        (expected,) = torch.autograd.grad(file._affine(x[:, row : row + 1], weight, bias).sin().sum(), weight)
        torch.testing.assert_close(each[row], expected, rtol=0, atol=1e-12)
    stacked = vmap(grad(loss), (0, None, None))(torch.stack([weight, weight]).detach(), bias, x)
    torch.testing.assert_close(stacked[1], each.sum(0), rtol=0, atol=1e-12)
    curvature = hessian(loss)(weight.detach(), bias, x.detach())
    expected = torch.autograd.functional.hessian(lambda w: file._affine(x, w, bias).sin().sum(), weight.detach())
    torch.testing.assert_close(curvature, expected, rtol=0, atol=1e-12)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("bias", [True, False])
def test_autocast_gives_the_dtypes_and_gradients_of_torchs_product(bias: bool) -> None:
    leaves = parts(bias, dtype=torch.float32)
    asked = [leaf for leaf in leaves if leaf is not None]
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = product(*leaves), file._affine(*leaves)
        assert owned(mine)
        assert product(*parts(bias)).dtype == torch.float64
    assert mine.dtype == torch.bfloat16
    assert torch.equal(mine, theirs)
    g = torch.randn_like(mine)
    for a, b in zip(torch.autograd.grad(mine, asked, g), torch.autograd.grad(theirs, asked, g), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


@pytest.mark.usefixtures("always")
def test_the_weight_gradient_is_stored_without_a_copy() -> None:
    _, weight, bias = parts()
    counts: list[int] = []
    for multiply in (product, file._affine):
        weight.grad = None
        y = multiply(parts(wanted="")[0], weight, bias)
        g = torch.randn_like(y)
        with Spy() as spy:
            y.backward(g)
        assert weight.grad is not None
        assert weight.grad.stride() == weight.stride()
        counts.append(spy.seen.count("clone") + spy.seen.count("copy_") + spy.seen.count("new_empty_strided"))
    assert counts[0] == 0
    assert counts[1] > 0, "autograd of torch.bmm needs no copy any more: product can go"


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(("wanted", "saved"), [("w", ["x"]), ("wb", ["x"]), ("xw", ["x", "w"])])
def test_only_what_gradients_need_is_saved(wanted: str, saved: list[str]) -> None:
    leaves = parts(wanted=wanted)
    kept: list[str] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.extend(n for n, leaf in zip("xwb", leaves, strict=True) if leaf is not None and leaf.data_ptr() == tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        product(*leaves)
    assert kept == saved


@pytest.mark.usefixtures("always")
def test_gradients_accumulate_and_can_be_computed_again() -> None:
    x, weight, bias = parts()
    product(x, weight, bias).square().sum().backward(retain_graph=True)
    once = weight.grad.clone()  # type: ignore[union-attr]
    checkpoint(product, x, weight, bias, use_reentrant=False).square().sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, 2 * once, rtol=1e-14, atol=0)


@pytest.mark.usefixtures("always")
def test_blocks_never_meet_in_the_gradients() -> None:
    x, weight, bias = parts()
    y = product(x, weight, bias)
    y.backward(torch.zeros_like(y).index_fill_(0, torch.tensor(1), torch.nan))
    for leaf in (x, weight, bias):
        assert leaf is not None
        assert leaf.grad is not None
        assert leaf.grad[1].isnan().all()
        assert not leaf.grad[::2].any()


@pytest.mark.usefixtures("always")
def test_torchs_operators_where_no_gradient_of_the_weight_is_needed() -> None:
    assert not owned(product(*parts(wanted="xb")))
    with torch.no_grad():
        assert product(*parts()).grad_fn is None


def test_small_weights_keep_torchs_operators_and_large_ones_do_not() -> None:
    side = int((file.WORTHWHILE / 2) ** 0.5)
    assert owned(product(*parts(sizes=(2, 1, side, side))))
    assert not owned(product(*parts(sizes=(2, 1, side, side - 1))))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(3, 2, 4))

    def forward(self, x: Tensor) -> Tensor:
        return product(x, self.weight)


@pytest.mark.usefixtures("always")
def test_programs_hold_torchs_operators() -> None:
    layer, x = Layer(), torch.randn(3, 5, 4)
    program = torch.export.export(layer, (x,), dynamic_shapes=({1: torch.export.Dim("rows", min=1)},))
    assert torch.ops.aten.bmm.default in [node.target for node in program.graph.nodes]
    torch.testing.assert_close(program.module()(x[:, :2]), layer(x[:, :2]))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    compiled(x).sum().backward()
    expected = torch.autograd.grad(layer(x).sum(), layer.weight)[0]
    torch.testing.assert_close(layer.weight.grad, expected)
    torch.jit.save(torch.jit.trace(layer, (x,)), io.BytesIO())  # type: ignore[no-untyped-call]


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("layout", ["rows", "channels", "gather"])
@pytest.mark.parametrize("gamma", [1, 2])
def test_packed_linear_layers_train_by_it(layout: Any, gamma: int) -> None:
    layer = PackedLinear(8, 12, 2, 2, gamma, layout=layout, dtype=torch.float64)
    x = torch.randn(*((6, 8) if layout == "rows" else (3, 16)), dtype=torch.float64, requires_grad=True)
    with Spy() as spy:
        torch.autograd.grad(layer(x).sum(), list(layer.parameters()))
    assert spy.seen.count("baddbmm") == 1
    packed = torch.autograd.grad(layer(x).sin().sum(), [x, *layer.parameters()])
    expected = torch.autograd.grad(layer.set_backend_("loop")(x).sin().sum(), [x, *layer.parameters()])
    for mine, theirs in zip(packed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)
    values = {name: torch.zeros_like(p) for name, p in layer.named_parameters()}
    assert not functional_call(layer.set_backend_("baddbmm"), values, (x,)).any()


@pytest.mark.usefixtures("always")
def test_other_shapes_are_refused_as_by_torch() -> None:
    x, weight, bias = parts()
    for wrong in ((x[:2], weight, bias), (x[..., :3], weight, None), (x, weight, bias[:, :1].expand(3, 3))):  # type: ignore[index]
        with pytest.raises(RuntimeError):
            product(*wrong)
