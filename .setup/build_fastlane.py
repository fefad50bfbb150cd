"""Compiles what of bockd is written in C when it is built or installed (hatchling calls this).

Without a C compiler or Python's headers bockd is built without it, and says so: it works the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

MODULES = (
    "bockd/nbd/server/_fastlane",
    "bockd/runtime/_syncing",
    "bockd/drivers/rbd/_requests",
)
"""Sources, without their suffix."""


class FastLaneHook(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the compiled modules to wheels and to editable installations."""

    def initialize(self, _version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is put together."""
        if self.target_name != "wheel":
            return
        for name in MODULES:
            module = Path(self.root, f"{name}.abi3.so")
            module.unlink(missing_ok=True)
            problem = compile_module(Path(self.root, f"{name}.c"), module)
            if problem:
                self.app.display_warning(f"bockd is built without its fast lane: {problem}")
                continue
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"cp311-abi3-{platform}"  # Py_LIMITED_API in the sources
            build_data["artifacts"].append(f"{name}.abi3.so")


def compile_module(source: Path, module: Path) -> str:
    """Why it could not be compiled; empty when it was."""
    compiler = shutil.which("cc")
    if compiler is None:
        return "there is no C compiler (cc)"
    unfinished = module.with_suffix(".new")
    command = [
        *(compiler, "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"),
        *("-I", sysconfig.get_path("include"), str(source), "-o", str(unfinished)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"{' '.join(command)} failed:\n{done.stderr}"
    unfinished.replace(module)
    return ""
