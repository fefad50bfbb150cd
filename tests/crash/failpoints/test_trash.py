"""Death at each step of what is done with the trash: all of it is there afterwards, or none, and a
volume and a snapshot that were not deleted for good hold what they held.

The other failpoints' scenario has no trash: what it deletes is gone at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bockd.cli.client import ControlClient
from bockd.failpoints import VARIABLE, Failpoint
from bockd.model import MIB

from ...daemon.process import environment_without_a_cloud
from ..forked import ForkedDaemon
from ..rest import Rest
from .content import Disk
from .run import OF_THE_TRASH, assert_clean
from .scenario import GONE, Client, World, credentials

VOLUME, SNAPSHOT = b"volume's " * 1000, b"snapshot's " * 1000

State = tuple[frozenset[str], frozenset[str], int, int]
"""What is there, what is in the trash, and the volumes and snapshots that the quota has."""


class Trashing:
    """A pool whose daemons keep what is deleted, with the volume web and its snapshot then."""

    def __init__(self, work: Path) -> None:
        self.pool, self.log = work / "pool", work / "log"
        self.config = work / "bockd.toml"
        self.config.write_text("[trash]\nkeep_hours = 1\n")
        self.world = World()

    def start(self, point: Failpoint | None = None, hit: int = 1) -> ForkedDaemon:
        environment = {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": str(self.config),
            "BOCKD_DATA": str(self.pool),
            "BOCKD_NBD_LISTEN": "none",
            "BOCKD_API_LISTEN": "127.0.0.1:0",
        }
        if point is not None:
            environment[VARIABLE] = f"{point}:{hit}"
        return ForkedDaemon(environment, self.log)

    def prepare(self) -> None:
        daemon = self.start()
        client = Client(self.pool, daemon, self.world)
        client.rest.authenticate(credentials(self.pool))
        self.world.token, self.world.tenant = client.rest.token, client.rest.tenant
        wanted = {"display_name": "web", "bockd": {"size_bytes": MIB}}
        made = client.rest.post("/volumes", {"volume": wanted})["volume"]["id"]
        disk = Disk(MIB)
        writer = client.connect("web")
        disk.write(writer, 0, SNAPSHOT)
        shot = {"volume_id": made, "display_name": "then", "force": True}
        client.rest.post("/snapshots", {"snapshot": shot})
        disk.write(writer, 0, VOLUME)
        writer.flush()
        writer.shutdown()
        client.until_unused("web")
        client.close()
        daemon.stop()

    def steps(self, client: Client) -> list[Callable[[], object]]:
        """All that can be done with the trash, to each kind twice."""
        rest = client.rest
        (volume,) = (one["id"] for one in rest.get("/os-volumes")["volumes"])
        (shot,) = (one["id"] for one in rest.get("/os-snapshots")["snapshots"])
        restore = {"bockd-restore": None}
        return [
            lambda: client.read("web", len(VOLUME)),  # so that it is open
            lambda: client.until_unused("web"),
            lambda: rest.delete(f"/volumes/{volume}"),
            lambda: rest.delete(f"/snapshots/{shot}"),
            lambda: rest.post(f"/bockd-trash/{shot}/action", restore),
            lambda: rest.post(f"/bockd-trash/{volume}/action", restore),
            lambda: rest.delete(f"/snapshots/{shot}"),
            lambda: rest.delete(f"/volumes/{volume}"),
            lambda: rest.delete(f"/bockd-trash/{shot}"),
            lambda: rest.delete(f"/bockd-trash/{volume}"),
        ]


def state(rest: Rest, control: ControlClient) -> State:
    trash = rest.get("/bockd-trash")["trash"]
    limits = rest.get("/limits")["limits"]["absolute"]
    there = {one.name for one in control.list_volumes()}
    there |= {one.name for one in control.list_snapshots()}
    return (
        frozenset(there),
        frozenset(one["displayName"] for one in trash),
        limits["totalVolumesUsed"],
        limits["totalSnapshotsUsed"],
    )


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[State]:
    """What there is after each step of a run that does not die, and before the first."""
    trashing = Trashing(tmp_path_factory.mktemp("whole"))
    trashing.prepare()
    daemon = trashing.start()
    client = Client(trashing.pool, daemon, trashing.world)
    steps = trashing.steps(client)
    found = [state(client.rest, client.control)]
    for step in steps:
        step()
        found.append(state(client.rest, client.control))
    client.close()
    assert not daemon.stop()
    assert found[-1] == (frozenset(), frozenset(), 0, 0)
    return found


@pytest.mark.parametrize("hit", [1, 2])
@pytest.mark.parametrize("point", sorted(OF_THE_TRASH))
def test_dying_at_a_step_leaves_all_of_it_or_none(
    tmp_path: Path, known: list[State], point: Failpoint, hit: int
) -> None:
    trashing = Trashing(tmp_path)
    trashing.prepare()
    daemon = trashing.start(point, hit)
    client = Client(trashing.pool, daemon, trashing.world)
    steps = trashing.steps(client)
    done = 0
    with pytest.raises(GONE):  # noqa: PT012 - until one of them is not answered
        for step in steps:
            step()
            done += 1
    client.close()
    assert daemon.died(), trashing.log.read_text()
    assert_clean(trashing.pool)
    daemon = trashing.start()
    client = Client(trashing.pool, daemon, trashing.world)
    try:
        found = state(client.rest, client.control)
        assert found in known[done : done + 2]
        for one in client.rest.get("/bockd-trash")["trash"]:
            client.rest.post(f"/bockd-trash/{one['id']}/action", {"bockd-restore": None})
        there, in_trash, *_ = found
        for name in there | in_trash:
            export, content = ("web", VOLUME) if name == "web" else ("snapshot/then", SNAPSHOT)
            assert client.read(export, len(content)) == content
        assert client.control.check().clean
    finally:
        client.close()
        assert not daemon.stop()
    assert_clean(trashing.pool)
