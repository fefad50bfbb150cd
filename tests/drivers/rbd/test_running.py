"""`make run-ceph`: a daemon on a cluster of its own, and nothing of both after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from tests.daemon.process import environment_without_a_cloud, program

from .cluster import missing

MIB = 1 << 20
END_SECONDS = 60.0
"""An end takes about a second; the machine may be busy with other tests."""


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a short path, for what is temporary."""
    return tmp_path_factory.mktemp("run")


def read_until(stream: IO[str], pattern: str) -> re.Match[str]:
    """Read lines up to one that contains a pattern."""
    text = ""
    for line in stream:
        text += line
        if found := re.search(pattern, line):
            return found
    raise AssertionError(f"it ended: {text}")


def processes_of(directory: Path) -> list[str]:
    """The commands of processes that have something to do with a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environ = (path.parent / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(directory) in command + environ:
            found.append(command)
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_volume_is_copied_through_it_and_nothing_is_left(
    scratch: Path, number: signal.Signals
) -> None:
    if lacking := missing():
        pytest.skip(lacking)
    environ = {**environment_without_a_cloud(), "TMPDIR": str(scratch)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.drivers.rbd.running"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
        cwd=Path(__file__).parents[3],
        # As a terminal's foreground job: its Ctrl-C is for all of the group.
        process_group=0,
    )
    assert process.stdout is not None
    try:
        config = read_until(process.stdout, r"export BOCKD_CONFIG=(\S+)")[1]
        read_until(process.stdout, r"^Next: ")
        environ["BOCKD_CONFIG"] = config

        def run(*command: str | Path) -> str:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environ, check=False, timeout=240
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        source, copy = Path(config).parent / "source", Path(config).parent / "copy"
        source.write_bytes(os.urandom(8 * MIB))
        run(program("bock"), "volume", "create", "disk", "--size", "8MiB")
        uri = f"nbd+unix:///disk?socket={Path(config).parent}/data/nbd.sock"
        run(program("nbdcopy"), source, uri)
        run(program("qemu-img"), "compare", "-f", "raw", "-F", "raw", source, uri)
        run(program("nbdcopy"), uri, copy)
        assert copy.read_bytes() == source.read_bytes()
        os.killpg(process.pid, number)
        status = process.wait(END_SECONDS)
        assert status == (0 if number != signal.SIGKILL else -signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if number == signal.SIGKILL:
        # They end by themselves, in a moment.
        for _ in range(600):
            if not processes_of(scratch):
                break
            signal.sigtimedwait([], 0.1)
    else:
        assert list(scratch.iterdir()) == []
    assert processes_of(scratch) == []
