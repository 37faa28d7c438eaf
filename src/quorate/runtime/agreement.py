"""That the parts of a manifest fit each other: what its schema can't say.

A chain of stages that read what was written before, in the shape in which it was written; inputs that can be cut from the raw input;
members of one width, with as many classes as there are names; a policy over these very stages; every file used, every path inside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quorate.cascade.stage import check_chain
from quorate.runtime.paths import check_distinct, parts
from quorate.runtime.program import Port, Ports

if TYPE_CHECKING:
    from quorate.runtime.manifest import Manifest


def check(manifest: Manifest) -> None:
    """That the parts fit each other. Raises ValueError."""
    names = [stage.ports.stage for stage in manifest.stages]
    _check_once("stage names", names)
    _check_policy(manifest, names)
    check_chain([_Declared(stage.ports) for stage in manifest.stages])
    carried: dict[str, Port] = {}
    for stage in manifest.stages:
        ports = stage.ports
        for name, port in ports.reads.items():
            if (port.dtype, port.shape) != (carried[name].dtype, carried[name].shape):
                raise ValueError(f"stage {ports.stage!r} reads {name!r} as another array than was written")
        carried |= ports.writes
        _check_input(ports, manifest.input)
        _check_members(ports, manifest)
        _check_once(
            f"inputs of stage {ports.stage!r}", [port.name for port in (ports.input, *ports.reads.values()) if port is not None]
        )
        _check_once(f"outputs of stage {ports.stage!r}", [port.name for port in (ports.members, *ports.writes.values())])
        _check_once(f"drops of stage {ports.stage!r}", ports.drops)
        if (stage.ticket is None) != (not stage.scattered):
            raise ValueError(f"stage {ports.stage!r} has a ticket without weights, or weights without a ticket")
    if manifest.classes is not None:
        _check_once("classes", manifest.classes)
    _check_files(manifest)


def _check_once(what: str, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"the {what} hold {name[:80]!r} twice: expected each once")
        seen.add(name)


def _check_policy(manifest: Manifest, names: Sequence[str]) -> None:
    policy = manifest.policy
    if policy is None:
        if manifest.kind not in ("values", "gaussian"):
            raise ValueError(f"a bundle of {manifest.kind} has no policy")
        return
    theirs = [stage.name for stage in policy.stages]
    if theirs != list(names):
        raise ValueError(f"the policy is for stages {theirs}, the bundle has {list(names)}")
    if (policy.kind, policy.combine) != (manifest.kind, manifest.combine):
        raise ValueError(
            f"the policy is for {policy.kind} combined by {policy.combine}, not {manifest.kind} by {manifest.combine}"
        )


def _check_members(ports: Ports, manifest: Manifest) -> None:
    """That a stage gives floats (m, B, C) or (B, C), as wide as the first stage's and the names ask: gaussian, two for each."""
    port, first = ports.members, manifest.stages[0].ports.members
    if port.dtype not in ("float16", "float32", "float64") or len(port.shape) not in (1, 2):
        raise ValueError(
            f"stage {ports.stage!r} gives members {port.dtype} {port.shape}: expected floats, (m, C) or (C,) per row"
        )
    width = port.shape[-1]
    if manifest.classes is not None and width not in (
        None,
        wanted := len(manifest.classes) * (2 if manifest.kind == "gaussian" else 1),
    ):
        raise ValueError(
            f"stage {ports.stage!r} gives {width} outputs per row: expected {wanted} for {len(manifest.classes)} names"
        )
    if None not in (width, first.shape[-1]) and width != first.shape[-1]:
        raise ValueError(f"stage {ports.stage!r} gives {width} outputs per row, the first stage {first.shape[-1]}")


def _check_files(manifest: Manifest) -> None:
    """That every file has a use, every use a file, and no path leads elsewhere."""
    listed = [file.path for file in manifest.files]
    for path in listed:
        parts(path)
    check_distinct(listed)
    used = [manifest.golden.path, manifest.card]
    used += [path for stage in manifest.stages for path in (stage.program, stage.ticket) if path is not None]
    _check_once("files", listed)
    if set(listed) != set(used):
        raise ValueError(f"the list of files and their use differ in {sorted(set(listed) ^ set(used))[:3]}")


def _check_input(ports: Ports, raw: Port) -> None:
    """That a stage's input can be cut from the raw input."""
    port, span = ports.input, ports.span
    if span is not None and (port is None or not raw.shape or not 0 <= span[0] < span[1]):
        raise ValueError(f"stage {ports.stage!r} has the span {span} of an input without steps")
    if port is None:
        return
    want = raw.shape if span is None else (*raw.shape[:-1], span[1] - span[0])
    if span is not None and raw.shape[-1] is not None and span[1] > raw.shape[-1]:
        raise ValueError(f"stage {ports.stage!r} has the span {span} of {raw.shape[-1]} steps")
    fits = len(want) == len(port.shape) and all(p is None or p == w for p, w in zip(port.shape, want, strict=True))
    if not fits or port.dtype != raw.dtype:
        raise ValueError(f"stage {ports.stage!r} takes {port.dtype} {port.shape}, the bundle {raw.dtype} {raw.shape}")


class _Declared:
    """A stage's names, for the check of the chain."""

    def __init__(self, ports: Ports) -> None:
        self.name, self.reads, self.writes, self.drops = ports.stage, tuple(ports.reads), tuple(ports.writes), ports.drops
