"""`bock volume migrate` to a daemon elsewhere: over TCP, and over TLS both ways."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.errors import UnavailableError
from tests.daemon.migrating import Two, show
from tests.daemon.process import Bockd, serving
from tests.tls.configured import configuration
from tests.tls.conftest import Pki


def variables(daemon: Bockd, more: dict[str, Path]) -> str:
    """What the other machine's `bock credentials --shell` prints, and files to trust and show."""
    printed: str = daemon.tool("bock", "credentials", "--shell")
    return printed + "".join(f"export {name}='{path}'\n" for name, path in more.items())


def elsewhere(daemon: Bockd) -> None:
    """As from another machine: its socket is not there."""
    daemon.nbd_socket.rename(daemon.nbd_socket.with_name("away"))


def at_home(daemon: Bockd) -> None:
    daemon.nbd_socket.with_name("away").rename(daemon.nbd_socket)


def test_over_tcp(tmp_path: Path) -> None:
    with (
        serving(tmp_path / "here") as here,
        serving(tmp_path / "there", nbd_listen="127.0.0.1:0", api_listen="127.0.0.1:0") as there,
    ):
        place = tmp_path / "there.env"
        place.write_text(variables(there, {}))
        two = Two(here, there, str(place))
        content = two.fill("disk")
        elsewhere(there)
        two.migrate("disk")
        at_home(there)
        two.assert_moved("disk", content)


def test_over_tls_to_the_right_daemon_only(pki: Pki, tmp_path: Path) -> None:
    config = configuration(
        tmp_path / "bockd.toml",
        pki.server,
        pki.ours,
        nbd_clients="required",
        api="require",
        api_clients="required",
    )
    with (
        serving(tmp_path / "here") as here,
        serving(
            tmp_path / "there",
            nbd_listen="127.0.0.1:0",
            api_listen="127.0.0.1:0",
            config=config,
        ) as there,
    ):
        there.expect_in_log("certificate|TLS")
        shown = {
            "OS_CACERT": pki.client / "ca-cert.pem",
            "OS_CERT": pki.client / "client-cert.pem",
            "OS_KEY": pki.client / "client-key.pem",
        }
        place = tmp_path / "there.env"
        two = Two(here, there, str(place))
        content = two.fill("disk")
        elsewhere(there)
        for wrong in (
            {},
            {**shown, "OS_CACERT": pki.misled / "ca-cert.pem"},
            {"OS_CACERT": shown["OS_CACERT"]},
        ):
            place.write_text(variables(there, wrong))
            with pytest.raises(UnavailableError, match=r"OS_CACERT|certificate|OS_CERT"):
                two.migrate("disk")
            assert show(here, "disk").status == "available"
        place.write_text(variables(there, shown))
        assert there.api_url.startswith("https:")
        two.migrate("disk")
        at_home(there)
        two.assert_moved("disk", content)
