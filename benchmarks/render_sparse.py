"""The results of the sparse runtime as Markdown: what render.py does not know of tables of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

LONGEST = 5  # layers of a profile that are shown
PATTERNS, MEAN = "patterns, ", "geometric mean, "


def layers_front(result: dict[str, Any]) -> str:
    """One row per layer and batch: the fastest dense engine, and what each density takes and gains."""
    figures = result["figures"]
    names = list(next(iter(_single(figures)))[1]["speedup"])
    lines = _head(("", "fastest dense, ms", "", *(cell for name in names for cell in (f"{name}, ms", "speedup"))))
    for place, each in _single(figures):
        best = each["fastest"]
        cells = [number for name in names for number in (_ms(each, name), f"{each['speedup'][name]['median']:.2f} ×")]
        lines.append(_row((place, _ms(each, best), best, *cells)))
    for place, means in figures.items():
        if place.startswith(MEAN):
            cells = [cell for name in names for cell in ("", f"**{means[name]['median']:.2f} ×**")]
            lines.append(_row((f"**{place}**", "", "", *cells)))
    return "\n".join(lines)


def layers(result: dict[str, Any]) -> str:
    """The same with quartiles, GFLOP/s and forms; geometric means beside what was asked; patterns beside unstructured masks."""
    figures = result["figures"]
    peak = figures["peak"]["gflops"]
    lines = [layers_front(result), ""]
    lines += _head(("", "", "speedup", "quartiles", "GFLOP/s", f"share of {peak:.0f}", "loads per multiply-add", "form"))
    for place, each in _single(figures):
        lines += _forms(place, each, peak)
    lines += ["", *_head(("", "", "speedup", "required", ""))]
    for place, means in figures.items():
        lines += _judged(place, means) if place.startswith(MEAN) else []
    for place, each in _single(figures):
        lines += _judged(place, {name: gain for name, gain in each["speedup"].items() if gain["required"] is not None})
    lines += ["", *_head(("patterns", "", "ms", "÷ unstructured", "speedup over dense", "quartiles", "GFLOP/s", "form"))]
    for place, each in figures.items():
        if place.startswith(PATTERNS):
            lines += _patterns(place.removeprefix(PATTERNS), each)
    return "\n".join(lines)


def _judged(place: str, gains: dict[str, Any]) -> Iterator[str]:
    for name, each in gains.items():
        judged = "met" if each["median"] >= each["required"] else "**not met**"
        yield _row((place, name, f"{each['median']:.2f} ×", f"{each['required']:.2f} ×", judged))
        place = ""


def _single(figures: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Layers by themselves, unstructured."""
    return ((place, each) for place, each in figures.items() if "ms" in each and not place.startswith(PATTERNS))


def _forms(place: str, each: dict[str, Any], peak: float) -> Iterator[str]:
    for name, gain in each["speedup"].items():
        loads = "–" if gain["loads_per_fma"] is None else f"{gain['loads_per_fma']:.2f}"
        share = f"{100 * gain['gflops'] / peak:.0f} %"
        yield _row((place, name, *_gain(gain), f"{gain['gflops']:.1f}", share, loads, gain["choice"]))
        place = ""


def _patterns(place: str, each: dict[str, Any]) -> Iterator[str]:
    plain = each["ms"]["unstructured"]["median"]
    for name, gain in each["speedup"].items():
        share = f"{each['ms'][name]['median'] / plain:.2f}"
        yield _row((place, name, _ms(each, name), share, *_gain(gain), f"{gain['gflops']:.1f}", gain["choice"]))
        place = ""


def networks_front(result: dict[str, Any]) -> str:
    """One row per network, batch and sparse call."""
    lines = _head(("", "", "sparse, ms", "fastest dense, ms", "", "speedup", "quartiles", "required"))
    for place, each in result["figures"].items():
        for name, gain in each.get("speedup", {}).items():
            best = each["fastest"]
            required = f"{gain['required']:.2f} ×" + ("" if gain["median"] >= gain["required"] else ", **not met**")
            lines.append(_row((place, name, _ms(each, name), _ms(each, best), best, *_gain(gain), required)))
            place = ""
    return "\n".join(lines)


def networks(result: dict[str, Any]) -> str:
    """The same; errors; starts and memory; GFLOP/s, and the layers that take longest."""
    figures = result["figures"]
    lines = [networks_front(result), "", *_head(("relative error", "", "largest"))]
    for place, each in figures.items():
        if place.endswith(", correct"):
            name = place.removesuffix(", correct")
            for variant, errors in each.items():
                lines.append(_row((name, variant, f"{max(errors.values()):.1e}")))
                name = ""
    if any(place.endswith(", start") for place in figures):
        lines += ["", *_head(_START)]
    for place, each in figures.items():
        if place.endswith(", start"):
            lines += _starts(place.removesuffix(", start"), each)
    profiles = {place.removesuffix(", profile"): each for place, each in figures.items() if place.endswith(", profile")}
    if profiles:
        lines += ["", *_head(("one thread", "", "rows a job", "ms", "GFLOP/s", "of the peak", "longest layers: ms, GFLOP/s"))]
    for name, each in profiles.items():
        lines += _profile(name, each)
    return "\n".join(lines)


_START = (
    "start", "", "s, empty cache", "s, full cache", "live weights", "bytes per live weight, latency", "both layouts",
    "resident, MB, latency", "both layouts", "dense weights, MB",
)  # fmt: skip


def _starts(name: str, variants: dict[str, Any]) -> Iterator[str]:
    for variant, each in variants.items():
        seconds = (f"{each['seconds'][way]['all']:.2f}" for way in ("cold", "warm"))
        held = (f"{each['bytes_per_live'][layout]:.2f}" for layout in ("latency", "throughput"))
        rss = (f"{each['rss'][layout] / 1e6:.0f}" for layout in ("latency", "throughput"))
        yield _row((name, variant, *seconds, f"{each['live']:,}", *held, *rss, f"{each['dense_bytes'] / 1e6:.0f}"))
        name = ""


def _profile(name: str, found: dict[str, Any]) -> Iterator[str]:
    for variant, each in found.items():
        if variant == "peak_gflops":
            continue
        if each["reason"]:
            yield _row((name, variant, str(each["rows"]), "–", "–", "–", f"dense: {each['reason']}"))
        else:
            longest = sorted(each["lines"], key=lambda line: -line["seconds"])[:LONGEST]
            told = "; ".join(f"{line['kind']} {1e3 * line['seconds']:.2f}{_rate(line['gflops'])}" for line in longest)
            share = f"{100 * each['share_of_peak']:.0f} % of {found['peak_gflops']:.0f}" if each["gflops"] else "–"
            rate = "–" if each["gflops"] is None else f"{each['gflops']:.1f}"
            yield _row((name, variant, str(each["rows"]), f"{1e3 * each['seconds']:.2f}", rate, share, told))
        name = ""


def _rate(gflops: float | None) -> str:
    return "" if gflops is None else f", {gflops:.0f}"


def _ms(each: dict[str, Any], name: str) -> str:
    return f"{each['ms'][name]['median']:.4g}"


def _gain(gain: dict[str, Any]) -> tuple[str, str]:
    return f"{gain['median']:.2f} ×", f"{gain['q1']:.2f}–{gain['q3']:.2f}"


def _head(heads: Sequence[str]) -> list[str]:
    return [_row(heads), "|---" * len(heads) + "|"]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES = {
    "sparse-layers-1": ("Sparse runtime: single layers, one thread", layers),
    "sparse-layers-2": ("Sparse runtime: single layers, two threads", layers),
    "sparse-networks-1": ("Sparse runtime: networks, one thread", networks),
    "sparse-networks-2": ("Sparse runtime: networks, two threads", networks),
}
COMMANDS = {name: "sparse_runtime.py --what {} --threads {}".format(*name.split("-")[1:]) for name in TABLES}
IN_README = {"sparse-networks-1": networks_front, "sparse-networks-2": networks_front, "sparse-layers-1": layers_front}
