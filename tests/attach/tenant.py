"""A tenant of a running daemon: the block storage API as its client sees it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import nbd

from tests.daemon.process import Bockd

ANSWER_SECONDS = 120.0
"""A detach may wait for its clients, and the machine be busy."""


@dataclass(frozen=True)
class Attached:
    """What the API says of an attachment."""

    volume: int
    server: str
    uri: str
    unix_uri: str
    export: str


class Tenant:
    """The first tenant, with the credentials that the daemon has made."""

    def __init__(self, daemon: Bockd, *, verify: str | None = None) -> None:
        """`verify`: the CA's certificate, for a daemon that speaks HTTPS."""
        self.daemon = daemon
        self._verify = ssl.create_default_context(cafile=verify) if verify else False
        credentials = json.loads((daemon.data_dir / "credentials.json").read_text())
        self._auth = {
            "auth": {
                "tenantId": credentials["tenant_id"],
                "passwordCredentials": {
                    "username": credentials["username"],
                    "password": credentials["password"],
                },
            }
        }
        self.id = credentials["tenant_id"]
        self._token = ""

    def request(self, method: str, path: str, body: object = None) -> httpx.Response:
        """One request below the tenant's path; a token is asked for when there is none."""
        with httpx.Client(
            base_url=self.daemon.api_url, timeout=ANSWER_SECONDS, verify=self._verify
        ) as client:
            if not self._token:
                answer = client.post("/v2.0/tokens", json=self._auth)
                assert answer.status_code == 200, answer.text
                self._token = answer.json()["access"]["token"]["id"]
            return client.request(
                method,
                f"/v1.1/{self.id}{path}",
                json=body,
                headers={"X-Auth-Token": self._token},
            )

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.request(method, path, body)
        assert answer.status_code in (200, 202), answer.text
        return answer.json() if answer.content else None

    def create(self, name: str | None = None, size: int = 1) -> int:
        """A new volume's id."""
        body = {"volume": {"size": size, "display_name": name}}
        volume: int = self._ask("POST", "/os-volumes", body)["volume"]["id"]
        return volume

    def try_extend(self, volume: int, size: int) -> httpx.Response:
        """Grow a volume to a number of GiB, which may be refused."""
        path = f"/os-volumes/{volume}/action"
        return self.request("POST", path, {"os-extend": {"new_size": size}})

    def extend(self, volume: int, size: int) -> None:
        """An extension that succeeds."""
        answer = self.try_extend(volume, size)
        assert answer.status_code == 202, answer.text

    def show(self, volume: int) -> dict[str, Any]:
        """One volume."""
        shown: dict[str, Any] = self._ask("GET", f"/os-volumes/{volume}")["volume"]
        return shown

    def try_attach(self, volume: int, server: str, device: str | None = None) -> httpx.Response:
        """An attach that may be refused."""
        body = {"volumeAttachment": {"volumeId": volume, "device": device}}
        return self.request("POST", f"/servers/{server}/os-volume_attachments", body)

    def attach(self, volume: int, server: str = "web1", device: str | None = None) -> Attached:
        """An attach that succeeds."""
        answer = self.try_attach(volume, server, device)
        assert answer.status_code == 200, answer.text
        return _attached(volume, server, answer.json()["volumeAttachment"])

    def attachments(self, server: str) -> dict[int, str]:
        """The volumes of a server, and the device of each."""
        path = f"/servers/{server}/os-volume_attachments"
        listed = self._ask("GET", path)["volumeAttachments"]
        return {one["volumeId"]: one["device"] for one in listed}

    def attachment(self, volume: int, server: str = "web1") -> dict[str, Any]:
        """One attachment, with our extra key."""
        path = f"/servers/{server}/os-volume_attachments/{volume}"
        shown: dict[str, Any] = self._ask("GET", path)["volumeAttachment"]
        return shown

    def try_detach(
        self, volume: int, server: str = "web1", *, force: bool = False
    ) -> httpx.Response:
        """A detach that may be refused."""
        query = "?force=true" if force else ""
        path = f"/servers/{server}/os-volume_attachments/{volume}{query}"
        return self.request("DELETE", path)

    def detach(self, volume: int, server: str = "web1", *, force: bool = False) -> None:
        """A detach that succeeds."""
        answer = self.try_detach(volume, server, force=force)
        assert (answer.status_code, answer.content) == (202, b""), answer.text


def _attached(volume: int, server: str, view: dict[str, Any]) -> Attached:
    extra = view["bockd"]
    return Attached(volume, server, extra["uri"], extra["unix_uri"], extra["export"])


def connect(uri: str) -> Any:
    """A libnbd handle that is connected (python3-libnbd has no types)."""
    handle = nbd.NBD()
    handle.connect_uri(uri)
    return handle


@contextmanager
def connected(uri: str) -> Iterator[Any]:
    """The same for the duration; it says goodbye at the end."""
    handle = connect(uri)
    try:
        yield handle
    finally:
        handle.shutdown()


def is_refused(uri: str) -> bool:
    """Whether the server knows no such export."""
    try:
        connect(uri).shutdown()
    except nbd.Error as error:
        if error.errno != "ENOENT":
            raise
        return True
    return False
