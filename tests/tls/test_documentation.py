"""The commands of docs/tls.md, as they stand there, make certificates that work."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from textwrap import dedent

from bockd.config.sections import TlsSettings
from bockd.model import ClientCertificates
from bockd.tls.certificates import Certificates
from tests.tls.served import client_context

DOCUMENT = Path(__file__).parents[2] / "docs" / "tls.md"


def commands() -> str:
    """The block under "Certificates"."""
    section = DOCUMENT.read_text().partition("## Certificates")[2]
    lines = section[section.index("    umask") :].splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("    "))
    return dedent("\n".join(lines[:end]))


def test_the_commands_make_what_both_sides_take(tmp_path: Path) -> None:
    subprocess.run(["sh", "-ec", commands()], cwd=tmp_path, check=True, capture_output=True)
    made = tmp_path / "tls"
    settings = TlsSettings(made / "server-cert.pem", made / "server-key.pem", made / "ca-cert.pem")
    kind = ClientCertificates.REQUIRED
    server_side = Certificates(settings, [kind]).context(kind)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = client_context(made)
    # What Python's own clients set from 3.13 on.
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    client = context.wrap_bio(back, there, server_hostname="storage1.example.org")
    server = server_side.wrap_bio(there, back, server_side=True)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    shown = server.getpeercert()
    assert shown is not None
    assert shown["subject"] == ((("commonName", "host1"),),)
