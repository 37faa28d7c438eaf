"""Saving bundles: what policies pick from one ensemble and from several, what is written down, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from quorate import Cascade, Outputs, Policy, collect, stages
from quorate.cascade import StagePolicy, Watch
from quorate.cascade.planner.pool import join_pool
from quorate.distil.ensemble import Distilled
from quorate.ensemble import DeepEnsemble, MemberStage
from quorate.export import programs, save_bundle
from quorate.export.chain import built, chosen, links
from quorate.models import MultiExitResNet
from quorate.runtime import BundleError, Program, load_bundle
from small_distillations import DATA, own
from test_contract import Students

X = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
LABELS = np.arange(12) % 3


def linear(seed: int, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(5, width)


def pool_outputs(pool: dict[str, nn.Module]) -> Outputs:
    """Of all sources, named as the planner names them."""
    return join_pool({name: labelled(source) for name, source in pool.items()})


def labelled(ensemble: nn.Module) -> Outputs:
    found = collect(ensemble, torch.utils.data.TensorDataset(X, torch.from_numpy(LABELS)), classes=["a", "b", "c"])
    return (
        found
        if found.stages > 1
        else Outputs(found.values, labels=LABELS, classes=found.classes, costs=found.costs, names=["ensemble"])
    )


class Network(nn.Module):
    """A network alone, as one ensemble of one member."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.inner = linear(seed)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[None]


SMALL, LARGE = Network(0), DeepEnsemble([linear(1), linear(2), linear(3)])
POOL: dict[str, nn.Module] = {"small": SMALL, "large": LARGE}


def picked(outputs: Outputs, *names: str, **options: Any) -> Policy:
    """Over these stages; half of the rows go on after each."""
    costs = dict(zip(outputs.names, outputs.costs or (), strict=True))
    made = [StagePolicy(name, window=None if name == names[-1] else (0.3, None), tau=0.6, cost=costs[name]) for name in names]
    return Policy(tuple(made), **options)


@pytest.fixture(scope="module")
def small() -> Program:
    (made,) = programs(SMALL, X)
    return made


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Policy, Outputs, Path, Any]:
    outputs = pool_outputs(POOL)
    policy = picked(outputs, "large/member2", "small")
    folder = tmp_path_factory.mktemp("mixed") / "doubtful"
    said: list[str] = []
    manifest = save_bundle(
        POOL, policy, folder, example=X, validation=outputs, test=outputs, preprocessing={"mean": [0.5]}, about={"recipe": "x: 1"},
        progress=said.append,
    )  # fmt: skip
    assert said == ["stage large/member2", "stage small", "writing"]
    return policy, outputs, folder, manifest


def test_a_policy_picks_stages_of_several_sources_by_name(mixed: tuple[Policy, Outputs, Path, Any]) -> None:
    policy, _, folder, manifest = mixed
    runtime = load_bundle(folder, threads=1)
    second, first = stages(LARGE)[2], stages(SMALL)[0]
    second.name, first.name = policy.stages[0].name, policy.stages[1].name
    want, got = Cascade([second, first], policy).predict(X), runtime.predict(X.numpy())
    assert 0 < got.stage.sum() < len(X)
    for key in ("label", "stage", "accepted", "macs"):
        np.testing.assert_array_equal(getattr(got, key), getattr(want, key) if key != "macs" else 15.0 * (1 + want.stage))
    np.testing.assert_allclose(got.probs, want.probs, rtol=0, atol=1e-6)
    assert manifest.policy == policy


def test_what_is_written_down(mixed: tuple[Policy, Outputs, Path, Any]) -> None:
    policy, outputs, folder, manifest = mixed
    assert (manifest.name, manifest.kind, manifest.combine, manifest.classes) == ("doubtful", "logits", "probs", ("a", "b", "c"))
    assert manifest.costs == {"unit": "MACs", "total": 30.0}
    assert manifest.preprocessing == {"mean": [0.5]}
    assert manifest.provenance["recipe"] == "x: 1"
    assert manifest.provenance["versions"]["torch"] == torch.__version__
    assert (manifest.golden.rows, manifest.golden.rtol, manifest.golden.atol) == (8, 1e-3, 1e-3)
    assert manifest.watch == Watch.of(policy, outputs).to_dict()
    card = (folder / manifest.card).read_text(encoding="utf-8")
    assert "doubtful" in card
    assert f"{len(X)}" in card
    for file in manifest.files:
        for told in (str(folder).encode(), b"/home", b"site-packages"):
            assert told not in (folder / file.path).read_bytes()


@pytest.mark.slow
def test_equal_ensembles_give_equal_bundles(mixed: tuple[Policy, Outputs, Path, Any], tmp_path: Path) -> None:
    _, _, _, manifest = mixed
    made = programs(POOL, X, names=["large/member2", "small"])
    again = save_bundle(made, manifest.policy, tmp_path / "b", example=X.numpy())
    content = lambda m: {f.path.rsplit("/", 1)[1]: f.sha256 for f in m.files if f.path.endswith("onnx")}  # noqa: E731
    assert content(again) == content(manifest)


def test_stages_in_a_list_and_files_of_onnx(small: Program, tmp_path: Path) -> None:
    (tmp_path / "other.onnx").write_bytes(small.onnx)
    policy = Policy((StagePolicy("member1", window=(None, None), cost=1.0), StagePolicy("other", cost=7.0)))
    manifest = save_bundle([*stages(LARGE, X), tmp_path / "other.onnx"], policy, tmp_path / "b", example=X[:1])
    assert [(s.ports.stage, s.ports.precision, s.ports.macs) for s in manifest.stages] == [
        ("member1", "fp32", None), ("other", "foreign", None),
    ]  # fmt: skip
    assert manifest.costs == {"unit": "units of the policy", "total": 8.0}
    assert manifest.golden.rows == 1
    runtime = load_bundle(tmp_path / "b", threads=1)
    np.testing.assert_array_equal(runtime.predict(X.numpy()).macs, np.full(12, 8.0))
    with torch.no_grad():
        want = (LARGE.members[1](X).softmax(-1) + SMALL(X)[0].softmax(-1)) / 2
    np.testing.assert_allclose(runtime.predict(X.numpy()).probs, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"policy": "policy.json"}, {"policy": None, "validation": "x"}, {"policy": None, "test": {}}]
)
def test_what_is_no_policy_and_no_outputs(tmp_path: Path, options: dict[str, Any]) -> None:
    what = next(name for name, value in options.items() if value is not None)
    with pytest.raises(ValueError, match=rf"{what} is \w+: expected a quorate\.\w+, load it first, or None"):
        save_bundle(None, path=tmp_path / "b", example=X, **options)


def test_without_a_policy_nobody_leaves_early(tmp_path: Path) -> None:
    manifest = save_bundle(
        [MemberStage("one", linear(1)), MemberStage("two", linear(2))],
        None,
        tmp_path / "b",
        example=X,
        kind="logits",
        combine="logits",
    )
    assert manifest.policy is not None
    assert [stage.window for stage in manifest.policy.stages] == [(None, None), None]
    with torch.no_grad():
        want = ((linear(1)(X) + linear(2)(X)) / 2).softmax(-1)
    np.testing.assert_allclose(load_bundle(tmp_path / "b", threads=1).predict(X.numpy()).probs, want, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_stages_that_carry_the_same_names_in_two_sources(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pool = {
        name: MultiExitResNet((3, 8, 8), 3, depth=8, width=width, combine="probs").eval() for name, width in (("a", 2), ("b", 4))
    }
    x = torch.randn(9, 3, 8, 8)
    names = ["a/exit0", "b/exit0", "a/exit1", "b/exit1"]
    policy = Policy(tuple(StagePolicy(name, window=None if name == names[-1] else (None, None)) for name in names))
    manifest = save_bundle(pool, policy, tmp_path / "b", example=x)
    assert [list(stage.ports.reads) for stage in manifest.stages] == [[], [], ["a/features"], ["b/features"]]
    assert [list(stage.ports.writes) for stage in manifest.stages] == [["a/features"], ["b/features"], [], []]
    with torch.no_grad():
        want = torch.cat([network(x)[:2] for network in pool.values()]).softmax(-1).mean(0)
    np.testing.assert_allclose(load_bundle(tmp_path / "b", threads=1).predict(x.numpy()).probs, want, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_merged_stages_and_a_prefix(tmp_path: Path) -> None:
    digits = torch.as_tensor(DATA.train.batch(np.arange(9))[0])
    students = Distilled(own(3)).eval()
    outputs = collect(students, list(digits))
    policy = Policy.of(outputs.prefix(2), [(0.5, None)])
    manifest = save_bundle(students, policy, tmp_path / "b", example=digits)
    assert [list(stage.ports.writes) for stage in manifest.stages] == [["hidden1"], []]
    merged = outputs.regroup([1, 2])
    manifest = save_bundle(students, Policy.of(merged), tmp_path / "b", example=digits)
    assert [stage.ports.members.shape[0] for stage in manifest.stages] == [1, 2]
    got = load_bundle(tmp_path / "b", threads=1).outputs(digits.numpy())
    np.testing.assert_allclose(got.values[1], merged.values[1], rtol=0, atol=1e-5)


def test_dependent_stages_come_in_their_order_and_without_gaps() -> None:
    pool = links(Students())
    assert [link.name for link in chosen(pool, ["first", "second"])] == ["first", "second"]
    for names, message in (
        (["second"], r"'second' reads 'features' of 'first', before it in \['second'\] it is of None"),
        (["first", "third"], r"'third' reads 'features' of 'second', before it in \['first', 'third'\] it is of 'first'"),
        (["first", "other"], r"has the stages \['other'\], there are \['first', 'second', 'third'\]: name the sources as"),
    ):
        with pytest.raises(ValueError, match=message):
            chosen(pool, names)
    double = links({"a": Students(), "b": Students()})
    assert chosen(double, ["a/first", "b/first", "b/second", "a/second"])


def test_what_can_be_a_stage() -> None:
    for given, message in (
        ([linear(0)], r"a Linear among the stages: expected stages .* give whole ensembles as \{name: ensemble\}"),
        ([], r"stages \[\]: expected at least one"),
        ([MemberStage("a", linear(0)), MemberStage("a", linear(1))], r"stages \['a', 'a'\]: .* each of its own name"),
        ({"": SMALL}, "a source is called '': expected text"),
        ({"a": 3}, "a int among the stages"),
        (7, "a int among the stages"),
    ):
        with pytest.raises(ValueError, match=message):
            links(given)
    assert [link.name for link in links({"a": linear(0)})] == ["a"]
    assert [link.name for link in links({"a": stages(LARGE)[0]})] == ["a"]
    assert [link.name for link in links(MemberStage("one", SMALL))] == ["one"]


def test_a_program_gets_the_raw_input_of_all(small: Program) -> None:
    with pytest.raises(ValueError, match=r"'ensemble' takes float32 \(5,\) a row, the example is float64 \(5,\)"):
        built(links([small]), X.double(), rtol=1e-4, atol=1e-4)
    with pytest.raises(BundleError, match="the program of stage 'ensemble'"):
        built(links([Program(small.ports, b"nonsense")]), X, rtol=1e-4, atol=1e-4)


ONE = picked(pool_outputs(POOL), "large/member0")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "kind of the ensembles": ({"kind": "values"}, "kind='values': the ensemble or its policy has 'logits', leave it out"),
    "kind of the policy": ({"policy": ONE, "kind": "probs"}, "kind='probs': the ensemble or its policy has 'logits', leave it out"),
    "combine of the policy": ({"policy": ONE, "combine": "logits"}, "combine='logits': the ensemble or its policy has 'probs'"),
    "policy over other values": (
        {"policy": Policy(ONE.stages, kind="probs")}, "'large/member0' gives logits, the policy takes probs from it: use its own policy",
    ),
    "policy that joins otherwise": (
        {"policy": Policy(ONE.stages, combine="logits")}, "'large/member0' is of an ensemble combined by probs, the policy is for logits",
    ),
    "nobody says": ({"ensemble": [MemberStage("a", SMALL)]}, "nothing says the stages' kind: give kind=, a policy, or a whole"),
    "nobody says how": ({"ensemble": [MemberStage("a", SMALL)], "kind": "logits"}, "nothing says the stages' combine"),
    "two kinds": ({"ensemble": {"a": SMALL, "b": DeepEnsemble([linear(1)], kind="values")}}, r"kinds values \('b'\), logits \('a'\)"),
    "two combines": ({"ensemble": {"a": LARGE, "b": Students()}}, r"by logits \('b/first'\), probs \('a/member0'\): give the policy"),
    "tolerance": ({"atol": float("inf")}, "atol=inf: expected a finite number ≥ 0"),
    "no rows": ({"example": X[:0]}, r"the example has shape \(0, 5\): expected some rows of raw input"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_before_anything_is_written(case: str, tmp_path: Path) -> None:
    given, message = REFUSED[case]
    options = {"ensemble": POOL, "policy": None, "example": X} | given
    with pytest.raises(ValueError, match=message) as caught:
        save_bundle(options.pop("ensemble"), options.pop("policy"), tmp_path / "b", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()


def test_labels_alone_are_no_members(tmp_path: Path) -> None:
    policy = Policy((StagePolicy("small", "replace"),), kind="top1", combine="last")
    with pytest.raises(ValueError, match="the policy is over top1, labels alone"):
        save_bundle(POOL, policy, tmp_path / "b", example=X)


def test_class_names_and_outputs_that_dont_fit(small: Program, tmp_path: Path) -> None:
    made, policy = [small], Policy((StagePolicy("ensemble"),))
    two = Outputs([np.zeros((1, 4, 3))] * 2, names=["a", "b"])
    for options, message in (
        ({"classes": ["a", "b"]}, "classes has 2 names for 3 outputs: expected one for each, in order"),
        ({"classes": "abc"}, "classes has 3 names for 3 outputs"),
        ({"validation": two}, r"the validation Outputs are of \['a', 'b'\]: expected \['ensemble'\] among them"),
        ({"test": two}, r"the test Outputs are of \['a', 'b'\]: expected \['ensemble'\] among them"),
    ):
        with pytest.raises(ValueError, match=message):
            save_bundle(made, policy, tmp_path / "b", example=X, **options)
    other = programs({"b": linear(2, 4)}, X)
    with pytest.raises(ValueError, match=r"the stages give \{'ensemble': 3, 'b': 4\} outputs a row: expected as many from each"):
        save_bundle([*made, *other], None, tmp_path / "b", example=X, kind="logits", combine="probs")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds 'mine\.txt', which is no bundle's"):
        save_bundle(made, policy, tmp_path / "b", example=X)


@pytest.mark.slow
def test_a_program_may_use_a_tenth_of_the_tolerance(tmp_path: Path) -> None:
    class Off(nn.Module):
        """Off by 0.01 in what is exported."""

        def forward(self, x: Tensor) -> Tensor:
            return x[:, :3] + 0.01 * torch.compiler.is_exporting()

    with pytest.raises(ValueError, match=r"differs from PyTorch by up to 0\.01 .* expected at most 0\.0001 \+ 0\.0001"):
        save_bundle({"off": Off()}, None, tmp_path / "b", example=X)
    manifest = save_bundle({"off": Off()}, None, tmp_path / "b", example=X, atol=0.2)
    assert (manifest.golden.rtol, manifest.golden.atol) == (1e-3, 0.2)
    golden = onnx.ModelProto.FromString((tmp_path / "b" / manifest.stages[0].program).read_bytes()).graph
    assert golden.output[0].name == "members"
