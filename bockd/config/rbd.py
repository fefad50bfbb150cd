"""`[rbd]`: the Ceph cluster in which a pool lies, and how this daemon reaches it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bockd.config.schema import Section, key
from bockd.config.values import integer, read_path, read_text, shown
from bockd.model import is_server_id

_CLIENT_PREFIX = "client."


def read_user(value: object) -> str:
    """Read the name of a Ceph user, without its type."""
    text = read_text(value)
    if text.startswith(_CLIENT_PREFIX):
        raise ValueError(f"write {text.removeprefix(_CLIENT_PREFIX)!r}, without {_CLIENT_PREFIX!r}")
    return text


def _part_of(what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        text = read_text(value)
        if "/" in text or "@" in text:
            raise ValueError(f"{shown(text)} is not the name of {what}: it has no '/' and no '@'")
        return text

    return read


def read_gateway(value: object) -> str:
    """Read the name of a gateway."""
    text = read_text(value)
    if not is_server_id(text):
        raise ValueError(f"{shown(text)} is not 1 to 255 letters, digits, '.', '_' and '-'")
    return text


@dataclass(frozen=True, slots=True)
class RbdSettings(Section):
    """`[rbd]`: a pool in a Ceph cluster."""

    conf_file: Path = key(Path("/etc/ceph/ceph.conf"), read_path)
    user: str = key("bockd", read_user)
    """client.NAME in Ceph's own words."""
    keyring_file: Path | None = key(None, read_path)
    """None: where conf_file, or Ceph's default, says."""
    pool: str = key("rbd", _part_of("a Ceph pool"))
    namespace: str = key("bockd", _part_of("a namespace"))
    """One namespace is one pool of bockd's. Not Ceph's default one: others may use that."""
    gateway: str | None = key(None, read_gateway)
    """None: the host's name."""
    connect_seconds: int = key(10, integer(1, 300))
    max_open_volumes: int = key(200, integer(1, 10_000))
    """Each has a connection to the cluster: 12 threads and 3 MB."""
    max_clone_depth: int = key(5, integer(1, 15))
    """Reads of a deep clone ask each parent in turn. Ceph allows 16."""

    @property
    def gateway_name(self) -> str:
        """The name of this gateway. Raises ValueError: nobody has given one, and the host's name is
        none."""
        if self.gateway is not None:
            return self.gateway
        try:
            return read_gateway(socket.gethostname())
        except ValueError as error:
            raise ValueError(f"is missing, and the host's name is none: {error}") from None
