"""Loading: what is checked and told, options out of range, another digest, no PyTorch; damage is in test_fuzz.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import quorate
from quorate.runtime import BundleError
from tiny_bundles import bundle, dense, member, policy_of, rows, ticket

pytestmark = pytest.mark.deciding


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("bundles") / "b"
    bundle(found, [member("a", 0), member("b", 1)])
    return found


def test_what_loading_took_and_did(path: Path) -> None:
    told: list[str] = []
    runtime = quorate.load_bundle(path, progress=told.append)
    assert told == ["stage a", "stage b", "golden outputs"]
    assert sorted(runtime.load_seconds) == ["files", "golden", "sessions"]
    assert all(seconds > 0 for seconds in runtime.load_seconds.values())
    told.clear()
    assert "golden" not in quorate.load_bundle(path, verify="files", progress=told.append).load_seconds
    assert told == ["stage a", "stage b"]


def test_a_ticket_is_scattered_into_its_program(tmp_path: Path) -> None:
    program = ticket()
    bundle(tmp_path / "b", [program], policy=policy_of([program]))
    runtime, x = quorate.load_bundle(tmp_path / "b"), rows(3)
    np.testing.assert_allclose(runtime.outputs(x).values[0], np.einsum("bf,mfc->mbc", x, dense(program)), rtol=1e-5, atol=1e-6)


def test_the_digest_that_was_told_is_asked_for(path: Path) -> None:
    digest = quorate.load_bundle(path).manifest.digest
    assert digest.startswith("sha256:")
    assert quorate.load_bundle(path, digest=digest).names == ("a", "b")
    with pytest.raises(BundleError, match=r"has the digest sha256:.*: expected sha256:0, it is another bundle"):
        quorate.load_bundle(path, digest="sha256:0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "threads=0: expected a number from 1 to \\d+, or None for one per core"),
        ({"batch_size": 0}, "batch_size=0: expected a whole number of rows, at least 1"),
        ({"verify": "none"}, "verify='none': expected 'all', or 'files'"),
        (
            {"providers": ["TensorrtExecutionProvider"]},
            "provider 'TensorrtExecutionProvider': expected a list of .*CPUExecutionProvider",
        ),
        ({"providers": "CPUExecutionProvider"}, "provider 'CPUExecutionProvider': expected a list"),
        ({"watch": True}, "holds no pass rates of validation rows to watch against: export it with validation outputs"),
        ({"cap": 0.1}, "cap"),
        ({"memory": 0}, "memory=0"),
    ],
)
def test_options_that_can_not_be(path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quorate.load_bundle(path, **options)


@pytest.mark.parametrize("watch", [{}, {"format": "quorate-watch/1"}, {"format": "quorate-watch/1", "stages": [3]}])
def test_pass_rates_that_are_none(tmp_path: Path, watch: dict) -> None:
    bundle(tmp_path / "b", [member("a", 0), member("b", 1)], watch=watch)
    with pytest.raises(BundleError, match=r"the bundle's watch is damaged \(.*\): export it anew"):
        quorate.load_bundle(tmp_path / "b", watch=True)


def test_folders_that_are_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a folder|does not exist"):
        quorate.load_bundle(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        quorate.load_bundle(tmp_path)


def test_it_needs_no_pytorch_and_little_else(path: Path) -> None:
    code = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'onnx', 'lightning', 'sklearn', 'pyarrow', 'PIL', 'matplotlib'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import numpy as np, quorate\n"
        f"runtime = quorate.load_bundle({str(path)!r})\n"
        "print(len(runtime.predict(np.zeros((3, 6), np.float32))))\n"
        "print([name for name in ('scipy', 'rich', 'jsonargparse') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "3\n[]\n"), done.stderr
