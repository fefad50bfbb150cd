"""What one nbdkit serves: one volume or snapshot of a pool, or all of them.

One that was named on the command line is opened before the first client comes and stays open until
the end. Otherwise each is opened for its first client and closed after its last one, so that the
others of the pool are left to whoever else uses it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bockd.blockstorage.holding import refuse_held
from bockd.drivers.local.registry import Registry
from bockd.errors import InvalidRequestError, NotFoundError
from bockd.model import NodeKind, SnapshotId, VolumeId, export_name
from bockd.pool.device import BlockDevice
from bockd.pool.naming import export_description, find_export
from bockd.pool.records import SnapshotRecord, VolumeRecord
from bockd.runtime.steps import Background
from nbd_plugin.neighbour import take_over
from nbd_plugin.owner import Owner

Record = VolumeRecord | SnapshotRecord


@dataclass
class Parameters:
    """The command line's `key=value`, one after the other; `complete` when all are there."""

    values: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, value: str) -> None:
        """Add a parameter. Raises InvalidRequestError for an unknown key, or one given twice."""
        if key not in ("pool", "volume", "snapshot"):
            raise InvalidRequestError(
                f"unknown parameter {key!r}: give pool=DIRECTORY, and volume=NAME or snapshot=NAME "
                "to serve nothing else"
            )
        if key in self.values:
            raise InvalidRequestError(
                f"{key}= was given twice; without volume= and snapshot=, all of the pool is served"
            )
        if not value:
            raise InvalidRequestError(f"{key}= is empty")
        # nbdkit leaves its working directory when it goes into the background.
        self.values[key] = str(Path(value).absolute()) if key == "pool" else value

    def complete(self) -> Selection:
        """Complete the parameters. Return what is to be served. Raises InvalidRequestError."""
        if "pool" not in self.values:
            raise InvalidRequestError(
                "pool=DIRECTORY is missing: the data directory of a bockd, as in "
                "pool=/var/lib/bockd volume=disk1"
            )
        if "volume" in self.values and "snapshot" in self.values:
            raise InvalidRequestError("give either volume= or snapshot=, not both")
        pool = Path(self.values["pool"])
        for kind in NodeKind:
            if (ref := self.values.get(kind)) is not None:
                return Selection(pool, kind, ref)
        return Selection(pool)


@dataclass(frozen=True, slots=True)
class Selection:
    """A pool, and what of it is to be served: all if `ref` is None."""

    pool: Path
    kind: NodeKind = NodeKind.VOLUME
    ref: str | None = None

    def record(self, registry: Registry) -> Record | None:
        """Return the record of what `ref` names, or None. Raises NotFoundError."""
        if self.ref is None:
            return None
        with registry.catalogue() as catalogue:
            if self.kind is NodeKind.VOLUME:
                return catalogue.volume(VolumeId(catalogue.find(self.kind, self.ref)))
            return catalogue.snapshot(SnapshotId(catalogue.find(self.kind, self.ref)))

    def check_openable(self) -> None:
        """Raise what `PluginExports` would, as far as it can be told without opening anything for
        good. This is done before nbdkit goes into the background, where nobody would see it.
        Everything is closed again, because LMDB must not be open across a fork."""
        registry = Registry.join(self.pool, Background().spawn)
        try:
            record = self.record(registry)
            if record is None:
                return
            if self.kind is NodeKind.SNAPSHOT:
                registry.check_openable(self.kind, record.id)
                return
            node = record.id
            with registry.catalogue() as catalogue:
                refuse_held(catalogue.txn, VolumeId(node))
            take_over(
                self.pool, VolumeId(node), lambda: registry.check_openable(NodeKind.VOLUME, node)
            )
        finally:
            registry.release()


@dataclass(eq=False)
class Held:
    """One connection's open volume or snapshot: what nbdkit calls a handle."""

    kind: NodeKind
    node: int
    device: BlockDevice

    @property
    def description(self) -> str:
        """As in the list of exports."""
        return export_description(self.kind, self.node)


class PluginExports:
    """The open pool. Its methods are for callers that do not hold the owner's lock."""

    def __init__(self, selection: Selection) -> None:
        self.owner = Owner()
        self._pool = selection.pool
        self._registry = Registry.join(selection.pool, self.owner.spawn)
        self._kind = selection.kind
        self._only: Record | None = None
        try:
            self._only = selection.record(self._registry)
            if self._only is not None:
                self._hold(self._kind, self._only.id)
        except BaseException:
            self._registry.release()
            raise

    def close(self) -> None:
        """Close everything: volumes are flushed and their journals applied. Raises what prevented
        that."""
        try:
            self.owner.wait_for_background()
            self.owner.run(self._registry.close_all())
            self.owner.wait_for_background()
        finally:
            self._registry.release()

    def list(self) -> list[tuple[str, str]]:
        """List names and descriptions."""
        if self._only is not None:
            found: list[tuple[NodeKind, Record]] = [(self._kind, self._only)]
        else:
            with self.owner.lock, self._registry.catalogue() as catalogue:
                found = [(NodeKind.VOLUME, record) for record in catalogue.shown_volumes()]
                found += [(NodeKind.SNAPSHOT, record) for record in catalogue.shown_snapshots()]
        return [
            (export_name(kind, record.name), export_description(kind, record.id))
            for kind, record in found
        ]

    def default(self) -> str:
        """Return the export of a client that names none. Empty when the whole pool is served."""
        return "" if self._only is None else export_name(self._kind, self._only.name)

    def open(self, name: str) -> Held:
        """Open what the export name leads to. Raises BockdError."""
        if self._only is not None and name == self.default():
            # A snapshot's export name may be a volume's own name, which comes first elsewhere.
            return self._hold(self._kind, self._only.id)
        with self.owner.lock, self._registry.catalogue() as catalogue:
            kind, record = find_export(catalogue, name)
        if self._only is not None and (kind, record.id) != (self._kind, self._only.id):
            raise NotFoundError(f"there is no export {name!r} here, only {self.default()!r}")
        return self._hold(kind, record.id)

    def _hold(self, kind: NodeKind, node: int) -> Held:
        if kind is NodeKind.VOLUME:
            volume = take_over(
                self._pool,
                VolumeId(node),
                lambda: self.owner.run(self._registry.use_volume(VolumeId(node))),
            )
            held = Held(kind, node, volume.volume)
            try:
                with self.owner.lock, self._registry.catalogue() as catalogue:
                    refuse_held(catalogue.txn, VolumeId(node))
            except BaseException:
                self.release(held)
                raise
            return held
        snapshot = self.owner.run(self._registry.use_snapshot(SnapshotId(node)))
        return Held(kind, node, snapshot.snapshot)

    def release(self, held: Held) -> None:
        """Release an open export. It is closed when no other connection holds it. Raises
        BockdError."""
        with self.owner.lock:
            if held.kind is NodeKind.VOLUME:
                self._registry.leave_volume(VolumeId(held.node))
                self.owner.finish(self._registry.close_idle_volume(VolumeId(held.node)))
            else:
                self._registry.leave_snapshot(SnapshotId(held.node))
                self.owner.finish(self._registry.close_idle_snapshot(SnapshotId(held.node)))
