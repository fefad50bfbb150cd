"""What the driver does when the cluster is in trouble: three OSDs, of which two suffice.

The rows of docs/ceph.md, on the level of volumes, the index and takings. The pauses are printed.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import NoSpaceError, UnavailableError
from bockd.model import BLOCK_SIZE, MIB
from bockd.pool.index import Transaction
from tests.drivers.rbd.ceph import need_modules
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.writers import WAIT_SECONDS, Writers

need_modules()

from bockd.drivers.rbd import images, settings  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.binding import rbd  # noqa: E402
from bockd.drivers.rbd.claims import RbdClaim  # noqa: E402
from bockd.drivers.rbd.errors import CEPH_ERRORS, errno_of, from_volume_error  # noqa: E402
from bockd.drivers.rbd.extents import OBJECT_BYTES  # noqa: E402
from bockd.drivers.rbd.messages import Manner  # noqa: E402
from bockd.drivers.rbd.records import Identity, put_record, volume_record  # noqa: E402
from tests.drivers.rbd import waited  # noqa: E402
from tests.drivers.rbd.peer import VOLUME, Peer  # noqa: E402

pytestmark = pytest.mark.ceph_trouble

WRITERS = 16
HERE = Identity("here", "a" * 16)
THERE = Identity("there", "b" * 16)
LEARNT_SECONDS = 9.0
"""A limit, and not what it should take: 3 s."""
FILLING = 96 * MIB
"""What is written until the cluster is full."""


@pytest.fixture
def namespace(three_osds: Cluster) -> Iterator[RbdSettings]:
    yield three_osds.namespace()
    three_osds.wait_until_whole()


@contextmanager
def gateway(namespace: RbdSettings, who: Identity, directory: Path) -> Iterator[Peer]:
    peer = Peer(namespace, who, directory / who.gateway)
    try:
        yield peer
    finally:
        peer.close()


@pytest.fixture
def here(namespace: RbdSettings, tmp_path: Path) -> Iterator[Peer]:
    """A gateway, and its volume, with an object for each writer."""
    with gateway(namespace, HERE, tmp_path) as peer:
        image = peer.tenures.look(VOLUME).image
        images.grow_image(peer.ioctx, image, 2 * WRITERS * OBJECT_BYTES)
        peer.take(Manner.FIRM)
        yield peer


def write(peer: Peer, number: int, value: int, length: int = BLOCK_SIZE) -> None:
    """Write a number all over the beginning of an object."""
    assert peer.taken is not None
    data = value.to_bytes(8, "big") * (length // 8)
    try:
        waited.write(peer.taken.claim.image, data, number * OBJECT_BYTES)
    except (OSError, *CEPH_ERRORS) as error:
        raise from_volume_error(error, "writing") from error


def read(peer: Peer, number: int) -> int:
    assert peer.taken is not None
    data = waited.read(peer.taken.claim.image, number * OBJECT_BYTES, BLOCK_SIZE)
    assert data == data[:8] * (BLOCK_SIZE // 8)
    return int.from_bytes(data[:8], "big")


def writers(peer: Peer) -> Writers:
    return Writers(lambda block, number: write(peer, block, number), WRITERS)


def check_elsewhere(here: Peer, answered: dict[int, int], directory: Path) -> None:
    """What was answered is there, as another gateway sees it."""
    here.give_back()
    with gateway(here.settings, THERE, directory) as there:
        there.take(Manner.FIRM)
        assert {block: read(there, block) for block in answered} == answered


@pytest.mark.parametrize("osd", [0, 1, 2])
def test_a_killed_osd_loses_nothing(
    three_osds: Cluster, here: Peer, tmp_path: Path, osd: int
) -> None:
    name = f"osd.{osd}"
    with writers(here) as writing:
        before = writing.longest_seconds
        three_osds.kill(name)
        writing.wait_for_writes(20)
        killed, writing.longest_seconds = writing.longest_seconds, 0.0
        three_osds.begin(name)
        three_osds.wait_until_whole()
    print(
        f"{name} killed: longest write before {before:.2f} s, then {killed:.2f} s, "
        f"when it came back {writing.longest_seconds:.2f} s"
    )
    check_elsewhere(here, writing.answered, tmp_path)


def test_who_connects_just_after_an_osd_has_died_learns_of_it(
    three_osds: Cluster, here: Peer, tmp_path: Path
) -> None:
    """The address of the dead one refuses it, and nothing else tells it. librados' own
    `objecter_timeout` and ticks let it wait for 10 to 15 s."""
    longest = 0.0
    for osd in ("osd.0", "osd.1", "osd.2"):
        for number in range(WRITERS):
            write(here, number, 1)
        here.give_back()
        three_osds.kill(osd)
        began = time.monotonic()
        with gateway(here.settings, THERE, tmp_path / osd) as there:
            there.take(Manner.FIRM)
            assert {read(there, number) for number in range(WRITERS)} == {1}
        longest = max(longest, time.monotonic() - began)
        three_osds.begin(osd)
        three_osds.wait_until_whole()
        here.take(Manner.FIRM)
    print(f"a gateway that has just connected reads all objects after {longest:.1f} s at most")
    assert longest < LEARNT_SECONDS


def test_an_osd_that_hangs_holds_writes_up_until_it_is_down(
    three_osds: Cluster, here: Peer, tmp_path: Path
) -> None:
    with writers(here) as writing, three_osds.hanging("osd.1"):
        began = time.monotonic()
        three_osds.wait_for(lambda: "osd.1" not in three_osds.up())
        down_seconds = time.monotonic() - began
        writing.wait_for_writes(20)
    print(f"osd.1 hangs: down after {down_seconds:.1f} s, {writing.longest_seconds:.1f} s waited")
    check_elsewhere(here, writing.answered, tmp_path)


def test_a_full_cluster_refuses_what_grows_and_nothing_else(
    three_osds: Cluster, here: Peer, namespace: RbdSettings, tmp_path: Path
) -> None:
    for number in range(WRITERS):
        write(here, number, 1)
    filling = RbdClaim(namespace, here.limited, blank(here, 64 * FILLING))
    with three_osds.full(three_osds.used() + FILLING / three_osds.bytes):
        print(f"full after {fill(filling) // MIB} MiB")
        began = time.monotonic()
        with pytest.raises(NoSpaceError):
            write(here, WRITERS, 1, MIB)
        with pytest.raises(NoSpaceError):
            blank(here, MIB)
        print(f"refused within {time.monotonic() - began:.2f} s")
        # What exists is overwritten and read.
        with writers(here) as writing:
            pass
        assert {block: read(here, block) for block in writing.answered} == writing.answered
        for _ in range(20):
            here.index.update(touch)
        image = here.tenures.look(VOLUME).image
        images.take_snap(here.limited, here.ioctx, image, snap := images.new_name())
        images.remove_snap(here.limited, here.ioctx, image, snap)
        with gateway(namespace, THERE, tmp_path) as there:
            there.take(Manner.FIRM)
            assert here.taken is None
            assert {block: read(there, block) for block in writing.answered} == writing.answered
            assert there.taken is not None
            waited.discard(there.taken.claim.image, 0, 2 * OBJECT_BYTES)
            assert (read(there, 0), read(there, 2)) == (0, writing.answered[2])
        filling.close()
        for name in rbd.RBD().list(here.ioctx):
            assert name == image or images.remove_image(here.ioctx, name)
        here.take(Manner.FIRM)
        began = time.monotonic()
        three_osds.wait_for(lambda: has_room(here))
        print(f"room again {time.monotonic() - began:.1f} s after what had filled it was removed")
    assert read(here, WRITERS) == 1


def has_room(peer: Peer) -> bool:
    """Write what grows the volume."""
    try:
        write(peer, WRITERS, 1, MIB)
    except NoSpaceError:
        return False
    return True


def touch(txn: Transaction) -> None:
    """Change something."""
    record = volume_record(txn, VOLUME)
    put_record(txn, replace(record, created_at=record.created_at + 1))


def blank(peer: Peer, size_bytes: int) -> str:
    """Make an image."""
    name = images.new_name()
    images.create_image(peer.ioctx, name, size_bytes)
    return name


def fill(claim: RbdClaim) -> int:
    """Write to an image until there is no room. Return how many bytes that were."""
    assert claim.lock()
    at = 0
    while True:
        try:
            waited.write(claim.image, b"x" * MIB, at)
        except (OSError, *CEPH_ERRORS) as error:
            if errno_of(error) != errno.ENOSPC:
                raise
            return at
        at += MIB


def test_without_monitors_open_volumes_go_on_and_takings_fail_at_their_limits(
    three_osds: Cluster,
    here: Peer,
    namespace: RbdSettings,
    tmp_path: Path,
) -> None:
    quick = replace(namespace, connect_seconds=2)
    image = here.tenures.look(VOLUME).image
    with gateway(quick, THERE, tmp_path) as there:
        claim = RbdClaim(quick, there.limited, image)
        owner = claim.owner()
        assert owner is not None
        with writers(here) as writing, three_osds.hanging("mon.a"):
            writing.wait_for_writes()
            for _ in range(5):
                here.index.update(touch)
            there.index.refresh()
            images.create_image(here.ioctx, images.new_name(), MIB)
            limited: dict[str, Callable[[], object]] = {
                "connecting": lambda: there.take(Manner.FIRM),
                "breaking a lock": lambda: claim.break_lock(owner),
                "catching up": claim.catch_up,
                "a snap": lambda: images.take_snap(here.limited, here.ioctx, image, "s"),
                "a snap's end": lambda: images.remove_snap(here.limited, here.ioctx, image, "s"),
            }
            for what, refused in limited.items():
                began = time.monotonic()
                with pytest.raises(UnavailableError):
                    refused()
                print(f"{what}: refused after {time.monotonic() - began:.1f} s")
                writing.wait_for_writes()
        claim.close()
        writing.longest_seconds = 0.0
        there.take(Manner.FIRM)
        assert {block: read(there, block) for block in writing.answered} == writing.answered


def test_what_has_a_limit_ends_while_no_osd_answers(
    three_osds: Cluster, namespace: RbdSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing else does: what was written waits, and is there at the end."""
    monkeypatch.setattr(settings, "INDEX_TIMEOUT_SECONDS", 2)
    with gateway(namespace, HERE, tmp_path) as here:
        here.take(Manner.FIRM)
        image = here.tenures.look(VOLUME).image
        waiting = threading.Thread(target=write, args=(here, 0, 7))
        for name in three_osds.osds:
            three_osds.suspend(name)
        try:
            waiting.start()
            limited: dict[str, Callable[[], object]] = {
                "an update": lambda: here.index.update(touch),
                "a refresh": here.index.refresh,
                "a question": lambda: here.bus.ask(image, Manner.FIRM),
                "an image": lambda: images.create_image(here.ioctx, images.new_name(), MIB),
                "a snap": lambda: images.take_snap(here.limited, here.ioctx, image, "s"),
            }
            for what, refused in limited.items():
                began = time.monotonic()
                with pytest.raises(UnavailableError):
                    refused()
                print(f"{what}: refused after {time.monotonic() - began:.1f} s")
            assert waiting.is_alive()
        finally:
            for name in three_osds.osds:
                three_osds.resume(name)
        waiting.join(WAIT_SECONDS)
        assert read(here, 0) == 7
