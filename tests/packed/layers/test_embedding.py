"""PackedEmbedding and PackedEmbeddingBag against M separate tables: values, gradients, isolation, every option, every refusal."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from quorate.packed.layers.arrangement import Packing
from quorate.packed.layers.embedding import PackedEmbedding, PackedEmbeddingBag

V, E = 7, 6
Table = PackedEmbedding | PackedEmbeddingBag


def plains(layer: Table) -> list[nn.Module]:
    """Each member as a plain layer with a copy of its values."""
    found = []
    for m in range(layer.members):
        found.append(layer.plain())
        found[-1].load_state_dict(layer.member(m))
    return found


def joined(outs: list[Tensor], layout: str) -> Tensor:
    return torch.cat(outs, -1 if layout == "channels" else 0)


def fed(x: Tensor, layout: str, members: int) -> list[Tensor]:
    return list(x.chunk(members)) if layout == "rows" else [x] * members


def same_gradients(layer: Table, single: list[nn.Module]) -> None:
    grad = layer.weight.grad
    assert grad is not None
    for m, plain in enumerate(single):
        assert isinstance(plain.weight, Tensor)
        assert plain.weight.grad is not None
        assert grad.is_sparse == plain.weight.grad.is_sparse
        torch.testing.assert_close(grad.to_dense()[m], plain.weight.grad.to_dense(), rtol=0, atol=1e-12)


@settings(max_examples=80, deadline=None)
@given(
    members=st.integers(1, 3),
    layout=st.sampled_from(["channels", "rows", "spread"]),
    padding=st.sampled_from([None, 0, 3, -1]),
    max_norm=st.sampled_from([None, 1.5]),
    norm_type=st.sampled_from([1.0, 2.0]),
    gradient=st.sampled_from(["dense", "scaled", "sparse"]),
    shape=st.sampled_from([(4,), (3, 5), (2, 3, 2)]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    last=st.booleans(),
    seed=st.integers(0, 9),
)
def test_embedding_equals_separate_tables(
    members: int,
    layout: Any,
    padding: int | None,
    max_norm: float | None,
    norm_type: float,
    gradient: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    last: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"padding_idx": padding, "max_norm": max_norm, "norm_type": norm_type, "last": last}
    options |= {"scale_grad_by_freq": gradient == "scaled", "sparse": gradient == "sparse", "dtype": torch.float64}
    layer = PackedEmbedding(V, E, members, 2, layout=layout, **options)
    with torch.no_grad():
        layer.weight.normal_()  # a padding that a user filled is read as it is
    single = plains(layer)
    x = torch.randint(V, ((members if layout == "rows" else 1) * shape[0], *shape[1:]), dtype=dtype)
    y = layer(x)
    expected = joined([plain(part) for plain, part in zip(single, fed(x, layout, members), strict=True)], layout)
    assert y.shape == expected.shape
    assert (y - expected).abs().max() < 1e-12
    factor = torch.randn_like(y)
    (y * factor).sum().backward()
    (expected * factor).sum().backward()
    same_gradients(layer, single)
    for m, plain in enumerate(single):  # max_norm shortens in place
        assert isinstance(plain.weight, Tensor)
        assert (layer.weight[m] - plain.weight).abs().max() < 1e-12


@settings(max_examples=80, deadline=None)
@given(
    members=st.integers(1, 3),
    layout=st.sampled_from(["channels", "rows", "spread"]),
    mode=st.sampled_from(["sum", "mean", "max"]),
    padding=st.sampled_from([None, 0, -2]),
    max_norm=st.sampled_from([None, 1.5]),
    gradient=st.sampled_from(["dense", "sparse"]),
    weighted=st.booleans(),
    seed=st.integers(0, 9),
)
def test_bag_equals_separate_bags(
    members: int,
    layout: Any,
    mode: Any,
    padding: int | None,
    max_norm: float | None,
    gradient: str,
    weighted: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    gradient = "dense" if mode == "max" else gradient
    options: dict[str, Any] = {"padding_idx": padding, "max_norm": max_norm, "norm_type": 1.0, "mode": mode}
    options |= {"sparse": gradient == "sparse", "dtype": torch.float64}
    layer = PackedEmbeddingBag(V, E, members, 2, layout=layout, **options)
    with torch.no_grad():
        layer.weight.normal_()
    single = plains(layer)
    x = torch.randint(V, ((members if layout == "rows" else 1) * 4, 5))
    weights = torch.randn(x.shape, dtype=torch.float64) if weighted and mode == "sum" else None
    own = [None] * members if weights is None else fed(weights, layout, members)
    y = layer(x, per_sample_weights=weights)
    parts = zip(single, fed(x, layout, members), own, strict=True)
    expected = joined([plain(part, per_sample_weights=w) for plain, part, w in parts], layout)
    assert y.shape == expected.shape
    assert (y - expected).abs().max() < 1e-12
    factor = torch.randn_like(y)
    (y * factor).sum().backward()
    (expected * factor).sum().backward()
    same_gradients(layer, single)
    for m, plain in enumerate(single):
        assert isinstance(plain.weight, Tensor)
        assert (layer.weight[m] - plain.weight).abs().max() < 1e-12


@pytest.mark.parametrize("cls", [PackedEmbedding, PackedEmbeddingBag])
@pytest.mark.parametrize("layout", ["channels", "rows", "spread"])
def test_isolation(cls: type[Table], layout: Any) -> None:
    layer = cls(V, E, 3, 2, layout=layout, padding_idx=2)
    y = layer(torch.randint(V, (6, 4)))
    for m, out in enumerate(y.chunk(3, -1 if layout == "channels" else 0)):
        (grad,) = torch.autograd.grad(out.sum(), layer.weight, retain_graph=True)
        assert grad[m].any()
        assert not grad[[i for i in range(3) if i != m]].any()


def test_padding_starts_and_stays_zero() -> None:
    layer = PackedEmbedding(V, E, 3, 2, padding_idx=-2)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    assert layer.padding_idx == V - 2
    for _ in range(2):
        assert not layer.weight[:, V - 2].any()
        layer(torch.arange(V).expand(2, V)).square().sum().backward()
        optimizer.step()
    layer.weight.data.normal_()
    layer.zero_padding_()
    assert not layer.weight[:, V - 2].any()
    assert layer.weight[:, : V - 2].all()


def test_sparse_adam_steps_as_for_separate_tables() -> None:
    torch.manual_seed(0)
    layer = PackedEmbedding(V, E, 2, 1, sparse=True, padding_idx=1, dtype=torch.float64)
    single = plains(layer)
    ours = torch.optim.SparseAdam(layer.parameters(), 0.1)
    theirs = torch.optim.SparseAdam([p for plain in single for p in plain.parameters()], 0.1)
    for _ in range(3):
        x = torch.randint(V, (2, 3))
        ours.zero_grad()
        theirs.zero_grad()
        layer(x).square().sum().backward()
        joined([plain(x) for plain in single], "channels").square().sum().backward()
        ours.step()
        theirs.step()
    for m, plain in enumerate(single):
        assert isinstance(plain.weight, Tensor)
        assert (layer.weight[m] - plain.weight).abs().max() < 1e-12


def test_sizes_and_start() -> None:
    layer = PackedEmbedding(1000, 64, 4, 2)
    assert layer.weight.shape == (4, 1000, 32)
    assert (layer.embedding_dim, layer.groups, layer.gamma) == (128, 4, 1)
    assert (layer.weight.std((1, 2)) - 1).abs().max() < 0.02
    assert PackedEmbedding(10, 5, 4, 2, last=True).weight.shape == (4, 10, 5)
    assert PackedEmbedding.fan_in(nn.Embedding(5, 3), "weight") == 1


def settings_of(module: nn.Module) -> dict[str, object]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_") and key != "training"}


def test_like_and_plain_carry_every_setting() -> None:
    packing = Packing(3, Fraction(3))
    own = nn.Embedding(V, E, 2, 1.5, 1.0, False, True, dtype=torch.float64)
    for module in (own, nn.Embedding(V, E, scale_grad_by_freq=True)):
        packed = PackedEmbedding.like(module, packing)
        assert packed.weight.dtype == module.weight.dtype
        assert settings_of(packed.plain()) == settings_of(module)
    for bag in (
        nn.EmbeddingBag(V, E, 1.5, 1.0, False, "sum", True, include_last_offset=True, padding_idx=4),
        nn.EmbeddingBag(V, E, mode="max"),
    ):
        assert settings_of(PackedEmbeddingBag.like(bag, packing).plain()) == settings_of(bag)
    assert PackedEmbedding.like(own, Packing(3, Fraction(1), last=True)).weight.shape == (3, V, E)
    assert PackedEmbedding.like(own, Packing(3, Fraction(2), first=True)).weight.shape == (3, V, 4)
    assert "mode='sum'" in repr(PackedEmbeddingBag(V, E, 3, mode="sum"))


@pytest.mark.parametrize("bad", [-1, V])
@pytest.mark.parametrize("place", range(4))
def test_no_index_reaches_another_member(bad: int, place: int) -> None:
    x = torch.zeros(4, 2, dtype=torch.int64)
    x[place, 1] = bad
    for cls in (PackedEmbedding, PackedEmbeddingBag):
        for layout in ("rows", "spread", "channels"):
            with pytest.raises((IndexError, RuntimeError)):
                cls(V, E, 2)(x, layout=layout)


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (
            PackedEmbedding,
            {"embedding_dim": 7},
            "embedding_dim: expected a width that times 2 divides into 4 .* nearest .* 6 and 8",
        ),
        (PackedEmbedding, {"num_embeddings": 0}, "num_embeddings: expected a positive int, got 0"),
        (PackedEmbedding, {"padding_idx": 7}, "padding_idx: expected an index from -7 to 6, got 7"),
        (PackedEmbedding, {"padding_idx": -8}, "padding_idx: expected"),
        (PackedEmbedding, {"sparse": True, "scale_grad_by_freq": True}, "scale_grad_by_freq: expected False with sparse"),
        (PackedEmbedding, {"layout": "gather"}, 'layout: expected "channels", "rows" or "spread" .* got \'gather\''),
        (PackedEmbeddingBag, {"mode": "min"}, 'mode: expected "sum", "mean" or "max", got \'min\''),
        (PackedEmbeddingBag, {"mode": "max", "sparse": True}, 'mode: expected "sum" or "mean" with sparse'),
        (PackedEmbeddingBag, {"scale_grad_by_freq": True}, "scale_grad_by_freq: expected False, got True for bags"),
    ],
)
def test_refused_settings(cls: type[Table], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        cls(**{"num_embeddings": V, "embedding_dim": E, "members": 4} | options)
    assert "\n" not in str(error.value)


def test_refused_inputs() -> None:
    layer, bag, x = PackedEmbedding(V, E, 4), PackedEmbeddingBag(V, E, 4), torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"PackedEmbedding: expected int32 or int64 indices \(B, …\), got torch.float32 \(4, 2\)"
    ):
        layer(x.float())
    with pytest.raises(ValueError, match=r"got torch.int64 \(\)"):
        layer(x[0, 0])
    with pytest.raises(ValueError, match=r"indices \(4 · B, …\), got torch.int64 \(3, 2\)"):
        layer(x[:3], layout="rows")
    with pytest.raises(ValueError, match=r"PackedEmbeddingBag: expected int32 or int64 indices \(B, L\), got torch.int64 \(4,\)"):
        bag(x[:, 0])
    with pytest.raises(ValueError, match="offsets: expected None, got a tensor"):
        bag(x, torch.tensor([0]))
    with pytest.raises(
        ValueError, match=r"per_sample_weights: expected shape \(4, 2\) in mode \"sum\", got \(4, 2\) in mode 'mean'"
    ):
        bag(x, per_sample_weights=x.float())
    with pytest.raises(ValueError, match=r"got \(3, 2\) in mode 'sum'"):
        PackedEmbeddingBag(V, E, 4, mode="sum")(x, per_sample_weights=x[:3].float())


@pytest.mark.parametrize("layout", ["channels", pytest.param("rows", marks=pytest.mark.slow), "spread"])
def test_compiled_and_exported(layout: Any) -> None:
    layer = PackedEmbedding(V, E, 2, padding_idx=1, layout=layout)
    x, more = torch.randint(V, (4, 3)), torch.randint(V, (6, 3))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), layer(x))
    assert torch.equal(compiled(more), layer(more))
    batch = torch.export.Dim("half", min=1) * 2 if layout == "rows" else torch.export.Dim("batch")
    program = torch.export.export(layer, (x,), dynamic_shapes={"input": {0: batch}}, strict=True)
    assert torch.equal(program.module()(more), layer(more))
