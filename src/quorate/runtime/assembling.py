"""A bundle of programs that exist already, such as ONNX files of other frameworks: kind, policy, costs, watch and card put together.

Needs no PyTorch; for ensembles of it there is :func:`quorate.save_bundle`. What the programs give on the golden inputs is what ONNX Runtime
makes of them here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate import __version__
from quorate.cascade.drift import Watch
from quorate.cascade.policy import Join, Policy, StagePolicy
from quorate.combination import COMBINES, Combine, Kind
from quorate.outputs import Outputs
from quorate.runtime.card import card
from quorate.runtime.golden import Answer
from quorate.runtime.manifest import Manifest
from quorate.runtime.program import Port, Program
from quorate.runtime.session import OnnxStage, open_session
from quorate.runtime.writing import write_bundle

GIVEN: tuple[Kind, ...] = ("logits", "probs", "values", "gaussian")
MADE_WITH = ("torch", "onnx", "onnxruntime", "numpy")


def save_programs(
    programs: Sequence[Program],
    policy: Policy | None,
    path: str | Path,
    *,
    example: NDArray[Any],
    kind: Kind | None = None,
    combine: Combine | None = None,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    validation: Outputs | None = None,
    test: Outputs | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    unit: str | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> Manifest:
    """Write programs under a policy as a bundle; one that is there is replaced, in one step.

    Args:
        programs: one per stage, all weights inside; of them and in the order of the policy.
        policy: None for all of them, none of which decides early, and for a regression.
        path: of the bundle's folder.
        example: raw inputs (B, *shape) as the programs take them; all rows become golden inputs.
        kind, combine: of the members; by default the policy's, else ``combine`` is "probs".
        name: of the bundle, for people; the folder's by default.
        classes: their names, in order; by default those of ``test`` or ``validation``.
        validation: Outputs of these stages on validation rows, for the drift watch.
        test: labelled Outputs of these stages on test rows, for the model card.
        preprocessing, about: what was done to inputs before, and where all comes from, as JSON values.
        unit: of the policy's costs, where they are no MACs.
        rtol, atol: of the check of the golden outputs.

    Raises:
        ValueError: programs that are not the policy's stages or differ in what they take or give, a kind or combination that nobody says
            or that is not the policy's, Outputs of other stages, class names of another number, a folder that holds something else.
        OSError: the bundle can't be written; what was there before is unchanged.
    """
    names = [program.ports.stage for program in programs]
    if policy is not None and names != [stage.name for stage in policy.stages]:
        raise ValueError(f"programs are {names}: expected the policy's stages in its order, {[s.name for s in policy.stages]}")
    if not names or any(program.sparse for program in programs):
        raise ValueError(f"programs {names}: expected at least one, each with all of its weights inside")
    said, joined = _kind(policy, kind, combine)
    made = list(programs)
    return assemble(
        made, policy, path, golden=(example, _answers(made, example)), kind=said, combine=joined, name=name, classes=classes,
        validation=validation, test=test, preprocessing=preprocessing, about=about, unit=unit, rtol=rtol, atol=atol,
    )  # fmt: skip


def assemble(
    programs: Sequence[Program],
    policy: Policy | None,
    path: str | Path,
    *,
    golden: tuple[NDArray[Any], Sequence[Answer]],
    kind: Kind,
    combine: Combine,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    validation: Outputs | None = None,
    test: Outputs | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
    unit: str | None = None,
    rtol: float = 1e-3,
    atol: float = 1e-3,
) -> Manifest:
    """The same of programs whose answers on golden inputs are known: what lies beside them is put together, and all of it written.

    Where one program has no MACs, the policy's costs count for all, in their one unit. Arguments and errors as :func:`save_programs`.
    """
    names = [program.ports.stage for program in programs]
    made = list(programs)
    if policy is not None and any(program.ports.macs is None for program in made):
        made = [replace(program, ports=replace(program.ports, macs=None)) for program in made]
    deciding = policy if policy is not None or kind in ("values", "gaussian") else _full(made, kind, combine)
    found = [each for each in (test, validation) if each is not None]
    _check_outputs(found, names, kind, combine)
    labels = classes if classes is not None else next((each.classes for each in found if each.classes is not None), None)
    x, answers = golden
    _check_classes(labels, answers, names, kind)
    watched = validation if policy is not None and len(names) > 1 else None
    facts: dict[str, Any] = {
        "name": name or Path(path).resolve().name,
        "policy": deciding,
        "classes": None if labels is None else tuple(str(label) for label in labels),
        "preprocessing": preprocessing,
        "watch": None if watched is None or policy is None else Watch.of(policy, watched).to_dict(),
        "precision": precision,
        "provenance": {"versions": _versions(), **(about or {})},
    }
    told = card(
        stages=[program.ports for program in made],
        input=Port("x", str(x.dtype), tuple(x.shape[1:])),
        sparse=[program.ports.stage for program in made if program.sparse],
        test=test,
        **facts,
    )
    return write_bundle(
        path, made, golden=golden, card=told, kind=kind, combine=combine, rtol=rtol, atol=atol, costs=_costs(made, deciding, unit), **facts
    )  # fmt: skip


def _kind(policy: Policy | None, kind: Kind | None, combine: Combine | None) -> tuple[Kind, Combine]:
    """What the members are, and how they join."""
    if policy is None:
        if kind not in GIVEN or (combine or "probs") not in COMBINES:
            raise ValueError(
                f"kind={kind!r}, combine={combine!r}: programs don't say what they give, expected one of {', '.join(GIVEN)}, combined by "
                f"{', '.join(COMBINES)}"
            )
        return kind, combine or "probs"
    for what, own, given in (("kind", policy.kind, kind), ("combine", policy.combine, combine)):
        if given is not None and given != own:
            raise ValueError(f"{what}={given!r}: the policy has {own!r}, leave it out")
    if policy.kind == "top1":
        raise ValueError("the policy is over top1, labels alone: a bundle's programs give class scores, fit the policy on these")
    return policy.kind, policy.combine


def _full(made: Sequence[Program], kind: Kind, combine: Combine) -> Policy:
    """All stages: nobody leaves before the last one."""
    join: Join = "replace" if combine == "last" else "mean"
    stages = [StagePolicy(p.ports.stage, join, window=(None, None), cost=p.ports.macs or 0.0) for p in made]
    return Policy((*stages[:-1], replace(stages[-1], window=None)), kind=kind, combine=combine)


def _answers(made: Sequence[Program], x: NDArray[Any]) -> list[Answer]:
    """What every program gives on the golden inputs."""
    if x.ndim < 1 or not len(x):
        raise ValueError(f"the example has shape {x.shape}: expected some rows of raw input, (B, *shape)")
    answers: list[Answer] = []
    carry: dict[str, NDArray[Any]] = {}
    for program in made:
        ports, stage = program.ports, program.ports.stage
        given = x if ports.span is None else x[..., ports.span[0] : ports.span[1]]
        if ports.input is not None and not ports.input.fits(given):
            want = ", ".join("any" if size is None else str(size) for size in ports.input.shape)
            raise ValueError(
                f"stage {stage!r} takes {ports.input.dtype} (B, {want}), the example is {x.dtype} {x.shape}: every stage of a bundle "
                "gets the same raw input, export it for that"
            )
        run = OnnxStage(open_session(program.onnx, f"the program of stage {stage!r}"), ports)
        members, written = run(x, {name: carry[name] for name in run.reads})
        if not np.isfinite(members).all():
            raise ValueError(f"stage {stage!r} gives NaN or infinite values on the example: give rows that it was made for")
        carry |= written
        answers.append((members, written))
    return answers


def _check_outputs(found: Sequence[Outputs], names: Sequence[str], kind: Kind, combine: Combine) -> None:
    for outputs in found:
        if (outputs.kind, outputs.combine == "last") != (kind, combine == "last"):
            raise ValueError(
                f"Outputs hold {outputs.kind} combined by {outputs.combine}, the bundle {kind} by {combine}: collect them from its stages"
            )
        if list(outputs.names) != list(names):
            raise ValueError(
                f"Outputs are of {list(outputs.names)}: expected those of the bundle's stages in order, {list(names)}"
            )


def _check_classes(classes: Sequence[str] | None, answers: Sequence[Answer], names: Sequence[str], kind: Kind) -> None:
    widths = dict(zip(names, (int(members.shape[-1]) for members, _ in answers), strict=True))
    if len(set(widths.values())) > 1:
        raise ValueError(f"the stages give {widths} outputs a row: expected as many from each")
    width = next(iter(widths.values())) // (2 if kind == "gaussian" else 1)
    if classes is not None and (isinstance(classes, str) or len(classes) != width):
        raise ValueError(f"classes has {len(classes)} names for {width} outputs: expected one for each, in order")


def _costs(made: Sequence[Program], policy: Policy | None, unit: str | None) -> dict[str, Any]:
    """What all stages cost together per row, and in which unit; "unknown" where nobody says any."""
    known = [program.ports.macs for program in made if program.ports.macs is not None]
    if len(known) == len(made):
        if unit not in (None, "MACs"):
            raise ValueError(f"unit={unit!r}: the stages' costs are counted in MACs, leave it out")
        return {"unit": "MACs", "total": sum(known)}
    total = 0.0 if policy is None else sum(stage.cost for stage in policy.stages)
    return {"unit": unit or "units of the policy" if total else "unknown", "total": total}


def _versions() -> dict[str, str]:
    found = {"quorate": __version__, "python": platform.python_version()}
    for package in MADE_WITH:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # ONNX Runtime comes under other names too, for other devices
            continue
    return found
