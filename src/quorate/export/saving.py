"""Saving an ensemble and its policy as a bundle that runs without PyTorch.

Every stage becomes a program (:mod:`quorate.export.exporting`); the golden outputs, which are compared on every load, are PyTorch's own. A
program may use a tenth of the bundle's tolerance here, |found − eager| ≤ (atol + rtol · |eager|) / 10; the rest is for other processors.
Which stages, in which order and how they decide, the policy says: Xia & Bouganis 2023 (arXiv 2303.08010), §3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from quorate.cascade.policy import Policy
from quorate.combination import Combine, Kind
from quorate.export.chain import Link, built, chosen, links
from quorate.export.exporting import check_tolerance
from quorate.outputs import Outputs
from quorate.runtime.assembling import assemble
from quorate.runtime.manifest import Manifest

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
    unit: str | None = None,
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
        unit: of the policy's costs, where stages have no MACs.
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
    check_tolerance(rtol, atol)
    for what, given, kinds in (("policy", policy, Policy), ("validation", validation, Outputs), ("test", test, Outputs)):
        if given is not None and not isinstance(given, kinds):
            raise ValueError(f"{what} is {type(given).__name__}: expected a quorate.{kinds.__name__}, load it first, or None")
    pool = links(ensemble, None if policy is None else [stage.name for stage in policy.stages], example)
    parts = pool if policy is None else chosen(pool, [stage.name for stage in policy.stages])
    said, joined = _kind(parts, policy, kind), _combine(parts, policy, combine)
    made, x, answers = built(parts, example, rtol=rtol / SHARE, atol=atol / SHARE, progress=progress)
    order = [program.ports.stage for program in made]
    if progress is not None:
        progress("writing")
    return assemble(
        made, policy, path, golden=(x, answers), kind=said, combine=joined, name=name, classes=classes,
        validation=None if validation is None else _picked("validation", validation, order),
        test=None if test is None else _picked("test", test, order),
        preprocessing=preprocessing, precision=precision, about=about, unit=unit, rtol=rtol, atol=atol,
    )  # fmt: skip


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
