"""Connecting volumes as block devices of this machine: the order of the steps, and their undoing.

Connecting: attach, record, device. Disconnecting: look that nobody uses the device, flush it, take
it down, detach, forget the record. Each step of either can be the last one before a death; the
record tells the next `bock` to carry on (bockd.host.records).
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from bockd.cli.records import Attached, Volume, WayIn
from bockd.cli.storage import StorageClient
from bockd.errors import (
    BockdError,
    ConflictError,
    DeniedError,
    InvalidRequestError,
    NotFoundError,
    NotSupportedError,
    UnavailableError,
)
from bockd.host import kernelnbd, loopdevices
from bockd.host.devices import (
    bring_up,
    end_device,
    find_device,
    grow,
    is_dead,
    sector_bytes,
    take_down,
)
from bockd.host.records import Connection, Records, current_boot, new_key
from bockd.tls.trust import Trust


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user asked for."""

    server: str
    device: str | None = None
    """An NBD device; None: any."""
    loop: bool = False
    sector_bytes: int | None = None
    """The device's logical sectors; None: the usual ones, or what they were before."""


class Connector:
    """This host's connections to one daemon, on behalf of one tenant."""

    def __init__(
        self,
        client: StorageClient,
        records: Records,
        trust: Trust = Trust(),  # noqa: B008 - frozen
    ) -> None:
        self._client = client
        self._trust = trust
        self._records = records

    # -- connecting --------------------------------------------------------------------------

    def connect(self, ref: str, wanted: Wanted) -> Connection:
        """Make a volume a block device of this host. Raises ConflictError when it is one already,
        or is attached elsewhere. After any failure the volume is as it was before."""
        require_root("connect")
        volume = self._client.find_volume(ref)
        with self._records.locked():
            known = self._find_own(volume.id)
            if known is not None:
                return self._connect_again(known, wanted)
            check_attachable(volume, wanted.server)
            planned = self._plan(volume, wanted)
            way, attached_here = self._attach(volume, wanted.server)
            with self._undone_by(planned, attached_here, way):
                self._records.write(planned)
                return self._bring_up(planned, volume, way)

    def _find_own(self, volume: int) -> Connection | None:
        return next((one for one in self.own() if one.volume == volume), None)

    def own(self) -> list[Connection]:
        """List the records of this daemon and tenant."""
        return [
            one
            for one in self._records.list()
            if (one.daemon, one.tenant_id) == (self._client.address, self._client.tenant_id)
        ]

    def _connect_again(self, known: Connection, wanted: Wanted) -> Connection:
        """Complete what an earlier `bock connect` left unfinished, or what a reboot has ended."""
        device = find_device(known)
        if device is not None and not self._is_dead(known, device):
            raise ConflictError(f"volume {known.volume} ({known.name}) is {device} already")
        differs = (
            (known.file is not None) != wanted.loop
            or wanted.device not in (None, known.device)
            or wanted.sector_bytes not in (None, sector_bytes(known))
        )
        if differs:
            raise ConflictError(
                f"volume {known.volume} ({known.name}) was connected as "
                f"{known.device or 'a loop device'}, which is gone: 'bock disconnect "
                f"{known.volume}' first to connect it differently"
            )
        return self._restore_one(known)

    def _plan(self, volume: Volume, wanted: Wanted) -> Connection:
        """Return the record to write, after a check that the machine has all that is needed."""
        device, file = "", None
        if wanted.loop:
            if wanted.device is not None:
                raise InvalidRequestError("--device names an NBD device; leave it out with --loop")
            loopdevices.require()
            file = self._find_file(volume)
            if taken := loopdevices.find_device(file):
                raise ConflictError(f"{file} is behind {taken} already, which bock has not made")
        else:
            kernelnbd.require()
            device = (
                self._find_free() if wanted.device is None else kernelnbd.check_name(wanted.device)
            )
        return Connection(
            key=new_key(),
            daemon=self._client.address,
            tenant_id=self._client.tenant_id,
            volume=volume.id,
            name=volume.name,
            server=wanted.server,
            device=device,
            file=file,
            boot=current_boot(),
            pid=None,
            connected_at=time.time(),
            sector_bytes=wanted.sector_bytes or kernelnbd.SECTOR_BYTES,
        )

    def _find_file(self, volume: Volume) -> str:
        if volume.uri is None:
            raise NotSupportedError(
                "--loop needs the daemon on this machine, and its control socket "
                "(BOCKD_DATA says where); the daemon that has the volume is elsewhere"
            )
        mount = self._client.find_mount(volume)
        if mount is None:
            raise NotSupportedError(
                "--loop needs the daemon's file view: start it with 'bockd serve --mount "
                "/run/bockd-view' (docs/fuse.md)"
            )
        # The kernel, which is asked later what a device is on, knows real paths only.
        return os.path.join(os.path.realpath(mount), "volumes", str(volume.id))

    def _find_free(self) -> str:
        boot = current_boot()
        return kernelnbd.find_free([one.device for one in self._records.list() if one.boot == boot])

    def _attach(self, volume: Volume, server: str) -> tuple[WayIn, bool]:
        """Return how the volume is reached, and whether this call has attached it."""
        if volume.attachment is None:
            return self._attach_to(server, volume), True
        way = self._client.way_in(volume.attachment)
        check_is_host(server, way.kind)
        if way.connections:
            raise ConflictError(
                f"volume {volume.id} ({volume.name}) is attached to {server}, and has "
                f"{way.connections} NBD connections that bock has not made: end them, or "
                f"'bock attachment delete {volume.id}'"
            )
        return way, False

    def _attach_to(self, server: str, volume: Volume) -> WayIn:
        try:
            check_is_host(server, self._client.server_kind(server))
            return self._client.attach(server, volume.id, None)
        except NotFoundError as error:
            raise NotFoundError(
                f"attaching to the server {server!r}: {error} (--server says what this machine is "
                "called; 'bock server add' makes a server known)"
            ) from error

    @contextmanager
    def _undone_by(self, planned: Connection, attached_here: bool, way: WayIn) -> Iterator[None]:
        """If the body fails, detach the volume if it was attached here, and remove the record."""
        try:
            yield
        except BaseException as error:
            try:
                if attached_here:
                    # Nobody has it as a device: what is still connected may be cut off.
                    at = Attached(way.volume, way.server, way.device)
                    self._client.detach(at, force=True)
                self._records.remove(planned)
            except BockdError as second:
                raise type(second)(
                    f"{error}; and it could not be undone ({second}): "
                    f"'bock disconnect {planned.volume}' does when the daemon answers"
                ) from error
            raise

    def _bring_up(self, planned: Connection, volume: Volume, way: WayIn) -> Connection:
        """Set up the device, and write its name to the record."""
        uri = "" if planned.file is not None else find_uri(volume, way)
        up = bring_up(planned, uri, self._trust)
        try:
            self._records.write(up)
        except BaseException:
            take_down(up)
            raise
        return up

    # -- bringing back -----------------------------------------------------------------------

    def restore(self) -> Iterator[Connection | BockdError]:
        """Bring back what was connected. Yield each connection, or the error that says why it
        failed."""
        require_root("connect")
        with self._records.locked():
            for known in self.own():
                try:
                    yield self._restore_one(known)
                except BockdError as error:
                    yield type(error)(f"volume {known.volume} ({known.name}): {error}")

    def _restore_one(self, known: Connection) -> Connection:
        device = find_device(known)
        if device is not None:
            if not self._is_dead(known, device):
                return known
            end_device(known, lossy=True)
        return self._bring_back(known)

    def _is_dead(self, known: Connection, device: str) -> bool:
        """Whether a device has lost the daemon, as when that was restarted: the kernel keeps it,
        and fails all that is asked of it."""
        if known.file is not None:
            return is_dead(known, device)
        attached = self._find_attachment(known)
        return attached is None or self._client.way_in(attached).connections == 0

    def _bring_back(self, known: Connection) -> Connection:
        volume = self._client.show_volume(known.volume)
        check_attachable(volume, known.server)
        file = None
        if known.file is None:
            kernelnbd.require()
        else:
            loopdevices.require()
            file = self._find_file(volume)
        way = self._fresh_way(volume, known)
        planned = replace(
            known, boot=current_boot(), pid=None, file=file, device=self._again(known)
        )
        self._records.write(planned)
        try:
            return self._bring_up(planned, volume, way)
        except BaseException:
            # The device may be somebody else's later.
            self._records.write(replace(known, boot=""))
            raise

    def _fresh_way(self, volume: Volume, known: Connection) -> WayIn:
        attached = volume.attachment
        if attached is not None:
            way = self._client.way_in(attached)
            if not way.connections:
                return way
            # They are of this host's life before: cut off, so that nothing of it can still land.
            self._client.detach(attached, force=True)
        return self._attach_to(known.server, volume)

    def _again(self, known: Connection) -> str:
        """Return the same NBD device if it is free, else another one; empty for a loop device."""
        if known.file is not None:
            return ""
        try:
            return kernelnbd.check_name(known.device)
        except (ConflictError, InvalidRequestError):
            return self._find_free()

    # -- growing -----------------------------------------------------------------------------

    def refresh(self, ref: str | None = None) -> Iterator[Connection | BockdError]:
        """Give the devices of this daemon and tenant, or of one volume, the sizes that their
        volumes have now, even if they are in use. Yield each connection that has grown, or the
        error that says why it could not."""
        require_root("connect --refresh")
        with self._records.locked():
            for known in self._chosen(ref):
                try:
                    if self._refresh_one(known):
                        yield known
                except BockdError as error:
                    yield type(error)(f"volume {known.volume} ({known.name}): {error}")

    def _chosen(self, ref: str | None) -> list[Connection]:
        chosen = [one for one in self.own() if ref is None or fits(one, ref)]
        if ref is not None and not chosen:
            known = self.find(ref)
            self._check_daemon(known)
            self._check_tenant(known)
        return chosen

    def _refresh_one(self, known: Connection) -> bool:
        device = find_device(known)
        if device is None or self._is_dead(known, device):
            raise UnavailableError("it is not connected now; 'bock connect --restore' does that")
        return grow(known, device, self._client.show_volume(known.volume).size_bytes)

    # -- disconnecting -----------------------------------------------------------------------

    def disconnect(self, ref: str, *, force: bool = False) -> Connection:
        """End a device and detach its volume. Raises InUseError while the device is used, unless
        forced. With `force`, what is not written yet is lost."""
        require_root("disconnect")
        with self._records.locked():
            known = self.find(ref)
            self._check_daemon(known)
            if not force:
                # Who cannot be told of the detaching is better not left without the device.
                self._find_attachment(known)
            if find_device(known) is not None:
                end_device(known, used=force, lossy=force)
            self._detach(known, force=force)
            self._records.remove(known)
            return known

    def _detach(self, known: Connection, *, force: bool) -> None:
        try:
            attached = self._find_attachment(known)
            if attached is not None:
                self._client.detach(attached, force=force)
        except UnavailableError as error:
            raise UnavailableError(
                f"{known.device} is gone, and the volume is still attached: {error}; then "
                f"'bock disconnect {known.volume}' again"
            ) from error

    def find(self, ref: str) -> Connection:
        """Find a connection by its device, or by the volume's name or id. Raises NotFoundError when
        there is none, ConflictError when several fit."""
        found = [one for one in self._records.list() if fits(one, ref)]
        if len(found) > 1:
            devices = ", ".join(one.device or "a loop device" for one in found)
            raise ConflictError(f"{ref!r} fits several connections: name the device ({devices})")
        if not found:
            raise NotFoundError(
                f"{ref!r} is not connected here; 'bock connections' shows what is, and "
                "'bock attachment delete' detaches what was attached without bock connect"
            )
        return found[0]

    def _check_daemon(self, known: Connection) -> None:
        if known.daemon != self._client.address:
            setting = "OS_AUTH_URL" if "://" in known.daemon else "BOCKD_DATA"
            raise ConflictError(
                f"{known.device or known.name} is a volume of the daemon at {known.daemon}: set "
                f"{setting} (and credentials) for that one"
            )

    def _check_tenant(self, known: Connection) -> None:
        if known.tenant_id != self._client.tenant_id:
            raise ConflictError(
                f"volume {known.volume} ({known.name}) was connected for tenant {known.tenant_id}: "
                "use its credentials"
            )

    def _find_attachment(self, known: Connection) -> Attached | None:
        self._check_tenant(known)
        try:
            attached = self._client.show_volume(known.volume).attachment
        except NotFoundError:
            return None  # detached and deleted by others
        return attached if attached is not None and attached.server == known.server else None


def require_root(doing: str) -> None:
    """Raise DeniedError unless the user is root."""
    if os.geteuid() != 0:
        raise DeniedError(f"block devices need root: sudo bock {doing} ... (see sudo's option -E)")


def check_attachable(volume: Volume, server: str) -> None:
    """Raise ConflictError when a volume is attached to another server."""
    if volume.attachment is not None and volume.attachment.server != server:
        raise ConflictError(
            f"volume {volume.id} ({volume.name}) is attached to {volume.attachment.server}: "
            "'bock disconnect' it there, or, if that host is gone, "
            f"'bock attachment delete {volume.id} --force'"
        )


def check_is_host(server: str, kind: str | None) -> None:
    """Raise ConflictError for a virtual machine: attaching a volume to it plugs in a disk."""
    if kind == "vm":
        raise ConflictError(
            f"server {server} is a virtual machine: attaching plugs a disk into it. Give this host "
            "another name with --server"
        )


def find_uri(volume: Volume, way: WayIn) -> str:
    """Return the URI of the Unix socket if the daemon is on this machine, else the one over TCP.
    Raises UnavailableError when there is none."""
    uri = way.unix_uri if volume.uri is not None and way.unix_uri else way.uri
    if uri is None:
        raise UnavailableError(
            "the daemon is on another machine, and serves NBD on its Unix socket only: let it "
            "listen with BOCKD_NBD_LISTEN (docs/attachments.md)"
        )
    return uri


def fits(known: Connection, ref: str) -> bool:
    """Return whether a user may mean this connection by `ref`."""
    if not ref:
        raise InvalidRequestError("an empty name refers to nothing")
    device = find_device(known) or known.device
    return ref in (str(known.volume), known.name) or (
        bool(device) and ref in (device, device.removeprefix("/dev/"))
    )
