"""A grid of texts: heads over rows, on a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

Texts = Sequence[Sequence[str]]


def show(heads: Sequence[str], rows: Texts, title: str = "", note: str = "", left: Sequence[str] = ()) -> None:
    """Print it, columns flush right but those named in ``left``; where there is no terminal, wide enough that nothing is folded."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    console = console if console.is_terminal else Console(width=200)
    table = Table(title=Text(title), title_justify="left", caption=Text(note), caption_justify="left")
    for head in heads:
        table.add_column(Text(head), justify="left" if head in left else "right", overflow="fold", no_wrap=head not in left)
    for row in rows:
        table.add_row(*map(Text, row))
    try:
        console.print(table)
    except SystemExit as stop:  # what rich makes of a reader that left
        raise BrokenPipeError from stop


def markdown(heads: Sequence[str], rows: Texts, title: str = "", note: str = "") -> str:
    """The same as Markdown, title and note as paragraphs."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in (heads, *rows)]
    table = ["| " + " | ".join(row) + " |" for row in lines]
    return "\n\n".join(filter(None, [title, "\n".join([table[0], "|---" * len(heads) + "|", *table[1:]]), note])) + "\n"


def percent(value: float | None, digits: int = 2) -> str:
    """A share as per cent; a dash for None and NaN."""
    return "–" if value is None or value != value else f"{100 * value:.{digits}f} %"
