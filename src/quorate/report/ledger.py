"""What a run of sparse networks has cost, from the ledger in its record; ratios are to one dense network.

    training_ratio     training MACs to those of a dense network that is trained for as many epochs as one run
    inference_ratio    MACs per input, of all members or of a cascade over them, to the dense network's
    live_ratio         parameters of all members that are live to the dense network's parameters
    exploration_rate   share of the sparse weights that was live at any time of a run
    overlap            Jaccard index of two tickets' masks, the mean over pairs

MACs are those of kernels that skip dead weights (:class:`quorate.tickets.Ledger`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

Figures = dict[str, float]


def ledger_figures(facts: Mapping[str, Any], macs: float | None = None) -> Figures:
    """The figures above of a run's record, none where it has no ledger.

    Args:
        facts: of a run (:attr:`quorate.runs.Run.facts`, which are checked when they are read).
        macs: per input, of a cascade over the members; None for all of them.
    """
    if "ledger" not in facts:
        return {}
    ledger = facts["ledger"]
    inference, live, overlap = ledger["inference_macs"], ledger["live_parameters"], ledger["overlap"]
    ratio = inference["ratio"] if macs is None else macs * inference["ratio"] / inference["total"]
    found = {
        "training_ratio": float(ledger["training_ratio"]),
        "inference_ratio": float(ratio),
        "live_parameters": float(live["total"]),
        "live_ratio": float(live["ratio"]),
    }
    if ledger["exploration_rate"] is not None:
        found["exploration_rate"] = float(ledger["exploration_rate"])
    if pairs := [overlap[i][j] for i, j in itertools.combinations(range(len(overlap)), 2)]:
        found["overlap"] = sum(pairs) / len(pairs)
    return found
