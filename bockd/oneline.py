"""Text for one line that people read, in a terminal or in a log.

Names that clients choose, paths and other programs' messages may hold what a terminal obeys (escape
sequences), what begins a new line, or what turns the rest of it round (bidirectional controls).
"""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return text with all that is not printable, and is no text, escaped as Python does it."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
