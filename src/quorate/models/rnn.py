"""Recurrent networks for sequences: LSTM (Hochreiter & Schmidhuber, Long Short-Term Memory, Neural Computation 9, 1997; with the forget
gate of Gers et al. 2000) and GRU (Cho et al. 2014, arXiv:1406.1078), in one direction or both (Schuster & Paliwal 1997).

Shapes, for sequences (B, C, L), channel first; the recurrence runs over L:

    states of the last layer    (B, L, H · D), D = 2 if bidirectional else 1
    pool "last"                 the state after the last step; backwards the one after its own last step, which is step 0
    pool "mean"                 the mean of the states over the steps
    head                        (B, H · D) → (B, classes)

Dropout (Zaremba et al. 2014, arXiv:1409.2329) acts between layers and before the head, never along time. Equations and initialisation of
the cells are those of :class:`torch.nn.LSTM` and :class:`torch.nn.GRU`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from quorate.models.shape import choice, probability, sequence_shape, whole


class RNN(nn.Module):
    """LSTM or GRU over a sequence, then a linear head.

    Args:
        shape: (channels, length) of one sequence; the length plays no part.
        classes: number of logits.
        cell: "lstm" or "gru".
        hidden: units H of each layer and direction.
        layers: how many, one upon the other.
        bidirectional: a second recurrence from the end to the beginning, in every layer.
        dropout: probability that a unit between layers or before the head is zeroed in training, in [0, 1).
        pool: what the head reads: the "last" state, or the "mean" over the steps.

    Raises:
        ValueError: another cell or pool, a size that is not a positive int, or a dropout outside [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        cell: Literal["lstm", "gru"] = "lstm",
        hidden: int = 128,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        pool: Literal["last", "mean"] = "last",
    ) -> None:
        super().__init__()
        channels, _ = sequence_shape(shape)
        units, count, dropout = whole("hidden", hidden), whole("layers", layers), probability("dropout", dropout)
        self.cell = choice("cell", cell, ("lstm", "gru"))
        self.pool = choice("pool", pool, ("last", "mean"))
        self.bidirectional = bool(bidirectional)
        make = nn.LSTM if cell == "lstm" else nn.GRU
        self.recurrent = make(
            channels, units, count, batch_first=True, dropout=dropout if count > 1 else 0.0, bidirectional=self.bidirectional
        )
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(units * (2 if bidirectional else 1), whole("classes", classes))

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, L) → logits (B, classes)."""
        states = self.recurrent(x.transpose(1, 2))
        if self.pool == "mean":
            features = states[0].mean(1)
        else:
            last = (
                states[1][0] if self.cell == "lstm" else states[1]
            )  # (layers · D, B, H), the last layer's directions at the end
            features = torch.cat([last[-2], last[-1]], 1) if self.bidirectional else last[-1]
        logits: Tensor = self.fc(self.dropout(features))
        return logits
