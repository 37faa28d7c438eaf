"""What a model's graph is taken to be, and the models that are refused before any step is looked at."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quorate.packed.layout import layout
from quorate.packed.trace import trace


class Net(nn.Module):
    """Two linear layers around any function of (self, hidden)."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        for name, module in modules.items():
            self.add_module(name, module)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.between(self, self.inner(x)))
        return y


def refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        trace(model)
    assert "\n" not in str(caught.value)


def test_untraceable() -> None:
    refused(Net(lambda _, h: h if h.sum() > 0 else -h), "Net cannot be traced by torch.fx .*move checks into __init__")


def test_steps_that_depend_on_the_mode() -> None:
    message = "forward: expected the same steps in training and evaluation mode, but they differ at step"
    refused(Net(lambda net, h: h * 2 if net.training else h + 1), message)
    refused(Net(lambda net, h: F.relu(h) if net.training else h), message)


def test_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    refused(Two(), r"forward: expected one input, got 2 \(x, y\)")


def test_shared_module() -> None:
    layer = nn.Linear(8, 8)
    refused(
        Net(lambda net, h: net.get_submodule("a")(net.get_submodule("a")(h)), a=layer),
        "module 'a': expected its weight to be used once",
    )
    tied = Net(lambda net, h: net.get_submodule("b")(net.get_submodule("a")(h)), a=layer, b=nn.Linear(8, 8))
    tied.get_submodule("b").weight = layer.weight  # type: ignore[assignment]
    refused(tied, "module 'b': expected its weight to be used once, but module 'a' uses it too")


def test_statistics_used_twice() -> None:
    norm = nn.BatchNorm1d(8, affine=False)
    refused(
        Net(lambda net, h: net.get_submodule("n")(net.get_submodule("n")(h)), n=norm), "module 'n': expected its running_mean"
    )


def test_unused_parameters() -> None:
    refused(Net(lambda _, h: h, spare=nn.Linear(2, 2)), "parameter 'spare.weight': expected forward to use it")


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward"])
def test_hooks(kind: str) -> None:
    model = Net(lambda _, h: h)
    getattr(model.inner, f"register_{kind}_hook")(lambda *_: None)
    refused(model, r"module 'inner' \(Linear\): expected no hooks")


def test_a_stateless_module_may_be_used_twice() -> None:
    model = Net(lambda net, h: net.get_submodule("act")(net.get_submodule("act")(h)), act=nn.ReLU())
    assert len(trace(model).graph.nodes) == 6


def test_functional_dropout_becomes_a_module_only_where_it_follows_the_mode() -> None:
    traced = trace(
        Net(lambda net, h: F.dropout2d(F.dropout(F.dropout(h, 0.3, net.training), 0.2), 0.1, net.training, inplace=True))
    )
    kinds = [type(traced.module(n)) for n in traced.graph.nodes if n.op == "call_module"]
    assert kinds == [nn.Linear, nn.Dropout, nn.Dropout2d, nn.Linear]
    modules = [m for m in traced.root.modules() if isinstance(m, nn.Dropout | nn.Dropout2d)]
    assert [(m.p, m.inplace) for m in modules] == [(0.3, False), (0.1, True)]
    assert sum(n.op == "call_function" for n in traced.graph.nodes) == 1


def test_modules_without_parameters_on_the_raw_input_stay_whole_and_only_those() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float() if bool((x >= 0).all()) else -x  # cannot be traced

    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    model = nn.Sequential(Odd(), nn.Sequential(Odd()), nn.Linear(4, 8), Swish(), nn.Linear(8, 3))
    called = [n.target for n in trace(model).graph.nodes if n.op == "call_module"]
    assert called == ["0", "1", "2", "4"]
    refused(nn.Sequential(nn.Linear(4, 8), Odd(), nn.Linear(8, 3)), "cannot be traced")


def test_the_model_is_untouched_and_modes_are_kept() -> None:
    model = Net(lambda net, h: net.get_submodule("norm")(h) + torch.ones(8), norm=nn.BatchNorm1d(8))
    model.get_submodule("norm").eval()
    before = dict(vars(model)), {k: v.clone() for k, v in model.state_dict().items()}
    traced = trace(model)
    assert dict(vars(model)) == before[0]
    assert all(torch.equal(v, before[1][k]) for k, v in model.state_dict().items())
    modes = {name: m.training for name, m in traced.root.named_modules()}
    assert modes == {"": True, "inner": True, "head": True, "norm": False}


class Residual(nn.Module):
    """relu(c2(c1(x)) + s(x)), with what c1, c2 and s are made of given by the names of their convolutions."""

    def __init__(self, main: tuple[str, ...], side: tuple[str, ...]) -> None:
        super().__init__()
        self.main = nn.Sequential()
        self.side = nn.Sequential()
        for way, names in ((self.main, main), (self.side, side)):
            for name in names:
                way.add_module(name, nn.Conv2d(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.side(x))


@pytest.mark.parametrize(
    ("main", "side", "branch"),
    [
        (("a", "b"), (), {"main.a"}),
        (("a", "b"), ("s",), {"main.a"}),
        (("a",), (), {"main.a"}),
        (("a",), ("s",), {"main.a", "side.s"}),  # of equal length: both
        (("a",), ("s", "t"), {"side.s"}),
        (("a", "b", "c"), ("s", "t"), {"main.a"}),
    ],
)
def test_layout_of_a_residual_block(main: tuple[str, ...], side: tuple[str, ...], branch: set[str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Residual(main, side), nn.Flatten(), nn.Linear(16, 2))
    traced = trace(model)
    names = {n.name: str(n.target) for n in traced.graph.nodes}
    places = layout(traced)
    assert {names[n] for n in places.first} == {"0"}
    assert {names[n] for n in places.last} == {"3"}
    assert {names[n] for n in places.branch} == {f"1.{b}" for b in branch}
    assert {places.role(n) for n in places.first} == {"first"}


def test_layout_of_nested_blocks_and_several_ends() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.body = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.one, self.two = nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.add(self.left(x), self.right(x))
            y: Tensor = self.one(h).add_(self.two(h + self.body(h))) / 2
            return y

    traced = trace(Ends())
    places = layout(traced)
    assert places.first == {"left", "right"}
    assert places.last == {"one", "two"}
    assert places.role("body") == "branch"
    alone = trace(nn.Sequential(nn.Linear(4, 2)))
    assert [layout(alone).role(n.name) for n in alone.graph.nodes if n.op == "call_module"] == ["first and last"]


class Counting(nn.Module):
    """A buffer that forward changes: in place, or by another one in its place."""

    calls: Tensor

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(4, 3), way
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.way == "in place":
            self.calls += 1
        elif self.way == "method":
            self.calls.add_(1)
        elif self.training:
            self.calls = self.calls + 1
        y: Tensor = self.layer(x)
        return y


@pytest.mark.parametrize("way", ["in place", "method", "another"])
def test_a_buffer_that_forward_changes_is_no_constant(way: str) -> None:
    refused(Counting(way), "Counting cannot be traced by torch.fx .forward changes buffer 'calls', and would do so no more.")


def test_optional_arguments_keep_their_defaults() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
            y: Tensor = self.layer(x) * scale
            return y if mask is None else y * mask

    traced = trace(Optional())
    assert [n.name for n in traced.graph.nodes if n.op == "placeholder"] == ["x"]
    assert [n.target.__name__ for n in traced.graph.nodes if n.op == "call_function"] == ["mul"]  # type: ignore[union-attr]
