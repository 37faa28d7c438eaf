"""What all tests share. Needs neither PyTorch nor Hypothesis: the deciding half is also tested where there are none."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # for the contract that every ensemble is tested by, ensemble_contract.py

# Machine code is kept between tests and test runs, but never where a user's is.
os.environ["QUORATE_CACHE"] = str(
    Path(tempfile.gettempdir()) / f"quorate-tests-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
)

if importlib.util.find_spec("torchvision") is not None:
    import torchvision_operators  # noqa: F401  without which it may not be importable

try:
    from hypothesis import settings
except ImportError:
    pass
else:
    settings.register_profile("quorate", deadline=None, derandomize=True)
    settings.load_profile("quorate")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--require-no-torch``: the run is meant to show what stands without PyTorch, so it must not be there."""
    parser.addoption(
        "--require-no-torch", action="store_true", help="fail if PyTorch can be imported; collect deciding tests only"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to show it where PyTorch is installed; without llvmlite tickets run dense, which loading says once for a bundle."""
    if importlib.util.find_spec("llvmlite") is None:
        config.addinivalue_line("filterwarnings", r"ignore:.*quorate\[sparse\]:RuntimeWarning")
    if config.getoption("--require-no-torch") and importlib.util.find_spec("torch") is not None:
        raise pytest.UsageError("--require-no-torch: PyTorch is installed here, this environment shows nothing")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Without PyTorch the other test files can't even be imported."""
    if not config.getoption("--require-no-torch") or collection_path.suffix != ".py":
        return None
    return "pytest.mark.deciding" not in collection_path.read_text(encoding="utf-8") or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The documents first: they are the longest file, and would be waited for at the end where files run side by side."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")
