"""The packed network as an ensemble: member-first logits from one forward pass (Laurent et al., ICLR 2023, arXiv:2210.09184).

    network(x)    (B, M · classes), member-major
    forward(x)    (M, B, classes): row m is member m

Prediction is the mean of the members' softmax (§2); training is the sum over the
members of each one's mean loss, which is M separate trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from quorate.packed.widths import Alpha


@dataclass(frozen=True)
class LayerRow:
    """One packed module.

    name: its place in the model. kind: its class. role: "first", "last", "first and last", "branch" (first of a residual branch),
    "interior", or "norm". groups: how many blocks do not see each other. gamma: subgroups per member in use.
    lowered: whether gamma was lowered on an interior layer. why: why gamma is not the one asked for, or "".
    parameters: how many it holds, all members together.
    """

    name: str
    kind: str
    role: str
    groups: int
    gamma: int
    lowered: bool
    why: str
    parameters: int


class PackedEnsemble(nn.Module):
    """M members inside one network; made by `pack` and `pack_members`.

    Attributes: members (M), alpha (α), gamma (γ asked for), network (the packed network, (B, M · classes)),
    classes (None where the model does not say it: a convolution as head, flattened).
    `combine` says how members become one prediction: the mean of their probabilities.
    """

    combine = "probs"

    def __init__(
        self,
        network: fx.GraphModule,
        members: int,
        alpha: Alpha,
        gamma: int,
        classes: int | None,
        rows: Sequence[LayerRow],
    ) -> None:
        super().__init__()
        self.network = network
        self.members, self.alpha, self.gamma, self.classes = members, alpha, gamma, classes
        self._rows = tuple(rows)

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) raw inputs → (M, B, classes) logits. Raises ValueError if the network gives no (B, M · classes)."""
        y: Tensor = self.network(x)
        wrong = y.shape[1] % self.members if self.classes is None else y.shape[1] != self.members * self.classes
        if wrong:
            classes = "classes" if self.classes is None else self.classes
            raise ValueError(
                f"expected the network to give (B, {self.members} · {classes}), got {tuple(y.shape)}; "
                "check that the input is a batch of the shape that the model takes"
            )
        return y.reshape(y.shape[0], self.members, y.shape[1] // self.members).transpose(0, 1)

    def explain(self) -> list[LayerRow]:
        """One row for each packed module, in order of execution."""
        return list(self._rows)

    def extra_repr(self) -> str:
        return f"members={self.members}, alpha={self.alpha}, gamma={self.gamma}"
