"""Ticket files: a sparse network in about the bytes of its live weights, bit for bit. Format "quorate-ticket/1".

One safetensors file, which needs NumPy alone to be read. For a sparse weight `w` of N elements, `live` of them, flat in row-major order:

    live:w       (live,)         the live weights' values in ascending order of place
    bits:w       (⌈N/8⌉,) uint8  the mask, first place in the lowest bit; or, where 4 · live < N / 8,
    places:w     (live,) int32   the live places, ascending
    whole:t      its shape       every other tensor of the state dict, once

and JSON under the metadata key "about":

    format       "quorate-ticket/1"
    shapes       {name: shape}   of the sparse weights, and of scalars, which are stored as (1,)
    dtypes       {name: dtype}   where it is none of NumPy's: "bfloat16", "float8_…"; the array holds the bits as unsigned integers
    shared       {name: name}    other names of a shared tensor, each with the one it is stored under
    about        what the caller said

so that a sparse float32 weight takes at most 4 · live + N / 8 + 1 bytes. Dead weights are read back as +0.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from quorate.files import load_arrays, save_arrays
from quorate.tickets.masks import Masks, pack_bits, unpack_bits
from quorate.tickets.ticket import Ticket, check_fits, check_masks, state_of

FORMAT, VERSION = "quorate-ticket", 1
_PLAIN = {
    torch.float64, torch.float32, torch.float16, torch.complex64, torch.bool,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64,
}  # fmt: skip
_AS_BITS = {
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
_UNSIGNED = {1: torch.uint8, 2: torch.uint16}
_MOST = 2**31  # places are int32
_DIMENSIONS = 32


def save_ticket(model: nn.Module, masks: Masks, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a sparse network as a ticket file, atomically; equal tickets give equal bytes.

    Args:
        model: on any device; its sparse weights hold 0 where they are dead.
        masks: {weight: bool tensor of its shape}, True = live, by the names of ``model.named_parameters()``. Live zeros stay live.
        path: of the file.
        about: JSON values to keep with it.

    Raises:
        ValueError: a mask that does not fit, a weight that is not 0 where its mask is False, state that is no dense tensor or of a
            dtype that can't be stored, or an `about` that JSON would not give back. Nothing is written then.
        OSError: the file can't be written; what was there before is unchanged.
    """
    state, shared = state_of(model)
    check_masks(dict(model.named_parameters()), masks, "the model")
    said = _json(about or {})
    arrays: dict[str, NDArray[Any]] = {}
    shapes: dict[str, list[int]] = {}
    dtypes: dict[str, str] = {}
    for name, tensor in state.items():
        if name in shared:
            continue
        array, dtype = _array(name, tensor)
        if dtype is not None:
            dtypes[name] = dtype
        if name in masks or not array.ndim:
            shapes[name] = list(array.shape)
        if name not in masks:
            arrays[f"whole:{name}"] = array.reshape(array.shape or (1,))
            continue
        mask = masks[name].detach().cpu()
        places = np.flatnonzero(mask.numpy())
        arrays[f"live:{name}"] = array.reshape(-1)[places]
        if _few(len(places), array.size):
            arrays[f"places:{name}"] = places.astype(np.int32)
        else:
            arrays[f"bits:{name}"] = pack_bits(mask).numpy()
    header = {"format": f"{FORMAT}/{VERSION}", "shapes": shapes, "dtypes": dtypes, "shared": shared, "about": said}
    save_arrays(path, dict(sorted(arrays.items())), header)


def load_ticket(path: str | Path) -> Ticket:
    """Read a ticket file: tensors bit-equal to those written (dead weights +0), on the CPU.

    Raises:
        ValueError: a file that is damaged, no ticket, or of a newer format.
        OSError: no such file, or one that can't be read.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[Ticket, dict[str, str]]:
    """A ticket file as the ticket and the other names of its shared tensors."""
    arrays, header = load_arrays(path, "a ticket file")
    shapes, dtypes, shared, about = _header(path, header)
    parts: dict[str, dict[str, NDArray[Any]]] = {}
    for key, array in arrays.items():
        what, _, name = key.partition(":")
        if what not in ("live", "bits", "places", "whole") or not name:
            raise _damaged(path, f"array {key!r} is no part of a ticket")
        parts.setdefault(name, {})[what] = array
    for what, names in (("shapes", shapes), ("dtypes", dtypes)):
        if strange := [name for name in names if name not in parts]:
            raise _damaged(path, f"{what} name {strange[0]!r}, of which there is no array")
    tensors: dict[str, Tensor] = {}
    masks: Masks = {}
    for name, part in parts.items():
        if set(part) == {"whole"}:
            array = part["whole"]
            if name in shapes:
                if array.shape != (1,) or shapes[name]:
                    raise _damaged(
                        path, f"{name!r} has shape {array.shape}, which is no scalar, but shape {shapes[name]} in the header"
                    )
                array = array.reshape(())
        elif set(part) in ({"live", "bits"}, {"live", "places"}) and name in shapes:
            array, masks[name] = _sparse(path, name, part, shapes[name])
        else:
            raise _damaged(path, f"{name!r} has the parts {', '.join(sorted(part))}{'' if name in shapes else ' and no shape'}")
        tensors[name] = _tensor(path, name, array, dtypes.get(name))
    for name, first in shared.items():
        if first not in parts or name in parts:
            raise _damaged(path, f"{name!r} is said to be {first!r}, which does not fit the arrays")
        tensors[name] = tensors[first]
    return Ticket(tensors, masks, about), shared


@torch.no_grad()
def load_ticket_(model: nn.Module, path: str | Path) -> Masks:
    """Read a ticket file into a model of the same structure, in place.

    Args:
        model: on any device; it has the file's tensors in their shapes and dtypes, and shares those that the file shares.
        path: of the file.

    Returns:
        The masks, in the model's order, each on its weight's device.

    Raises:
        ValueError: as :func:`load_ticket`, or a model of another structure. The model is unchanged then.
        OSError: no such file, or one that can't be read.
    """
    ticket, theirs = _read(Path(path))
    held, ours = state_of(model)
    check_fits(ticket.tensors, held, str(path))
    if odd := [name for name in held if ours.get(name) != theirs.get(name)]:
        is_, other = (f"shared with {side[odd[0]]!r}" if odd[0] in side else "unshared" for side in (theirs, ours))
        raise ValueError(f"{path} has {odd[0]!r} {is_}, the model has it {other}; build the model as the one that was saved")
    if strange := [name for name in ticket.masks if name not in dict(model.named_parameters())]:
        raise ValueError(
            f"{path} has a mask of {strange[0]!r}, which is no parameter of the model; build the model as the one that was saved"
        )
    for name, tensor in held.items():
        tensor.copy_(ticket.tensors[name])
    return {name: ticket.masks[name].to(tensor.device) for name, tensor in held.items() if name in ticket.masks}


def _few(live: int, size: int) -> bool:
    """Whether places take fewer bytes than a bitmask."""
    return 32 * live < size < _MOST


def _damaged(path: Path, reason: str) -> ValueError:
    return ValueError(f"{path} is a damaged ticket file: {reason}; write it anew with save_ticket")


def _json(about: Mapping[str, Any]) -> dict[str, Any]:
    """What the caller says, if JSON gives it back as it is. Raises ValueError."""
    said = dict(about)
    try:
        if json.loads(json.dumps(said, allow_nan=False)) == said:
            return said
        reason = "it has keys that are no text, or tuples"
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error)
    raise ValueError(
        f"about: expected what JSON gives back as it was, got other values ({reason}); give text, finite numbers, lists, dicts"
    )


def _array(name: str, tensor: Tensor) -> tuple[NDArray[Any], str | None]:
    """A tensor as a NumPy array, and its dtype's name where the array holds its bits. Raises ValueError for other dtypes."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if tensor.dtype in _PLAIN:
        return tensor.numpy(), None
    for dtype, kind in _AS_BITS.items():
        if tensor.dtype == kind:
            return tensor.view(_UNSIGNED[tensor.element_size()]).numpy(), dtype
    raise ValueError(
        f"{name!r} is {tensor.dtype}, which a ticket file can't hold; convert it to a floating or integer dtype of 8 to 64 bits"
    )


def _tensor(path: Path, name: str, array: NDArray[Any], dtype: str | None) -> Tensor:
    """The reverse of :func:`_array`. Raises ValueError."""
    if array.dtype == bool and array.view(np.uint8).max(initial=0) > 1:
        raise _damaged(path, f"{name!r} has truth values that are neither 0 nor 1")
    tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
    if dtype is None:
        return tensor
    kind = _AS_BITS[dtype]
    if tensor.dtype != _UNSIGNED[kind.itemsize]:
        raise _damaged(path, f"{name!r} holds {array.dtype} where the bits of {dtype} are expected")
    return tensor.view(kind)


def _sparse(path: Path, name: str, part: Mapping[str, NDArray[Any]], shape: list[int]) -> tuple[NDArray[Any], Tensor]:
    """A weight with its zeros, and its mask, from live values and a bitmask or places. Raises ValueError."""
    values, size = part["live"], math.prod(shape)
    if values.ndim != 1:
        raise _damaged(path, f"the live values of {name!r} have shape {values.shape}, expected one dimension")
    if "bits" in part:
        try:
            mask = unpack_bits(_tensor(path, name, part["bits"], None), shape)
        except ValueError as error:
            raise _damaged(path, f"the mask of {name!r}: {error}") from error
        places = np.flatnonzero(mask.numpy())
    else:
        places = part["places"]
        if places.dtype != np.int32 or places.ndim != 1 or size > _MOST:
            raise _damaged(
                path, f"the live places of {name!r} are {places.dtype} {places.shape} for shape {shape}, expected int32 (live,)"
            )
        if len(places) and (places[0] < 0 or places[-1] >= size or bool((np.diff(places.astype(np.int64)) <= 0).any())):
            raise _damaged(path, f"the live places of {name!r} are not ascending in 0 … {size - 1}")
        flat = np.zeros(size, bool)
        flat[places] = True
        mask = torch.from_numpy(flat).reshape(shape)
    if len(places) != len(values):
        raise _damaged(path, f"{name!r} has {len(values)} values for {len(places)} live places")
    array = np.zeros(size, values.dtype)
    array[places] = values
    return array.reshape(shape), mask


def _header(path: Path, header: Mapping[str, Any]) -> tuple[dict[str, list[int]], dict[str, str], dict[str, str], dict[str, Any]]:
    """(shapes, dtypes, shared, about) of the JSON part. Raises ValueError."""
    name, _, version = str(header.get("format", "")).partition("/")
    if name != FORMAT:
        raise ValueError(
            f"{path} is no ticket file: expected format {FORMAT}/{VERSION}, got {_brief(header.get('format'))}; see save_ticket"
        )
    if version != str(VERSION):
        raise ValueError(
            f"{path} has format {_brief(header['format'])}: expected {FORMAT}/{VERSION}; read it with the Quorate that wrote it"
        )
    parts = ("shapes", "dtypes", "shared", "about")
    if set(header) != {"format", *parts} or not all(isinstance(header[part], dict) for part in parts):
        raise _damaged(path, f"its header holds {_brief(list(header))}, expected format and the dicts {', '.join(parts)}")
    for name, shape in header["shapes"].items():
        if (
            not isinstance(shape, list)
            or len(shape) > _DIMENSIONS
            or not all(type(n) is int and 0 <= n < _MOST**2 for n in shape)
        ):
            raise _damaged(path, f"the shape of {name!r} is {_brief(shape)}")
    for name, dtype in header["dtypes"].items():
        if not isinstance(dtype, str) or dtype not in _AS_BITS:
            raise _damaged(path, f"the dtype of {name!r} is {_brief(dtype)}, expected one of {', '.join(_AS_BITS)}")
    for name, first in header["shared"].items():
        if not isinstance(first, str):
            raise _damaged(path, f"{name!r} is said to be {_brief(first)}, expected a name")
    return header["shapes"], header["dtypes"], header["shared"], header["about"]


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
