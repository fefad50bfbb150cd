"""What all tests share: reports that can travel from the process that ran the test, examples that
may take as long as a busy machine takes for them, programs that can be interrupted, and a Ceph
cluster for those that ask for one."""

from __future__ import annotations

import ctypes
import gc
import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bockd.config.rbd import RbdSettings
from tests.daemon import driver
from tests.drivers.rbd.cluster import Cluster, missing
from tests.scheduling import Scheduling, begins_at

# Hypothesis allows 200 ms for an example and 30 s for making the first ten by default, which a
# loaded machine exceeds, the second with sanitizers.
settings.register_profile("bockd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bockd")

# Helpers that assert for several test modules: their failures show what was compared, too.
pytest.register_assert_rewrite(
    "tests.config.served",
    "tests.crash.failpoints.run",
    "tests.daemon.damaged_volume",
    "tests.openstack.requests",
)


def pytest_configure() -> None:
    """Have programs that tests start take these signals, though pytest ignores them itself: so it
    does behind nohup, or started by a shell in the background, and a program inherits it."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports are sent as UTF-8, and some tests log on purpose what cannot be written so."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.fixture
def forgotten_connections() -> Iterator[None]:
    """Collect at the test's end what a library forgets to close: what is collected in a later test
    fails that one. For tests that ignore the warning."""
    yield
    gc.collect()


@pytest.fixture(scope="module", autouse=True)
def freed_memory_given_back() -> Iterator[None]:
    """Give what a module has freed back to the kernel. The C library keeps it: 1.6 GB at the end of
    a run, whose page tables each fork of the crash laboratories copies."""
    yield
    ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ceph cluster, which all tests of this process share."""
    with _running(Cluster(tmp_path_factory.mktemp("ceph") / "cluster")) as cluster:
        yield cluster


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """For `--dist loadfile` alone."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, and leave out what the kind of pool that the daemons serve
    cannot do, as its features say."""
    items.sort(key=lambda item: begins_at(item.nodeid))
    for item in items:
        for mark in item.iter_markers("needs"):
            if not driver.NEEDS[mark.args[0]](driver.features()):
                reason = f"pools of driver {driver.DRIVER} cannot do this: {mark.args[0]}"
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=driver.IS_RBD)
def cluster_of_daemons(ceph: Cluster) -> None:
    """The cluster in which the tests' daemons have their pools (BOCKD_TEST_DRIVER)."""
    driver.use_cluster(ceph)


@pytest.fixture(scope="session")
def three_osds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ceph cluster of three OSDs, of which two suffice. Who ends one starts it again."""
    with _running(Cluster(tmp_path_factory.mktemp("ceph") / "cluster", osds=3)) as cluster:
        yield cluster


@contextmanager
def _running(cluster: Cluster) -> Iterator[Cluster]:
    if lacking := missing():
        pytest.skip(lacking)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def rbd_namespace(ceph: Cluster, request: pytest.FixtureRequest) -> Iterator[RbdSettings]:
    """A new namespace in the cluster, and a user for it: the settings of a daemon there. What the
    cluster logged is shown if the test fails."""
    failed = request.session.testsfailed
    yield ceph.namespace()
    if request.session.testsfailed > failed:
        print(ceph.logs())
