"""RNN: a loop over single cells with the same weights, counts, pooling, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import cost
from quorate.models import RNN


def looped(model, x, cell, layers, directions, pool):
    """The network's logits by single cells, step by step, layer by layer."""
    make = nn.LSTMCell if cell == "lstm" else nn.GRUCell
    sequence = [x[:, :, t] for t in range(x.shape[2])]
    for layer in range(layers):
        states = []
        for d in range(directions):
            suffix = f"_l{layer}" + ("_reverse" if d else "")
            one = make(sequence[0].shape[1], model.recurrent.hidden_size).double()
            one.load_state_dict({key: getattr(model.recurrent, key + suffix) for key in one.state_dict()})
            state, seen = None, []
            for inputs in reversed(sequence) if d else sequence:
                state = one(inputs, state)
                seen.append(state[0] if cell == "lstm" else state)
            states.append(seen[::-1] if d else seen)  # by step
        sequence = [torch.cat(parts, 1) for parts in zip(*states, strict=True)]
    ends = [states[0][-1], *(backwards[0] for backwards in states[1:])]
    features = torch.stack(sequence).mean(0) if pool == "mean" else torch.cat(ends, 1)
    return features @ model.fc.weight.T + model.fc.bias


@pytest.mark.parametrize(
    ("cell", "layers", "both", "pool"), list(itertools.product(["lstm", "gru"], [1, 3], [False, True], ["last", "mean"]))
)
def test_equals_a_loop_over_cells(cell, layers, both, pool):
    torch.manual_seed(0)
    model = RNN((3, 6), 4, cell, 5, layers, both, dropout=0.4, pool=pool).double().eval()
    x = torch.randn(7, 3, 6, dtype=torch.float64)
    torch.testing.assert_close(model(x), looped(model, x, cell, layers, 1 + both, pool), rtol=0, atol=1e-12)


@settings(max_examples=8)
@given(
    channels=st.integers(1, 4),
    length=st.integers(1, 9),
    hidden=st.integers(1, 5),
    layers=st.integers(1, 3),
    both=st.booleans(),
    cell=st.sampled_from(["lstm", "gru"]),
)
def test_counts(channels, length, hidden, layers, both, cell):
    model = RNN((channels, length), 7, cell, hidden, layers, both)
    gates, directions = 4 if cell == "lstm" else 3, 1 + both
    inputs = [channels, *[hidden * directions] * (layers - 1)]
    weights = directions * gates * hidden * sum(n + hidden for n in inputs)
    assert cost.parameters(model) == weights + directions * layers * 2 * gates * hidden + 7 * hidden * directions + 7
    assert cost.macs(model, torch.zeros(1, channels, length)) == length * weights + 7 * hidden * directions


def test_dropout_between_layers_and_before_the_head():
    assert (RNN((3, 6), 4, layers=2, dropout=0.3).recurrent.dropout, RNN((3, 6), 4, dropout=0.3).recurrent.dropout) == (0.3, 0.0)
    model, x = RNN((3, 6), 4, hidden=64, dropout=0.5).train(), torch.randn(2, 3, 6)
    assert not torch.equal(model(x), model(x))
    assert isinstance(RNN((3, 6), 4).dropout, nn.Identity)
    assert RNN((3, 6), 4, dropout=0.3).dropout.p == 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "rnn"}, 'cell: expected "lstm" or "gru", got \'rnn\'; pass one of them'),
        ({"pool": "max"}, 'pool: expected "last" or "mean", got \'max\''),
        ({"hidden": 0}, "hidden: expected an int of at least 1, got 0"),
        ({"hidden": (64,)}, r"hidden: expected an int of at least 1, got \(64,\)"),
        ({"layers": 0}, "layers: expected an int of at least 1, got 0"),
        ({"dropout": 1}, "dropout: expected a probability"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": (20,)}, r"shape: expected \(channels, length\), got \(20,\)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message) as error:
        RNN(**{"shape": (2, 20), "classes": 3, **arguments})
    assert "\n" not in str(error.value)
