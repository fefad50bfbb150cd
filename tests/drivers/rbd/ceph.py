"""What tests say that need Ceph's Python modules, where these are missing."""

from __future__ import annotations

import pytest

NEEDED = "needs the packages python3-rados and python3-rbd, and .setup/ceph to link their modules"


def need_modules() -> None:
    """Skip the module that calls this where Ceph's Python modules cannot be imported."""
    for name in ("rados", "rbd"):
        pytest.importorskip(name, reason=NEEDED)
