"""Corruptions for measuring what an ensemble does when its inputs change: images, sequences, log-mel spectrograms; five severities."""

from __future__ import annotations

from quorate.data.corruptions.catalogue import CORRUPTIONS, Corruption, Kind, corruption, corruptions_for
from quorate.data.corruptions.corrupted import Corrupted

__all__ = ["CORRUPTIONS", "Corrupted", "Corruption", "Kind", "corruption", "corruptions_for"]
