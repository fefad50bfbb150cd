"""Become a program that is confined as a systemd unit says, on any machine:

    [*launcher(UNIT, STATE_DIRECTORY), PROGRAM, ARGUMENT...]

Run as root. It does what systemd does before it executes a service: the user, no capabilities,
limits, namespaces, a file system where only the state directory can be written, and the filters on
system calls (seccomp.py). The state directory is any path, in place of the unit's own. A directive
that is neither applied here nor known to say nothing about a running process is an error.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import resource
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.service import seccomp
from tests.service.unitfile import allowed_calls, is_on, service_of, words

REPOSITORY = Path(__file__).resolve().parents[2]

NOBODY = 65534

LAUNCHER_ONLY = frozenset(
    {
        "AmbientCapabilities",
        "ExecStart",
        "NotifyAccess",
        "Restart",
        "RestartSec",
        "StateDirectory",
        "StateDirectoryMode",
        "TimeoutStartSec",
        "TimeoutStopSec",
        "Type",
    }
)
"""How the service is started and ended. (An ambient set that is empty is what root begins with.)"""

SUBSUMED = {
    "DevicePolicy": "needs a cgroup of systemd's; /dev holds nothing else here",
    "DeviceAllow": "the same",
    "Group": "the user's number is the group's too",
    "ProtectClock": "@clock is in @privileged, /dev/rtc is not in /dev",
    "ProtectControlGroups": "everything is read-only",
    "ProtectKernelLogs": "syslog needs a capability, /dev/kmsg is not in /dev",
    "ProtectKernelModules": "@module is in @privileged",
    "ProtectKernelTunables": "/proc and /sys are read-only",
    "ReadOnlyPaths": "everything is read-only",
    "RemoveIPC": "what the user leaves is removed when the service ends",
    "SystemCallErrorNumber": "here it is death",
    "ProcSubset": "the default",
}

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
FUSE_DEVICE = "fuse"

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS, _CLONE_NEWUTS, _CLONE_NEWIPC = 0x20000, 0x4000000, 0x8000000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_SYS_RESOURCE": 24}
"""Those that a unit of ours may name."""


def launcher(unit: Path, state: Path, *dropins: Path, asks_for_code: bool = False) -> list[str]:
    """The command that becomes the program behind it, confined as in the unit: as the user
    `NOBODY`, unless it is to be root. `asks_for_code`: the program asks for memory that can be
    written and executed, and does without; it is refused by an error, as by systemd."""
    code = f"import sys; sys.path.insert(0, {str(REPOSITORY)!r}); "
    code += "from tests.service.confined import main; main()"
    more = [f"--dropin={path}" for path in dropins]
    more += ["--asks-for-code"] * asks_for_code
    return [sys.executable, "-c", code, *more, str(unit), str(state)]


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dropin", action="append", type=Path, default=[])
    parser.add_argument("--asks-for-code", action="store_true")
    parser.add_argument("unit", type=Path)
    parser.add_argument("state", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    service = service_of(path.read_text() for path in (given.unit, *given.dropin))
    calls = allowed_calls(service)
    unknown = set(service) - APPLIED - LAUNCHER_ONLY - set(SUBSUMED)
    assert not unknown, f"how {unknown} confine is not known here"
    os.umask(int(service["UMask"][0], 8))
    limit("NOFILE", service)
    limit("CORE", service)
    environment = os.environ | dict(pair.split("=", 1) for pair in words(service, "Environment"))
    namespaces(service, given.state)
    user = 0 if service["User"] == ["root"] else NOBODY
    become(user, words(service, "CapabilityBoundingSet"))
    filter_calls(service, calls, asks_for_code=given.asks_for_code)
    os.execve(given.command[0], given.command, environment)


def limit(name: str, service: dict[str, list[str]]) -> None:
    """Soft and hard, at most what this machine has."""
    number = getattr(resource, f"RLIMIT_{name}")
    wanted, has = int(service[f"Limit{name}"][0]), resource.getrlimit(number)[1]
    value = wanted if has == resource.RLIM_INFINITY else min(wanted, has)
    resource.setrlimit(number, (value, value))


# -- what can be seen, and what of that written -------------------------------------------------


def namespaces(service: dict[str, list[str]], state: Path) -> None:
    flags = (is_on(service, "ProtectHostname") and _CLONE_NEWUTS) | (
        is_on(service, "PrivateIPC") and _CLONE_NEWIPC
    )
    apart = service["ProtectSystem"] == ["strict"]
    _check(_LIBC.unshare(flags | (apart and _CLONE_NEWNS)), "unshare")
    if not apart:
        for name in ("ProtectHome", "PrivateTmp", "PrivateDevices"):
            assert not is_on(service, name), f"{name} makes a namespace all the same"
        return
    mount(None, "/", None, _MS_REC | _MS_SLAVE)
    if service["ProtectProc"] == ["invisible"]:
        mount("proc", "/proc", "proc", 0, "hidepid=invisible")
    hide([*hidden(service, state)], [REPOSITORY, state])
    if is_on(service, "PrivateDevices"):
        few_devices()
    read_only("/", recursive=True)
    writable(str(state))
    if is_on(service, "PrivateTmp"):
        writable("/tmp")
        writable("/var/tmp")


def hidden(service: dict[str, list[str]], state: Path) -> Iterator[str]:
    """What the unit hides; and what only its owner may pass through on the way to what is needed,
    such as a test's directories."""
    if is_on(service, "ProtectHome"):
        yield from ("/home", "/root", "/run/user")
    if is_on(service, "PrivateTmp"):
        yield from ("/tmp", "/var/tmp")
    for parent in (*reversed(REPOSITORY.parents), *reversed(state.parents)):
        if not parent.stat().st_mode & stat.S_IXOTH:
            yield str(parent)


def hide(paths: list[str], shown: list[Path]) -> None:
    """Put an empty directory over each path, and what shall be shown back into its place."""
    kept = [(path, os.open(path, os.O_PATH)) for path in shown]
    for path in paths:
        if os.path.isdir(path):
            mode = "1777" if path.endswith("tmp") else "0755"
            mount("tmpfs", path, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode={mode}")
    for place, descriptor in kept:
        previous = os.umask(0o022)
        place.mkdir(parents=True, exist_ok=True)
        os.umask(previous)
        mount(f"/proc/self/fd/{descriptor}", str(place), None, _MS_BIND | _MS_REC)
        os.close(descriptor)


def few_devices() -> None:
    """PrivateDevices=yes."""
    kept = [(name, os.open(f"/dev/{name}", os.O_PATH)) for name in DEVICES]
    mount("tmpfs", "/dev", "tmpfs", _MS_NOSUID, "mode=0755")
    os.mkdir("/dev/shm")
    for name, descriptor in kept:
        os.close(os.open(f"/dev/{name}", os.O_CREAT | os.O_WRONLY))
        mount(f"/proc/self/fd/{descriptor}", f"/dev/{name}", None, _MS_BIND)
        os.close(descriptor)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, data: str | None = None
) -> None:
    encoded = [text and text.encode() for text in (source, target, kind, data)]
    result = _LIBC.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3])
    _check(result, f"mounting {target}")


def read_only(path: str, *, recursive: bool) -> None:
    _set_attributes(path, _MOUNT_ATTR_RDONLY, 0, _AT_RECURSIVE if recursive else 0)


def writable(path: str) -> None:
    _set_attributes(path, 0, _MOUNT_ATTR_RDONLY, 0)


def _set_attributes(path: str, gained: int, lost: int, flags: int) -> None:
    attributes = (ctypes.c_uint64 * 4)(gained, lost, 0, 0)
    result = _LIBC.syscall(
        _SYS_MOUNT_SETATTR, _AT_FDCWD, path.encode(), flags, attributes, ctypes.sizeof(attributes)
    )
    _check(result, f"mount_setattr of {path}")


# -- who it is, and what it may ask of the kernel -----------------------------------------------


def become(user: int, capabilities: list[str]) -> None:
    """The user, and no capability beyond those, nor any by executing something."""
    kept = {_CAPABILITIES[name] for name in capabilities}
    for capability in range(64):
        if capability not in kept and _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # beyond the last one
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def filter_calls(service: dict[str, list[str]], calls: set[str], *, asks_for_code: bool) -> None:
    """The list of all that is allowed comes last: the others could not be loaded behind it."""
    assert is_on(service, "NoNewPrivileges")
    families = [getattr(socket, name) for name in words(service, "RestrictAddressFamilies")]
    seccomp.deny_other_families(families)
    denials = dict(DENIALS)
    if asks_for_code:
        denials["MemoryDenyWriteExecute"] = partial(seccomp.deny_writable_code, by_error=True)
    for name, deny in denials.items():
        if is_on(service, name):
            deny()
    assert service["SystemCallArchitectures"] == ["native"]
    seccomp.allow_only(calls)


DENIALS: dict[str, Callable[[], None]] = {
    "LockPersonality": seccomp.deny_personalities,
    "MemoryDenyWriteExecute": seccomp.deny_writable_code,
    "RestrictNamespaces": seccomp.deny_namespaces,
    "RestrictRealtime": seccomp.deny_realtime,
    "RestrictSUIDSGID": seccomp.deny_set_id_bits,
}

APPLIED = frozenset(DENIALS) | frozenset(
    {
        "CapabilityBoundingSet",
        "Environment",
        "LimitCORE",
        "LimitNOFILE",
        "NoNewPrivileges",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateTmp",
        "ProtectHome",
        "ProtectHostname",
        "ProtectProc",
        "ProtectSystem",
        "RestrictAddressFamilies",
        "SystemCallArchitectures",
        "SystemCallFilter",
        "UMask",
        "User",
    }
)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
