"""The index of several gateways in a real cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.index import OutcomeUnknownError, SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.drivers.rbd.objects import Objects
from bockd.errors import NoSpaceError, UnavailableError
from bockd.failpoints import VARIABLE, Failpoint
from bockd.index.keys import id_key
from bockd.pool.index import Transaction
from bockd.pool.nodes import VOLUMES

from .cluster import Cluster
from .dying import DUMP_EVERY, LAST, add, as_text
from .opened import opened

IDENTITY = "0" * 32


@pytest.fixture
def objects(rbd_namespace: RbdSettings) -> Iterator[Objects]:
    with opened(rbd_namespace) as objects:
        assert Log(objects).create(IDENTITY)
        yield objects


def gateway(objects: Objects, directory: Path, digit: str, dump_every: int = 10) -> SharedIndex:
    return SharedIndex.open(
        Log(objects), directory / digit, run=digit * 16, clock=lambda: 0.0, dump_every=dump_every
    )


def numbers(index: SharedIndex) -> list[bytes]:
    with index.reading() as txn:
        return [key for key, _ in txn.scan(VOLUMES, b"", LAST)]


def up_to(last: int) -> list[bytes]:
    return [id_key(number) for number in range(1, last + 1)]


def test_gateways_at_once_give_each_number_once(
    rbd_namespace: RbdSettings, objects: Objects, tmp_path: Path
) -> None:
    """Dumps are so frequent here that one that was held up finds what it asks for gone: it says
    that it does not know what became of its change."""
    answers: list[int] = []
    unknown: list[OutcomeUnknownError] = []
    errors: list[BaseException] = []

    def work(index: SharedIndex) -> None:
        try:
            for _ in range(25):
                try:
                    answers.append(index.update(add))
                except OutcomeUnknownError as error:
                    unknown.append(error)
                if index.dump_due:
                    index.dump()
        except BaseException as error:  # noqa: BLE001 - shown at the end
            errors.append(error)

    with ExitStack() as stack:
        gateways = [
            gateway(stack.enter_context(opened(rbd_namespace)), tmp_path, digit) for digit in "abc"
        ]
        threads = [threading.Thread(target=work, args=(index,)) for index in gateways]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(answers) + len(unknown) == 75
        assert len(set(answers)) == len(answers) > 50
        for index in gateways:
            index.refresh()
        last = len(numbers(gateways[0]))
        assert set(answers) <= set(range(1, last + 1))
        assert len(answers) <= last <= 75
        for index in gateways:
            assert numbers(index) == up_to(last)
            index.close()
    late = gateway(objects, tmp_path, "d")
    assert numbers(late) == up_to(last)
    late.close()


KILLS = (
    Failpoint.SHARED_CHANGED,
    Failpoint.SHARED_APPENDED,
    Failpoint.SHARED_SETTLED,
    Failpoint.DUMP_WRITTEN,
    Failpoint.DUMP_SWUNG,
    Failpoint.DUMP_PIECE_REMOVED,
)


def test_gateways_that_are_killed_leave_a_whole_log(
    rbd_namespace: RbdSettings, objects: Objects, tmp_path: Path
) -> None:
    replica, made = tmp_path / "replica", 0
    for point in KILLS:
        done = subprocess.run(
            [sys.executable, "-m", "tests.drivers.rbd.dying", as_text(rbd_namespace), replica],
            env={**os.environ, VARIABLE: f"{point}:2"},
            stdout=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, f"nothing comes to {point}"
        answered = [int(line) for line in done.stdout.splitlines()]
        assert answered == list(range(made + 1, made + 1 + len(answered)))
        index = gateway(objects, tmp_path, "e", DUMP_EVERY)
        there = numbers(index)
        index.close()
        assert there == up_to(len(there))
        assert len(there) - made - len(answered) in (0, 1)
        made = len(there)
    index = gateway(objects, tmp_path, "e", DUMP_EVERY)
    index.update(add)
    index.dump()
    index.close()
    assert Log(objects).leftovers() == []


def test_an_update_while_the_cluster_hangs_has_one_outcome(
    rbd_namespace: RbdSettings, ceph: Cluster, objects: Objects, tmp_path: Path
) -> None:
    """What was sent may be carried out when the cluster goes on."""
    with opened(rbd_namespace, rados_osd_op_timeout="1") as impatient:
        index = gateway(impatient, tmp_path, "a")
        index.update(add)
        with ExitStack() as hanging:

            def change(txn: Transaction) -> None:
                hanging.enter_context(ceph.hanging())
                add(txn)

            with pytest.raises(OutcomeUnknownError):
                index.update(change)
            with pytest.raises(UnavailableError, match="does not answer"):
                index.refresh()
        made: list[int] = []

        def adds() -> bool:
            try:
                made.append(index.update(add))
            except UnavailableError:
                return False
            return True

        ceph.wait_for(adds)
        [last] = made
        index.close()
    assert last in (2, 3)
    judge = gateway(objects, tmp_path, "b")
    assert numbers(judge) == up_to(last)
    judge.close()


def test_a_full_cluster_takes_changes_and_no_dumps(
    ceph: Cluster, objects: Objects, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = gateway(objects, tmp_path, "a")
    with ceph.full():
        for number in range(25):
            assert index.update(add) == number + 1
        assert "was not dumped: writing base" in caplog.text
        with pytest.raises(NoSpaceError, match="is full"):
            index.dump()
        assert Log(objects).leftovers() == []
    index.dump()
    index.close()
    late = gateway(objects, tmp_path, "b")
    assert numbers(late) == up_to(25)
    late.close()
