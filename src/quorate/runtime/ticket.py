"""Ticket files of a bundle: the sparse weights that its programs leave out, read and written with NumPy alone. Format "quorate-ticket/1".

The format is that of :mod:`quorate.tickets.files`. Of a sparse weight `w` of N elements, `live` of them, flat in row-major order:

    live:w       (live,)         the live values in ascending order of place
    bits:w       (⌈N/8⌉,) uint8  the mask, first place in the lowest bit; or, where 4 · live < N / 8,
    places:w     (live,) int32   the live places, ascending

and JSON under the metadata key "about": format, shapes {w: shape}, and dtypes, shared, about, which are empty here. The file is not
trusted: names, shapes and lengths are compared with what the manifest says before a weight is allocated, and all weights that are
given by places together may have at most :data:`SPARSEST` · live + :data:`SPARE` elements, so that what is allocated is bounded by
what the file holds, not by what it says.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from quorate.runtime.manifest import BundleError
from quorate.runtime.program import Sparse

FORMAT = "quorate-ticket/1"
SPARSEST, SPARE = 1024, 2**24
"""The weights given by places may have this many elements per live one, and so many beside."""
PAGED = 2**18  # bytes from which a weight gets pages of its own
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "I32": "<i4"}
_VALUES = ("F64", "F32", "F16", "I8", "U8")
_HEADER = ("format", "shapes", "dtypes", "shared", "about")


def ticket_bytes(sparse: Mapping[str, Sparse]) -> bytes:
    """The ticket file of sparse weights; equal weights give equal bytes.

    Args:
        sparse: {name: its live values (live,), of float64, float32, float16, int8 or uint8, and its mask, True where it is live}.

    Raises:
        ValueError: no weights, values and masks that don't fit, other dtypes, a weight without places or of more than 2³¹ of them, or
            too few live ones to be read again.
    """
    from safetensors.numpy import save

    if not sparse:
        raise ValueError("a ticket file of no weights: expected one or more, leave the ticket out")
    arrays: dict[str, NDArray[Any]] = {}
    shapes: dict[str, list[int]] = {}
    spare = SPARE
    for name, weight in sorted(sparse.items()):
        values, mask = np.asarray(weight.values), np.asarray(weight.mask)
        if mask.dtype != bool or not 1 <= mask.ndim <= 16 or not 1 <= mask.size <= 2**31:
            raise ValueError(f"the mask of {name!r} is {mask.dtype} {mask.shape}: expected bool of 1–16 axes and 1 to 2³¹ places")
        if values.dtype.name not in ("float64", "float32", "float16", "int8", "uint8"):
            raise ValueError(f"the values of {name!r} are {values.dtype}: expected float64, float32, float16, int8 or uint8")
        places = np.flatnonzero(mask)
        if values.shape != places.shape:
            raise ValueError(f"{name!r} has values {values.shape} for {len(places)} live places: expected one value for each")
        arrays[f"live:{name}"] = np.ascontiguousarray(values)
        if 32 * len(places) < mask.size < 2**31:
            spare += SPARSEST * len(places) - mask.size
            arrays[f"places:{name}"] = places.astype(np.int32)
        else:
            arrays[f"bits:{name}"] = np.packbits(mask.reshape(-1), bitorder="little")
        shapes[name] = list(mask.shape)
    if spare < 0:
        raise ValueError(f"the weights have less than one live place in {SPARSEST}: expected more; leave them out of the ticket")
    header = {"format": FORMAT, "shapes": shapes, "dtypes": {}, "shared": {}, "about": {}}
    return bytes(save(dict(sorted(arrays.items())), metadata={"about": json.dumps(header)}))


def read_ticket(data: bytes, where: str, scattered: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The weights of a ticket file, with zeros where they are dead.

    Args:
        data: the file.
        where: its name, for errors.
        scattered: the weights it must hold, no more and no less, and their shapes.

    Returns:
        {name: C-contiguous array of the shape, in the dtype of its live values}.

    Raises:
        BundleError: a file that is damaged, no ticket, or holds other weights.
    """
    arrays = _arrays(data, where, scattered)
    by_places = {name: len(arrays[f"live:{name}"]) for name in scattered if f"places:{name}" in arrays}
    most, sizes = SPARE + SPARSEST * sum(by_places.values()), {name: math.prod(shape) for name, shape in scattered.items()}
    if sum(sizes[name] for name in by_places) > most:
        _damaged(where, f"weights of {sum(sizes[name] for name in by_places):,} places, of which its live ones allow {most:,}")
    found: dict[str, NDArray[Any]] = {}
    for name, shape in scattered.items():
        size = sizes[name]
        values = arrays[f"live:{name}"]
        places = _places(arrays, name, size, len(values), where)
        whole = _zeros(size, values.dtype)
        whole[places] = values
        found[name] = whole.reshape(shape)
    return found


def _zeros(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """(size,) zeros; large ones in pages of their own, which go back to the system when ONNX Runtime has made its copy of them."""
    length = size * dtype.itemsize
    return np.zeros(size, dtype) if length < PAGED else np.frombuffer(mmap.mmap(-1, length), dtype)


def _damaged(where: str, reason: str) -> NoReturn:
    raise BundleError(f"{where} is damaged: {reason}; copy or export the bundle anew")


def _arrays(data: bytes, where: str, scattered: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """The file's arrays as views of its bytes, of names and lengths that fit. Raises BundleError."""
    from safetensors import SafetensorError, deserialize

    _check_about(data, where, scattered)
    try:
        parts = deserialize(data)
    except (SafetensorError, ValueError, TypeError, OverflowError) as error:
        _damaged(where, f"no safetensors file ({' '.join(str(error).split())[:200]})")
    found: dict[str, NDArray[Any]] = {}
    for key, part in parts:
        what, _, name = key.partition(":")
        dtype, shape = part["dtype"], tuple(part["shape"])
        allowed = {"live": _VALUES, "bits": ("U8",), "places": ("I32",)}.get(what, ())
        if name not in scattered or dtype not in allowed or len(shape) != 1:
            _damaged(where, f"{key[:80]!r} of {dtype} {shape} is no part of its weights")
        found[key] = np.frombuffer(part["data"], _DTYPES[dtype])
    for name in scattered:
        parts_of = [what for what in ("live", "bits", "places") if f"{what}:{name}" in found]
        if parts_of not in (["live", "bits"], ["live", "places"]):
            _damaged(where, f"{name[:80]!r} has the parts {', '.join(parts_of) or 'none'}: expected live and bits or places")
    return found


def _check_about(data: bytes, where: str, scattered: Mapping[str, tuple[int, ...]]) -> None:
    """That the header tells of these weights alone. Raises BundleError."""
    try:
        length = int.from_bytes(data[:8], "little")
        if len(data) < 8 or length > len(data) - 8:
            raise ValueError("it is cut off")
        about = json.loads(json.loads(data[8 : 8 + length].decode("utf-8"))["__metadata__"]["about"])
        form, shapes = about["format"], dict(about["shapes"].items())
        if form != FORMAT:
            raise ValueError(f"format {str(form)[:80]!r} where {FORMAT!r} is expected")
        if set(about) != set(_HEADER) or any(about[part] != {} for part in ("dtypes", "shared", "about")):
            raise ValueError("more than a bundle's weights")
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
        _damaged(where, f"no ticket of a bundle ({' '.join(str(error).split())[:200]})")
    if set(shapes) != set(scattered):
        _damaged(where, f"it holds {len(shapes)} weights of other names than the manifest's {len(scattered)}")
    for name, shape in scattered.items():
        if shapes[name] != list(shape):
            _damaged(where, f"{name[:80]!r} has the shape {str(shapes[name])[:80]}, the manifest says {list(shape)}")


def _places(arrays: Mapping[str, NDArray[Any]], name: str, size: int, live: int, where: str) -> NDArray[Any]:
    """The live places of a weight: as many as its values, ascending, inside it. Raises BundleError."""
    if size < 1:
        _damaged(where, f"{name[:80]!r} has no places")
    bits = arrays.get(f"bits:{name}")
    if bits is None:
        places = arrays[f"places:{name}"]
        if size > 2**31:
            _damaged(where, f"{name[:80]!r} is to have {size:,} places, which int32 can't tell")
        if len(places) and (places[0] < 0 or places[-1] >= size or bool((places[1:] <= places[:-1]).any())):
            _damaged(where, f"the live places of {name[:80]!r} are not ascending in 0 … {size - 1}")
    else:
        if len(bits) != -(-size // 8):
            _damaged(where, f"the mask of {name[:80]!r} has {len(bits):,} bytes, {size:,} places take {-(-size // 8):,}")
        flat = np.unpackbits(bits, bitorder="little")
        if flat[size:].any():
            _damaged(where, f"the mask of {name[:80]!r} is set beyond its {size:,} places")
        places = np.flatnonzero(flat)
    if len(places) != live:
        _damaged(where, f"{name[:80]!r} has {live:,} values for {len(places):,} live places")
    return places
