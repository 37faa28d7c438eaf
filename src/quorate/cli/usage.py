"""What a command raises for arguments that it can't take: exit status 2, not 1."""

from __future__ import annotations


class UsageError(Exception):
    """Wrong arguments; the text is one line."""
