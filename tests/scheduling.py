"""Which tests one of several processes runs together, and with which they begin.

A process takes one module after the other. What modules share for a whole process, a Ceph cluster
or guests that have booted, is made by each process that comes to one of them: so one runs them all.
"""

from __future__ import annotations

from xdist.scheduler import LoadFileScheduling

TOGETHER = {
    "guests": ("tests/guest/",),
    "cluster": (
        "tests/daemon/test_cached.py",
        "tests/daemon/test_ceph.py",
        "tests/daemon/test_ceph_migration.py",
        "tests/daemon/test_gatewaywork.py",
        "tests/daemon/test_interrupted_gateways.py",
        "tests/daemon/test_moving.py",
        "tests/daemon/test_write_back.py",
        "tests/drivers/rbd/",
        "tests/openstack/test_two_gateways.py",
        "tests/pool/",
        "tests/service/test_confined_ceph.py",
    ),
}
"""Modules and directories that one process runs."""

LONGEST = (
    *TOGETHER["cluster"],
    *TOGETHER["guests"],
    "tests/crash/failpoints/test_first_hit.py",
    "tests/bench/test_run.py",
    "tests/crash/faults/test_faults.py",
    "tests/crash/powercut/test_mutations.py",
    "tests/crash/test_storm.py",
    "tests/corruption/test_damage.py",
)
"""What takes half a minute or more. It begins first, in this order: begun last, one of them would
keep one processor at work at the end, and the others none."""


def begins_at(nodeid: str) -> int:
    """Return a test's place: less begins earlier."""
    longest = (place for place, one in enumerate(LONGEST) if nodeid.startswith(one))
    return next(longest, len(LONGEST))


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """Modules, some of them together, in the order in which they were collected."""

    def _split_scope(self, nodeid: str) -> str:
        for name, places in TOGETHER.items():
            if nodeid.startswith(places):
                return name
        return nodeid.partition("::")[0]
