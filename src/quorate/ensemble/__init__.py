"""The contract: an ensemble is an ``nn.Module`` whose ``forward(x)`` returns member-first logits (M, B, C).

Nothing need be inherited. Four things may be declared:

- ``kind``: ``"logits"`` (default), or for a regression ``"values"``: ``forward`` gives (M, B, D) values, and ``"gaussian"``: it gives
  (M, B, 2D), D means and then D log-variances. :func:`quorate.fit` trains members of the first and the last kind.
- ``combine``: ``"probs"`` (default; members' probabilities are averaged) or ``"logits"``; ``"last"`` where every stage
  replaces the ones before it (the exits of one network).
- ``stages()``: a list of modules that can be run one after the other, each with ``name, reads, writes, drops`` and
  ``forward(x, carry) → (logits (m, B, C), written)``, where ``carry`` is a flat dict of named tensors, batch first. Run in order they give
  the rows of ``forward``. An ensemble without ``stages`` is one stage. A stage may say its cost itself, for work that can be skipped:
  ``counted_macs(x, carry) → int``, multiply-adds per row, is taken instead of a count of what PyTorch runs.
- ``each(x)``: the members on inputs of their own, x (M, B, *shape) → (M, B, C), where row m is member m on x[m] and depends on no other
  part of x; with one input for all it is ``forward``. It lets a training give every member its own order and augmentation of the data.

Sources: member-first logits and the loss, Laurent et al. 2023 (arXiv 2210.09184), §3; Gaussian members, Lakshminarayanan et al. 2017
(arXiv 1612.01474), §2.2; members that see the data in their own order, §2.4 there; stages, Xia & Bouganis 2023 (arXiv 2303.08010).
"""

from __future__ import annotations

from quorate.cost.counting import evaluating
from quorate.ensemble.collecting import Rows, collect
from quorate.ensemble.loss import gaussian_loss, mean_probs, member_loss
from quorate.ensemble.members import DeepEnsemble, MemberStage, OutputLayer, each, has_each, kind_of
from quorate.ensemble.staging import WrappedStage, device_of, stage_macs, stages, to_device

__all__ = [
    "DeepEnsemble", "MemberStage", "OutputLayer", "Rows", "WrappedStage", "collect", "device_of", "each", "evaluating",
    "gaussian_loss", "has_each", "kind_of", "mean_probs", "member_loss", "stage_macs", "stages", "to_device",
]  # fmt: skip
