"""Channels that dynamic sparse training left empty, cut out for good."""

from quorate.graphs.narrowing import Kept
from quorate.tickets.compaction.compacting import compact, removable

__all__ = ["Kept", "compact", "removable"]
