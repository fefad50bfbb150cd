"""Walks README.md's walk: a shell in one terminal, the daemon in another.

`python -m tests.walk.walker ROOT` walks it in a root directory that .setup/walk has prepared, as
root and then as the user `walker`; test_walk.py walks it here.
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.walk.steps import README, Step, steps

COMMAND_SECONDS = 300.0
SETUP_SECONDS = 1800.0
"""For `make run`, which installs packages on a machine that has none."""

SIGN_OF_LIFE = {"qemu-system": rb"SeaBIOS|Booting", "bock stat": rb"NAME|VOLUME"}
"""What an endless command prints once it works."""


@dataclass
class Walker:
    """Someone at two terminals. `prefix` makes a command theirs, on their machine."""

    directory: str
    """The checkout, as they see it."""
    prefix: Sequence[str | Path]
    environment: Mapping[str, str]
    root: bool
    make: bool = True
    """Whether `make run` is typed as it stands; otherwise what it runs once all is set up."""
    in_directory: bool = True
    """Whether the pool is in a directory, not in a cluster."""
    packages: bool = False
    """Whether the packages that README names are installed; otherwise they must be there."""
    taken: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    ready_seconds: list[float] = field(default_factory=list)
    """From each `make run` to the daemon's last line."""
    _exports: list[str] = field(default_factory=list)
    _daemon: subprocess.Popen[bytes] | None = None

    def walk(self) -> None:
        """All of it. AssertionError names the command that failed, with what it printed."""
        try:
            for step in steps(README.read_text()):
                walked = step.walked(root=self.root, in_directory=self.in_directory)
                if not walked or (step.installs and not self.packages):
                    self.left_out.append(step.command)
                    continue
                self._take(step)
                self.taken.append(step.command)
        finally:
            self._end_daemon()

    def _take(self, step: Step) -> None:
        if step.daemon:
            self._end_daemon()
            self._start_daemon(step.command)
        elif step.endless:
            self._watch(step.command)
        elif step.installs:
            self._run(step.command.replace("sudo ", "", 1).replace("install", "install --yes", 1))
        else:
            if step.export:
                # A shell for each command, which begins with what was set before.
                self._set(step.command)
            else:
                self._run(step.command)

    def _shell(self, command: str) -> list[str | Path]:
        typed = "\n".join([f"cd {shlex.quote(self.directory)}", *self._exports, command])
        given = [f"{name}={value}" for name, value in self.environment.items()]
        return [*self.prefix, "env", *given, "bash", "-euo", "pipefail", "-c", typed]

    def _set(self, command: str) -> None:
        name = re.sub(r"^export ", "", command).partition("=")[0]
        value = self._run(f'{command}\nprintf %s "${name}"')
        self._exports.append(f"export {name}={shlex.quote(value)}")

    def _run(self, command: str) -> str:
        ended = subprocess.run(
            self._shell(command),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=SETUP_SECONDS if "apt-get" in command else COMMAND_SECONDS,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    def _watch(self, command: str) -> None:
        """Run it until it shows that it works; then end it as one does at a terminal."""
        sign = next(sign for name, sign in SIGN_OF_LIFE.items() if command.startswith(name))
        with self._started(command) as process:
            said = read_until(process, re.compile(sign), COMMAND_SECONDS)
        assert said is not None, f"{command} did not show {sign!r}"

    def _start_daemon(self, command: str) -> None:
        if not self.make:
            # What the target runs when set-up finds all in place.
            options = re.search(r'ARGS="(.*)"', command)
            command = f"exec .venv/bin/bockd serve {options[1] if options else ''}"
            if options and options[1].startswith("--mount "):
                self._run(f"mkdir -p {options[1].removeprefix('--mount ')}")
        elif "--mount " in command:
            self._run("mkdir -p " + command.partition("--mount ")[2].rstrip('"'))
        begun = time.monotonic()
        self._daemon = self._start(command)
        said = read_until(self._daemon, re.compile(rb"\nNext: "), SETUP_SECONDS)
        assert said is not None, f"{command}: the daemon did not get ready"
        self.ready_seconds.append(time.monotonic() - begun)

    def _end_daemon(self) -> None:
        if self._daemon is not None:
            interrupt(self._daemon)
            self._daemon = None

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self._shell(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches all of a terminal's foreground
        )

    @contextmanager
    def _started(self, command: str) -> Iterator[subprocess.Popen[bytes]]:
        process = self._start(command)
        try:
            yield process
        finally:
            interrupt(process)


def interrupt(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C; what takes no notice of it is killed in the end, and what it prints is dropped."""
    assert process.stdout is not None
    with process.stdout:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def read_until(
    process: subprocess.Popen[bytes], sign: re.Pattern[bytes], seconds: float
) -> bytes | None:
    """What it printed up to `sign`; None when it ends before. AssertionError when it is late."""
    assert process.stdout is not None
    said = b""
    deadline = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not sign.search(said):
            left = deadline - time.monotonic()
            assert left > 0, f"nothing like {sign.pattern!r} in:\n{said.decode(errors='replace')}"
            if not selector.select(left):
                continue
            piece = os.read(process.stdout.fileno(), 65536)
            if not piece:
                print(said.decode(errors="replace"))
                return None
            said += piece
    return said


# -- where it is walked ----------------------------------------------------------------------------


def give_images(directory: Path) -> None:
    """The files that the walk takes for granted."""
    image = directory / "debian-12.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "3M"], check=True)
    (directory / "image.raw").write_bytes(b"image..." * 65_536)


@contextmanager
def machine(start: Sequence[str | Path], node: str) -> Iterator[list[str | Path]]:
    """What puts a command into one mount namespace, with the root directory that `start` has.

    Every user may open /dev/fuse there, as udev has it; `node` is a name for its device file."""
    device = os.stat("/dev/fuse").st_rdev
    keep = (
        f"rm -f {node} && mknod -m 666 {node} c {os.major(device)} {os.minor(device)} && "
        f"mount --bind {node} /dev/fuse && echo made && exec cat"
    )
    with subprocess.Popen(
        [*start, "sh", "-c", keep], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "made\n"
        yield ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt", f"--root=/proc/{keeper.pid}/root"]


def walk_in(root: Path, enter: Sequence[str | Path], user: str) -> None:
    """Walk on a clean machine, whose packages the first walk installs: root's."""
    home = "/root" if user == "root" else f"/home/{user}"
    # The daemons of others on this machine have the usual ports.
    ports = {"BOCKD_NBD_LISTEN": "127.0.0.1:0", "BOCKD_API_LISTEN": "127.0.0.1:0"}
    give_images(root / home[1:] / "bockd")
    is_root = user == "root"
    prefix = enter if is_root else [*enter, "runuser", "-u", user, "--"]
    environment = {"HOME": home, "USER": user, **ports}
    walker = Walker(f"{home}/bockd", prefix, environment, root=is_root, packages=is_root)
    walker.walk()
    seconds = ", ".join(f"{one:.1f}" for one in walker.ready_seconds)
    print(f"{root.name}, as {user}: {len(walker.taken)} commands walked")
    print(f"  seconds from `make run` to a daemon: {seconds}")
    for command in walker.left_out:
        print(f"  not walked here: {command}", flush=True)


def main() -> None:
    """Walk in the root directory that the command line names."""
    root = Path(sys.argv[1])
    in_root = Path(__file__).parents[2] / ".setup" / "in-root"
    with machine([in_root, root], "/run/fuse") as enter:
        for user in ("root", "walker"):
            walk_in(root, enter, user)


if __name__ == "__main__":
    main()
