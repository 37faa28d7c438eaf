"""Golden inputs and every stage's outputs on them: whether the programs still do here what they did where the bundle was made.

One safetensors file: ``input`` (B, *shape), and for each stage k ``k.members`` (m, B, C) and ``k.write.NAME`` (B, …). Each stage is run on
the *stored* carry, so that an error shows where it is made:

    |found − stored| ≤ atol + rtol · |stored|
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from quorate._optional import one_line
from quorate.runtime.manifest import BundleError, Golden, Manifest
from quorate.runtime.program import Ports

Answer = tuple[NDArray[Any], Mapping[str, NDArray[Any]]]
"""A stage's members and what it wrote."""
FLOATS = ("float16", "float32", "float64")


def golden_bytes(x: NDArray[Any], answers: Sequence[Answer]) -> bytes:
    """The file of raw inputs and each stage's answer, in order."""
    arrays = {"input": x}
    for k, (members, written) in enumerate(answers):
        arrays[f"{k}.members"] = members
        arrays |= {f"{k}.write.{name}": array for name, array in written.items()}
    return bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_golden(data: bytes, manifest: Manifest) -> tuple[NDArray[Any], list[Answer]]:
    """(raw inputs, each stage's answer). Raises :class:`BundleError` for a file that does not fit the manifest."""
    golden = manifest.golden
    try:
        arrays = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise BundleError(
            f"{golden.path} is no readable safetensors file ({one_line(error)}): copy or export the bundle anew"
        ) from error
    wanted = {"input": (manifest.input.dtype, (golden.rows, *manifest.input.shape))}
    for k, stage in enumerate(manifest.stages):
        *first, width = stage.ports.members.shape
        dtype = "float32" if stage.ports.members.dtype == "float16" else stage.ports.members.dtype
        wanted[f"{k}.members"] = (dtype, (*(first or [1]), golden.rows, width))
        for name, port in stage.ports.writes.items():
            wanted[f"{k}.write.{name}"] = (port.dtype, (golden.rows, *port.shape))
    if arrays.keys() != wanted.keys():
        raise BundleError(
            f"{golden.path} holds other arrays than the stages have ({sorted(arrays.keys() ^ wanted.keys())[:3]}): export anew"
        )
    for name, (dtype, shape) in wanted.items():
        array = arrays[name]
        fits = len(array.shape) == len(shape) and all(w in (None, g) for w, g in zip(shape, array.shape, strict=True))
        if array.dtype != dtype or not fits:
            raise BundleError(f"{golden.path} has {name!r} as {array.dtype} {array.shape}: expected {dtype} {shape}, export anew")
        if dtype in FLOATS and not np.isfinite(array).all():
            raise BundleError(f"{golden.path} has NaN or infinite values in {name!r}: export the bundle anew")
    return arrays["input"], [_answer(arrays, k, stage.ports) for k, stage in enumerate(manifest.stages)]


def _answer(arrays: Mapping[str, NDArray[Any]], k: int, ports: Ports) -> Answer:
    return arrays[f"{k}.members"], {name: arrays[f"{k}.write.{name}"] for name in ports.writes}


def check_golden(data: bytes, manifest: Manifest, stages: Sequence[Any]) -> float:
    """Run every stage on the golden inputs; the largest share of the tolerance that was used.

    Raises:
        BundleError: a stage that fails, or gives other values than stored; stage, array and difference are named.
    """
    x, answers = read_golden(data, manifest)
    used, carry = 0.0, dict[str, NDArray[Any]]()
    for stage, (members, written) in zip(stages, answers, strict=True):
        try:
            found, wrote = stage(x, {name: carry[name] for name in stage.reads})
        except (ValueError, KeyError, TypeError) as error:
            raise BundleError(
                f"stage {stage.name!r} can't be run on the golden inputs ({error}): export the bundle anew"
            ) from error
        for name, got, want in [("members", found, members), *((name, wrote[name], written[name]) for name in stage.writes)]:
            used = max(used, _compare(stage.name, name, got, want, manifest.golden))
        carry |= written
    return used


def _compare(stage: str, name: str, found: NDArray[Any], stored: NDArray[Any], golden: Golden) -> float:
    """The largest share of the tolerance."""
    same = found.shape == stored.shape and found.dtype == stored.dtype
    if not same:
        raise BundleError(
            f"stage {stage!r} gives {name} as {found.dtype} {found.shape} on the golden inputs, stored is {stored.dtype} {stored.shape}: "
            "export the bundle anew"
        )
    got, want = found.astype(np.float64), stored.astype(np.float64)
    share = np.abs(got - want) / (golden.atol + golden.rtol * np.abs(want) + 1e-300)
    worst = float(share.max(initial=0.0))
    if not worst <= 1:
        off = float(np.abs(got - want).max())
        raise BundleError(
            f"stage {stage!r} gives {name} that differ by up to {off:.3g} from the stored ones on golden inputs (allowed {golden.atol:g} "
            f"+ {golden.rtol:g} · |value|): the bundle is damaged, or this machine computes otherwise; export it anew here"
        )
    return worst
