"""Two daemons on one pool in a Ceph cluster, under load, killed and hung at random.

Each of two volumes is attached, and has a client that reconnects to whichever gateway answers
(client.py). Gateways are killed and started again, hang and go on; OSDs are killed and start again;
snapshots, clones and deletions go on meanwhile, at either gateway. After each of these all that was
answered must be there, and nothing that a gateway had sent before it was shut out; snapshots must
be what they were. Each pause of a client is kept, with what it comes from.

What is done follows from the seed; how far everybody has come meanwhile does not.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

from bockd.config.rbd import RbdSettings
from bockd.identity.credentialsfile import CREDENTIALS_FILE
from tests.crash.forked import ForkedDaemon
from tests.crash.history import History, Shot
from tests.crash.storm.client import Client as Frontends
from tests.crash.storm.client import Errand
from tests.crash.storm.known import VALUES_OF_A_VOLUME, KnownVolume, There, clone_of
from tests.daemon.driver import as_toml
from tests.daemon.process import environment_without_a_cloud
from tests.drivers.rbd.cluster import Cluster
from tests.drivers.rbd.storm.client import STRIDE, UNIT_BYTES, Client, Patience, Pause
from tests.drivers.rbd.storm.mutations import Mutation, break_for_good
from tests.drivers.rbd.storm.session import Session

UNITS = 32
SIZE_BYTES = UNITS * STRIDE
SERVER = "vm1"
GATEWAYS = 2
MAX_SHOTS = 4
MAX_CLONES = 2
MORE = 60
"""Requests of each client that are answered after something was done, before the next thing is."""

STEALS = 0.25
"""Of the hangs: those by which somebody else takes a volume."""

LONG_PATIENCE = 60.0
"""Of the clients while an OSD is away: no other gateway could help them."""

COMPLAINT = re.compile(r"^(ERROR|CRITICAL|Traceback)")


@dataclass
class Counts:
    """What storms have seen."""

    kills: int = 0
    kills_in_operation: int = 0
    hangs: int = 0
    blinks: int = 0
    """Of the hangs, so short that nobody was to notice."""
    steals: int = 0
    """Of the hangs: a volume is taken from a gateway to which its client is connected still."""
    osd_kills: int = 0
    both: int = 0
    """Kills of a gateway and an OSD, or of both gateways, at once."""
    operations: int = 0
    snapshots: int = 0
    """Snapshots compared."""
    answered: int = 0
    """Requests of clients, each verified."""
    reconnected: int = 0
    pauses: list[Pause] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        for one in fields(Counts):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))

    def __str__(self) -> str:
        numbers = [one.name for one in fields(Counts) if one.name != "pauses"]
        return ", ".join(f"{name} {getattr(self, name)}" for name in numbers)

    def table(self) -> str:
        """The pauses by what they come from: beyond the clients' own patience, in seconds."""
        lines = []
        for why in sorted({one.why for one in self.pauses}):
            found = sorted(p.seconds - p.patience for p in self.pauses if p.why == why)
            median, ninth = found[len(found) // 2], found[len(found) * 9 // 10]
            lines.append(
                f"{why:20} {len(found):5}  median {median:5.2f} s  90 % {ninth:5.2f} s  "
                f"longest {found[-1]:5.2f} s"
            )
        return "\n".join(lines)


class Gateway:
    """A directory, and the daemon that serves it."""

    def __init__(self, directory: Path, settings: RbdSettings, mutation: Mutation | None) -> None:
        self.directory = directory
        self.log = directory.with_name(f"{directory.name}.log")
        self.nbd_socket = directory / "nbd.sock"
        self._config = directory.with_name(f"{directory.name}.toml")
        self._config.write_text(as_toml(replace(settings, gateway=directory.name)))
        self._prepare = None if mutation is None else partial(break_for_good, mutation)
        self._daemon: ForkedDaemon | None = None

    @property
    def daemon(self) -> ForkedDaemon:
        assert self._daemon is not None
        return self._daemon

    def start(self) -> None:
        environment = {
            **environment_without_a_cloud(),
            "BOCKD_CONFIG": str(self._config),
            "BOCKD_DATA": str(self.directory),
            "BOCKD_NBD_LISTEN": "none",
            "BOCKD_API_LISTEN": "127.0.0.1:0",
        }
        self._daemon = ForkedDaemon(environment, self.log, prepare=self._prepare)
        assert self._daemon.ready, f"{self.directory.name}: {self.log.read_text()}"

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.daemon.pid, number)

    def kill(self) -> None:
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon = None

    def stop(self) -> None:
        assert not self.daemon.stop(), "the daemon was killed by somebody else"
        self._daemon = None

    def complaints(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if COMPLAINT.search(line)]


class Storm:
    """One pool, its gateways and its clients. `mutation` breaks the daemons first."""

    def __init__(
        self, work: Path, cluster: Cluster, seed: int, *, mutation: Mutation | None = None
    ) -> None:
        self.counts = Counts()
        self._cluster = cluster
        self._random = random.Random(seed)
        self._seed = seed
        settings = cluster.namespace()
        self._gateways = [
            Gateway(work / f"gw{number}", settings, mutation) for number in range(GATEWAYS)
        ]
        self._patience = Patience()
        self._volumes: dict[str, KnownVolume] = {}
        self._clients: dict[str, Client] = {}
        self._exports: dict[str, str] = {}
        self._made = 0

    def run(self, kills: int, hangs: int, osd_kills: int) -> Counts:
        """Until all that was done. AssertionError when a promise was broken."""
        acts = [self._kill] * kills + [self._hang] * hangs + [self._kill_osd] * osd_kills
        self._random.shuffle(acts)
        try:
            self._begin()
            for act in acts:
                if self._random.random() < 0.5:
                    self._operate()
                act()
                self._settle()
            self._end()
        finally:
            for gateway in self._gateways:
                gateway.kill()
            for client in self._clients.values():
                client.abandon()
        return self.counts

    # -- beginning and end -------------------------------------------------------------------

    def _begin(self) -> None:
        first, *others = self._gateways
        first.start()
        credentials = (first.directory / CREDENTIALS_FILE).read_bytes()
        for other in others:
            other.directory.mkdir(mode=0o700)
            (other.directory / CREDENTIALS_FILE).write_bytes(credentials)
            (other.directory / CREDENTIALS_FILE).chmod(0o600)
            other.start()
        for _ in range(2):
            name, number = self._new_name()
            history = History(UNITS, UNIT_BYTES, number * VALUES_OF_A_VOLUME + 1)
            self._volumes[name] = KnownVolume(name, history, There.YES)
            frontends = self._frontends(first)
            frontends.create(name, SIZE_BYTES)
            export = self._exports[name] = attach(frontends, name)
            frontends.close()
            sockets = [gateway.nbd_socket for gateway in self._gateways]
            self._clients[name] = Client(
                name, sockets, export, history, self._patience, f"{self._seed} {name}"
            )
        for client in self._clients.values():
            client.start()
        self._settle()

    def _end(self) -> None:
        for client in self._clients.values():
            client.end()
            self.counts.answered += client.answered
            self.counts.reconnected += client.reconnected
            self.counts.pauses += client.pauses
        frontends = self._frontends(self._random.choice(self._gateways))
        report = frontends.control.check()
        assert report.clean, report.problems
        frontends.close()
        for gateway in self._gateways:
            gateway.stop()
            assert not gateway.complaints(), f"{gateway.directory.name}: {gateway.complaints()}"

    def _settle(self) -> None:
        """Everybody goes on; then all is read."""
        for client in self._clients.values():
            client.wait_for(MORE)
        for client in self._clients.values():
            client.rest()
        self._patience.why = "nothing"
        if self._random.random() < 0.3:
            self._verify_snapshots()

    def _frontends(self, gateway: Gateway) -> Frontends:
        return Frontends(gateway.directory, gateway.daemon)

    def _new_name(self) -> tuple[str, int]:
        self._made += 1
        return f"v{self._made}", self._made

    # -- what is done to them ----------------------------------------------------------------

    def _used(self) -> Gateway:
        """Choose a gateway, mostly one that a client is connected to."""
        if self._random.random() < 0.2:
            return self._random.choice(self._gateways)
        return self._gateways[self._random.choice(list(self._clients.values())).at]

    def _kill(self) -> None:
        gateway = self._used()
        under_way = self._begin_operation(gateway) if self._random.random() < 0.5 else None
        kind = self._random.random()
        self._patience.why = "gateway killed"
        if under_way is not None:
            self._wait(self._random.choice((0, 1, 5, 30)))
            self.counts.kills_in_operation += under_way[0].is_alive()
        osd = None
        if kind < 0.1 and len(self._cluster.osds) > 1:
            self._patience.why = "gateway, OSD killed"
            self._patience.seconds, osd = LONG_PATIENCE, self._random.choice(self._cluster.osds)
            self._cluster.kill(osd)
            self.counts.both += 1
        gateway.kill()
        self.counts.kills += 1
        if under_way is not None:
            errand, ended = under_way
            ended(done=errand.end(died=True))
        if kind > 0.9:
            self._patience.why = "both killed"
            for other in self._gateways:
                other.kill()
            self.counts.both += 1
            self.counts.kills += 1
            for other in self._gateways:
                other.start()
        else:
            self._wait(MORE)
            gateway.start()
        if osd is not None:
            self._restart_osd(osd)
        self._verify_listings()

    def _hang(self) -> None:
        self.counts.hangs += 1
        if self._random.random() < STEALS:
            self._steal()
            return
        gateway = self._used()
        under_way = self._begin_operation(gateway) if self._random.random() < 0.3 else None
        gateway.signal(signal.SIGSTOP)
        if self._random.random() < 0.3:
            self._patience.why = "gateway blinks"
            self.counts.blinks += 1
            time.sleep(self._random.uniform(0, 2 * self._patience.seconds))
        else:
            self._patience.why = "gateway hangs"
            self._wait(self._random.choice((1, MORE)))
        gateway.signal(signal.SIGCONT)
        self._wait(MORE)
        if under_way is not None:
            errand, ended = under_way
            ended(done=errand.end())
            self.counts.operations += 1

    def _steal(self) -> None:
        """Somebody comes to another gateway for a volume whose client has no reason to leave, while
        its gateway hangs, mostly. That one finds out when it goes on."""
        name, client = self._random.choice(list(self._clients.items()))
        at = client.at
        gateway, other = self._gateways[at], self._gateways[(at + 1) % GATEWAYS]
        self._patience.seconds, self._patience.why = LONG_PATIENCE, "volume taken"
        self.counts.steals += 1
        if hangs := self._random.random() < 0.7:
            gateway.signal(signal.SIGSTOP)
        self._read(self._exports[name], other)
        if hangs:
            gateway.signal(signal.SIGCONT)
        self._wait(MORE)
        self._patience.seconds = Patience.seconds

    def _kill_osd(self) -> None:
        osd = self._random.choice(self._cluster.osds)
        self._patience.seconds, self._patience.why = LONG_PATIENCE, "OSD killed"
        self._cluster.kill(osd)
        self.counts.osd_kills += 1
        if len(self._cluster.osds) > 1:
            self._wait(MORE)
        self._restart_osd(osd)

    def _restart_osd(self, osd: str) -> None:
        self._cluster.begin(osd)
        self._wait(MORE)
        self._cluster.wait_until_whole()
        self._patience.seconds = Patience.seconds

    def _wait(self, more: int) -> None:
        for client in self._clients.values():
            client.wait_for(more)

    # -- operations --------------------------------------------------------------------------

    def _operate(self) -> None:
        errand, ended = self._begin_operation(self._random.choice(self._gateways))
        ended(done=errand.end())
        self.counts.operations += 1

    def _begin_operation(self, gateway: Gateway) -> tuple[Errand, Callable[..., None]]:
        """Ask a gateway for something; what was asked, and what to do when it has ended."""
        attached = [self._volumes[name] for name in self._clients]
        volume = self._random.choice(attached)
        clones = [one for name, one in self._volumes.items() if name not in self._clients]
        known = [(v, shot) for v in attached for shot in v.shots if shot.content is not None]
        free = [(v, shot) for v, shot in known if not shot.deleting]
        if len(clones) >= MAX_CLONES:
            return self._delete(gateway, self._random.choice(clones))
        if len(volume.shots) >= MAX_SHOTS:
            return self._delete_shot(gateway, volume, self._random.choice(volume.shots))
        if free and self._random.random() < 0.3:
            return self._clone(gateway, *self._random.choice(free))
        return self._snapshot(gateway, volume)

    def _ask(self, gateway: Gateway, operation: Callable[[Frontends], None]) -> Errand:
        frontends = self._frontends(gateway)
        errand = Errand(frontends, operation)
        frontends.close()
        return errand

    def _snapshot(
        self, gateway: Gateway, volume: KnownVolume
    ) -> tuple[Errand, Callable[..., None]]:
        client = self._clients[volume.name]
        with client.lock:
            shot = volume.begin_shot()

        def ended(*, done: bool) -> None:
            with client.lock:
                volume.end_shot(shot, created=done)

        errand = self._ask(gateway, lambda there: there.snapshot(volume.name, shot.name))
        return errand, ended

    def _delete_shot(
        self, gateway: Gateway, volume: KnownVolume, shot: Shot
    ) -> tuple[Errand, Callable[..., None]]:
        shot.deleting = True

        def ended(*, done: bool) -> None:
            if done:
                volume.shots.remove(shot)

        return self._ask(gateway, lambda there: there.delete_snapshot(shot.name)), ended

    def _clone(
        self, gateway: Gateway, source: KnownVolume, shot: Shot
    ) -> tuple[Errand, Callable[..., None]]:
        name, number = self._new_name()
        volume = self._volumes[name] = clone_of(shot, source, name, number)

        def ended(*, done: bool) -> None:
            volume.there = There.YES if done else volume.there

        errand = self._ask(gateway, lambda there: there.create(name, SIZE_BYTES, shot.name))
        return errand, ended

    def _delete(self, gateway: Gateway, volume: KnownVolume) -> tuple[Errand, Callable[..., None]]:
        volume.there = There.GOING

        def ended(*, done: bool) -> None:
            if done:
                del self._volumes[volume.name]

        return self._ask(gateway, lambda there: there.delete(volume.name)), ended

    # -- what is verified --------------------------------------------------------------------

    def _verify_listings(self) -> None:
        """What exists is what must, and nothing that must not, at each gateway."""
        for gateway in self._gateways:
            frontends = self._frontends(gateway)
            volumes = {one.id: one.name for one in frontends.control.list_volumes()}
            shots: dict[str, set[str]] = {name: set() for name in volumes.values()}
            for shot in frontends.control.list_snapshots():
                shots[volumes[shot.volume]].add(shot.name)
            frontends.close()
            must = {name for name, one in self._volumes.items() if one.there is There.YES}
            assert must <= set(shots) <= set(self._volumes), (must, shots, set(self._volumes))
            for name, known in list(self._volumes.items()):
                if name in shots:
                    known.there = There.YES
                    known.verify_listing(shots[name])
                    for kept in known.shots:
                        kept.created, kept.deleting = True, False
                else:
                    del self._volumes[name]

    def _verify_snapshots(self) -> None:
        """All snapshots and clones, each read at any gateway."""
        for name, volume in self._volumes.items():
            for shot in volume.shots:
                content = self._read(f"snapshot/{shot.name}")
                with self._clients[name].lock if name in self._clients else nullcontext():
                    volume.history.verify_shot(shot, content)
                self.counts.snapshots += 1
            if name not in self._clients:
                volume.history.verify(self._read(name))
                self.counts.snapshots += 1

    def _read(self, export: str, gateway: Gateway | None = None) -> bytes:
        gateway = gateway or self._random.choice(self._gateways)
        until = time.monotonic() + LONG_PATIENCE
        session = Session(gateway.nbd_socket, export, lambda: time.monotonic() < until)
        try:
            content = b""
            for unit in range(UNITS):
                session.ask(unit, 0, unit * STRIDE, UNIT_BYTES)
                content += session.answer()[1]
            return content
        finally:
            session.close()


def attach(frontends: Frontends, volume: str) -> str:
    """Attach a volume, and return the name of its export."""
    number = frontends.control.show_volume(volume).id
    document = {"volumeAttachment": {"volumeId": number, "device": None}}
    answer = frontends.rest.post(f"/servers/{SERVER}/os-volume_attachments", document)
    export: str = answer["volumeAttachment"]["bockd"]["export"]
    return export


def play(
    work: Path,
    cluster: Cluster,
    seed: int,
    kills: int,
    hangs: int,
    osd_kills: int,
    mutation: Mutation | None = None,
) -> Counts:
    """One storm in a directory of its own below `work`, which is kept if it fails: then what is
    raised names the seed and the directory."""
    directory = work / f"storm-{seed}"
    directory.mkdir()
    storm = Storm(directory, cluster, seed, mutation=mutation)
    try:
        return storm.run(kills, hangs, osd_kills)
    except BaseException as error:
        error.add_note(f"seed {seed}, after {storm.counts}; the daemons' logs are in {directory}")
        raise
