"""Members run one after the other give what they give together: values, gradients, statistics, with inputs of their own; and when."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from quorate.ensemble import member_loss
from quorate.models import MLP, RNN, DepthwiseNet, ResNet, ViT
from quorate.packed import PackedEnsemble, fold, pack, unpack
from quorate.packed.apart import LARGE, large

IMAGES, SERIES = torch.randn(6, 3, 16, 16, dtype=torch.float64), torch.randn(6, 6, 20, dtype=torch.float64)
MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "resnet": (lambda: ResNet((3, 16, 16), 5, depth=8, width=16), IMAGES),
    "depthwise": (lambda: DepthwiseNet((3, 16, 16), 5), IMAGES),
    "vit": (lambda: ViT((3, 16, 16), 5, patch=4, width=32, depth=2, heads=4), IMAGES),
    "mlp": (lambda: MLP((12,), 5, (16, 16), norm=True), torch.randn(6, 12, dtype=torch.float64)),
    "gru": (lambda: RNN((6, 20), 5, "gru", hidden=16, bidirectional=True), SERIES),
    "lstm": (lambda: RNN((6, 20), 5, hidden=16, layers=2), SERIES),
}


def both(name: str) -> tuple[PackedEnsemble, PackedEnsemble, Tensor]:
    """An ensemble that runs its members together, its copy that runs them apart, and an input."""
    make, x = MODELS[name]
    torch.manual_seed(0)
    ensemble = pack(make().double(), members=4, alpha=2, example=x)
    return ensemble.set_execution_("together"), copy.deepcopy(ensemble).set_execution_("apart"), x


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name == "depthwise" else ()) for name in MODELS])
def test_training_is_the_same(name: str) -> None:
    one, two, x = both(name)
    y = torch.arange(6) % 5
    for ensemble in (one, two):
        for _ in range(2):  # statistics accumulate
            ensemble.zero_grad()
            member_loss(ensemble(x), y).backward()
    for (key, a), (_, b) in zip(one.named_parameters(), two.named_parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert (a.grad - b.grad).norm() <= 1e-12 * max(float(a.grad.norm()), 1e-6), key
    for (key, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12, msg=key)
    assert list(one.state_dict()) == list(two.state_dict())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.slow
def test_inputs_of_their_own(name: str) -> None:
    one, two, x = both(name)
    own = torch.randn(4, *x.shape, dtype=torch.float64)
    torch.testing.assert_close(one.eval().each(own), two.eval().each(own), rtol=0, atol=1e-12)


def test_members_are_apart_exactly() -> None:
    _, ensemble, x = both("resnet")
    logits = ensemble(x)
    for i in range(4):
        for gradient in torch.autograd.grad(logits[i].sum(), tuple(ensemble.parameters()), retain_graph=True):
            blocks = gradient.unflatten(0, (4, -1)).flatten(1)
            assert not blocks[torch.arange(4) != i].any()


def test_gradients_of_a_parameter_come_in_one_piece() -> None:
    _, ensemble, x = both("resnet")
    ensemble(x).sum().backward()
    steps = {type(fn).__name__ for fn in _graph(ensemble(x).grad_fn)}
    assert "SliceBackward0" not in steps  # a full-size gradient for each member
    assert "UnbindBackward0" in steps


def _graph(fn: object) -> set[object]:
    seen, todo = set(), [fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]  # type: ignore[attr-defined]
    return seen


def test_channels_last_weights() -> None:
    one, two, x = both("resnet")
    like = {"memory_format": torch.channels_last}
    one, two, x = one.to(**like), two.to(**like), x.to(**like)
    torch.testing.assert_close(one(x), two(x), rtol=0, atol=1e-12)
    two(x).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in two.parameters())


def test_the_rule_looks_at_shapes_alone() -> None:
    _, ensemble, _ = both("resnet")
    assert ensemble.set_execution_("auto").execution == "auto"
    rows = LARGE // 256
    assert large(ensemble, torch.empty(rows, 3, 16, 16))
    assert not large(ensemble, torch.empty(rows - 1, 3, 16, 16))
    assert not large(ensemble, torch.empty(rows, 3, 16, 16, device="meta"))
    _, vit, _ = both("mlp")
    assert not large(vit, torch.empty(LARGE, 12))
    handle = next(ensemble.network.children()).register_forward_hook(lambda *_: None)
    assert not large(ensemble, torch.empty(rows, 3, 16, 16))  # a hook would wait in vain
    handle.remove()
    assert large(ensemble, torch.empty(rows, 3, 16, 16))


def test_auto_runs_large_batches_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ensemble, x = both("resnet")
    ensemble.set_execution_("auto").eval()
    calls = []
    monkeypatch.setattr("quorate.packed.ensemble.run_apart", lambda _, inputs: calls.append(len(inputs)) or torch.zeros(4, 64, 5))
    ensemble(x)
    assert calls == []
    ensemble(x.repeat(11, 1, 1, 1)[:64])
    assert calls == [4]


def test_copies_folds_and_members_follow() -> None:
    _, ensemble, x = both("resnet")
    ensemble.eval()
    logits = ensemble(x)
    torch.testing.assert_close(copy.deepcopy(ensemble)(x), logits, rtol=0, atol=0)
    torch.testing.assert_close(fold(ensemble)(x), logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(unpack(ensemble, 2)(x), logits[2], rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.mul_(1.1)
    assert (ensemble(x) - logits).abs().max() > 0  # it reads the values there are, keeps none


def test_threads_do_not_meet() -> None:
    _, ensemble, x = both("resnet")
    ensemble.eval()
    expected = {i: ensemble(x[i : i + 1]) for i in range(6)}
    wrong: list[int] = []

    def work(i: int) -> None:
        with torch.no_grad():
            for _ in range(10):
                if not torch.allclose(ensemble(x[i : i + 1]), expected[i], rtol=0, atol=1e-12):
                    wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_errors() -> None:
    _, ensemble, _ = both("resnet")
    with pytest.raises(ValueError, match="execution: expected one of auto, together, apart, got 'loop'; choose one of them"):
        ensemble.set_execution_("loop")

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.stem(x)).flatten(1)

    packed = pack(Odd()).set_execution_("apart")
    assert packed(torch.zeros(2, 3, 1, 1)).shape == (4, 2, 5)
