"""An ensemble of tickets: sparse networks as members, of which each knows its masks and counts what a sparse forward pass costs.

    ensemble(x) → (M, B, C)     members run as the dense modules they are, with zeros in them
    stage m costs   rest + Σ_w macs_w · live_w / N_w       multiply-adds per row, by the masks of member m

Source: Liu et al. 2022 (Deep Ensembling with No Overhead for either Training or Testing, arXiv 2106.14568), §3.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from quorate.ensemble import DeepEnsemble, MemberStage
from quorate.tickets.files import load_ticket, load_ticket_, save_ticket
from quorate.tickets.ledger import Ledger
from quorate.tickets.masks import Masks, Multipliers
from quorate.tickets.ticket import check_fits, check_masks, state_of
from quorate.training.loader import Loader
from quorate.training.regime import Regime
from quorate.training.settings import Settings

SEPARATOR = "/"  # stands for the "." of a weight's name, which a buffer's name can't hold


class MemberMasks(nn.Module):
    """The masks of one member as bool buffers: they are saved, copied and moved with it, and never cast."""

    def __init__(self, masks: Masks) -> None:
        super().__init__()
        for name, mask in masks.items():
            self.register_buffer(name.replace(".", SEPARATOR), mask.detach().clone())

    def by_weight(self) -> Masks:
        """{weight: mask}: the buffers themselves."""
        return {name.replace(SEPARATOR, "."): mask for name, mask in self.named_buffers()}

    def live(self) -> dict[str, int]:
        """Live count of each weight."""
        return {name: int(mask.sum()) for name, mask in self.by_weight().items()}


class TicketStage(MemberStage):
    """One ticket as a stage, whose MACs are those of its live weights."""

    def __init__(self, name: str, module: nn.Module, masks: MemberMasks) -> None:
        super().__init__(name, module)
        self.masks = masks

    def counted_macs(self, x: Tensor, carry: Mapping[str, Tensor]) -> int:  # noqa: ARG002
        """Multiply-adds per row of a forward pass that skips dead weights."""
        live = self.masks.live()
        return Ledger.of_model(self.module, x, list(live)).inference_macs(live)


class Tickets(DeepEnsemble):
    """M sparse networks as one ensemble (Liu et al. 2022, arXiv 2106.14568); each ticket is a stage that counts its live weights alone.

    The masks are buffers ``masks.<m>.<weight>`` (with "/" for "."): part of the state dict. They say where the zeros are and are not
    applied: ``quorate.fit`` trains the members further with dead weights kept at zero, who does it in a loop of his own keeps them so
    (:class:`quorate.tickets.SparseTraining`).

    Args:
        models: the members, as of :class:`quorate.DeepEnsemble`, with zeros where they are dead.
        masks: of each member, {weight: bool tensor of its shape and on its device}, True = live; copied.
        kind: what the members emit.

    Attributes:
        about: of each member, JSON values that its ticket file keeps: what the training said of it, nothing at first.

    Raises:
        ValueError: as DeepEnsemble; another number of masks than members, a mask that does not fit its weight, or a weight that is not 0
            where its mask is False.
    """

    def __init__(
        self, models: Iterable[nn.Module], masks: Sequence[Masks], kind: Literal["logits", "gaussian"] = "logits"
    ) -> None:
        super().__init__(models, kind)
        if len(masks) != len(self.members):
            raise ValueError(
                f"masks: expected one dict for each of the {len(self.members)} members, got {len(masks)}; pass them in order"
            )
        for m, (member, given) in enumerate(zip(self.members, masks, strict=True)):
            if strange := [name for name in given if SEPARATOR in name]:
                raise ValueError(
                    f"{strange[0]!r} of member {m}: expected a weight's name without {SEPARATOR!r}; rename the module"
                )
            check_masks(dict(member.named_parameters()), given, f"member {m}")
        self.masks = nn.ModuleList(MemberMasks(given) for given in masks)
        self.about: list[dict[str, Any]] = [{} for _ in masks]

    @property
    def ticket_masks(self) -> list[Masks]:
        """The masks of each member by weight: the ensemble's own tensors, not copies."""
        return [self._masks(m).by_weight() for m in range(len(self.members))]

    def _masks(self, m: int) -> MemberMasks:
        masks = self.masks[m]
        assert isinstance(masks, MemberMasks)
        return masks

    def stages(self) -> list[nn.Module]:
        """One stage per ticket, named ``member0`` …, with ``counted_macs``."""
        return [TicketStage(f"member{m}", member, self._masks(m)) for m, member in enumerate(self.members)]

    def regime(self, settings: Settings, loader: Loader) -> Regime:  # noqa: ARG002
        """How ``quorate.fit`` trains it: with the masks as they are."""
        return FixedMasks(self)

    def save_members(self, folder: Path) -> None:
        """Write the ticket files of a run into its folder, under ``tickets``; errors as of :func:`save_tickets`."""
        save_tickets(self, folder / "tickets", self.about)

    def load_members_(self, folder: Path) -> None:
        """Read what :meth:`save_members` wrote: tensors, masks and ``about``, in place.

        Raises:
            ValueError: a damaged file, another number of tickets than members, or a ticket of another structure or of other sparse
                weights; nothing is changed then.
            OSError: a file that is not there, or can't be read.
        """
        folder, total = folder / "tickets", len(self.members)
        if more := [path for m, path in sorted(_found(folder).items()) if m >= total]:
            raise ValueError(
                f"{more[0]} is a ticket too many: expected those of {total} members, build the ensemble as it was saved"
            )
        paths = [folder / f"member{m}.safetensors" for m in range(total)]
        networks = [copy.deepcopy(member) for member in self.members]
        masks = [load_ticket_(network, path) for network, path in zip(networks, paths, strict=True)]
        for m, (path, given) in enumerate(zip(paths, masks, strict=True)):
            if odd := sorted(self._masks(m).by_weight().keys() ^ given.keys()):
                raise ValueError(
                    f"{path} has other sparse weights than member {m}: they differ in {odd[0]!r}, build it as it was saved"
                )
        self.about = [load_ticket(path).about for path in paths]
        for m, (network, given) in enumerate(zip(networks, masks, strict=True)):
            self.set_ticket_(m, state_of(network)[0], given)

    @torch.no_grad()
    def set_ticket_(self, m: int, state: Mapping[str, Tensor], masks: Masks) -> None:
        """Put a ticket in the place of member `m`: its tensors and its masks, in place, from any device.

        Args:
            m: which member, 0 … M − 1.
            state: the state dict of a network of the member's structure, with zeros where it is dead.
            masks: of the same weights as the member's.

        Raises:
            ValueError: no such member, other tensors or masks than the member's, or a weight that is not 0 where its mask is False;
                nothing is changed then.
        """
        if isinstance(m, bool) or not isinstance(m, int) or not 0 <= m < len(self.members):
            raise ValueError(
                f"m: expected a member's number in 0 … {len(self.members) - 1}, got {m!r}; members are counted from 0"
            )
        own = self._masks(m).by_weight()
        if odd := sorted(own.keys() ^ masks.keys()):
            raise ValueError(
                f"masks: expected those of member {m}'s {len(own)} sparse weights, got others in {odd[0]!r}; use the same weights"
            )
        held, shared = state_of(self.members[m])
        check_fits(state, held, "the ticket")
        if apart := [
            name for name, first in shared.items() if not torch.allclose(state[name], state[first], 0, 0, equal_nan=True)
        ]:
            raise ValueError(
                f"{apart[0]!r} of the ticket: expected the values of {shared[apart[0]]!r}, with which the member shares it, got others; "
                "take the state of a network that shares it too"
            )
        check_masks({name: state[name] for name in masks}, masks, "the ticket")
        for name, tensor in held.items():
            tensor.copy_(state[name])
        for name, mask in own.items():
            mask.copy_(masks[name])


class FixedMasks(Regime):
    """Dead weights are 0 again after every step of the optimiser."""

    ensemble: Tickets
    hook: torch.utils.hooks.RemovableHandle | None = None

    def begin_(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Any] | None) -> None:  # noqa: ARG002
        """Put the masks behind the optimiser's step."""
        pairs = zip(self.ensemble.members, self.ensemble.ticket_masks, strict=True)
        dead = [(member.get_parameter(name), mask) for member, masks in pairs for name, mask in masks.items()]
        weights = [weight for weight, _ in dead]
        multipliers = Multipliers(weights, [mask for _, mask in dead])
        self.hook = optimizer.register_step_post_hook(lambda *_: multipliers.apply_(weights))

    def stop_(self) -> None:
        """Take them off."""
        if self.hook is not None:
            self.hook.remove()


def save_tickets(ensemble: Tickets, folder: str | Path, about: Sequence[Mapping[str, Any]] | None = None) -> list[Path]:
    """Write each member as a ticket file ``member0.safetensors`` … of :func:`quorate.tickets.save_ticket`; older ones are replaced.

    Args:
        ensemble: whose members hold zeros where they are dead.
        folder: where to; made if need be.
        about: JSON values about each member.

    Raises:
        ValueError: as `save_ticket`; another number of `about` than members; a folder that holds tickets of more members, which
            would be taken for this ensemble's.
        OSError: the folder can't be written.
    """
    folder, total = Path(folder), len(ensemble.members)
    if about is not None and len(about) != total:
        raise ValueError(f"about: expected one dict for each of the {total} members, got {len(about)}; pass them in order")
    if more := [path.name for m, path in sorted(_found(folder).items()) if m >= total]:
        raise ValueError(
            f"{folder}: expected a folder for {total} tickets, got one that holds {more[0]}; remove it or choose another folder"
        )
    pairs = list(zip(ensemble.members, ensemble.ticket_masks, strict=True))
    for m, (member, masks) in enumerate(pairs):
        check_masks(state_of(member)[0], masks, f"member {m}")
    paths = [folder / f"member{m}.safetensors" for m in range(total)]
    for m, (path, (member, masks)) in enumerate(zip(paths, pairs, strict=True)):
        save_ticket(member, masks, path, None if about is None else about[m])
    return paths


def load_tickets(
    source: str | Path | Sequence[str | Path], make: Callable[[], nn.Module], kind: Literal["logits", "gaussian"] = "logits"
) -> Tickets:
    """The ensemble of a folder that :func:`save_tickets` wrote, or of ticket files in the order given.

    Args:
        source: a folder with ``member0.safetensors`` …, or paths of files.
        make: builds one network of the tickets' structure; called once per ticket.
        kind: what the members emit.

    Raises:
        ValueError: a folder without tickets or with a gap in their numbers, a damaged file, or a network of another structure.
        OSError: a file that is not there.
    """
    if isinstance(source, str | Path):
        found = _found(Path(source))
        if sorted(found) != list(range(len(found))) or not found:
            names = ", ".join(found[m].name for m in sorted(found)) or "no ticket"
            raise ValueError(
                f"{source}: expected a folder with member0.safetensors and on without a gap, got {names}; pass the files' paths"
            )
        paths: list[str | Path] = [found[m] for m in range(len(found))]
    else:
        paths = list(source)
    models = [make() for _ in paths]
    return Tickets(models, [load_ticket_(model, path) for model, path in zip(models, paths, strict=True)], kind)


def _found(folder: Path) -> dict[int, Path]:
    """The ticket files in a folder by number."""
    files = folder.glob("member*.safetensors") if folder.is_dir() else ()
    return {int(match[1]): path for path in files if (match := re.fullmatch(r"member(0|[1-9]\d*)\.safetensors", path.name))}
