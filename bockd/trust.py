"""What a client over TLS believes and shows: files that OpenStack's variables name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from bockd.errors import InvalidRequestError

CA, CERTIFICATE, KEY = "OS_CACERT", "OS_CERT", "OS_KEY"

SYSTEM_CA_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
"""Where Debian and its like, and Fedora and its like, keep what everybody trusts."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Files in PEM; None for what is not given."""

    ca_file: str | None = None
    """Signs servers' certificates; without it the system's do."""
    certificate_file: str | None = None
    key_file: str | None = None
    """Of the certificate; None: in the same file."""

    @classmethod
    def of_environment(cls, environ: Mapping[str, str]) -> Self:
        """InvalidRequestError for a key without a certificate."""
        found = cls(*(environ.get(name) or None for name in (CA, CERTIFICATE, KEY)))
        if found.key_file is not None and found.certificate_file is None:
            raise InvalidRequestError(f"{KEY} is set and {CERTIFICATE} is not: set both")
        return found
