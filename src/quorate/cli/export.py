"""``quorate export RUN… --to DIR``: finished runs and ONNX files, under a policy, as a bundle that runs without PyTorch.

Nothing is written before all stages were made and compared with what they come from; a bundle that is at DIR is replaced in one step. ONNX
files alone need no PyTorch here either.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quorate.cli.parse import parse, parser
from quorate.cli.usage import UsageError

if TYPE_CHECKING:
    from quorate.cascade.policy import Policy
    from quorate.cli.fed import Fed
    from quorate.cli.sources import Source
    from quorate.runtime.manifest import Manifest

MOST_ROWS = 8


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.cli.bundled import find_policy, read_about
    from quorate.cli.fed import Fed, inputs
    from quorate.cli.plan import running
    from quorate.cli.sources import How
    from quorate.cli.stored import sources_of
    from quorate.runtime.writing import check_target

    chosen = _parse(argv)
    about = read_about(chosen.about or ())
    sources = sources_of(chosen.sources, "a run folder or an .onnx file")
    if wrong := [source for source in sources if not (source.is_run or source.is_onnx)]:
        raise ValueError(f"{wrong[0].path}: expected a run folder or an .onnx file, stored outputs can't be exported")
    check_target(Path(chosen.to))
    found = find_policy(sources, chosen.policy, chosen.full)
    with running() as told:
        fed = Fed(sources, inputs(chosen), How(chosen.kind, combine=chosen.combine, class_names=chosen.class_names), told)
        write = _with_runs if any(source.is_run for source in sources) else _files_alone
        manifest = write(sources, found, fed, about, chosen)
    _show(Path(chosen.to), manifest)
    return 0


def _parse(argv: Sequence[str]) -> Any:
    from quorate.cli.fed import add_inputs

    using = parser(
        "export", "Write finished runs or ONNX files, and a policy over their stages, as a bundle for quorate predict."
    )
    add = using.add_argument
    add("sources", nargs="+", type=str, help="[NAME=]PATH: run folders and .onnx models, named as quorate plan was given them")
    add("--to", type=str, required=True, metavar="DIR", help="the bundle's folder; a bundle that is there is replaced")
    add(
        "--policy",
        type=str,
        default=None,
        metavar="FILE|NAME",
        help="of quorate plan, or of the run (default: the run's only one)",
    )
    add("--full", action="store_true", help="no policy: all stages answer every row")
    add("--name", type=str, default=None, help="of the bundle, for people (default: the folder's)")
    add("--rows", type=int, default=MOST_ROWS, help="golden inputs, checked on every load (1 to 8)")
    add(
        "--precision",
        type=str,
        nargs="+",
        default=None,
        metavar="[STAGE=]PRECISION",
        help="int8-static, int8-dynamic, fp16 or bf16",
    )
    add("--about", type=str, nargs="+", default=None, metavar="KEY=VALUE", help="to write down where it comes from")
    add(
        "--kind",
        type=Literal["logits", "probs", "values", "gaussian"] | None,
        default=None,
        help="of ONNX files without a policy",
    )
    add("--combine", type=Literal["probs", "logits", "last"] | None, default=None, help="the same: how members join")
    add("--class_names", type=str, nargs="+", default=None, metavar="NAME", help="of ONNX files: the classes, in order")
    add(
        "--test",
        type=str,
        default=None,
        metavar="FILE",
        help="of ONNX files: raw inputs and labels for the model card, as --inputs",
    )
    add("--unit", type=str | None, default=None, help="of the policy's costs, where stages have no MACs")
    add_inputs(using)
    chosen = parse(using, argv)
    if not 1 <= chosen.rows <= MOST_ROWS:
        raise UsageError(f"--rows {chosen.rows}: expected 1 to {MOST_ROWS}")
    if not chosen.to.strip():
        raise UsageError("--to is empty: expected the bundle's folder")
    if chosen.name is not None and not chosen.name.strip():
        raise UsageError("--name is empty: expected text, or leave it out")
    return chosen


# --- ONNX files alone ---


def _files_alone(
    sources: Sequence[Source], found: tuple[Policy, str] | None, fed: Fed, about: Mapping[str, str], chosen: Any
) -> Manifest:
    from quorate.cli.bundled import Rows, kinds_of, outputs_for, picked, provenance, ran
    from quorate.cli.fed import check_rows
    from quorate.runtime.assembling import save_programs

    if chosen.precision is not None:
        raise ValueError("--precision is for runs, ONNX files are taken as they are: lower their precision where they were made")
    if chosen.inputs is None:
        raise ValueError(f"{sources[0].path}: some raw inputs have to go with the bundle: give --inputs FILE.npz --inputs_x NAME")
    policy = None if found is None else found[0]
    rows = Rows(*fed.rows(Path(chosen.inputs)))
    programs = {source.name: fed.program(source) for source in sources}
    order = picked(programs, policy)
    for program in order:
        check_rows(rows.x, program, Path(chosen.inputs))
    used = {program.ports.stage: program for program in order}
    said = (chosen.kind, chosen.combine)
    kinds_of(policy, next(iter(used)), *said)  # refuses what does not fit before anything is run
    validation = test = None
    if policy is not None and len(used) > 1:
        validation = outputs_for(policy, ran(fed, used, rows, policy, *said))
    if chosen.test is not None:
        shown = Rows(*fed.rows(Path(chosen.test)))
        if shown.y is None:
            raise ValueError(f"--test {chosen.test}: the model card needs labels, give --inputs_y NAME")
        for program in order:
            check_rows(shown.x, program, Path(chosen.test))
        members = ran(fed, used, shown, policy, *said)
        test = outputs_for(policy, members) if policy is not None else _joined(members)
    return save_programs(
        order, policy, chosen.to, example=rows.first(chosen.rows), kind=chosen.kind, combine=chosen.combine, name=chosen.name,
        classes=chosen.class_names, validation=validation, test=test, about=provenance(sources, None if found is None else found[1], about),
        unit=chosen.unit,
    )  # fmt: skip


def _joined(members: Mapping[str, Any]) -> Any:
    """Single stages' Outputs as one, in order."""
    from quorate.cli.stored import remade

    first = next(iter(members.values()))
    return remade(first, values=[each.values[0] for each in members.values()], names=list(members), costs=None, ordered=False)


# --- runs, and ONNX files beside them ---


def _with_runs(
    sources: Sequence[Source], found: tuple[Policy, str] | None, fed: Fed, about: Mapping[str, str], chosen: Any
) -> Manifest:
    from quorate.cli.bundled import full_policy, outputs_for, pool_of, preprocessing, provenance, ran
    from quorate.export.saving import save_bundle

    for option in ("inputs", "test", "class_names"):
        if chosen[option] is not None:
            raise ValueError(f"--{option} is for ONNX files alone, the runs have data of their own: leave it out")
    for option in ("kind", "combine"):
        if chosen[option] is not None and not fed.files:
            raise ValueError(f"--{option} is for ONNX files, there are none, and runs say it themselves: leave it out")
    ensembles, data, rows = _reloaded([source for source in sources if source.is_run])
    programs = {source.name: fed.program(source) for source in sources if source.is_onnx}
    policy = None if found is None else found[0]
    outputs: dict[str, dict[str, Any] | None] = {}
    for part in ("validation", "test"):
        stored = {source.name: source.part(part) for source in sources if source.is_run}
        outputs[part] = None
        if None not in stored.values():
            own = ran(fed, programs, rows[part], policy, chosen.kind, chosen.combine, data.classes or None)
            outputs[part] = {source.name: (stored | own)[source.name] for source in sources}
    validation = outputs["validation"]
    if validation is None:
        bare = next(source.path for source in sources if source.is_run and source.part("validation") is None)
        raise FileNotFoundError(f"run {bare} has no outputs 'validation': train it anew")
    if policy is None:
        policy = full_policy(pool_of(validation))
    alone = len(sources) == 1 and (policy is None or _own(policy, next(iter(validation.values()))))
    given = ensembles[sources[0].name] if alone else {s.name: (ensembles | programs)[s.name] for s in sources}
    facts: dict[str, Any] = {
        "example": rows["validation"].first(chosen.rows),
        "name": chosen.name,
        "classes": data.classes or None,
        "preprocessing": preprocessing(rows["validation"].x, data.preprocessing),
        "about": provenance(sources, None if found is None else found[1], about),
        "unit": chosen.unit,
        "progress": _say,
    }
    if chosen.precision is not None:
        from quorate.cli.lowering import lowered_parts

        if policy is None:
            raise ValueError("--precision is for classifications: a regression is exported as it is")
        given, policy, more = lowered_parts(given, policy, chosen.precision, rows, chosen.rows, chosen.batch_size, _say)
        return save_bundle(given, policy, chosen.to, **facts, **more)
    watched = None if found is None else outputs_for(policy, validation)
    return save_bundle(given, policy, chosen.to, validation=watched, test=outputs_for(policy, outputs["test"]), **facts)


def _reloaded(runs: Sequence[Source]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """(ensembles by name, the first run's data, the rows of its parts). ValueError for runs of other inputs or classes."""
    from quorate.cli.bundled import PARTS, Rows
    from quorate.cli.reload import reload

    ensembles: dict[str, Any] = {}
    first: Any = None
    for source in runs:
        _say(f"reading {source.path}")
        ensembles[source.name], data = reload(source.path)
        first = first or data
        for what, one, other in (
            ("classes", first.classes or first.targets, data.classes or data.targets),
            ("inputs", (first.shape, str(first.test.x.dtype)), (data.shape, str(data.test.x.dtype))),
        ):
            if one != other:
                raise ValueError(
                    f"{runs[0].path} and {source.path} have different {what}: a bundle is of one kind of input and task"
                )
    splits = first.splits()
    return ensembles, first, {part: Rows(splits[part].x, splits[part].y, splits[part].ids) for part in PARTS}


def _own(policy: Policy, outputs: Any) -> bool:
    """Whether the policy's stages are called as the ensemble calls them, one of neighbours included."""
    names = [stage.name for stage in policy.stages]
    return set(names) <= set(outputs.names) or "+".join(names) == "+".join(outputs.names)


# --- what is told ---


def _show(folder: Path, manifest: Manifest) -> None:
    sizes = {file.path: file.size_bytes for file in manifest.files}
    stages = "1 stage" if len(manifest.stages) == 1 else f"{len(manifest.stages)} stages"
    print(f"wrote {folder}: {manifest.name}, {stages}, {sum(sizes.values()):,} bytes in {len(sizes)} files")
    for stage in manifest.stages:
        held = sizes[stage.program] + (0 if stage.ticket is None else sizes[stage.ticket])
        macs = "" if stage.ports.macs is None else f", {stage.ports.macs:,.0f} MACs"
        ticket = "" if stage.ticket is None else ", sparse weights as a ticket"
        print(f"  {stage.ports.stage}: {stage.ports.precision}, {held:,} bytes{macs}{ticket}")
    certificate = None if manifest.policy is None else manifest.policy.certificate
    if certificate is not None and not certificate.get("feasible", True):
        print("  its certificate is infeasible: nothing is guaranteed (inspect says why)")
    print(f"digest {manifest.digest}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
