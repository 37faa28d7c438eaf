"""How each packed layer computes its products: measured on request, written down, set.

Many packed layers have several backends (`BACKENDS`): the same numbers to rounding, from the same state dict, at different speed. Which is
fastest depends on the device, the batch, the widths and the memory format that the layer before leaves behind. `tune` measures:

    each layer    in order of execution, on the input that it really gets; its backends in turn, round by round (`cost/interleaving.py`);
                  the one that takes the least share of the present one's time is used if it gains the margin, by the layers behind too
    the network   as it was, with the choices made from there, with those made from channels_last throughout, which pay one layer for
                  what many gain, and with the members run apart (`apart.py`); the fastest stays, if it gains the margin

Nothing is timed inside `forward`: a choice is a name in a table, so that a run resumes bit for bit and an export is reproducible.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from quorate.cost.interleaving import Times, interleaved, ratio
from quorate.cost.operators import tensors
from quorate.packed.apart import EXECUTIONS
from quorate.packed.ensemble import PackedEnsemble
from quorate.packed.layers.options import Backends

CHANNELS_LAST = "nhwc"
MARGIN = 0.05
MEMBERS = "(members)"  # beside the names of layers: how the ensemble runs its members, one of EXECUTIONS
Chosen = dict[str, str]


@dataclass(frozen=True)
class Choice:
    """One layer: its name in the packed network, its class, the median milliseconds of each backend, the one before and the one taken."""

    name: str
    kind: str
    times_ms: dict[str, float]
    before: str
    chosen: str


@dataclass(frozen=True)
class Tuning:
    """What `tune` found.

    Attributes:
        choices: of each layer that was measured, in order of execution.
        network_ms: median milliseconds of the whole network "as it was", with the choices made "from before" and "from channels_last",
            and with its "members apart".
        execution: how the members are run.
        settings: what it was measured under: shape and dtype of the input, device, threads, training, repeats, margin.
    """

    choices: tuple[Choice, ...]
    network_ms: dict[str, float]
    execution: str
    settings: dict[str, Any]

    @property
    def chosen(self) -> Chosen:
        """The backend of each layer that was measured, and under "(members)" how members run: what `apply_` takes."""
        return {choice.name: choice.chosen for choice in self.choices} | {MEMBERS: self.execution}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data for JSON."""
        return {**asdict(self), "choices": [asdict(choice) for choice in self.choices]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """What `to_dict` gave. Raises ValueError for anything else."""
        try:
            choices = tuple(Choice(**choice) for choice in data["choices"])
            return cls(choices, dict(data["network_ms"]), str(data["execution"]), dict(data["settings"]))
        except (KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"tuning: expected what Tuning.to_dict() gives, got {type(data).__name__} ({reason}); tune again"
            ) from error

    def __str__(self) -> str:
        """A table: a line for each layer, with its times and a star at the backend taken; then the whole network."""
        wide = max((len(choice.name) for choice in self.choices), default=0)
        lines = []
        for choice in self.choices:
            times = ", ".join(f"{name}{'*' * (name == choice.chosen)} {ms:.3f}" for name, ms in choice.times_ms.items())
            lines.append(f"{choice.name:<{wide}}  {times} ms")
        whole = ", ".join(f"{name} {ms:.3f}" for name, ms in self.network_ms.items())
        return "\n".join([*lines, f"{'network':<{wide}}  {whole} ms; members {self.execution}"])


def choosable(ensemble: PackedEnsemble) -> dict[str, Backends]:
    """The layers with more than one backend, by their names in the packed network. Raises ValueError if this is no PackedEnsemble."""
    if not isinstance(ensemble, PackedEnsemble):
        raise ValueError(f"ensemble: expected a PackedEnsemble, got {type(ensemble).__name__}; make one with pack(model)")
    modules = ensemble.network.named_modules()
    return {name: module for name, module in modules if isinstance(module, Backends) and len(module.BACKENDS) > 1}


def backends(ensemble: PackedEnsemble) -> Chosen:
    """The backend in use of each layer that has a choice, and under "(members)" how members run. ValueError for no PackedEnsemble."""
    return {name: layer.backend for name, layer in choosable(ensemble).items()} | {MEMBERS: ensemble.execution}


def _known(name: str, layers: Mapping[str, Backends]) -> str:
    """The name. Raises ValueError, with the nearest there is, unless it is a layer's."""
    if name in layers:
        return name
    near = difflib.get_close_matches(str(name), layers, 1)
    remedy = f"did you mean {near[0]!r}?" if near else "backends(ensemble) lists them"
    raise ValueError(f"layers: expected names of layers with more than one backend, got {name!r}; {remedy}")


def apply_(ensemble: PackedEnsemble, chosen: Mapping[str, str]) -> None:
    """Set the backends of layers by name, as `Tuning.chosen` or `backends` give them; the others stay.

    Raises ValueError for a name that is no layer with a choice, or a backend that the layer does not have; then nothing is set.
    """
    layers = choosable(ensemble)
    for name, backend in chosen.items():
        legal = EXECUTIONS if name == MEMBERS else layers[_known(name, layers)].BACKENDS
        if backend not in legal:
            raise ValueError(f"module {name!r}: expected a backend of {', '.join(legal)}, got {backend!r}; choose one of them")
    for name, backend in chosen.items():
        ensemble.set_execution_(backend) if name == MEMBERS else layers[name].set_backend_(backend)


@dataclass(frozen=True)
class _Bench:
    """A copy of the ensemble in the mode to be measured, its layers to choose for, and how to time."""

    trial: PackedEnsemble
    layers: dict[str, Backends]
    example: Tensor
    training: bool
    margin: float
    timed: Callable[[Mapping[str, Callable[[], object]]], Times]

    def step(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[[], object]:
        """The forward of a module on these inputs; in training with the backward pass to its parameters and to inputs that need it."""
        if not self.training:
            return partial(module.forward, *args, **kwargs)
        args, kwargs = (tree_map_only(Tensor, _leaf, given) for given in (args, kwargs))
        wanted = [t for t in (*module.parameters(), *tensors((args, kwargs))) if t.requires_grad]
        ones: list[Tensor] = []

        def step() -> None:
            out = [t for t in tensors(module.forward(*args, **kwargs)) if t.requires_grad]
            if not ones:
                ones.extend(torch.ones_like(t) for t in out)
            if out:
                torch.autograd.grad(out, wanted, ones, allow_unused=True)

        return step

    def best(self, times: Times, now: str) -> str:
        """The fastest, by the median share of the present one's time in a round; the present one if that gains less than the margin."""
        shares = {name: ratio(times, name, now)[1] for name in times}
        least = min(shares, key=shares.__getitem__)
        return least if shares[least] <= 1 - self.margin else now

    def choose(self, start: Chosen) -> list[Choice]:
        """Set each layer's best backend, in order of execution, from these; the times and what was taken."""
        found: list[Choice] = []

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str) -> None:
            layer = self.layers[name]

            def using(backend: str) -> Callable[[], object]:
                step = self.step(module, args, kwargs)
                return lambda: (layer.set_backend_(backend), step())

            times = self.timed({backend: using(backend) for backend in layer.BACKENDS})
            chosen = self.best(times, start[name])
            layer.set_backend_(chosen)
            found.append(Choice(name, type(module).__name__, _medians(times), start[name], chosen))

        hooks = []
        for name, layer in self.layers.items():
            layer.set_backend_(start[name])
            assert isinstance(layer, nn.Module)
            hooks.append(layer.register_forward_pre_hook(partial(before, name=name), with_kwargs=True))
        self.trial.set_execution_("together")
        try:
            self.trial(self.example)
        finally:
            for hook in hooks:
                hook.remove()
        return found

    def networks(self, candidates: Mapping[str, Chosen]) -> Times:
        """The whole network's times with each of these choices."""

        def using(chosen: Chosen) -> Callable[[], object]:
            step = self.step(self.trial, (self.example,), {})

            def run() -> None:
                apply_(self.trial, chosen)
                step()

            return run

        return self.timed({name: using(chosen) for name, chosen in candidates.items()})


def _medians(times: Times) -> dict[str, float]:
    return {name: median(values) for name, values in times.items()}


def _leaf(tensor: Tensor) -> Tensor:
    """The same values as a leaf of a graph of its own, if they have a gradient."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def _checked(example: object, repeats: object, margin: object) -> Tensor:
    """The example. Raises ValueError for an argument that `tune` cannot use."""
    if not isinstance(example, Tensor) or example.dim() < 1 or not example.numel():
        came = f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"example: expected a batch of raw inputs (B, …), got {came}; pass one of the size that you will run")
    if isinstance(repeats, bool) or not isinstance(repeats, int) or repeats < 3:
        raise ValueError(f"repeats: expected an int of at least 3, got {repeats!r}; a median of fewer says nothing")
    if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 <= margin < 1:
        raise ValueError(f"margin: expected a share from 0 to below 1, got {margin!r}; 0.05 asks for 5 % less time")
    return example


def tune(
    ensemble: PackedEnsemble,
    example: Tensor,
    repeats: int = 7,
    layers: Sequence[str] | None = None,
    training: bool = False,
    margin: float = MARGIN,
) -> Tuning:
    """Measure the backends of the packed layers on a real batch and set the fastest. Changes nothing else of the ensemble.

    Measures PyTorch's eager mode, with the threads, autocast and settings in force when it is called, and it takes some seconds: nothing
    else should run. torch.compile and ONNX Runtime choose their own kernels and layouts; give them the defaults.

    Args:
        ensemble: a PackedEnsemble.
        example: a batch of raw inputs (B, …) of the size, dtype, device and memory format in which it will run.
        repeats: rounds of which the median is taken.
        layers: names in the packed network of the layers to choose for (`backends` lists them); by default all that have a choice. A
            layer whose forward is not called, because a layer around it uses its weights, is left as it is.
        training: times forward and backward in training mode (on a copy: no statistics, gradients or random state are touched), by
            default forward in evaluation mode.
        margin: the share of its time that a change has to gain, for a layer and for the network.

    Returns: what was measured and taken. `Tuning.chosen` can be kept with a run and set again by `apply_`.

    Raises:
        ValueError: not a PackedEnsemble, an example that is no batch, an unknown layer, or a number out of range.
    """
    there = choosable(ensemble)
    example = _checked(example, repeats, margin)
    names = list(there) if layers is None else [_known(name, there) for name in layers]
    device = example.device
    wait = (lambda: None) if device.type == "cpu" else partial(torch.accelerator.synchronize, device)

    def timed(calls: Mapping[str, Callable[[], object]]) -> Times:
        return interleaved(calls, repeats, wait=wait)

    settings = {
        "shape": list(example.shape),
        "dtype": str(example.dtype).removeprefix("torch."),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "training": training,
        "repeats": repeats,
        "margin": margin,
    }
    forked = [] if device.type == "cpu" else [device.index or 0]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(forked, device_type=kind), torch.set_grad_enabled(training):
        trial = copy.deepcopy(ensemble).train(training)
        copies = choosable(trial)
        bench = _Bench(trial, {name: copies[name] for name in names}, example, training, margin, timed)
        now = {name: there[name].backend for name in names}
        last = {name: CHANNELS_LAST if CHANNELS_LAST in there[name].BACKENDS else now[name] for name in names}
        starts = {"before": now} | ({"channels_last": last} if last != now else {})
        found = {name: bench.choose(start) for name, start in starts.items()}
        together = {MEMBERS: "together"}
        chosen = {start: now | {choice.name: choice.chosen for choice in choices} for start, choices in found.items()}
        candidates = {"as it was": now | {MEMBERS: ensemble.execution}}
        candidates |= {f"from {start}": backends | together for start, backends in chosen.items()}
        candidates |= {"members apart": now | {MEMBERS: "apart"}}
        times = bench.networks(candidates)
    best = bench.best(times, "as it was")
    taken = candidates[best]
    measured = found.get(best.removeprefix("from "), found["before"])
    rows = [Choice(c.name, c.kind, c.times_ms, now[c.name], taken[c.name]) for c in measured]
    tuning = Tuning(tuple(rows), _medians(times), taken[MEMBERS], settings)
    apply_(ensemble, tuning.chosen)
    return tuning
