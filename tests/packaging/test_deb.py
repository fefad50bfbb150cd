"""The package of each release on a clean machine of it: installed, used, upgraded, removed and
purged. `make test-deb` builds the packages and runs this.

No systemd runs there (test_systemd.py has one). Its units are judged by systemd-analyze, the daemon
is started as the unit says, and a recorder stands in the place of systemctl where the order of its
calls matters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import pytest

from bockd import __version__
from tests.packaging.machine import Machine, clean_machine
from tests.packaging.packages import package_of, repacked
from tests.packaging.smoke import POOL, io, use
from tests.service.confined import REPOSITORY
from tests.service.unitfile import service_of, words

CONFIGURATION = "/etc/bockd/bockd.toml"
UNIT = "/usr/lib/systemd/system/bockd.service"
ENABLED = "/etc/systemd/system/multi-user.target.wants/bockd.service"

UNCHECKED = (1).to_bytes(4, "little")
"""The flags of a compiled module that is never compared with its source (PEP 552)."""

RECORDER = """\
#!/bin/sh
test -e /usr/lib/bockd/next && has=new || has=old
echo "$has $*" >>/var/log/systemctl
case " $* " in *' is-enabled '*) SYSTEMD_OFFLINE=1 exec /usr/bin/systemctl.real "$@" ;; esac
"""
"""Notes whether a call finds the files of the old package or of the new one. Which units are
enabled, systemctl says without systemd."""


@pytest.fixture(params=os.environ.get("SUITES", "bookworm trixie noble").split())
def machine(request: pytest.FixtureRequest) -> Iterator[tuple[Machine, Path]]:
    """A clean machine, and the package for it, which is not installed."""
    package = package_of(request.param)
    with clean_machine(request.param, f"deb-{request.param}", "man-db", "bash-completion") as made:
        yield made, package


@pytest.mark.packages
def test_life_of_a_package(machine: tuple[Machine, Path], tmp_path: Path) -> None:
    """One long test: a clean machine takes a minute, and each step needs those before it."""
    on, package = machine
    on.install(package)
    check_what_is_installed(on)
    check_documentation(on)
    check_units(on)
    check_manual_and_completions(on)
    use(on, partial(service, on))
    assert on.run("find", POOL, "!", "-user", "bockd") == ""
    use_it_with_others(on)
    upgrade(on, package, tmp_path)
    remove_and_purge(on)
    check_that_a_pool_keeps_its_owner(on, package)


def check_what_is_installed(on: Machine) -> None:
    version = on.run("bockd", "--version")
    assert version == f"bockd, version {__version__}\n"
    assert on.run("dpkg-query", "-W", "-f", "${Conffiles}", "bockd").split()[::2] == [CONFIGURATION]
    assert on.run("bockd", "config", "check").startswith(CONFIGURATION)
    assert on.run("stat", "-c", "%U:%G %a", POOL) == "bockd:bockd 700\n"
    user = on.run("getent", "passwd", "bockd").strip().split(":")
    assert user[5:] == [POOL, "/usr/sbin/nologin"]
    assert 0 < int(user[2]) < 1000
    assert on.file(ENABLED).is_symlink()
    check_compiled(on)
    # Nothing but what the package has is there, and all of that as it was packed.
    assert on.run("dpkg", "--verify", "bockd") == ""
    assert (
        on.run("find", "/usr/lib/bockd", "-user", "bockd", "-o", "-perm", "/022", "-type", "f")
        == ""
    )


def check_compiled(on: Machine) -> None:
    """Every module is compiled, for good: Python, as root, changes no file of the package."""
    home = on.file("/usr/lib/bockd")
    compiled = [*home.rglob("*.pyc")]
    assert len(compiled) > 1000
    assert [path for path in compiled if path.read_bytes()[4:8] != UNCHECKED] == []


def check_documentation(on: Machine) -> None:
    """Pictures are where the pages say, and what pages tell to copy is there as it is."""
    pages = on.file("/usr/share/doc/bockd/docs")
    pictures = [
        picture
        for page in pages.glob("*.md")
        for picture in re.findall(r"!\[[^]]*\]\((\S+?)\)", page.read_text())
    ]
    assert pictures
    assert [picture for picture in pictures if not (pages / picture).is_file()] == []
    for given in (REPOSITORY / "contrib").rglob("*.*"):
        packed = pages.parent / given.relative_to(REPOSITORY)
        assert packed.read_bytes() == given.read_bytes()


def check_units(on: Machine) -> None:
    for unit in ("bockd.service", "bock-connect@.service"):
        instance = unit.replace("@", "@local")
        said = on.run("systemd-analyze", "--no-pager", "verify", "--man=no", instance)
        assert said == "", unit
    for kind in ("sysusers", "tmpfiles"):
        on.run(f"systemd-{kind}", *(["--create"] if kind == "tmpfiles" else []), "bockd.conf")


def check_manual_and_completions(on: Machine) -> None:
    pages = on.shell("dpkg -L bockd | grep '^/usr/share/man/.*gz$'").split()
    assert {"bock.1.gz", "bock-volume-create.1.gz", "bockd.8.gz", "bockd-check.8.gz"} <= {
        Path(page).name for page in pages
    }
    looked_at = " ".join(pages)
    assert (
        on.shell(f"for page in {looked_at}; do man --warnings -l $page 2>&1 >/dev/null; done") == ""
    )
    assert "bock-volume-create" in on.run("man", "-w", "bock-volume-create")
    assert re.search(r"^bockd \(8\) +- Serve ", on.run("whatis", "bockd"), re.MULTILINE)
    # It ends with 124, which tells bash to try again with what it has loaded.
    asked = "_completion_loader bock || [ $? = 124 ]; complete -p bock"
    told = on.shell(f"set +u; . /usr/share/bash-completion/bash_completion; {asked}")
    assert told.endswith(" bock\n")


def service(on: Machine) -> AbstractContextManager[None]:
    """The daemon, run as its unit says."""
    told = service_of([on.file(UNIT).read_text()])
    (command,), (user,) = told["ExecStart"], told["User"]
    return on.daemon(command.split(), user=user, environment=words(told, "Environment"))


def use_it_with_others(on: Machine) -> None:
    """What the package suggests: nbdkit with our plugin; Ceph's modules, which are found once they
    are installed, and until then are said to be missing."""
    ceph = ("env", "BOCKD_POOL_DRIVER=rbd", "bockd", "serve")
    status, said = on.attempt(*ceph)
    assert (status, "python3-rados" in said) == (1, True), said
    on.install("nbdkit", "nbdkit-plugin-python", "libnbd-bin", "python3-rados", "python3-rbd")
    on.run("/usr/lib/bockd/bin/python3", "-c", "import rados, rbd, pyfuse3")
    status, said = on.attempt(*ceph)
    assert (status, "python3-rados" in said) == (1, False), said
    shown = on.shell(
        f"setpriv --reuid=bockd --regid=bockd --init-groups nbdkit -U - python "
        f'"$(bockd nbdkit-plugin)" pool={POOL} volume=disk1 --run \'nbdinfo --size "$uri"\''
    )
    assert shown == f"{64 << 20}\n"


def upgrade(on: Machine, package: Path, tmp_path: Path) -> None:
    """To a package that differs by one file: the daemon is stopped while the old files are there,
    and started when all of the new ones are; pool and configuration stay."""
    newer = repacked(package, tmp_path)
    on.shell(f"echo '# ours' >>{CONFIGURATION}")
    on.file("/usr/bin/systemctl").rename(on.file("/usr/bin/systemctl.real"))
    on.file("/usr/bin/systemctl").write_text(RECORDER)
    on.file("/usr/bin/systemctl").chmod(0o755)
    on.file("/run/systemd/system").mkdir(parents=True)
    on.file("/usr/sbin/policy-rc.d").unlink()
    on.install(newer)
    calls = [line.split() for line in on.file("/var/log/systemctl").read_text().splitlines()]
    ours = [
        (call[0], verb) for call in calls for verb in call if verb in ("stop", "start", "restart")
    ]
    assert ours == [("old", "stop"), ("new", "start")], calls
    assert on.file(CONFIGURATION).read_text().endswith("# ours\n")
    with service(on):
        io(on, "disk1", "read -P 9 0 1M")


def remove_and_purge(on: Machine) -> None:
    """Neither touches the pool; the second takes the configuration, and says what is left."""
    on.file("/var/log/systemctl").unlink()
    volumes = contents(on)
    on.run("apt-get", "-q", "remove", "--yes", "bockd")
    assert "stop bockd.service" in on.file("/var/log/systemctl").read_text()
    assert not on.file("/usr/lib/bockd").exists()
    assert not on.file(UNIT).exists()
    assert on.file(CONFIGURATION).exists()
    said = on.run("dpkg", "--purge", "bockd")
    assert "rm -r /var/lib/bockd" in said
    assert not on.file("/etc/bockd").exists()
    assert not on.file(ENABLED).is_symlink()
    assert contents(on) == volumes
    assert on.run("getent", "passwd", "bockd").startswith("bockd:")


def contents(on: Machine) -> str:
    """A sum over all files of the pool."""
    return on.shell(f"cd {POOL} && find . -type f -print0 | sort -z | xargs -0 sha256sum")


def check_that_a_pool_keeps_its_owner(on: Machine, package: Path) -> None:
    """One that root's daemon has made stays as it is: a directory that had another owner than what
    is in it would not be handed over by systemd. And an empty one goes with a purge."""
    on.shell(f"rm -r {POOL} && install -d -m 755 {POOL} && touch {POOL}/file")
    on.install(package)
    assert on.run("stat", "-c", "%U %a", POOL, f"{POOL}/file") == "root 755\nroot 644\n"
    on.run("rm", f"{POOL}/file")
    assert "rm -r" not in on.run("dpkg", "--purge", "bockd")
    assert not on.file(POOL).exists()
