"""Multiply-adds and parameters of a network, by running it once and pricing every operator where PyTorch dispatches it.

The convention is that of quorate.cost.operators. Functional calls count as modules do. Counts are per input; an operator that is neither
priced nor free is reported by name, never taken for free.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from quorate.cost.operators import FORMULAS, foreign_layout, is_free, name_of, tensors
from quorate.cost.owners import COPIES, Owners

Example = Tensor | tuple[Any, ...] | Mapping[str, Any]


class UnknownOperatorWarning(UserWarning):
    """A model used operators that have no MAC formula: its count is a lower bound."""


class _Counter(TorchDispatchMode):
    """Adds up the MACs of every operator while active, by the names of the innermost running module and of the parameter in it."""

    supports_higher_order_operators = True

    def __init__(self, owners: Owners) -> None:
        super().__init__()
        self.running = [""]
        self.owners = owners
        self.macs: dict[str, int] = {}
        self.by_parameter: dict[str, int] = {}
        self.unknown: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = name_of(func)
        if not isinstance(func, OpOverload):  # a higher-order operator, such as flex_attention
            self._report(name)
            return func(*args, **kwargs)
        formula = FORMULAS.get(name)
        if formula is not None:
            out = func(*args, **kwargs)
            if layout := foreign_layout(args):
                self._report(f"{name} ({layout})")
            elif macs := formula(args, out):
                self.macs[self.running[-1]] = self.macs.get(self.running[-1], 0) + macs
                for owner, share in self.owners.shares(name, args, macs).items():
                    self.by_parameter[owner] = self.by_parameter.get(owner, 0) + share
            return out
        if is_free(func):
            out = func(*args, **kwargs)
            if name in COPIES:
                self.owners.follow(args[0], out)
            return out
        with self:  # under inference_mode composite operators arrive whole
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            self._report(name)
            out = func(*args, **kwargs)
        return out

    def _report(self, name: str) -> None:
        self.unknown[name] = self.unknown.get(name, 0) + 1

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Know the running module of `model` by its qualified name; a module with several names goes by the first."""

        def enter(name: str, *_: Any) -> None:
            self.running.append(name)

        def leave(*_: Any) -> None:
            self.running.pop()

        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(functools.partial(enter, name), prepend=True))
            hooks.append(module.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, by the modules' flags alone (an overridden `eval` may change weights); each one's own comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def _unfused() -> Iterator[None]:
    """Attention by its products and encoder layers by their modules, so that counts do not depend on device or kernel."""
    fast, cached = torch.backends.mha.get_fastpath_enabled(), torch.is_autocast_cache_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    torch.set_autocast_cache_enabled(False)  # a cast made before would hide whose copy it is
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.set_autocast_cache_enabled(cached)


@contextmanager
def _same_randomness(held: Iterable[Tensor]) -> Iterator[None]:
    """Leave the generators of the CPU and of the accelerators that hold these tensors as they are."""
    devices: dict[str, set[int]] = {}
    for tensor in held:
        if tensor.device.type not in ("cpu", "meta"):
            devices.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        for kind, indices in devices.items():
            stack.enter_context(torch.random.fork_rng(devices=sorted(indices), device_type=kind))
        yield


@dataclass(frozen=True)
class Cost:
    """What one forward pass costs.

    Attributes:
        macs: multiply-adds per input, the sum over `by_layer`.
        parameters: scalars in parameters, shared ones once.
        by_layer: MACs per input of each module that ran counted operators itself, by qualified name ("" is the model), in order.
        unknown: calls of operators without a formula, by name; where there are any, `macs` is a lower bound.
        by_parameter: MACs per input of the operators that had a parameter as a factor (itself, a view, or a copy in another dtype or
            layout), by its qualified name; a shared one by the first of its names, over all its uses. Added biases are no factors;
            what multiplies two parameters is the first one's; attention's own products and those with computed weights are nobody's.
            Rounded down where a parameter's work does not grow with the batch; a batch of 1 is exact.
    """

    macs: int
    parameters: int
    by_layer: dict[str, int]
    unknown: dict[str, int]
    by_parameter: dict[str, int]

    def warn_if_incomplete(self, stacklevel: int = 2) -> None:
        """Give an UnknownOperatorWarning if the count is a lower bound."""
        if self.unknown:
            calls = ", ".join(f"{name} ({times}×)" for name, times in self.unknown.items())
            warnings.warn(
                f"expected operators with a MAC formula, got {calls}; the count is a lower bound: add their cost by hand",
                UnknownOperatorWarning,
                stacklevel=stacklevel + 1,
            )


def _check(model: nn.Module) -> None:
    """Refuse what is no module or has parameters without shapes. Raises ValueError."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model: expected an nn.Module, got {type(model).__name__}; wrap the function in a module")
    named = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, tensor in named if is_lazy(tensor)]:
        raise ValueError(f"model: expected known shapes, got lazy {', '.join(lazy)}; run the model on an input first")


def parameters(model: nn.Module) -> int:
    """Scalars in the parameters of `model`: each parameter once, however often it is shared; buffers do not count.

    Raises:
        ValueError: not a module, or a lazy one that has not run yet.
    """
    _check(model)
    return sum(parameter.numel() for parameter in model.parameters())


def _call(example: Example) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Positional arguments, keyword arguments and batch size of an example call. Raises ValueError."""
    remedy = "pass a tensor, a tuple of positional or a dict of keyword arguments"
    if not isinstance(example, (Tensor, tuple, Mapping)):
        raise ValueError(f"example: expected torch inputs, got {type(example).__name__}; {remedy}")
    first = next(tensors(example), None)
    if first is None:
        raise ValueError(f"example: expected at least one tensor, got none; {remedy}")
    if first.dim() == 0 or first.shape[0] == 0:
        raise ValueError(
            f"example: expected a first tensor with a batch of at least 1, got shape {tuple(first.shape)}; add inputs"
        )
    if isinstance(example, Mapping):
        return (), dict(example), first.shape[0]
    return (example if isinstance(example, tuple) else (example,)), {}, first.shape[0]


def count(model: nn.Module, example: Example) -> Cost:
    """Run `model` once on `example` and count by the convention of quorate.cost.operators.

    The run is in eval mode, without gradients, uncompiled, attention unfused. Modes, buffers, hooks and random state are left as
    found. `model` and `example` must be on the same device; on "meta" nothing is computed or allocated. Work that does not grow
    with the batch is shared among its inputs: pass a batch of 1 to see it whole.

    Args:
        model: an eager module.
        example: a tensor, a tuple of positional arguments or a dict of keyword arguments, which may nest tuples, lists and
            dicts. The first tensor has the batch first.

    Returns:
        Cost, per input.

    Raises:
        ValueError: a model or an example that cannot be counted, or work that is no multiple of the batch size.
    """
    _check(model)
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("model: expected an eager nn.Module, got a scripted one; count the module it was made from")
    args, kwargs, batch = _call(example)
    counter = _Counter(Owners(model))
    buffers = dict(model.named_buffers())
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        stack.enter_context(_same_randomness([*tensors(example), *model.parameters(), *buffers.values()]))
        stack.enter_context(evaluating(model))
        stack.enter_context(_unfused())
        if "torch._dynamo" in sys.modules:  # only then can something be compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(counter.watching(model))
        stack.enter_context(counter)
        functional_call(model, copies, args, kwargs)
    for name, total in counter.macs.items():
        if total % batch:
            raise ValueError(
                f"example: expected MACs that are a multiple of the batch of {batch}, got {total} in {name or 'the model'!r}, "
                "which works across inputs or apart from them; pass a batch of 1"
            )
    by_layer = {name: total // batch for name, total in counter.macs.items()}
    by_parameter = {name: total // batch for name, total in counter.by_parameter.items()}
    return Cost(sum(by_layer.values()), parameters(model), by_layer, counter.unknown, by_parameter)


def macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of one forward pass per input: `count(model, example).macs`.

    Warns:
        UnknownOperatorWarning: the model uses operators without a formula, so that the count is a lower bound.

    Raises:
        ValueError: as `count`.
    """
    cost = count(model, example)
    cost.warn_if_incomplete(stacklevel=2)
    return cost.macs


def training_macs(forward_macs: int, samples: int, epochs: int) -> int:
    """MACs of a training run: 3 × forward × samples × epochs.

    By convention the backward pass costs two products of the forward's size per layer, the gradients of its input and of its
    weight (Evci et al., Rigging the Lottery, ICML 2020, appendix on FLOPs). Optimiser, loss and evaluation are not counted.

    Args:
        forward_macs: of one input.
        samples: inputs per epoch.
        epochs: passes over them.

    Raises:
        ValueError: an argument that is not an int of at least 0.
    """
    for name, value in (("forward_macs", forward_macs), ("samples", samples), ("epochs", epochs)):
        if not isinstance(value, int) or value < 0:
            raise ValueError(f"{name}: expected an int of at least 0, got {value!r}; pass a whole number")
    return 3 * forward_macs * samples * epochs
