"""Data-parallel processes agree on the masks: gradients are averaged, the first process decides, all check that they hold the same.

Every process draws its own batches, so its own gradients, and masks that each decided alone would drift apart. Outside of
``torch.distributed`` nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed

from quorate.tickets.masks import Masks, digest, pack_bits, unpack_bits


def processes() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors by their means over all processes, in place."""
    if (count := processes()) > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)
            tensor.div_(count)


def first_decides(masks: Masks, device: torch.device) -> Masks:
    """The first process's masks, on every process; masks of one shape everywhere. ``device`` is one that the processes can exchange."""
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


def check_same(masks: Masks, device: torch.device) -> None:
    """A RuntimeError unless all processes hold the same masks."""
    if processes() == 1:
        return
    own = torch.tensor(list(bytes.fromhex(digest(masks))), dtype=torch.int32, device=device)
    least, most = own.clone(), own.clone()
    distributed.all_reduce(least, distributed.ReduceOp.MIN)
    distributed.all_reduce(most, distributed.ReduceOp.MAX)
    if not torch.equal(least, most):
        raise RuntimeError(
            f"process {distributed.get_rank()}: the masks differ between data-parallel processes; build SparseTraining alike on all of "
            "them (same model, arguments and seed), and resume all of them from one state"
        )
