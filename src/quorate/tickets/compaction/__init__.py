"""Channels that dynamic sparse training left empty, cut out for good."""

from quorate.tickets.compaction.choosing import Kept
from quorate.tickets.compaction.narrowing import compact, removable

__all__ = ["Kept", "compact", "removable"]
