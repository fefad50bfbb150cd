"""The package of Debian 13 on a machine that systemd runs, from its installation to its purge: what
docs/service.md promises, kept through restarts and kills. `make test-systemd` builds the package
and runs this.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest

from bockd import __version__
from tests.packaging.booted import Booted, booted
from tests.packaging.packages import needed_by, package_of, repacked
from tests.service.confined import REPOSITORY
from tests.service.dropins import view_dropin

SUITE = "trixie"

MOST_EXPOSED = {"bockd.service": 1.5, "the same with the file view": 4.3}
"""Of 10, by `systemd-analyze security`; docs/service.md has these."""

SOCKET = "/var/lib/bockd/nbd.sock"

DROPINS = "/etc/systemd/system/bockd.service.d"

VIEW = "/run/bockd-view"

RESTART = "systemctl reset-failed bockd; systemctl restart bockd"
"""A test restarts it more often in ten seconds than the five times that systemd allows."""

NO_CAPABILITY = "0" * 16


@pytest.mark.packages
def test_life_of_the_service(tmp_path: Path) -> None:
    """One long test: each step needs those before it."""
    package = package_of(SUITE)
    newer = repacked(package, tmp_path)
    given = (package, newer)
    with booted(SUITE, tmp_path / "machine", needed_by(package), given) as guest:
        check_installation(guest, f"/root/{package.name}")
        check_confinement(guest)
        check_a_client_that_stays(guest)
        check_signals_and_reload(guest)
        check_file_view(guest)
        check_tls(guest)
        check_upgrade(guest, f"/root/{newer.name}")
        check_removal_and_purge(guest)


def shown(guest: Booted, *names: str, unit: str = "bockd") -> Mapping[str, str]:
    """Return properties of a unit."""
    told = guest.run(f"systemctl show {unit} --property={','.join(names)}")
    return dict(line.split("=", 1) for line in told.splitlines())


def journal(guest: Booted, options: str = "") -> str:
    """Return what the service has said."""
    return guest.run(f"journalctl --no-pager --output=cat --unit=bockd {options}")


def check_installation(guest: Booted, package: str) -> None:
    """It runs when apt returns, and says so; it is enabled; bock finds it."""
    guest.run(f"apt-get -q install --yes {package}")
    expected = {
        "ActiveState": "active",
        "SubState": "running",
        "Result": "success",
        "UnitFileState": "enabled",
        "Type": "notify",
        "NRestarts": "0",
    }
    assert shown(guest, *expected) == expected
    assert "Active: active (running)" in guest.run("systemctl --no-pager status bockd")
    assert json.loads(guest.run("bock info --json"))["version"] == __version__
    said = journal(guest)
    assert "bockd is ready. Data: /var/lib/bockd" in said
    assert not re.search("ERROR|Traceback", said), said
    assert guest.run("systemctl --failed --no-legend") == ""
    for unit in ("bockd.service", "bock-connect@local.service"):
        assert guest.run(f"systemd-analyze --no-pager verify --man=no {unit} 2>&1") == ""


def check_confinement(guest: Booted) -> None:
    """The process is as the unit says, seen from outside; and it does its work so."""
    status = guest.run('cat "/proc/$(systemctl show bockd --value --property=MainPID)/status"')
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    (user,) = set(guest.run("id -u bockd; id -g bockd").split())
    assert fields["Uid"].split() == fields["Gid"].split() == [user] * 4
    sets = {fields[f"Cap{name}"] for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert sets == {NO_CAPABILITY}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    inside = 'nsenter --mount --target="$(systemctl show bockd --value --property=MainPID)"'
    for path in ("/etc", "/usr", "/var/lib", "/sys", "/run", "/run/lock", "/dev/shm"):
        said = guest.attempt(f"{inside} touch {path}/file")
        assert "Read-only file system" in said[1], (path, said)
    assert guest.run(f"{inside} ls /home /root /tmp") == "/home:\n\n/root:\n\n/tmp:\n"
    assert guest.run(f"{inside} sh -c 'ls /dev/vd* 2>&1 || true'").startswith("ls: cannot access")
    assert guest.run(f"stat -c '%U %a' /var/lib/bockd {SOCKET}") == "bockd 700\nbockd 600\n"
    assert exposure(guest) <= MOST_EXPOSED["bockd.service"]


def exposure(guest: Booted) -> float:
    """Return the score of the service, with its drop-ins."""
    judged = guest.run("systemd-analyze --no-pager security bockd.service")
    found = re.search(r"Overall exposure level for bockd\.service: ([\d.]+)", judged)
    assert found is not None, judged
    return float(found[1])


class Client:
    """A QEMU's NBD client that stays connected in the guest and waits for a daemon that is away."""

    def __init__(self, guest: Booted, volume: str) -> None:
        self._guest = guest
        self._asked = 0
        options = (
            f"driver=nbd,server.type=unix,server.path={SOCKET},export={volume},reconnect-delay=300"
        )
        command = (
            f"exec stdbuf -oL qemu-io --image-opts {options} <>/run/client >/run/client.said 2>&1"
        )
        guest.run(
            "mkfifo /run/client; systemd-run --quiet --unit=client --service-type=exec "
            f"bash -c {shlex.quote(command)}",
        )

    def ask(self, command: str) -> None:
        """Send a command, which may wait for the daemon."""
        self._asked += 1
        self._guest.run(f"echo {shlex.quote(command)} >/run/client")

    def check(self) -> None:
        """Wait until all that was asked was done well: reads found what they were to find."""
        done = "grep -cE '(wrote|read) [0-9]+/[0-9]+ bytes' /run/client.said"
        self._guest.wait_until(
            f'[ "$({done})" = {self._asked} ] || grep -q failed /run/client.said'
        )
        said = self._guest.run("cat /run/client.said")
        assert "failed" not in said, said


def check_a_client_that_stays(guest: Booted) -> None:
    """A restart and a kill cost it nothing that was answered, flushed or not."""
    guest.run("bock volume create disk2 --size 64MiB")
    client = Client(guest, "disk2")
    client.ask("write -P 7 0 1M")
    client.check()
    before = shown(guest, "MainPID")
    guest.run(RESTART)
    client.ask("read -P 7 0 1M")
    client.ask("write -P 9 1M 1M")
    client.check()
    assert shown(guest, "NRestarts", "Result") == {"NRestarts": "0", "Result": "success"}
    again = shown(guest, "MainPID")
    assert again != before

    guest.run("systemctl kill --signal=KILL bockd")
    client.ask("read -P 9 1M 1M")
    client.ask("read -P 7 0 1M")
    client.check()
    guest.wait_until("systemctl --quiet is-active bockd")
    assert shown(guest, "NRestarts", "Result") == {"NRestarts": "1", "Result": "success"}
    assert shown(guest, "MainPID") != again
    guest.run("systemctl stop client; runuser -u bockd -- env XDG_DATA_HOME=/var/lib bockd check")


def check_signals_and_reload(guest: Booted) -> None:
    """SIGHUP, which is for programs that reload by it, ends nothing; `reload` is refused."""
    before = shown(guest, "MainPID", "NRestarts")
    guest.run("systemctl kill --signal=HUP bockd; bock volume list")
    assert shown(guest, "MainPID", "NRestarts") == before
    assert "reload is not applicable" in guest.attempt("systemctl reload bockd")[1]


def check_file_view(guest: Booted) -> None:
    """With docs/service.md's drop-in: the files are there, and a loop device; without it again, the
    pool is the user's as before."""
    dropin = view_dropin().replace("/usr/local/bin/bockd", "/usr/bin/bockd")
    guest.run(f"mkdir {DROPINS}; cat >{DROPINS}/view.conf <<'END'\n{dropin}END")
    guest.run(f"systemctl daemon-reload; {RESTART}")
    assert exposure(guest) <= MOST_EXPOSED["the same with the file view"]
    assert guest.run(f"head -c 1M {VIEW}/volumes/disk2 | tr -d '\\007' | wc -c") == "0\n"
    guest.run(f"rm -r {DROPINS}")
    guest.run(f"systemctl daemon-reload; {RESTART}")
    assert guest.run("find /var/lib/bockd ! -user bockd") == ""
    assert guest.run(f"! mountpoint {VIEW}")
    assert exposure(guest) <= MOST_EXPOSED["bockd.service"]


OURS = 'log_level = "debug"'

TLS = """\
[tls]
certificate_file = "/etc/bockd/tls/server-cert.pem"
key_file = "/etc/bockd/tls/server-key.pem"
client_ca_file = "/etc/bockd/tls/ca-cert.pem"
[nbd]
tls = "require"
client_certificates = "required"
[api]
tls = "require"
"""


def check_tls(guest: Booted) -> None:
    """Certificates that the user bockd may read; and new ones, which it takes without a restart."""
    page = (REPOSITORY / "docs" / "tls.md").read_text()
    found = re.search(r"^    umask 077\n(?:    .*\n)+", page, re.MULTILINE)
    assert found is not None
    commands = re.sub(r"^    ", "", found[0], flags=re.MULTILINE)
    guest.run(f"cd /root; ({commands}) 2>&1")
    install = (
        "install -m 640 -g bockd /root/tls/{ca-cert,server-cert,server-key}.pem /etc/bockd/tls"
    )
    guest.run(f"install -d -m 750 -g bockd /etc/bockd/tls; {install}")
    guest.run(f"cat >/etc/bockd/bockd.toml <<'END'\n{TLS}END\n{RESTART}")
    said = json.loads(guest.run("bock attachment create disk2 elsewhere --json"))
    uri = said["uri"]
    assert uri.startswith("nbds://127.0.0.1:10809/")
    guest.run(f"nbdinfo '{uri}?tls-certificates=/root/tls'")
    assert guest.attempt(f"nbdinfo '{uri}?tls-certificates=/etc/bockd'")[0] != 0
    guest.run("bock attachment delete disk2")
    before = served_certificate(guest)
    guest.run(f"cd /root; rm -r tls; ({commands}) 2>&1; {install}")
    assert served_certificate(guest) != before
    assert shown(guest, "NRestarts")["NRestarts"] == "0"


def served_certificate(guest: Booted) -> str:
    """Return the fingerprint of what a new client of the API is shown."""
    return guest.run(
        "openssl s_client -connect 127.0.0.1:8776 </dev/null 2>/dev/null |"
        " openssl x509 -noout -fingerprint",
    )


def check_upgrade(guest: Booted, newer: str) -> None:
    """The new daemon runs when apt returns, with the configuration and the pool of before."""
    guest.run(f"echo '{OURS}' >/etc/bockd/bockd.toml; {RESTART}")
    before = shown(guest, "MainPID")
    guest.run(f"apt-get -q install --yes {newer}")
    assert shown(guest, "MainPID") != before
    assert shown(guest, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert guest.run("cat /etc/bockd/bockd.toml") == f"{OURS}\n"
    assert "disk2" in guest.run("bock volume list")


def check_removal_and_purge(guest: Booted) -> None:
    """The service ends, its unit is gone, the pool is there."""
    guest.run("apt-get -q remove --yes bockd")
    assert guest.attempt("pgrep -u bockd")[1] == ""
    assert shown(guest, "LoadState", "ActiveState") == {
        "LoadState": "not-found",
        "ActiveState": "inactive",
    }
    assert "rm -r /var/lib/bockd" in guest.run("dpkg --purge bockd 2>&1")
    assert guest.run("find /var/lib/bockd/layers -type f") != ""
    assert guest.run("systemctl --failed --no-legend") == ""
