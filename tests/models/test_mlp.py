"""MLP: parameters and MACs in closed form, its layers, its refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import MLP


@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    classes=st.integers(1, 4),
    hidden=st.lists(st.integers(1, 6), max_size=3),
    norm=st.booleans(),
)
def test_counts(shape, classes, hidden, norm):
    model = MLP(shape, classes, hidden, dropout=0.1, norm=norm)
    sizes = [torch.Size(shape).numel(), *hidden, classes]
    products = sum(a * b for a, b in itertools.pairwise(sizes))
    per_unit = 2 if norm else 1  # weight and bias of the normalisation, or the layer's own bias
    assert cost.parameters(model) == products + per_unit * sum(hidden) + classes
    assert cost.macs(model, torch.zeros(2, *shape)) == products


def test_order_of_layers():
    names = [name for name, _ in MLP((4,), 2, hidden=(3,), dropout=0.2, norm=True).layers.named_children()]
    assert names == ["flatten", "linear1", "norm1", "relu1", "dropout1", "head"]
    plain = MLP((4,), 2)
    assert [m.out_features for m in plain.modules() if isinstance(m, nn.Linear)] == [128, 128, 2]
    assert not any(isinstance(m, nn.Dropout | nn.BatchNorm1d) for m in plain.modules())


def test_equals_the_formula():
    model = MLP((2, 3), 4, hidden=(5,)).double()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    first, head = model.layers.linear1, model.layers.head
    expected = (x.reshape(7, 6) @ first.weight.T + first.bias).clamp(min=0) @ head.weight.T + head.bias
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)


def test_on_the_columns_of_a_table():
    model = MLP((13,), 2, hidden=(16, 8), dropout=0.5, norm=True)
    x = torch.randn(32, 13)
    assert model(x).shape == (32, 2)
    assert not torch.equal(model(x), model(x))  # dropout in training
    assert torch.equal(model.eval()(x), model(x))
    assert model.layers.norm1.num_batches_tracked == 3


def test_dropout_rate():
    model = MLP((4,), 2, hidden=(3,), dropout=0.2)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [0.2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout": 1.0}, r"dropout: expected a probability in \[0, 1\), got 1.0; 0 is no dropout"),
        ({"dropout": -0.1}, "dropout: expected a probability"),
        ({"dropout": float("nan")}, "dropout: expected a probability"),
        ({"dropout": "0.1"}, "dropout: expected a probability in .*got '0.1'"),
        ({"hidden": 128}, "hidden: expected a tuple of ints, got 128"),
        ({"hidden": (128, 0)}, r"hidden\[1\]: expected an int of at least 1, got 0"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": ()}, "shape: expected at least one dimension"),
        ({"shape": (3, -1)}, r"shape\[1\]: expected an int of at least 1, got -1"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        MLP(**{"shape": (4,), "classes": 2, **arguments})
