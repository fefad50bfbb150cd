"""The OCI image, read by skopeo, unpacked by umoci, started by crun. `make test-oci`
packs it and runs this.

It is started as narrowly as a container can be: no capabilities, a root that nobody can write, a
network of its own, and a directory of this machine for its pool.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bockd import __version__
from tests.packaging.machine import READY_SECONDS
from tests.service.confined import REPOSITORY
from tests.walk.walker import read_until

USER = 10809
POOL = "/var/lib/bockd"

APART = "mount -t cgroup2 none /sys/fs/cgroup && exec crun --cgroup-manager=disabled"
"""crun refuses to begin where both versions of control groups are mounted; here it needs none."""


@dataclass(frozen=True)
class Container:
    """What was unpacked, and where its pool is on this machine."""

    bundle: Path
    pool: Path

    def command(self, verb: str, *arguments: str) -> list[str | Path]:
        """Return what has crun do something."""
        state = self.bundle.parent / "crun"
        script = f'{APART} --root "{state}" "$@"'
        return ["unshare", "--mount", "sh", "-ec", script, "crun", verb, *arguments]

    def run(self, *command: str) -> str:
        """Run a command in the container; return what it printed."""
        arguments = self.command("exec", "--user", f"{USER}:{USER}", "bockd", *command)
        return subprocess.run(
            arguments, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ).stdout

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start the image's own command. It must get ready, and end well when it is asked to."""
        with subprocess.Popen(
            self.command("run", "--bundle", str(self.bundle), "bockd"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                assert read_until(process, re.compile(rb"\nNext: "), READY_SECONDS) is not None
                yield
            finally:
                subprocess.run(self.command("kill", "bockd", "TERM"), check=False)
                said, _ = process.communicate(timeout=READY_SECONDS)
            assert process.returncode == 0, said.decode()

    def io(self, volume: str, *commands: str) -> None:
        """Have this machine's qemu-io do it to a volume; what it reads must be what was said."""
        asked = [part for command in commands for part in ("-c", command)]
        uri = f"nbd+unix:///{volume}?socket={self.pool}/nbd.sock"
        command = ["qemu-io", "-f", "raw", *asked, uri]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        assert "failed" not in said, said


@pytest.fixture
def container(tmp_path: Path) -> Container:
    """The image that `make oci` has packed, as a bundle for crun."""
    (image,) = (REPOSITORY / "dist").glob("bockd_*.oci.tar")
    layout, bundle, pool = (tmp_path / name for name in ("layout", "bundle", "pool"))
    copy = ["skopeo", "copy", "--insecure-policy", f"oci-archive:{image}", f"oci:{layout}:bockd"]
    subprocess.run(copy, check=True)
    subprocess.run(["umoci", "unpack", "--image", f"{layout}:bockd", bundle], check=True)
    pool.mkdir(mode=0o700)
    os.chown(pool, USER, USER)
    narrow(bundle / "config.json", pool)
    return Container(bundle, pool)


def narrow(configuration: Path, pool: Path) -> None:
    """Change umoci's configuration for a runtime, so that it gives as little as is needed."""
    config = json.loads(configuration.read_text())
    process = config["process"]
    assert process["args"] == ["/usr/bin/bockd", "serve"]
    assert process["user"] == {"uid": USER, "gid": USER}
    process["terminal"] = False
    process["capabilities"] = {name: [] for name in process["capabilities"]}
    config["root"]["readonly"] = True
    config["linux"].pop("resources", None)
    (volume,) = [mount for mount in config["mounts"] if mount["destination"] == POOL]
    volume.update(type="bind", source=str(pool), options=["bind", "rw", "nosuid", "nodev"])
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    scratch = {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}
    config["mounts"].append(scratch)
    configuration.write_text(json.dumps(config))


@pytest.mark.packages
def test_an_image_serves_volumes(container: Container) -> None:
    with container.running():
        info = json.loads(container.run("bock", "info", "--json"))
        assert (info["version"], info["fast_lane"]) == (__version__, "compiled")
        container.run("bock", "volume", "create", "disk1", "--size", "64MiB")
        container.io("disk1", "write -P 7 0 1M", "flush")
        container.run("bock", "snapshot", "create", "disk1", "before")
        container.io("disk1", "write -P 9 0 1M", "flush")
    with container.running():
        container.io("disk1", "read -P 9 0 1M")
        container.run("bock", "volume", "create", "disk2", "--from-snapshot", "before")
        container.io("disk2", "read -P 7 0 1M")
        container.run("bock", "volume", "export", "disk2", f"{POOL}/disk2.qcow2")
        container.run("bockd", "check")
    assert {path.lstat().st_uid for path in container.pool.rglob("*")} == {USER}
