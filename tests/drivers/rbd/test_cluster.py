"""The tests' own cluster: its user has no more rights than it needs, and nothing of it is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bockd.config.rbd import RbdSettings
from tests.drivers.rbd.cluster import GRACE_SECONDS, Cluster

BOUND = """
import sys
from pathlib import Path
from tests.drivers.rbd.cluster import begin_bound

process = begin_bound(["sleep", "600"], sys.stderr.buffer, Path.cwd())
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_started_ends_with_who_started_it(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", BOUND], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    # The child's end is an event of the pidfd.
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        parent.send_signal(number)
        parent.wait()
        parent.stdout.close()
        ended = subprocess.run(
            [sys.executable, "-c", f"import select; select.select([{child}], [], [])"],
            pass_fds=[child],
            check=False,
            timeout=60,
        )
        assert ended.returncode == 0
    finally:
        os.close(child)


def test_a_user_has_its_namespace_and_no_other(ceph: Cluster, rbd_namespace: RbdSettings) -> None:
    # Only where Ceph's modules are: without them the fixture has skipped this.
    from bockd.drivers.rbd.binding import rbd
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.settings import index_options

    other = ceph.namespace()
    client = connect(rbd_namespace, index_options(rbd_namespace))
    try:
        with open_pool(client, rbd_namespace) as ioctx:
            rbd.RBD().create(ioctx, "image", 1 << 20)
            with rbd.Image(ioctx, "image") as image:
                image.write(b"data", 0)
                assert image.read(0, 5) == b"data\0"
            for namespace in (other.namespace, ""):
                ioctx.set_namespace(namespace)
                with pytest.raises(rbd.PermissionError):
                    rbd.RBD().create(ioctx, "image", 1 << 20)
    finally:
        client.shutdown()


def test_an_osd_that_was_stopped_answers_all_who_waited(
    ceph: Cluster, rbd_namespace: RbdSettings
) -> None:
    """However long it was stopped: nothing that hangs in a test is the cluster's doing."""
    from bockd.drivers.rbd.binding import rados
    from bockd.drivers.rbd.connection import connect, open_pool
    from bockd.drivers.rbd.settings import index_options

    with ExitStack() as stack:

        def ioctx_with_limit(seconds: int) -> Any:
            limit = {"rados_osd_op_timeout": str(seconds)}
            client = connect(rbd_namespace, {**index_options(rbd_namespace), **limit})
            stack.callback(client.shutdown)
            return stack.enter_context(open_pool(client, rbd_namespace))

        waiting, stopped = ioctx_with_limit(30), ioctx_with_limit(GRACE_SECONDS + 1)
        names = [f"object{number}" for number in range(100)]
        for name in names:
            waiting.write_full(name, b"before")
        with ceph.hanging():
            writes = [waiting.aio_write_full(name, b"waits") for name in names]
            with pytest.raises(rados.TimedOut):
                stopped.write_full("object", b"is given up")
        for write in writes:
            write.wait_for_complete()
        assert [write.get_return_value() for write in writes] == [0] * len(names)


def test_a_cluster_listens_on_an_address_of_its_own(ceph: Cluster) -> None:
    settings = Path(ceph.conf_file).read_text()
    assert "mon_host = 127." in settings
    assert "mon_host = 127.0." not in settings
