"""``quorate evaluate RUN…``: the table of saved runs and of the policies in them. Needs no PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from quorate.cli.parse import parse, parser


def run(argv: Sequence[str]) -> int:
    """Run the command."""
    from quorate.files import write_json, write_text
    from quorate.report import as_json, columns, markdown, plot, show, times_of
    from quorate.runs import Run

    using = parser("evaluate", "Print one table of saved runs on the same data, with the cascades stored in them.")
    using.add_argument("runs", nargs="+", type=str, help="run folders written by quorate train or demo")
    using.add_argument(
        "--plots", type=str, default=None, help="also write risk-coverage.png and cost-quality.png into this folder"
    )
    using.add_argument("--format", type=Literal["table", "markdown"], default="table", help="how to print")
    using.add_argument("--output", type=str, default=None, help="also write the figures to this file (.json or .md)")
    chosen = parse(using, argv)
    if chosen.output is not None and not chosen.output.endswith((".json", ".md")):
        raise ValueError(f"--output {chosen.output}: expected a name that ends in .json or .md")
    saved = [Run(path) for path in chosen.runs]
    found = columns(saved)
    if chosen.format == "markdown":
        print(markdown(found), end="")
    else:
        show(found, f"{saved[0].facts['data']['name']}, {saved[0].outputs('test').n} test rows", times_of(saved))
    if chosen.output is not None and chosen.output.endswith(".json"):
        write_json(chosen.output, as_json(found))
    elif chosen.output is not None:
        write_text(chosen.output, markdown(found))
    if chosen.plots is not None:
        for path in plot(saved, chosen.plots):
            print(f"wrote {path}")
    return 0
