"""Volumes of images that a Glance has: `bockd serve` with a [glance] section, and a Glance of the
tests' own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from bockd.model import MIB

from ..api.public import fault_of
from ..cli.images import make_image, tool
from ..daemon.process import program
from .glance import Glance, running_glance

CONFIG = """\
data_dir = "{data}"
[nbd]
listen = "none"
[api]
listen = "127.0.0.1:0"
[glance]
url = "{glance}/v2/"
timeout_seconds = 60
max_gigabytes = 1
"""


class Bockd:
    """A daemon with a Glance, which a test may kill and start again."""

    def __init__(self, root: Path, glance: Glance) -> None:
        self.data = root / "data"
        self._config = root / "bockd.toml"
        self._config.write_text(CONFIG.format(data=self.data, glance=glance.url))
        self._log = root / "log"
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [program("bockd"), "serve", "--config", self._config],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        announced = ""
        for line in self.process.stdout:
            announced += line
            if line.startswith("Next: "):
                break
        else:
            raise AssertionError(self._log.read_text())
        found = next(part for part in announced.split() if part.startswith("http://127.0.0.1:"))
        self.url = found.rstrip("/")

    def end(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        assert self.process.wait(120) == (0 if number is signal.SIGTERM else -number)
        assert self.process.stdout is not None
        self.process.stdout.close()
        assert "Traceback" not in self._log.read_text()

    def log(self) -> str:
        return self._log.read_text()

    def client(self) -> httpx.Client:
        """A client of the tenant demo, with a token of its own."""
        account = json.loads((self.data / "credentials.json").read_text())
        credentials = {key: account[key] for key in ("username", "password")}
        auth = {"auth": {"tenantName": account["tenant"], "passwordCredentials": credentials}}
        answer = httpx.post(f"{self.url}/v2.0/tokens", json=auth, timeout=60)
        token = answer.json()["access"]["token"]["id"]
        base = f"{self.url}/v1.1/{account['tenant_id']}"
        return httpx.Client(base_url=base, headers={"X-Auth-Token": token}, timeout=60)

    def uri(self, volume: int) -> str:
        return f"nbd+unix:///{volume}?socket={self.data / 'nbd.sock'}"

    def bock(self, *arguments: str) -> Any:
        """`bock ... --json`."""
        environ = {**os.environ, "BOCKD_DATA": str(self.data)}
        done = subprocess.run(
            [program("bock"), *arguments, "--json"], env=environ, capture_output=True, check=True
        )
        return json.loads(done.stdout)


@pytest.fixture
def glance() -> Iterator[Glance]:
    with running_glance() as glance:
        yield glance


@pytest.fixture
def bockd(tmp_path: Path, glance: Glance) -> Iterator[Bockd]:
    with daemon(tmp_path, glance) as bockd:
        yield bockd


@contextmanager
def daemon(root: Path, glance: Glance) -> Iterator[Bockd]:
    bockd = Bockd(root, glance)
    try:
        yield bockd
        bockd.end(signal.SIGTERM)
    finally:
        bockd.process.kill()
        bockd.process.wait()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image.qcow2", "qcow2")


def create(client: httpx.Client, **volume: object) -> httpx.Response:
    return client.post("/os-volumes", json={"volume": volume})


def status_of(client: httpx.Client, volume: int) -> str:
    found: str = client.get(f"/os-volumes/{volume}").json()["volume"]["status"]
    return found


def settled(client: httpx.Client, volume: int) -> str:
    """The status of a volume that is not `creating` any more."""
    deadline = time.monotonic() + 120
    while (status := status_of(client, volume)) == "creating":
        assert time.monotonic() < deadline
    return status


def compare(image: Path, bockd: Bockd, volume: int) -> None:
    """The volume begins with the image, and nothing but zeros comes after."""
    tool("qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, bockd.uri(volume))


def test_an_image_is_fetched_once(bockd: Bockd, glance: Glance, image: Path) -> None:
    name = glance.add(image.read_bytes(), min_disk=2)
    with bockd.client() as client:
        made = create(client, imageRef=name).json()["volume"]
        assert (made["status"], made["size"], made["imageRef"]) == ("creating", 2, name)
        assert settled(client, made["id"]) == "available"
        compare(image, bockd, made["id"])
        assert glance.tokens == {client.headers["X-Auth-Token"]}
        again = create(client, imageRef=f"{glance.url}/v2/images/{name}", size=3).json()["volume"]
        assert status_of(client, again["id"]) == "available"  # at once
        compare(image, bockd, again["id"])
        assert glance.downloads == [name]
        # It is for those whom Glance shows it to, and in no list of ours.
        assert client.get(f"{bockd.url}/v2/images").json()["images"] == []
        assert client.get(f"{bockd.url}/v2/images/{name}").status_code == 404
        with bockd.client() as stranger:
            glance.hidden_from.add(stranger.headers["X-Auth-Token"])
            assert fault_of(create(stranger, imageRef=name))[:2] == (404, "itemNotFound")
        used = client.get("/limits").json()["limits"]["absolute"]["totalGigabytesUsed"]
        assert used == 5
    (shown,) = bockd.bock("image", "list")
    assert (shown["id"], shown["name"], shown["fetched"]) == (name, f"glance-{name}", True)
    bockd.bock("image", "delete", name)
    with bockd.client() as client:
        assert settled(client, create(client, imageRef=name).json()["volume"]["id"]) == "available"
    assert glance.downloads == [name, name]


def test_many_wait_for_one_fetch(bockd: Bockd, glance: Glance, image: Path) -> None:
    name = glance.add(image.read_bytes(), checksum=None)
    glance.go_on.clear()
    with bockd.client() as client:
        made = [create(client, imageRef=name, size=1).json()["volume"]["id"] for _ in range(5)]
        assert glance.half_sent.wait(60)
        assert {status_of(client, volume) for volume in made} == {"creating"}
        for path in (f"/os-volumes/{made[0]}",):
            assert fault_of(client.delete(path))[:2] == (400, "badRequest")
        attach = {"volumeAttachment": {"volumeId": made[0], "device": None}}
        answer = client.post("/servers/1/os-volume_attachments", json=attach)
        assert fault_of(answer)[:2] == (400, "badRequest")
        glance.go_on.set()
        assert {settled(client, volume) for volume in made} == {"available"}
    compare(image, bockd, made[4])
    assert glance.downloads == [name]


def test_other_formats_and_hashes(bockd: Bockd, glance: Glance, image: Path) -> None:
    raw, vmdk = image.with_suffix(".raw"), image.with_suffix(".vmdk")
    tool("qemu-img", "convert", "-O", "raw", image, raw)
    tool("qemu-img", "convert", "-O", "vmdk", image, vmdk)
    md5_only = {"os_hash_algo": None, "os_hash_value": None}
    with bockd.client() as client:
        for name, size in (
            (glance.add(raw.read_bytes(), "raw", **md5_only), None),  # a raw image tells its size
            (glance.add(vmdk.read_bytes(), "vmdk", virtual_size=40 * MIB), None),
            (glance.add(image.read_bytes(), "raw"), None),  # as Glance says, not as it looks
        ):
            volume = create(client, imageRef=name, size=size).json()["volume"]
            assert (volume["size"], settled(client, volume["id"])) == (1, "available")
        last: int = volume["id"]
    head = bockd.data.parent / "head"
    tool(
        "qemu-img",
        "dd",
        "-f",
        "raw",
        "-O",
        "raw",
        f"if={bockd.uri(last)}",
        f"of={head}",
        "bs=64k",
        "count=1",
    )
    assert head.read_bytes() == image.read_bytes()[:65536]


def test_what_cannot_be_made_a_volume(bockd: Bockd, glance: Glance, image: Path) -> None:
    content = image.read_bytes()
    for changes, status in (
        ({"status": "queued"}, 400),
        ({"disk_format": "iso"}, 400),
        ({"container_format": "ova"}, 400),
        ({"size": None}, 400),
        ({"size": 2 << 30}, 400),  # more than max_gigabytes
        ({"checksum": None, "os_hash_value": None}, 400),
        ({"virtual_size": 2 << 30}, 400),  # does not fit into 1 GiB
        ({"min_disk": 2}, 400),
        ({"min_disk": 10**9}, 400),
        ({"id": "another"}, 404),
        ({"size": "large"}, 503),
    ):
        name = glance.add(content, **changes)
        with bockd.client() as client:
            answer = create(client, imageRef=name, size=1)
            assert answer.status_code == status, (changes, answer.text)
    with bockd.client() as client:
        unsized = glance.add(content)
        assert "needs a size" in fault_of(create(client, imageRef=unsized))[2]
        for name in ("none", "../x", "a b", "x" * 500, "%2e%2e"):
            assert create(client, imageRef=name, size=1).status_code == 404
        glance.broken = True
        assert fault_of(create(client, imageRef=unsized, size=1))[0] == 503
        assert client.get("/os-volumes").json() == {"volumes": []}
    assert glance.downloads == []


def test_what_turns_out_bad_is_in_error(
    bockd: Bockd, glance: Glance, image: Path, tmp_path: Path
) -> None:
    content = image.read_bytes()
    overlay, large = tmp_path / "overlay.qcow2", tmp_path / "large.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", "-b", image, "-F", "qcow2", overlay)
    tool("qemu-img", "create", "-f", "qcow2", large, "2G")
    half = content[: len(content) // 2]
    bad = {
        "sha512 is wrong": glance.add(content, os_hash_value="0" * 128),
        f"{len(content)} bytes came of": glance.add(content, size=len(content) + 1),
        "more than it announced": glance.add(content, size=len(content) - 1),
        "the difference to another image": glance.add(overlay.read_bytes()),
        "qemu-img failed|not in qcow2 format": glance.add(b"\0" * 5000),
        "cut short": glance.add(half),  # before it came to Glance
        "needs 2 GiB; the volume is too small": glance.add(large.read_bytes()),
    }
    files = set(os.listdir(bockd.data))
    with bockd.client() as client:
        for reason, name in bad.items():
            volume = create(client, imageRef=name, size=1).json()["volume"]["id"]
            assert settled(client, volume) == "error", reason
            assert any(part in bockd.log() for part in reason.split("|")), bockd.log()
            assert client.delete(f"/os-volumes/{volume}").status_code == 202
        assert client.get("/os-volumes").json() == {"volumes": []}
    assert set(os.listdir(bockd.data)) == files
    # Not even the large one, which is whole: no volume that it fits was there to ask for it.
    assert bockd.bock("image", "list") == []


def test_answers_that_make_no_sense(bockd: Bockd, glance: Glance) -> None:
    """503, whatever comes."""
    name = glance.add(b"x")
    nested = b'{"id": "x", "locations": ' + b"[" * 400_000
    with bockd.client() as client:
        for answer in (b"", b"\xff", b"[]", b'{"id": 1}', nested, b"[" * (2 << 20)):
            glance.answers[name] = answer or b" "
            assert fault_of(create(client, imageRef=name, size=1))[0] == 503, answer[:20]
        assert client.get("/os-volumes").json() == {"volumes": []}


def test_a_bug_of_a_tool_is_survived(
    tmp_path: Path, glance: Glance, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever comes of a stranger's image: the volume is in error, the daemon serves."""
    stand_in = tmp_path / "bin" / "qemu-img"
    stand_in.parent.mkdir()
    stand_in.write_text("#!/bin/sh\necho []\n")  # JSON, and no image's
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    bockd = Bockd(tmp_path, glance)
    try:
        name = glance.add(image.read_bytes())
        with bockd.client() as client:
            made = [create(client, imageRef=name, size=1).json()["volume"]["id"] for _ in range(3)]
            assert {settled(client, volume) for volume in made} == {"error"}
            assert client.delete(f"/os-volumes/{made[0]}").status_code == 202
        assert bockd.log().count("Traceback") >= 1  # told as what it is
        bockd.process.send_signal(signal.SIGTERM)
        assert bockd.process.wait(120) == 0
    finally:
        bockd.process.kill()
        bockd.process.communicate()


def test_killed_while_fetching(tmp_path: Path, glance: Glance, image: Path) -> None:
    name = glance.add(image.read_bytes())
    with daemon(tmp_path, glance) as bockd:
        files = set(os.listdir(bockd.data))
        glance.go_on.clear()
        with bockd.client() as client:
            volume = create(client, imageRef=name, size=1).json()["volume"]["id"]
            assert glance.half_sent.wait(60)
            bockd.end(signal.SIGKILL)
        glance.go_on.set()
        bockd.start()
        with bockd.client() as client:
            assert status_of(client, volume) == "error"  # never a blank one that looks right
            assert bockd.bock("image", "list") == []
            assert client.delete(f"/os-volumes/{volume}").status_code == 202
            assert set(os.listdir(bockd.data)) == files
            glance.go_on.clear()
            glance.half_sent.clear()
            other = create(client, imageRef=name, size=1).json()["volume"]["id"]
            assert glance.half_sent.wait(60)
            bockd.end(signal.SIGTERM)  # a clean stop does not wait for Glance
        glance.go_on.set()
        bockd.start()
        with bockd.client() as client:
            assert status_of(client, other) == "error"
            made = create(client, imageRef=name, size=1).json()["volume"]["id"]
            assert settled(client, made) == "available"
            compare(image, bockd, made)
