"""The Ceph cluster that rows are measured in, one for all sections that need one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from bench.processes import BenchError, pinned
from bench.turns import BenchContext

if TYPE_CHECKING:  # it starts processes of Ceph's, which not every machine has
    from tests.drivers.rbd.cluster import Cluster


class LentCluster:
    """A cluster that is started for the first section that needs it, and stays for the next."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._cluster: Cluster | None = None

    def get(self, context: BenchContext) -> Cluster:
        """Return the cluster. Raises BenchError if it does not start."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(_running(context))
        return self._cluster

    def close(self) -> None:
        """End it, if there is one: it would take processor time of what is measured next."""
        self._cluster = None
        self._stack.close()


@contextmanager
def ceph_cluster(context: BenchContext) -> Iterator[Cluster]:
    """Lend the context's cluster, or run one. Raises BenchError if it does not start."""
    with ExitStack() as stack:
        lent = context.cluster
        yield lent.get(context) if lent else stack.enter_context(_running(context))


@contextmanager
def _running(context: BenchContext) -> Iterator[Cluster]:
    """Run a cluster apart from the servers: on a core of its own, or with the client."""
    from tests.drivers.rbd.cluster import Cluster

    cluster = Cluster(context.directory / "ceph")
    context.tell("starting a Ceph cluster")
    try:
        with pinned(context.placement.client):
            try:
                cluster.start()
            except AssertionError as error:
                raise BenchError(f"no Ceph cluster could be started: {error}") from error
        yield cluster
    finally:
        cluster.stop()
