"""Every block of code in README and docs runs, and every number in them is what the benchmarks wrote."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from quorate.cli.main import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.S | re.M)


@pytest.mark.filterwarnings(r"ignore::Warning:lightning\.")  # its advice, where a block uses its Trainer
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    for code in blocks(page, "python"):
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    for line in "".join(blocks(page, "bash")).splitlines():
        words = shlex.split(line, comments=True)
        if words and words[0] == "quorate":
            assert main(words[1:]) == 0, line
        elif words:
            assert words[0] == "make", f"{page.name}: {line!r} is tested by nothing"
            assert words[1] in targets, line


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_readme_and_results_agree_with_the_benchmarks() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "benchmarks" / "render.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_check_notices_a_changed_number(tmp_path: Path) -> None:
    for name in ("README.md", "benchmarks"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / name)
    results = tmp_path / "benchmarks" / "RESULTS.md"
    text = results.read_text(encoding="utf-8")
    number = re.search(r"\d+\.\d+ %", text)
    assert number is not None
    results.write_text(text.replace(number[0], "99.99 %", 1), encoding="utf-8")
    done = subprocess.run([sys.executable, str(tmp_path / "benchmarks" / "render.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "RESULTS.md disagree" in done.stderr
