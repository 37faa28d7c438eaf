"""The ledger: closed forms on a hand-made network, the paper's ratios, sums against a plain loop, facts, and saved states."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quorate import models
from quorate.cost import UnknownOperatorWarning
from quorate.tickets.density import counts, erk
from quorate.tickets.ledger import Ledger

MACS, REST, SIZES, PARAMETERS = (
    {"a": 120, "b": 70},
    11,
    {"a": 12, "b": 35},
    60,
)  # the dense network: 201 MACs, 13 leftover scalars


def small() -> Ledger:
    return Ledger(MACS, REST, SIZES, PARAMETERS)


LIVE = {"a": 3, "b": 7}  # f_S = 11 + 30 + 14 = 55


def test_inference_by_hand():
    ledger = small()
    assert ledger.dense_macs == 201
    assert ledger.macs == MACS
    assert ledger.inference_macs(LIVE) == 55
    assert ledger.inference_ratio(LIVE) == 55 / 201
    assert ledger.live_parameters(LIVE) == 10 + 13
    assert ledger.inference_macs(SIZES) == 201
    assert ledger.inference_ratio(SIZES) == 1
    assert ledger.inference_macs({"a": 0, "b": 0}) == REST
    odd = Ledger({"a": 10}, 0, {"a": 3}, 3)
    assert [odd.inference_macs({"a": n}) for n in (1, 2)] == [3, 7]  # rounded
    assert odd.inference_ratio({"a": 1}) == 1 / 3


def test_steps_by_hand():
    ledger = small()
    ledger.step_(LIVE, 8)
    assert ledger.training_macs == 8 * 3 * 55
    ledger.step_(LIVE, 5, dense_gradient=True)
    assert ledger.training_macs == 8 * 3 * 55 + 5 * (2 * 55 + 201)
    ledger.step_({"a": 12, "b": 0}, 2)
    assert ledger.training_macs == 8 * 3 * 55 + 5 * (2 * 55 + 201) + 2 * 3 * 131
    ledger.step_({"a": 12, "b": 0}, 1, dense_gradient=True)
    total = 8 * 3 * 55 + 5 * (2 * 55 + 201) + 2 * 3 * 131 + 2 * 131 + 201
    assert ledger.training_macs == total
    assert ledger.rows == 16
    assert ledger.training_ratio == pytest.approx(total / (3 * 16 * 201), rel=1e-15)
    assert ledger.ratio_to(7) == pytest.approx(total / (3 * 7 * 201), rel=1e-15)


def test_dense_training_is_three_dense_passes():
    ledger = small()
    ledger.step_(SIZES, 9)
    ledger.step_(SIZES, 9, dense_gradient=True)
    assert (ledger.training_macs, ledger.training_ratio, ledger.ratio_to(9)) == (3 * 18 * 201, 1, 2)


def test_counts_are_taken_as_they_are_at_the_step():
    ledger, live = small(), dict(LIVE)
    ledger.step_(live, 1)
    live["a"] = 12  # the caller's own dict changes
    ledger.step_(live, 1)
    assert ledger.training_macs == 3 * 55 + 3 * (11 + 120 + 14)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 35), st.integers(0, 300), st.booleans(), st.booleans()), max_size=30)
)
def test_against_a_plain_sum(steps):
    ledger, total, rows = small(), 0.0, 0
    for a, b, batch, dense, look in steps:
        f = 11 + 120 * a / 12 + 70 * b / 35
        total += batch * (2 * f + 201 if dense else 3 * f)
        rows += batch
        ledger.step_({"a": a, "b": b}, batch, dense)
        if look:  # reading must not change anything
            assert ledger.training_macs == pytest.approx(total, abs=0.51)
    assert ledger.rows == rows
    assert ledger.training_macs == pytest.approx(total, abs=0.51)
    if rows:
        assert ledger.training_ratio == pytest.approx(total / (3 * 201 * rows), rel=1e-12)


def test_huge_sums_stay_exact():
    ledger = Ledger({"a": 10**13}, 1, {"a": 3}, 3)
    for _ in range(3):
        ledger.step_({"a": 1}, 10**12)
    assert ledger.training_macs == 3 * (10**12 * 10**13 + 3 * 10**12)


def meta(make, shape):
    with torch.device("meta"):
        model, x = make(), torch.zeros(1, *shape)
    names = [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    shapes = {name: tuple(model.get_parameter(name).shape) for name in names}
    return Ledger.of_model(model, x, names), shapes


@pytest.fixture(scope="module")
def wide():
    return meta(lambda: models.WideResNet(depth=28, width=10), (3, 32, 32))


def test_wide_resnet_schedules(wide):
    """Liu et al. 2022: EDST with M = 3 trains for 450 epochs at density 0.2, with M = 7 for 850 at 0.1; the dense network for 250."""
    ledger, shapes = wide
    assert ledger.dense_macs == 5_243_328_768
    live, rows = counts(shapes, erk(shapes, 0.2)), 391 * 128
    f = ledger.inference_ratio(live)
    assert f == pytest.approx(0.3396, abs=6e-5)

    def run(network, epochs, growth=None, live=live):
        one = Ledger(*network)
        one.step_(live, rows * epochs - (growth or 0))
        if growth:
            one.step_(live, growth, dense_gradient=True)
        return one

    state = ledger.state_dict()["network"]
    network = state["macs"], state["rest"], state["sizes"], state["parameters"]
    random = run(network, 450)
    assert random.ratio_to(250 * rows) == pytest.approx(0.611, abs=5e-4)
    assert random.training_ratio == pytest.approx(f, rel=1e-12)
    every = rows * 450 // 1000  # every 1000th step has a dense gradient
    rigl = run(network, 450, every).ratio_to(250 * rows)
    assert rigl == pytest.approx(450 / 250 * (f + (1 - f) / 3 / 1000), rel=1e-6)

    def formula(f):  # of the paper's appendix: one step with a dense gradient after 1000 without
        return 450 / 250 * (3 * f * 1000 + 2 * f + 1) / 1001 / 3

    assert formula(0.3396) == pytest.approx(0.6117, abs=5e-5)
    assert rigl == pytest.approx(formula(f), abs=1e-6)
    assert rigl == pytest.approx(0.6117, abs=1.5e-4)
    dst = run(network, 250)
    for _ in range(2):
        dst.add_(run(network, 250))
    assert dst.ratio_to(250 * rows) == pytest.approx(1.019, abs=5e-4)
    sparser = counts(shapes, erk(shapes, 0.1))
    assert run(network, 850, live=sparser).ratio_to(250 * rows) == pytest.approx(0.573, abs=5e-4)
    assert 3 * f == pytest.approx(1.02, abs=5e-3)
    assert 7 * ledger.inference_ratio(sparser) == pytest.approx(1.18, abs=5e-3)
    for m, counted in ((3, live), (7, sparser)):
        share = m * ledger.live_parameters(counted) / 36_479_194
        assert share == pytest.approx({3: 0.6, 7: 0.7}[m], abs=5e-3)  # norms and biases stay dense


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3), nn.Linear(3, 3))


def test_of_a_model_dense_layers_are_the_rest():
    ledger = Ledger.of_model(network(), torch.zeros(2, 1, 4, 4), ["0.weight", "3.weight"])
    assert ledger.state_dict()["network"] == {
        "macs": {"0.weight": 16 * 18, "3.weight": 96},
        "rest": 9,
        "sizes": {"0.weight": 18, "3.weight": 96},
        "parameters": 18 + 2 + 4 + 96 + 3 + 12,
    }
    assert ledger.inference_macs({"0.weight": 9, "3.weight": 24}) == 8 * 18 + 24 + 9
    assert ledger.live_parameters({"0.weight": 9, "3.weight": 24}) == 9 + 24 + 2 + 4 + 3 + 12


def test_of_a_model_attention_and_computed_weights_are_the_rest():
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    x = torch.zeros(1, 3, 8)
    ledger = Ledger.of_model(attention, (x, x, x), ["in_proj_weight"])
    network = ledger.state_dict()["network"]
    assert (network["macs"], network["rest"]) == ({"in_proj_weight": 3 * 192}, 3 * 64 + 2 * 9 * 8)
    computed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 5))
    ledger = Ledger.of_model(computed, torch.zeros(1, 3), ["parametrizations.weight.original1"])
    assert ledger.inference_macs({"parametrizations.weight.original1": 0}) == 15


def test_of_a_model_with_unknown_operators_warns_here():
    class Fourier(nn.Linear):
        def forward(self, x):
            return super().forward(torch.fft.fft(x).real)

    with pytest.warns(UnknownOperatorWarning, match="lower bound") as caught:
        Ledger.of_model(Fourier(4, 4), torch.zeros(1, 4), ["weight"])
    assert caught[0].filename == __file__


def test_no_sparse_weights_is_a_dense_network():
    ledger = Ledger({}, 10, {}, 5)
    ledger.step_({}, 4)
    assert (ledger.training_macs, ledger.training_ratio, ledger.live_parameters({})) == (120, 1, 5)
    assert ledger.facts([{}], {})["exploration_rate"] == 0


def mask(size, *live):
    found = torch.zeros(size, dtype=torch.bool)
    found[list(live)] = True
    return found


def test_facts_by_hand():
    ledger = small()
    ledger.step_(LIVE, 10)
    one = {"a": mask(12, 0, 1, 2), "b": mask(35, *range(7)).view(5, 7)}
    two = {"a": mask(12, 0, 1, 5, 6), "b": mask(35, *range(3, 8)).view(5, 7)}
    ever = {"a": mask(12, *range(9)), "b": mask(35, *range(20)).view(5, 7)}
    facts = ledger.facts([one, two], ever, dense_rows=4)
    other = 11 + 40 + 10
    assert facts == {
        "training_macs": 10 * 3 * 55,
        "training_ratio": pytest.approx(10 * 55 / (4 * 201)),
        "training_rows": 10,
        "dense_rows": 4,
        "inference_macs": {"tickets": [55, other], "total": 55 + other, "ratio": pytest.approx((55 + other) / 201)},
        "live_parameters": {"tickets": [23, 22], "total": 45, "ratio": 45 / 60},
        "exploration_rate": pytest.approx(29 / 47),
        "overlap": [[1.0, 6 / 13], [6 / 13, 1.0]],  # 2 + 4 common, 5 + 8 in either
    }
    assert json.loads(json.dumps(facts)) == facts
    alone = ledger.facts([one])
    assert (alone["exploration_rate"], alone["overlap"], alone["dense_rows"]) == (None, [[1.0]], 10)
    assert alone["training_ratio"] == ledger.training_ratio


def test_a_state_goes_through_json_and_on():
    ledger, whole = small(), small()
    for each in (ledger, whole):
        each.step_(LIVE, 7)
        each.step_(LIVE, 2, dense_gradient=True)
    state = json.loads(json.dumps(ledger.state_dict()))
    fresh = small()
    fresh.step_({"a": 1, "b": 1}, 99)  # is forgotten
    fresh.load_state_dict(state)
    for each in (fresh, whole):
        each.step_({"a": 12, "b": 1}, 3)
        each.step_(LIVE, 5)
    assert fresh.state_dict() == whole.state_dict()
    assert fresh.training_macs == whole.training_macs
    fresh.step_(LIVE, 1)
    assert state == ledger.state_dict()  # the state that was passed in is left alone


def test_runs_of_one_network_add_up():
    one, two, both = small(), small(), small()
    for each, live, rows, dense in ((one, LIVE, 5, False), (one, SIZES, 2, True), (two, {"a": 4, "b": 9}, 3, True)):
        each.step_(live, rows, dense)
        both.step_(live, rows, dense)
    before = two.state_dict()
    one.add_(two)
    assert one.state_dict() == both.state_dict()
    assert two.state_dict() == before
    with pytest.raises(ValueError, match="expected sums of this network"):
        one.add_(Ledger(MACS, REST + 1, SIZES, PARAMETERS))
    assert one.state_dict() == both.state_dict()


GOOD = {"network": {"macs": MACS, "rest": REST, "sizes": SIZES, "parameters": PARAMETERS}, "rows": 1}
GOOD |= {"forward": {"a": 1, "b": 1}, "gradient": {"a": 1, "b": 1}}
REFUSED = {
    "names differ": (lambda: Ledger({"a": 1}, 0, {"b": 1}, 1), r"^macs and sizes: .* got a, b in one alone; name them in both"),
    "macs": (lambda: Ledger({"a": 1.5}, 0, {"a": 1}, 1), r"^macs\['a'\]: expected an int of at least 0, got 1.5; pass"),
    "sizes": (lambda: Ledger({"a": 1}, 0, {"a": 0}, 1), r"^sizes\['a'\]: expected an int of at least 1, got 0; pass"),
    "rest": (lambda: Ledger({}, -1, {}, 1), r"^rest: expected an int of at least 0, got -1"),
    "parameters": (lambda: Ledger({"a": 1}, 0, {"a": 9}, 8), r"^parameters: expected at least the 9 of .* got 8; count"),
    "name": (lambda: Ledger.of_model(network(), torch.zeros(1, 1, 4, 4), ["0.wieght"]), r"^names: .* got '0.wieght'; see"),
    "twice": (lambda: Ledger.of_model(network(), torch.zeros(1, 1, 4, 4), ["0.weight"] * 2), r"^names: .* got 2 names of 1 weights"),
    "rows": (lambda: small().step_(LIVE, True), r"^rows: expected an int of at least 0, got True; pass a whole number$"),
    "no rows": (lambda: small().training_ratio, r"^rows: expected an int of at least 1, got 0"),
    "missing": (lambda: small().step_({"a": 1}, 1), r"^live: expected an entry for each of the 2 .* got nothing for 'b'; use"),
    "nothing": (lambda: small().step_({}, 1), r"^live: .* got nothing for 'a'"),
    "strange": (lambda: small().inference_macs({**LIVE, "c": 1}), r"^live: .* got 'c', which is none of them"),
    "too many": (lambda: small().live_parameters({"a": 13, "b": 1}), r"^live\['a'\]: expected at most the weight's 12 .* got 13"),
    "no int": (lambda: small().step_({"a": 1.0, "b": 1}, 1), r"^live\['a'\]: expected an int of at least 0, got 1.0"),
    "no tickets": (lambda: small().facts([]), r"^tickets: expected the masks of at least one ticket, got none"),
    "mask": (lambda: small().facts([{"a": mask(11), "b": mask(35)}]), r"^tickets\[0\]\['a'\]: expected a bool mask of 12 elements, got"),
    "mask dtype": (lambda: small().facts([{"a": torch.ones(12), "b": mask(35)}]), r"got torch.float32 of shape \(12,\); pass"),
    "ever": (lambda: small().facts([{"a": mask(12), "b": mask(35)}], {"a": mask(12)}), r"^ever: .* got nothing for 'b'"),
    "no network": (lambda: Ledger({}, 0, {}, 0).inference_ratio({}), r"^the dense network: expected some MACs .* got 0, to which"),
    "state": (lambda: small().load_state_dict([1]), r"^state: expected network, rows, forward, gradient, got list; pass"),
    "state keys": (lambda: small().load_state_dict({"rows": 1}), r"^state: expected network, rows, forward, gradient, got rows; pass"),
    "other network": (lambda: small().load_state_dict(GOOD | {"network": {}}), r"^state: expected sums of this network, .*; make the"),
    "state rows": (lambda: small().load_state_dict(GOOD | {"rows": -1}), r"^state\['rows'\]: expected an int of at least 0, got -1"),
    "state sums": (lambda: small().load_state_dict(GOOD | {"forward": {"a": 1}}), r"^state\['forward'\]: expected one sum per sparse"),
    "state sum": (lambda: small().load_state_dict(GOOD | {"gradient": {"a": 1, "b": "x" * 99}}), r"^state\['gradient'\]\['b'\]: .*…;"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_refused_state_or_step_changes_nothing():
    ledger = small()
    ledger.step_(LIVE, 4)
    before = ledger.state_dict()
    with pytest.raises(ValueError, match="expected an int"):
        ledger.load_state_dict(before | {"gradient": {"a": 1, "b": -1}})
    with pytest.raises(ValueError, match="expected at most"):
        ledger.step_({"a": 13, "b": 1}, 5)
    assert ledger.state_dict() == before
    small().load_state_dict(GOOD)


def test_sums_of_rounded_parts_are_not_rounded_twice():
    ledger = Ledger({"a": 1}, 0, {"a": 3}, 3)
    facts = ledger.facts([{"a": mask(3, 0)}] * 3, dense_rows=1)
    assert facts["inference_macs"] == {"tickets": [0, 0, 0], "total": 1, "ratio": float(Fraction(1))}
