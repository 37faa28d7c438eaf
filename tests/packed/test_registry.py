"""Modules of the user's own: rewritten, narrowed, or kept whole by skip; and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from packed_members import assert_alone, assert_isolated, drawn, images, near
from quorate.packed import Packing, pack, pack_members, register_packing, registry, unpack


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))


class Gated(nn.Module):
    """A parameter that no rule follows, and a branch on values: it cannot be traced."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.scale, self.layer = width, nn.Parameter(torch.ones(width)), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 0:
            return x
        y: Tensor = self.layer(x) * torch.softmax(self.scale, 0)
        return y if bool(y.isfinite().all()) else x


def narrow(module: Gated, packing: Packing) -> Gated:
    return Gated(int(module.width * packing.ratio))


def model(width: int = 16, inner: type[nn.Module] = Gated) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), nn.ReLU(), inner(width), nn.ReLU(), nn.Linear(width, 3))


X = images(4)


def test_narrowed_modules_run_one_by_one() -> None:
    register_packing(Gated, narrow=narrow)
    torch.manual_seed(0)
    packed = drawn(pack(model().double(), members=4, alpha=2, example=X))
    assert [(row.name, row.kind, row.role) for row in packed.explain()][1] == ("3", "MemberCopies", "interior")
    assert_alone(packed, X, lambda: model(8))
    assert_isolated(packed, X)
    again = pack_members([unpack(packed, m) for m in range(4)], example=X)
    near(again.eval()(X), packed.eval()(X))
    assert len({float(p.detach().flatten()[0]) for name, p in packed.named_parameters() if "layer.weight" in name}) == 4


def test_narrowed_modules_by_name_and_at_the_full_width() -> None:
    register_packing(f"{__name__}.Gated" if Gated.__module__ == __name__ else f"{Gated.__module__}.Gated", narrow=narrow)
    assert_alone(drawn(pack(model().double(), members=2, alpha=2, init="copy", example=X)), X, model)


def test_a_narrowed_module_may_be_first_and_may_see_channels() -> None:
    class Sorted(nn.Module):
        def __init__(self, into: int, width: int) -> None:
            super().__init__()
            self.into, self.width, self.mix = into, width, nn.Parameter(torch.rand(into, width))

        def forward(self, x: Tensor) -> Tensor:
            return x.movedim(1, -1).matmul(torch.sort(self.mix, 0)[0]).movedim(-1, 1)

    def smaller(module: Sorted, packing: Packing) -> Sorted:
        return Sorted(module.into if packing.first else int(module.into * packing.ratio), int(module.width * packing.ratio))

    def make(width: int) -> nn.Module:
        body = (Sorted(3, width), nn.Conv2d(width, width, 3), Sorted(width, width), nn.Conv2d(width, width, 1))
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(4 * width, 3))

    register_packing(Sorted, narrow=smaller)
    packed = drawn(pack(make(8).double(), members=2, alpha=1, example=X))
    assert_alone(packed, X, lambda: make(4))
    assert_isolated(packed, X)
    assert packed.explain()[0].role == "first"


class Doubled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + y if len(y) else y  # which fx cannot follow


class Sum(nn.Module):
    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x)
        return y + y


def test_rewritten_modules_hold_the_given_values() -> None:
    register_packing(Doubled, rewrite=lambda m: Sum(m.inner))
    source = model(inner=Doubled).double()
    source[3].inner.weight.requires_grad_(False)
    source[3].eval()
    packed = pack(source, members=2, alpha=2, init="copy", example=X)
    near(packed.eval()(X)[1], source.eval()(X))
    assert [n for n, p in packed.named_parameters() if not p.requires_grad] == ["network.3.inner.weight"]
    assert_alone(drawn(pack(source, members=4, alpha=2, example=X)), X)


def test_rewrites_of_rewrites_and_of_the_model_itself() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Linear(48, 8), Doubled(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.body(self.stem(x.flatten(1)))) if len(x) else x
            return y

    register_packing(Outer, rewrite=lambda m: nn.Sequential(nn.Flatten(), m.stem, m.body, m.head))
    register_packing(Doubled, rewrite=lambda m: Sum(m.inner))
    source = Outer().double()
    near(pack(source, members=2, alpha=2, init="copy", example=X)(X)[0], source(X))


def test_a_rewrite_that_is_another_function_is_found() -> None:
    register_packing(Doubled, rewrite=lambda m: m.inner)
    with pytest.raises(ValueError, match="a registered rewrite is not equivalent"):
        pack(model(inner=Doubled).double(), members=2, alpha=2, example=X)


def test_skipped_modules_are_kept_whole_with_their_values() -> None:
    source = model().double()
    packed = pack(source, members=2, alpha=2, example=X, skip=["3"])
    for m in range(2):
        assert torch.equal(unpack(packed, m).get_submodule("3").layer.weight, source[3].layer.weight)  # type: ignore[union-attr]
    assert_alone(drawn(packed), X, model)
    assert_isolated(packed, X)


def test_skipped_modules_without_parameters_need_no_full_width() -> None:
    class Rescaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.shape[-1] == 0 else x / (x.norm(dim=1, keepdim=True) + 1)

    source = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), Rescaled(), nn.Linear(8, 3)).double()
    packed = drawn(pack(source, members=4, alpha=2, example=X, skip=["2"]))
    assert_alone(packed, X)
    assert_isolated(packed, X)


def test_a_frozen_trunk_on_the_raw_input_is_shared() -> None:
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Tanh()).requires_grad_(False)
    source = nn.Sequential(trunk, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    packed = pack(source, members=4, alpha=2, example=X, skip=["0"])
    assert sum(p.numel() for p in packed.network.get_submodule("0").parameters()) == 49 * 8
    assert [row.name for row in packed.explain()] == ["1", "3"]
    assert packed.explain()[0].role == "first"
    assert_alone(drawn(packed), X)


ERRORS: dict[str, tuple[dict[str, Any], str]] = {
    "kind": (
        {"kind": 3, "narrow": narrow},
        "kind: expected an nn.Module class or its full name, got 3; pass the class of the layer",
    ),
    "class": ({"kind": int, "narrow": narrow}, "kind: expected an nn.Module class"),
    "name": ({"kind": "Gated", "narrow": narrow}, r'kind: expected a full name such as "package\.module\.Class", got \'Gated\''),
    "neither": ({"kind": Gated}, "register_packing: expected one of rewrite and narrow, got neither or both"),
    "both": ({"kind": Gated, "narrow": narrow, "rewrite": narrow}, "register_packing: expected one of rewrite and narrow"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_wrong_registrations(name: str) -> None:
    options, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        register_packing(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"skip": ["9"]},
            "skip: expected names of the model's modules, got '9'; its modules are '0', '1', '2', '3', '3.layer', …",
        ),
        ({"skip": "3"}, "skip: expected names of modules, got '3'; pass for example skip="),
        ({"skip": [""]}, "skip: expected names of the model's modules, got ''"),
        (
            {"skip": ["3"], "alpha": 1},
            r"skip: module '3' \(Gated\) has parameters of the single network's width, but members are 1/2 of it",
        ),
        ({"skip": ["3"], "example": None}, "module '3': expected an example, as the module is kept whole"),
    ],
)
def test_wrong_skips(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        pack(model().double(), **{"members": 2, "alpha": 2, "example": X} | options)
    assert "\n" not in str(caught.value)


def test_a_rewrite_must_give_another_module() -> None:
    register_packing(Gated, rewrite=lambda m: m)
    with pytest.raises(
        ValueError, match=r"rewrite of Gated: expected another nn.Module, got Gated; return its equivalent in layers"
    ):
        pack(model().double())
    register_packing(Gated, rewrite=lambda _: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match=r"rewrite of Gated: expected another nn.Module, got NoneType"):
        pack(model().double())
