"""Where this daemon is reached over TCP, as the other gateways of its pool are told."""

from __future__ import annotations

import socket
from ipaddress import ip_address

from bockd.config import Address, Settings
from bockd.model import TlsMode
from bockd.nbd.server.listener import address_of
from bockd.pool.gateways import Addresses


def addresses(
    settings: Settings, nbd: socket.socket | None, api: socket.socket | None
) -> Addresses:
    """Return the addresses of the listeners. One that listens on all addresses of its machine is
    reached by the machine's name."""
    scheme = "http" if settings.api.tls is TlsMode.OFF else "https"
    return Addresses(
        nbd=None if nbd is None else str(_from_elsewhere(address_of(nbd))),
        nbd_tls=settings.nbd.tls is TlsMode.REQUIRE,
        api=None if api is None else f"{scheme}://{_from_elsewhere(address_of(api))}/",
    )


def _from_elsewhere(address: Address) -> Address:
    try:
        everywhere = ip_address(address.host).is_unspecified
    except ValueError:
        return address
    return Address(socket.gethostname(), address.port) if everywhere else address
