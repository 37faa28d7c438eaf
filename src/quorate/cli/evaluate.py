"""``quorate evaluate RUN…``: the table of saved runs and of the policies in them, under corruptions too; or ``--certify``.

Needs no PyTorch, but for corruptions that were not run yet and for raw inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from quorate.cli.parse import parse, parser

if TYPE_CHECKING:
    from quorate.report import Column
    from quorate.report.shift import Shift
    from quorate.runs import Run


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.files import write_json, write_text
    from quorate.report import as_json, columns, markdown, plot, prefixes, shift, show, times_of
    from quorate.report.plots import check
    from quorate.runs import Run

    chosen = _parse(argv)
    if chosen.certify is not None:
        from quorate.cli.certify import certify

        return certify(chosen)
    saved = [Run(path) for path in chosen.runs]
    if chosen.plots is not None:
        check(saved, chosen.plots)
    found = columns(saved)
    shifted = _shifted(saved, found, chosen)
    named = _named(saved, found)
    if chosen.format == "markdown":
        print(_joined(markdown(found), prefixes.markdown(named), shift.markdown(shifted) if shifted else ""), end="")
    else:
        show(found, f"{saved[0].facts['data']['name']}, {saved[0].outputs('test').n} test rows", times_of(saved))
        prefixes.show(named)
        if shifted:
            shift.show(shifted)
    if chosen.output is not None and chosen.output.endswith(".json"):
        figures: dict[str, dict[str, Any]] = {name: dict(values) for name, values in as_json(found).items()}
        for name, run in named:
            if rows := prefixes.prefix_rows(run):
                figures[name]["prefixes"] = rows
        for each in shifted:
            figures[each.name]["corruptions"] = shift.as_json(each)
        write_json(chosen.output, figures)
    elif chosen.output is not None:
        text = _joined(markdown(found), prefixes.markdown(named), shift.markdown(shifted) if shifted else "")
        write_text(chosen.output, text)
    if chosen.plots is not None:
        for path in [*plot(saved, chosen.plots), *([shift.plot(shifted, chosen.plots)] if shifted else [])]:
            print(f"wrote {path}")
    return 0


def _named(saved: Sequence[Run], found: Sequence[Column]) -> list[tuple[str, Run]]:
    """The runs with the names that their columns have; a column of each policy stands behind its run's."""
    named, at = [], 0
    for run in saved:
        named.append((found[at].name, run))
        at += 1 + len(run.policies)
    return named


def _joined(*parts: str) -> str:
    return "\n".join(part for part in parts if part)


def _parse(argv: Sequence[str]) -> Any:
    from quorate.cli.certify import add_options, check

    using = parser(
        "evaluate",
        "Print one table of saved runs on the same data, with the cascades stored in them; with --certify, certify such cascades again.",
    )
    using.add_argument("runs", nargs="*", type=str, help="run folders written by quorate train or demo")
    using.add_argument(
        "--plots",
        type=str,
        default=None,
        help="classifications: also write risk-coverage.png and cost-quality.png into this folder, with --corruptions shift.png",
    )
    using.add_argument("--format", type=Literal["table", "markdown"], default="table", help="how to print")
    using.add_argument(
        "--output",
        type=str,
        default=None,
        help="also write the figures to this file (.json or .md); with --certify the policies with their new certificates",
    )
    using.add_argument(
        "--corruptions",
        nargs="*",
        type=str,
        default=None,
        metavar="NAME",
        help="also run the models on corrupted test rows, at five severities; no names: all that apply to --corruption_kind",
    )
    using.add_argument(
        "--corruption_kind", type=Literal["image", "sequence", "log-mel"] | None, default=None, help="what the inputs are"
    )
    using.add_argument(
        "--corruption_rows", type=int | None, default=None, help="test rows, a stratified subset by seed (default: all)"
    )
    using.add_argument("--corruption_seed", type=int, default=0, help="of the corruptions and of the subset")
    using.add_argument(
        "--corruption_high", type=float | None, default=None, help="images: the raw value that is white (default for bytes: 255)"
    )
    using.add_argument(
        "--corruption_decibel",
        type=float | None,
        default=None,
        help="log-mel: raw values per decibel, for loudness and noise_floor",
    )
    add_options(using)
    chosen = parse(using, argv)
    check(chosen)
    if chosen.certify is None and chosen.output is not None and not chosen.output.endswith((".json", ".md")):
        raise ValueError(f"--output {chosen.output}: expected a name that ends in .json or .md")
    given = [key for key in ("kind", "rows", "high", "decibel") if chosen[f"corruption_{key}"] is not None]
    if chosen.corruptions is None and (given or chosen.corruption_seed):
        raise ValueError(f"--corruption_{[*given, 'seed'][0]} is for --corruptions: give that too")
    return chosen


def _shifted(saved: Sequence[Run], found: Sequence[Column], chosen: Any) -> list[Shift]:
    """Every column of the table under the corruptions that all runs can have; none where none were asked for."""
    if chosen.corruptions is None:
        return []
    from quorate.cli.shift import Asked, shifts
    from quorate.report.shift import comparable

    asked = Asked(
        tuple(chosen.corruptions),
        chosen.corruption_kind,
        chosen.corruption_rows,
        chosen.corruption_seed,
        chosen.corruption_high,
        chosen.corruption_decibel,
    )
    titles = iter(column.name for column in found)
    return comparable([replace(each, name=next(titles)) for run in saved for each in shifts(run, asked).values()])
