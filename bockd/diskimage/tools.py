"""How QEMU's programs are run, and what they complained about.

Looking at an image that a stranger may have made has limits of memory and time: a header can ask
for tables of any size.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess

from bockd.errors import BockdError, DamagedError, NoSpaceError, NotFoundError

LOOK_MEMORY_BYTES = 1 << 30
LOOK_CPU_SECONDS = 30
"""The same limits that OpenStack's services set."""

TOOL_MISSING = 127
"""Exit status of what runs another program and does not find it."""

_PLACE = re.compile(r" at byte [0-9]+")


def run_tool(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run one of QEMU's tools to its end. Raises NotFoundError when it is not installed."""
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise missing_tool(command[0]) from error


def run_limited(
    command: list[str], cpu_seconds: int = LOOK_CPU_SECONDS
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool that looks at a stranger's image. A tool that exceeds `cpu_seconds` is killed, and
    its `returncode` is negative. Raises NotFoundError when it is not installed."""
    limits = ["prlimit", f"--as={LOOK_MEMORY_BYTES}", f"--cpu={cpu_seconds}"]
    result = run_tool([*limits, *command])
    if result.returncode == TOOL_MISSING:
        raise missing_tool(command[0])
    return result


def missing_tool(name: str) -> NotFoundError:
    """Return the error that says how to install a tool."""
    return NotFoundError(f"{name} is not installed: apt install qemu-utils")


def tool_failure(stderr: bytes) -> BockdError:
    """Return the error for a conversion that failed: NoSpaceError if the disk was full, else
    DamagedError."""
    told = f"qemu-img failed: {tool_message(stderr)}"
    # The kernel's words, from whoever writes; and ours, from a daemon that cannot open a volume.
    full = os.strerror(errno.ENOSPC) in told or "is full" in told
    return NoSpaceError(told) if full else DamagedError(told)


def tool_message(stderr: bytes) -> str:
    """Return what a tool complained about, on one line and without its own name in front.

    qemu-img copies with eight requests at a time, and each of them reports the same failure: a
    complaint that differs from an earlier one only in the place is left out.
    """
    told: dict[str, str] = {}
    for line in stderr.decode(errors="replace").strip().splitlines():
        text = line.removeprefix("qemu-img: ").strip()
        told.setdefault(_PLACE.sub("", text), text)
    return "; ".join(told.values()) or "no reason given"
