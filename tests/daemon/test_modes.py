"""What the daemon makes is its owner's alone, whatever the umask."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bockd.host.records import Records

from .process import Bockd, serving


@contextmanager
def umask(bits: int) -> Iterator[None]:
    """For us and for what we start."""
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


def attach(daemon: Bockd, volume: int) -> None:
    """Attach a volume to a server, as a tenant does."""
    known = json.loads((daemon.data_dir / "credentials.json").read_text())
    login = {"username": known["username"], "password": known["password"]}
    auth = {"auth": {"passwordCredentials": login, "tenantId": known["tenant_id"]}}
    with httpx.Client(base_url=daemon.api_url) as client:
        token = client.post("/v2.0/tokens", json=auth).json()["access"]["token"]["id"]
        path = f"/v1.1/{known['tenant_id']}/servers/1/os-volume_attachments"
        body = {"volumeAttachment": {"volumeId": volume}}
        answer = client.post(path, json=body, headers={"X-Auth-Token": token})
        assert answer.is_success, answer.text


def use_everything(daemon: Bockd, image: Path) -> None:
    """Each feature that makes a file."""
    disk = daemon.bock("volume", "create", "disk", "--size", "1M")["id"]
    with daemon.connected("disk") as client:
        client.pwrite(b"text" * 1024, 0)
        client.flush()
    daemon.bock("snapshot", "create", "disk", "before")
    daemon.bock("volume", "create", "copy", "--from-snapshot", "before")
    daemon.bock("image", "import", image)
    daemon.bock("volume", "extend", "copy", "--size", "2M")
    attach(daemon, disk)
    client = daemon.connect("disk")
    client.pwrite(b"more" * 1024, 65536)
    daemon.kill()  # a journal stays, and is recovered
    daemon.start()
    client = daemon.connect("disk")
    client.pwrite(b"last" * 1024, 4096)


def modes(root: Path) -> dict[str, str]:
    """Every file, directory and socket below, and the mode of each."""
    found = {}
    for path in [root, *root.rglob("*")]:
        mode = path.lstat().st_mode
        found[str(path.relative_to(root.parent))] = f"{stat.S_IMODE(mode):o}"
    return found


@pytest.mark.parametrize("bits", [0, 0o077])
def test_everything_is_its_owners_alone(tmp_path: Path, bits: int) -> None:
    image = tmp_path / "image.raw"
    image.write_bytes(b"image..." * 65_536)
    place = tmp_path / "state"
    with (
        umask(bits),
        serving(
            place / "a" / "pool",
            api_listen="127.0.0.1:0",
            log=tmp_path / "log",
            is_forked=False,
        ) as daemon,
    ):
        use_everything(daemon, image)
        found = modes(place)
        assert any("/journal/" in name for name in found)
        assert "state/a/pool/api.sock" in found
        private = {name for name, mode in found.items() if mode in ("600", "700")}
        assert found.keys() == private, {n: m for n, m in found.items() if n not in private}


@pytest.mark.parametrize("bits", [0, 0o077])
def test_what_bock_remembers_is_its_owners_alone(tmp_path: Path, bits: int) -> None:
    records = Records(tmp_path / "run" / "bock")
    with umask(bits), records.locked():
        pass
    found = modes(tmp_path / "run")
    assert set(found.values()) == {"600", "700"}, found
