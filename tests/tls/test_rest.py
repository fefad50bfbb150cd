"""The API over HTTPS: curl, libcloud and `bock`, and clients that do not keep to TLS."""

from __future__ import annotations

import gc
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libcloud.security
import pytest
from libcloud.compute.providers import get_driver
from libcloud.compute.types import Provider

from bockd.cli.http import Http
from bockd.errors import UnavailableError
from bockd.tls.trust import Trust
from tests.daemon.process import Bockd, Result, program, serving
from tests.tls.authority import Authority, bare_ca
from tests.tls.configured import configuration
from tests.tls.conftest import Pki


@pytest.fixture(scope="module")
def daemon(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    """The API is HTTPS only; clients may show a certificate."""
    work = tmp_path_factory.mktemp("daemon")
    config = configuration(
        work / "bockd.toml", pki.server, pki.ours, nbd="off", api="require", api_clients="optional"
    )
    with serving(work / "data", api_listen="127.0.0.1:0", config=config) as running:
        yield running


def bock(daemon: Bockd, *arguments: str, **variables: str | Path) -> Result:
    """Run `bock` as on another machine: it knows an address and credentials."""
    stored = json.loads((daemon.data_dir / "credentials.json").read_text())
    environment = {
        **daemon.environment,
        "BOCKD_DATA": "/nowhere",
        "OS_AUTH_URL": f"{daemon.api_url}/v2.0",
        "OS_USERNAME": stored["username"],
        "OS_PASSWORD": stored["password"],
        "OS_TENANT_NAME": stored["tenant"],
        **{name: str(value) for name, value in variables.items()},
    }
    ended = subprocess.run(
        [program("bock"), *arguments], capture_output=True, text=True, env=environment, check=False
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


def ca(pki: Pki) -> Path:
    return pki.ours.ca.certificate


def test_curl_is_told_https(daemon: Bockd, pki: Pki) -> None:
    assert daemon.api_url.startswith("https://127.0.0.1:")
    versions = json.loads(daemon.tool("curl", "-sS", "--cacert", ca(pki), f"{daemon.api_url}/"))[
        "versions"
    ]
    for link in versions[0]["links"]:
        assert link["href"].startswith(f"{daemon.api_url}/"), link
    distrusted = daemon.run(program("curl"), "-sS", f"{daemon.api_url}/")
    assert "certificate" in distrusted.err
    plain = daemon.run(program("curl"), "-sS", f"{daemon.api_url}/".replace("https", "http"))
    assert (plain.status, plain.out) == (52, ""), plain  # "Empty reply from server"


def test_http_2_is_not_offered(daemon: Bockd, pki: Pki) -> None:
    context = ssl.create_default_context(cafile=ca(pki))
    context.set_alpn_protocols(["h2", "http/1.1"])
    where = urlsplit(daemon.api_url)
    with (
        socket.create_connection((where.hostname or "", where.port or 0)) as plain,
        context.wrap_socket(plain, server_hostname=where.hostname) as client,
    ):
        assert client.selected_alpn_protocol() is None
        client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert client.recv(10).startswith(b"HTTP/1.1 4")


def test_credentials_name_it(daemon: Bockd) -> None:
    shown = daemon.bock("credentials")["endpoints"]
    assert shown["identity"] == f"{daemon.api_url}/v2.0"
    assert f"OS_AUTH_URL={daemon.api_url}/v2.0" in daemon.tool("bock", "credentials", "--shell")


@pytest.mark.usefixtures("forgotten_connections")
@pytest.mark.filterwarnings(
    # libcloud forgets connections without closing them.
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)
def test_libcloud(daemon: Bockd, pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    """It follows the catalog, which says https."""
    monkeypatch.setattr(libcloud.security, "CA_CERTS_PATH", str(ca(pki)))
    stored = json.loads((daemon.data_dir / "credentials.json").read_text())
    driver: Any = get_driver(Provider.OPENSTACK)(
        stored["username"],
        stored["password"],
        secure=True,
        api_version="1.1",
        ex_force_auth_url=daemon.api_url,
        ex_force_auth_version="2.0_password",
        ex_tenant_name=stored["tenant"],
        ex_force_service_type="volume",
        ex_force_service_name="Block Storage",
        ex_force_service_region="az-1.region-a.geo-1",
    )
    made = driver.create_volume(1, "by-libcloud")
    assert made.id in [volume.id for volume in driver.list_volumes()]
    driver.destroy_volume(made)
    del driver
    gc.collect()


def test_bock_with_its_ca(daemon: Bockd, pki: Pki) -> None:
    made = bock(daemon, "volume", "create", "far", "--size", "1G", OS_CACERT=ca(pki))
    assert made.status == 0, made
    listed = bock(
        daemon,
        "volume",
        "list",
        OS_CACERT=ca(pki),
        OS_CERT=pki.client / "client-cert.pem",
        OS_KEY=pki.client / "client-key.pem",
    )
    assert "far" in listed.out


def test_bock_says_what_to_do(daemon: Bockd, pki: Pki, tmp_path: Path) -> None:
    def refusal(**variables: str | Path) -> str:
        ended = bock(daemon, "volume", "list", **variables)
        assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1), ended
        return ended.err

    assert "): set OS_CACERT to a file with the certificate of the CA" in refusal()
    assert "is not trusted" in refusal(OS_CACERT=pki.misled / "ca-cert.pem")
    assert "OS_CACERT: /nowhere/ca.pem cannot be used" in refusal(OS_CACERT="/nowhere/ca.pem")
    empty = tmp_path / "empty"
    empty.write_text("hello")
    assert f"OS_CACERT: {empty} cannot be used" in refusal(OS_CACERT=empty)
    right = {"OS_CACERT": ca(pki)}
    assert "OS_KEY is set and OS_CERT is not" in refusal(**right, OS_KEY=empty)
    assert f"OS_CERT, OS_KEY: {empty} cannot be used" in refusal(**right, OS_CERT=empty)
    stranger = {
        "OS_CERT": pki.stranger / "client-cert.pem",
        "OS_KEY": pki.stranger / "client-key.pem",
    }
    assert "perhaps it does not accept the certificate in OS_CERT" in refusal(**right, **stranger)
    plain = daemon.api_url.replace("https", "http")
    assert "if it speaks https, say so in OS_AUTH_URL" in refusal(OS_AUTH_URL=plain)


def test_bock_says_when_the_ca_is_not_what_strict_clients_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python's default context is strict from 3.13 on; here it is with every Python."""
    authority = Authority(tmp_path / "ca", made=bare_ca())
    trusted = authority.ca.certificate
    server = authority.issue("server")
    config = configuration(tmp_path / "bockd.toml", server, authority, nbd="off", api="require")
    lenient = ssl.create_default_context

    def strict(cafile: str) -> ssl.SSLContext:
        context = lenient(cafile=cafile)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    with serving(tmp_path / "data", api_listen="127.0.0.1:0", config=config) as daemon:
        client = Http(None, trust=Trust(ca_file=str(trusted)))
        with closing(client), pytest.raises(UnavailableError) as refusal:
            client.request("GET", f"{daemon.api_url}/")
        assert "make the CA and what it signed anew, as docs/tls.md shows" in str(refusal.value)
        assert "set OS_CACERT" not in str(refusal.value)
        monkeypatch.undo()
        curled = daemon.tool("curl", "-sS", "--cacert", trusted, f"{daemon.api_url}/")
        assert "versions" in curled


def test_clients_that_do_not_keep_to_tls_hold_up_nobody(daemon: Bockd, pki: Pki) -> None:
    address = ("127.0.0.1", urlsplit(daemon.api_url).port or 0)
    silent = [socket.create_connection(address) for _ in range(30)]
    noisy = [socket.create_connection(address) for _ in range(10)]
    try:
        for number, client in enumerate(noisy):
            client.sendall(os.urandom(100 * (number + 1)))
        daemon.tool("curl", "-sS", "--cacert", ca(pki), f"{daemon.api_url}/")
    finally:
        for client in silent + noisy:
            client.close()
    daemon.tool("curl", "-sS", "--cacert", ca(pki), f"{daemon.api_url}/")


def test_it_stops_whatever_its_clients_do(pki: Pki, tmp_path: Path) -> None:
    """With one that says nothing, one half-way through its hello, and one that is idle. Client
    certificates are required."""
    config = configuration(
        tmp_path / "bockd.toml",
        pki.server,
        pki.ours,
        nbd="off",
        api="require",
        api_clients="required",
    )
    with serving(tmp_path / "data", api_listen="127.0.0.1:0", config=config) as daemon:
        nobody = daemon.run(program("curl"), "-sS", "--cacert", ca(pki), f"{daemon.api_url}/")
        assert nobody.status != 0, nobody
        assert nobody.out == ""
        assert "if it wants a client certificate, set OS_CERT and OS_KEY" in (
            bock(daemon, "volume", "list", OS_CACERT=ca(pki)).err
        )
        certificate = ("--cert", pki.client / "client-cert.pem")
        key = ("--key", pki.client / "client-key.pem")
        page = daemon.tool(
            "curl", "-sS", "--cacert", ca(pki), *certificate, *key, f"{daemon.api_url}/"
        )
        assert "versions" in page
        address = ("127.0.0.1", urlsplit(daemon.api_url).port or 0)
        context = ssl.create_default_context(cafile=ca(pki))
        context.load_cert_chain(pki.client / "client-cert.pem", pki.client / "client-key.pem")
        with (
            socket.create_connection(address),
            socket.create_connection(address) as half,
            socket.create_connection(address) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as idle,
        ):
            half.sendall(b"\x16\x03\x01\x02\x00\x01")
            idle.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert idle.recv(12).startswith(b"HTTP/1.1 200")
            daemon.stop()
