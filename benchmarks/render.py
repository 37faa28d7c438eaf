"""RESULTS.md and the marked blocks of README.md, written from results/*.json; --check fails where they disagree.

python benchmarks/render.py [--check]
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import render_cascades as cascades
import render_distilled as distilled
import render_runtime as runtime
import render_sparse as sparse

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
RESULTS = HERE / "RESULTS.md"
RECORDED = HERE / "results"
PERCENT = (
    "accuracy", "coverage_at_risk", "risk_met", "tpr_met", "reach", "interval_coverage",
    "accuracy_corrupted", "member_accuracy", "disagreement",
)  # fmt: skip
OVER = ("accuracy_over_single", "accuracy_corrupted_over_single", "nll_over_single", "nll_corrupted_over_single")
PLAIN = (
    "nll",
    "ece",
    "nll_tempered",
    "ece_tempered",
    "rmse",
    "crps",
    "ause",
    "temperature",
    "nll_corrupted",
    "ece_corrupted",
    "kl",
)
LABELS = {  # in the table's order
    "accuracy": "accuracy",
    "nll": "NLL",
    "ece": "ECE (15 bins)",
    "temperature": "temperature, fitted on validation",
    "nll_tempered": "NLL, temperature fitted",
    "ece_tempered": "ECE, temperature fitted",
    "accuracy_over_single": "accuracy over the single network's",
    "nll_over_single": "NLL over the single network's",
    "accuracy_corrupted": "accuracy, corrupted",
    "nll_corrupted": "NLL, corrupted",
    "ece_corrupted": "ECE, corrupted",
    "accuracy_corrupted_over_single": "accuracy, corrupted, over the single network's",
    "nll_corrupted_over_single": "NLL, corrupted, over the single network's",
    "member_accuracy": "accuracy of a member",
    "disagreement": "disagreement of two members",
    "kl": "KL of two members",
    "aurc": "AURC × 1000",
    "coverage_at_risk": "coverage at 1 % risk",
    "risk_met": "risk met on test",
    "reach": "rows sent on",
    "auroc": "OOD AUROC",
    "fpr": "FPR at 95 % TPR",
    "tpr_met": "TPR met on test",
    "parameters": "parameters",
    "macs": "MACs per input",
    "parameters_ratio": "parameters ÷ dense",
    "macs_ratio": "MACs per input ÷ dense",
    "training_macs": "training MACs",
    "training_macs_ratio": "training MACs ÷ dense",
    "latency_ms": "ms per 1,000 inputs, batch 256",
}


def load(name: str) -> dict[str, Any]:
    """One benchmark's results; where there are none, one line that says how to get them."""
    path = RECORDED / f"{name}.json"
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"{path} is missing: measure it with python benchmarks/{COMMANDS[name]}")
    except ValueError as error:
        sys.exit(f"{path} is not readable as JSON ({error}): measure it anew with python benchmarks/{COMMANDS[name]}")
    return found


def provenance(result: dict[str, Any]) -> str:
    """Where the figures come from, in one line; the commits of the training where they are others than the commit measured."""
    machine, versions = result["machine"], result["versions"]
    seeds = f"seeds {result['seeds'][0]}–{result['seeds'][-1]}" if len(result["seeds"]) > 1 else f"seed {result['seeds'][0]}"
    threads = f", {machine['threads']} threads" if machine.get("threads") else ""
    trained = result.get("trained_at", [result["commit"]])
    training = "" if set(trained) == {result["commit"]} else f" (trained at {', '.join(trained)})"
    packages = "".join(
        f", {label} {versions[key]}" for key, label in (("torch", "PyTorch"), ("numpy", "NumPy")) if key in versions
    )
    return (
        f"Commit {result['commit']}{training}, {result['date']}, {seeds}; {machine['processor']}, {machine['cores']} cores{threads}, "
        f"Python {machine['python']}{packages}."
    )


def table(result: dict[str, Any], keys: Sequence[str] | None = None) -> str:
    """A table-* result as Markdown, mean ± standard deviation over the seeds; ``keys`` picks figures, in :data:`LABELS`' order."""
    columns = result["figures"]
    shown = [*LABELS] if keys is None else [figure for figure in LABELS if figure in keys]
    there = list(dict.fromkeys(key for figures in columns.values() for key in figures))  # some figures are of some columns only
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for figure in shown:
        for key in sorted(key for key in there if key.split(":")[0] == figure):
            cells = [cell(key, figures.get(key)) for figures in columns.values()]
            lines.append(f"| {label(key)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def label(key: str) -> str:
    """A figure's name for people; what follows a colon is the OOD set."""
    figure, _, ood = key.partition(":")
    return LABELS[figure] + (f", {ood}" if ood else "")


def cell(key: str, entry: dict[str, Any] | None) -> str:
    """mean ± sd in the figure's unit, and of how many seeds where some have none; – where no seed has one."""
    if entry is None or entry["mean"] is None:
        return "–"
    mean, sd = entry["mean"], entry["sd"]
    some = "" if entry["n"] == entry["seeds"] else f" ({entry['n']} of {entry['seeds']} seeds)"
    if key in OVER:
        factor, digits, unit = (100, 2, " points") if key.startswith("accuracy") else (1, 4, "")
        return f"{factor * mean:+.{digits}f}{unit}" + ("" if sd is None else f" ± {factor * sd:.{digits}f}") + some
    if key.endswith("_ratio"):
        return f"{mean:.3f} ×" + some
    if key in PERCENT or ":" in key:
        return f"{100 * mean:.2f} %" + ("" if sd is None else f" ± {100 * sd:.2f}") + some
    if key == "aurc":
        return f"{1000 * mean:.3f}" + ("" if sd is None else f" ± {1000 * sd:.3f}") + some
    if key in PLAIN:
        return f"{mean:.4f}" + ("" if sd is None else f" ± {sd:.4f}") + some
    if key == "latency_ms":
        return f"{mean:.1f}" + ("" if sd is None else f" ± {sd:.1f}") + some
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if mean >= size:
            return f"{mean / size:.3g} {unit}" + some
    return f"{mean:.0f}" + some


def deciding(result: dict[str, Any]) -> str:
    """Seconds by number of rows, and the two ratios of the peak at the largest."""
    sizes = sorted(next(iter(result["figures"].values())), key=int)
    heads = [f"{int(size):,} rows" for size in sizes] + ["peak ÷ the call's own input", "peak ÷ one stage's outputs"]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for name, by_size in result["figures"].items():
        cells = [f"{by_size[size]['seconds']:.3f} s" for size in sizes]
        cells += [f"{by_size[sizes[-1]][ratio]:.2f} ×" for ratio in ("peak_over_own_input", "peak_over_outputs")]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def uci(result: dict[str, Any]) -> str:
    """One row per set and predictor: mean ± standard deviation over the folds, the published ones as they were."""
    shown = {"rmse": "RMSE", "nll": "NLL", "crps": "CRPS", "interval_coverage": "inside 90 % interval", "ause": "AUSE"}
    lines = ["| set | predictor | " + " | ".join(shown.values()) + " |", "|---" * (len(shown) + 2) + "|"]
    for column, figures in result["figures"].items():
        name, predictor = column.split(" ", 1)
        lines.append(f"| {name} | {predictor} | " + " | ".join(cell(key, figures.get(key)) for key in shown) + " |")
    return "\n".join(lines)


def times(result: dict[str, Any]) -> str:
    """Seconds per epoch, epochs, and their product in minutes."""
    lines = ["| recipe | s per epoch | epochs | minutes in all |", "|---|---|---|---|"]
    for name, kinds in result["figures"].items():
        for kind, each in kinds.items():
            spent = each["seconds_per_epoch"]
            lines.append(f"| `{name}-{kind}.yaml` | {spent:.1f} | {each['epochs']} | {spent * each['epochs'] / 60:.1f} |")
    return "\n".join(lines)


def spread(result: dict[str, Any]) -> str:
    """Plain figures: median, least and most of the repeats; shares in per cent."""
    lines = ["| | median | least | most |", "|---|---|---|---|"]
    for name, each in result["figures"].items():
        unit, factor = (" %", 100) if name.endswith("_share") else (" s", 1)
        cells = " | ".join(f"{factor * each[key]:.2f}{unit}" for key in ("median", "least", "most"))
        lines.append(f"| {name.removesuffix('_share').replace('_', ' ')} | {cells} |")
    return "\n".join(lines)


def shift(result: dict[str, Any]) -> str:
    """One row per column and severity, mean ± standard deviation over the seeds."""
    keys = ("accuracy", "nll", "ece", "coverage_at_risk", "risk_met")
    lines = ["| | severity | " + " | ".join(LABELS[key] for key in keys) + " |", "|---" * (len(keys) + 2) + "|"]
    for place, figures in result["figures"].items():
        column, severity = place.split("|")
        lines.append(f"| {column} | {severity} | " + " | ".join(cell(key, figures.get(key)) for key in keys) + " |")
    return "\n".join(lines)


def starts(result: dict[str, Any]) -> str:
    """Seconds of the first and of later starts, by number of files."""
    lines = ["| files | first start | later starts | the slowest later | its whole process |", "|---|---|---|---|---|"]
    for files, each in result["figures"].items():
        later = each["later"]
        cells = (each["first"]["seconds"], later["seconds"], later["most"], later["process_seconds"])
        lines.append(f"| {int(files):,} | " + " | ".join(f"{seconds:.2f} s" for seconds in cells) + " |")
    return "\n".join(lines)


def ratios(result: dict[str, Any]) -> str:
    """One row per comparison: median of the rounds' ratios with its quartiles, and the fastest way of each side in milliseconds."""
    lines = ["| | against | time ÷ its time | quartiles | fastest, ms |", "|---|---|---|---|---|"]
    for place, each in result["figures"].items():
        if "ratio" not in each:  # the settings
            continue
        found = {"single": each["ratio"]} if "median" in each["ratio"] else each["ratio"]
        best = each.get("fastest") or {
            kind: min(calls, key=lambda c: each["ms"][c]["median"]) for kind, calls in sides(each["ms"])
        }
        ways = "; ".join(f"{call} {each['ms'][call]['median']:.3g}" for call in best.values())
        for base, share in found.items():
            cells = (base, f"{share['median']:.2f}", f"{share['q1']:.2f}–{share['q3']:.2f}", ways)
            lines.append(f"| {place} | " + " | ".join(cells) + " |")
            place = ways = ""
        if "memory" in each:
            share = each["memory"]["packed_over_expected"]
            lines.append(f"| | peak memory expected | {share:.2f} | | {each['memory']['packed']['peak_mib']:.0f} MiB |")
    return "\n".join(lines)


def sides(times: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The calls "side, way" by side."""
    kinds = dict.fromkeys(call.partition(",")[0] for call in times)
    return [(kind, [call for call in times if call.startswith(f"{kind},")]) for kind in kinds]


README_KEYS = [
    "accuracy",
    "nll",
    "ece",
    "coverage_at_risk",
    "risk_met",
    "reach",
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
SPARSE_KEYS = [
    "accuracy", "nll", "ece", "accuracy_over_single", "nll_over_single", "accuracy_corrupted", "nll_corrupted", "auroc", "disagreement",
    "parameters_ratio", "macs_ratio", "training_macs_ratio",
]  # fmt: skip
SPARSE = {
    "tickets-fashion-mnist": "Tickets: Fashion-MNIST, few rows (OOD: KMNIST, notMNIST)",
    "tickets-dsa19": "Tickets: Daily and Sports Activities, unseen subjects (OOD: held-out activities)",
}
FIRST = {
    "first-cifar10": "CIFAR-10, ResNet-8 (OOD: CIFAR-100)",
    "first-dsa19": "Daily and Sports Activities, 1-D network, unseen subjects",
    "first-speech12": "Spoken commands, ResNet-8 on log-mel spectrograms, unseen speakers",
}
OTHERS: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "first-times": ("Time of these trainings", times),
    "uci": ("UCI regression, ten folds", uci),
    "shift-digits": ("Shift: digits under 15 corruptions", shift),
    "shift-cifar10": ("Shift: CIFAR-10 under 15 corruptions", shift),
    "input-pipeline": ("Input pipeline", spread),
    "input-folder": ("An image folder of 10,000 files", starts),
    "deciding": ("The deciding half", deciding),
    "packed-inference": ("Packed networks: inference", ratios),
    "packed-inference-batch1": ("Packed networks: inference of one image, more rounds", ratios),
    "packed-training": ("Packed networks: a training step", ratios),
    "tickets-overhead": ("Sparse training: a training step", ratios),
    "bdistil-digits": ("B-DISTIL: digits", distilled.prefixes),
    "bdistil-fashion-mnist": ("B-DISTIL: Fashion-MNIST, few rows", distilled.prefixes),
    "bdistil-dsa19": ("B-DISTIL: Daily and Sports Activities, unseen subjects", distilled.prefixes),
    "bdistil-early-dsa19": ("B-DISTIL: early prediction", distilled.early),
    "bdistil-latency-fashion-mnist": ("B-DISTIL: milliseconds and memory, Fashion-MNIST", distilled.latency),
    "bdistil-latency-dsa19": ("B-DISTIL: milliseconds and memory, Daily and Sports Activities", distilled.latency),
    "bdistil-game": ("B-DISTIL: the game on 50,000 × 1000 outputs", distilled.game),
    **cascades.TABLES,
    **runtime.TABLES,
    **sparse.TABLES,
}
IN_README = {
    "bdistil-fashion-mnist": distilled.prefixes,
    "bdistil-dsa19": distilled.prefixes,
    **cascades.IN_README,
    **runtime.IN_README,
    **sparse.IN_README,
}
COMMANDS = {
    **{name: f"first_runs.py {name.removeprefix('first-')} FILE" for name in FIRST},
    "first-times": "first_runs.py NAME FILE --time",
    "uci": "uci.py DIR",
    "shift-digits": "shift.py digits",
    "shift-cifar10": "shift.py cifar10 --runs RUN …",
    "input-pipeline": "input_pipeline.py DIR",
    "input-folder": "input_folder.py",
    "table-digits": "tables.py --digits",
    "table-fashion-mnist": "tables.py --idx DIR --ood NAME=FILE …",
    "deciding": "deciding.py",
    "packed-inference": "packed_inference.py",
    "packed-inference-batch1": "packed_inference.py --batches 1 --repeats 41 --suffix=-batch1",
    "packed-training": "packed_training.py",
    "tickets-fashion-mnist": "tickets_table.py fashion-mnist --root DIR --ood NAME=FILE …",
    "tickets-dsa19": "tickets_table.py dsa19 FILE",
    "tickets-overhead": "tickets_overhead.py",
    "bdistil-digits": "bdistil_table.py digits",
    "bdistil-fashion-mnist": "bdistil_table.py fashion-mnist --path DIR",
    "bdistil-dsa19": "bdistil_table.py dsa19 --path FILE",
    "bdistil-early-dsa19": "bdistil_early.py dsa19 FILE",
    "bdistil-latency-fashion-mnist": "bdistil_latency.py fashion-mnist --path DIR",
    "bdistil-latency-dsa19": "bdistil_latency.py dsa19 --path FILE",
    "bdistil-game": "bdistil_game.py",
    **cascades.COMMANDS,
    **runtime.COMMANDS,
    **sparse.COMMANDS,
}


def blocks() -> dict[str, str]:
    """The README's marked blocks by name."""
    found = {}
    for name in TABLES | SPARSE:
        result = load(name)
        found[name] = f"{table(result, README_KEYS if name in TABLES else SPARSE_KEYS)}\n\n{provenance(result)}"
    for name, body in IN_README.items():
        result = load(name)
        found[name] = f"{body(result)}\n\n{provenance(result)}"
    return found


def results() -> str:
    """The whole RESULTS.md."""
    parts = [
        "# Results",
        "",
        "Written by `benchmarks/render.py` from `benchmarks/results/*.json`; each part names the script that measured it.",
        "",
    ]
    for name, title in (TABLES | SPARSE | FIRST).items():
        result = load(name)
        parts += [f"## {title}", "", result["note"], "", table(result), "", provenance(result), ""]
    for name, (title, body) in OTHERS.items():
        result = load(name)
        parts += [f"## {title}", "", result["note"], "", body(result), "", provenance(result), ""]
    return "\n".join(parts)


def readme(text: str) -> str:
    """README.md with its marked blocks written anew."""
    for name, block in blocks().items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        if not 0 <= text.find(begin) < text.find(end):
            sys.exit(f"README.md has no block {begin} … {end}: put both lines where the table belongs")
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: f"{begin}\n{block}\n{end}", text, flags=re.S)  # noqa: B023
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail where the files disagree with the results")
    check = parser.parse_args(argv).check
    wanted = {README: readme(README.read_text(encoding="utf-8")), RESULTS: results()}
    if not check:
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path.name for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if stale:
        print(f"{', '.join(stale)} disagree with benchmarks/results: run python benchmarks/render.py", file=sys.stderr)
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
