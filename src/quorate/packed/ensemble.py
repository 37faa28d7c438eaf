"""The packed network as an ensemble: member-first logits from one forward pass (Laurent et al., ICLR 2023, arXiv:2210.09184).

    forward(x)    (B, …) shared inputs → (M, B, classes): row m is member m
    each(x)       (M, B, …), an input of its own for every member → (M, B, classes)

Prediction is the mean of the members' softmax (§2); training is the sum over the
members of each one's mean loss, which is M separate trainings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

from torch import Tensor, fx, nn

from quorate.packed.apart import EXECUTIONS, large, run_apart
from quorate.packed.layers.arrangement import spread
from quorate.packed.layers.widths import Alpha

if TYPE_CHECKING:
    from quorate.packed.backends import Tuning


@dataclass(frozen=True)
class LayerRow:
    """One packed layer, or bare parameter.

    name: its place in the model. kind: its class. role: "first", "last", "first and last", "branch" (first of a residual branch),
    "interior", "across" (along another dimension than the width: in full for every member), "norm" (also slopes and stochastic
    depth), or "parameter". groups: how many blocks do not see each other. gamma:
    subgroups per member in use. lowered: whether gamma was lowered on an interior layer. why: why gamma is not the one asked
    for, or "". parameters: how many it holds, all members together. backend: how it is computed, "" where there is no choice.
    """

    name: str
    kind: str
    role: str
    groups: int
    gamma: int
    lowered: bool
    why: str
    parameters: int
    backend: str = ""


@dataclass(frozen=True)
class Program:
    """What a packed network was made from, beside its layers.

    member: the graph of one member, None for a model that was not traced. each: the graph for inputs of the members' own.
    places, each_places: where the members lie at each step of the network and of `each`. output, each_output: how they lie in its
    output: in "rows" or "channels".
    """

    member: fx.Graph | None = None
    each: fx.Graph | None = None
    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    each_places: dict[str, tuple[str, int]] = field(default_factory=dict)
    output: str = "rows"
    each_output: str = "rows"


class PackedEnsemble(nn.Module):
    """M members inside one network; made by `pack` and `pack_members`.

    Attributes: members (M), alpha (α), gamma (γ asked for), network (the packed network),
    classes (None where the model does not say it: a convolution as head, flattened), execution ("auto", "together" or "apart").
    `combine` says how members become one prediction: the mean of their probabilities.
    """

    combine = "probs"

    def __init__(
        self,
        network: nn.Module,
        members: int,
        alpha: Alpha,
        gamma: int,
        classes: int | None,
        rows: Sequence[LayerRow],
        program: Program,
    ) -> None:
        super().__init__()
        self.network = network
        self.members, self.alpha, self.gamma, self.classes = members, alpha, gamma, classes
        self.program = program
        self._rows = tuple(rows)
        self.execution = "auto"
        self._skeletons: WeakKeyDictionary[Thread, nn.Module] | None = None  # by thread, of `apart.py`
        self._run_own: Callable[[nn.Module, Tensor], Tensor] | None = None  # the steps of `each`, on the network's layers

    def __getstate__(self) -> dict[str, Any]:
        """All but what is made anew when it is needed: a copy starts without it."""
        return self.__dict__ | {"_run_own": None, "_skeletons": None}

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) raw inputs → (M, B, classes) logits. Raises ValueError if the network gives something else."""
        if self.execution == "apart" or (self.execution == "auto" and large(self, x)):
            return self._checked(run_apart(self, [x] * self.members), x.shape[0])
        inputs = spread(x, self.members) if self.program.member is None else x
        return self._first(self.network(inputs), x.shape[0], self.program.output)

    def each(self, x: Tensor) -> Tensor:
        """(M, B, …) raw inputs, row m for member m → (M, B, classes) logits. Raises ValueError for another first size than M."""
        if x.dim() < 2 or x.shape[0] != self.members:
            raise ValueError(
                f"each: expected an input for each of {self.members} members (M, B, …), got {tuple(x.shape)}; stack them"
            )
        if self.execution == "apart" or (self.execution == "auto" and large(self, x[0])):
            return self._checked(run_apart(self, list(x.unbind(0))), x.shape[1])
        rows = x.flatten(0, 1)
        if self.program.each is None:
            return self._first(self.network(rows), x.shape[1], self.program.each_output)
        if self._run_own is None:
            self._run_own = type(fx.GraphModule(self.network, self.program.each, "PackedNetworkEach")).forward
        return self._first(self._run_own(self.network, rows), x.shape[1], self.program.each_output)

    def _first(self, y: Tensor, batch: int, form: str) -> Tensor:
        """The network's output, member first."""
        members, rows = self.members, form == "rows"
        first, second = (members * batch, self.classes) if rows else (batch, self.classes and members * self.classes)
        fits = y.dim() == 2 and y.shape[0] == first and (second is None or y.shape[1] == second)
        if not fits or (not rows and y.shape[1] % members):
            classes = "classes" if self.classes is None else self.classes
            wanted = f"({members} · B, {classes})" if rows else f"(B, {members} · {classes})"
            raise ValueError(
                f"expected the network to give {wanted} for a batch of {batch}, got {tuple(y.shape)}; "
                "check that the input is a batch of the shape that the model takes"
            )
        if rows:
            return y.reshape(members, batch, y.shape[1])
        return y.reshape(batch, members, y.shape[1] // members).transpose(0, 1)

    def _checked(self, logits: Tensor, batch: int) -> Tensor:
        """Member-first logits. Raises ValueError for another shape."""
        fits = logits.dim() == 3 and logits.shape[1] == batch and self.classes in (None, logits.shape[2])
        if not fits:
            classes = "classes" if self.classes is None else self.classes
            raise ValueError(
                f"expected each member to give ({batch}, {classes}), got {tuple(logits.shape[1:])}; "
                "check that the input is a batch of the shape that the model takes"
            )
        return logits

    def set_execution_(self, name: str) -> Self:
        """How members run: "together" in one pass, "apart" one after the other, or "auto", the rule of `apart.py`. Or ValueError."""
        if name not in EXECUTIONS:
            raise ValueError(f"execution: expected one of {', '.join(EXECUTIONS)}, got {name!r}; choose one of them")
        self.execution = name
        return self

    def explain(self) -> list[LayerRow]:
        """One row for each packed layer, in order of execution."""
        layers = dict(self.network.named_modules())
        return [replace(row, backend=getattr(layers.get(row.name), "backend", "")) for row in self._rows]

    def tune(self, example: Tensor, **options: Any) -> Tuning:
        """Measure the backends of the layers on a real batch (B, …) and set the fastest: see :func:`quorate.packed.tune`."""
        from quorate.packed.backends import tune

        return tune(self, example, **options)

    def extra_repr(self) -> str:
        return f"members={self.members}, alpha={self.alpha}, gamma={self.gamma}"
