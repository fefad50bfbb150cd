"""A small pool with one of everything, and what is true of it.

It is left in two ways: *closed* like a daemon that was stopped, and *killed* with volumes open,
whose journals hold what the index does not: scattered and single redirects, holes, a sealed
segment, a barrier, and records that no barrier covers (which count: a process died, not the
machine).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import trio

from bockd.blockstorage.contract import NewImage, NewVolume, Quota, TenantId, Volume
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import Ledger
from bockd.drivers.local.format import queue
from bockd.drivers.local.format.catalogue import Catalogue
from bockd.drivers.local.maintenance.reclaim import _burial
from bockd.identity.contract import PasswordCredentials
from bockd.identity.credentialsfile import CREDENTIALS_FILE, establish
from bockd.identity.local import LocalIdentity
from bockd.model import BLOCK_SIZE, KIB, MIB, NodeKind, Server, ServerKind, SnapshotId, VolumeId
from bockd.runtime.steprunner import StepRunner
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store
from tests.drivers.local.packing import pack_layer

PASSWORD = "correct horse battery staple"
USER = "ada"
SERVER = "db1"

Node = tuple[NodeKind, int]


@dataclass(frozen=True)
class Truth:
    """What an undamaged copy shows."""

    root: Path
    content: Mapping[Node, bytes]
    tenants: tuple[TenantId, ...]
    token: str
    """Valid, of the first tenant."""
    export: str
    """The secret name of an attachment."""
    dirty: frozenset[VolumeId]
    """Volumes that were not closed."""
    answers: Mapping[str, object] = field(default_factory=dict)
    """To what tenants and clients ask (tests.corruption.judge)."""


def make_specimen(root: Path, *, killed: bool) -> Truth:
    """Fill `root`."""
    store = Store(root)
    maker = _Maker(store)
    maker.fill()
    dirty = maker.leave_open() if killed else frozenset()
    content = {node: maker.read(node) for node in maker.nodes()}
    if killed:
        store.die()
    else:
        run_inline(store.pool.close_all())
        store.pool.release()
    return Truth(root, content, maker.tenants, maker.token, maker.export, dirty)


class _Maker:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.random = Random(1)
        own = Quota(volumes=20, gigabytes=100, snapshots=20)
        self.tenants = (store.tenant("first", own), store.tenant("second"))
        self.token = ""
        self.export = ""
        self.volumes: dict[str, Volume] = {}

    def fill(self) -> None:
        """Everything that a closed pool can hold."""
        store, (first, second) = self.store, self.tenants
        store.pool.registry.pack = lambda: False  # layers are packed by hand (`_pack`)
        establish(store.pool.index, store.root)
        assert (store.root / CREDENTIALS_FILE).exists()
        self._accounts()
        plain = self._volume("plain", first, 5 * MIB)
        self._volume("other", second, 3 * MIB)
        deep = self._volume("deep", first, 4 * MIB)
        older = store.snapshot(first, deep)
        self._scribble(deep)
        newer = store.snapshot(first, deep)
        self._scribble(deep)
        clone = self._clone("clone", first, older.id)
        self._scribble(clone)
        # A dead map that two maps fall through to, and one that is half reclaimed.
        store.run(lambda s: s.delete_snapshot(first, older.id))
        self._folded(second)
        self._image()
        server = Server(SERVER, ServerKind.PLAIN, added_at=1.0)
        store.pool.index.update(lambda txn: Ledger(txn).put_server(server))
        self._attach(plain)
        assert newer.id
        self._pack()

    def leave_open(self) -> frozenset[VolumeId]:
        """Two volumes with journals that were not applied."""
        dirty = [self.volumes["deep"].id, self.volumes["other"].id]
        for volume in dirty:
            opened = run_inline(self.store.pool.registry.use_volume(volume)).volume
            self._write(volume, [0, 1, 5, 9, 300, 301, 302])
            run_inline(opened.trim(3 * BLOCK_SIZE, 2 * BLOCK_SIZE))
            run_inline(opened.flush())
            # The seal of a checkpoint that got no further; then a flush, and more.
            durability = opened.durability
            run_inline(durability._seal())
            self._write(volume, [7, 12, 400])
            run_inline(opened.flush())
            self._write(volume, self.random.sample(range(700), 40))
            run_inline(opened.flush())
            run_inline(opened.trim(20 * BLOCK_SIZE, 7 * BLOCK_SIZE))
            self._write(volume, [11])
            self._write(volume, self.random.sample(range(700), 12))
        for node in self.nodes():
            self.read(node)  # and so all are open
        return frozenset(self.store.pool.registry.volumes)

    def nodes(self) -> list[Node]:
        with self.store.pool.registry.catalogue() as catalogue:
            return [
                *((NodeKind.VOLUME, v.id) for v in catalogue.volumes()),
                *((NodeKind.SNAPSHOT, s.id) for s in catalogue.snapshots()),
            ]

    def read(self, node: Node) -> bytes:
        return read_node(self.store, node)

    def _volume(self, name: str, tenant: TenantId, size: int) -> Volume:
        # More than fits into a page of the index.
        notes = {f"note{n}": "x" * 250 for n in range(20)} if name == "plain" else {}
        new = NewVolume(None, name, size_bytes=size, metadata=notes)
        self.volumes[name] = self.store.run(lambda s: s.create_volume(tenant, new))
        self._scribble(self.volumes[name])
        return self.volumes[name]

    def _clone(self, name: str, tenant: TenantId, snapshot: SnapshotId) -> Volume:
        new = NewVolume(None, name, snapshot_id=snapshot)
        self.volumes[name] = self.store.run(lambda s: s.create_volume(tenant, new))
        return self.volumes[name]

    def _scribble(self, volume: Volume) -> None:
        """Runs and single blocks all over, and holes."""
        opened = run_inline(self.store.pool.registry.use_volume(volume.id)).volume
        blocks = opened.size_bytes // BLOCK_SIZE
        self._write(volume.id, [*range(40, 90)])
        self._write(volume.id, self.random.sample(range(blocks), blocks // 3))
        run_inline(opened.trim(60 * BLOCK_SIZE, 9 * BLOCK_SIZE))
        self.store.pool.registry.leave_volume(volume.id)
        run_inline(self.store.pool.registry.close_idle_volume(volume.id))

    def _write(self, volume: VolumeId, blocks: list[int]) -> None:
        device = self.store.pool.registry.volumes[volume].volume
        for block in blocks:
            if (block + 1) * BLOCK_SIZE <= device.size_bytes:
                data = self.random.randbytes(BLOCK_SIZE)
                if not device.try_write(block * BLOCK_SIZE, memoryview(data)):
                    run_inline(device.write(block * BLOCK_SIZE, memoryview(data)))
        device.commit()

    def _folded(self, tenant: TenantId) -> None:
        """A snapshot that is deleted and folded, of which blocks wait to be punched."""
        volume = self._volume("folded", tenant, 3 * MIB + 64 * KIB)
        snapshot = self.store.snapshot(tenant, volume)
        self._scribble(volume)
        gone = self._clone("gone", tenant, snapshot.id)
        with self.store.pool.registry.catalogue() as catalogue:
            maps = [catalogue.volume(gone.id).map, catalogue.snapshot(snapshot.id).map]
        self.store.run(lambda s: s.delete_volume(tenant, gone.id))
        self.store.run(lambda s: s.delete_snapshot(tenant, snapshot.id))
        for map_id in maps:
            self.store.pool.index.update(_burial(map_id))

    def _pack(self) -> None:
        """Pack what is frozen, but for layers of which blocks wait to be punched."""
        with self.store.pool.index.reading() as txn:
            catalogue = Catalogue(txn)
            raw = {volume.head for volume in catalogue.volumes()} | queue.punched_layers(txn)
            layers = [layer.id for layer in catalogue.layers() if layer.id not in raw]
        assert len(layers) > 2
        for layer in layers:
            pack_layer(self.store.pool.registry.store, layer, self.random)

    def _image(self) -> None:
        images = Images(self.store.context)
        begun = run_inline(images.begin(NewImage("debian", "raw", 2 * MIB, 2 * MIB, "a" * 64)))
        opened = run_inline(self.store.pool.registry.use_volume(begun.volume))
        self._write(begun.volume, [1, 2, 100])
        assert opened.users
        self.store.pool.registry.leave_volume(begun.volume)
        run_inline(images.finish(begun.volume))

    def _accounts(self) -> None:
        self.store.accounts.create_user(USER, PASSWORD, self.tenants[:1])
        self.store.accounts.create_access_key(USER)
        self.token = trio.run(partial(log_in, self.store))

    def _attach(self, volume: Volume) -> None:
        tenant = self.tenants[0]
        made = self.store.run(lambda s: s.attach(tenant, SERVER, volume.id, None))
        self.export = made.export_name


async def log_in(store: Store) -> str:
    """A token of the user, by password."""
    identity = identity_of(store)
    return (await identity.issue_token(PasswordCredentials(USER, PASSWORD), None)).token


def identity_of(store: Store) -> LocalIdentity:
    return LocalIdentity(store.pool.index, StepRunner(), lambda: 1000.0, b"k" * 32)


def read_node(store: Store, node: Node) -> bytes:
    """All of a volume or snapshot, through the engine."""
    kind, number = node
    if kind is NodeKind.VOLUME:
        opened = run_inline(store.pool.registry.use_volume(VolumeId(number))).volume
        try:
            data = bytearray(opened.size_bytes)
            run_inline(opened.read(0, memoryview(data)))
        finally:
            store.pool.registry.leave_volume(VolumeId(number))
        return bytes(data)
    snapshot = run_inline(store.pool.registry.use_snapshot(SnapshotId(number))).snapshot
    try:
        data = bytearray(snapshot.size_bytes)
        run_inline(snapshot.read(0, memoryview(data)))
    finally:
        store.pool.registry.leave_snapshot(SnapshotId(number))
    return bytes(data)
