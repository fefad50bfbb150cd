"""The systemd units that come with the package, made for the programs that run here."""

from __future__ import annotations

import os
import sys
from importlib.resources import files


def render_unit(package: str, unit: str, program: str) -> str:
    """Return the text of `unit` in `package`, with the path of `program` in the place of @PROGRAM@:
    the program of this environment, or else the one that was started."""
    path = os.path.join(os.path.dirname(sys.executable), program)
    if not os.path.exists(path):
        path = os.path.abspath(sys.argv[0])
    return files(package).joinpath(unit).read_text().replace(f"@{program.upper()}@", path)
