"""How much processor time this process may use: what its control groups grant it (`cpu.max`, which
`CPUQuota=` of systemd and `--cpus` of containers set).

Which processors it may use is another question (`sched_getaffinity`): a group may grant the time of
one and leave it to run on all. Threads that wait for work without sleeping then use up in a part of
each period (0.1 s) what is granted for all of it, and everything stands still for the rest.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def granted_cores(most: int, groups: Path = _GROUPS, own_group: Path = _OWN_GROUP) -> int:
    """Return the processor time that this process is granted, in that of a core, rounded down: at
    least 1, at most `most`.

    `groups` is where control groups are mounted (version 2; there is no limit in others), and
    `own_group` says which one is this process's: cgroups(7).
    """
    granted = most
    for group in _own_groups(own_group):
        try:
            quota, period = (groups / group / "cpu.max").read_text().split()
            if quota != "max":
                granted = min(granted, int(quota) // int(period))
        except (OSError, ValueError):
            continue  # the root has none, nor has who may not see it; a new format is no reason
    return max(1, granted)


def _own_groups(own_group: Path) -> list[PurePosixPath]:
    """The group of this process, and those around it, whose limits hold as well."""
    try:
        lines = own_group.read_text().splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        if line.startswith("0::/"):
            path = PurePosixPath(line.removeprefix("0::/"))
            return [path, *path.parents]
    return []
