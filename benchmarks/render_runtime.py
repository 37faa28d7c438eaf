"""The results of bundles and the runtime as Markdown: what render.py does not know of tables of its own."""

from __future__ import annotations

from typing import Any

from render_distilled import amount, percent, plain

MB = 1e6
BARE = {"path": "from files", "bytes": "from bytes"}


def speed(result: dict[str, Any]) -> str:
    """The bundle beside the fastest PyTorch; gains of cascades; what the runtime adds to a call."""
    figures = {place: each for place, each in result["figures"].items() if place != "settings"}
    lines = speed_front(result).splitlines()
    gains = _head(("cascade", "", "MAC gain", "rows sent on", "wall-clock gain", "quartiles", "wall-clock ÷ MAC gain"))
    costs = _head(("overhead of a call", "stages", "µs", "quartiles", "bare sessions, µs"))
    for place, each in figures.items():
        if "us" in each:
            share, bare = each["us"], each["bare_us"]["median"]
            name = place.removeprefix("overhead, ")
            costs.append(
                _row([name, str(each["stages"]), f"{share['median']:.0f}", f"{share['q1']:.0f}–{share['q3']:.0f}", f"{bare:.0f}"])
            )
            continue
        for way, gain in each.get("gain", {}).items():
            told = (f"{each['mac_gain']:.2f} ×", f"{100 * each['passed']:.0f} %", f"{gain['median']:.2f} ×")
            gains.append(_row([place, way, *told, f"{gain['q1']:.2f}–{gain['q3']:.2f}", f"{gain['over_mac_gain']:.3f}"]))
    return "\n".join([*lines, "", *gains, "", *costs])


def speed_front(result: dict[str, Any]) -> str:
    """One row per network, batch and threads: both times, and the ratio."""
    lines = _head(("", "bundle, ms", "fastest PyTorch, ms", "", "bundle ÷ it", "quartiles", "bundle ÷ eager"))
    for place, each in result["figures"].items():
        if "ratio" not in each:
            continue
        best, share = each["fastest"]["pytorch"], each["ratio"]
        mine, theirs = each["ms"]["bundle"]["median"], each["ms"][best]["median"]
        eager = each["ratio_by_engine"].get("eager nchw")
        cells = (f"{mine:.4g}", f"{theirs:.4g}", best.removeprefix("pytorch, "), f"{share['median']:.3f}")
        lines.append(
            _row([place, *cells, f"{share['q1']:.3f}–{share['q3']:.3f}", "–" if eager is None else f"{eager['median']:.3f}"])
        )
    return "\n".join(lines)


def load(result: dict[str, Any]) -> str:
    """Milliseconds of loading by part, beside bare sessions; megabytes held."""
    parts = ("sessions", "files", "golden", "rest", "total")
    heads = [
        *(f"bundle: {part}" for part in parts),
        *(f"bare sessions, {said}" for said in BARE.values()),
        "sessions ÷ bare",
        "imports",
    ]
    times = _head(["load, ms", *heads])
    for name, each in result["figures"].items():
        seconds = each["seconds"]
        shown = [seconds[part]["bundle"]["median"] for part in parts] + [seconds["sessions"][way]["median"] for way in BARE]
        imports = sum(ways["bundle"]["median"] for ways in each["imports"].values())
        ratios = " / ".join(f"{each['sessions_over'][way]['median']:.3f}" for way in BARE)
        times.append(_row([name, *(f"{1e3 * value:.1f}" for value in shown), ratios, f"{1e3 * imports:.0f}"]))
    held = _head(
        ["memory, MB", "", "bundle", *(f"bare, {said}" for said in BARE.values()), "bundle ÷ bare", "own pages ÷ bare's"]
    )
    for name, each in result["figures"].items():
        place = name
        for moment in ("imported", "loaded", "predicted"):
            ways = [each["bytes"][moment]["rss"][way]["median"] / MB for way in ("bundle", *BARE)]
            ratios = [
                " / ".join(f"{each['memory_over'][moment][kind][way]['median']:.3f}" for way in BARE) for kind in ("rss", "uss")
            ]
            held.append(_row([place, moment, *(f"{size:.1f}" for size in ways), *ratios]))
            place = ""
    return "\n".join([*times, "", *held])


def size(result: dict[str, Any]) -> str:
    """Megabytes by network and kind, all files of the bundle."""
    lines = _head(("", "", "bundle, MB", "programs", "tickets", "all else", "parameters", "÷ dense ONNX file"))
    for network, kinds in result["figures"].items():
        place = network
        for name, each in kinds.items():
            bytes_ = (f"{each[f'{part}_bytes'] / MB:.2f}" for part in ("bundle", "onnx", "ticket", "other"))
            parameters = amount({"mean": each["parameters"], "sd": None})
            lines.append(_row([place, name, *bytes_, parameters, f"{each['over_dense']:.3f}"]))
            place = ""
    return "\n".join(lines)


def precision(result: dict[str, Any]) -> str:
    """One row per precision: quality, bytes, time; then what was refused."""
    heads = ("accuracy", "NLL", "ECE", "coverage", "risk", "labels of fp32", "MACs", "bytes")
    times = ("ms per 1,000, batch 1", "÷ fp32", "ms per 1,000, batch 256", "÷ fp32")
    lines = _head(("", *heads, *times))
    for name, each in result["figures"]["precisions"].items():
        quality = [percent(each.get("accuracy")), plain(each.get("nll"), "{:.4f}"), plain(each.get("ece"), "{:.4f}")]
        quality += [percent(each.get(key)) for key in ("coverage", "risk", "agreement")]
        spent = [amount(each.get("macs")), amount(each.get("bytes"))]
        for batch in (1, 256):
            spent += [plain(each.get(f"ms:{batch}"), "{:.1f}"), plain(each.get(f"over:{batch}"), "{:.3f}")]
        lines.append(_row([name, *quality, *spent]))
    return "\n".join([*lines, *(f"\n{name} is refused: {why}." for name, why in result["figures"]["refused"].items())])


def _head(heads: Any) -> list[str]:
    return [_row(heads), "|---" * len(heads) + "|"]


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES = {
    "runtime-speed": ("Bundles: prediction against PyTorch, gains of cascades, overhead", speed),
    "runtime-speed-batch1": ("Bundles: one row at a time, many calls in a row", speed),
    "runtime-load": ("Bundles: loading and memory", load),
    "runtime-size": ("Bundles: bytes", size),
    "runtime-precision": ("Bundles: lower precision, Fashion-MNIST", precision),
}
COMMANDS = {
    "runtime-speed": "runtime_speed.py",
    "runtime-speed-batch1": "runtime_speed.py --batches 1 --no-overhead --suffix=-batch1",
    "runtime-load": "runtime_load.py",
    "runtime-size": "runtime_size.py",
    "runtime-precision": "runtime_precision.py RUNS",
}
IN_README = {"runtime-speed": speed_front, "runtime-speed-batch1": speed_front}
