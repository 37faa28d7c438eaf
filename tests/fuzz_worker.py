"""A process that loads mutated bundles and says what came of it, a line of JSON for each; whoever asks notices when it dies or hangs.

``python fuzz_worker.py FOLDER`` writes three good bundles there, then answers {"bundle", "kind", "file", "edits"} from standard input:

    refused    a BundleError of one line that names no traceback
    same       loaded, and every stage gives what it gave
    other      loaded, and the predictions are other ones (of a policy that was changed)
    wrong      anything else: another exception, other outputs of a stage, a file outside the folder, code that was run
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import sparse_bundles
import tiny_bundles
from bundle_mutations import of_bytes, of_json, of_onnx, safetensors_bytes, safetensors_parts
from quorate.runtime import BundleError, Program, Runtime, load_bundle
from quorate.runtime.manifest import digest

MEMORY = 6 * 2**30
BUNDLES = ("chained", "sparse", "kernels")
Files = dict[str, bytes]


def programs(name: str) -> list[Program]:
    if name == "kernels":
        return [sparse_bundles.perceptron("a", 5), sparse_bundles.perceptron("b", 8)]
    return tiny_bundles.chained() if name == "chained" else [tiny_bundles.ticket("a", 5), tiny_bundles.ticket("b", 6)]


class Watchman:
    """Notes what is opened or run while a case is loaded.

    Files are opened relative to a directory's descriptor, so by a bare name; Python's own and the folder of machine code may be opened too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.on, self.seen = str(folder), False, list[str]()
        kept = os.environ.get("QUORATE_CACHE", "")
        self.own = tuple(str(Path(part).resolve()) for part in (sys.prefix, sys.base_prefix, kept, *sys.path) if part)
        sys.addaudithook(self.hear)

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path = os.fsdecode(given[0]) if isinstance(given[0], str | bytes | os.PathLike) else ""
            below = (
                path == self.folder
                or path.startswith(self.folder + os.sep)
                or (os.sep not in path and path not in ("", ".", ".."))
            )
            if not below and not path.startswith(self.own):
                self.seen.append(f"open {path!r}")
        elif event in (
            "pickle.find_class",
            "os.system",
            "subprocess.Popen",
            "os.exec",
            "os.posix_spawn",
            "socket.connect",
            "ctypes.dlopen",
        ):
            self.seen.append(f"{event} {given!r:.100}")


def mutated(files: Files, kind: str, file: int, edits: list[Any]) -> Files:
    """The bundle's files after the edits; hashes and digest are made right again unless it is damage."""
    files, names = dict(files), sorted(files)
    if kind == "damage":
        name = names[file % len(names)]
        for edit in edits:
            files[name] = of_bytes(files[name], edit)
        return files
    manifest = json.loads(files["manifest.json"])
    if kind == "manifest":
        for edit in edits:
            if manifest:
                manifest = of_json(manifest, edit)
    else:
        chosen = [name for name in names if name.endswith({"onnx": ".onnx", "arrays": ".safetensors"}[kind])]
        name = chosen[file % len(chosen)]
        files[name] = _content(files[name], kind, edits)
        for entry in manifest["files"]:
            if entry["path"] == name:
                entry |= {"size_bytes": len(files[name]), "sha256": hashlib.sha256(files[name]).hexdigest()}
    manifest.pop("digest", None)
    files["manifest.json"] = json.dumps(manifest | {"digest": digest(manifest)}).encode("utf-8", "surrogatepass")
    return files


def _content(data: bytes, kind: str, edits: list[Any]) -> bytes:
    if kind == "onnx":
        if edits[0][1] % 4:
            return of_onnx(data, edits)
        for _, where, value in edits:
            data = of_bytes(data, (("flip", "drop", "insert", "double")[where // 4 % 4], where // 16, value))
        return data
    header, rest = safetensors_parts(data)
    for _, where, value in edits:
        target = where % 3
        if target == 0:
            rest = of_bytes(rest, (("flip", "set", "cut", "insert", "drop", "zeros")[value % 6], where // 3, value // 6))
        elif target == 1 or "__metadata__" not in header or not isinstance(header["__metadata__"], dict):
            header = (
                of_json(header, (("put", "drop", "add", "swap", "nest", "text")[value % 6], where // 3, value // 6))
                if header
                else header
            )
        else:
            text = header["__metadata__"].get("about", "")
            header["__metadata__"]["about"] = _about(text, where // 3, value)
    return safetensors_bytes(header, rest)


def _about(text: Any, where: int, value: int) -> Any:
    try:
        about = json.loads(text)
        return json.dumps(of_json(about, (("put", "drop", "add", "swap", "nest", "text")[value % 6], where, value // 6)))
    except (TypeError, ValueError, ZeroDivisionError, AttributeError):
        return text


def answers(runtime: Runtime, x: Any) -> list[Any]:
    """What every stage gives, on the carry of the stages before."""
    carry: dict[str, Any] = {}
    found = []
    for stage in runtime.stages:
        members, written = stage(x, {name: carry[name] for name in stage.reads})
        carry |= written
        found.append(members)
    return found


class Case:
    """One good bundle, and where its mutants are put."""

    def __init__(self, folder: Path, name: str, room: Path) -> None:
        self.x, self.folder = tiny_bundles.rows(4), room
        tiny_bundles.bundle(folder / name, programs(name), self.x)
        self.files = {
            str(path.relative_to(folder / name)): path.read_bytes() for path in (folder / name).rglob("*") if path.is_file()
        }
        runtime = load_bundle(folder / name, threads=1)
        self.answers, self.predicted = answers(runtime, self.x), runtime.predict(self.x)
        self.digest = runtime.manifest.digest
        self.there: Files = {}

    def __call__(self, watchman: Watchman, case: dict[str, Any]) -> dict[str, str]:
        files = mutated(self.files, case["kind"], case["file"], case["edits"])
        for name, data in files.items():
            if self.there.get(name) != data:
                (self.folder / name).parent.mkdir(exist_ok=True)
                (self.folder / name).write_bytes(data)
        self.there = files
        watchman.seen.clear()
        watchman.on = True
        try:
            runtime = load_bundle(self.folder, threads=1)
        except BundleError as error:
            watchman.on = False
            said = str(error)
            if watchman.seen or "\n" in said or len(said) > 1500:
                return {"said": "wrong", "why": f"{watchman.seen} {said}"}
            return {"said": "refused", "why": said}
        finally:
            watchman.on = False
        found, why = answers(runtime, self.x), ", ".join(watchman.seen)
        for got, want in zip(found, self.answers, strict=False):
            if got.shape != want.shape or not np.allclose(got, want, 2e-3, 2e-3):
                why += " a stage gives other outputs"
        try:
            other = not _equal(runtime.predict(self.x), self.predicted)
        except ValueError as error:
            other = True
            if "\n" in str(error) or case["kind"] != "manifest":
                why += f" predict: {error}"
        if case["kind"] == "damage" and (other or runtime.manifest.digest != self.digest):
            why += " damage was taken"
        return {"said": "wrong" if why else "other" if other else "same", "why": why}


def _equal(a: Any, b: Any) -> bool:
    return bool(
        np.array_equal(a.label, b.label) and np.array_equal(a.stage, b.stage) and np.allclose(a.probs, b.probs, atol=2e-3)
    )


def main(folder: Path) -> None:
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", r".*quorate\[sparse\]", RuntimeWarning)  # where there is no llvmlite
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except ImportError:  # Windows
        pass
    room = folder / "mutant"
    room.mkdir()
    cases = {name: Case(folder, name, room / name) for name in BUNDLES if (room / name).mkdir() is None}
    watchman = Watchman(room.resolve())
    for line in sys.stdin:
        case = json.loads(line)
        try:
            said = cases[case["bundle"]](watchman, case)
        except BaseException:
            said = {"said": "wrong", "why": traceback.format_exc()}
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
