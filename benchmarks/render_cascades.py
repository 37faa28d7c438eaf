"""The results of window cascades as Markdown: what render.py does not know of tables of its own."""

from __future__ import annotations

from typing import Any

from render_distilled import amount, percent, plain

WAYS = {
    "single": "best single network",
    "one-threshold": "best pair, one threshold",
    "paper": "best pair, paper's window",
    "planner": "planner",
    "service": "one service",
}
Figures = dict[str, dict[str, Any]]


def imagenet(result: dict[str, Any]) -> str:
    """Accuracy by limit and way; then coverage at the risk, as it stands and certified."""
    figures: dict[str, Figures] = result["figures"]
    lines = [imagenet_front(result), ""]
    met = ("risk met", "splits above 5 %")
    heads = (
        "GMACs at most",
        "",
        "GMACs met",
        "coverage",
        *met,
        "coverage, threshold read on test rows",
        "certified coverage",
        *met,
    )
    lines += _head(heads)
    before = ""
    for place, each in sorted(figures.items(), key=_place):
        target, way, limit = place.split("|")
        if target != "coverage":
            continue
        keys = ("coverage", "risk", "exceeded", "read", "certified_coverage", "certified_risk", "certified_exceeded")
        cells = [percent(each.get(key), 0 if key.endswith("exceeded") else 2, not key.endswith("exceeded")) for key in keys]
        lines.append(_row(["" if limit == before else limit, WAYS[way], plain(each.get("cost"), "{:.2f}", spread=False), *cells]))
        before = limit
    return "\n".join(lines)


def imagenet_front(result: dict[str, Any]) -> str:
    """One row per limit: accuracy of every way, and certified coverage at 5 % risk of the best single network and the planner."""
    figures: dict[str, Figures] = result["figures"]
    limits = sorted({place.split("|")[2] for place in figures}, key=float)
    accuracy = ("single", "one-threshold", "planner")
    certified = ("single", "paper", "planner")
    heads = [
        "GMACs at most",
        *(f"accuracy, {WAYS[way]}" for way in accuracy),
        *(f"certified coverage, {WAYS[way]}" for way in certified),
    ]
    lines = _head(heads)
    for limit in limits:
        cells = [percent(figures.get(f"accuracy|{way}|{limit}", {}).get("accuracy")) for way in accuracy]
        cells += [percent(figures.get(f"coverage|{way}|{limit}", {}).get("certified_coverage")) for way in certified]
        lines.append(_row([limit, *cells]))
    return "\n".join(lines)


def _place(entry: tuple[str, Figures]) -> tuple[float, int]:
    """By limit, then as in :data:`WAYS`."""
    _, way, limit = entry[0].split("|")
    return float(limit), list(WAYS).index(way)


def frugal(result: dict[str, Any]) -> str:
    """Accuracy, price and saving of each service, of every way at its limits, and where it is as accurate as the best service."""
    lines = _head(("", "price at most ÷ the best service's", "accuracy", "dollars per 10,000", "saving"))
    for place, each in result["figures"].items():
        way, _, limit = place.partition("|")
        name = limit if way == "service" else "best single service" if way == "single" else WAYS[way]
        where = "as accurate on validation rows" if limit == "matching" else "" if way == "service" else limit
        cells = (percent(each.get("accuracy")), plain(each.get("cost"), "{:.2f}"), percent(each.get("saving"), 1))
        lines.append(_row([name, where, *cells]))
    return "\n".join(lines)


def fashion(result: dict[str, Any]) -> str:
    """One row per column, all figures."""
    shown = {
        "accuracy": "accuracy", "coverage_at_risk": "coverage at 2 % risk", "risk_met": "risk met",
        "risk_at_coverage": "risk at 80 % coverage",
        "fpr:kmnist": "FPR at 95 % TPR, KMNIST", "fpr:notmnist": "notMNIST", "scod_risk": "SCOD risk",
    }  # fmt: skip
    lines = _head(["", *shown.values(), "MACs", "ms per 1,000 inputs"])
    for name, each in result["figures"].items():
        cells = [percent(each.get(key)) for key in shown]
        lines.append(_row([name, *cells, amount(each.get("macs")), plain(each.get("latency_ms"), "{:.1f}")]))
    return "\n".join(lines)


def executed(result: dict[str, Any]) -> str:
    """Gains by case and way, and the overhead."""
    lines = _head(("", "", "MAC gain", "wall-clock gain", "quartiles", "wall-clock ÷ MAC gain", "overhead per batch and stage"))
    for name, each in result["figures"].items():
        place, overhead = name, f"{each['overhead_us']:.0f} µs"
        for way, gain in each["gain"].items():
            quartiles = f"{gain['q1']:.2f}–{gain['q3']:.2f}"
            share = f"{gain['over_mac_gain']:.3f}"
            lines.append(_row([place, way, f"{each['mac_gain']:.2f} ×", f"{gain['median']:.2f} ×", quartiles, share, overhead]))
            place = overhead = ""
    return "\n".join(lines)


def windows(result: dict[str, Any]) -> str:
    """Rows sent on and deviations by pair, target and way; then what conformal control keeps."""
    heads = ("", "", "sent on, validation", "sent on, test", "saving, test", "deviation, validation", "deviation, test")
    keys = ("validation_passed", "test_passed", "test_saving", "validation_deviation", "test_deviation")
    lines, kept = _head(heads), _head(("conformal control, α = .005", "decisions kept, test", "sent on, test"))
    for place, each in result["figures"].items():
        name, _, way = place.partition("|")
        if way == "conformal":
            kept.append(_row([name, percent(each.get("kept"), 3), percent(each.get("test_passed"))]))
        else:
            lines.append(_row([name, way, *(percent(each.get(key)) for key in keys)]))
    return "\n".join([*lines, "", *kept])


def scale(result: dict[str, Any]) -> str:
    """Seconds by number of rows, growth, and the peak at the most."""
    figures = result["figures"]
    sizes = sorted(next(iter(figures.values())), key=int)
    lines = _head(
        ["", *(f"{int(size):,} rows" for size in sizes), "per window", "growth of the last step", "peak ÷ one stage's outputs"]
    )
    for name, by_rows in figures.items():
        last, before = by_rows[sizes[-1]], by_rows[sizes[-2]]
        window = "–" if last["per_window"] is None else f"{last['per_window']:.2f} s"
        growth = f"× {last['seconds'] / before['seconds']:.1f}"
        cells = [f"{by_rows[size]['seconds']:.3f} s" for size in sizes]
        lines.append(_row([name, *cells, window, growth, f"{last['peak_over_outputs']:.2f} ×"]))
    return "\n".join(lines)


def planner(result: dict[str, Any]) -> str:
    """Seconds and memory per target, and the gap between both searches."""
    found = result["figures"]
    lines = _head(("target", "members", "rows", "seconds", "rise of the process's peak memory"))
    for target, each in found["large"].items():
        cells = [
            target,
            str(each["members"]),
            f"{each['rows']:,}",
            f"{each['seconds']:.1f}",
            f"{each['peak_bytes'] / 1e6:.0f} MB",
        ]
        lines.append(_row(cells))
    lines += ["", *_head(("beam against every chain", "pools", "median gap", "largest gap"))]
    for target, each in found["gap"].items():
        lines.append(_row([target, str(each["pools"]), f"{100 * each['median']:.2f} %", f"{100 * each['most']:.2f} %"]))
    return "\n".join(lines)


def guarantee(result: dict[str, Any]) -> str:
    """Violations and coverage by way and calibration rows; the mean deviation; alarms."""
    found = result["figures"]
    sizes = list(found["selective"])
    tables = []
    for part, what, gets in (("selective", "risk ≤ 5 %", "coverage"), ("fpr", "TPR ≥ 95 %, and the FPR's bound", "OOD rejected")):
        lines = _head([what, *(f"n = {int(n):,}: wrong, {gets}" for n in sizes)])
        for name in found[part][sizes[0]]:
            lines.append(_row([name, *(_violations(found[part][n][name]) for n in sizes)]))
        tables += [*lines, ""]
    tables += _head(["conformal control, α = .005", *(f"n = {int(n):,}" for n in sizes)])
    kept = [found["deviation"][n] for n in sizes]
    tables.append(
        _row(["mean deviation over draws", *(f"{100 * d['mean']:.3f} % ± {100 * d['standard_error']:.3f}" for d in kept)])
    )
    tables.append(_row(["draws above α", *(f"{100 * d['beyond']:.0f} %" for d in kept)]))
    names = {"null": "no drift, the interval", "estimate": "no drift, the estimated rate", "drifted": "drift, the interval"}
    tables += ["", *_head(("drift watch", "runs with an alarm", "inputs until then, median"))]
    for key, each in found["drift"].items():
        after = "–" if each["median_inputs"] is None else f"{each['median_inputs']:,.0f}"
        tables.append(
            _row([names[key], f"{100 * each['alarms']:.1f} % ({100 * each['low']:.1f}–{100 * each['high']:.1f})", after])
        )
    return "\n".join(tables)


def _violations(each: dict[str, float]) -> str:
    wrong = f"{100 * each['violations']:.1f} % ({100 * each['low']:.1f}–{100 * each['high']:.1f})"
    return f"{wrong}, {each['coverage']:.3f} ± {each['coverage_sd']:.3f}"


def _head(heads: Any) -> list[str]:
    return [_row(heads), "|---" * len(heads) + "|"]


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


TABLES = {
    "cascade-imagenet": ("Cascades: 14 networks on ImageNet", imagenet),
    "cascade-frugal": ("Cascades: four priced services", frugal),
    "cascade-fashion": ("Cascades: Fashion-MNIST (OOD: KMNIST, notMNIST)", fashion),
    "cascade-executed": ("Cascades: wall-clock against MACs", executed),
    "cascade-windows": ("Cascades: optimal windows and conformal control", windows),
    "cascade-scale": ("Cascades: fitting and certification by number of rows", scale),
    "cascade-planner": ("Cascades: planning over large pools", planner),
    "cascade-guarantee": ("Cascades: the guarantees, simulated", guarantee),
}
COMMANDS = {
    "cascade-imagenet": "cascade_imagenet.py DIR",
    "cascade-frugal": "cascade_frugal.py FILE",
    "cascade-fashion": "cascade_fashion.py RUNS --time",
    "cascade-executed": "cascade_executed.py RUNS",
    "cascade-windows": "cascade_windows.py --runs RUNS --imagenet DIR",
    "cascade-scale": "cascade_scale.py",
    "cascade-planner": "cascade_planner.py",
    "cascade-guarantee": "cascade_guarantee.py",
}
IN_README = {"cascade-imagenet": imagenet_front, "cascade-fashion": fashion}
