"""Writing: what is in the folder, replacing an older bundle, being killed at any moment, two writers, folders of others."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import quorate
from quorate.runtime import BundleError, Manifest, write_bundle
from tiny_bundles import bundle, chained, member, policy_of, rows, run, ticket

pytestmark = pytest.mark.deciding


def contents(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())


def test_the_folder_holds_what_the_manifest_lists(tmp_path: Path) -> None:
    manifest = bundle(tmp_path / "deep" / "b", [ticket("plain"), ticket()], policy=None, kind="values")
    (inside,) = {file.path.split("/")[0] for file in manifest.files}
    names = [
        "golden.safetensors",
        "model_card.md",
        "stage0.onnx",
        "stage0.ticket.safetensors",
        "stage1.onnx",
        "stage1.ticket.safetensors",
    ]
    assert contents(tmp_path / "deep" / "b") == [*(f"{inside}/{name}" for name in names), "manifest.json"]
    written = json.loads((tmp_path / "deep" / "b" / "manifest.json").read_text())
    assert written["format"] == "quorate-bundle/1"
    assert written["digest"] == manifest.digest
    assert written["stages"][1]["scattered"] == {"w": [1, 6, 40]}
    assert Manifest.from_json((tmp_path / "deep" / "b" / "manifest.json").read_bytes()) == manifest


def test_equal_parts_make_equal_bytes(tmp_path: Path) -> None:
    one, other = bundle(tmp_path / "one", chained()), bundle(tmp_path / "other", chained())
    assert one.digest == other.digest
    for file in contents(tmp_path / "one"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


def test_a_newer_bundle_replaces_the_older_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle(path, [member("a", 0)])
    before = contents(path)
    manifest = bundle(path, [member("a", 1)], name="newer")
    assert not set(before) & set(contents(path)) - {"manifest.json"}
    assert len(contents(path)) == len(before)
    assert quorate.load_bundle(path).manifest.digest == manifest.digest
    again = bundle(path, [member("a", 1)], name="newest")  # the same files under another manifest
    assert quorate.load_bundle(path).manifest.name == again.name == "newest"


@pytest.mark.parametrize("name", ["notes.txt", "content-xyz", ".git"])
def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"holds '{name}', which is no bundle's: choose another folder"):
        bundle(tmp_path, [member("a", 0)])
    assert contents(tmp_path) == [name]


def test_a_file_is_no_place_for_a_bundle(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    with pytest.raises(ValueError, match="is a file: expected a folder of a bundle"):
        bundle(tmp_path / "f", [member("a", 0)])
    assert (tmp_path / "f").read_text() == "mine"


@pytest.mark.parametrize(
    ("programs", "options", "message"),
    [
        ([member("a", 0), member("a", 1)], {"policy": None, "kind": "values"}, "make no bundle: the stage names hold 'a' twice"),
        ([member("a", 0)], {"policy": policy_of([member("b", 0)])}, r"the policy is for stages \['b'\], the bundle has \['a'\]"),
        ([member("a", 0)], {"policy": None}, "a bundle of logits has no policy"),
        ([member("a", 0)], {"combine": "logits"}, "the policy is for logits combined by probs, not logits by logits"),
        (chained()[1:], {"policy": None, "kind": "values"}, r"stage 'second' reads \['h'\], which no earlier stage writes"),
        ([member("a", 0)], {"provenance": {"f": float("nan")}}, "JSON"),
        ([member("a", 0)], {"preprocessing": {"f": object()}}, "JSON"),
        ([member("a", 0)], {"name": ""}, "name"),
        ([member("a", 0)], {"rtol": 0.9}, "rtol"),
    ],
)
def test_parts_that_do_not_fit_write_nothing(tmp_path: Path, programs: Any, options: Any, message: str) -> None:
    said = {"card": "#", "name": "n"} | options
    said = ({} if "policy" in said else {"policy": policy_of(programs)}) | said
    x = rows(2)
    answers = [run([p], x)[0] if p.ports.input else run(chained(), x)[1] for p in programs]
    with pytest.raises(ValueError, match=message):
        write_bundle(tmp_path / "b", programs, golden=(x, answers), **said)
    assert not (tmp_path / "b").exists()


FILE_EVENTS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "os.chmod")


def write_and_die(path: Path, at: int) -> int:
    """Write a bundle in a process of its own that is killed before its ``at``-th file operation → its exit status."""
    x, program = rows(4), member("a", 1)
    answers = run([program], x)
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = 0

    def dying(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in FILE_EVENTS or (event == "open" and str(arguments[0]).startswith(str(path))):
            seen += 1
            if seen == at:
                os._exit(137)

    status = 1
    try:
        sys.addaudithook(dying)
        write_bundle(path, [program], golden=(x, answers), policy=policy_of([program]), card="#", name="new")
        status = 0
    finally:
        os._exit(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_is_the_old_bundle_or_the_new(tmp_path: Path) -> None:
    """The process dies before its n-th file operation, for every n until it gets through."""
    path = tmp_path / "b"
    old = bundle(path, [member("a", 0)], name="old").digest
    seen = set()
    for at in range(1, 200):
        status = write_and_die(path, at)
        assert status in (0, 137)
        runtime = quorate.load_bundle(path)
        seen.add(runtime.manifest.name)
        assert len(runtime.predict(rows(3))) == 3
        if status == 0:
            break
        if runtime.manifest.name == "new":
            bundle(path, [member("a", 0)], name="old")
            assert quorate.load_bundle(path).manifest.digest == old
    else:
        pytest.fail("it never got through")
    assert seen == {"old", "new"}
    assert at > 10
    assert len(contents(path)) == 4  # leftovers of the killed are gone


def _hold(path: Path, held: Any, release: Any) -> None:
    from quorate.runtime.writing import _locked

    with _locked(path):
        held.set()
        release.wait(60)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    path = tmp_path / "b"
    bundle(path, [member("a", 0)], name="old")
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(path, held, release))
    other.start()
    try:
        assert held.wait(60)
        with pytest.raises(BlockingIOError, match="is being written by another process: wait for it"):
            bundle(path, [member("a", 1)], name="new")
        assert quorate.load_bundle(path).manifest.name == "old"
    finally:
        release.set()
        other.join()
    bundle(path, [member("a", 1)], name="new")
    assert quorate.load_bundle(path).manifest.name == "new"


def test_a_reader_meets_the_old_or_the_new_while_it_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "b"
    bundle(path, [member("a", 0)], name="0")
    code = (
        f"import sys; sys.path[:0] = {[str(Path(__file__).parents[1]), *sys.path]!r}\n"
        "from pathlib import Path\nfrom tiny_bundles import bundle, member\nprint('ready', flush=True)\n"
        "for n in range(10_000):\n    bundle(Path(sys.argv[1]), [member('a', n % 7)], name=str(n))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        names, until = set(), time.monotonic() + 1.5
        while time.monotonic() < until:
            with contextlib.suppress(BundleError, FileNotFoundError):  # replaced three times while it was read
                names.add(quorate.load_bundle(path).manifest.name)
        assert len(names) > 3
    finally:
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()


def test_a_full_disk_leaves_the_old_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b"
    bundle(path, [member("a", 0)], name="old")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"could not write .*: No space left on device; what was there before is unchanged"):
        bundle(path, [member("a", 1)], name="new")
    monkeypatch.undo()
    assert quorate.load_bundle(path).manifest.name == "old"
    assert os.listdir(tmp_path) == ["b"]
