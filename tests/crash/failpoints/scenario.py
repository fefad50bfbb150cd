"""A client that does once everything that can be done to a pool, one thing at a time, until the
daemon dies or all is done.

Every request that changes what exists runs inside `change`, which counts it. So a run that died is
held against a run that did not: it must have come to what that one listed after as many changes,
or, for the one under way, after one more. To cover another operation, do it in one of the chapters
below; to be killed at a second hit, what it reaches must be reached twice, which `ROUNDS` sees to.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbd

from bockd.cli.client import ControlClient
from bockd.control import ImportInfo
from bockd.drivers.local.format.journal import SEGMENT_RECORDS
from bockd.drivers.local.volume.room import CHECKPOINT_RECORDS
from bockd.errors import UnavailableError
from bockd.identity.credentialsfile import CREDENTIALS_FILE
from bockd.model import BLOCK_SIZE, MIB, NodeKind, ServerKind
from bockd.pool.reports import ScrubStatus
from tests.drivers.local.bitflip import flip_bit

from ..forked import ForkedDaemon
from ..rest import Rest
from .content import Disk, GoneError

ROUNDS = (1, 2)
SERVER = "258315"
ATTACHMENTS = f"/servers/{SERVER}/os-volume_attachments"

GONE = (OSError, http.client.HTTPException, nbd.Error, UnavailableError, GoneError)
"""What a client sees when the daemon dies. Of a daemon that lives it is a failure of the test."""

FLUSH_EVERY = 1024
SCRUB_MIB = 65536
"""A second: without a pause."""

DEAD_LAYERS = 11
"""More than one home may have, by three merges."""


@dataclass
class World:
    """What there should be, and how far the scenario has come."""

    token: str = ""
    tenant: str = ""
    disks: dict[str, Disk] = field(default_factory=dict)
    """Of each volume of the pool, by name; also while it is being made or deleted."""
    shots: dict[str, bytes] = field(default_factory=dict)
    """Of each snapshot, likewise."""
    changes: int = 0
    """Requests that changed what exists and were answered with success."""
    under_way: str | None = None
    """The one that was not answered."""
    flipped: tuple[str, int] | None = None
    """A layer's file and the byte in it of which a bit is wrong, until it is put right."""

    def flip(self, pool: Path, at: tuple[str, int]) -> None:
        """Flip that bit, or put it right."""
        self.flipped = None if self.flipped else at
        flip_bit(pool / "layers" / at[0], at[1])


class Client:
    """The scenario's three frontends to one daemon: REST, control and NBD."""

    def __init__(self, pool: Path, daemon: ForkedDaemon, world: World) -> None:
        self.world = world
        self.rest = Rest(daemon.api_port, world.token, world.tenant)
        self.control = ControlClient(pool / "api.sock")
        self._pool = pool
        self._socket = str(pool / "nbd.sock")
        self._handles: list[Any] = []

    def close(self) -> None:
        self.rest.close()
        self.control.close()
        self._handles.clear()  # libnbd hangs up when a handle is collected

    def connect(self, export: str) -> Any:
        """A libnbd handle; `close` of this client ends it."""
        handle = nbd.NBD()
        self._handles.append(handle)
        handle.set_export_name(export)
        handle.connect_unix(self._socket)
        return handle

    def read(self, export: str, length: int) -> bytes:
        handle = self.connect(export)
        content = bytes(handle.pread(length, 0))
        handle.shutdown()
        return content

    def until_unused(self, name: str) -> None:
        """The daemon has seen the volume's clients go."""
        while self.control.show_volume(name).connections:
            pass

    def delete_twins(self) -> None:
        """Delete what was cloned of volumes: the snapshot in between waits for that."""
        for volume in self.control.list_volumes():
            if volume.name.endswith("-twin"):
                self.until_unused(volume.name)
                self.rest.delete(f"/volumes/{volume.id}")

    def until_reclaimed(self) -> None:
        """Nothing that was deleted waits any more."""
        while self.control.check().pending_reclaim:
            pass

    def listing(self) -> dict[str, object]:
        """Everything that exists, as all frontends show it, but what differs from run to run."""
        limits = self.rest.get("/limits")["limits"]["absolute"]
        return {
            "tenant's volumes": _timeless(self.rest.get("/os-volumes/detail")["volumes"]),
            "tenant's snapshots": _timeless(self.rest.get("/os-snapshots/detail")["snapshots"]),
            "attachments": _timeless(self.rest.get(ATTACHMENTS)["volumeAttachments"]),
            "used": {name: value for name, value in limits.items() if name.endswith("Used")},
            "volumes": [
                (v.id, _ID.sub("*", v.name), v.size_bytes, v.from_snapshot, v.error)
                for v in self.control.list_volumes()
            ],
            "snapshots": [
                (s.id, s.name, s.volume, s.size_bytes) for s in self.control.list_snapshots()
            ],
            "images": [(i.name, i.size_bytes, i.checksum) for i in self.control.list_images()],
            "servers": [server.name for server in self.control.list_servers()],
        }


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")
"""An image's id, which is random."""

_VARYING = frozenset({"createdAt", "imageRef", "bockd"})
"""Times, random ids, and an attachment's secret name."""


def _timeless(entries: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: v for k, v in entry.items() if k not in _VARYING} for entry in entries]


class Scenario(Client):
    """See the module's docstring. With `record`, the listing after each change is kept."""

    def __init__(
        self, pool: Path, daemon: ForkedDaemon, world: World, *, record: bool = False
    ) -> None:
        super().__init__(pool, daemon, world)
        self.listings: list[dict[str, object]] = [self.listing()] if record else []
        self._record = record

    @contextmanager
    def change(self, what: str) -> Iterator[None]:
        """While a request is under way that changes what exists."""
        self.world.under_way = what
        yield
        self.world.under_way = None
        self.world.changes += 1
        if self._record:
            self.listings.append(self.listing())

    def run(self) -> None:
        """All chapters. Raises one of GONE when the daemon dies."""
        for number in ROUNDS:
            self.token()
            self.connected(f"open-{number}")
            self.unconnected(f"closed-{number}")
            self.attached(f"attached-{number}")
            self.images(f"imported-{number}")
            self.operator(number)
            self.layers(f"layers-{number}")
            self.damage(f"damaged-{number}")
        for _ in ROUNDS:
            self.records()

    # -- what chapters are made of -----------------------------------------------------------

    def create(self, name: str, size_bytes: int) -> Disk:
        """A blank volume."""
        return self._make(name, Disk(size_bytes), {"bockd": {"size_bytes": size_bytes}})

    def clone(self, name: str, snapshot: str, size_bytes: int) -> Disk:
        """A volume from a snapshot."""
        disk = Disk(size_bytes, self.world.shots[snapshot])
        wanted = {"snapshot_id": self._shot_id(snapshot), "bockd": {"size_bytes": size_bytes}}
        return self._make(name, disk, wanted)

    def clone_volume(self, name: str, volume: str) -> None:
        """A volume from another one, as it is now."""
        content = self.world.disks[volume].frozen()
        disk = Disk(len(content), content)
        self._make(name, disk, {"source_volid": self._id(volume)})

    def _make(self, name: str, disk: Disk, wanted: dict[str, object]) -> Disk:
        self.world.disks[name] = disk
        document = {**wanted, "display_name": name, "metadata": {"of": name}}
        with self.change(f"create {name}"):
            self.rest.post("/volumes", {"volume": document})
        return disk

    def snapshot(self, volume: str, name: str) -> None:
        self.world.shots[name] = self.world.disks[volume].frozen()
        document = {"volume_id": self._id(volume), "display_name": name, "force": True}
        with self.change(f"snapshot {name}"):
            self.rest.post("/snapshots", {"snapshot": document})

    def delete(self, name: str) -> None:
        self.until_unused(name)
        number = self._id(name)
        with self.change(f"delete {name}"):
            self.rest.delete(f"/volumes/{number}")

    def delete_snapshot(self, name: str) -> None:
        number = self._shot_id(name)
        with self.change(f"delete snapshot {name}"):
            self.rest.delete(f"/snapshots/{number}")

    def extend(self, name: str, size_bytes: int) -> None:
        disk = self.world.disks[name]
        number = self._id(name)
        wanted = {"bockd": {"size_bytes": size_bytes}}
        with self.change(f"extend {name}"), disk.becoming(size_bytes, disk.frozen()):
            self.rest.act(number, "os-extend", wanted)

    def revert(self, name: str, snapshot: str, size_bytes: int) -> None:
        self.until_unused(name)
        disk = self.world.disks[name]
        number, source = self._id(name), self._shot_id(snapshot)
        with (
            self.change(f"revert {name}"),
            disk.becoming(size_bytes, self.world.shots[snapshot]),
        ):
            self.rest.act(number, "revert", {"snapshot_id": source})

    def _id(self, volume: str) -> int:
        return self.control.show_volume(volume).id

    def _shot_id(self, name: str) -> int:
        return next(shot.id for shot in self.control.list_snapshots() if shot.name == name)

    # -- chapters ----------------------------------------------------------------------------

    def token(self) -> None:
        """Issue another token and revoke it; the scenario keeps its own."""
        another = Rest(self.rest.port)
        try:
            another.authenticate(credentials(self._pool))
            another.revoke()
        finally:
            another.close()

    def connected(self, name: str) -> None:
        """Everything that is done to a volume while a client is connected."""
        disk = self.create(name, 8 * MIB)
        client = self.connect(name)
        disk.batch(client, [(n * 3 * BLOCK_SIZE, _blocks(1, n)) for n in range(64)])
        disk.write(client, 2 * MIB, _blocks(256, 100))
        disk.write(client, 12 * BLOCK_SIZE + 1234, b"inside one block")
        disk.write(client, 3 * MIB - 700, b"across two blocks" * 100)
        disk.write(client, 2 * MIB, bytes(3 * BLOCK_SIZE))  # no barrier covers what was there
        disk.write(client, 3 * MIB + 4 * BLOCK_SIZE, _blocks(2, 101), nbd.CMD_FLAG_FUA)
        client.flush()
        disk.trim(client, 2 * MIB + 8 * BLOCK_SIZE, 32 * BLOCK_SIZE)
        disk.zero(client, BLOCK_SIZE + 100, 6 * BLOCK_SIZE)
        disk.zero(client, 2 * MIB + 100, MIB // 2, nbd.CMD_FLAG_NO_HOLE)
        self.extend(name, 10 * MIB)  # a raw head, and a packed one below
        self.snapshot(name, f"{name}-first")
        disk.batch(client, [(n * 3 * BLOCK_SIZE, _blocks(1, 200 + n)) for n in range(0, 64, 2)])
        disk.write(client, 9 * BLOCK_SIZE + 50, b"into a frozen block")
        disk.trim(client, 0, 3 * BLOCK_SIZE)
        client.flush()
        self.control.space(NodeKind.VOLUME, name)  # after a checkpoint
        disk.write(client, 10 * BLOCK_SIZE, _blocks(5, 102))
        self.extend(name, 16 * MIB)
        disk.write(client, 20 * BLOCK_SIZE, _blocks(1, 103))
        self.clone_volume(f"{name}-twin", name)
        self.delete(f"{name}-twin")
        copy = self.clone(f"{name}-copy", f"{name}-first", 12 * MIB)
        writer = self.connect(f"{name}-copy")
        copy.write(writer, 30 * BLOCK_SIZE + 512, b"of the copy" * 800)
        writer.shutdown()
        client.shutdown()
        client = self.connect(name)  # which knows the new size
        disk.trim(client, 0, 16 * MIB)  # all of the block map's leaves at once
        disk.write(client, 21 * BLOCK_SIZE, _blocks(1, 105))
        self.control.space(NodeKind.VOLUME, name)
        client.shutdown()
        self.revert(name, f"{name}-first", 16 * MIB)
        client = self.connect(name)
        disk.write(client, 40 * BLOCK_SIZE, _blocks(1, 104))
        client.shutdown()
        self.delete(f"{name}-copy")
        self.delete_snapshot(f"{name}-first")
        self.delete(name)
        self.until_reclaimed()

    def unconnected(self, name: str) -> None:
        """What is done to a volume that nobody has opened."""
        self.create(name, 1 * MIB)
        self.extend(name, 2 * MIB)
        self.snapshot(name, f"{name}-first")
        self.extend(name, 3 * MIB)
        self.revert(name, f"{name}-first", 3 * MIB)
        self.delete(name)

    def attached(self, name: str) -> None:
        """What is done to a volume while it is attached, and how that ends: in order, and by
        force."""
        disk = self.create(name, 8 * MIB)
        volume = self._id(name)
        for ending in ("", "?force=true"):
            with self.change(f"attach {name}"):
                self.rest.post(ATTACHMENTS, {"volumeAttachment": {"volumeId": volume}})
            client = self.connect(name)
            disk.write(client, 0, _blocks(4, 300))
            shot = f"{name}-shot{len(ending)}"
            self.snapshot(name, shot)
            disk.write(client, BLOCK_SIZE, _blocks(2, 301))
            with self.change(f"detach {name}{ending}"):
                self.rest.delete(f"{ATTACHMENTS}/{volume}{ending}")
            client.shutdown()
            self.delete_snapshot(shot)
        self.delete(name)

    def images(self, name: str) -> None:
        """An image is imported, another one is given up, a volume is made from the first. An
        import that is not finished is gone at the next start, so it is one change."""
        content = b"%015d\n" % 500 * (MIB // 16)
        self.world.shots[f"image-{name}"] = content
        with self.change(f"import {name}"):
            filling = self._begin_import(name, MIB)
            writer = self.connect(str(filling.id))
            writer.pwrite(content, 0)
            writer.flush()
            writer.shutdown()
            self.until_unused(str(filling.id))
            image = self.control.finish_import(filling.id)
        with self.change(f"an import beside {name} that is given up"):
            given_up = self._begin_import(f"{name}-not", MIB)
            self.control.cancel_import(given_up.id)
        copy = Disk(1 << 30, content)
        self._make(f"{name}-copy", copy, {"imageRef": image.id, "size": 1})
        client = self.connect(f"{name}-copy")
        copy.write(client, 3 * BLOCK_SIZE, _blocks(2, 501))
        client.shutdown()
        self.delete(f"{name}-copy")
        with self.change(f"delete image {name}"):
            self.control.delete_image(image.id)

    def _begin_import(self, name: str, size_bytes: int) -> ImportInfo:
        checksum = hashlib.sha256(name.encode()).hexdigest()
        return self.control.begin_import(name, "raw", size_bytes, size_bytes, checksum)

    def operator(self, number: int) -> None:
        """What only the operator does, and what follows an error."""
        with self.change("add a server"):
            self.control.add_server(f"server-{number}", ServerKind.HOST, None, None)
        with self.change("remove a server"):
            self.control.remove_server(f"server-{number}")
        with self.change("adopt"):
            self.control.adopt(NodeKind.VOLUME, f"nobody's-{number}", self.world.tenant)
        self.delete(f"nobody's-{number}")
        volume = self._id(f"broken-{number}")
        with self.change("reopen"):
            self.rest.act(volume, "bockd-reopen")
        disk = self.world.disks[f"broken-{number}"]
        client = self.connect(f"broken-{number}")
        disk.write(client, 41 * BLOCK_SIZE, _blocks(1, 105))
        client.shutdown()

    def layers(self, name: str) -> None:
        """Snapshots that come and go: their layers gather, are punched, merged and unlinked."""
        disk = self.create(name, 1 * MIB)
        client = self.connect(name)
        disk.write(client, 0, _blocks(2, 400))
        for number in range(DEAD_LAYERS):
            # Two blocks stay, the first ones are overwritten and lost with the snapshot.
            disk.write(client, (4 + 2 * number) * BLOCK_SIZE, _blocks(2, 401 + number))
            self.snapshot(name, f"{name}-{number}")
        disk.write(client, 40 * BLOCK_SIZE, _blocks(2, 440))
        self.snapshot(name, f"{name}-{DEAD_LAYERS}")
        # Of the last layer nothing stays.
        disk.write(client, 40 * BLOCK_SIZE, _blocks(2, 441))
        disk.write(client, 0, _blocks(4, 450))
        client.shutdown()
        self.until_unused(name)
        for number in range(DEAD_LAYERS + 1):
            self.delete_snapshot(f"{name}-{number}")
        self.until_reclaimed()

    def damage(self, name: str) -> None:
        """A bit of what a snapshot holds flips, is found, and is put right."""
        disk = self.create(name, 1 * MIB)
        layer = max(int(path.name.partition(".")[0]) for path in (self._pool / "layers").iterdir())
        client = self.connect(name)
        disk.write(client, 0, _blocks(8, 600))
        client.shutdown()
        self.snapshot(name, f"{name}-shot")
        self.scrub()
        at = f"{layer}.0", 3 * BLOCK_SIZE + 99
        self.world.flip(self._pool, at)
        damaged = self.scrub().damaged
        assert [block.offset_bytes for block in damaged] == [3 * BLOCK_SIZE]
        reader = self.connect(f"snapshot/{name}-shot")
        try:
            reader.pread(BLOCK_SIZE, 3 * BLOCK_SIZE)
        except nbd.Error as refused:
            if refused.errnum != errno.EIO:
                raise
        else:
            raise AssertionError("wrong data was given for right")
        reader.shutdown()
        self.world.flip(self._pool, at)
        assert not self.scrub().damaged
        while any(shot.connections for shot in self.control.list_snapshots()):
            pass
        self.delete_snapshot(f"{name}-shot")
        self.delete(name)
        self.until_reclaimed()

    def scrub(self) -> ScrubStatus:
        """Everything is read and verified."""
        status = self.control.scrub(SCRUB_MIB, True)
        while status.running:
            status = self.control.scrub_status()
        return status

    def records(self) -> None:
        """So many changes that the journal asks for a checkpoint: each write of two blocks takes a
        place of its own there."""
        name = f"records-{self.world.changes}"
        disk = self.create(name, SEGMENT_RECORDS * 2 * BLOCK_SIZE)
        client = self.connect(name)
        for first in range(0, CHECKPOINT_RECORDS + FLUSH_EVERY, FLUSH_EVERY):
            writes = range(first, first + FLUSH_EVERY)
            disk.batch(client, [(n * 2 * BLOCK_SIZE, _blocks(2, n)) for n in writes])
            # What is flushed recovery need not look for in the file, which tmpfs is slow at.
            client.flush()
        client.shutdown()
        self.delete(name)
        self.until_reclaimed()


def credentials(pool: Path) -> dict[str, str]:
    """What the first start has written."""
    written: dict[str, str] = json.loads((pool / CREDENTIALS_FILE).read_text())
    return written


def _blocks(count: int, value: int) -> bytes:
    """Whole blocks that name what was written there."""
    return b"%015d\n" % value * (count * BLOCK_SIZE // 16)
