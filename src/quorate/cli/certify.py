"""``quorate evaluate --certify NEW_LABELLED_DATA``: whether deployed policies keep their targets on fresh rows.

Stored outputs of the policies' stages need no PyTorch; raw inputs are run through the model of a run folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quorate.cascade.guarantee import recertify
from quorate.cascade.policy import Policy
from quorate.cli.plan import delta_of
from quorate.cli.sources import How, Source, add_reading, how
from quorate.cli.stored import Members, members_of, remade, whole
from quorate.cli.usage import UsageError
from quorate.combination import softmax
from quorate.foreign import read_npz
from quorate.outputs import Outputs
from quorate.report import certificates
from quorate.report.certificates import Checked
from quorate.runs import Run

OWN = ("policy", "confidence", "inputs", "ood", "risk", "alpha", "beta", *vars(How()))


def add_options(using: Any) -> None:
    """Add what ``--certify`` takes."""
    add = using.add_argument
    add(
        "--certify",
        type=str,
        nargs="+",
        default=None,
        metavar="FILE",
        help="instead of the table: certify policies again on fresh labelled rows, [NAME=]FILE of the stages' outputs (or --inputs)",
    )
    add(
        "--policy", type=str, nargs="+", default=None, metavar="FILE", help="policies to certify (default: all of the run folder)"
    )
    add("--confidence", type=float | None, default=None, help="of the certificates (default: that of a policy's own, else 0.95)")
    add(
        "--inputs",
        type=str,
        default=None,
        metavar="NAME",
        help="the fresh rows are raw inputs: their array in an .npz, as the run's own",
    )
    add("--ood", type=str, nargs="+", default=None, metavar="NAME=FILE,…", help="fresh OOD rows, for policies fitted with some")
    add(
        "--risk",
        type=float | None,
        default=None,
        help="limit of the risk for the targets risk@coverage and accuracy, which name none",
    )
    add(
        "--beta",
        type=float | None,
        default=None,
        help="selective targets with OOD rows: cost of an accepted one (default: that of a policy's own certificate, else 1)",
    )
    add(
        "--alpha",
        type=float | None,
        default=None,
        help="share of in-distribution rows in that mix (default: that of a policy's own certificate, else of the rows)",
    )
    add_reading(using)


def check(chosen: Any) -> None:
    """A ValueError for options that don't go together."""
    if chosen.certify is None:
        given = [name for name in OWN if chosen[name] not in (None, getattr(How, name, None))]
        if given:
            raise ValueError(f"--{given[0]} is for --certify: give that too")
        if not chosen.runs:
            raise UsageError("the following arguments are required: runs")
        return
    if len(chosen.runs) > 1 or not (chosen.runs or chosen.policy):
        raise ValueError(f"--certify with {len(chosen.runs)} run folders: expected one run, or --policy FILE")
    for name in ("plots", "corruptions"):
        if chosen[name] is not None:
            raise ValueError(f"--{name} is for the table of runs, which --certify replaces: leave it out")
    if chosen.inputs is not None and not chosen.runs:
        raise ValueError("--inputs needs the run folder whose model is to be run: give it first")
    if chosen.inputs is not None and (len(chosen.certify) > 1 or not chosen.certify[0].endswith(".npz") or chosen.labels is None):
        raise ValueError(
            f"--inputs {chosen.inputs}: expected --certify with one .npz of raw inputs, and --labels with their array's name"
        )
    if chosen.confidence is not None:
        delta_of(chosen.confidence)


def certify(chosen: Any) -> int:
    """Certify, print, write; a ValueError names the policies that don't hold, after everything is written."""
    run = Run(chosen.runs[0]) if chosen.runs else None
    paths = _policies(run, chosen.policy)
    many = len(paths) > 1
    policies = {name: Policy.load(path) for name, path in paths.items()}
    output = chosen.output
    if output is not None and (not output.endswith(".json")) != many:
        what = "a folder, as there are several policies" if many else "the name of a .json file"
        raise ValueError(f"--output {output}: expected {what}")
    fresh, ood = _fresh(run, chosen)
    delta = None if chosen.confidence is None else delta_of(chosen.confidence)
    terms = {"delta": delta, "risk": chosen.risk, "beta": chosen.beta, "alpha": chosen.alpha}
    found = []
    for name, policy in policies.items():
        outside = {each: for_policy(policy, members) for each, members in ood.items()}
        try:
            if not outside and (policy.certificate or {}).get("kind") == "scod":
                raise ValueError("it was certified for a mix with OOD rows: give fresh ones too, --ood NAME=FILE")
            certificate = recertify(policy, for_policy(policy, fresh), ood=outside or None, **terms)
        except ValueError as error:
            raise ValueError(f"{paths[name]}: {error}") from error
        found.append(Checked(name, policy.target or "–", certificate))
    if chosen.format == "markdown":
        print(certificates.markdown(found), end="")
    else:
        certificates.show(found)
    if output is not None:
        for each in found:
            renewed = replace(policies[each.name], certificate=each.certificate.to_dict())
            renewed.save(Path(output) / f"{each.name}.json" if many else output)
    failing = [each for each in found if not each.certificate.feasible]
    if failing:
        raise ValueError(
            "; ".join(f"policy {each.name}: {each.target} {certificates.verdict(each.certificate)}" for each in failing)
        )
    return 0


def for_policy(policy: Policy, sources: Members) -> Outputs:
    """The Outputs of a policy's stages, in its order; neighbouring stages of one source are merged where it names them so.

    Raises:
        ValueError: stages that are not there, of another kind or combination than the policy's, or sources with other rows or classes.
    """
    names = [stage.name for stage in policy.stages]
    if len(sources) == 1:
        only = next(iter(sources.values()))
        if set(names) <= set(only.names) or "+".join(names) == "+".join(only.names):
            return only if set(names) <= set(only.names) else only.grouped_as(names)
    free = {name: remade(outputs, ordered=False) for name, outputs in sources.items()}
    members = members_of(free, len(sources) == 1)
    missing = [name for name in names if name not in members]
    if missing:
        raise ValueError(
            f"the policy's stage {missing[0]!r} is not among {list(members)}: name the sources as it does, NAME=FILE"
        )
    first = members[names[0]]
    values = []
    for stage in policy.stages:
        outputs = members[stage.name]
        if outputs.kind != (stage.kind or policy.kind) or outputs.combine != policy.combine:
            raise ValueError(
                f"stage {stage.name!r} holds {outputs.kind} combined by {outputs.combine}, the policy is for {stage.kind or policy.kind} "
                f"combined by {policy.combine}: give such outputs"
            )
        first.check_same_rows(outputs, names[0], stage.name)
        value = outputs.values[0]
        values.append(value if outputs.kind == policy.kind or isinstance(value, tuple) else softmax(value))
    return Outputs(
        values, kind=policy.kind, combine=policy.combine, labels=first.labels, ids=first.ids, classes=first.classes, names=names
    )


def _policies(run: Run | None, given: list[str] | None) -> dict[str, Path]:
    if given is None:
        assert run is not None
        if not run.policies:
            raise ValueError(f"run {run.path} has no policies: give --policy FILE, as quorate plan writes it")
        return run.policies
    found = {Path(file).stem: Path(file) for file in given}
    if len(found) < len(given):
        raise ValueError(f"--policy {' '.join(given)}: two files of one name, expected each policy once under a name of its own")
    return found


def _fresh(run: Run | None, chosen: Any) -> tuple[Members, dict[str, Members]]:
    """The fresh rows by source, and OOD sets of the same sources."""
    sources = [Source.of(text) for text in chosen.certify]
    if runs := [source for source in sources if source.is_run]:
        raise ValueError(f"--certify {runs[0].path}: expected files, as {runs[0].path}/outputs/test.safetensors")
    if run is not None:
        for source in sources:
            if source.path.resolve() == (run.path / "outputs" / "validation.safetensors").resolve():
                raise ValueError(f"--certify {source.path}: these rows chose the policies and certify nothing, give fresh ones")
    reading = how(chosen)
    if chosen.inputs is None:
        return whole(chosen.certify, reading, chosen.ood or ())
    assert run is not None
    named = [text.partition("=")[::2] for text in chosen.ood or ()]
    files = {name: file for name, file in named if name and file}
    if len(files) < len(named):
        raise ValueError(f"--ood {' '.join(chosen.ood)}: expected NAME=FILE with a name of its own for each set of raw inputs")
    model = _Model(run, chosen.inputs, reading)
    ood = {name: {run.name: model.outputs(Path(file), labelled=False)} for name, file in files.items()}
    return {run.name: model.outputs(sources[0].path)}, ood


class _Model:
    """The model of a run, for raw inputs in ``.npz`` files."""

    def __init__(self, run: Run, inputs: str, reading: How) -> None:
        given = [name for name in reading.given() if name not in ("labels", "ids")]
        if given:
            raise ValueError(f"--{given[0]} is for stored outputs, --inputs {inputs} for raw inputs: leave one out")
        from quorate.cli.reload import reload

        self.inputs, self.reading = inputs, reading
        self.like = run.outputs("validation")
        self.ensemble, self.data = reload(run.path)

    def outputs(self, path: Path, labelled: bool = True) -> Outputs:
        """What the model says of the inputs in a file."""
        import torch

        from quorate.data import Split
        from quorate.ensemble import collect

        labels = self.reading.labels if labelled else None
        read = read_npz(path, [self.inputs], "values", labels, self.reading.ids)
        x = read["values"][0]
        ids = np.arange(len(x)) if read["ids"] is None else read["ids"]
        try:
            split = Split(x, read["labels"], ids)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        expected = self.data.test
        if split.shape != expected.shape or split.x.dtype != expected.x.dtype:
            raise ValueError(
                f"{path}: inputs {split.x.dtype} of shape {split.shape}, expected {expected.x.dtype} of shape {expected.shape} as in the "
                "run's own data"
            )
        ensemble = self.ensemble.to("cuda") if torch.cuda.is_available() else self.ensemble
        return collect(ensemble, split, classes=self.like.classes, costs=self.like.costs)
