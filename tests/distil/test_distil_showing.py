"""What a person sees: lines where there is no terminal, a bar that is closed whatever happens where there is one."""

from __future__ import annotations

from typing import Any

import pytest
import rich.console

from quorate.distil.showing import Shown
from small_distillations import own, quick

ROW: dict[str, Any] = {
    "round": 2, "student": "s", "trained": 3, "edge_mean": 0.25, "edge_held": -0.5, "mean_error": 0.1, "max_error": 0.2,
    "certificate": 0.3, "agreement": 0.5, "macs": 12345, "cost_share": 0.5, "accuracy": 0.75,
}  # fmt: skip


def test_lines_of_a_whole_run(capsys: pytest.CaptureFixture[str]) -> None:
    found = quick(students=own(2), rules={"rounds": 2}, progress=True, label="digits")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert all(line.startswith("digits: ") for line in lines)
    assert lines[0] == "digits: asking the teacher Sequential about 144 rows"
    assert lines[-1] == "digits: stopped with 2 students: 2 rounds are the limit"
    last = found.rounds[-1]
    assert f"round 2: own2, seed {last['candidate']['seed'] % 10_000}; 1 tried, edge " in lines[-2]
    assert f"cost so far {last['macs']:,} MACs = {last['cost_share']:.1%} of the teacher" in lines[-2]
    assert f"validation accuracy {last['accuracy']:.4f}" in lines[-2]


def test_silence(capsys: pytest.CaptureFixture[str]) -> None:
    with Shown("x", False) as shown:
        shown.begins("round 1")
        shown.say("a", 0.5)
        shown.round(ROW)
    assert capsys.readouterr() == ("", "")


def test_a_round_in_words() -> None:
    said: list[str] = []
    shown = Shown("x", True, said.append)
    shown.round(ROW)
    shown.round({**ROW, "edge_mean": None, "edge_held": None, "cost_share": None} | {"mse": 0.1})
    assert "edge 0.25 (held out -0.5)" in said[0]
    assert "cost so far 12,345 MACs = 50.0% of the teacher, validation accuracy 0.7500" in said[0]
    assert "edge" not in said[1]
    assert "of the teacher" not in said[1]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_the_bar_is_closed(
    error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    shown = Shown("run [/red]", True)  # no markup of the bar's
    try:
        with shown:
            shown.begins("round [1]")
            shown.say("candidate [2] [/b]", 0.5)
            shown.line("a line [/red] that stays")
            assert shown._bar.live.is_started
            if error is not None:
                raise error
    except BaseException as raised:
        assert type(raised) is error  # noqa: PT017
    assert not shown._bar.live.is_started
    said = capsys.readouterr().err
    assert "a line [/red] that stays" in said
    assert said.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in said  # the cursor is back
