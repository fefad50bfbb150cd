"""The daemon's certificate: read from its files, tried, and read again when they have changed.

`Certificates` is asked for a context for each client that comes. It then looks whether a file is
another one than before, which costs three system calls and needs no task and no signal. New files
are taken if all is right with them; otherwise the old certificate stays in use, and the log says
why. Files that are replaced one after the other are wrong for a moment, and right for the next
client.
"""

from __future__ import annotations

import logging
import os
import ssl
import stat
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from bockd.config.sections import Settings, TlsSettings
from bockd.errors import InvalidRequestError
from bockd.model import ClientCertificates, TlsMode

log = logging.getLogger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2: those with forward secrecy and authenticated encryption, as all of TLS 1.3's are."""

MAX_FILE_BYTES = 1 << 20
"""All of a distribution's CA certificates take a quarter of it."""

EXPIRY_WARNING_SECONDS = 14 * 24 * 3600.0
"""Renewing is done a month ahead by the usual tools; two weeks ahead something does not work."""

VERIFY = {
    ClientCertificates.NONE: ssl.CERT_NONE,
    ClientCertificates.OPTIONAL: ssl.CERT_OPTIONAL,
    ClientCertificates.REQUIRED: ssl.CERT_REQUIRED,
}

Contexts = Mapping[ClientCertificates, ssl.SSLContext]


class CertificateError(InvalidRequestError):
    """A file of `[tls]` is not what it should be. `key` names it as the configuration does."""

    code = "certificate"

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"{key}: {reason}")
        self.key = key
        self.reason = reason


def wanted(settings: Settings) -> frozenset[ClientCertificates]:
    """Return the kinds of contexts that the listeners need. None of them uses TLS if it is
    empty."""
    return frozenset(
        one.client_certificates
        for one in settings.listeners.values()
        if one.listen and one.tls is not TlsMode.OFF
    )


class Certificates:
    """See the module's docstring."""

    def __init__(self, settings: TlsSettings, kinds: Collection[ClientCertificates]) -> None:
        """Load the certificate. Raises CertificateError when the files cannot be used."""
        self._settings = settings
        self._kinds = kinds
        self._seen = self._look()
        self._contexts = load(settings, kinds)

    def context(self, kind: ClientCertificates) -> ssl.SSLContext:
        """Return the TLS context for a client that has just connected. Files that have changed are
        read first."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._renew()
        return self._contexts[kind]

    def _look(self) -> list[tuple[int, ...] | None]:
        """Return what changes when a file does."""
        return [_identity(path) for path in _files(self._settings)]

    def _renew(self) -> None:
        try:
            self._contexts = load(self._settings, self._kinds)
        except CertificateError as error:
            log.warning("the changed certificate is not taken, the old one goes on: %s", error)
        else:
            log.info("the changed certificate is in use")


def _files(settings: TlsSettings) -> list[Path]:
    files = (settings.certificate_file, settings.key_file, settings.client_ca_file)
    return [path for path in files if path is not None]


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def load(settings: TlsSettings, kinds: Collection[ClientCertificates]) -> Contexts:
    """Load a context of each kind from the files. Raises CertificateError for whatever is wrong."""
    certificate, key = settings.certificate_file, settings.key_file
    assert certificate is not None  # the settings' own check
    assert key is not None
    _check_certificate(certificate)
    _check_key(key)
    contexts = {kind: _context(certificate, key) for kind in kinds}
    for kind, context in contexts.items():
        if kind is not ClientCertificates.NONE:
            assert settings.client_ca_file is not None
            _trust(context, settings.client_ca_file)
        context.verify_mode = VERIFY[kind]
    _try(_context(certificate, key), certificate)
    return contexts


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    # Clients stay for long: there is nothing to gain from resuming, which would not verify again.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.num_tickets = 0
    try:
        context.load_cert_chain(certificate, key, password=_refuse_passphrase(key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"{key} is not the key of the certificate in {certificate}"
        else:
            reason = f"{key} holds no private key in PEM that can be used ({_reason(error)})"
        raise CertificateError("tls.key_file", reason) from error
    except OSError as error:  # it has gone since it was looked at
        raise CertificateError("tls.key_file", f"cannot read {key}: {error.strerror}") from error
    return context


def _refuse_passphrase(key: Path) -> Callable[[], str]:
    """Return what refuses a key with a passphrase. OpenSSL would ask at the terminal."""

    def refuse() -> str:
        raise CertificateError("tls.key_file", f"{key} has a passphrase, which nobody would enter")

    return refuse


def _check_certificate(path: Path) -> None:
    _read("tls.certificate_file", path)
    try:
        _scratch().load_verify_locations(path)
    except ssl.SSLError as error:
        reason = f"{path} holds no certificate in PEM"
        raise CertificateError("tls.certificate_file", reason) from error


def _check_key(path: Path) -> None:
    """Its content is looked at with the certificate's."""
    _read("tls.key_file", path)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o027:
        raise CertificateError(
            "tls.key_file",
            f"others may read or change {path} (mode {mode:04o}): chmod 600 {path}, or 640 for a "
            "group that may read it",
        )


def _read(key: str, path: Path) -> bytes:
    """The content of a regular file."""
    try:
        # A named pipe must not make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CertificateError(key, f"{path} is not a regular file")
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateError(key, f"cannot read {path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise CertificateError(key, f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB")
    return content


def _trust(context: ssl.SSLContext, path: Path) -> None:
    """Clients' certificates that these sign."""
    _read("tls.client_ca_file", path)
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        reason = f"{path} holds no certificates in PEM"
        raise CertificateError("tls.client_ca_file", reason) from error
    ends = [ssl.cert_time_to_seconds(str(one["notAfter"])) for one in context.get_ca_certs()]
    if not ends:
        raise CertificateError("tls.client_ca_file", f"{path} holds no certificate of a CA")
    if max(ends) <= time.time():
        raise CertificateError("tls.client_ca_file", f"the certificates in {path} have expired")


def _scratch() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    return context


@dataclass(frozen=True, slots=True)
class _Pipe:
    """What one end writes and the other reads."""

    there: ssl.MemoryBIO
    back: ssl.MemoryBIO


def _try(context: ssl.SSLContext, path: Path) -> None:
    """Run a handshake with ourselves. It finds what a client would refuse, above all an expired
    certificate."""
    client_side = _scratch()
    # Trust the certificate for what it is: its CA may be anywhere, or nowhere.
    client_side.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client_side.load_verify_locations(path)
    pipe = _Pipe(ssl.MemoryBIO(), ssl.MemoryBIO())
    client = client_side.wrap_bio(pipe.back, pipe.there)
    server = context.wrap_bio(pipe.there, pipe.back, server_side=True)
    try:
        while not (_advance(client) & _advance(server)):
            pass
    except ssl.SSLCertVerificationError as error:
        reason = f"a client would refuse the certificate in {path}: {error.verify_message}"
        raise CertificateError("tls.certificate_file", reason) from error
    except ssl.SSLError as error:
        reason = f"TLS with the certificate in {path} does not work: {_reason(error)}"
        raise CertificateError("tls.certificate_file", reason) from error
    _warn_of_expiry(client, path)


def _advance(end: ssl.SSLObject) -> bool:
    """Whether one end of a handshake is through."""
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _warn_of_expiry(client: ssl.SSLObject, path: Path) -> None:
    shown = client.getpeercert()
    assert shown is not None
    expires = str(shown["notAfter"])
    if ssl.cert_time_to_seconds(expires) - time.time() < EXPIRY_WARNING_SECONDS:
        log.warning("the certificate in %s expires soon, at %s", path, expires)


def _reason(error: ssl.SSLError) -> str:
    """OpenSSL's own words, without where in its source they come from."""
    return (error.reason or str(error)).replace("_", " ").lower()
