"""The results of B-DISTIL as Markdown: prefixes, early prediction, times, the game. What render.py does not know of tables of its own."""

from __future__ import annotations

from typing import Any

NAMES = {
    "teacher": "teacher",
    "bdistil-potential": "B-DISTIL, potential",
    "bdistil-barrier": "B-DISTIL, barrier",
    "no-links": "B-DISTIL without links",
    "reshed": "RESHED",
    "no-reshed": "NO-RESHED",
    "kd-single": "one distilled network",
    "kd-independent": "independent distilled networks",
    "boosting": "residual boosting",
    "joint": "joint multi-exit",
}
Entry = dict[str, Any] | None


def prefixes(result: dict[str, Any]) -> str:
    """One row per method and prefix: mean ± standard deviation over the seeds; the full ensembles where methods have other numbers."""
    heads = ("", "networks", "MACs ÷ teacher's", "accuracy", "NLL", "KL to teacher", "agreement", "training MACs")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    before: list[str] = []
    for column, figures in result["figures"].items():
        method, _, prefix = column.partition("/")
        name = NAMES.get(method, method)
        cells = [
            f"{name}, all" if prefix == "full" else name,
            plain(figures.get("networks"), "{:.3g}", spread=False),
            "1" if method == "teacher" else plain(figures.get("macs_share"), "{:.3f}", spread=False),
            percent(figures.get("accuracy")),
            plain(figures.get("nll"), "{:.4f}"),
            plain(figures.get("teacher_kl"), "{:.4f}"),
            percent(figures.get("teacher_agreement")),
            amount(figures.get("training_macs")),
        ]
        if not (prefix == "full" and cells[1:] == before):  # where all seeds have as many students, they have just been told
            lines.append("| " + " | ".join(cells) + " |")
        before = cells[1:]
    return "\n".join(lines)


def early(result: dict[str, Any]) -> str:
    """One row per part and way to answer after it; the cascade's is last."""
    names = {
        "students": "mean of the students",
        "weighted": "weighted mean",
        "last": "last student",
        "teacher": "teacher, stopped there",
    }
    lines = ["| | after | MACs per input | accuracy | NLL |", "|---" * 5 + "|"]
    for column, figures in result["figures"].items():
        way, _, part = column.partition("/part")
        name = names.get(way, "cascade, share on average")
        cells = [name, percent(figures["sequence"], 0, spread=not part), amount(figures["macs"])]
        lines.append("| " + " | ".join([*cells, percent(figures["accuracy"]), plain(figures.get("nll"), "{:.4f}")]) + " |")
    return "\n".join(lines)


def latency(result: dict[str, Any]) -> str:
    """Milliseconds by seed, batch and network; PyTorch beside ONNX Runtime, with memory; the overhead of staged execution."""
    lines = ["| | | PyTorch, ms | ONNX Runtime, ms | activations | weights |", "|---" * 6 + "|"]
    for title, found in result["figures"].items():
        place = title
        names = [name.removeprefix("eager, ") for name in found["ms"] if name.startswith("eager, ")]
        for name in names:
            times = [found["ms"].get(f"{engine}, {name}") for engine in ("eager", "onnxruntime")]
            shown = ["–" if each is None else f"{each['median']:.3f}" for each in times]
            memory = [f"{found[key][name] / 1e3:,.0f} kB" for key in ("activation_bytes", "weight_bytes")]
            lines.append("| " + " | ".join([place, name, *shown, *memory]) + " |")
            place = ""
        over = found["overhead"]
        lines.append(f"| | staged ÷ students alone | {over['median']:.3f} × ({over['q1']:.3f}–{over['q3']:.3f}) | | | |")
    return "\n".join(lines)


def game(result: dict[str, Any]) -> str:
    """Seconds and peak memory of each call."""
    found = result["figures"]
    lines = [f"| {found['samples']:,} × {found['outputs']:,} | seconds | least–most | peak beside S and d |", "|---" * 4 + "|"]
    for name, each in found["calls"].items():
        spread = f"{each['least']:.2f}–{each['most']:.2f}"
        lines.append(f"| {name} | {each['seconds']:.2f} | {spread} | {each['peak_bytes'] / 1e6:.1f} MB |")
    return "\n".join(lines)


def percent(entry: Entry, digits: int = 2, spread: bool = True) -> str:
    """A share as per cent, ± standard deviation; – where there is none."""
    if entry is None or entry["mean"] is None:
        return "–"
    sd = "" if entry["sd"] is None or not spread else f" ± {100 * entry['sd']:.{digits}f}"
    return f"{100 * entry['mean']:.{digits}f} %{sd}"


def plain(entry: Entry, form: str, spread: bool = True) -> str:
    """A number, ± standard deviation; – where there is none."""
    if entry is None or entry["mean"] is None:
        return "–"
    return form.format(entry["mean"]) + ("" if entry["sd"] is None or not spread else " ± " + form.format(entry["sd"]))


def amount(entry: Entry) -> str:
    """A count with its unit."""
    if entry is None or entry["mean"] is None:
        return "–"
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if entry["mean"] >= size:
            return f"{entry['mean'] / size:.3g} {unit}"
    return f"{entry['mean']:.0f}"
