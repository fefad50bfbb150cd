"""Running the system's own tools, with errors that say what to install or what they said."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from typing import IO

from bockd.errors import DeviceError, NotSupportedError

SEARCH_PATH = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))
"""Searched after PATH: a user's PATH on Debian has no sbin, where these tools are."""

TOOL_SECONDS = 60.0
"""nbd-client waits for the network; what has not been answered by then will not be."""

DEATH_SECONDS = 1.0
"""For a program that was killed, unless it waits in the kernel."""

PACKAGES = {"nbd-client": "nbd-client", "losetup": "mount", "modprobe": "kmod"}
"""The Debian package of each tool; other distributions call most of them the same."""


def find_tool(name: str) -> str:
    """Return the path of a tool. Raises NotSupportedError, which names the package to install."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SEARCH_PATH}")
    if path is None:
        raise NotSupportedError(
            f"{name} is not installed: install the package {PACKAGES[name]} "
            f"(apt-get install {PACKAGES[name]})"
        )
    return path


def run_tool(name: str, *arguments: str) -> str:
    """Run a tool and return what it prints. Raises DeviceError with its messages when it fails, or
    when it does not end in time."""
    command = [find_tool(name), *arguments]
    # Files, because what a tool leaves in the background would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            status = run_within(TOOL_SECONDS, command, out, err)
        except TimeoutError as error:
            raise DeviceError(f"{name} did not end within {TOOL_SECONDS:g} seconds") from error
        printed, complaints = _content(out), _content(err)
    if status != 0:
        said = [line.strip() for line in f"{printed}\n{complaints}".splitlines() if line.strip()]
        raise DeviceError(f"{name} failed: {'; '.join(said) or f'status {status}'}")
    return printed


def run_within(
    seconds: float,
    command: Sequence[str],
    out: IO[bytes] | int = subprocess.DEVNULL,
    err: IO[bytes] | int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> int:
    """Run a program and return its exit status. Raises TimeoutError when it takes longer than
    `seconds`.

    It is killed then, and given `DEATH_SECONDS` to end, but no more: in the kernel, at a device
    that does not answer, a process does not even die.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, pass_fds=pass_fds
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        raise TimeoutError from None
    finally:
        if process.returncode is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(DEATH_SECONDS)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
