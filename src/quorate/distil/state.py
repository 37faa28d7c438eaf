"""A distillation's state on disk: written after every round, so that a kill at any moment costs at most the round under way.

======================================  ===========================================================================================
``distil/state.json``                   rounds so far: accepted candidates, η, ln Z, what each round reported, multiply-adds spent
``distil/student-T.safetensors``        weights of the student of round T (from 1)
``distil/scores-T.npy``                 S (N, L) after round T on the transfer rows; ``held-T.npy`` on the validation rows
``distil/teacher.npy``                  the teacher's outputs (N, L) on the transfer rows; ``teacher-held.npy`` on the validation rows
``rounds.jsonl``                        one line per round and search, to be read by people and programs
======================================  ===========================================================================================

A round's files carry its number and are written first; ``state.json`` names the round and is replaced last, in one step. Files of other
rounds than it names are left over from a kill. No pickle.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quorate.files import atomic, read_json, write_json, write_text

FORMAT = "quorate-distillation/1"
FIELDS = {"rounds", "log", "level", "attempt", "spent", "bounds", "game", "held", "stopped"}


class Store:
    """The files of a distillation in a run folder."""

    def __init__(self, folder: Path) -> None:
        self.run = folder
        self.folder = folder / "distil"

    def read(self) -> dict[str, Any] | None:
        """The state of the last finished round, None before the first. ValueError for a damaged or foreign file."""
        path = self.folder / "state.json"
        if not path.exists():
            return None
        state = read_json(path, "the state of a distillation")
        if not isinstance(state, dict) or state.get("format") != FORMAT or not state.keys() >= FIELDS or not state["rounds"]:
            raise ValueError(f"{path} is no state of a distillation: delete the run folder to begin anew")
        return state

    def write_round(self, student: nn.Module, scores: np.ndarray, held: np.ndarray, state: dict[str, Any]) -> None:
        """Keep an accepted student, the sums after it, and then the state that names them."""
        number = len(state["rounds"])
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in student.state_dict().items()}
        with atomic(self.folder / f"student-{number}.safetensors") as temporary:
            try:
                save_file(tensors, temporary)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        self.write_array(f"scores-{number}", scores)
        self.write_array(f"held-{number}", held)
        self.write(state)
        for old in (f"scores-{number - 1}.npy", f"held-{number - 1}.npy"):
            (self.folder / old).unlink(missing_ok=True)

    def write(self, state: dict[str, Any]) -> None:
        """Replace the state."""
        write_json(self.folder / "state.json", {"format": FORMAT, **state})

    def write_log(self, lines: list[dict[str, Any]]) -> None:
        """Replace ``rounds.jsonl``."""
        write_text(self.run / "rounds.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def write_array(self, name: str, values: np.ndarray) -> None:
        """Write an array as ``.npy``."""
        with atomic(self.folder / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, np.asarray(values, np.float32), allow_pickle=False)

    def array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array that was written, of this shape. ValueError for another one."""
        path = self.folder / f"{name}.npy"
        try:
            found = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"{path} can't be read ({error}): delete the run folder to begin anew") from error
        if found.dtype != np.float32 or found.shape != shape:
            raise ValueError(
                f"{path} holds {found.dtype} {found.shape}, expected float32 {shape}: delete the run folder to begin anew"
            )
        return np.asarray(found)

    def has(self, name: str) -> bool:
        """Whether an array was written."""
        return (self.folder / f"{name}.npy").exists()

    def load_student_(self, student: nn.Module, number: int) -> None:
        """Put the weights of the round's student into one that was built alike. ValueError where they don't fit."""
        path = self.folder / f"student-{number}.safetensors"
        try:
            student.load_state_dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} can't be read ({error}): delete the run folder to begin anew") from error
        except RuntimeError as error:
            raise ValueError(
                f"{path} does not fit the student that is built now ({' '.join(str(error).split())}): use the same students"
            ) from error

    def clear(self) -> None:
        """Delete what was only needed to go on."""
        for path in self.folder.glob("*"):
            path.unlink()
        if self.folder.exists():
            self.folder.rmdir()
