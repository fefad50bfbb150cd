"""What a client over TLS trusts and presents: files that OpenStack's variables name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from bockd.errors import InvalidRequestError

if TYPE_CHECKING:
    import ssl

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
        """Read the file names from OpenStack's variables. Raises InvalidRequestError for a key
        without a certificate."""
        found = cls(*(environ.get(name) or None for name in (CA, CERTIFICATE, KEY)))
        if found.key_file is not None and found.certificate_file is None:
            raise InvalidRequestError(f"{KEY} is set and {CERTIFICATE} is not: set both")
        return found

    def context(self) -> ssl.SSLContext:
        """Return what a client speaks TLS with. Raises InvalidRequestError for files that cannot be
        used."""
        # Not at the top: `bock` loads it only when it speaks TLS.
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except OSError as error:
            raise InvalidRequestError(f"{CA}: {self.ca_file} cannot be used: {error}") from error
        if self.certificate_file is not None:
            try:
                context.load_cert_chain(self.certificate_file, self.key_file)
            except OSError as error:
                files = " and ".join(filter(None, (self.certificate_file, self.key_file)))
                raise InvalidRequestError(
                    f"{CERTIFICATE}, {KEY}: {files} cannot be used: {error}"
                ) from error
        return context


STRICT_CODES = range(80, 94)
"""OpenSSL's verdicts from X509_V_ERR_PATHLEN_INVALID_FOR_NON_CA to
X509_V_ERR_EXTENSIONS_REQUIRE_VERSION_3: those of X509_V_FLAG_X509_STRICT alone."""


def strictness_advice(error: BaseException) -> str:
    """Return what to do about certificates that only a strict client refuses; "" for other errors.

    Python's default TLS contexts are strict from 3.13 on: they ask for the extensions that RFC
    5280 demands, and a CA that was made with a short openssl command has too few of them.
    """
    cause: BaseException | None = error
    while cause is not None:
        # Not an import of ssl for its class: `bock` loads it only when it speaks TLS.
        if getattr(cause, "verify_code", None) in STRICT_CODES:
            return (
                "the certificates lack what RFC 5280 demands, and Python 3.13 and newer insist on "
                "it: make the CA and what it signed anew, as docs/tls.md shows"
            )
        cause = cause.__cause__ or cause.__context__
    return ""
