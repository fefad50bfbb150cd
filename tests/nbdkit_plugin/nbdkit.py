"""nbdkit with our plugin as a process of its own, on a socket that is there before it starts.

nbdkit takes the socket as systemd hands one over (LISTEN_FDS), so a client may connect at once and
is served as soon as nbdkit is ready: nothing has to be waited for.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import nbd

from ..daemon.process import PROGRAM_SECONDS, Result, program

REPOSITORY = Path(__file__).parents[2]
PLUGIN = REPOSITORY / "nbd_plugin" / "bock.py"

_FIRST_FD = 3
"""sd_listen_fds(3): the first descriptor that is handed over."""


def plain_environment() -> dict[str, str]:
    """Without what may lead to a bockd by chance: the plugin has to find it by itself."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "BOCKD_DATA")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def run_nbdkit(
    *arguments: str | Path, plugin: Path = PLUGIN, filters: tuple[str, ...] = ()
) -> Result:
    """`nbdkit -U - FILTERS python PLUGIN ARGUMENTS` to its end, which may be any."""
    ended = subprocess.run(
        [program("nbdkit"), "-U", "-", *filters, "python", plugin, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=plain_environment(),
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def refusal(*arguments: str | Path, plugin: Path = PLUGIN) -> str:
    """nbdkit must refuse to start, with one message and no traceback, which is returned."""
    result = run_nbdkit(*arguments, "--run", "echo was served", plugin=plugin)
    assert (result.status, result.out) == (1, ""), result
    assert "Traceback" not in result.err, result.err
    assert len(result.err.strip().splitlines()) == 1, result.err
    return result.err.strip()


def served(command: str, *arguments: str | Path, filters: tuple[str, ...] = ()) -> str:
    """Run a shell command on what nbdkit serves meanwhile (`--run`); it must succeed. Returns its
    output."""
    result = run_nbdkit(*arguments, "--run", command, filters=filters)
    assert result.status == 0, result
    return result.out


class Nbdkit:
    """A running nbdkit with the plugin."""

    def __init__(
        self,
        work: Path,
        *arguments: str | Path,
        filters: tuple[str, ...] = (),
        name: str = "nbdkit",
    ) -> None:
        self.socket = work / f"{name}.sock"
        self.log = work / f"{name}.log"
        with socket.socket(socket.AF_UNIX) as listening, self.log.open("ab") as log:
            listening.bind(str(self.socket))
            listening.listen(64)
            command = [program("nbdkit"), *filters, "python", str(PLUGIN), *map(str, arguments)]
            # LISTEN_PID has to be nbdkit's own.
            launch = f'exec {_FIRST_FD}<&"$0"; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"'
            self.process = subprocess.Popen(
                ["/bin/bash", "-c", launch, str(listening.fileno()), *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=plain_environment(),
                pass_fds=[listening.fileno()],
            )

    def uri(self, export: str | bytes = "") -> str:
        """The NBD URI of an export."""
        return f"nbd+unix:///{quote(export)}?socket={quote(str(self.socket))}"

    def connect(self, export: str = "") -> Any:
        """A libnbd handle that is connected (python3-libnbd has no types)."""
        handle = nbd.NBD()
        handle.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        handle.connect_uri(self.uri(export))
        return handle

    @contextmanager
    def connected(self, export: str = "") -> Iterator[Any]:
        """A libnbd handle for the duration; it says goodbye at the end."""
        handle = self.connect(export)
        try:
            yield handle
        finally:
            handle.shutdown()

    def connection_refused(self, export: str) -> str:
        """nbdkit must refuse the export; the message in its log."""
        before = len(self.messages)
        try:
            self.connect(export)
        except nbd.Error:
            return "\n".join(self.messages.splitlines()[len(self.messages[:before].splitlines()) :])
        raise AssertionError(f"{export} was served")

    @property
    def messages(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def stop(self) -> None:
        """SIGTERM; it must end well."""
        self.process.send_signal(signal.SIGTERM)
        try:
            assert self.process.wait(PROGRAM_SECONDS) == 0, self.messages
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PROGRAM_SECONDS)
        self.socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failed: object) -> None:
        if self.process.poll() is None:
            if any(failed):
                self.kill()
            else:
                self.stop()
