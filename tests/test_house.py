"""The house plan, enforced: who may import whom, what a bare import costs, and what stands without PyTorch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import quorate

pytestmark = pytest.mark.deciding

SOURCE = Path(quorate.__file__).parent
DECIDING = {
    "files": set(),
    "_optional": set(),
    "combination": set(),
    "_validation": {"combination"},
    "foreign": {"files", "combination"},
    "outputs": {"files", "combination", "_validation", "foreign"},
    "runs": {"files", "outputs"},
    "metrics": {"combination"},
    "cascade": {"files", "combination", "_validation", "outputs", "metrics"},
    "runtime": {"files", "_optional", "combination", "_validation", "outputs", "metrics", "cascade"},
}
_LEARNING = {
    "cost": set(),
    "graphs": {"cost"},
    "ensemble": {"cost"},
    "models": {"cost", "ensemble"},
    "data": {"cost", "ensemble"},
    "training": {"cost", "ensemble", "models", "data"},
    "packed": {"cost", "ensemble", "models", "data", "training"},
    "tickets": {"cost", "graphs", "ensemble", "models", "data", "training"},
    "distil": {"cost", "graphs", "ensemble", "models", "data", "training"},
    "baselines": {"cost", "ensemble", "models", "data", "training"},
    "export": {"cost", "graphs", "ensemble", "models", "data", "training", "packed", "tickets", "distil"},
}
LEARNING = {room: below | set(DECIDING) for room, below in _LEARNING.items()}
TOP = {"report": set(DECIDING), "cli": set(DECIDING) | set(LEARNING) | {"report"}, "__main__": {"cli"}}
ALLOWED = DECIDING | LEARNING | TOP
HEAVY = {
    "torch",
    "lightning",
    "torchmetrics",
    "sklearn",
    "onnx",
    "onnxscript",
    "ray",
    "fastapi",
    "datasets",
    "timm",
    "torchvision",
}


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Every module a file imports, at any depth; ``from quorate import x`` counts as ``quorate.x``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide who imports whom"
            found |= {f"quorate.{alias.name}" for alias in node.names} if node.module == "quorate" else {node.module or ""}
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_only_what_is_below_them(path: Path) -> None:
    room = _room(path)
    assert room in ALLOWED, f"{room} is not in the house plan: put it into docs/architecture.md and here"
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "quorate" and len(parts) > 1 and parts[1] not in (room, "__version__"):
            assert parts[1] in ALLOWED[room], f"{path} imports {name}: {room} may import {sorted(ALLOWED[room])}"
        if room in DECIDING | {"report": None}:
            assert parts[0] not in HEAVY, f"{path} imports {name}: the deciding half stands on arrays alone"


def test_the_rules_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text("def f():\n    import torch\n    from quorate import cli\n    from quorate.training.fit import fit\n")
    assert _imports(file) == {"torch", "quorate.cli", "quorate.training.fit"}


def test_files_are_short() -> None:
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 420}
    assert not long, f"split these: {long}"


def _python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_import_is_lazy_and_fast() -> None:
    code = (
        "import time, sys; t = time.perf_counter(); import quorate; s = time.perf_counter() - t; "
        f"print(s, *(set(sys.modules) & {HEAVY | {'numpy', 'matplotlib'}!r}))"
    )
    seconds, *loaded = min((_python(code).split() for _ in range(3)), key=lambda words: float(words[0]))
    assert not loaded
    assert float(seconds) <= 0.3


def test_deciding_half_and_evaluate_run_where_torch_cannot_be_imported() -> None:
    code = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
import numpy as np, quorate
outputs = quorate.Outputs([np.random.default_rng(0).normal(size=(2, 50, 3)) for _ in range(2)], labels=np.arange(50) % 3, costs=[1, 2])
policy = quorate.Policy.fit(outputs, target="risk@coverage=0.5")
assert len(quorate.cascade.simulate(policy, outputs)) == 50
from quorate.cli.main import main
assert main(["evaluate", "no-such-run"]) == 1
try:
    quorate.DeepEnsemble
except ImportError as error:
    print(error)
"""
    assert _python(code) == 'quorate.DeepEnsemble needs torch, which is not installed: pip install "quorate[train]"'


def test_names_of_the_cascade_room_are_imported_on_use() -> None:
    from quorate import cascade

    assert sorted(cascade.__all__) == sorted([*cascade._NAMES, *cascade._MODULES])
    assert all(getattr(cascade, name) is not None for name in cascade.__all__)
    assert set(cascade.__all__) <= set(dir(cascade))
    with pytest.raises(AttributeError, match=r"module 'quorate\.cascade' has no attribute 'nonsense'"):
        cascade.nonsense  # noqa: B018
    loaded = _python("import sys, quorate; quorate.Cascade, quorate.Policy; print('scipy' in sys.modules)")
    assert loaded == "False"


def test_every_public_name_exists_and_unknown_ones_do_not() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        quorate.nonsense  # noqa: B018
    assert set(quorate.__all__) <= set(dir(quorate))
    if "torch" in sys.modules or _python("import importlib.util as u; print(u.find_spec('torch') is not None)") == "True":
        assert _python("import quorate; print(all(getattr(quorate, n) is not None for n in quorate.__all__))").endswith("True")
