"""The options of each connection to the cluster, in Ceph's words. They override its ceph.conf.
What `rbd config` has written down for an image or its Ceph pool overrides them in turn; an image of
which that is so is refused.

There are two kinds of connection. That of the *index* gives an operation up after some time, since
somebody waits for an answer, and the log can tell afterwards what became of it. That of a *volume*
never gives up: an operation that was given up may still be carried out, after a newer one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypedDict

from bockd.config.rbd import RbdSettings
from bockd.errors import DeviceError
from bockd.publictexts import for_operator

INDEX_TIMEOUT_SECONDS = 10
"""An operation on records takes milliseconds, or 10 s when an OSD dies without a word."""

Options = Mapping[str, str]

WHERE_KNOWN: Options = {"rbd_plugins": "", "rbd_persistent_cache_mode": "disabled"}
"""Options of each connection that not all releases of Ceph know. The cache on a local disk answers
writes that no replica has, as `rbd_cache` does (promise D1)."""


def index_options(settings: RbdSettings) -> Options:
    """Return the options of the connection on which everything but the volumes' data goes."""
    return {
        **_common(settings),
        "rados_osd_op_timeout": str(INDEX_TIMEOUT_SECONDS),
        "rados_mon_op_timeout": str(INDEX_TIMEOUT_SECONDS),
    }


def flattening_options(settings: RbdSettings) -> Options:
    """Return the options of the connection on which images are flattened, in the background."""
    return {
        **index_options(settings),
        # Objects at once. It takes longer so, and leaves the cluster to those who wait for it.
        "rbd_concurrent_management_ops": "2",
    }


def volume_options(settings: RbdSettings) -> Options:
    """Return the options of the connection of one open volume."""
    return {
        **_common(settings),
        "rados_osd_op_timeout": "0",
        "rados_mon_op_timeout": "0",
        # Ceph's cache answers writes that no replica has; here the client outlives this process,
        # and would never learn that they are lost (promise D1).
        "rbd_cache": "false",
        # Who makes a request, the event loop, waits for nothing, and another core does the work.
        "rbd_non_blocking_aio": "true",
        # librbd does not wait for neighbours of a write, to join them.
        "rbd_io_scheduler": "none",
        # Without a copy of its payload a write of a gateway that was shut out never ends (Ceph
        # 16.2.15), whatever ceph.conf says.
        "rbd_disable_zero_copy_writes": "true",
        # librbd drops trims below it, which is 64 KiB if nothing is said.
        "rbd_discard_granularity_bytes": "4096",
    }


class Override(TypedDict):
    """An option of an image as it counts there: see `rbd.Image.config_list`."""

    name: str
    value: str
    source: int
    """0: that is the connection's; 1: its Ceph pool says so; 2: the image does."""


_FROM_POOL, _FROM_IMAGE = 1, 2


def refuse_overrides(
    settings: RbdSettings, options: Options, image: str, found: Iterable[Override]
) -> None:
    """Raise DeviceError if an image or its Ceph pool says otherwise than the options of the
    connection that it is opened on: librbd then does as these say (`rbd config`)."""
    needed = {**options, **WHERE_KNOWN}
    for one in found:
        key, value = one["name"], one["value"]
        if one["source"] not in (_FROM_POOL, _FROM_IMAGE) or value == needed.get(key, value):
            continue
        remedy = (
            f"rbd config image remove {settings.pool}/{settings.namespace}/{image} {key}"
            if one["source"] == _FROM_IMAGE
            else f"rbd config pool remove {settings.pool} {key}"
        )
        raise for_operator(
            DeviceError(
                f"image {image}: Ceph has {key}={value} for it, with which bockd cannot keep its "
                f"promises: '{remedy}' removes that"
            )
        )


def _common(settings: RbdSettings) -> dict[str, str]:
    options = {
        # When an operation is older, librados asks the OSD whether it is there, and the monitor for
        # the newest map; it looks at each tick. A client that connects just after an OSD has died
        # learns of that in no other way, when the OSD's address refuses it. With Ceph's 10 s and
        # 5 s taking a volume took 15 s then, and operations of the index timed out before.
        "objecter_timeout": "1",
        # Ceph's 5 s are also too many beside a watch that lives 5 s: it is lost.
        "objecter_tick_interval": "1",
        # The one limit that connecting keeps to: connect()'s own argument does nothing.
        "client_mount_timeout": str(settings.connect_seconds),
        # One of each is enough for one volume, and there may be hundreds.
        "ms_async_op_threads": "1",
        "librados_thread_count": "1",
        # Snapshots with clones can be removed; the binding of Ceph 16 has no argument for it.
        "rbd_default_clone_format": "2",
        # Breaking a lock shuts its owner out, whatever ceph.conf says (promise D6).
        "rbd_blocklist_on_break_lock": "true",
        # For as long as the monitors say (mon_osd_blocklist_default_expire). If librbd names a time
        # they refuse it, and no lock can be broken (Ceph 16.2.15).
        "rbd_blocklist_expire_seconds": "0",
    }
    if settings.keyring_file is not None:
        options["keyring"] = str(settings.keyring_file)
    return options
