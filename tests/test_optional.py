"""Packages that are imported late: what is there comes, what is not is told with its remedy, in one line."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from quorate._optional import LONGEST, imported, one_line

pytestmark = pytest.mark.deciding


def test_what_is_there_comes() -> None:
    assert imported("json.decoder").JSONDecodeError.__name__ == "JSONDecodeError"


@pytest.mark.parametrize(
    ("install", "remedy"), [(None, "pip install no_such_package"), ("quorate[x]", 'pip install "quorate[x]"')]
)
def test_what_is_missing_has_a_remedy(install: str | None, remedy: str) -> None:
    with pytest.raises(ImportError) as caught:
        imported("no_such_package.part", install)
    assert str(caught.value) == f"no_such_package.part can't be imported (no module 'no_such_package'): {remedy}"


@pytest.mark.parametrize(
    ("text", "kind"), [("operator torchvision::nms does\\n not exist", ImportError), ("other", RuntimeError)]
)
def test_a_torchvision_of_another_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception]
) -> None:
    (tmp_path / "breaks_at_import.py").write_text(
        f'import warnings\nwarnings.warn("old", DeprecationWarning)\nraise RuntimeError("{text}")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(kind) as caught:
        imported("breaks_at_import")
    assert ("pip uninstall torchvision" in str(caught.value)) == (kind is ImportError)
    assert "\n" not in str(caught.value)


def test_deprecations_are_silent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "warns_at_import.py").write_text('import warnings\nwarnings.warn("old", DeprecationWarning)\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert isinstance(imported("warns_at_import"), types.ModuleType)  # warnings are errors in these tests
    sys.modules.pop("warns_at_import")


def test_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(KeyError()) == "KeyError"
    assert one_line(ValueError("x" * 999)) == "x" * LONGEST + "…"
