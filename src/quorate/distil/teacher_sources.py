"""What a teacher can be made of: a module, a function, or stored Outputs. (An ONNX file: :mod:`quorate.distil.onnx_teacher`.)

A module runs as it stands, in eval mode, on its own device; buffers that its forward pass writes are copies, so that g is one function
however often it is asked. Shapes: x (B, *shape) raw → (B, L) or members (M, B, C).
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quorate import cost
from quorate._optional import one_line
from quorate._validation import as_ids
from quorate.cascade.stage import run_stage
from quorate.combination import COMBINES, Combine
from quorate.ensemble import device_of, kind_of, stage_macs, to_device
from quorate.ensemble.staging import check_logits, stage_modules
from quorate.outputs import Outputs
from quorate.training.identity import structure_hash

Transform = Callable[[Tensor], Any]
Given = Literal["logits", "probs", "values", "gaussian"]
SHOWN = 3  # ids that an error shows


def declared_kind(source: Any, asked: Given | None, name: str) -> Given:
    """The kind that a module or Outputs declare, or the one asked for where a module declares none. ValueError where they differ."""
    declares = isinstance(source, Outputs) or getattr(source, "kind", None) in ("logits", "values", "gaussian")
    if asked is not None and not declares:
        return asked
    kind = source.kind if isinstance(source, Outputs) else kind_of(source)
    if kind == "top1":
        raise ValueError(f"teacher {name!r} holds kind 'top1': distillation needs every class's score, store logits or probs")
    if asked not in (None, kind):
        raise ValueError(f"teacher {name!r} declares kind={kind!r}, but kind={asked!r} is asked for: mend one of the two")
    found: Given = kind
    return found


def declared_combine(module: nn.Module) -> Combine | None:
    """How the module says its members are combined, ``"probs"`` where it says nothing; None for what is no such word."""
    said = getattr(module, "combine", "probs")
    return said if isinstance(said, str) and said in COMBINES else None


def name_of(function: Any) -> str:
    """A function's or an object's qualified name, with its module."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def tensors_hash(module: nn.Module) -> str:
    """SHA-256 of every parameter and buffer, also those that no state dict holds, by name, dtype, shape and value."""
    found = hashlib.sha256()
    tensors = {**dict(module.named_buffers(remove_duplicate=False)), **module.state_dict(keep_vars=True)}
    for name, value in sorted(tensors.items()):
        for tensor in _leaves(value):
            plain = (tensor.dequantize() if tensor.is_quantized else tensor).detach().cpu().contiguous()
            found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _leaves(part)


def transform_identity(transform: Transform | None) -> dict[str, Any]:
    """What decides a transform: its name, and a module's tensors."""
    if transform is None:
        return {}
    said: dict[str, Any] = {"name": name_of(transform)}
    if isinstance(transform, nn.Module):
        said |= {"structure": structure_hash(transform), "tensors": tensors_hash(transform)}
    return {"transform": said}


@contextmanager
def buffers_put_back(module: nn.Module) -> Iterator[None]:
    """Copies of the module's buffers inside, its own afterwards. A scripted module keeps what it writes."""
    own = [
        (part, name, buffer)
        for part in module.modules()
        if not isinstance(part, torch.jit.ScriptModule)
        for name, buffer in part._buffers.items()
        if buffer is not None
    ]
    copies = {id(buffer): buffer.clone() for _, _, buffer in own}
    try:
        for part, name, buffer in own:
            part._buffers[name] = copies[id(buffer)]
        yield
    finally:
        for part, name, buffer in own:
            part._buffers[name] = buffer


class _LastStage(nn.Module):
    """The members (m, B, C) of an ensemble's last stage."""

    def __init__(self, ensemble: nn.Module) -> None:
        super().__init__()
        self.ensemble = ensemble

    def forward(self, x: Tensor) -> Tensor:
        carry: dict[str, Tensor] = {}
        for stage in stage_modules(self.ensemble):
            members, carry = run_stage(stage, x, carry, len(x))
        return check_logits(str(stage.name), members, len(x))


class _Method(nn.Module):
    """A module called by another method of it than ``forward``."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, x: Tensor) -> Any:
        return self.method(x)


class Network:
    """A module in eval mode, or a method of one."""

    online = True

    def __init__(
        self,
        module: nn.Module,
        method: Callable[..., Any] | None,
        combine: Combine | None,
        transform: Transform | None,
        name: str | None,
    ) -> None:
        self.module, self.transform = module, transform
        self.method = None if method is None else name_of(method)
        self.name = name or type(module).__name__
        last = (combine or declared_combine(module)) == "last" and method is None
        self.staged = callable(stages := getattr(module, "stages", None)) and not isinstance(stages, nn.Module)
        if combine == "last" and not (last and self.staged):
            raise ValueError(
                f"combine='last' takes the last stage's members, but teacher {self.name!r} has no stages: leave it out"
            )
        self.run: nn.Module = (
            _LastStage(module) if last and self.staged else module if method is None else _Method(module, method)
        )
        self.check_frozen()

    def check_frozen(self) -> None:
        """A ValueError for a module of which any part is in training mode."""
        for part in (self.module, self.transform):
            training = [name for name, inner in part.named_modules() if inner.training] if isinstance(part, nn.Module) else []
            if training:
                where = f", first {training[0]!r}" if training[0] else ""
                raise ValueError(
                    f"teacher {self.name!r} is in training mode ({len(training)} modules{where}): call .eval() on it"
                )

    def __call__(self, x: Tensor) -> Any:
        self.check_frozen()
        given = self._given(x)
        with self._taking(given):
            return self.run(given)

    @contextmanager
    def _taking(self, given: Tensor) -> Iterator[None]:
        """Buffers as before afterwards; a ValueError where the module can't take these inputs."""
        try:
            with buffers_put_back(self.module):
                yield
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(
                f"teacher {self.name!r} can't take {given.dtype} inputs of shape {tuple(given.shape)} ({one_line(error)}): put its "
                "normalisation in front, or give transform="
            ) from error

    def count(self, example: Tensor) -> int:
        """MACs per input, all stages together."""
        given, staged = self._given(example), self.staged and self.method is None
        with self._taking(given):
            return sum(stage_macs(self.module, given)) if staged else cost.macs(self.run, given)

    def identity(self) -> dict[str, Any]:
        """By the tensors and the structure."""
        return {
            "source": "module",
            "class": name_of(self.module),
            **({} if self.method is None else {"method": self.method}),
            "structure": structure_hash(self.module),
            "tensors": tensors_hash(self.module),
            **transform_identity(self.transform),
        }

    def near(self, device: torch.device) -> Network:
        """The same on a device: itself where it is there, else a copy."""
        if device_of(self.module) == device:
            return self
        made = copy.deepcopy(self)
        made.run.to(device)
        return made

    def _given(self, x: Tensor) -> Tensor:
        if isinstance(self.transform, nn.Module):
            x = to_device(x, device_of(self.transform))
        return to_device(x if self.transform is None else self.transform(x), device_of(self.module))


class Function:
    """Any callable x → (B, L), known by its name alone."""

    online = True

    def __init__(self, function: Callable[[Any], Any], transform: Transform | None, name: str | None) -> None:
        self.function, self.transform = function, transform
        self.name = name or name_of(function)
        if name is None:
            warnings.warn(
                f"a function as teacher is known by its name alone, here {self.name!r}: give name=, and another when it changes",
                stacklevel=3,
            )

    def __call__(self, x: Tensor) -> Any:
        return self.function(x if self.transform is None else self.transform(x))

    def identity(self) -> dict[str, Any]:
        """By the name."""
        return {"source": "function", "name": self.name, **transform_identity(self.transform)}


class Stored:
    """Stored Outputs, read by row ids."""

    online = False

    def __init__(self, outputs: Outputs, combine: Combine, name: str) -> None:
        self.outputs, self.combine, self.name = outputs, combine, name

    @property
    def width(self) -> int:
        """Values per row."""
        return int(np.shape(self.outputs.values[0])[-1])

    def __call__(self, x: Tensor) -> Any:  # noqa: ARG002
        raise ValueError(f"teacher {self.name!r} is stored outputs: expected row ids, got inputs")

    def find(self, ids: NDArray[Any]) -> NDArray[np.int64]:
        """Where rows with these ids are. ValueError for ids that are not there, or of another type."""
        wanted, own = as_ids(ids), self.outputs.ids
        if wanted.dtype.kind != own.dtype.kind:
            raise ValueError(
                f"teacher {self.name!r} has ids of type {own.dtype}, the data {wanted.dtype}: give both the same kind"
            )
        order = np.argsort(own, kind="stable")
        at = order[np.minimum(np.searchsorted(own, wanted, sorter=order), len(own) - 1)]
        missing = wanted[own[at] != wanted]
        if len(missing):
            raise ValueError(
                f"teacher {self.name!r} lacks {len(missing)} of {len(wanted)} rows, first ids {missing[:SHOWN].tolist()}: store its "
                "outputs on this split"
            )
        return np.asarray(at, np.int64)

    def take(self, at: NDArray[np.int64]) -> NDArray[Any]:
        """The members (M, B, C) of some rows; with combine ``"last"`` those of the last stage."""
        values = self.outputs.values[-1:] if self.combine == "last" else self.outputs.values
        return np.concatenate([np.asarray(value)[:, at] for value in values])

    def identity(self) -> dict[str, Any]:
        """By values and ids."""
        return {"source": "outputs", "values": self._hash}

    @cached_property
    def _hash(self) -> str:
        found = hashlib.sha256()
        for array in (self.outputs.ids, *self.outputs.values):
            found.update(f"{np.asarray(array).dtype} {np.shape(array)}\n".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()
