"""What is finished of a long job whose result is one file: its rows in parts, in a folder beside that file.

    .NAME.parts/
      request.json                what was asked for; and, from just before the finished file is moved into its place, its size and SHA-256
      000000000000.safetensors    arrays of the rows from 0 on, and so forth; each is there as a whole or not at all
      .lock                       held by the process that works

A kill leaves whole parts, so the same request goes on behind the last one. When the result is in its place the folder is removed; a kill
between these two steps is known by that hash.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quorate.files import atomic, read_json, save_arrays, write_json
from quorate.runs import Lock

REQUEST, LOCK = "request.json", ".lock"
ENDING = ".safetensors"
ANEW = "give --restart to begin anew"


class Part:
    """Some finished rows, ``first … first + rows − 1``. Arrays are read when they are asked for.

    Raises:
        ValueError: a file that no run of the command wrote.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as file:
            about = json.loads((file.metadata() or {}).get("about", "null"))
            self.first, self.rows = int(about["first"]), int(about["rows"])

    def __call__(self, name: str) -> NDArray[Any]:
        """An array by its name, (rows, …); ids are int64 or strings."""
        with self._opened() as file:
            if name != "id" or "id" in file.keys():  # noqa: SIM118
                found: NDArray[Any] = file.get_tensor(name)
                return found
            ends, text = file.get_tensor("id.ends").tolist(), file.get_tensor("id.utf8").tobytes()
            return np.array([text[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="numpy") as file:
                yield file
        except (SafetensorError, ValueError, TypeError, KeyError, OSError) as error:
            raise ValueError(f"{self.path} is damaged ({' '.join(str(error).split())}): {ANEW}") from error


class Parts:
    """The parts of the file ``output``."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f".{output.name}.parts")
        self.stored: list[Part] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold them for this process; afterwards a folder without finished rows is gone. BlockingIOError where another one works."""
        lock = Lock(self.folder)
        try:
            lock.__enter__()
            while not (self.folder / LOCK).exists():  # who held it before has just removed the folder
                lock.__exit__()
                lock.__enter__()
        except BlockingIOError as error:
            said = f"{self.output} is being written by another process: wait for it, or choose another --output"
            raise BlockingIOError(errno.EWOULDBLOCK, said) from error
        except OSError as error:
            raise OSError(f"{self.folder} can't be made ({error.strerror}): choose another place for --output") from error
        try:
            yield
        finally:
            if not self._paths():
                self._discard_()
            lock.__exit__()

    def delivered(self, request: Mapping[str, Any]) -> bool | None:
        """Whether the output is what was written from these parts, of which only the removal is left to do: for this request, or (None)
        for another one."""
        if not (self.folder / REQUEST).is_file() or not self.output.is_file():
            return False
        about = self._about()
        if about["written"] is None or about["written"] != _fingerprint(self.output):
            return False
        return True if about["request"] == dict(request) else None

    def begin_(self, request: Mapping[str, Any], restart: bool = False) -> int:
        """How many rows are finished; the request is written down where there are none.

        Raises:
            ValueError: finished rows of another request (all that differs is named), or files that are no such parts.
        """
        if restart:
            self.clear_()
        paths = self._paths()
        if paths:
            self._check_same(request)
        else:
            write_json(self.folder / REQUEST, {"request": dict(request), "written": None})
        self._tidy_()
        self.stored, rows = [Part(path) for path in paths], 0
        for part in self.stored:
            if part.first != rows:
                raise ValueError(f"{self.folder} lacks the rows {rows} … {part.first - 1}: {ANEW}")
            rows += part.rows
        return rows

    @property
    def rows(self) -> int:
        """How many rows are finished."""
        return self.stored[-1].first + self.stored[-1].rows if self.stored else 0

    def add_(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """The next rows: arrays by name, (n, …), among them ``id``. They are on the disk when this returns. OSError if they can't be."""
        first, rows = self.rows, len(arrays["id"])
        stored = dict(arrays)
        if stored["id"].dtype.kind == "U":
            words = [word.encode() for word in stored.pop("id").tolist()]
            stored["id.utf8"] = np.frombuffer(b"".join(words), np.uint8)
            stored["id.ends"] = np.cumsum([len(word) for word in words], dtype=np.int64)
        path = self.folder / f"{first:012d}{ENDING}"
        save_arrays(path, stored, {"first": first, "rows": rows})
        self.stored.append(Part(path))

    def deliver_(self, write: Callable[[Path], None]) -> None:
        """Put what ``write`` writes to a path into the output's place, in one step, and drop the parts."""
        with atomic(self.output) as temporary:
            write(temporary)
            write_json(self.folder / REQUEST, self._about() | {"written": _fingerprint(temporary)})
        self.clear_()

    def _discard_(self) -> None:
        """Remove the folder."""
        with contextlib.suppress(OSError):  # something else lies in it, which stays
            self.clear_()
            (self.folder / LOCK).unlink(missing_ok=True)
            self.folder.rmdir()

    def clear_(self) -> None:
        """Drop what is finished."""
        self.stored = []
        self._tidy_()
        for path in (*reversed(self._paths()), self.folder / REQUEST):  # a kill leaves a beginning
            path.unlink(missing_ok=True)

    def _tidy_(self) -> None:
        """Remove what writes that were killed have left."""
        name = re.escape(self.output.name)
        inside = r"\..*\.part|\.tmp\w+"  # the latter are safetensors' own
        for folder, known in ((self.folder, inside), (self.output.parent, rf"\.{name}\.[0-9a-f]{{8}}\.part")):
            for path in folder.iterdir() if folder.is_dir() else ():
                if re.fullmatch(known, path.name):
                    path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*{ENDING}"))

    def _about(self) -> dict[str, Any]:
        found = read_json(self.folder / REQUEST, f"the request of these parts; {ANEW}")
        if not isinstance(found, dict) or found.keys() != {"request", "written"} or not isinstance(found["request"], dict):
            raise ValueError(f"{self.folder / REQUEST} is damaged: {ANEW}")
        return found

    def _check_same(self, request: Mapping[str, Any]) -> None:
        was = self._about()["request"]
        differing = sorted(key for key in was.keys() | request.keys() if was.get(key) != request.get(key))
        if differing:
            shown = "; ".join(f"{key}: {_brief(was.get(key))} there, {_brief(request.get(key))} now" for key in differing)
            raise ValueError(
                f"{self.folder} holds finished rows of another request ({shown}): run that command to go on, or {ANEW}"
            )


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"size_bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
