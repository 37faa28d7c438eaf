"""Writing a bundle, atomically: killed at any moment it leaves the old bundle or the new one.

All files of a version lie in a folder of their own, ``content-…``, named by what is in it. When all of them are on the disk,
``manifest.json`` is replaced in one step; only then the older version's folder is removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from quorate.cascade.policy import Policy
from quorate.files import atomic, write_text
from quorate.runtime.agreement import check
from quorate.runtime.folder import LARGEST_FILE
from quorate.runtime.golden import Answer, golden_bytes, read_golden
from quorate.runtime.manifest import FORMAT, LARGEST, File, Golden, Manifest, Stage
from quorate.runtime.onnx_file import check_program
from quorate.runtime.program import Port, Program
from quorate.runtime.ticket import ticket_bytes

MANIFEST = "manifest.json"
MOST_ROWS = 4096  # golden ones, as the manifest's schema has it
_OWN = re.compile(r"content-[0-9a-f]{12}|\..*\.part|manifest\.json")


def write_bundle(
    path: str | Path,
    programs: Sequence[Program],
    *,
    policy: Policy | None,
    golden: tuple[NDArray[Any], Sequence[Answer]],
    card: str,
    name: str,
    kind: str = "logits",
    combine: str = "probs",
    classes: Sequence[str] | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    preprocessing: Mapping[str, Any] | None = None,
    costs: Mapping[str, Any] | None = None,
    watch: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write programs and policy as a bundle; one that is there is replaced, in one step.

    Args:
        path: of the bundle's folder.
        programs: one per stage, in order.
        policy: over these stages; None for a regression.
        golden: raw inputs (B, *shape), and each stage's members (m, B, C) and what it wrote.
        card: the model card, markdown.
        name, kind, combine, classes, preprocessing, costs, watch, precision, provenance: as :class:`Manifest` has them.
        rtol, atol: of the check of the golden outputs.

    Raises:
        ValueError: parts that don't fit each other or that :func:`quorate.load_bundle` would refuse; a folder that holds other things
            than a bundle. Nothing is written then.
        OSError: it can't be written; what was there before is unchanged.
        BlockingIOError: another process is writing this bundle.
    """
    x, answers = golden
    if not 1 <= len(x) <= MOST_ROWS or not 0 <= rtol <= 0.2 or not 0 <= atol <= 10:
        raise ValueError(
            f"{len(x)} golden rows, rtol={rtol!r}, atol={atol!r}: expected 1–{MOST_ROWS} rows, rtol from 0 to 0.2, atol from 0 to 10"
        )
    contents: dict[str, bytes] = {"golden.safetensors": golden_bytes(x, answers), "model_card.md": card.encode()}
    stages = []
    for k, program in enumerate(programs):
        contents[f"stage{k}.onnx"] = program.onnx
        ticket = None
        if program.sparse:
            ticket = f"stage{k}.ticket.safetensors"
            contents[ticket] = ticket_bytes(program.sparse)
        shapes = {weight: tuple(sparse.mask.shape) for weight, sparse in program.sparse.items()}
        stages.append(Stage(program.ports, f"stage{k}.onnx", ticket, shapes))
    hashes = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    inside = "content-" + hashlib.sha256("\n".join(f"{n} {h}" for n, h in sorted(hashes.items())).encode()).hexdigest()[:12]

    def at(file: str) -> str:
        return f"{inside}/{file}"

    manifest = Manifest(
        name=name,
        input=Port("x", str(x.dtype), _row_shape(programs, x)),
        stages=tuple(
            replace(stage, program=at(stage.program), ticket=None if stage.ticket is None else at(stage.ticket))
            for stage in stages
        ),
        kind=kind,
        combine=combine,
        policy=policy,
        golden=Golden(at("golden.safetensors"), len(x), float(rtol), float(atol)),
        files=tuple(File(at(file), len(data), hashes[file]) for file, data in sorted(contents.items())),
        card=at("model_card.md"),
        classes=None if classes is None else tuple(classes),
        preprocessing=preprocessing or {},
        costs=costs or {},
        watch=watch,
        precision=precision,
        provenance=provenance or {},
    )
    text = manifest.to_json()
    try:
        check(manifest)
        Manifest.from_json(text)
        read_golden(contents["golden.safetensors"], manifest)
        for stage in manifest.stages:
            check_program(contents[Path(stage.program).name], stage.program, stage.scattered)
        if large := [f"{file.path} of {file.size_bytes:,} bytes" for file in manifest.files if file.size_bytes > LARGEST_FILE]:
            raise ValueError(f"{large[0]}: expected at most {LARGEST_FILE:,}, give fewer golden rows or cut the stage in two")
    except ValueError as error:
        raise ValueError(f"these parts make no bundle: {error}") from error
    _write(Path(path), inside, contents, text)
    return manifest


def _row_shape(programs: Sequence[Program], x: NDArray[Any]) -> tuple[int | None, ...]:
    """The shape of a row of raw input: the golden inputs', with the sizes free that are so in every program which takes it whole."""
    whole = [p.ports.input.shape for p in programs if p.ports.input is not None and p.ports.span is None]
    sizes = tuple(x.shape[1:])
    if not whole or any(len(shape) != len(sizes) for shape in whole):
        return sizes
    return tuple(None if all(shape[i] is None for shape in whole) else size for i, size in enumerate(sizes))


def check_target(folder: Path) -> None:
    """A ValueError unless a bundle can be written there: a path that is free, or the folder of a bundle."""
    if os.path.lexists(folder) and not folder.is_dir():
        is_what = "file" if folder.exists() else "link to nothing"
        raise ValueError(f"{folder} is a {is_what}: expected a folder of a bundle, or a path where one can be made")
    held = sorted(found.name for found in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in held if not _OWN.fullmatch(name)]
    if not foreign and MANIFEST in held and not _is_a_bundles(folder / MANIFEST, held):
        foreign = [MANIFEST]
    if foreign:
        raise ValueError(f"{folder} holds {foreign[0]!r}, which is no bundle's: choose another folder")


def _write(folder: Path, inside: str, contents: Mapping[str, bytes], manifest: str) -> None:
    check_target(folder)
    try:
        (folder / inside).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"could not make {folder}: {error.strerror}; choose another place for the bundle") from error
    with _locked(folder):
        for file, data in contents.items():
            with atomic(folder / inside / file) as temporary:
                temporary.write_bytes(data)
        write_text(folder / MANIFEST, manifest)
        for found in [*folder.iterdir(), *(folder / inside).iterdir()]:
            if found.name != inside and found.name.startswith("content-"):
                shutil.rmtree(found, ignore_errors=True)
            elif found.name.endswith(".part"):
                found.unlink(missing_ok=True)


def _is_a_bundles(manifest: Path, held: Sequence[str]) -> bool:
    """Whether it may be replaced: other programs have manifests too. A damaged one is known by the bundle's files beside it."""
    if any(name.startswith("content-") for name in held):
        return True
    with manifest.open("rb") as file:
        return FORMAT.encode() in file.read(LARGEST)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process, where the system can; it is let go when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(error.errno, f"bundle {folder} is being written by another process: wait for it") from error
        yield
    finally:
        os.close(handle)
