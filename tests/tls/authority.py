"""A certificate authority, made with the `openssl` program that every machine with TLS has.

The commands are those of docs/tls.md, which test_documentation.py runs as they stand there.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.daemon.process import program

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")

HERE = "DNS:localhost,IP:127.0.0.1,IP:0.0.0.0,IP:10.0.2.2"
"""How tests reach a daemon on this machine, from a guest too."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path

    def replace_by(self, other: Pair) -> None:
        """As a renewal does it: new files under the old names, one after the other."""
        for old, new in ((self.certificate, other.certificate), (self.key, other.key)):
            fresh = old.with_name(old.name + ".new")
            shutil.copy(new, fresh)
            fresh.rename(old)


class Authority:
    """A CA in a directory of its own."""

    def __init__(self, directory: Path, name: str = "test CA") -> None:
        directory.mkdir()
        self.directory = directory
        self.ca = Pair(directory / "ca-cert.pem", directory / "ca-key.pem")
        openssl(
            *("req", "-x509", *NEW_KEY, "-days", "30", "-subj", f"/CN={name}"),
            *("-keyout", self.ca.key, "-out", self.ca.certificate),
        )

    def issue(self, name: str, *, names: str = HERE, days: int = 30) -> Pair:
        """A certificate that was valid until yesterday when `days` is -1."""
        made = Pair(self.directory / f"{name}-cert.pem", self.directory / f"{name}-key.pem")
        request = self.directory / f"{name}.csr"
        openssl(
            *("req", *NEW_KEY, "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}"),
            *("-keyout", made.key, "-out", request),
        )
        openssl(
            *("x509", "-req", "-in", request, "-days", str(days), "-copy_extensions", "copy"),
            *("-CA", self.ca.certificate, "-CAkey", self.ca.key, "-out", made.certificate),
        )
        return made

    def client_directory(self, name: str, own: Pair | None, ca: Pair | None = None) -> Path:
        """What libnbd and QEMU look for: the CA's certificate, and the client's own if any."""
        made = self.directory / name
        made.mkdir()
        shutil.copy((ca or self.ca).certificate, made / "ca-cert.pem")
        if own is not None:
            shutil.copy(own.certificate, made / "client-cert.pem")
            shutil.copy(own.key, made / "client-key.pem")
        return made


def openssl(*arguments: str | Path) -> None:
    """Run it; it must succeed."""
    subprocess.run([program("openssl"), *arguments], check=True, capture_output=True)
