"""MultiExitResNet: the contract of ensembles, stages that recompute nothing, the plain network at the last exit, counts, refusals."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch
from torch import nn

from ensemble_contract import check_ensemble
from quorate import cost
from quorate.cascade import Cascade, Policy, simulate
from quorate.cascade.stage import run_stage
from quorate.data import Normalise
from quorate.ensemble import collect, member_loss, stage_macs, stages
from quorate.models import MultiExitResNet, ResNet

IMAGE = (3, 9, 8)


def images(rows=6, kind=torch.float32):
    return torch.randn(rows, *IMAGE, generator=torch.Generator().manual_seed(0), dtype=kind)


def small(**options):
    return MultiExitResNet(IMAGE, 5, **{"depth": 8, "width": 4, **options})


def settled(**options):
    """A network whose statistics are not those it starts with, in eval mode."""
    torch.manual_seed(0)
    model = small(**options).train()
    with torch.no_grad():
        model(images())
    return model.eval()


@pytest.mark.parametrize(
    "options", [pytest.param({"combine": "probs"}, marks=pytest.mark.slow), {"combine": "logits", "exits": (1, 3), "branch": 4}]
)
def test_keeps_the_contract(options):
    check_ensemble(lambda: small(**options), images())


def test_keeps_the_contract_where_the_last_exit_counts():
    check_ensemble(lambda: small(exits=(2, 3)), images())


def test_later_exits_replace_earlier_ones():
    model, x = settled(depth=14), images(20)
    outputs = collect(model, list(x), batch_size=7)
    assert (outputs.ordered, outputs.combine, outputs.names) == (True, "last", ("exit0", "exit1", "exit2"))
    with torch.no_grad():
        probs = model(x).double().softmax(-1).numpy()
    for k in range(3):
        np.testing.assert_allclose(outputs.probs(k + 1), probs[k], atol=1e-6)
    wrapped = stages(model)
    full = Cascade(wrapped, Policy.of(outputs), batch_size=8).predict(x)
    np.testing.assert_allclose(full.probs, probs[-1], atol=1e-6)
    cuts = [float(np.median(1 - outputs.probs(k).max(-1))) for k in (1, 2)]
    policy = Policy.of(outputs, [(cut, None) for cut in cuts])
    assert {stage.join for stage in policy.stages} == {"replace"}
    said, stored = Cascade(wrapped, policy, batch_size=8).predict(x), simulate(policy, outputs)
    assert set(said.stage.tolist()) == {0, 1, 2}
    assert (said.stage == stored.stage).all()
    np.testing.assert_allclose(said.probs, probs[said.stage, np.arange(20)], atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"exits": (1, 2, 3), "branch": 3}, {"exits": (3,)}, {"depth": 18, "stem": "imagenet"}])
def test_stages_in_order_equal_forward_bit_for_bit(options):
    model, x = settled(**options), images()
    carry, seen = {}, []
    with torch.no_grad():
        for k, stage in enumerate(model.stages()):
            logits, carry = run_stage(stage, x if k == 0 else torch.full_like(x, torch.nan), carry, len(x))  # x is read once
            seen.append(logits)
        assert torch.equal(torch.cat(seen), model(x))
    assert carry == {}


@pytest.mark.parametrize(("depth", "stem"), [(8, "cifar"), (18, "imagenet"), (50, "cifar")])
def test_the_last_exit_is_the_plain_network(depth, stem):
    torch.manual_seed(3)
    model = MultiExitResNet(IMAGE, 5, depth, stem, 4).double().train()
    plain = ResNet(IMAGE, 5, depth, stem, 4).double().train()
    trunk = [tensor for name, tensor in model.state_dict().items() if ".trunk." in name]
    own = [
        *trunk,
        *(tensor for name, tensor in model.state_dict().items() if name.startswith(f"segments.{len(model.segments) - 1}.exit")),
    ]
    plain.load_state_dict(dict(zip(plain.state_dict(), own, strict=True)))
    x = images(kind=torch.float64)
    torch.testing.assert_close(model(x)[-1], plain(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.eval()(x)[-1], plain.eval()(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("branch", [None, 5])
def test_counts(branch):
    """The plain network's, plus per early exit a linear layer, and 3×3 convolution and normalisation if there is a branch."""
    with torch.device("meta"):
        model, plain = MultiExitResNet((3, 32, 32), 7, 14, exits=(1, 3, 6), branch=branch), ResNet((3, 32, 32), 7, 14)
    early = [(16, 32), (32, 16)]  # channels and side behind block 1 of the first stage, behind block 1 of the second
    heads = [(9 * w * 5 + 10 + 5 * 7 + 7) if branch else w * 7 + 7 for w, _ in early]
    macs = [(9 * w * 5 * s * s + 5 * 7) if branch else w * 7 for w, s in early]
    example = torch.zeros(2, 3, 32, 32, device="meta")
    assert cost.parameters(model) == cost.parameters(plain) + sum(heads)
    assert cost.macs(model, example) == cost.macs(plain, example) + sum(macs)
    assert sum(stage_macs(model, example)) == cost.macs(model, example)


def test_exits_lie_at_the_ends_of_the_stages_by_default():
    def blocks(model):
        return [[name for name, _ in part.trunk.named_children() if name.startswith("block")] for part in model.segments]

    assert blocks(small(depth=14)) == [["block0", "block1"], ["block2", "block3"], ["block4", "block5"]]
    assert [len(part) for part in blocks(small(depth=18))] == [2, 2, 2, 2]
    assert [len(part) for part in blocks(small(depth=50))] == [3, 4, 6, 3]
    assert [len(part) for part in blocks(small(depth=20, exits=(1, 2, 5, 9)))] == [1, 1, 3, 4]


def test_an_exit_learns_from_its_own_loss_and_those_behind_it():
    model, y = small().double().train(), torch.arange(6) % 5
    names = [name for name, _ in model.named_parameters()]
    for k in range(3):
        model.zero_grad(set_to_none=True)
        member_loss(model(images(kind=torch.float64))[k : k + 1], y).backward()
        touched = {
            name for name, parameter in model.named_parameters() if parameter.grad is not None and parameter.grad.abs().sum() > 0
        }
        assert touched == {
            n for n in names if (n.split(".")[2] == "trunk" and int(n.split(".")[1]) <= k) or n.startswith(f"segments.{k}.exit")
        }
    shared = {name for name in names if name.split(".")[2] == "trunk" and name.split(".")[1] != "2"}
    assert set(model.shared) == shared


def test_raw_inputs_are_normalised_by_the_first_stage():
    torch.manual_seed(0)
    normalise = Normalise((100.0, 120.0, 140.0), (60.0, 70.0, 80.0), IMAGE)
    model = small(normalise=normalise).eval()
    x = torch.randint(0, 256, (4, *IMAGE), dtype=torch.uint8)
    torch.manual_seed(0)
    assert torch.equal(small().eval()(normalise(x)), model(x))
    assert stages(model)[0](x, {})[0].shape == (1, 4, 5)


def test_traces():
    model = settled(branch=3)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images()), model(images()))


def test_with_the_same_seed_the_same_weights():
    one, two = settled(), settled()
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert [m.num_features for m in small(branch=3).modules() if isinstance(m, nn.BatchNorm2d)].count(3) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"exits": (1, 2)},
            "exits: expected rising numbers of blocks that end with 3, all of depth 8, got (1, 2); pass for example (1, 2, 3)",
        ),
        ({"exits": (1, 4)}, "that end with 3"),
        ({"exits": (2, 1, 3)}, "got (2, 1, 3)"),
        ({"exits": (1, 1, 3)}, "got (1, 1, 3)"),
        ({"exits": ()}, "got ()"),
        ({"exits": (0, 3)}, "exits[0]: expected an int of at least 1, got 0"),
        ({"exits": 3}, "exits: expected a tuple of ints, got 3"),
        ({"branch": 0}, "branch: expected an int of at least 1, got 0"),
        ({"combine": "max"}, 'combine: expected "probs" or "logits" or "last", got \'max\''),
        ({"depth": 9}, "depth: expected 6n + 2 or one of 18, 34, 50, got 9"),
        ({"stem": "imagenet"}, 'stem: depth 8 has "cifar" only'),
        ({"width": 0}, "width: expected an int of at least 1, got 0"),
        ({"classes": 0}, "classes: expected an int of at least 1, got 0"),
        ({"shape": (9, 8)}, "shape: expected (channels, height, width), got (9, 8)"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        MultiExitResNet(**{"shape": IMAGE, "classes": 5, "depth": 8, **arguments})
    assert "\n" not in str(error.value)


def test_every_split_of_the_blocks_is_a_network():
    counts = set()
    for exits in (e for n in (1, 2, 3) for e in itertools.combinations((1, 2, 3), n) if e[-1] == 3):
        model = small(exits=exits).eval()
        assert model(images(2)).shape == (len(exits), 2, 5)
        counts.add(cost.parameters(nn.ModuleList(part.trunk for part in model.segments)))
    assert len(counts) == 1
