"""What goes wrong with a corpus."""

from __future__ import annotations


class CorpusError(ValueError):
    """A corpus that is missing, broken or not what was asked for; the message says where and what to do."""
