"""The filters on system calls that systemd makes of a unit (src/shared/seccomp-util.c), made with
libseccomp for the calling thread and all that it will execute.

Each directive has a filter of its own, as there: of several the kernel takes the strictest. A call
that SystemCallFilter= does not allow ends the process here, where systemd lets it fail with EPERM:
so none goes unnoticed.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable, Sequence

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000

_NOT_EQUAL = 1
_MASKED_EQUAL = 7

_NAMESPACES = {
    "CLONE_NEWTIME": 0x80,
    "CLONE_NEWNS": 0x20000,
    "CLONE_NEWCGROUP": 0x2000000,
    "CLONE_NEWUTS": 0x4000000,
    "CLONE_NEWIPC": 0x8000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
_SHM_EXEC = 0o100000
_SET_ID_BITS = (0o4000, 0o2000)


def _fails(error: int) -> int:
    """The action that lets a call fail."""
    return 0x00050000 | error


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def _masked(argument: int, bits: int) -> _Comparison:
    """That all these bits are set in an argument."""
    return _Comparison(argument, _MASKED_EQUAL, bits, bits)


class Filter:
    """One filter; `default` is what happens to calls that no rule is about."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2")
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._filter = ctypes.c_void_p(self._library.seccomp_init(ctypes.c_uint32(default)))
        assert self._filter.value

    def add(self, action: int, call: str, *comparisons: _Comparison) -> None:
        """A rule for a call; one that this machine does not have needs none."""
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:
            return
        array = (_Comparison * len(comparisons))(*comparisons)
        result = self._library.seccomp_rule_add_array(
            self._filter, ctypes.c_uint32(action), number, len(comparisons), array
        )
        assert result == 0, (call, result)

    def load(self) -> None:
        """From now on."""
        result = self._library.seccomp_load(self._filter)
        assert result == 0, result


def allow_only(calls: Iterable[str]) -> None:
    """SystemCallFilter=, with SystemCallArchitectures=native."""
    wanted = Filter(KILL_PROCESS)
    for call in sorted(calls):
        wanted.add(ALLOW, call)
    wanted.load()


def deny_writable_code(*, by_error: bool = False) -> None:
    """MemoryDenyWriteExecute=. `by_error`: as systemd does it, for who does without."""
    action = _fails(errno.EPERM) if by_error else KILL_PROCESS
    denied = Filter(ALLOW)
    denied.add(action, "mmap", _masked(2, mmap.PROT_WRITE | mmap.PROT_EXEC))
    for call in ("mprotect", "pkey_mprotect"):
        denied.add(action, call, _masked(2, mmap.PROT_EXEC))
    denied.add(action, "shmat", _masked(2, _SHM_EXEC))
    denied.load()


def deny_other_families(numbers: Sequence[int]) -> None:
    """RestrictAddressFamilies=, a list of what is allowed."""
    denied = Filter(ALLOW)
    for family in range(64):  # more than the kernel has (AF_MAX)
        if family not in numbers:
            equal = _Comparison(0, _MASKED_EQUAL, 0xFFFFFFFF, family)
            denied.add(_fails(errno.EAFNOSUPPORT), "socket", equal)
    denied.load()


def deny_namespaces() -> None:
    """RestrictNamespaces=yes."""
    denied = Filter(ALLOW)
    denied.add(_fails(errno.ENOSYS), "clone3")  # its flags are in memory; libc then takes clone
    denied.add(_fails(errno.EPERM), "setns")
    for bit in _NAMESPACES.values():
        denied.add(_fails(errno.EPERM), "clone", _masked(0, bit))
        denied.add(_fails(errno.EPERM), "unshare", _masked(0, bit))
    denied.load()


def deny_set_id_bits() -> None:
    """RestrictSUIDSGID=yes, of the calls that change a mode."""
    denied = Filter(ALLOW)
    for call, argument in (("chmod", 1), ("fchmod", 1), ("fchmodat", 2), ("mkdir", 1)):
        for bit in _SET_ID_BITS:
            denied.add(_fails(errno.EPERM), call, _masked(argument, bit))
    denied.load()


def deny_realtime() -> None:
    """RestrictRealtime=yes: no scheduling policy but the usual one, which one rule can say."""
    denied = Filter(ALLOW)
    denied.add(_fails(errno.EPERM), "sched_setscheduler", _Comparison(1, _NOT_EQUAL, 0, 0))
    denied.load()


def deny_personalities() -> None:
    """LockPersonality=yes: only the usual one, 0."""
    denied = Filter(ALLOW)
    denied.add(_fails(errno.EPERM), "personality", _Comparison(0, _NOT_EQUAL, 0, 0))
    denied.load()
