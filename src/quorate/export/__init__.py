"""Trained ensembles as bundles: stages become programs (ONNX), a policy, golden outputs and a card are put beside them."""

from __future__ import annotations

from quorate.export.chain import programs
from quorate.export.exporting import program
from quorate.export.precision import lower
from quorate.export.refit import Lowered, lowered
from quorate.export.saving import save_bundle
from quorate.export.sparsifying import Sparsified, sparsify
from quorate.export.tickets import without_sparse

__all__ = ["Lowered", "Sparsified", "lower", "lowered", "program", "programs", "save_bundle", "sparsify", "without_sparse"]
