"""The files of `[tls]`: what is wrong with them is said with its line, and new ones are taken."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import nbd
import pytest

from bockd.config.decode import decode
from bockd.config.sections import TlsSettings
from bockd.model import ClientCertificates
from bockd.tls.certificates import CertificateError, Certificates
from tests.attach.tenant import Tenant
from tests.daemon.process import Bockd, program, serving
from tests.nbd.protocol import wire
from tests.tls.authority import Authority, Pair, bare_ca, protect
from tests.tls.configured import configuration
from tests.tls.conftest import Pki


@pytest.fixture
def pair(pki: Pki, tmp_path: Path) -> Pair:
    """Copies that a test may spoil."""
    made = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    shutil.copy(pki.server.certificate, made.certificate)
    shutil.copy(pki.server.key, made.key)
    return made


@pytest.fixture
def config(pki: Pki, pair: Pair, tmp_path: Path) -> Path:
    return configuration(
        tmp_path / "bockd.toml", pair, pki.ours, nbd_clients="optional", api="require"
    )


SECONDS = 60
"""For an answer; the machine may be busy."""

CERTIFICATE, KEY, CA = (
    f"bockd.toml:{line}: tls.{name}: "
    for line, name in ((2, "certificate_file"), (3, "key_file"), (4, "client_ca_file"))
)


def missing(pair: Pair, _: Pki) -> str:
    pair.certificate.unlink()
    return f"{CERTIFICATE}cannot read {pair.certificate}: No such file or directory"


def missing_key(pair: Pair, _: Pki) -> str:
    pair.key.unlink()
    return f"{KEY}cannot read {pair.key}: No such file or directory"


def directory(pair: Pair, _: Pki) -> str:
    pair.key.unlink()
    pair.key.mkdir()
    return f"{KEY}cannot read {pair.key}: Is a directory"


def pipe(pair: Pair, _: Pki) -> str:
    pair.certificate.unlink()
    os.mkfifo(pair.certificate)
    return f"{CERTIFICATE}{pair.certificate} is not a regular file"


def no_certificate(pair: Pair, _: Pki) -> str:
    pair.certificate.write_text("hello\n")
    return f"{CERTIFICATE}{pair.certificate} holds no certificate in PEM"


def no_key(pair: Pair, _: Pki) -> str:
    pair.key.write_text("hello\n")
    return f"{KEY}{pair.key} holds no private key in PEM that can be used"


def swapped(pair: Pair, _: Pki) -> str:
    content = pair.certificate.read_text()
    pair.certificate.write_text(pair.key.read_text())
    pair.key.write_text(content)
    return f"{CERTIFICATE}{pair.certificate} holds no certificate in PEM"


def mismatch(pair: Pair, pki: Pki) -> str:
    shutil.copy(pki.elsewhere.key, pair.key)
    return f"{KEY}{pair.key} is not the key of the certificate in {pair.certificate}"


def expired(pair: Pair, pki: Pki) -> str:
    pair.replace_by(pki.outdated)
    return (
        f"{CERTIFICATE}a client would refuse the certificate in {pair.certificate}: "
        "certificate has expired"
    )


def passphrase(pair: Pair, _: Pki) -> str:
    protect(pair.key, "secret")
    return f"{KEY}{pair.key} has a passphrase, which nobody would enter"


def readable(pair: Pair, _: Pki) -> str:
    pair.key.chmod(0o644)
    return f"{KEY}others may read or change {pair.key} (mode 0644): chmod 600 {pair.key}"


def writable(pair: Pair, _: Pki) -> str:
    pair.key.chmod(0o660)
    return f"{KEY}others may read or change {pair.key} (mode 0660): chmod 600 {pair.key}"


def no_ca(pair: Pair, pki: Pki) -> str:
    return f"{CA}{_other_ca(pair, lambda path: path.write_text('hello'))} holds no certificates"


def leaf_ca(pair: Pair, pki: Pki) -> str:
    path = _other_ca(pair, lambda path: shutil.copy(pki.server.certificate, path))
    return f"{CA}{path} holds no certificate of a CA"


def _other_ca(pair: Pair, make: Callable[[Path], object]) -> Path:
    """Another file in the configuration."""
    path = pair.key.with_name("ca.pem")
    make(path)
    file = pair.key.with_name("bockd.toml")
    lines = file.read_text().splitlines(keepends=True)
    lines[3] = f'client_ca_file = "{path}"\n'
    file.write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    "spoil",
    [
        *(missing, missing_key, directory, pipe, no_certificate, no_key, swapped, mismatch),
        *(expired, passphrase, readable, writable, no_ca, leaf_ca),
    ],
)
def test_what_is_wrong_is_said_with_its_line(
    pair: Pair, pki: Pki, config: Path, tmp_path: Path, spoil: Callable[[Pair, Pki], str]
) -> None:
    """By the daemon, before it touches anything, and by `bockd config check`."""
    reason = spoil(pair, pki)
    listen = "127.0.0.1:0"
    daemon = Bockd(
        tmp_path / "data",
        tmp_path / "log",
        nbd_listen=listen,
        api_listen=listen,
        config=config,
    )
    refusal = daemon.refusal_to_start()
    assert reason in refusal
    assert not daemon.data_dir.exists()
    checked = daemon.run(program("bockd"), "config", "check")
    assert (checked.status, checked.out) == (1, refusal.removeprefix("bockd: ") + "\n")


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640, 0o440])
def test_a_key_that_its_group_may_read_will_do(pair: Pair, pki: Pki, mode: int) -> None:
    pair.key.chmod(mode)
    Certificates(TlsSettings(pair.certificate, pair.key), [ClientCertificates.NONE])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[nbd]\ntls = "yes"\n', "2: nbd.tls: 'yes' is none of off, on, require"),
        ('[api]\ntls = "on"\n', "2: api.tls: 'on' is none of off, require"),
        (
            '[nbd]\ntls = "on"\n',
            "2: nbd.tls: tls.certificate_file and tls.key_file are needed for it",
        ),
        (
            '[tls]\nkey_file = "/k"\n[nbd]\n',
            "2: tls.key_file: tls.certificate_file is needed too",
        ),
        (
            '[nbd]\nclient_certificates = "required"\n',
            "2: nbd.client_certificates: means nothing without TLS: set nbd.tls",
        ),
        (
            '[tls]\nkey_file="/k"\ncertificate_file="/c"\n[api]\ntls="require"\n\n'
            'client_certificates = "optional"\n',
            "7: api.client_certificates: tls.client_ca_file is needed for it",
        ),
    ],
)
def test_an_incomplete_configuration_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(Exception, match="FILE") as refused:
        decode(text.encode(), "FILE")
    assert str(refused.value) == f"FILE:{problem}"


# -- new certificates ------------------------------------------------------------------------------


@pytest.fixture
def daemon(config: Path, tmp_path: Path) -> Iterator[Bockd]:
    listen = "127.0.0.1:0"
    with serving(tmp_path / "data", nbd_listen=listen, api_listen=listen, config=config) as running:
        yield running


def shown_by_nbd(daemon: Bockd, pki: Pki) -> bytes:
    """The certificate that a client gets."""
    with socket.create_connection(("127.0.0.1", daemon.nbd_port), SECONDS) as plain:
        plain.sendall(wire.FIXED_NEWSTYLE_NO_ZEROES + wire.option(5))
        _receive(plain, 18 + 20)
        with _trusting(pki).wrap_socket(plain, server_hostname=None) as secure:
            return secure.getpeercert(binary_form=True) or b""


def _receive(plain: socket.socket, length: int) -> None:
    while length:
        received = len(plain.recv(length))
        assert received, "the daemon has closed the connection"
        length -= received


def shown_by_the_api(daemon: Bockd, pki: Pki) -> bytes:
    address = ("127.0.0.1", httpx.URL(daemon.api_url).port or 0)
    with (
        socket.create_connection(address, SECONDS) as plain,
        _trusting(pki).wrap_socket(plain) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


def _trusting(pki: Pki) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=pki.ours.ca.certificate)
    context.check_hostname = False
    return context


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_new_files_are_taken_while_it_runs(daemon: Bockd, pki: Pki, pair: Pair) -> None:
    """By both frontends, for new clients; those that are there go on."""
    tenant = Tenant(daemon, verify=str(pki.ours.ca.certificate))
    at = tenant.attach(tenant.create())
    early = nbd.NBD()
    early.set_tls_certificates(str(pki.nobody))
    early.connect_uri(at.uri)
    old = der(pair)
    assert shown_by_nbd(daemon, pki) == shown_by_the_api(daemon, pki) == old
    pair.replace_by(pki.elsewhere)
    assert shown_by_nbd(daemon, pki) == shown_by_the_api(daemon, pki) == der(pki.elsewhere) != old
    early.pwrite(b"still here", 0)
    early.shutdown()
    assert (
        "INFO bockd.tls.certificates: the changed certificate is in use" in daemon.log.read_text()
    )


def test_bad_files_leave_the_old_certificate_in_use(daemon: Bockd, pki: Pki, pair: Pair) -> None:
    """Which the log says once for each change."""
    daemon.expect_in_log("WARNING bockd.tls.certificates: the changed certificate is not taken")
    old = der(pair)
    pair.certificate.write_text("hello")
    for _ in range(3):
        assert shown_by_nbd(daemon, pki) == shown_by_the_api(daemon, pki) == old
    assert daemon.log.read_text().count("is not taken") == 1
    pair.key.unlink()
    assert shown_by_nbd(daemon, pki) == old
    pair.replace_by(pki.outdated)
    assert shown_by_the_api(daemon, pki) == old
    log = daemon.log.read_text()
    assert log.count("is not taken") == 3
    assert "certificate has expired" in log
    pair.replace_by(pki.elsewhere)
    assert shown_by_nbd(daemon, pki) == der(pki.elsewhere)


def test_half_a_renewal_is_not_taken(pki: Pki, pair: Pair) -> None:
    """The certificate is there and its key is not yet."""
    settings = TlsSettings(pair.certificate, pair.key)
    certificates = Certificates(settings, [ClientCertificates.NONE])
    first = certificates.context(ClientCertificates.NONE)
    assert certificates.context(ClientCertificates.NONE) is first
    shutil.copy(pki.elsewhere.certificate, pair.certificate)
    assert certificates.context(ClientCertificates.NONE) is first
    shutil.copy(pki.elsewhere.key, pair.key)
    assert certificates.context(ClientCertificates.NONE) is not first


def test_an_end_that_is_near_is_warned_of(
    pki: Pki, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    pair.replace_by(pki.ours.issue("brief", days=7))
    Certificates(TlsSettings(pair.certificate, pair.key), [ClientCertificates.NONE])
    assert f"the certificate in {pair.certificate} expires soon" in caplog.text


def test_an_expired_ca_of_clients_is_refused(pki: Pki, pair: Pair, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "old", made=bare_ca(days=-1)).ca.certificate
    settings = TlsSettings(pair.certificate, pair.key, ca)
    with pytest.raises(CertificateError, match=r"the certificates in .* have expired"):
        Certificates(settings, [ClientCertificates.REQUIRED])
