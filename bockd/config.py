"""Where things are and where the daemon listens; the environment overrides the defaults."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bockd.errors import InvalidRequestError

DEFAULT_NBD_LISTEN = "127.0.0.1:10809"
"""10809 is NBD's registered port; loopback, because NBD without TLS trusts its network."""

DEFAULT_API_LISTEN = "127.0.0.1:8776"
"""8776 is the port OpenStack clients expect of block storage."""


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on. `host` without brackets; `port` 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon and the client need to find each other."""

    data_dir: Path
    """The pool directory; the sockets live in it too."""
    nbd_listen: Address | None
    """None: no TCP listener (`BOCKD_NBD_LISTEN=none`)."""
    api_listen: Address | None

    @property
    def nbd_socket(self) -> Path:
        """NBD over a Unix socket; its permissions decide who may use it."""
        return self.data_dir / "nbd.sock"

    @property
    def api_socket(self) -> Path:
        """The control API over a Unix socket, what `bock` talks to."""
        return self.data_dir / "api.sock"


def default_data_dir(environ: Mapping[str, str], *, as_root: bool) -> Path:
    """BOCKD_DATA, or /var/lib/bockd for root, or $XDG_DATA_HOME/bockd (~/.local/share/bockd)."""
    if chosen := environ.get("BOCKD_DATA"):
        return Path(chosen).absolute()
    if as_root:
        return Path("/var/lib/bockd")
    if xdg := environ.get("XDG_DATA_HOME"):
        return Path(xdg).absolute() / "bockd"
    return Path(environ.get("HOME", "/")) / ".local" / "share" / "bockd"


def parse_address(text: str, *, source: str) -> Address | None:
    """Read "HOST:PORT", "[V6]:PORT" or "none". `source` names the setting in the error."""
    if text == "none":
        return None
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise InvalidRequestError(f"{source}: {text!r} is not HOST:PORT, nor the word none")
    return Address(host, int(port))


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Settings from the environment: BOCKD_DATA, BOCKD_NBD_LISTEN, BOCKD_API_LISTEN."""
    env = os.environ if environ is None else environ
    return Settings(
        data_dir=default_data_dir(env, as_root=os.geteuid() == 0),
        nbd_listen=parse_address(
            env.get("BOCKD_NBD_LISTEN", DEFAULT_NBD_LISTEN), source="BOCKD_NBD_LISTEN"
        ),
        api_listen=parse_address(
            env.get("BOCKD_API_LISTEN", DEFAULT_API_LISTEN), source="BOCKD_API_LISTEN"
        ),
    )
