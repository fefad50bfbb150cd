"""Which parts of bockd are used as they were compiled.

They are built when bockd is installed and a C compiler is there, and left out otherwise; there is
nothing that only they can do. `BOCKD_FASTLANE=off` in the environment leaves them out, too.
"""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "BOCKD_FASTLANE"


def wanted(environ: Mapping[str, str]) -> bool:
    """Return whether compiled parts are to be used where they are there."""
    return environ.get(VARIABLE) != "off"
