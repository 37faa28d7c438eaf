"""Which parameter of a model a tensor is: the parameter itself, a view of it, or its copy in another dtype or layout.

A view shares the storage of the tensor it was taken from and begins inside it; that holds on every device, "meta" among them, and where
several parameters lie in one storage. What is computed from a parameter (weight standardisation, a parametrisation) is nobody's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

COPIES = frozenset(
    f"aten::{name}" for name in ("_to_copy", "clone", "to", "contiguous", "reshape", "reshape_as", "flatten", "ravel")
)
_SUMMANDS = frozenset(f"aten::{name}" for name in ("addmm", "_addmm_activation", "baddbmm", "addbmm", "addmv", "addr"))
_RECURRENT = frozenset({"aten::_cudnn_rnn", "aten::miopen_rnn", "aten::_lstm_mps", "aten::mkldnn_rnn_layer"})
_THREE = frozenset({"aten::_trilinear"})


class Owners:
    """Looks up the parameters of `model` by storage; a shared parameter goes by the first of its names."""

    def __init__(self, model: nn.Module) -> None:
        self._places: dict[int, list[tuple[int, int, str]]] = {}  # storage → [(first element, one past the last, name)]
        self._held: list[Tensor] = []  # a storage that is gone gives its number to the next one
        for name, parameter in model.named_parameters():
            self._add(parameter, name)

    def _add(self, tensor: Tensor, name: str) -> None:
        storage = _storage(tensor)
        if storage is not None and tensor.numel():
            begin = int(tensor.storage_offset())
            reach = int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
            self._places.setdefault(storage, []).append((begin, begin + reach + 1, name))
            self._held.append(tensor)

    def of(self, tensor: object) -> str | None:
        """The name of the parameter that `tensor` is, or None."""
        storage = _storage(tensor) if isinstance(tensor, Tensor) else None
        if storage is None or storage not in self._places:
            return None
        assert isinstance(tensor, Tensor)
        at = tensor.storage_offset()
        return next((name for begin, end, name in self._places[storage] if begin <= at < end), None)

    def follow(self, source: object, copy: object) -> None:
        """From now on the storage of `copy` is that of the parameter that `source` is, if it is one."""
        name = self.of(source)
        if name is not None and isinstance(copy, Tensor) and self.of(copy) is None:
            self._add(copy, name)

    def shares(self, operator: str, args: Sequence[Any], macs: int) -> dict[str, int]:
        """Whose the MACs of one call are: the first factor's that is a parameter; in a recurrent layer each weight matrix's by its size."""
        if operator in _RECURRENT:
            flat = [a for arg in args for a in (arg if isinstance(arg, list | tuple) else (arg,))]
            matrices = [(name, a.numel()) for a in flat if isinstance(a, Tensor) and a.dim() == 2 and (name := self.of(a))]
            total = sum(numel for _, numel in matrices)
            found: dict[str, int] = {}
            for name, numel in matrices:
                found[name] = found.get(name, 0) + macs * numel // total
            return found
        factors = args[1:3] if operator in _SUMMANDS else args[: 3 if operator in _THREE else 2]
        return next(({name: macs} for factor in factors if (name := self.of(factor))), {})


def _storage(tensor: Tensor) -> int | None:
    """A number that tells live storages apart; None for a tensor without one."""
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_mkldnn:
        return None
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # tensors of other makes may have none
        return None
