"""Grids of texts: what Markdown and figures need."""

from __future__ import annotations

import math

import pytest

from quorate.report import grid

pytestmark = pytest.mark.deciding


def test_markdown() -> None:
    text = grid.markdown(["a|b", "c"], [["1", "x|y"], ["2", ""]], title="Title", note="Note.")
    assert text == "Title\n\n| a\\|b | c |\n|---|---|\n| 1 | x\\|y |\n| 2 |  |\n\nNote.\n"
    assert grid.markdown(["a"], []) == "| a |\n|---|\n"


def test_a_terminal_gets_texts_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    grid.show(["name", "[b]"], [["[red]x[/red]", "1"]], title="[t]", note="[n]", left=("name",))
    out = capsys.readouterr().out
    for text in ("[red]x[/red]", "[b]", "[t]", "[n]"):
        assert text in out


def test_a_reader_that_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def left(*_: object, **__: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr("rich.console.Console.print", left)
    with pytest.raises(BrokenPipeError):
        grid.show(["a"], [["1"]])


@pytest.mark.parametrize(("value", "text"), [(0.12345, "12.35 %"), (0.0, "0.00 %"), (None, "–"), (math.nan, "–")])
def test_shares(value: float | None, text: str) -> None:
    assert grid.percent(value) == text
    assert grid.percent(0.5, 0) == "50 %"
