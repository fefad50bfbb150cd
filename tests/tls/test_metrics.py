"""Metrics over HTTPS, by a listener that is the only one with TLS."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.process import Bockd, serving
from tests.tls.configured import configuration
from tests.tls.conftest import Pki


@pytest.fixture(scope="module")
def daemon(pki: Pki, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bockd]:
    work = tmp_path_factory.mktemp("daemon")
    config = configuration(
        work / "bockd.toml",
        pki.server,
        pki.ours,
        nbd="off",
        metrics='tls = "require"\nclient_certificates = "required"',
    )
    with serving(work / "data", metrics_listen="127.0.0.1:0", config=config) as running:
        yield running


def curl(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = ["curl", "-sS", *map(str, arguments), url]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_only_who_shows_a_certificate_reads_them(daemon: Bockd, pki: Pki) -> None:
    """The kind of a listener's TLS is its own, whatever the others have."""
    line = next(one for one in daemon.announced if "metrics:" in one)
    found = re.search(r"https://[^ /]+", line)
    assert found is not None, line
    url = f"{found[0]}/metrics"
    trusting = ("--cacert", pki.ours.ca.certificate)
    plain = curl(url.replace("https", "http"))
    assert (plain.returncode, plain.stdout) != (0, ""), plain
    assert "bockd_" not in plain.stdout
    nameless = curl(url, *trusting)
    assert nameless.returncode != 0
    assert "bockd_" not in nameless.stdout
    shown = ("--cert", pki.client / "client-cert.pem", "--key", pki.client / "client-key.pem")
    assert "bockd_build_info" in curl(url, *trusting, *shown).stdout
