"""Gateways in processes take a volume of a real cluster from one another.

The pauses are printed (`pytest -rP`), from the question to the volume.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.errors import InUseError
from bockd.failpoints import VARIABLE, Failpoint
from tests.crash.failpoints.run import OF_TAKING
from tests.drivers.rbd.ceph import need_modules

need_modules()

from bockd.drivers.rbd import images  # noqa: E402 - where there are the modules
from bockd.drivers.rbd.bus import BUS  # noqa: E402
from bockd.drivers.rbd.claims import RbdClaim  # noqa: E402
from bockd.drivers.rbd.messages import LIMIT_SECONDS, Manner  # noqa: E402
from bockd.drivers.rbd.records import Identity  # noqa: E402
from tests.drivers.rbd.dying import as_text  # noqa: E402
from tests.drivers.rbd.peer import BLOCKS, SIZE, VOLUME, Peer  # noqa: E402

HERE = Identity("here", "b" * 16)
AFTER = 1 << 40
"""What is written after a taking; no earlier write has such a number."""


class Child:
    """A gateway in a process of its own, named `there` unless it is said."""

    def __init__(
        self, settings: RbdSettings, directory: Path, kind: str, digit: str = "a", point: str = ""
    ) -> None:
        environ = {**os.environ, **({VARIABLE: point} if point else {})}
        command = [sys.executable, "-m", "tests.drivers.rbd.peer", as_text(settings)]
        self.process = subprocess.Popen(
            [*command, "there", digit * 16, directory / digit, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environ,
        )
        self.answered = dict.fromkeys(range(BLOCKS), 0)
        self.said: list[str] = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._changed:
                    words = line.split()
                    if len(words) == 2:
                        self.answered[int(words[0])] = int(words[1])
                    else:
                        self.said.append(words[0])
                    self._changed.notify_all()

    def wait_for(self, *words: str) -> None:
        """Return when it has said one of them."""
        with self._changed:
            assert self._changed.wait_for(lambda: any(one in self.said for one in words), 60), (
                self.said
            )

    def wait_for_writes(self) -> None:
        """Until each block was written again, twice."""
        with self._changed:
            goal = {block: number + 2 for block, number in self.answered.items()}
            assert self._changed.wait_for(
                lambda: all(self.answered[block] >= goal[block] for block in goal), 60
            )

    def end(self) -> int:
        """Wait until it has ended and all that it said was read."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(60)
        self._reader.join()
        return status


@pytest.fixture
def here(rbd_namespace: RbdSettings, tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(rbd_namespace, HERE, tmp_path / "here")
    yield peer
    peer.close()


@contextmanager
def child(
    settings: RbdSettings, directory: Path, kind: str, digit: str = "a", point: str = ""
) -> Iterator[Child]:
    one = Child(settings, directory, kind, digit, point)
    try:
        yield one
    finally:
        one.process.kill()
        one.end()


def take(peer: Peer, manner: Manner, what: str) -> None:
    began = time.monotonic()
    peer.take(manner)
    print(f"{what}: {time.monotonic() - began:.2f} s")


def check_answered(peer: Peer, there: Child) -> None:
    """What was answered is there; what was not may be."""
    for block, number in there.answered.items():
        assert peer.read(block) in (number, number + 1)


def holder(peer: Peer) -> tuple[str | None, str | None, int]:
    record = peer.tenures.look(VOLUME)
    return record.holder, record.run, record.epoch


def left_on_bus(peer: Peer) -> list[str]:
    from bockd.drivers.rbd.binding import rados

    with rados.ReadOpCtx() as op:
        found, _ = peer.ioctx.get_omap_vals(op, "", "", 100)
        peer.ioctx.operate_read_op(op, BUS)
        return [key for key, _ in found]


def test_a_firm_question_moves_a_busy_volume_in_order(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path
) -> None:
    with child(rbd_namespace, tmp_path, "busy") as there:
        there.wait_for_writes()
        assert holder(here) == ("there", "a" * 16, 1)
        take(here, Manner.FIRM, "orderly, firm, 16 writers")
        there.wait_for("given")
        assert there.end() == 0
        for block, number in there.answered.items():
            assert here.read(block) == number
    assert holder(here) == (*HERE, 2)
    assert here.taken is not None
    claim = here.taken.claim
    owner = claim.owner()
    assert owner == here.tenures.look(VOLUME).address
    assert owner is not None
    assert claim.is_watching(owner)
    assert not claim.is_watching("127.0.0.1:0/1")
    claim.break_lock("127.0.0.1:0/1")  # it is not the owner
    assert claim.owner() == owner
    here.give_back()
    assert holder(here) == (None, None, 2)


def test_a_polite_question_leaves_a_busy_volume(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path
) -> None:
    with child(rbd_namespace, tmp_path, "busy") as there:
        there.wait_for_writes()
        began = time.monotonic()
        with pytest.raises(InUseError, match="gateway there has volume 7"):
            here.take(Manner.POLITE)
        print(f"refused: {time.monotonic() - began:.2f} s")
        there.wait_for_writes()
    assert left_on_bus(here) == []


def test_a_polite_question_moves_an_idle_volume(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path
) -> None:
    other = Peer(rbd_namespace, Identity("other", "c" * 16), tmp_path / "other")
    other.take(Manner.POLITE)
    take(here, Manner.POLITE, "orderly, polite, idle")
    assert other.taken is None
    assert holder(here) == (*HERE, 2)
    # A watch that is lost is made again.
    first = other.bus._watch
    other.bus._on_loss()
    while other.bus._watch in (first, None):
        time.sleep(0.01)
    other.take(Manner.POLITE)
    assert (here.taken, holder(here)) == (None, ("other", "c" * 16, 3))
    take(here, Manner.POLITE, "orderly, polite, idle, watched again")
    assert other.taken is None
    other.close()


@pytest.mark.parametrize("manner", Manner)
def test_a_gateway_that_needs_time_says_so_and_is_waited_for(
    rbd_namespace: RbdSettings,
    here: Peer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    manner: Manner,
) -> None:
    slow = Peer(rbd_namespace, Identity("slow", "c" * 16), tmp_path / "slow")
    slow.take(Manner.FIRM)
    slow.has_clients = manner is Manner.POLITE
    slow.hold = threading.Event()
    monkeypatch.setattr(RbdClaim, "break_lock", None)  # nobody is shut out
    monkeypatch.setitem(LIMIT_SECONDS, manner, 60.0)
    with ThreadPoolExecutor(1) as asking:
        taking = asking.submit(here.take, manner)
        until = time.monotonic() + 60
        while not left_on_bus(here):
            assert time.monotonic() < until, "it does not say that it has heard"
        assert not taking.done()
        slow.hold.set()
        if manner is Manner.POLITE:
            with pytest.raises(InUseError, match="gateway slow has volume 7"):
                taking.result(60)
            slow.has_clients = False
        else:
            taking.result(60)
            assert slow.taken is None
    slow.close()
    assert left_on_bus(here) == []


def test_a_killed_gateway_loses_nothing_that_was_answered(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path
) -> None:
    with child(rbd_namespace, tmp_path, "busy") as there:
        there.wait_for_writes()
        there.process.kill()
        take(here, Manner.FIRM, "after SIGKILL")
        there.end()
        check_answered(here, there)
    assert holder(here) == (*HERE, 2)


def test_a_gateway_that_hung_lands_nothing_when_it_goes_on(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path
) -> None:
    with child(rbd_namespace, tmp_path, "busy") as there:
        there.wait_for_writes()
        there.process.send_signal(signal.SIGSTOP)
        take(here, Manner.FIRM, "after SIGSTOP")
        for block in range(BLOCKS // 2):
            here.write(block, AFTER + block)
        there.process.send_signal(signal.SIGCONT)
        # It reads that it was asked, or a write fails first.
        there.wait_for("given", "lost")
        for block in range(BLOCKS // 2):
            assert here.read(block) == AFTER + block
        there.end()
        for block in range(BLOCKS // 2, BLOCKS):
            assert here.read(block) in (there.answered[block], there.answered[block] + 1)
    assert holder(here) == (*HERE, 2)


def test_a_restarted_gateway_does_not_ask_its_dead_self(
    rbd_namespace: RbdSettings, here: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with child(rbd_namespace, tmp_path, "busy") as there:
        there.wait_for_writes()
        there.process.kill()
        there.end()
        again = Peer(rbd_namespace, Identity("there", "c" * 16), tmp_path / "again")
        monkeypatch.setattr(again.bus, "ask", None)
        take(again, Manner.POLITE, "restarted after SIGKILL")
        check_answered(again, there)
        again.close()
    assert holder(here) == (None, None, 2)


@pytest.mark.parametrize("point", sorted(OF_TAKING))
def test_killed_at_a_step_another_gateway_goes_on(
    rbd_namespace: RbdSettings, tmp_path: Path, point: Failpoint
) -> None:
    deaf = Peer(rbd_namespace, HERE, tmp_path / "here", deaf=True)
    deaf.take(Manner.FIRM)
    deaf.write(0, 1)
    with child(rbd_namespace, tmp_path, "idle", point=point) as there:
        assert there.process.wait(60) == -signal.SIGKILL, f"nothing comes to {point}"
    lost = deaf.taken
    assert lost is not None
    third = Peer(rbd_namespace, Identity("third", "c" * 16), tmp_path / "third")
    third.take(Manner.FIRM)
    assert third.read(0) == 1
    third.write(0, 2)
    recorded = point in (Failpoint.TAKE_RECORDED, Failpoint.GIVE_BACK_CLOSED)
    assert holder(third) == ("third", "c" * 16, 3 if recorded else 2)
    third.close()
    deaf.taken = None
    lost.claim.close()
    deaf.close()


@pytest.mark.parametrize("events", [True, False], ids=["events", "callbacks"])
def test_what_has_the_lock_is_what_writes(
    rbd_namespace: RbdSettings, here: Peer, events: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is an opening's: with another one the first write would ask for it, or be
    refused."""
    from bockd.drivers.rbd import events as by_events
    from bockd.drivers.rbd import volumeimage
    from bockd.drivers.rbd.claims import RbdClaim
    from bockd.drivers.rbd.events import EventImage

    monkeypatch.setattr(volumeimage, "by_events", events)
    monkeypatch.setattr(by_events, "_MOST_WATCHERS", 1)
    taken = here.take(Manner.FIRM)
    image = taken.claim.image
    assert isinstance(image, EventImage) is events
    owner = taken.claim.owner()
    assert owner is not None
    here.write(3, 5)
    assert here.read(3) == 5
    assert image.size() == SIZE
    assert taken.claim.owner() == owner
    assert [one["addr"] for one in image.watchers_list()] == [owner]
    others = [RbdClaim(rbd_namespace, here.limited, taken.record.image) for _ in range(2)]
    assert len(list(image.watchers_list())) == 3
    assert not others[0].lock()
    images.grow_image(here.ioctx, taken.record.image, 2 * SIZE)
    assert image.size() == 2 * SIZE
    for other in others:
        other.close()
    here.give_back()
