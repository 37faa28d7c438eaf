"""Weights of a run: written atomically, read back into an ensemble of the same structure.

They are ``weights.safetensors``, the ensemble's state dict. An ensemble that keeps files of its own, such as sparse networks in a few
bytes, says so by two methods, ``save_members(folder)`` and ``load_members_(folder)``, of which ``folder`` is the run's; then these
files are all there is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from quorate.files import atomic


def save_weights(ensemble: nn.Module, folder: Path) -> None:
    """Write the weights into a run folder. An OSError where they can't be written."""
    own = _own(ensemble, "save_members")
    if own is not None:
        own(folder)
        return
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in ensemble.state_dict().items()}
    with atomic(folder / "weights.safetensors") as temporary:
        try:
            save_file(tensors, temporary)
        except SafetensorError as error:
            raise OSError(str(error)) from error


def load_weights_(ensemble: nn.Module, folder: str | Path) -> None:
    """Load a finished run's weights into an ensemble of the same structure and put it into eval mode.

    Raises:
        FileNotFoundError, ValueError: no or unreadable weights, or tensors of other names or shapes.
    """
    own = _own(ensemble, "load_members_")
    if own is not None:
        own(Path(folder))
        ensemble.eval()
        return
    path = Path(folder) / "weights.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: expected the weights of a finished run")
    try:
        ensemble.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}): train the run again") from error
    except RuntimeError as error:
        first = " ".join(str(error).split())
        raise ValueError(f"{path} does not fit this ensemble: {first}") from error
    ensemble.eval()


def _own(ensemble: nn.Module, name: str) -> Callable[[Path], None] | None:
    """A method of the ensemble's own; a submodule of that name is none."""
    found = getattr(ensemble, name, None)
    return found if callable(found) and not isinstance(found, nn.Module) else None
