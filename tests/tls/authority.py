"""A certificate authority for tests.

The certificates are made by trustme and cryptography, not by the `openssl` program, whose options
change between releases (3.5 refuses to make a certificate that has expired). That program's
commands in docs/tls.md are run by test_documentation.py.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

HERE = ("localhost", "127.0.0.1", "0.0.0.0", "10.0.2.2")
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

    def __init__(
        self, directory: Path, name: str = "test CA", made: trustme.CA | None = None
    ) -> None:
        """`made`: the CA to use instead of a new one."""
        directory.mkdir()
        self.directory = directory
        self.ca = Pair(directory / "ca-cert.pem", directory / "ca-key.pem")
        self._ca = made or trustme.CA(organization_name=name)
        self._ca.cert_pem.write_to_path(self.ca.certificate)
        self._ca.private_key_pem.write_to_path(self.ca.key)

    def issue(self, name: str, *, names: tuple[str, ...] = HERE, days: int = 30) -> Pair:
        """Return a new certificate that ends in `days` days; it has expired if that is < 0."""
        made = Pair(self.directory / f"{name}-cert.pem", self.directory / f"{name}-key.pem")
        now = datetime.now(UTC)
        issued = self._ca.issue_cert(
            *names,
            common_name=name,
            not_before=now - timedelta(days=2),
            not_after=now + timedelta(days=days),
        )
        issued.cert_chain_pems[0].write_to_path(made.certificate)
        made.key.touch(mode=0o600)
        issued.private_key_pem.write_to_path(made.key)
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


def protect(key: Path, passphrase: str) -> None:
    """Encrypt the private key in the file `key`."""
    private = load_pem_private_key(key.read_bytes(), password=None)
    encryption = BestAvailableEncryption(passphrase.encode())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))


def bare_ca(*, days: int = 30) -> trustme.CA:
    """Return a CA without key usage, as a short `openssl req -x509` command makes it.

    It ends in `days` days; it has expired if that is negative."""
    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "bare CA")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(private, SHA256())
    )
    return trustme.CA.from_pem(
        certificate.public_bytes(Encoding.PEM),
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )
