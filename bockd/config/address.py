"""A TCP address to listen on, and how one is written."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """A TCP address to listen on. `host` without brackets; `port` 0 lets the kernel choose."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        number = _number(self.host)
        return self.host == "localhost" if number is None else number.is_loopback

    @property
    def is_unspecified(self) -> bool:
        """Whether it is all addresses of this machine."""
        number = _number(self.host)
        return number is not None and number.is_unspecified


def keeps_secrets(url: str) -> bool:
    """Return whether nobody on the way can read what browsers send to a URL, cookies above all."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    # A browser takes these names for the loopback interface (RFC 6761, section 6.3).
    is_here = Address(host, 0).is_loopback or host.endswith(".localhost")
    return parts.scheme == "https" or is_here


def _number(host: str) -> IPv4Address | IPv6Address | None:
    """The address that a host is, if it is not a name."""
    try:
        return ip_address(host)
    except ValueError:
        return None


NO_ADDRESS = "none"
"""What is written for no listener."""


def parse_address(text: str) -> Address | None:
    """Read "HOST:PORT", "[V6]:PORT" or "none". Raises ValueError."""
    if text == NO_ADDRESS:
        return None
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    digits = port.isascii() and port.isdigit() and len(port) <= len(str(MAX_PORT))
    if not colon or not host or not digits or int(port) > MAX_PORT:
        raise ValueError(f"{text!r} is not HOST:PORT, nor the word {NO_ADDRESS}")
    if ":" in host and not bracketed:
        raise ValueError(f"{text!r} is ambiguous: write an IPv6 address as [ADDRESS]:PORT")
    return Address(host, int(port))
