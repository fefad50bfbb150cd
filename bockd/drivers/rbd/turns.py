"""A lock that nobody waits for without a limit.

While the cluster does not answer, each who has it keeps it for tens of seconds, until his
operations have timed out. Who came last would wait for all of them.
"""

from __future__ import annotations

import threading

from bockd.errors import ClusterUnavailableError


class Turns:
    """A lock for `with`. Whoever waits for it for too long fails, and has done nothing."""

    def __init__(self, what: str, limit_seconds: float) -> None:
        """`what` is what is done by one after the other, for the error."""
        self._what = what
        self._limit_seconds = limit_seconds
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        """Take it. Blocks. Raises UnavailableError."""
        if not self._lock.acquire(timeout=self._limit_seconds):
            raise ClusterUnavailableError(
                f"{self._what}: nothing is done, for others have not done theirs after "
                f"{self._limit_seconds:g} s; 'ceph -s' says how the Ceph cluster is"
            )

    def __exit__(self, *_exception: object) -> None:
        """Let the next one take it."""
        self._lock.release()
