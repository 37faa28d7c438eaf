"""Saving an ensemble and its policy as a bundle that runs without PyTorch.

Every stage becomes a program (:mod:`quorate.export.exporting`); the golden outputs, which are compared on every load, are PyTorch's own. A
program may use a tenth of the bundle's tolerance here, |found − eager| ≤ (atol + rtol · |eager|) / 10; the rest is for other processors.
Which stages, in which order and how they decide, the policy says: Xia & Bouganis 2023 (arXiv 2303.08010), §3.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from quorate import __version__
from quorate.cascade.drift import Watch
from quorate.cascade.policy import Policy, StagePolicy
from quorate.combination import Combine, Kind
from quorate.export.chain import Link, built, chosen, links
from quorate.outputs import Outputs
from quorate.runtime.card import card
from quorate.runtime.manifest import Manifest
from quorate.runtime.program import Port, Program
from quorate.runtime.writing import write_bundle

SHARE = 10  # of the tolerance that is left for other processors
REGRESSION = ("values", "gaussian")
MADE_WITH = ("torch", "onnx", "onnxruntime", "numpy")


def save_bundle(
    ensemble: Any,
    policy: Policy | None,
    path: str | Path,
    *,
    example: Any,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    kind: Literal["logits", "probs", "values", "gaussian"] | None = None,
    combine: Combine | None = None,
    validation: Outputs | None = None,
    test: Outputs | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
    progress: Callable[[str], None] | None = None,
) -> Manifest:
    """Write an ensemble under a policy as a bundle for :func:`quorate.load_bundle`; one that is there is replaced, in one step.

    The modules stay as they are. Nothing is written before all of it was made and compared.

    Args:
        ensemble: a module by the contract of :mod:`quorate.ensemble`; or stages in a list (modules, those of
            :func:`quorate.stages`, programs, paths of ONNX files); or several sources, ``{name: ensemble, network, stage, program or
            path}``, whose stages are called as in the pool of :func:`quorate.cascade.plan`: ``name`` where there is one, else
            ``name/stage``.
        policy: over some of the stages, by name; None for all of them, in order, none of which decides early, and for a regression.
        path: of the bundle's folder.
        example: raw inputs (B, *shape) in the dtype they will come in. The first 8 rows become the golden inputs.
        name: of the bundle, for people; the folder's by default.
        classes: their names, in order; by default those of ``test`` or ``validation``.
        kind, combine: of the members; needed only where neither an ensemble nor the policy says them.
        validation: Outputs of these stages on validation rows, for the drift watch.
        test: labelled Outputs of these stages on test rows, for the model card.
        preprocessing: what was done to inputs before they were raw inputs, as JSON values.
        precision: what :func:`quorate.export.refit.lowered` says of programs of lower precision.
        about: where it comes from, as JSON values.
        rtol, atol: of the check of the golden outputs.
        progress: is told in a word or two what begins.

    Returns:
        The manifest.

    Raises:
        ValueError: stages that the policy names and that are not there, or that come in an order in which they can't run; a kind or
            combine that is not the policy's, or that nobody says; class names that are not one per class; Outputs of other stages; a
            stage that can't be exported (:func:`quorate.export.program`); values that JSON can't hold; a folder that holds something
            else.
        OSError: the bundle can't be written; what was there before is unchanged.
        BlockingIOError: another process is writing this bundle.
    """
    pool = links(ensemble, None if policy is None else [stage.name for stage in policy.stages], example)
    parts = pool if policy is None else chosen(pool, [stage.name for stage in policy.stages])
    said, joined = _kind(parts, policy, kind), _combine(parts, policy, combine)
    made, x, answers = built(parts, example, rtol=rtol / SHARE, atol=atol / SHARE, progress=progress)
    made = _in_one_unit(made, policy)
    names = _classes(classes, [outputs for outputs in (test, validation) if outputs is not None], made, said)
    deciding = (
        policy if policy is not None or said in REGRESSION else _open([p.ports.stage for p in made], _costs(made), said, joined)
    )
    order = [program.ports.stage for program in made]
    held = None if validation is None else _picked("validation", validation, order)
    watch = None if held is None or policy is None or len(order) < 2 else Watch.of(policy, held).to_dict()
    provenance = {"versions": _versions(), **(about or {})}
    facts: dict[str, Any] = {
        "name": name or Path(path).resolve().name, "policy": deciding, "classes": names, "preprocessing": preprocessing, "watch": watch,
        "precision": precision, "provenance": provenance,
    }  # fmt: skip
    if progress is not None:
        progress("writing")
    told = card(
        stages=[program.ports for program in made],
        input=Port("x", str(x.dtype), tuple(x.shape[1:])),
        test=None if test is None else _picked("test", test, order),
        **facts,
    )
    return write_bundle(
        path,
        made,
        golden=(x, answers),
        card=told,
        kind=said,
        combine=joined,
        rtol=rtol,
        atol=atol,
        costs=_total(made, deciding),
        **facts,
    )


def _kind(parts: Sequence[Link], policy: Policy | None, given: str | None) -> Kind:
    """What the members are; ValueError where sources, policy and what was given differ, or nothing says it."""
    if policy is not None and policy.kind == "top1":
        raise ValueError("the policy is over top1, labels alone: a bundle's programs give class scores, fit the policy on these")
    declared = {link.kind: link.name for link in reversed(parts) if link.kind is not None}
    if len(declared) > 1:
        raise ValueError(
            f"stages of kinds {', '.join(f'{k} ({n!r})' for k, n in declared.items())}: expected one kind in a bundle"
        )
    own = next(iter(declared), None)
    if policy is None:
        told: Kind = _agreed("kind", own, given)
        return told
    _agreed("kind", policy.kind, given)
    for link, stage in zip(parts, policy.stages, strict=True):
        if link.kind is not None and link.kind != (stage.kind or policy.kind):
            raise ValueError(
                f"stage {link.name!r} gives {link.kind}, the policy takes {stage.kind or policy.kind} from it: use its own policy"
            )
    return policy.kind


def _combine(parts: Sequence[Link], policy: Policy | None, given: str | None) -> Combine:
    declared = {link.combine: link.name for link in reversed(parts) if link.combine is not None}
    if len(declared) > 1 and policy is None:
        raise ValueError(
            f"stages combined by {', '.join(f'{c} ({n!r})' for c, n in declared.items())}: give the policy that joins them"
        )
    if policy is None:
        undeclared = "probs" if any(link.kind is not None for link in parts) else None  # an ensemble's, by the contract
        told: Combine = _agreed("combine", next(iter(declared), undeclared), given)
        return told
    _agreed("combine", policy.combine, given)
    for found, stage in declared.items():
        if found != policy.combine:
            raise ValueError(
                f"stage {stage!r} is of an ensemble combined by {found}, the policy is for {policy.combine}: fit it on what "
                "quorate.collect gives"
            )
    return policy.combine


def _agreed(what: str, own: str | None, given: str | None) -> Any:
    if own is None and given is None:
        raise ValueError(f"nothing says the stages' {what}: give {what}=, a policy, or a whole ensemble")
    if None not in (own, given) and own != given:
        raise ValueError(f"{what}={given!r}: the ensemble or its policy has {own!r}, leave it out")
    return own or given


def _open(names: Sequence[str], costs: Sequence[float], kind: Kind, combine: Combine) -> Policy:
    """The full ensemble: nobody leaves before the last stage."""
    join: Literal["mean", "replace"] = "replace" if combine == "last" else "mean"
    last = len(names) - 1
    windows = [None if k == last else (None, None) for k in range(last + 1)]
    stages = [StagePolicy(n, join, window=w, cost=c) for n, w, c in zip(names, windows, costs, strict=True)]
    return Policy(tuple(stages), kind=kind, combine=combine)


def _in_one_unit(made: Sequence[Program], policy: Policy | None) -> list[Program]:
    """Without MACs where one of the stages has none: the policy's costs then count for all, in their one unit."""
    if policy is None or all(program.ports.macs is not None for program in made):
        return list(made)
    return [replace(program, ports=replace(program.ports, macs=None)) for program in made]


def _costs(made: Sequence[Program]) -> list[float]:
    return [program.ports.macs or 0.0 for program in made]


def _total(made: Sequence[Program], policy: Policy | None) -> dict[str, Any]:
    """What all stages cost together per row, and in which unit."""
    if all(program.ports.macs is not None for program in made):
        return {"unit": "MACs", "total": sum(_costs(made))}
    return {"unit": "the policy's", "total": 0.0 if policy is None else sum(stage.cost for stage in policy.stages)}


def _classes(
    given: Sequence[str] | None, outputs: Sequence[Outputs], made: Sequence[Program], kind: Kind
) -> tuple[str, ...] | None:
    found = given if given is not None else next((o.classes for o in outputs if o.classes is not None), None)
    widths = {program.ports.stage: program.ports.members.shape[-1] for program in made}
    if len(set(widths.values())) > 1:
        raise ValueError(f"the stages give {widths} outputs a row: expected as many from each")
    if found is None:
        return None
    width = next(iter(widths.values()))
    want = width // 2 if kind == "gaussian" and width is not None else width
    if isinstance(found, str) or (want is not None and len(found) != want):
        raise ValueError(f"classes has {len(found)} names for {want} outputs: expected one for each, in order")
    return tuple(str(label) for label in found)


def _picked(what: str, outputs: Outputs, names: Sequence[str]) -> Outputs:
    """The Outputs of these stages, in this order."""
    outputs = outputs.grouped_as(names) if any("+" in n and n not in outputs.names for n in names) else outputs
    if absent := [n for n in names if n not in outputs.names]:
        raise ValueError(
            f"the {what} Outputs are of {list(outputs.names)}: expected {absent} among them, give those of the bundle's stages"
        )
    at = [outputs.names.index(n) for n in names]
    costs = None if outputs.costs is None else [outputs.costs[k] for k in at]
    return Outputs(
        [outputs.values[k] for k in at], kind=outputs.kind, combine=outputs.combine, labels=outputs.labels, ids=outputs.ids,
        classes=outputs.classes, costs=costs, ordered=outputs.ordered, names=list(names),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    return {"quorate": __version__, "python": platform.python_version()} | {package: version(package) for package in MADE_WITH}
