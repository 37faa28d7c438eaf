"""Files are the old one or the new one: kills, full disks, missing permissions, damage."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from quorate import files

pytestmark = pytest.mark.deciding


def script(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A Python process of its own that runs ``code``."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(code: str, *arguments: object) -> str:
    process = script(code, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


# --- atomic ----------------------------------------------------------------------------------------------------------


def test_atomic_writes_replaces_and_makes_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for text in ("first", "second, longer", ""):
        files.write_text(path, text)
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_exception_in_the_block_passes_and_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write() -> None:
        with files.atomic(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_where_there_was_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), files.atomic(tmp_path / "file"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_two_writers_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with files.atomic(path) as one, files.atomic(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
    assert path.read_text() == "one"  # the block that ends last


def test_kill_in_the_middle_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    process = script(
        "import sys, time\n"
        "from quorate.files import atomic\n"
        "with atomic(sys.argv[1]) as temporary, temporary.open('w') as file:\n"
        "    file.write('half'); file.flush(); print('written', flush=True); time.sleep(60)\n",
        path,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert any(p.read_text() == "half" for p in tmp_path.iterdir())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert path.read_text() == "old"
    files.write_text(path, "new")  # what the killed process left does not stand in the way
    assert path.read_text() == "new"


WRITERS = {
    "text": "files.write_text(path, 'x' * 100_000)",
    "json": "files.write_json(path, ['x'] * 50_000)",
    "arrays": "files.save_arrays(path, {'a': np.zeros(100_000)}, {})",
}


@pytest.mark.parametrize("writer", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_is_an_os_error_that_names_the_file_and_keeps_the_old_one(tmp_path: Path, writer: str) -> None:
    resource = pytest.importorskip("resource")
    assert resource
    path = tmp_path / "file"
    path.write_text("old")
    out = output(
        "import resource, signal, sys\n"
        "import numpy as np\n"
        "from quorate import files\n"
        "path = sys.argv[1]\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        f"try: {writer}\n"
        "except OSError as error: print(error)\n",
        path,
    )
    assert out.count("\n") == 1
    assert f"could not write {path}: " in out
    assert "File too large" in out
    assert "make room" in out
    assert "None" not in out
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_missing_permission_is_a_permission_error_that_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    path = folder / "file"
    path.write_text("old")
    folder.chmod(0o555)
    out = output(
        "import os, sys\n"
        "from quorate import files\n"
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # the superuser may write anywhere
        "try: files.write_text(sys.argv[1], 'new')\n"
        "except PermissionError as error: print(error.errno, error)\n",
        path,
    )
    folder.chmod(0o755)
    assert out.startswith(f"{errno.EACCES} ")
    assert f"could not write {path}: Permission denied; what was there before is unchanged" in out
    assert path.read_text() == "old"


def test_a_folder_in_the_way_and_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    for path in (tmp_path / "folder", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=f"could not write {path}: "):
            files.write_text(path, "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_new_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "text", "x")
        files.save_arrays(tmp_path / "arrays", {"a": np.zeros(1)}, {})
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {0o640}


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_json_round_trip_and_one_way_to_write_it(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, True, "é\n"], "b": {}}
    files.write_json(tmp_path / "x", value)
    assert files.read_json(tmp_path / "x", "anything") == value
    first = (tmp_path / "x").read_bytes()
    files.write_json(tmp_path / "x", value)
    assert (tmp_path / "x").read_bytes() == first


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": np.float32(1)}, {1, 2}])
def test_what_json_cannot_hold_is_refused_before_anything_is_written(tmp_path: Path, value: object) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    with pytest.raises(ValueError, match=f"{path} can't hold this as JSON .*give finite numbers"):
        files.write_json(path, value)
    assert path.read_text() == "old"


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_unreadable_json_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not readable as JSON .*: expected a policy") as caught:
        files.read_json(path, "a policy")
    assert "\n" not in str(caught.value)


def test_missing_files_say_what_was_expected(tmp_path: Path) -> None:
    for read in (files.read_json, files.load_arrays):
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(FileNotFoundError, match=f"{path} does not exist: expected a thing"):
                read(path, "a thing")


# --- arrays ----------------------------------------------------------------------------------------------------------

ARRAYS = {
    "f16": np.arange(6, dtype=np.float16).reshape(2, 3),
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4).T,  # not contiguous
    "f64": np.array([[np.pi, -0.0, 5e-324]]),
    "i64": np.array([-(2**63), 2**63 - 1]),
    "u8": np.zeros(0, np.uint8),
    "big endian": np.arange(3, dtype=">f8"),
}
ABOUT = {"é": [1, None, {"x": "\n"}], "z": 0.1}


def test_arrays_round_trip_bit_for_bit_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    files.save_arrays(tmp_path / "a", ARRAYS, ABOUT)
    arrays, about = files.load_arrays(tmp_path / "a", "arrays")
    assert about == ABOUT
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(arrays[name], array)
    assert np.signbit(arrays["f64"][0, 1])
    files.save_arrays(tmp_path / "b", dict(reversed(ARRAYS.items())), json.loads(json.dumps(ABOUT)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_damaged_arrays_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "arrays"
    files.save_arrays(path, {"a": np.arange(4.0)}, {"x": 1})
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [whole[:size] for size in range(0, len(whole), 5)] + [b"not safetensors at all"]
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole) - 32)] ^= 1 << int(rng.integers(8))
        broken.append(bytes(damaged))
    complaints = []
    for content in broken:
        path.write_bytes(content)
        try:
            files.load_arrays(path, "stored outputs")
        except ValueError as error:
            complaints.append(str(error))
    assert len(complaints) > 150
    for text in complaints:
        assert text.startswith(f"{path} is not a readable safetensors file (")
        assert text.endswith("): expected stored outputs")
        assert "\n" not in text


def test_arrays_that_numpy_cannot_hold_are_refused(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        files.load_arrays(tmp_path / "x", "stored outputs")
