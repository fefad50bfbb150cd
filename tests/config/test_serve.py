"""A daemon does what its file says."""

from __future__ import annotations

import socket
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from tests.config.served import serving, token_for
from tests.daemon.process import program

FILE = """\
data_dir = "{data_dir}"
log_level = "error"
[nbd]
listen = "none"
[api]
listen = "127.0.0.1:0"
[identity]
token_seconds = 3600
[catalog]
region = "az-9.region-z.geo-1"
availability_zone = "shelf-3"
public_url = "https://volumes.example.org"
[catalog.zones]
"az-8.region-z.geo-1" = "http://192.0.2.2:8776"
[servers.vm1]
kind = "vm"
qmp = "/run/vm1.sock"
tenant = "demo"
[quota]
volumes = 9
[quota.tenants.demo]
volumes = 1
"""


@pytest.fixture
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "pool"


def test_everything_in_the_file_counts(data_dir: Path) -> None:
    config, log = data_dir.with_suffix(".toml"), data_dir.with_suffix(".log")
    config.write_text(FILE.format(data_dir=data_dir))
    with serving(config, log) as url, httpx.Client(base_url=url) as client:
        access = token_for(client, data_dir)
        expires = datetime.fromisoformat(access["token"]["expires"])
        assert timedelta(minutes=50) < expires - datetime.now(UTC) <= timedelta(hours=1)
        client.headers["X-Auth-Token"] = access["token"]["id"]
        client.base_url = httpx.URL(f"{url}/v1.1/{access['token']['tenant']['id']}")
        (volumes,) = (s for s in access["serviceCatalog"] if s["type"] == "volume")
        assert [
            (e["region"], e["publicURL"].rpartition("/v1.1")[0]) for e in volumes["endpoints"]
        ] == [
            ("az-9.region-z.geo-1", "https://volumes.example.org"),
            ("az-8.region-z.geo-1", "http://192.0.2.2:8776"),
        ]
        first = client.post("/os-volumes", json={"volume": {"size": 1}})
        assert first.status_code == 200, first.text
        assert first.json()["volume"]["availabilityZone"] == "shelf-3"
        second = client.post("/os-volumes", json={"volume": {"size": 1}})
        assert (second.status_code, list(second.json())) == (413, ["overLimit"])
        server = client.get("/servers/vm1").json()["server"]
        assert server["bockd"]["kind"] == "vm"
        limits = client.get("/limits").json()["limits"]["absolute"]
        assert (limits["maxTotalVolumes"], limits["maxTotalSnapshots"]) == (1, 1000)
    assert log.read_text() == ""  # at level error a good life leaves no trace


def test_a_bad_file_stops_the_daemon_before_it_touches_anything(data_dir: Path) -> None:
    config = data_dir.with_suffix(".toml")
    config.write_text(f'data_dir = "{data_dir}"\n[api]\nlisten = "8776"\n')
    ended = subprocess.run(
        [program("bockd"), "serve", "--config", config], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"bockd: {config}:3: api.listen: '8776' is not HOST:PORT, nor the word none\n"
    )
    assert not data_dir.exists()


def test_a_port_that_is_taken_is_one_line(data_dir: Path) -> None:
    config = data_dir.with_suffix(".toml")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config.write_text(
            f'data_dir = "{data_dir}"\nnbd.listen = "none"\napi.listen = "{address}"\n'
        )
        ended = subprocess.run(
            [program("bockd"), "serve", "--config", config],
            capture_output=True,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(
        f"bockd: cannot listen on {address}: Address already in use; set BOCKD_"
    )
    assert ended.stderr.count("\n") == 1
