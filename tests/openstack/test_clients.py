"""OpenStack's own clients, pkgcloud and fog, unmodified, against a running daemon.

`.setup/openstack-clients` installs them; docs/cli.md says what they can do.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from ..cli.daemon import Daemon, running_daemon
from .installed import ENDS_WITHIN_SECONDS, PLACE, Clients, assert_installed, variables

pytestmark = pytest.mark.openstack_clients

MANY = 3000
"""Volumes: three of the pages that lists once ended at."""

CINDERCLIENT_9 = """
import os
from cinderclient import client
from keystoneauth1 import session
from keystoneauth1.identity import v2

auth = v2.Password(
    os.environ["OS_AUTH_URL"],
    username=os.environ["OS_USERNAME"],
    password=os.environ["OS_PASSWORD"],
    tenant_name=os.environ["OS_TENANT_NAME"],
)
cinder = client.Client("3.0", session=session.Session(auth=auth), service_type="volume")
volume = cinder.volumes.create(1, name="nine", description="d", metadata={"a": "b"})
assert volume.display_name == "nine"
cinder.volumes.update(volume, name="neun")
assert cinder.volumes.get(volume.id).display_name == "neun"
cinder.volumes.set_metadata(volume, {"c": "d"})
cinder.volumes.delete_metadata(volume, ["a"])
assert cinder.volumes.get(volume.id).metadata == {"c": "d"}
cinder.volumes.update_all_metadata(volume, {"x": "y"})
assert cinder.volumes.get(volume.id).metadata == {"x": "y"}
snapshot = cinder.volume_snapshots.create(volume.id, name="s", force=True)
cinder.volume_snapshots.update(snapshot, name="t")
assert cinder.volume_snapshots.get(snapshot.id).display_name == "t"
cinder.volumes.extend(volume, 2)
assert cinder.volumes.get(volume.id).size == 2
assert cinder.volume_types.list() == []
assert volume.id in [one.id for one in cinder.volumes.list()]
assert len(cinder.volumes.list(limit=2)) == 2
cinder.volume_snapshots.delete(snapshot)
cinder.volumes.delete(volume)
"""

PKGCLOUD = """
const assert = require('assert');
const pkgcloud = require(process.env.PKGCLOUD);
const { OS_AUTH_URL, OS_USERNAME, OS_PASSWORD, OS_TENANT_NAME } = process.env;
const client = pkgcloud.blockstorage.createClient({
  provider: 'openstack', username: OS_USERNAME, password: OS_PASSWORD,
  tenantName: OS_TENANT_NAME, authUrl: OS_AUTH_URL.replace('/v2.0', ''),
  keystoneAuthVersion: 'v2.0', region: 'az-1.region-a.geo-1',
});
const call = (name, ...given) => new Promise((done, failed) =>
  client[name](...given, (error, found) => error ? failed(error) : done(found)));
(async () => {
  const volume = await call('createVolume', { name: 'pk', description: 'd', size: 1 });
  assert.strictEqual(volume.name, 'pk');
  assert((await call('getVolumes')).some((one) => one.id === volume.id));
  const snapshot = await call('createSnapshot', { name: 's', volumeId: volume.id });
  assert.deepStrictEqual([snapshot.name, snapshot.volumeId], ['s', volume.id]);
  // It joins URLs of strings only, and ids here are numbers.
  assert.strictEqual((await call('getSnapshot', String(snapshot.id))).status, 'available');
  assert.deepStrictEqual(await call('getVolumeTypes'), []);
  await call('deleteSnapshot', String(snapshot.id));
  await call('deleteVolume', String(volume.id));
})().catch((error) => { console.error(error); process.exit(1); });
"""


@dataclass(frozen=True)
class Cloud(Clients):
    """A daemon, and its clients."""

    daemon: Daemon


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    assert_installed()
    with running_daemon(tmp_path_factory.mktemp("cloud") / "pool") as daemon:
        shell = daemon.bock("credentials", "--shell")
        yield Cloud(daemon.data_dir, variables(shell), daemon)


def test_openstack_gets_a_token_and_images(cloud: Cloud) -> None:
    token = cloud.openstack("token", "issue")
    assert token["project_id"] == cloud.daemon.bock_json("credentials")["tenant_id"]
    root = cloud.variables["OS_AUTH_URL"].removesuffix("/v2.0")
    cloud.openstack("token", "issue", OS_AUTH_URL=f"{root}/identity")
    assert cloud.openstack("image", "list") == []
    assert [one["Name"] for one in cloud.openstack("project", "list")] == ["demo"]
    names = [one["Name"] for one in cloud.openstack("catalog", "list")]
    assert "Block Storage" in names


@pytest.mark.parametrize(
    ("path", "password"), [("/v2.0", "wrong"), ("", None), ("/v3", None), ("/nothing", None)]
)
def test_openstack_ends_with_an_error(cloud: Cloud, path: str, password: str | None) -> None:
    """It waited for itself without end when it was refused while it looked for versions."""
    root = cloud.variables["OS_AUTH_URL"].removesuffix("/v2.0")
    more = {} if password is None else {"OS_PASSWORD": password}
    done = cloud.run("today/bin/openstack", "token", "issue", OS_AUTH_URL=f"{root}{path}", **more)
    assert done.returncode == 1
    assert done.stderr


def test_cinder_of_version_1(cloud: Cloud) -> None:
    cloud.cinder("create", "1", "--display-name", "one", "--metadata", "a=b")
    assert "| one " in cloud.cinder("list")
    assert "in-use" not in cloud.cinder("show", "one")
    cloud.cinder("rename", "one", "eins", "--display-description", "d")
    cloud.cinder("metadata", "eins", "set", "c=d")
    cloud.cinder("metadata", "eins", "unset", "a")
    shown = cloud.cinder("metadata-show", "eins")
    assert "| c " in shown
    assert "| a " not in shown
    cloud.cinder("snapshot-create", "--display-name", "s", "eins")
    cloud.cinder("snapshot-rename", "s", "t")
    assert "| t " in cloud.cinder("snapshot-list")
    cloud.cinder("extend", "eins", "2")
    cloud.cinder("type-list")
    cloud.cinder("absolute-limits")
    cloud.cinder("snapshot-delete", "t")
    cloud.cinder("delete", "eins")
    assert "eins" not in cloud.cinder("list")


def test_cinderclient_of_today(cloud: Cloud) -> None:
    cloud.cinder("create", "1", "--display-name", "another")
    done = cloud.run("today/bin/python", "-c", CINDERCLIENT_9)
    assert done.returncode == 0, done
    cloud.cinder("delete", "another")


def test_pkgcloud(cloud: Cloud, tmp_path: Path) -> None:
    script = tmp_path / "script.js"
    script.write_text(PKGCLOUD)
    package = PLACE / "node" / "node_modules" / "pkgcloud"
    done = subprocess.run(
        ["node", script],
        env={"PATH": os.environ["PATH"], "PKGCLOUD": str(package), **cloud.variables},
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done


FOG = """
require 'fog/openstack'
cloud = Fog::OpenStack::Volume::V1.new(
  openstack_auth_url: ENV['OS_AUTH_URL'].delete_suffix('/v2.0'),
  openstack_identity_api_version: 'v2.0',
  openstack_username: ENV['OS_USERNAME'], openstack_api_key: ENV['OS_PASSWORD'],
  openstack_tenant: ENV['OS_TENANT_NAME'], openstack_service_type: ['volume'],
  openstack_region: 'az-1.region-a.geo-1',
)
def check(what) raise what.inspect unless yield end
volume = cloud.volumes.create(display_name: 'fog', display_description: 'd', size: 1)
check(volume) { volume.display_name == 'fog' }
check(:list) { cloud.volumes.all.map(&:id).include?(volume.id) }
snapshot = cloud.snapshots.create(display_name: 's', display_description: 'd', volume_id: volume.id)
check(snapshot) { snapshot.display_name == 's' }
volume = cloud.volumes.get(volume.id)
volume.update(display_name: 'fog2')
check(:renamed) { cloud.volumes.get(volume.id).display_name == 'fog2' }
check(:types) { cloud.volume_types.all.empty? }
snapshot.destroy
volume.destroy
check(:gone) { cloud.volumes.all.none? { |one| one.id == volume.id } }
"""


def test_fog(cloud: Cloud) -> None:
    done = subprocess.run(
        ["ruby", "-e", FOG],
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **cloud.variables},
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done


def test_many_volumes(cloud: Cloud) -> None:
    """cinder sees all of them, and finds the last one by its name."""
    cloud.daemon.bock("tenant", "quota", "demo", "--volumes", "unlimited")
    with cloud.daemon.storage() as storage:
        token, tenant = storage.token, storage.tenant_id
    root = cloud.variables["OS_AUTH_URL"].removesuffix("/v2.0")
    headers = {"X-Auth-Token": token}
    with httpx.Client(base_url=f"{root}/v1.1/{tenant}", headers=headers, timeout=60) as client:

        def create(number: int) -> None:
            volume = {"size": 1, "display_name": f"v{number:04}"}
            answer = client.post("/os-volumes", json={"volume": volume})
            assert answer.status_code == 200, answer.text

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(create, range(MANY)))
    listed = cloud.cinder("list")
    assert all(f"| v{number:04} " in listed for number in range(MANY))
    assert f"| v{MANY - 1:04} " in cloud.cinder("show", f"v{MANY - 1:04}")
    few = cloud.cinder("list", "--limit", "3")
    assert sum(line.startswith("| v") or " v0" in line for line in few.splitlines()) == 3
