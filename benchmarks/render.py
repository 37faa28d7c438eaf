"""RESULTS.md and the marked blocks of README.md, written from results/*.json; --check fails where they disagree.

python benchmarks/render.py [--check]
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "RESULTS.md"
PERCENT = ("accuracy", "coverage_at_risk", "risk_met")
LABELS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE (15 bins)",
    "aurc": "AURC × 1000",
    "coverage_at_risk": "coverage at 1 % risk",
    "risk_met": "risk met on test",
    "parameters": "parameters",
    "macs": "MACs per input",
    "training_macs": "training MACs",
    "latency_ms": "ms per 1,000 inputs, batch 256",
}


def load(name: str) -> dict[str, Any]:
    """One benchmark's results."""
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def provenance(result: dict[str, Any]) -> str:
    """Where the figures come from, in one line."""
    machine, versions = result["machine"], result["versions"]
    seeds = f"seeds {result['seeds'][0]}–{result['seeds'][-1]}" if len(result["seeds"]) > 1 else f"seed {result['seeds'][0]}"
    threads = f", {machine['threads']} threads" if machine.get("threads") else ""
    return (
        f"Commit {result['commit']}, {result['date']}, {seeds}; {machine['processor']}, {machine['cores']} cores{threads}, Python "
        f"{machine['python']}, PyTorch {versions['torch']}, NumPy {versions['numpy']}."
    )


def table(result: dict[str, Any], keys: list[str] | None = None) -> str:
    """A table-* result as Markdown, mean ± standard deviation over the seeds."""
    columns = result["figures"]
    first = next(iter(columns.values()))
    wanted = [key for key in first if keys is None or key in keys or key.split(":")[0] in keys]
    order = [*LABELS][:6] + sorted(k for k in wanted if ":" in k) + [*LABELS][6:]
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key in [k for k in order if k in wanted]:
        cells = [cell(key, figures.get(key)) for figures in columns.values()]
        lines.append(f"| {label(key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label(key: str) -> str:
    """A figure's name for people."""
    figure, _, of = key.partition(":")
    return {"auroc": f"OOD AUROC, {of}", "fpr": f"OOD FPR at 95 % TPR, {of}"}.get(figure) or LABELS[key]


def cell(key: str, entry: dict[str, float | None] | None) -> str:
    """mean ± sd in the figure's unit."""
    if entry is None or entry["mean"] is None:
        return "–"
    mean, sd = entry["mean"], entry["sd"]
    if key in PERCENT or ":" in key:
        return f"{100 * mean:.2f} %" + ("" if sd is None else f" ± {100 * sd:.2f}")
    if key == "aurc":
        return f"{1000 * mean:.3f}" + ("" if sd is None else f" ± {1000 * sd:.3f}")
    if key in ("nll", "ece"):
        return f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}")
    if key == "latency_ms":
        return f"{mean:.1f}" + ("" if sd is None else f" ± {sd:.1f}")
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if mean >= size:
            return f"{mean / size:.3g} {unit}"
    return f"{mean:.0f}"


def deciding(result: dict[str, Any]) -> str:
    """Seconds by number of rows, and the peak at the largest."""
    sizes = list(next(iter(result["figures"].values())))
    lines = [
        "| | " + " | ".join(f"{int(s):,} rows" for s in sizes) + " | peak memory beyond the input |",
        "|---" * (len(sizes) + 2) + "|",
    ]
    for name, by_size in result["figures"].items():
        seconds = [f"{by_size[s]['seconds']:.3f} s" for s in sizes]
        lines.append(f"| `{name}` | " + " | ".join(seconds) + f" | {by_size[sizes[-1]]['peak_over_input']:.2f} × input |")
    return "\n".join(lines)


README_KEYS = [
    "accuracy",
    "nll",
    "ece",
    "coverage_at_risk",
    "risk_met",
    "auroc",
    "parameters",
    "macs",
    "training_macs",
    "latency_ms",
]
TABLES = {
    "table-digits": "Digits (8 classes; 8 and 9 held out as OOD)",
    "table-fashion-mnist": "Fashion-MNIST (OOD: KMNIST, notMNIST)",
}


def blocks() -> dict[str, str]:
    """The README's marked blocks by name."""
    found = {}
    for name in TABLES:
        result = load(name)
        found[name] = f"{table(result, README_KEYS)}\n\n{provenance(result)}"
    return found


def results() -> str:
    """The whole RESULTS.md."""
    parts = [
        "# Results",
        "",
        "Written by `benchmarks/render.py` from `benchmarks/results/*.json`; each part names the script that measured it.",
        "",
    ]
    for name, title in TABLES.items():
        result = load(name)
        parts += [f"## {title}", "", result["note"], "", table(result), "", provenance(result), ""]
    result = load("deciding")
    parts += ["## The deciding half", "", result["note"], "", deciding(result), "", provenance(result), ""]
    return "\n".join(parts)


def readme(text: str) -> str:
    """README.md with its marked blocks written anew."""
    for name, block in blocks().items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if begin not in text:
            sys.exit(f"README.md has no block {begin}")
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{block}\n{end}", text, flags=re.S)  # noqa: B023
    return text


def main() -> int:
    """Write, or check."""
    wanted = {README: readme(README.read_text(encoding="utf-8")), RESULTS: results()}
    if "--check" not in sys.argv[1:]:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if stale:
        print(f"{', '.join(stale)} disagree with benchmarks/results: run python benchmarks/render.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
