"""nbdkit's callbacks over an engine of their own: the volumes and snapshots of a bockd pool.

    nbdkit -U - python nbd_plugin/bock.py pool=/var/lib/bockd volume=disk1 --run 'nbdinfo "$uri"'

nbdkit loads this file into a Python of its own; `_find_bockd` finds the packages for it. Every
callback is a function of this module with the name and the arguments that nbdkit-python-plugin(3)
gives it. Callbacks run in parallel: see `thread_model`.

The index must not be open across a fork. So `get_ready`, before nbdkit goes into the background,
looks whether all will be well and closes everything again; `after_fork` opens it.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import nbdkit


def _find_bockd(script: Path) -> None:
    """Let `import bockd` find what this file belongs to: the environment that it was installed
    into, or .venv in the checkout that it lies in. What PYTHONPATH has comes first."""
    import site

    home = script.resolve().parent.parent
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = home / ".venv" / "lib" / version / "site-packages"
    if home.name in ("site-packages", "dist-packages"):
        packages = home
    before = list(sys.path)
    if packages.is_dir():
        # With the .pth files there, one of which leads from .venv to the checkout.
        site.addsitedir(str(packages))
    added = [entry for entry in sys.path if entry not in before]
    # Ahead of the distribution's own packages, which may have another lmdb.
    at = next((i for i, entry in enumerate(before) if entry.endswith(".zip")), len(before))
    sys.path[:] = [*before[:at], *added, *before[at:]]
    try:
        import nbd_plugin.exports  # noqa: F401 - with all that the engine depends on
    except ImportError as error:
        sys.tracebacklimit = 0
        raise SystemExit(
            f"bock.py: {error}. nbdkit runs Python {version.removeprefix('python')} and found no "
            f"bockd for it in {packages}: run 'make setup' in the checkout, or 'pip install' bockd "
            "into an environment of that Python and use the path that 'bockd nbdkit-plugin' "
            "prints, or set PYTHONPATH"
        ) from None


_find_bockd(Path(__file__))

import bockd  # noqa: E402 - only now can it be found
from bockd.errors import NotFoundError, NotSupportedError  # noqa: E402
from bockd.model import BLOCK_SIZE, KIB  # noqa: E402
from bockd.nbd.protocol.errors import answer, is_bug  # noqa: E402
from bockd.nbd.protocol.limits import MAX_PAYLOAD_BYTES, MIN_BLOCK_BYTES  # noqa: E402
from bockd.nbd.protocol.replies import MAX_STATUS_EXTENTS  # noqa: E402
from nbd_plugin.exports import Held, Parameters, PluginExports, Selection  # noqa: E402

P = ParamSpec("P")
T = TypeVar("T")

API_VERSION = 2

MAX_AT_ONCE_BYTES = 256 * KIB
"""Reads and writes up to here are tried with the lock held; larger ones would keep the others
waiting for longer than a change of threads takes."""


class _Served:
    """What the callbacks share."""

    parameters = Parameters()
    selection: Selection
    exports: PluginExports | None = None


def _exports() -> PluginExports:
    assert _Served.exports is not None
    return _Served.exports


def _answers(callback: Callable[P, T]) -> Callable[P, T]:
    """Translate a callback's error to NBD's terms for nbdkit. Its message comes without a
    traceback, unless it is a bug of ours."""

    @functools.wraps(callback)
    def answering(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return callback(*args, **kwargs)
        except Exception as error:
            nbdkit.set_error(answer(error)[0])
            if is_bug(error):
                sys.__dict__.pop("tracebacklimit", None)
            else:
                sys.tracebacklimit = 0
                error.__cause__ = None
                error.__suppress_context__ = True
            raise

    return answering


class _Log(logging.Handler):
    """The engine's log: warnings to standard error, everything to nbdkit's debugging output."""

    def emit(self, record: logging.LogRecord) -> None:
        message = self.format(record)
        nbdkit.debug(message)
        if record.levelno >= logging.WARNING:
            print(f"nbdkit: bock.py: {message}", file=sys.stderr, flush=True)


# -- the life of the process -----------------------------------------------------------------


def dump_plugin() -> None:
    """Print the version for `nbdkit python bock.py --dump-plugin`."""
    print(f"bockd_version={bockd.__version__}", flush=True)


def thread_model() -> int:
    """Return the parallel model: requests, and clients that are still negotiating, do not wait for
    each other. With any other model one client that connects and sends nothing would stop all the
    others."""
    return nbdkit.THREAD_MODEL_PARALLEL


@_answers
def config(key: str, value: str) -> None:
    """Take one parameter."""
    _Served.parameters.add(key, value)


@_answers
def config_complete() -> None:
    """Check the parameters. All of them were given."""
    _Served.selection = _Served.parameters.complete()


@_answers
def get_ready() -> None:
    """Check that all can be opened. Later nobody would see a refusal, because nbdkit is in the
    background then."""
    logging.basicConfig(level=logging.INFO, handlers=[_Log()], format="%(message)s")
    _Served.selection.check_openable()


@_answers
def after_fork() -> None:
    """Open the pool, in the process that serves."""
    _Served.exports = PluginExports(_Served.selection)


@_answers
def cleanup() -> None:
    """Close the pool. No client is left."""
    if _Served.exports is not None:
        exports, _Served.exports = _Served.exports, None
        exports.close()


# -- exports ---------------------------------------------------------------------------------


@_answers
def list_exports(readonly: bool, is_tls: bool) -> list[tuple[str, str]]:
    """List the exports, as `nbdinfo --list` shows them."""
    del readonly, is_tls
    return _exports().list()


@_answers
def default_export(readonly: bool, is_tls: bool) -> str:
    """Return the export of a client that names none."""
    del readonly, is_tls
    return _exports().default()


@_answers
def open(readonly: bool) -> Held:
    """Open the export that a client has chosen. nbdkit refuses writes to one that is read-only."""
    del readonly
    try:
        name = nbdkit.export_name()
    except UnicodeDecodeError:
        raise NotFoundError("there is no such export: its name is not UTF-8") from None
    return _exports().open(name)


@_answers
def close(h: Held) -> None:
    """Close the export of a client that has gone."""
    _exports().release(h)


# -- what an export can do -------------------------------------------------------------------


def export_description(h: Held) -> str:
    """Return the description, which is that of the list."""
    return h.description


def get_size(h: Held) -> int:
    """Return the size in bytes."""
    return h.device.size_bytes


def block_size(_h: Held) -> tuple[int, int, int]:
    """Return the minimum, preferred and maximum block size in bytes, as the daemon advertises
    them."""
    return MIN_BLOCK_BYTES, BLOCK_SIZE, MAX_PAYLOAD_BYTES


def is_rotational(_h: Held) -> bool:
    """Return False: whatever the storage is, blocks written one after the other are not neighbours
    there."""
    return False


def can_write(h: Held) -> bool:
    """Return whether the export can be written to. A snapshot never changes."""
    return not h.device.read_only


def can_flush(_h: Held) -> bool:
    """Return True, for promise D2. A snapshot has nothing to flush."""
    return True


def can_trim(h: Held) -> bool:
    """Return whether the export can be trimmed: blocks become holes."""
    return not h.device.read_only


def can_zero(h: Held) -> bool:
    """Return whether the export can be zeroed, with or without giving the space back."""
    return not h.device.read_only


def can_fast_zero(h: Held) -> bool:
    """Return whether fast zeroing can be asked for. `zero` refuses it when it would have to
    write."""
    return not h.device.read_only


def can_fua(_h: Held) -> int:
    """Return that FUA is native: a write is followed by a flush before it is answered."""
    return nbdkit.FUA_NATIVE


def can_multi_conn(_h: Held) -> bool:
    """Return True: all connections share one engine, so a flush on one covers what was acknowledged
    on the others."""
    return True


def can_cache(_h: Held) -> int:
    """Return that caching is native: the operating system reads ahead."""
    return nbdkit.CACHE_NATIVE


def can_extents(_h: Held) -> bool:
    """Return True: the map knows the holes."""
    return True


# -- requests --------------------------------------------------------------------------------


@_answers
def pread(h: Held, buf: memoryview, offset: int, flags: int) -> None:
    """Read into `buf`."""
    del flags
    device, owner = h.device, _exports().owner
    with owner.lock:
        if len(buf) > MAX_AT_ONCE_BYTES or not device.try_read(offset, buf):
            owner.finish(device.read(offset, buf))


@_answers
def pwrite(h: Held, buf: memoryview, offset: int, flags: int) -> None:
    """Write; with FUA, durably."""
    device, owner = h.device, _exports().owner
    with owner.lock:
        if len(buf) <= MAX_AT_ONCE_BYTES and device.try_write(offset, buf):
            device.commit()
        else:
            owner.finish(device.write(offset, buf))
        if flags & nbdkit.FLAG_FUA:
            owner.finish(device.flush())


@_answers
def flush(h: Held, flags: int) -> None:
    """Make durable what was acknowledged."""
    del flags
    _exports().owner.run(h.device.flush())


@_answers
def trim(h: Held, count: int, offset: int, flags: int) -> None:
    """Give the space of whole blocks back."""
    owner = _exports().owner
    with owner.lock:
        owner.finish(h.device.trim(offset, count))
        if flags & nbdkit.FLAG_FUA:
            owner.finish(h.device.flush())


@_answers
def zero(h: Held, count: int, offset: int, flags: int) -> None:
    """Make a range read as zeros; keep it backed by disk space unless it may be trimmed."""
    allocate = not flags & nbdkit.FLAG_MAY_TRIM
    if allocate and flags & nbdkit.FLAG_FAST_ZERO:
        raise NotSupportedError("zeroing without making holes is no faster than writing")
    owner = _exports().owner
    with owner.lock:
        owner.finish(h.device.zero(offset, count, allocate=allocate))
        if flags & nbdkit.FLAG_FUA:
            owner.finish(h.device.flush())


@_answers
def extents(h: Held, count: int, offset: int, flags: int) -> list[tuple[int, int, int]]:
    """Return holes and data from `offset` on. The client asks again for what is left out."""
    limit = 1 if flags & nbdkit.FLAG_REQ_ONE else MAX_STATUS_EXTENTS
    device, owner = h.device, _exports().owner
    with owner.lock:
        found = device.try_extents(offset, count, limit)
        if found is None:
            found = owner.finish(device.extents(offset, count, limit))
    hole = nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO
    return [(e.offset_bytes, e.length_bytes, hole if e.hole else 0) for e in found]


@_answers
def cache(h: Held, count: int, offset: int, flags: int) -> None:
    """Read ahead. It is a hint."""
    del flags
    _exports().owner.run(h.device.cache(offset, count))
