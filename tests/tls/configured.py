"""Configurations with TLS."""

from __future__ import annotations

from pathlib import Path

from tests.tls.authority import Authority, Pair


def configuration(
    file: Path,
    server: Pair,
    authority: Authority,
    *,
    nbd: str = "require",
    nbd_clients: str = "none",
    api: str = "off",
    api_clients: str = "none",
    metrics: str = "",
) -> Path:
    """A daemon's configuration, written to `file`."""
    file.write_text(
        f"""\
[tls]
certificate_file = "{server.certificate}"
key_file = "{server.key}"
client_ca_file = "{authority.ca.certificate}"

[nbd]
tls = "{nbd}"
client_certificates = "{nbd_clients}"

[api]
tls = "{api}"
client_certificates = "{api_clients}"

[metrics]
{metrics}
"""
    )
    return file
