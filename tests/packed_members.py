"""A packed ensemble against its members: each alone, each on an input of its own, by hand-written narrow models, and by gradients.

`Between` is a model whose middle a test gives: a function of the model, its hidden values and the raw input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from quorate.packed import PackedEnsemble, pack, unpack
from quorate.packed.members import parts

TOLERANCE = 1e-12  # float64, relative to the largest value
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)


def drawn(packed: PackedEnsemble, seed: int = 0) -> PackedEnsemble:
    """The ensemble in float64 with random parameters (norms near one) and random positive statistics."""
    generator = torch.Generator().manual_seed(seed)
    packed = packed.double()
    with torch.no_grad():
        for parameter in packed.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            bound = 1.5 / max(1, parameter[0].numel() // max(1, parameter.shape[1] if parameter.dim() > 1 else 1)) ** 0.5
            parameter.copy_(noise * bound if parameter.dim() > 1 else 0.5 + noise * 0.3)
        for name, buffer in packed.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator, dtype=torch.float64))
    return packed


def near(given: Tensor, expected: Tensor) -> None:
    """Equal shapes, and values to TOLERANCE of the largest."""
    assert given.shape == expected.shape
    given, expected = given.detach(), expected.detach()
    assert expected.isfinite().all()
    assert float((given - expected).abs().max()) < TOLERANCE * max(1.0, float(expected.abs().max()))


def repeatable(packed: PackedEnsemble) -> tuple[bool, ...]:
    """The modes in which two runs give the same."""
    draws = any(isinstance(m, RANDOM) and getattr(m, "p", 1) > 0 for m in packed.modules())
    return (False,) if draws else (False, True)


def assert_alone(packed: PackedEnsemble, x: Tensor, narrow: Callable[[], nn.Module] | None = None) -> None:
    """Row m is what the unpacked member m gives, and what `narrow()` with its values gives; so is `each` on inputs of the members' own.

    In evaluation and training mode, for several sizes of the batch, statistics accumulating; members differ.
    """
    together, own = copy.deepcopy(packed), torch.stack([x.roll(m, 0) for m in range(packed.members)])
    plains = [[unpack(packed, m)] for m in range(packed.members)]
    for (member, *_), others in zip(plains, plains, strict=True):
        if narrow is not None:
            others.append(narrow().double())
            values = {k: v for k, v in member.state_dict().items() if not k.startswith("_tensor_constant")}  # made while tracing
            others[-1].load_state_dict(values)
    for training in repeatable(packed):
        for module in (together, *(model for models in plains for model in models)):
            module.train(training)
        for rows in (x, x[:2], x[:2] if training else x[:1]):
            for given, models in zip(together(rows), plains, strict=True):
                for model in models:
                    near(given, model(rows))
        separate = together.each(own)
        for given, models, rows in zip(separate, plains, own, strict=True):
            for model in models:
                near(given, model(rows))
    if packed.members > 1:
        assert not torch.allclose(packed.eval()(x)[0], packed(x)[1])


def assert_isolated(packed: PackedEnsemble, x: Tensor) -> None:
    """The derivative of member i's logits by anything of member j's is exactly 0, by its own not, in training and evaluation mode."""
    names = [row.name for row in packed.explain()]
    for training in (False, True):
        trial = copy.deepcopy(packed).train(training)
        rows, parameters = trial(x), list(trial.parameters())
        weights = torch.linspace(0.5, 1.5, rows[0].numel(), dtype=rows.dtype).reshape(rows[0].shape)
        found = copy.deepcopy(packed)
        with torch.no_grad():
            for buffer in found.buffers():
                buffer.zero_()
        for i in range(packed.members):
            gradients = torch.autograd.grad((rows[i] * weights).sum(), parameters, allow_unused=True, retain_graph=True)
            with torch.no_grad():
                for place, gradient in zip(found.parameters(), gradients, strict=True):
                    place.copy_(torch.zeros_like(place) if gradient is None else gradient)
            for j in range(packed.members):
                assert any(bool(view.any()) for view in parts(found.network, names, j)) == (i == j), (i, j, training)


def assert_complete(packed: PackedEnsemble) -> None:
    """The members' parts are all the parameters that there are, each once."""
    names = [row.name for row in packed.explain()]
    owned = sum(p.numel() for m in range(packed.members) for p in unpack(packed, m).parameters())
    assert owned == sum(p.numel() for p in packed.parameters())
    assert len(names) == len(set(names))


Step = Callable[[Any, Tensor, Tensor], Tensor]
Parts = Callable[[int], dict[str, nn.Module | Tensor]]


class Between(nn.Module):
    """A first layer to (B, width, 4, 4), any step, and a head; beside them modules, parameters and buffers of a width, by name."""

    def __init__(
        self, step: Step, parts: Parts | None = None, width: int = 8, features: Callable[[int], int] | None = None
    ) -> None:
        super().__init__()
        self.w, self.step = width, step
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for name, value in (parts(width) if parts else {}).items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                self.register_buffer(name, value)
            else:
                self.add_module(name, value)
        self.head = nn.Linear(features(width) if features else 16 * width, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.step(self, self.stem(x), x).flatten(1))
        return y


def images(rows: int = 3) -> Tensor:
    """Float64 images (rows, 3, 4, 4)."""
    return torch.randn(rows, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def check_step(
    step: Step, parts: Parts | None = None, features: Callable[[int], int] | None = None, narrower: bool = True
) -> None:
    """The step packs, and is the same as in members by hand; without an example it is that or an error of one line.

    narrower: also with members of half the width.
    """
    x = images()
    for alpha in (1, 2) if narrower else (2,):

        def make(width: int) -> nn.Module:
            return Between(step, parts, width, features).double()

        torch.manual_seed(0)
        packed = drawn(pack(make(8), members=2, alpha=alpha, example=x[:2]))
        assert_alone(packed, x, lambda a=alpha: make(4 * a))  # type: ignore[misc]
        try:
            blind = pack(make(8), members=2, alpha=alpha)
        except ValueError as error:
            lines = str(error).count("\n")
            assert lines == 0
        else:
            blind.load_state_dict(packed.state_dict())
            near(blind.eval()(x), packed.eval()(x))


def fitting(step: Step, parts: Parts | None = None) -> Between:
    """A model around the step whose head is as wide as what the step gives, if that can be found by running it."""
    x = images().float()
    model = Between(step, parts)
    try:
        found = step(model, model.stem(x), x).flatten(1).shape[1]
    except Exception:  # a step that cannot run as it is
        return model
    return Between(step, parts, features=lambda _: found)
