"""The model card of a bundle, as markdown: what it is, how it decides, what was measured, and where its word ends.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv 1810.03993), §4: details, intended use, metrics, evaluation data,
caveats. Every figure is from test rows, which chose nothing; where there are none the card says so and shows no table. Equal facts give
equal text. The digest is not in it: it covers the card.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from quorate.cascade import target as targets
from quorate.cascade.guarantee.certificate import Certificate
from quorate.cascade.policy import Policy, StagePolicy
from quorate.outputs import Outputs
from quorate.runtime.measuring import measured, regressed
from quorate.runtime.program import Port, Ports

SHOWN = 20  # class names
LONGEST = 300  # characters of a value from elsewhere
UNSURE = {
    "msp": "1 − the largest probability",
    "entropy": "the entropy of the probabilities in nats",
    "margin": "1 − the gap between the two largest probabilities",
    "energy": "minus the log-sum-exp of the logits",
    "max_logit": "minus the largest logit",
    "mutual_information": "the entropy of the mean less the mean entropy of the members, in nats",
    "variation_ratio": "the share of members that don't vote for the winner",
}
HEADS = {
    "accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "aurc": "AURC", "coverage": "accepted", "risk": "wrong among these",
    "cost_share": "mean cost", "reach": "rows that come this far", "rmse": "RMSE", "macs": "MACs", "agreement": "same label as fp32",
}  # fmt: skip
SHARES = ("accuracy", "ece", "coverage", "risk", "cost_share", "reach", "agreement")
DECIDED = ("accuracy", "nll", "ece", "aurc", "coverage", "risk", "cost_share", "reach")


def card(
    *,
    name: str,
    stages: Sequence[Ports],
    input: Port,
    policy: Policy | None,
    classes: Sequence[str] | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    watch: Mapping[str, Any] | None = None,
    precision: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
    sparse: Sequence[str] = (),
    test: Outputs | None = None,
) -> str:
    """The card's text.

    Args:
        name, stages, input, policy, classes, preprocessing, watch, precision, provenance: as :class:`quorate.runtime.manifest.Manifest`
            has them; ``precision`` as :func:`quorate.export.refit.lowered` gives it.
        sparse: names of the stages of which only the live weights are stored.
        test: labelled Outputs of the bundle's programs on rows that neither trained, chose nor certified anything.

    Raises:
        ValueError: test Outputs without labels, or that are not of these stages.
    """
    if test is not None and test.names != tuple(ports.stage for ports in stages):
        raise ValueError(
            f"test Outputs are of {list(test.names)}: expected those of the bundle's stages, {[p.stage for p in stages]}"
        )
    parts = [
        f"# {text(name)}", _what(stages, input, policy, classes, sparse), _use(policy, classes, preprocessing), *_decides(policy),
        "## Measured", _measured(policy, test),
    ]  # fmt: skip
    if precision is not None:
        parts += ["## Lower precision", *_precision(precision)]
    parts += ["## Limits", _limits(stages, policy, watch), "## Load and verify", LOADING]
    parts += ["## Provenance", _listed(provenance or {}) or "Nobody wrote down where it comes from."]
    return "\n\n".join(parts) + "\n"


MEAN_COST = "Mean cost: share of what all stages cost together, per row."
ABSTAINS = (
    "It names the class of an input, or abstains where it is not sure enough: rows that are not accepted are meant for somebody else to "
    "decide."
)
EXPLAINED = (
    "The last line of several is the cascade; above it all rows are decided after these stages, accepted by the τ there. NLL in nats; ECE "
    "over 15 bins; AURC: the mean share of errors over all coverages, lower is better."
)
ELSEWHERE = (
    "All of the above holds for inputs drawn as its data were. Of other inputs it says nothing, and being unsure is no sure sign of "
    "them."
)
WATCHED = (
    "The runtime can watch the share of rows that each stage sends on; an alarm says that inputs have changed, no alarm does not say that "
    "they have not."
)
MANY = (
    "The certificate is about the share of many inputs, not about one input, class or group. It ends with any change: windows that follow "
    "a stream, a cost cap, other thresholds, members or precision, inputs from elsewhere."
)
LOADING = """```python
import quorate

runtime = quorate.load_bundle("BUNDLE")  # reads no code, checks every file's hash and runs the golden inputs
prediction = runtime.predict(x)  # label, probs, uncertainty, accepted, stage, macs per row
```

`quorate inspect BUNDLE` shows it and its digest; `load_bundle("BUNDLE", digest="sha256:…")` takes no other bundle than the one whose digest
was told by a trusted way."""


# --- sections ---


def _what(
    stages: Sequence[Ports], input: Port, policy: Policy | None, classes: Sequence[str] | None, sparse: Sequence[str]
) -> str:
    count = f"{len(stages)} stages, each" if len(stages) > 1 else "one stage,"
    task = (
        "regression" if policy is None else "classification" if classes is None else f"classification into {len(classes)} classes"
    )
    total = sum(ports.macs or 0.0 for ports in stages)
    rows = [
        (
            text(ports.stage),
            str(ports.members.shape[0] if len(ports.members.shape) == 2 else 1),
            ports.precision,
            "–" if ports.macs is None else f"{ports.macs:,.0f}",
            "–" if ports.macs is None or not total else _percent(ports.macs / total),
            ", ".join(map(text, ports.reads)) or "–",
        )
        for ports in stages
    ]
    shape = ", ".join("any" if size is None else str(size) for size in input.shape)
    return f"An ensemble for {task} in {count} an ONNX program. A row of input is {input.dtype} ({shape}).\n\n" + "\n\n".join(
        [table(("stage", "members", "precision", "MACs per row", "share", "reads of earlier stages"), rows), *_dense(sparse)]
    )


def _dense(sparse: Sequence[str]) -> list[str]:
    if not sparse:
        return []
    return [
        f"Of {', '.join(map(text, sparse))} only live weights are stored, and their MACs are those of kernels that skip dead ones. "
        "Where `quorate[sparse]` is installed they run on such kernels on a CPU, unless dense ones are faster; else ONNX Runtime runs "
        "them dense, and they take the time of dense networks of their structure, not of their MACs."
    ]


def _use(policy: Policy | None, classes: Sequence[str] | None, preprocessing: Mapping[str, Any] | None) -> str:
    lines = ["## Intended use"]
    abstains = policy is not None and any(stage.tau is not None for stage in policy.stages)
    if policy is None:
        lines.append("It predicts numbers for inputs of the kind that it was trained on.")
    else:
        lines.append(
            ABSTAINS
            if abstains
            else "It names the class of every input and never abstains; how sure it is, the uncertainty says."
        )
    if classes is not None:
        more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
        wrong = "gets one of them, or is abstained from" if abstains else "gets one of them"
        lines.append(f"Classes: {', '.join(map(text, classes[:SHOWN]))}{more}. An input of no such class {wrong}.")
    if preprocessing:
        lines.append(f"Its inputs:\n\n{_listed(preprocessing)}")
    return "\n\n".join(lines)


def _decides(policy: Policy | None) -> list[str]:
    if policy is None:
        return []
    lines = [
        f"Uncertainty U (higher = less sure): `{policy.uncertainty}`, {UNSURE[policy.uncertainty]}, of the members joined so far "
        f"({policy.combine})."
    ]
    lines.append("\n".join(f"{k}. {_stage(stage, policy, k)}" for k, stage in enumerate(policy.stages, 1)))
    if policy.target is not None:
        lines.append(f"Windows and thresholds were fitted on validation rows for `{policy.target}`.")
    lines.append(_certified(policy))
    return ["## How it decides", *lines]


def _stage(stage: StagePolicy, policy: Policy, k: int) -> str:
    said = f"**{text(stage.name)}**"
    if k > 1:
        said += ", joined with the members before" if stage.join == "mean" else ", in place of the members before"
    if stage.temperature != 1.0:
        said += f", at temperature {_number(stage.temperature)}"
    if stage.rate is not None:
        said += f": {_percent(stage.rate)} of the rows, drawn at random, go on; the others are decided"
    elif stage.window == (None, None):
        return f"{said}: every row goes on."
    elif stage.window is not None:
        said += f": goes on where {_window(*stage.window)}; else decided"
    elif k < len(policy.stages):
        said += ": decides all, no row goes on"
    else:
        said += ": decides"
    return said + (", always accepted." if stage.tau is None else f", accepted where U ≤ {_number(stage.tau)}.")


def _window(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return f"U ≤ {_number(high)}" if high is not None else f"U ≥ {_number(low)}" if low is not None else "U is anything"
    return f"{_number(low)} ≤ U ≤ {_number(high)}"


def _certified(policy: Policy) -> str:
    if policy.certificate is None:
        return "It has no certificate: nothing is guaranteed, not even on inputs like those it was fitted on."
    c = Certificate.from_dict(policy.certificate)
    rows = f"{c.rows:,} calibration rows, which chose nothing else"
    claim = _claim(c, policy.target)
    if not c.feasible:
        more = (
            "no number of rows like these would" if c.needed is None else f"about {c.needed:,} more would, if they are like these"
        )
        return f"Not certified: {rows}, did not show that {claim} ({more}). Thresholds are those of the validation rows."
    sure = "in expectation over" if c.delta is None else f"with probability at least {_percent(1 - c.delta)} over"
    bound = "" if c.bound is None else f", bound {_share(c, c.bound)}"
    met = "" if c.observed is None else f" On them: {_share(c, c.observed)}{bound}, {_percent(c.coverage)} accepted."
    limits = [
        f"Of rows called class {text(part.name)}: at most {_share(c, part.target)}."
        for part in c.classes
        if part.target is not None
    ] + [f"OOD set {text(part.name)}: {_percent(part.risk)} accepted, bound {_percent(part.bound)}." for part in c.outliers]
    return " ".join([f"Certified from {rows}: {sure} their draw, {claim}.{met}", *limits, f"It rests on: {text(c.assumption)}."])


def _claim(c: Certificate, target: str | None) -> str:
    wrong = "are wrong" if c.costs is None else "is their mean cost of errors"
    if c.kind == "fpr":
        return f"at least {_percent(c.target)} of inputs like the calibration rows are accepted"
    if c.kind == "deviation":
        return f"at most {_percent(c.target)} of inputs are decided otherwise than by all stages together"
    whose = "accepted inputs of the mix with OOD" if c.kind == "scod" else "accepted inputs"
    if target is not None and targets.parse(target).figure == "accuracy":
        whose = "inputs"
    level = c.bound if c.target is None else c.target
    return (
        f"at most {_share(c, level)} of the {whose} {wrong}"
        if c.costs is None
        else f"at most {_share(c, level)} {wrong}, of the {whose}"
    )


def _measured(policy: Policy | None, test: Outputs | None) -> str:
    if test is None:
        return (
            "**There were no test rows.** Nothing that this card could say of its quality would be from rows that chose nothing."
        )
    if policy is None:
        rows, keys = regressed(test), ["rmse", *(["nll"] if test.kind == "gaussian" else []), "cost_share"]
    else:
        rows, keys = measured(policy, test), list(DECIDED)
    body = [[text(name), *(_figure(key, found[key]) for key in keys)] for name, found in rows]
    shown = table(("stages", *(HEADS[key] for key in keys)), body)
    about = f"On {test.n:,} rows given as test rows; the figures are fair if these chose and certified nothing. {MEAN_COST}\n\n{shown}"
    if policy is None:
        return about
    return f"{about}\n\n{EXPLAINED}"


def _precision(change: Mapping[str, Any]) -> list[str]:
    stages = [
        (
            text(name), s["precision"], f"{s['bytes_before']:,} → {s['bytes_after']:,}",
            *(f"{s['latency_ms_before'][n]:.3g} → {s['latency_ms_after'][n]:.3g}" for n in s["latency_ms_before"]),
        )
        for name, s in change["stages"].items()
    ]  # fmt: skip
    batches = next(iter(change["stages"].values()))["latency_ms_before"]
    heads = ("stage", "precision", "bytes", *(f"ms for {n} row{'s' * (n != '1')}" for n in batches))
    parts = [
        table(heads, stages),
        f"Policy: {text(change['policy'])}. Times: median of a call in one thread, on the machine it was made on.",
    ]
    for split in ("validation", "test"):
        found = change[split]
        if found is not None:
            keys = [key for key in found["before"] if key in HEADS and found["before"][key] is not None]
            rows = [(HEADS[key], _figure(key, found["before"][key]), _figure(key, found["after"][key])) for key in keys]
            if found["agreement"] is not None:
                rows.append((HEADS["agreement"], "", _figure("agreement", found["agreement"])))
            chose = ", which the new thresholds were chosen on" if split == "validation" else ""
            parts.append(f"{found['rows']:,} {split} rows{chose}:\n\n{table(('figure', 'fp32', 'lowered'), rows)}")
    if change["test"] is None:
        parts.append("There were no test rows: how much was lost on other rows nobody has measured.")
    return parts


def _limits(stages: Sequence[Ports], policy: Policy | None, watch: Mapping[str, Any] | None) -> str:
    lines = [ELSEWHERE]
    if policy is not None and len(policy.stages) > 1:
        lines.append(WATCHED if watch else "It has no drift watch: that inputs have changed would not be noticed.")
    if policy is not None and policy.certificate is not None:
        lines.append(MANY)
    batched = [text(ports.stage) for ports in stages if ports.precision == "int8-dynamic"]
    if batched:
        lines.append(
            f"Stages {', '.join(batched)} take their scales from all rows of a batch: a row's answer depends a little on its neighbours."
        )
    return "\n".join(f"- {line}" for line in lines)


# --- words ---


def text(value: Any) -> str:
    """Text from elsewhere in one line, without meaning to markdown or HTML."""
    said = " ".join(str(value).split())
    said = said if len(said) <= LONGEST else f"{said[:LONGEST]}…"
    said = said.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{char}" if char in "\\`*_[]|#~!" else char for char in said)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table of cells that are escaped already."""
    lines = ["| " + " | ".join(row) + " |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:]])


def _listed(values: Mapping[str, Any]) -> str:
    return "\n".join(
        f"- {text(key)}: {text(value if isinstance(value, str) else json.dumps(value, sort_keys=True))}"
        for key, value in values.items()
    )


def _figure(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    return _percent(value) if key in SHARES else _number(value)


def _number(value: float) -> str:
    return "∞" if value == math.inf else f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"


def _share(c: Certificate, value: float | None) -> str:
    """A risk: a share, or a mean cost where errors have costs."""
    return "–" if value is None else _number(value) if c.costs is not None else _percent(value)
