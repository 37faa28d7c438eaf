"""Which weights can be sparse, by name, and every setting that is refused before training starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from quorate.tickets import Gradient, Random, SparseTraining, sparse_weights


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.body, self.head = nn.Embedding(7, 6), nn.Linear(6, 6), nn.Linear(6, 7, bias=False)
        self.head.weight = self.words.weight


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.LayerNorm(2)), ["0.weight", "2.weight"]),
        (nn.Bilinear(2, 2, 2), None),
        (nn.LSTM(3, 4), None),
        (nn.Embedding(3, 4), None),
        (Tied(), ["body.weight"]),
        (
            nn.TransformerEncoderLayer(8, 2, 16),
            ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"],
        ),
        (nn.DataParallel(nn.Linear(2, 3)), ["weight"]),
    ],
)
def test_names(model: nn.Module, names: list[str] | None) -> None:
    if names is None:
        with pytest.raises(
            ValueError, match="has no weight that could be sparse: expected convolutions, linear layers or attention, or"
        ):
            sparse_weights(model)
    else:
        found = sparse_weights(model)
        assert list(found) == names
        inner = getattr(model, "module", model)
        assert all(found[name] is inner.get_parameter(name) for name in names)


def test_names_that_are_asked_for() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 4), nn.Linear(4, 2))
    assert list(sparse_weights(model, dense="0.weight")) == ["2.weight"]
    assert list(sparse_weights(model, dense=(name for name in ["2.weight"]))) == ["0.weight"]
    assert list(sparse_weights(model, only="1.weight_hh_l0")) == ["1.weight_hh_l0"]
    assert list(sparse_weights(model, only=(name for name in ["2.weight", "1.weight_ih_l0"]))) == ["1.weight_ih_l0", "2.weight"]
    for wrong, message in [
        (
            {"dense": ["0.weigth"]},
            r"^no parameter is called '0.weigth'.*0.weight.*: expected names of model.named_parameters\(\)$",
        ),
        ({"only": "9.weight"}, "^no parameter is called '9.weight'"),
        ({"only": ["0.bias"]}, r"^'0.bias' is a vector of shape \(3,\): expected weights of at least two dimensions$"),
        (
            {"only": ["0.weight"], "dense": ["2.weight"]},
            "^got both `dense` and `only`: name the weights that stay dense, or those",
        ),
        ({"dense": ["0.weight", "2.weight"]}, "^Sequential has no weight that could be sparse"),
    ]:
        with pytest.raises(ValueError, match=message):
            sparse_weights(model, **wrong)


def test_names_that_are_asked_for_come_in_the_order_of_the_model() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    for names in (["2.weight", "0.weight"], {"2.weight", "0.weight"}):
        assert list(sparse_weights(model, only=names)) == ["0.weight", "2.weight"]


class DataParallel(nn.Module):
    """Of ours, not PyTorch's: a network with two parts, of which one is called module."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(4, 3), nn.Linear(3, 2)


def test_only_wrappers_of_pytorch_are_looked_through() -> None:
    assert list(sparse_weights(DataParallel())) == ["module.weight", "head.weight"]
    assert list(sparse_weights(nn.DataParallel(nn.Linear(4, 3)))) == ["weight"]


def old_spectral_norm() -> nn.Module:
    return nn.utils.spectral_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("computed", "source"),
    [
        (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "1.parametrizations.weight.original0"),
        (lambda: parametrizations.orthogonal(nn.Linear(4, 4)), "1.parametrizations.weight.original"),
        (old_spectral_norm, "1.weight_orig"),
    ],
)
def test_weights_that_are_computed(computed: Any, source: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), computed())
    with pytest.raises(
        ValueError, match=r"^'1.weight' is computed from .*, a mask on that would not make it sparse: remove"
    ) as raised:
        sparse_weights(model)
    assert str(raised.value).endswith(f"dense=[{source!r}]")
    assert list(sparse_weights(model, dense=[source])) == ["0.weight"]


def test_a_lazy_layer_has_to_run_first() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"^'0.weight' has no shape yet: run the network on one batch before it is made sparse$"):
        sparse_weights(model)
    model(torch.zeros(1, 4))
    assert list(sparse_weights(model)) == ["0.weight"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"density": 0.0}, r"density 0.0: expected a share of live weights in \(0, 1\]"),
        ({"density": 1.5}, "density 1.5"),
        ({"density": 0.01}, "."),
        (
            {"density": {"0.weight": 0.5}},
            r"density by name and the sparse weights differ in '2.weight': expected one density for each",
        ),
        ({"density": {"0.weight": 0.5, "2.weight": 0.5, "x": 1.0}}, "differ in 'x'"),
        (
            {"density": {"0.weight": 0.5, "2.weight": 0.5}, "distribution": "uniform"},
            "^distribution='uniform' with a density by name, which leaves nothing to distribute: leave one of them out$",
        ),
        ({"density": "0.2"}, r"^density '0.2': expected a share"),
        ({"density": None}, r"^density None: expected a share"),
        ({"distribution": "Erk"}, r"distribution='Erk': expected one of erk, uniform, mac_aware"),
        ({"distribution": "mac_aware"}, r"has to know what a weight costs: pass example=, a small batch of inputs"),
        ({"every": 0}, "every=0: expected an integer of at least 1"),
        ({"every": True}, "every=True: expected"),
        ({"rows": 0}, "rows=0: expected an integer of at least 1"),
        ({"seed": -1}, "seed=-1: expected an integer of at least 0"),
        ({"rate": 0.0}, r"rate=0.0: expected a share of the live weights in \(0, 1\]; growth=Static\(\) keeps masks as they are"),
        ({"rate": 1.2}, "rate=1.2"),
        ({"rate": True}, "rate=True"),
        ({"growth": "rigl"}, r"growth='rigl': expected Gradient\(\), Random\(\) or Static\(\)"),
        ({"growth": Random}, r"growth=<class .*Random'>: expected Gradient\(\)"),
        ({"pattern": "2:4"}, r"pattern='2:4': expected Unstructured\(\), ConstantFanIn\(\)"),
        ({"growth": Gradient(3), "every": 2}, r"averages over more steps than every=2: expected batches ≤ every"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as raised:
        SparseTraining(model, torch.optim.SGD(model.parameters(), 0.1), **settings)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_optimiser_of_another_model() -> None:
    model, other = nn.Linear(8, 8), nn.Linear(8, 8)
    with pytest.raises(
        ValueError, match=r"^the optimiser trains none of them of the model's 1 sparse weights: make it from this model's"
    ):
        SparseTraining(model, torch.optim.SGD(other.parameters(), 0.1), 0.5)


def test_moves_that_are_refused() -> None:
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = SparseTraining(model, optimizer, 0.5, every=5)
    with pytest.raises(ValueError, match=r"^rate=-0.1: expected a share of the live weights in \[0, 1\]$"):
        sparse.move_(-0.1)
    with pytest.raises(
        ValueError, match=r"^no gradients that are numbers were kept at step 0 for growth=Gradient\(batches=1\): put that"
    ):
        sparse.move_(0.5)
    with torch.no_grad():
        model.weight.fill_(torch.nan)
    sparse.gather_at = [1]
    model.weight.sum().backward()
    optimizer.step()
    with pytest.raises(
        ValueError, match=r"^masks of 'weight' can't move after step 1: weight has NaN: expected numbers, the training"
    ):
        sparse.move_(0.5)
