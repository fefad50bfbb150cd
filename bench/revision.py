"""Which bockd was measured: its version, and the commit of the tree that it ran from."""

from __future__ import annotations

from pathlib import Path

from bench.processes import BenchError, run
from bockd import __version__

_ROOT = Path(__file__).parents[1]
_MEASURED = ("bockd", "api", "nbd_plugin", "bench", "pyproject.toml", "requirements.lock")
"""What a result depends on; the page itself may have changed."""


def describe_revision() -> str:
    """Describe the version and the commit, and whether anything was changed since."""
    git = ("git", "-C", str(_ROOT))
    try:
        commit = run([*git, "rev-parse", "--short=12", "HEAD"]).strip()
        changed = run([*git, "status", "--porcelain", "--", *_MEASURED]).strip()
    except BenchError:  # not a clone
        return f"bockd {__version__}, of no known commit"
    return f"bockd {__version__}, commit {commit}{' with changes' if changed else ''}"
