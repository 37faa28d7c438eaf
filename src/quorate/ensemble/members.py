"""Ensembles of whole modules: separate networks, and one more layer on every member's output."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from quorate.combination import Combine, Kind


def kind_of(ensemble: nn.Module) -> Kind:
    """What the members emit: the ensemble's ``kind``, ``"logits"`` where it declares none. ValueError for another kind than these three."""
    kind: Kind = getattr(ensemble, "kind", "logits")
    if kind not in ("logits", "values", "gaussian"):
        raise ValueError(
            f"the ensemble declares kind={kind!r}: expected 'logits', or for a regression 'values' or 'gaussian' (means and log-variances)"
        )
    return kind


def has_each(ensemble: nn.Module) -> bool:
    """Whether the members can have inputs of their own: ``each`` is a method, not a submodule of that name."""
    own = getattr(ensemble, "each", None)
    return callable(own) and not isinstance(own, nn.Module)


def each(ensemble: nn.Module, x: Tensor) -> Tensor:
    """The members' outputs on inputs of their own, by the ensemble's method ``each``.

    Args:
        ensemble: a module by the contract above.
        x: (M, B, *shape), row m the input of member m.

    Returns:
        (M, B, C), row m the output of member m on x[m].

    Raises:
        ValueError: an ensemble without that method, or inputs that are not one batch per member.
    """
    if not has_each(ensemble):
        raise ValueError(
            f"{type(ensemble).__name__} takes one input for all members: expected a method each(x), (M, B, *shape) → (M, B, C), for inputs "
            "of their own"
        )
    outputs: Tensor = ensemble.each(x)  # type: ignore[operator]
    return outputs


class MemberStage(nn.Module):
    """A stage that is one module on the raw input: (B, C) logits, or (m, B, C) of several members. Carries nothing."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        self.name, self.module = name, module
        self.reads: tuple[str, ...] = ()
        self.writes: tuple[str, ...] = ()
        self.drops: tuple[str, ...] = ()

    def forward(self, x: Tensor, carry: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:  # noqa: ARG002
        logits = self.module(x)
        return (logits[None] if isinstance(logits, Tensor) and logits.ndim == 2 else logits), {}


class DeepEnsemble(nn.Module):
    """M separate networks as one ensemble (Lakshminarayanan et al. 2017, arXiv 1612.01474); each member is a stage.

    Args:
        models: the members, each x → (B, C). They may differ in architecture, not in C. A single model is an ensemble of one.
        kind: ``"logits"``; for a regression ``"values"``, members that give (B, D), or ``"gaussian"``, (B, 2D) means and log-variances.

    Raises:
        ValueError: no models, the same model twice, another kind, or members that return other than (B, C) of one width.
    """

    combine: Combine = "probs"

    def __init__(self, models: Iterable[nn.Module], kind: Literal["logits", "values", "gaussian"] = "logits") -> None:
        super().__init__()
        self.members = nn.ModuleList(models)
        self.kind = kind
        kind_of(self)
        if not len(self.members):
            raise ValueError("DeepEnsemble([]): expected at least one model")
        if len({id(member) for member in self.members}) != len(self.members):
            raise ValueError(
                "DeepEnsemble got the same model twice: build each member anew (copy.deepcopy copies the weights too)"
            )

    def forward(self, x: Tensor) -> Tensor:
        return _stacked([member(x) for member in self.members])

    def each(self, x: Tensor) -> Tensor:
        """Members on inputs of their own: (M, B, *shape) → (M, B, C). Raises ValueError for another number of batches than members."""
        if x.ndim < 2 or x.shape[0] != len(self.members):
            raise ValueError(f"x of shape {tuple(x.shape)}: expected ({len(self.members)}, B, …), a batch for each member")
        return _stacked([member(rows) for member, rows in zip(self.members, x.unbind(), strict=True)])

    def stages(self) -> list[nn.Module]:
        """One stage per member, named ``member0`` …."""
        return [MemberStage(f"member{m}", member) for m, member in enumerate(self.members)]


def _stacked(logits: list[Tensor]) -> Tensor:
    shapes = [tuple(member.shape) for member in logits]
    if any(len(shape) != 2 or shape != shapes[0] for shape in shapes):
        raise ValueError(f"members returned shapes {shapes}: expected (B, C) from each, with one C")
    return torch.stack(logits)


class OutputLayer(nn.Module):
    """An ensemble whose members' outputs (M, B, C) go through one more layer, such as :class:`quorate.data.GaussianOutput`.

    For ensembles in one network (packed ones), whose members have no last layer of their own. It is one stage.

    Args:
        ensemble: a module by the contract above.
        layer: (…, C) → (…, C'), the same for every member.
        kind: what comes out.
    """

    combine: Combine = "probs"

    def __init__(self, ensemble: nn.Module, layer: nn.Module, kind: Literal["logits", "values", "gaussian"] = "gaussian") -> None:
        super().__init__()
        self.ensemble, self.layer, self.kind = ensemble, layer, kind
        kind_of(self)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(self.ensemble(x))
        return outputs

    @property
    def each(self) -> Callable[[Tensor], Tensor]:
        """Members on inputs of their own: (M, B, *shape) → (M, B, C'). It is there only if the ensemble inside has it."""
        if not has_each(self.ensemble):
            raise AttributeError("each")
        return self._each

    def _each(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.layer(each(self.ensemble, x))
        return outputs
