"""What a gateway does about volumes that are, or were, dirty at it and are not open."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bockd.errors import (
    BockdError,
    ConflictError,
    DamagedError,
    InUseError,
    UnavailableError,
    VolumeTakenError,
)
from bockd.model import VolumeId
from bockd.pool.caches import LogReach
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES
from bockd.pool.pool import nothing_more
from bockd.publictexts import discretion
from bockd.runtime.steps import Background, Signal, run_inline
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.memoryindex import Records

need_modules()

from bockd.drivers.rbd.fronts import Front  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.leftdirty import (  # noqa: E402
    find_dirty,
    left_since,
    note_reach,
    write_back_left,
)
from bockd.drivers.rbd.messages import Manner  # noqa: E402
from bockd.drivers.rbd.opened import OpenVolume  # noqa: E402
from bockd.drivers.rbd.opennodes import OpenNodes  # noqa: E402
from bockd.drivers.rbd.records import (  # noqa: E402
    DirtyAt,
    Identity,
    RbdVolumeRecord,
    put_record,
)
from bockd.drivers.rbd.snapshots import SnapshotOperations  # noqa: E402
from bockd.index.keys import id_key  # noqa: E402

ID = VolumeId(1)
IMAGE, ANOTHER = "1" * 24, "2" * 24
HERE = DirtyAt("here", "log", 1.0)
ELSEWHERE = DirtyAt("there", "log", 1.0)
VOLUME = RbdVolumeRecord(
    id=ID,
    name="v",
    size_bytes=1 << 20,
    created_at=0.0,
    from_snapshot=None,
    failed=None,
    image=IMAGE,
)


class Gateway:
    """The volumes of a gateway, over records and the names of logs."""

    def __init__(self, *records: RbdVolumeRecord) -> None:
        self.index = Records()
        self.put(*records)
        session: Any = SimpleNamespace(who=Identity("here", "r" * 16), index=self.index)
        self.background = Background()
        self.nodes = OpenNodes(session, self.background.spawn)
        self.nodes.fronts.write_backs = cast(Any, self)
        self.opened: list[VolumeId] = []
        self.discarded: list[str] = []
        patched: Any = self.nodes
        patched.open_volume = self._open
        patched._give_back = self._give_back

    def put(self, *records: RbdVolumeRecord) -> None:
        for one in records:
            put_record(cast(Transaction, self.index), one)

    async def _open(self, volume: VolumeId, _manner: object) -> None:
        """Open it, write it back, and close it."""
        self.opened.append(volume)
        self.nodes.left_dirty.pop(volume)
        self.put(VOLUME)

    async def _give_back(self, _opened: object) -> None:
        pass

    async def discard(self, image: str, *, keep: bool) -> None:
        self.discarded.append(image)
        self.kept = keep

    def look(self) -> None:
        """Write back what is left, as is done every second."""
        for volume in list(self.nodes.left_dirty):
            run_inline(write_back_left(self.nodes, volume))

    def have_open(self, log: object) -> OpenVolume:
        """Have the volume open."""
        no_device: Any = None
        device: Any = SimpleNamespace(lost=Signal())
        taken: Any = SimpleNamespace(record=VOLUME)
        opened = OpenVolume(taken, device, Front(no_device, log=cast(Any, log)))
        self.nodes.volumes[ID] = opened
        return opened


def test_a_malformed_record_stops_nothing_but_its_own_volume(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It may name any image that no other record does."""
    third, nobodys = "3" * 24, "4" * 24
    gateway = Gateway(
        replace(VOLUME, dirty_at=HERE),
        replace(VOLUME, id=VolumeId(2), image=ANOTHER, dirty_at=ELSEWHERE),
        replace(VOLUME, id=VolumeId(4), image=third),
    )
    found = find_dirty(gateway.nodes)
    void = {image: found.is_void(image) for image in (IMAGE, ANOTHER, third, nobodys)}
    assert void == {IMAGE: False, ANOTHER: False, third: True, nobodys: True}
    gateway.index.put(VOLUMES, id_key(3), b'{"dirty_image": 7}')
    found = find_dirty(gateway.nodes)
    assert "volume 3: whether it is dirty here is not known" in caplog.text
    assert found.damaged == (3,)
    assert {*found.dirty} == {IMAGE, ANOTHER}
    assert gateway.nodes.left_dirty == {ID: IMAGE}
    void = {image: found.is_void(image) for image in void}
    assert void == {IMAGE: False, ANOTHER: False, third: True, nobodys: False}


def test_how_far_logs_have_come_is_noted_beside_malformed_records() -> None:
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    noted: list[object] = []
    session: Any = gateway.nodes.session
    session.tenures = SimpleNamespace(mark_reach=noted.append)
    reach = LogReach("log", 3, 9)

    async def note_known(reach: LogReach) -> None:
        """Keep nothing."""

    for number in (3, 1):
        taken: Any = SimpleNamespace(epoch=number)
        log: Any = SimpleNamespace(reach=lambda: reach, note_known=note_known)
        nothing: Any = None
        gateway.nodes.volumes[VolumeId(number)] = OpenVolume(taken, nothing, Front(log, log=log))
    gateway.index.put(VOLUMES, id_key(3), b"malformed")
    run_inline(note_reach(gateway.nodes))
    assert noted == [[(ID, 1, reach)]]


def test_what_is_dirty_here_is_written_back() -> None:
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    find_dirty(gateway.nodes)
    gateway.look()
    assert (gateway.opened, gateway.discarded) == ([ID], [])


@pytest.mark.parametrize("then", [VOLUME, replace(VOLUME, image=ANOTHER, dirty_at=ELSEWHERE), None])
def test_a_log_that_was_discarded_elsewhere_is_removed(then: RbdVolumeRecord | None) -> None:
    """Also if the volume was reverted and made dirty there, or deleted."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    find_dirty(gateway.nodes)
    if then is None:
        gateway.index.delete(VOLUMES, id_key(ID))
    else:
        gateway.put(then)
    gateway.look()
    assert (gateway.opened, gateway.discarded) == ([], [IMAGE])
    assert gateway.kept == (then is not None)
    assert gateway.nodes.left_dirty == {}


def test_while_the_record_names_another_log_it_stays() -> None:
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    find_dirty(gateway.nodes)
    gateway.put(replace(VOLUME, dirty_at=ELSEWHERE))
    gateway.look()
    assert (gateway.opened, gateway.discarded) == ([], [])
    gateway.put(VOLUME)
    gateway.look()
    assert gateway.discarded == [IMAGE]


@pytest.mark.parametrize("lost", [True, False])
def test_what_is_closed_may_be_dirty_with_nothing_left_to_write(lost: bool) -> None:
    """All may be below, and the record not changed yet, or not any more."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    log = SimpleNamespace(dirty=lambda: (0, None), retire=lambda: None)
    opened = gateway.have_open(log)
    if lost:
        gateway.nodes._on_lost(ID, opened)
        gateway.background.run()
    else:
        run_inline(gateway.nodes.close_volume(ID, keep_dirty=True))
    gateway.look()
    assert gateway.opened == [ID]


def test_a_log_that_cannot_be_read_is_minded_until_it_is_discarded() -> None:
    """Each attempt would take the volume."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    find_dirty(gateway.nodes)
    gateway.nodes.refusals[ID] = "the log is damaged"
    for _ in range(2):
        with pytest.raises(DamagedError, match="the log is damaged"):
            gateway.look()
    assert (gateway.opened, gateway.discarded) == ([], [])
    gateway.put(VOLUME)
    gateway.look()
    assert (gateway.opened, gateway.discarded) == ([], [IMAGE])
    assert gateway.nodes.refusals == {}


def test_without_a_directory_of_logs_it_is_not_even_taken(caplog: pytest.LogCaptureFixture) -> None:
    """Each taking is two commits of the index, and this is tried again and again."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    nodes = OpenNodes(gateway.nodes.session, gateway.background.spawn)
    find_dirty(nodes)
    with pytest.raises(ConflictError, match=r"write_back.directory named"):
        run_inline(write_back_left(nodes, ID))
    with pytest.raises(ConflictError, match=r"write_back.directory named"):
        run_inline(nodes.use_volume(ID, Manner.FIRM))
    assert list(nodes.left_dirty) == [ID]
    assert caplog.text == ""


def test_what_is_dirty_here_and_not_open_is_counted_until_it_is_opened() -> None:
    """Also while the volume is refused; but not what is dirty elsewhere, or was discarded there."""
    two = replace(VOLUME, id=VolumeId(2), image=ANOTHER, dirty_at=HERE._replace(since=2.0))
    third = replace(VOLUME, id=VolumeId(3), image="3" * 24, dirty_at=ELSEWHERE)
    gateway = Gateway(replace(VOLUME, dirty_at=HERE), two, third)
    assert left_since(gateway.nodes) == []
    find_dirty(gateway.nodes)
    assert sorted(left_since(gateway.nodes)) == [1.0, 2.0]
    gateway.nodes.left_dirty.pop(ID)
    gateway.nodes.refusals[ID] = "its log is damaged"
    assert sorted(left_since(gateway.nodes)) == [1.0, 2.0]
    gateway.have_open(None)
    assert left_since(gateway.nodes) == [2.0]
    gateway.put(replace(two, dirty_at=None))
    assert left_since(gateway.nodes) == []
    gateway.index.put(VOLUMES, id_key(2), b"{")
    assert left_since(gateway.nodes) == []


def test_a_directory_whose_disk_is_not_mounted_is_not_taken_for_its_logs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nor is it said that they are missing: whoever gives them up then loses them."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE._replace(directory="logs")))
    here = ["log"]

    async def refuse_missing(_image: str, log: str) -> None:
        if log not in here:
            raise DamagedError("it is missing")

    logs: Any = SimpleNamespace(id="another", path="/logs", refuse_missing=refuse_missing)
    nodes = OpenNodes(gateway.nodes.session, gateway.background.spawn)
    nodes.fronts.write_backs = logs
    find_dirty(nodes)
    with pytest.raises(ConflictError, match=r"logs logs, and /logs is another.*mounted") as caught:
        run_inline(write_back_left(nodes, ID))
    assert str(caught.value).endswith("lost for good, give them up (bock volume discard-cache)")
    assert "/logs" not in discretion.text(caught.value)
    assert nodes.refusals == {}
    assert list(nodes.left_dirty) == [ID]
    logs.id = "logs"
    run_inline(nodes.fronts.refuse_dirty(nodes.record(ID)))
    gateway.put(replace(VOLUME, dirty_at=HERE))
    logs.id = "another"
    run_inline(nodes.fronts.refuse_dirty(nodes.record(ID)))
    # Another run of this name, elsewhere, may have the volume: it is not even taken.
    here.clear()
    for _ in range(2):
        with pytest.raises(DamagedError, match="it is missing"):
            run_inline(nodes.open_volume(ID, Manner.FIRM))
    assert nodes.refusals == {ID: "it is missing"}
    assert caplog.text.count("volume 1 cannot be opened: it is missing") == 1


def test_what_is_dirty_elsewhere_is_taken_without_a_directory_of_logs() -> None:
    """The other gateway is asked to write it back."""
    gateway = Gateway(replace(VOLUME, dirty_at=ELSEWHERE))
    nodes = OpenNodes(gateway.nodes.session, gateway.background.spawn)
    asked: list[VolumeId] = []

    async def take(volume: VolumeId, _manner: Manner) -> None:
        asked.append(volume)
        raise InUseError("it is asked")

    session: Any = nodes.session
    session.settings = SimpleNamespace(max_open_volumes=1)
    session.taker = SimpleNamespace(take=take)
    with pytest.raises(InUseError, match="it is asked"):
        run_inline(nodes.use_volume(ID, Manner.FIRM))
    assert asked == [ID]


def test_a_snapshot_writes_back_before_writes_wait_for_it() -> None:
    """Else they would wait for all that is dirty."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    came: list[str] = []

    async def drain() -> None:
        assert gateway.nodes.unfinished() == 1, "an operation excludes others"
        came.append("drained")

    log = SimpleNamespace(drain=drain, write_through=lambda: came.append("through"))
    gateway.have_open(log)

    async def exclusive_soon(*_arguments: object) -> None:
        came.append("exclusive")

    patched: Any = gateway.nodes
    patched.exclusive_soon = exclusive_soon
    run_inline(SnapshotOperations(gateway.nodes).create(ID, "s", nothing_more))
    assert came == ["drained", "exclusive"]


def test_a_volume_that_is_closed_while_it_is_drained_is_no_trouble(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At the end of the daemon, for example, when its last client has just left."""
    gateway = Gateway(replace(VOLUME, dirty_at=HERE))
    error: BockdError = VolumeTakenError("it was closed")

    async def drain() -> None:
        raise error

    gateway.have_open(SimpleNamespace(drain=drain))
    run_inline(gateway.nodes.drain(ID))
    assert caplog.text == ""
    error = UnavailableError("the cluster does not answer")
    run_inline(gateway.nodes.drain(ID))
    assert "writing volume 1 back: the cluster does not answer" in caplog.text


def test_what_has_no_log_is_not_looked_for() -> None:
    gateway = Gateway(VOLUME)
    gateway.have_open(None)
    run_inline(gateway.nodes.close_volume(ID))
    assert gateway.nodes.left_dirty == {}
