"""The machine that a result belongs to, without anything that names it."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from bench.processes import BenchError, run
from bockd.nbd.server import fastlane

MEMORY_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "overlay"})
"""Not what volumes are kept on. (Overlay: what is behind it is unknown.)"""

_TOOLS = {
    "fio": ("fio", "--version"),
    "qemu-nbd": ("qemu-nbd", "--version"),
    "nbdkit": ("nbdkit", "--version"),
}


@dataclass(frozen=True)
class Machine:
    """Processor, memory, kernel, file system of the data, and the versions of what ran."""

    processor: str
    cores: int
    memory_gib: float
    virtual: str
    kernel: str
    file_system: str
    versions: dict[str, str]

    @property
    def vendor(self) -> str:
        """Who made the processor; its whole name for anybody but the two that are common."""
        known = [name for name in ("Intel", "AMD") if name in self.processor]
        return known[0] if known else self.processor


def describe_machine(directory: Path) -> Machine:
    """Describe this machine, with `directory` for the data."""
    processor = Path("/proc/cpuinfo").read_text()
    memory = int(_first(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text()))
    return Machine(
        processor=_first(r"model name\s*:\s*(.+)", processor) or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory / (1 << 20), 1),
        virtual="virtual" if re.search(r"^flags.*\bhypervisor\b", processor, re.M) else "physical",
        kernel=_first(r"(\d+(?:\.\d+)*)", platform.release()),
        file_system=file_system_of(directory),
        versions={
            "python": platform.python_version(),
            "bockd's fast lane": "left out" if fastlane.compiled is None else "compiled",
            **{tool: _version(command) for tool, command in _TOOLS.items()},
        },
    )


def _version(command: tuple[str, ...]) -> str:
    try:
        return _first(r"(\d+(?:\.\d+)+)", run(command))
    except BenchError:
        return "not installed"


def file_system_of(directory: Path) -> str:
    """Return the type of the file system that holds `directory`."""
    device = os.stat(directory).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split()[2] == wanted:
            return source.split()[0]
    return "unknown"


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1].strip() if found else ""
