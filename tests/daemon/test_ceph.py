"""Daemons that serve a pool in a Ceph cluster: set up as docs/ceph.md says, alone and together."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import nbd
import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import UnavailableError
from tests.config.served import token_for
from tests.daemon.process import Bockd, environment_without_a_cloud, program, serving
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.running import configuration

DOCS = Path(__file__).parents[2] / "docs/ceph.md"

END_SECONDS = 60.0
"""No daemon takes so long to end, unless it hangs."""

Start = Callable[[str], Bockd]


@pytest.fixture
def gateway(
    rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Bockd]]:
    """Makes a gateway of one pool, by its name; it is not started."""
    made: list[Bockd] = []

    def make(name: str) -> Bockd:
        directory = tmp_path_factory.mktemp(name)
        config = directory / "bockd.toml"
        settings = replace(rbd_namespace, gateway=name)
        config.write_text(configuration(settings, directory / "data"))
        made.append(
            Bockd(directory / "data", directory / "log", api_listen="127.0.0.1:0", config=config)
        )
        return made[-1]

    yield make
    for one in made:
        one.end()


def test_a_volume_is_made_written_and_there_after_a_restart(gateway: Start) -> None:
    daemon = gateway("gw1").start()
    daemon.bock("volume", "create", "disk", "--size", "8MiB")
    with daemon.connected("disk") as client:
        client.pwrite(b"data" * 1024, 4096)
    daemon.bock("snapshot", "create", "disk", "then")
    daemon.restart()
    for export in ("disk", "snapshot/then"):
        with daemon.connected(export) as client:
            assert client.pread(4096, 4096) == b"data" * 1024
    assert daemon.check()["volumes"] == 1
    daemon.kill()
    daemon.start()
    with daemon.connected("disk") as client:
        assert client.pread(4096, 4096) == b"data" * 1024
    daemon.stop()
    assert daemon.check()["volumes"] == 1  # without a daemon


def test_it_says_what_it_serves(gateway: Start, ceph: Cluster, rbd_namespace: RbdSettings) -> None:
    daemon = gateway("gw1").start()
    info = daemon.bock("info")
    assert info["driver"] == "rbd"
    assert info["cluster"] == {
        "id": ceph.fsid,
        "pool": rbd_namespace.pool,
        "namespace": rbd_namespace.namespace,
        "gateway": "gw1",
    }
    shown = daemon.tool("bock", "info")
    where = f"{rbd_namespace.pool}/{rbd_namespace.namespace}"
    assert f"rbd: {where} in the Ceph cluster {ceph.fsid}, as gateway gw1\n" in shown
    daemon.stop()


def test_what_one_gateway_commits_the_other_shows_at_once(gateway: Start) -> None:
    first, second = gateway("gw1").start(), gateway("gw2").start()
    account = json.loads((first.data_dir / "credentials.json").read_text())
    assert not (second.data_dir / "credentials.json").exists()
    with httpx.Client(base_url=first.api_url) as one, httpx.Client(base_url=second.api_url) as two:
        token = token_for(one, first.data_dir)["token"]["id"]
        tenant = f"/v1.1/{account['tenant_id']}"
        for client in (one, two):
            client.headers["X-Auth-Token"] = token
        for number, (maker, other) in enumerate([(one, two), (two, one)] * 3):
            body = {"volume": {"size": 1, "display_name": f"v{number}"}}
            made = maker.post(f"{tenant}/os-volumes", json=body)
            assert made.status_code == 200, made.text
            volume = made.json()["volume"]["id"]
            found = other.get(f"{tenant}/os-volumes/{volume}")
            assert found.status_code == 200, found.text
            gone = other.delete(f"{tenant}/os-volumes/{volume}")
            assert gone.status_code == 202, gone.text
            assert maker.get(f"{tenant}/os-volumes/{volume}").status_code == 404
        assert two.delete(f"/v2.0/tokens/{token}").status_code == 204
        assert one.get(f"{tenant}/os-volumes").status_code == 401
    # A copy of the file is what bock needs there.
    (second.data_dir / "credentials.json").write_text(json.dumps(account))
    second.bock("volume", "create", "theirs", "--size", "1MiB")
    with first.connected("theirs") as connection:
        assert connection.get_size() == 1 << 20
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.connect_uri(first.uri("later"))
    second.bock("volume", "create", "later", "--size", "2MiB")
    handle.opt_info()
    assert handle.get_size() == 2 << 20
    handle.opt_abort()
    with second.control() as control:
        assert {one.name for one in control.list_volumes()} == {"theirs", "later"}
    first.stop()
    second.stop()


def test_what_a_gateway_deleted_before_it_died_is_restored_at_another_one(gateway: Start) -> None:
    first, second = gateway("gw1"), gateway("gw2")
    for daemon in (first, second):
        config = daemon._config
        config.write_text(config.read_text() + "\n[trash]\nkeep_hours = 1\n")
        daemon.start()
    account = (first.data_dir / "credentials.json").read_text()
    (second.data_dir / "credentials.json").write_text(account)
    first.bock("volume", "create", "web", "--size", "8MiB")
    with first.connected("web") as client:
        client.pwrite(b"data" * 1024, 4096)
        client.flush()
    first.wait_until_unused("web")
    assert first.bock("volume", "delete", "web")["in_trash"]["name"] == "web"
    first.kill()
    assert [one["name"] for one in second.bock("trash", "list")] == ["web"]
    assert [(node["name"], node["in_trash"]) for node in second.bock("du")[0]["nodes"]] == [
        ("web", True)
    ]
    with pytest.raises(nbd.Error, match="no export named"):
        second.connect("web")
    second.bock("trash", "restore", "web")
    with second.connected("web") as client:
        assert client.pread(4096, 4096) == b"data" * 1024
    second.bock("volume", "delete", "web")
    first.start()
    first.tool("bock", "trash", "empty", "--yes")
    assert second.bock("trash", "list") == []
    assert second.check()["clean"]
    first.stop()
    second.stop()


def test_gateways_that_start_at_once_make_one_set_of_accounts(gateway: Start) -> None:
    daemons = [gateway(f"gw{number}") for number in range(3)]
    with ThreadPoolExecutor(len(daemons)) as threads:
        list(threads.map(lambda one: one.start(), daemons))
    written = [one for one in daemons if (one.data_dir / "credentials.json").exists()]
    assert len(written) == 1
    assert [user["name"] for user in written[0].bock("user", "list")] == ["demo"]
    for daemon in daemons:
        daemon.stop()


def test_what_is_not_for_such_a_pool_says_what_to_do_instead(
    gateway: Start, tmp_path: Path
) -> None:
    daemon = gateway("gw1")

    def refused(*arguments: str | Path) -> str:
        result = daemon.run(program("bockd"), *arguments)
        assert (result.status, result.out) == (1, ""), result
        assert result.err.count("\n") == 1, result
        return result.err

    assert "'bockd serve' makes it there" in refused("init")
    for _ in range(2):  # the first one has not made it
        assert "there is no pool of bockd's in this namespace" in refused("check")
    daemon.start()
    for _ in ("it runs", "it does not"):
        assert "Ceph verifies its own" in refused("scrub")
        assert "Ceph verifies its own" in refused("scrub", "--status")
        assert "'bock volume export' copies" in refused("backup", daemon.data_dir, tmp_path / "b")
        assert "cannot be repaired" in refused("check", "--repair")
        if daemon.running:
            with httpx.Client(
                transport=httpx.HTTPTransport(uds=str(daemon.data_dir / "api.sock"))
            ) as client:
                for path in ("scrub", "backup"):
                    answer = client.post(f"http://bockd/control/v1/{path}", json={})
                    assert answer.status_code == 501, answer.text
            daemon.stop()


def test_a_data_directory_is_of_one_daemon_and_of_one_kind(
    gateway: Start, pool: Path, rbd_namespace: RbdSettings
) -> None:
    first = gateway("gw1").start()
    second = Bockd(first.data_dir, first.log, config=first._config)
    assert "is in use by another bockd (process" in second.refusal_to_start()
    local = Bockd(first.data_dir, first.log)
    for _ in ("it runs", "it does not"):
        assert "is that of a daemon whose pool is in a Ceph" in local.refusal_to_start()
        if first.running:
            first.stop()
    with serving(pool) as daemon:
        daemon.stop()
    config = pool.with_suffix(".toml")
    config.write_text(configuration(rbd_namespace, pool))
    kept = (pool / "credentials.json").read_bytes()
    refused = Bockd(pool, first.log, config=config).refusal_to_start()
    assert f"there is a local pool in {pool}" in refused
    assert (pool / "credentials.json").read_bytes() == kept


def test_while_the_cluster_hangs_requests_are_told_and_the_end_comes(
    gateway: Start, ceph: Cluster
) -> None:
    daemon = gateway("gw1").start()
    daemon.bock("volume", "create", "disk", "--size", "8MiB")
    connection = daemon.connect("disk")
    connection.pwrite(b"data" * 1024, 0)
    with ceph.hanging():
        with daemon.control() as control, pytest.raises(UnavailableError, match="does not answer"):
            control.list_volumes()
        waiting = connection.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(4096)), 0)
        connection.poll(0)
        process = daemon._process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS) == 1
        assert not connection.aio_command_completed(waiting)
    assert (
        "does not answer. What was answered to clients is in the cluster" in daemon.log.read_text()
    )
    daemon._forget()
    daemon.start()
    with daemon.connected("disk") as client:
        assert client.pread(4096, 0) in (b"data" * 1024, bytes(4096))
    daemon.expect_in_log("does not answer")
    daemon.stop()


def test_without_cephs_modules_one_line_says_what_to_install(tmp_path: Path) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text(f'data_dir = "{tmp_path}/data"\n[pool]\ndriver = "rbd"\n')
    code = "import sys; sys.modules['rados'] = None\nfrom bockd.cli.bockd import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "serve", "--config", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "install the packages python3-rados and python3-rbd" in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


# -- the page ---------------------------------------------------------------------------------


def commands(after: str) -> list[str]:
    """The first block of commands of docs/ceph.md after some words."""
    _, found, rest = DOCS.read_text().partition(after)
    assert found, after
    block = re.search(r"\n\n((?:    .+\n)+)", rest)
    assert block, after
    return [line.removeprefix("    ") for line in block[1].splitlines()]


@contextmanager
def running(command: str, environ: dict[str, str]) -> Iterator[None]:
    """Run a daemon by a command of the page, until it says that it is ready and to the end."""
    process = subprocess.Popen(
        ["sh", "-c", f"exec {command}" if "=" not in command else f"exec env {command}"],
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith("Next: "):
                break
        yield
        process.terminate()
        assert process.wait(END_SECONDS) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_the_commands_of_the_page_set_it_up(
    ceph: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As they stand there, but for where files are, and for the names, which are another test's
    too: on a cluster that knows nothing of bockd."""
    root = tmp_path_factory.mktemp("page")
    name = f"page-{os.getpid()}"
    places = {
        "/etc/ceph": str(root / "ceph"),
        "/etc/bockd": str(root),
        "/var/lib": str(root),
        "client.bockd": f"client.{name}",
        "rbd/bockd": f"rbd/{name}",
        "namespace=bockd": f"namespace={name}",
        "127.0.0.1:10810": "127.0.0.1:0",
        "127.0.0.1:8777": "127.0.0.1:0",
    }

    def here(command: str) -> str:
        for there, ours in places.items():
            command = command.replace(there, ours)
        return command

    (root / "ceph").mkdir()
    environ = {
        **environment_without_a_cloud(),
        "PATH": f"{Path(program('bockd')).parent}:{os.environ['PATH']}",
        "CEPH_CONF": str(ceph.conf_file),
        "BOCKD_CONFIG": str(root / "bockd.toml"),
        "BOCKD_DATA": str(root / "bockd"),
        "BOCKD_NBD_LISTEN": "127.0.0.1:0",
        "BOCKD_API_LISTEN": "127.0.0.1:0",
    }
    of_admin = commands("Where you are Ceph's administrator:")
    assert len(of_admin) == 2
    for command in of_admin:
        subprocess.run(["sh", "-c", here(command)], check=True, env=environ, timeout=120)
    keyring = root / "ceph" / f"ceph.client.{name}.keyring"
    assert keyring.exists()
    # What a machine of the cluster has in /etc/ceph, without the administrator's key.
    conf = re.sub(r"(?m)^keyring = .*$", f"keyring = {keyring}", ceph.conf_file.read_text())
    (root / "ceph/ceph.conf").write_text(conf)
    install, link, configure, serve = commands("which\nthe daemon's user can read:")
    assert shlex.split(install)[3:] == ["python3-rados", "python3-rbd"]
    subprocess.run([DOCS.parents[1] / link], check=True, timeout=120)
    subprocess.run(["sh", "-c", here(configure)], check=True, env=environ)
    # The page's names are the defaults.
    with (root / "bockd.toml").open("a") as file:
        file.write(f'[rbd]\nconf_file = "{root}/ceph/ceph.conf"\n')
        file.write(f'user = "{name}"\nnamespace = "{name}"\ngateway = "gw1"\n')
    (another,) = commands("addresses, another data directory and another name:")
    del environ["CEPH_CONF"]

    def bock(*arguments: str, data: str = "bockd") -> Any:
        done = subprocess.run(
            [program("bock"), *arguments, "--json"],
            capture_output=True,
            text=True,
            check=False,
            env={**environ, "BOCKD_DATA": str(root / data)},
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    with running(serve, environ), running(here(another), environ):
        assert bock("info")["cluster"]["gateway"] == "gw1"
        assert bock("info", data="bockd2")["cluster"]["gateway"] == "gw2"
        bock("volume", "create", "disk", "--size", "1MiB")
        credentials = root / "bockd/credentials.json"
        assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
        (root / "bockd2/credentials.json").write_bytes(credentials.read_bytes())
        (found,) = bock("volume", "list", data="bockd2")
        assert found["name"] == "disk"
