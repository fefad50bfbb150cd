"""Mounting the view, serving it in the daemon's nursery, and taking it away again.

Whatever becomes of the mount (somebody unmounts it, the connection is aborted), the rest of the
daemon goes on. At the end the connection is closed first, which fails everything that still waits
for an answer, and the mount is detached: nobody is left hanging, and nothing can keep the daemon
from ending.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyfuse3
import trio

from bockd.errors import BockdError, UnavailableError
from bockd.fuse import mountpoint
from bockd.fuse.limits import LOOK_SECONDS, MAX_TASKS
from bockd.fuse.prompt import prompt_tasks
from bockd.fuse.view import View

log = logging.getLogger(__name__)


async def serve_view(
    view: View,
    path: Path,
    data_dir: Path,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount `view` at `path` and serve it until it is cancelled or unmounted. Raises BockdError
    when it cannot be mounted."""
    path = await _prepare(path, data_dir)
    source = mountpoint.source_name(data_dir)
    _mount(view, path, source)
    try:
        task_status.started()
        await _serve(path, source)
        log.info("%s was unmounted; its volumes are still served over NBD", path)
    finally:
        with trio.CancelScope(shield=True):
            await _end(view, path, source)


async def _prepare(path: Path, data_dir: Path) -> Path:
    with trio.move_on_after(LOOK_SECONDS):
        return await trio.to_thread.run_sync(
            mountpoint.prepare, path, data_dir, abandon_on_cancel=True
        )
    raise UnavailableError(f"--mount {path}: looking at it hangs; is what it lies on reachable?")


def _mount(view: View, path: Path, source: str) -> None:
    # Nobody but the daemon's user gets in (no allow_other), and the modes are enforced.
    options = {*pyfuse3.default_options, f"fsname={source}", f"subtype={mountpoint.SUBTYPE}"}
    try:
        pyfuse3.init(view, str(path), options)
    except RuntimeError as error:
        raise UnavailableError(
            f"--mount {path}: the kernel refused ({error}); libfuse has said why above"
        ) from error


async def _serve(path: Path, source: str) -> None:
    try:
        with prompt_tasks():
            await pyfuse3.main(max_tasks=MAX_TASKS)
    except* OSError as errors:
        # Somebody aborted the connection in /sys/fs/fuse. An unmount fails a read of /dev/fuse with
        # ECONNABORTED, too, if it comes in the middle of it.
        if _is_there(path, source):
            log.warning("the connection to the kernel has ended: %s", errors.exceptions[0])
    except* Exception:
        log.exception("the file view failed")


async def _end(view: View, path: Path, source: str) -> None:
    names = view.open_names()
    if names:
        log.info("unmounting %s with files open: %s", path, ", ".join(names))
    pyfuse3.close()
    await view.close_files()
    try:
        # Closing does not unmount after an abort.
        await trio.to_thread.run_sync(_detach_if_there, path, source)
    except BockdError as error:
        log.error("%s", error)  # noqa: TRY400


def _is_there(path: Path, source: str) -> bool:
    found = mountpoint.mounted_at(path)
    return found is not None and found.source == source


def _detach_if_there(path: Path, source: str) -> None:
    if _is_there(path, source):
        mountpoint.detach(path)
