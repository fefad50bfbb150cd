"""A gateway is killed at each failpoint of the index: the log is whole, and another one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bockd.drivers.rbd.index import SharedIndex
from bockd.drivers.rbd.log import Log
from bockd.failpoints import VARIABLE, Failpoint
from bockd.index.keys import id_key
from bockd.pool.nodes import VOLUMES
from tests.crash.failpoints.run import OF_THE_SHARED_INDEX

from .dying import DUMP_EVERY, LAST, UPDATES, FileObjects, add

IDENTITY = "0" * 32


def live(objects: Path, replica: Path, point: Failpoint, hit: int) -> tuple[int, list[int]]:
    """A gateway's life: how it ended, and what it was answered."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.drivers.rbd.dying", objects, replica],
        env={**os.environ, VARIABLE: f"{point}:{hit}"},
        stdout=subprocess.PIPE,
        check=False,
    )
    return done.returncode, [int(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("point", sorted(OF_THE_SHARED_INDEX))
def test_killed_at_a_step_the_log_is_whole(tmp_path: Path, point: Failpoint) -> None:
    path = tmp_path / "objects"
    objects = FileObjects(path)
    Log(objects).create(IDENTITY)
    # The second hit: there is a dump in force by then. Only a start loads one.
    hit = 1 if point is Failpoint.SHARED_LOADED else 2
    status, answered = live(path, tmp_path / "replica", point, hit)
    assert status == -signal.SIGKILL, f"nothing comes to {point}"

    index = SharedIndex.open(
        Log(objects),
        tmp_path / "replica",
        run="f" * 16,
        clock=lambda: 0.0,
        dump_every=DUMP_EVERY,
    )
    with index.reading() as txn:
        made = [key for key, _ in txn.scan(VOLUMES, b"", LAST)]
    assert made == [id_key(number) for number in range(1, len(made) + 1)]
    assert answered == list(range(1, len(answered) + 1))
    assert len(made) in (len(answered), len(answered) + 1)

    for number in range(UPDATES):
        assert index.update(add) == len(made) + number + 1
        if index.dump_due:
            index.dump()
    index.update(add)
    index.dump()
    tail = Log(objects).read(0)
    assert objects.names() == [f"base.{tail.base.name}.0"]
    assert Log(objects).leftovers() == []
    index.close()
