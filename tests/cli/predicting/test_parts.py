"""Finished rows beside the output: written whole, found again, refused where they are another request's or damaged, gone at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quorate.cli.predicting import parts as module
from quorate.cli.predicting.parts import Parts
from quorate.files import save_arrays

pytestmark = pytest.mark.deciding

ASKED = {"bundle": "sha256:1", "chunk": 2, "columns": ["a"]}


def some(first: int, n: int, text: bool = False) -> dict[str, Any]:
    ids = np.arange(first, first + n)
    return {"id": np.array([f"é{k}" * (k % 3) for k in ids]) if text else ids, "label": ids % 3, "probs": np.ones((n, 2)) * first}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "new" / "o.csv"


@pytest.mark.parametrize("text", [False, True])
def test_rows_are_found_again(output: Path, text: bool) -> None:
    for first, n in ((0, 3), (3, 1), (4, 2)):
        parts = Parts(output)
        with parts.held():
            assert parts.begin_(ASKED) == parts.rows == first
            parts.add_(some(first, n, text))
            assert parts.rows == first + n
    again = Parts(output)
    with again.held():
        assert again.begin_(dict(ASKED)) == 6
        whole = some(0, 6, text)
        assert np.concatenate([part("id") for part in again.stored]).tolist() == whole["id"].tolist()
        assert np.concatenate([part("label") for part in again.stored]).tolist() == whole["label"].tolist()
        assert [part("probs").shape for part in again.stored] == [(3, 2), (1, 2), (2, 2)]
        again.deliver_(lambda path: path.write_text("done") and None)
    assert output.read_text() == "done"
    assert [path.name for path in output.parent.iterdir()] == ["o.csv"]


def test_nothing_is_left_of_what_began_in_vain(output: Path) -> None:
    parts = Parts(output)

    def broken() -> None:
        with parts.held():
            parts.begin_(ASKED)
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert list(output.parent.iterdir()) == []


def test_another_request(output: Path) -> None:
    with Parts(output).held():
        Parts(output).begin_(ASKED | {"chunk": 5})  # without finished rows there is nothing to lose
        parts = Parts(output)
        parts.begin_(ASKED)
        parts.add_(some(0, 2))
        for asked, said in (
            (ASKED | {"chunk": 3}, "(chunk: 2 there, 3 now)"),
            (
                ASKED | {"bundle": "x" * 60, "probs": True},
                f'bundle: "sha256:1" there, "{"x" * 39}… now; probs: null there, true now',
            ),
        ):
            with pytest.raises(ValueError, match="holds finished rows of another request") as caught:
                Parts(output).begin_(asked)
            assert said in str(caught.value)
            assert "\n" not in str(caught.value)
        assert Parts(output).begin_(ASKED) == 2
        assert Parts(output).begin_(ASKED | {"chunk": 3}, restart=True) == 0
        assert Parts(output).begin_(ASKED) == 0


def test_damage_is_named_and_restart_helps(output: Path) -> None:
    parts = Parts(output)
    with parts.held():
        parts.begin_(ASKED)
        for first in (0, 2, 4):
            parts.add_(some(first, 2))
        folder = parts.folder
        middle = folder / "000000000002.safetensors"
        kept = middle.read_bytes()
        middle.unlink()
        with pytest.raises(ValueError, match="lacks the rows 2 … 3: give --restart"):
            Parts(output).begin_(ASKED)
        for damage in (kept[:20], b"", b"\xff" * 100):
            middle.write_bytes(damage)
            with pytest.raises(ValueError, match=r"000000000002.safetensors is damaged .*give --restart"):
                Parts(output).begin_(ASKED)
        save_arrays(middle, {"x": np.ones(1)}, {"about": 1})
        with pytest.raises(ValueError, match="is damaged"):
            Parts(output).begin_(ASKED)
        for text in ("{", "[]", '{"request": 1, "written": 2}'):
            (folder / "request.json").write_text(text)
            with pytest.raises(ValueError, match="--restart to begin anew"):
                Parts(output).begin_(ASKED)
        assert Parts(output).begin_(ASKED, restart=True) == 0


def test_a_write_that_was_killed_leaves_nothing(output: Path) -> None:
    parts = Parts(output)
    with parts.held():
        parts.begin_(ASKED)
        parts.add_(some(0, 2))
        for left in (".000000000002.safetensors.abcd.part", ".tmpA1b2C3", f"../.{output.name}.01234abc.part"):
            (parts.folder / left).write_bytes(b"half")
        (output.parent / ".other.csv.01234abc.part").write_bytes(b"another's")
        assert Parts(output).begin_(ASKED) == 2
        assert sorted(path.name for path in parts.folder.iterdir()) == [".lock", "000000000000.safetensors", "request.json"]
        assert sorted(path.name for path in output.parent.iterdir()) == [".o.csv.parts", ".other.csv.01234abc.part"]


def test_delivered_only_if_the_output_is_what_was_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = Parts(output)
    with parts.held():
        parts.begin_(ASKED)
        parts.add_(some(0, 2))
        assert parts.delivered(ASKED) is False
        with monkeypatch.context() as patch:
            patch.setattr(Parts, "clear_", lambda _: None)
            parts.deliver_(lambda path: path.write_text("done") and None)
        assert parts.delivered(ASKED) is True
        assert parts.delivered(ASKED | {"chunk": 9}) is None
        output.write_text("other")
        assert parts.delivered(ASKED) is False
        assert Parts(output).begin_(ASKED) == 2


def test_a_failed_delivery_leaves_the_parts_and_the_old_output(output: Path) -> None:
    output.parent.mkdir()
    output.write_text("old")

    def full(path: Path) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    parts = Parts(output)
    with parts.held():
        parts.begin_(ASKED)
        parts.add_(some(0, 2))
        with pytest.raises(OSError, match=r"could not write .*o.csv: No space left"):
            parts.deliver_(full)
    assert output.read_text() == "old"
    assert Parts(output).begin_(ASKED) == 2


def test_two_processes(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        Parts(output).held(),
        pytest.raises(BlockingIOError, match=r"o.csv is being written by another process"),
        Parts(output).held(),
    ):
        pass
    plain, removed = module.Lock.__enter__, []

    def slow(self: Any) -> Any:
        """The folder's last holder removes it between our opening of the lock and our holding it, once."""
        found = plain(self)
        if not removed:
            removed.append((self.folder / ".lock").unlink())
        return found

    monkeypatch.setattr(module.Lock, "__enter__", slow)
    with Parts(output).held():
        assert (Parts(output).folder / ".lock").exists()


def test_a_place_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OSError, match=r"can't be made .*choose another place for --output"),
        Parts(tmp_path / "file" / "o.csv").held(),
    ):
        pass


def test_what_is_not_ours_stays(output: Path) -> None:
    parts = Parts(output)
    with parts.held():
        parts.begin_(ASKED)
        (parts.folder / "mine.txt").write_text("mine")
    assert (parts.folder / "mine.txt").read_text() == "mine"
