"""The systemd units that come with the package, made for the programs that run here."""

from __future__ import annotations

import os
import sys
from importlib.resources import files


def render_unit(package: str, unit: str, program: str) -> str:
    """The text of `unit` in `package`, where @PROGRAM@ stands for the path of `program`: the one of
    this environment, or else whatever was started."""
    path = os.path.join(os.path.dirname(sys.executable), program)
    if not os.path.exists(path):
        path = os.path.abspath(sys.argv[0])
    return files(package).joinpath(unit).read_text().replace(f"@{program.upper()}@", path)
