"""Data-parallel processes agree on the masks: gradients are averaged, the first process decides, all check that they hold the same.

Every process draws its own batches, so its own gradients, and masks that each decided alone would drift apart. Outside of
``torch.distributed`` nothing here does anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, distributed

from quorate.tickets.masks import Masks, digest, pack_bits, unpack_bits


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all processes, in place; in float32 where they are narrower."""
    if (count := processes()) > 1:
        for tensor in tensors:
            wide = tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()
            distributed.all_reduce(wide)
            tensor.copy_(wide.div_(count))


def on_any(flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which of the flags are set on any process. ``device`` is one whose tensors the processes can exchange."""
    if processes() == 1:
        return list(flags)
    shared = torch.tensor(flags, dtype=torch.int32, device=device)
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def first_seed(seed: int, device: torch.device) -> int:
    """The first process's seed, on every process."""
    if processes() == 1:
        return seed
    shared = [seed]
    distributed.broadcast_object_list(shared, 0, device=device)
    return shared[0]


def first_decides(masks: Masks, device: torch.device) -> Masks:
    """The first process's masks, on every process; masks of one shape everywhere."""
    if processes() == 1:
        return masks
    bits = torch.cat([pack_bits(mask).to(device) for mask in masks.values()])
    distributed.broadcast(bits, 0)
    agreed, at = {}, 0
    for name, mask in masks.items():
        size = -(-mask.numel() // 8)
        agreed[name] = unpack_bits(bits[at : at + size], tuple(mask.shape)).to(mask.device)
        at += size
    return agreed


def _same(text: str, device: torch.device) -> bool:
    """Whether all processes hold the same text."""
    own = torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.int32, device=device)
    least, most = own.clone(), own.clone()
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    return torch.equal(least, most)


def check_same(masks: Masks, device: torch.device) -> None:
    """A RuntimeError unless all processes hold the same masks."""
    if processes() > 1 and not _same(digest(masks), device):
        raise RuntimeError(
            f"process {distributed.get_rank()}: the masks differ between data-parallel processes; build SparseTraining alike on all of "
            "them (same model and arguments), and resume all of them from one state"
        )


@contextmanager
def alike(what: str, device: torch.device) -> Iterator[list[str]]:
    """Texts appended in the block have to be the same on all processes, a RuntimeError on all of them otherwise.

    An error in the block goes on its way here and is a RuntimeError on the processes that did without: none is left to wait.
    """
    texts: list[str] = []
    try:
        yield texts
    except Exception:
        if processes() > 1:
            _same("refused", device)
        raise
    if processes() > 1 and not _same("\n".join(texts), device):
        raise RuntimeError(
            f"process {distributed.get_rank()}: {what} differs between data-parallel processes, or one of them refused it; build "
            "SparseTraining alike on all of them (same model and arguments), and resume all of them from one state"
        )
