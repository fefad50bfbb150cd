"""Where the NBD frontends are, and the URIs that lead through them to an attachment's export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import quote

from bockd.config import Address
from bockd.config.address import NO_ADDRESS, parse_address
from bockd.pool.gateways import Gateway

if TYPE_CHECKING:  # the daemon imports this before it is ready, and Starlette after that
    from starlette.requests import Request


@dataclass(frozen=True, slots=True)
class NbdFrontends:
    """The listeners of the daemon. `listen` is where it listens on TCP, None if it does not."""

    socket: str | None = None
    listen: Address | None = None
    tls_required: bool = False
    """Over TCP."""
    gateway: str | None = None
    """The name of the daemon, in a pool of several."""

    def uri(self, export: str, request: Request) -> str | None:
        """Return the URI over TCP, or None. A daemon that listens on all its addresses is reached
        by the one that the client has used for its request."""
        if self.listen is None:
            return None
        host = self.listen.host
        if _is_wildcard(host):
            # A request on the Unix socket comes from this machine, whatever it calls the host.
            local = "::1" if ":" in host else "127.0.0.1"
            host = (request.url.hostname or local) if request.scope.get("server") else local
        return _uri(str(Address(host, self.listen.port)), export, tls=self.tls_required)

    def uris(self, export: str, gateways: Sequence[Gateway], request: Request) -> list[str]:
        """Return the URIs over TCP by way of each of these gateways, in their order. Another one
        that listens on its machine's loopback address is left out: a server elsewhere would come
        to itself. When this one does, too, all are taken to be on one machine."""
        here_alone = self.listen is not None and _is_loopback(self.listen)
        ways = [
            self.uri(export, request)
            if one.name == self.gateway
            else _uri(one.addresses.nbd, export, tls=one.addresses.nbd_tls)
            for one in gateways
            if one.name == self.gateway or here_alone or not _is_at_home(one)
        ]
        return [way for way in ways if way is not None]

    def unix_uri(self, export: str) -> str | None:
        """Return the URI on the Unix socket, for servers on the daemon's own machine, or None."""
        if self.socket is None:
            return None
        return f"nbd+unix:///{quote(export)}?socket={quote(self.socket)}"


def _uri(place: str | None, export: str, *, tls: bool) -> str | None:
    return None if place is None else f"{'nbds' if tls else 'nbd'}://{place}/{quote(export)}"


def _is_at_home(gateway: Gateway) -> bool:
    """Whether a gateway is reached from its own machine alone."""
    try:
        address = parse_address(gateway.addresses.nbd or NO_ADDRESS)
    except ValueError:
        return False
    return address is not None and _is_loopback(address)


def _is_loopback(address: Address) -> bool:
    try:
        return ip_address(address.host).is_loopback
    except ValueError:
        return address.host == "localhost"


def _is_wildcard(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False
