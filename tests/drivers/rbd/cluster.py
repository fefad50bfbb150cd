"""A small Ceph cluster for the tests: one monitor, one OSD or some, and no manager.

With several OSDs each has a copy of everything, and all but one of them suffice. A cluster needs no
rights and no systemd, keeps everything in a directory, and listens on a loopback
address of its own, so that clusters of several test runs do not meet. What waits for a manager
(`ceph osd df`, `ceph pg stat`) hangs.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import random
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from bockd.config.rbd import RbdSettings
from bockd.model import GIB

from .clusterconf import SETTINGS

POOL = "rbd"
PROGRAMS = ("ceph-mon", "ceph-osd", "monmaptool")
MODULES = ("rados", "rbd")

READY_SECONDS = 240.0
"""A start takes some six seconds; the machine may be busy with other tests."""

STORE_BYTES = 8 * GIB
"""What the OSD may hold. Its file is sparse: a test costs what it writes."""

PLACEMENT_GROUPS = 8

GRACE_SECONDS = 6
"""After how long without a word an OSD is taken for dead (`osd_heartbeat_grace`; Ceph's default is
20 s)."""

LEASE_RATIO, LONE_LEASE_RATIO = 0.8, 600.0
"""How long an OSD may answer without a word of the others, as a multiple of the grace
(`osd_pool_default_read_lease_ratio`): Ceph's default; and an hour for one that has no others, which
then forgets to answer if it was stopped for longer (`clusterconf.py`)."""

LAGGY_SECONDS = 4.0
"""How long a placement group may be without a lease before it is helped. On a busy machine one may
miss that its lease is renewed, and does not answer any more until its OSDs change (Ceph 16.2.15;
https://github.com/ceph/ceph/pull/71663)."""

FULL_AT_ONCE = 0.001
"""Below this ratio an empty OSD is full."""

LOG_BYTES = 4000
"""Of the end of each log: what is shown when something failed."""


def bound(command: list[str | Path]) -> list[str | Path]:
    """Return a command that becomes this one, in a process that ends with ours, however ours ends.
    To be started by the main thread: it ends with the thread that started it."""
    # The kernel kills it when its parent has died. If that was before this was asked for, the shell
    # sees another parent.
    as_child = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", '[ $PPID = "$0" ] && exec "$@"']
    return [*as_child, str(os.getpid()), *command]


def begin_bound(
    command: list[str | Path], output: IO[bytes], directory: Path
) -> subprocess.Popen[bytes]:
    """Start a process that ends with this one (`bound`), and not by a terminal's Ctrl-C before."""
    return subprocess.Popen(
        bound(command),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        cwd=directory,
        env=_environment(),
        start_new_session=True,
    )


def _environment() -> dict[str, str]:
    """Return ours without a sanitizer (`make sanitize`): Ceph's programs do not start with it."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def missing() -> str | None:
    """Say what a cluster, or a client of one, lacks on this machine; None: nothing."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    lacking += [name for name in MODULES if importlib.util.find_spec(name) is None]
    if not lacking:
        return None
    return (
        f"no Ceph here ({', '.join(lacking)}): 'make setup-test' installs the packages and "
        "'.setup/ceph' shows this environment their modules"
    )


class Cluster:
    """The cluster in a directory, which runs from `start` to `stop`."""

    def __init__(self, directory: Path, osds: int = 1) -> None:
        self.directory = directory
        self.helped = 0
        """Placement groups that were without a lease."""
        self.osds = [f"osd.{number}" for number in range(osds)]
        self.conf_file = directory / "ceph.conf"
        self.fsid = str(uuid.uuid4())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._admin: Any = None

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> None:
        """Make it and start it, and wait until its pool can be written to. AssertionError, with its
        logs, when that takes too long."""
        (self.directory / "crash").mkdir(parents=True)
        address = _free_address()
        self.conf_file.write_text(
            SETTINGS.format(
                fsid=self.fsid,
                address=address,
                directory=self.directory,
                store_bytes=STORE_BYTES,
                osds=len(self.osds),
                fewest=max(1, len(self.osds) - 1),
                placement_groups=PLACEMENT_GROUPS,
                grace_seconds=GRACE_SECONDS,
                lease_ratio=LEASE_RATIO if len(self.osds) > 1 else LONE_LEASE_RATIO,
            )
        )
        (self.directory / "keyring").write_text(
            _keyring("mon.", mon="allow *")
            + _keyring("client.admin", mon="allow *", osd="allow *")
            + "".join(_keyring(one, mon="allow profile osd", osd="allow *") for one in self.osds)
        )
        monmap = self.directory / "monmap"
        self._run(
            [
                "monmaptool",
                "--create",
                "--fsid",
                self.fsid,
                "--addv",
                "a",
                _monitor(address),
                monmap,
            ]
        )
        self._run(["ceph-mon", *self._as("mon.a"), "--mkfs", "--monmap", monmap])
        self.begin("mon.a")
        with self._in_time():
            self._connect()
            for name in self.osds:
                self._make_osd(name)
                self.begin(name)
            self.command("osd pool create", pool=POOL, pool_type="replicated")
            self.wait_for(lambda: self.up() == self.osds)
            # As `rbd pool init`: the first image needs more rights than a namespace's user has.
            import rbd

            with self._admin.open_ioctx(POOL) as ioctx:
                rbd.RBD().pool_init(ioctx, force=True)

    def begin(self, name: str) -> None:
        """Start a process of it: `mon.a`, `osd.0`. Do not wait until it works."""
        assert name not in self._processes
        service = f"ceph-{name.partition('.')[0]}"
        with (self.directory / f"{name}.err").open("ab") as errors:
            # In the directory in which its service runs: Debian 13's OSD has the path of its
            # classes, without which it knows no images, from there.
            self._processes[name] = begin_bound([service, *self._as(name), "-f"], errors, Path("/"))

    def kill(self, name: str) -> None:
        """SIGKILL one of its processes, and wait until it is gone."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """End it at once: nothing of it is needed any more."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
        if self._admin is not None:
            self._admin.shutdown()
            self._admin = None

    def logs(self) -> str:
        """Return the ends of what its processes have written."""
        found = []
        for path in sorted(self.directory.glob("*.log")) + sorted(self.directory.glob("*.err")):
            text = path.read_bytes()[-LOG_BYTES:].decode(errors="replace")
            if text:
                found.append(f"--- {path.name}\n{text}")
        return "\n".join(found)

    # -- what tests do with it ---------------------------------------------------------------

    def namespace(self, name: str | None = None) -> RbdSettings:
        """Make a namespace, and a user with the least rights that suffice for all that bockd does
        in it. Its name is random unless it is given. Return the settings of a daemon there."""
        name = name or f"bockd-{secrets.token_hex(4)}"
        import rbd  # only where there is one

        with self._admin.open_ioctx(POOL) as ioctx:
            rbd.RBD().namespace_create(ioctx, name)
        caps = ["mon", "profile rbd", "osd", f"profile rbd pool={POOL} namespace={name}"]
        entity = f"client.{name}"
        made = json.loads(self.command("auth get-or-create", entity=entity, caps=caps))
        keyring = self.directory / f"{entity}.keyring"
        keyring.write_text(f"[{entity}]\nkey = {made[0]['key']}\n")
        return RbdSettings(
            conf_file=self.conf_file,
            user=name,
            keyring_file=keyring,
            pool=POOL,
            namespace=name,
            gateway="tested",
        )

    def command(self, prefix: str, **arguments: Any) -> bytes:
        """Give an order to the monitor as the administrator; its answer, in JSON. Raises
        AssertionError if it is refused."""
        order = json.dumps({"prefix": prefix, "format": "json", **arguments})
        status, out, error = self._admin.mon_command(order, b"", timeout=int(READY_SECONDS))
        assert status == 0, f"{prefix}: {os.strerror(-status)}: {error}"
        assert isinstance(out, bytes)
        return out

    @contextmanager
    def admin_ioctx(self) -> Iterator[Any]:
        """The Ceph pool, as the administrator sees it."""
        with self._admin.open_ioctx(POOL) as ioctx:
            yield ioctx

    @contextmanager
    def hanging(self, name: str = "osd.0") -> Iterator[None]:
        """Let a process of the cluster (`osd.0` or `mon.a`) hang."""
        self.suspend(name)
        try:
            yield
        finally:
            self.resume(name)

    def suspend(self, name: str) -> None:
        """Let a process of the cluster hang, until `resume`."""
        self._processes[name].send_signal(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Let a process go on that hangs."""
        self._processes[name].send_signal(signal.SIGCONT)

    @property
    def bytes(self) -> int:
        """How much one OSD may hold."""
        return STORE_BYTES

    def used(self) -> float:
        """Return how much of the first OSD is used, as a ratio."""
        order = json.dumps({"prefix": "perf dump", "format": "json"})
        status, out, error = self._admin.osd_command(0, order, b"", timeout=int(READY_SECONDS))
        assert status == 0, error
        counters = json.loads(out)["osd"]
        return float(counters["stat_bytes_used"]) / float(counters["stat_bytes"])

    def up(self) -> list[str]:
        """Return the OSDs that work, as the monitor knows."""
        dump = json.loads(self.command("osd dump"))
        return [f"osd.{one['osd']}" for one in dump["osds"] if one["up"]]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds. AssertionError: it does not come to, or a process of the
        cluster has ended, which nobody should wait for."""
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            for name, process in self._processes.items():
                assert process.poll() is None, f"{name} has ended"
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(0.1)

    def wait_until_whole(self) -> None:
        """Return when all OSDs work and have all there is. AssertionError: they do not come to, and
        how they are instead."""
        with self.renewing_leases():
            try:
                self.wait_for(lambda: self.up() == self.osds and self._is_clean())
            except AssertionError as error:
                states = {name: one["state"] for name, one in self._groups().items()}
                raise AssertionError(f"{error}: {self.up()} work; {states}") from error

    def _is_clean(self) -> bool:
        return all(one["state"] == "active+clean" for one in self._groups().values())

    @contextmanager
    def renewing_leases(self) -> Iterator[None]:
        """Meanwhile let placement groups begin anew that have no lease any more."""
        ended = threading.Event()

        def renew() -> None:
            before = set[str]()
            while not ended.wait(LAGGY_SECONDS):
                laggy = {n: one for n, one in self._groups().items() if "laggy" in one["state"]}
                if stuck := before & laggy.keys():
                    # The first OSD of each is taken for down for a moment.
                    self.command(
                        "osd down", ids=sorted({str(laggy[n]["acting"][0]) for n in stuck})
                    )
                    self.helped += len(stuck)
                before = laggy.keys() - stuck

        thread = threading.Thread(target=renew, name="leases")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _groups(self) -> dict[str, dict[str, Any]]:
        """Return what the OSDs of each placement group say of it."""
        pool = self._admin.pool_lookup(POOL)
        return {
            name: self._group(name) for name in (f"{pool}.{n:x}" for n in range(PLACEMENT_GROUPS))
        }

    def _group(self, name: str) -> dict[str, Any]:
        order = json.dumps({"prefix": "query", "pgid": name, "format": "json"})
        try:
            status, out, error = self._admin.pg_command(name, order, b"", timeout=10)
        except OSError as failed:
            return {"state": str(failed)}
        return dict(json.loads(out)) if status == 0 else {"state": error}

    @contextmanager
    def full(self, ratio: float = 0.0003) -> Iterator[None]:
        """Let the OSDs take themselves for full from this ratio on: at once, if it is not said."""
        self._set_full_ratios(ratio / 3, ratio / 2, ratio)
        if ratio < FULL_AT_ONCE:
            self.wait_for(self._is_full)
        try:
            yield
        finally:
            self._set_full_ratios(0.95, 0.9, 0.85)
            self.wait_for(lambda: not self._is_full())

    def _set_full_ratios(self, *ratios: float) -> None:
        # Each is to stay above the one before it: rising ones begin with the highest.
        names = ("nearfull", "backfillfull", "full")
        for name, ratio in zip(
            names if ratios[0] < ratios[2] else names[::-1], ratios, strict=True
        ):
            self.command(f"osd set-{name}-ratio", ratio=ratio)

    def _is_full(self) -> bool:
        dump = json.loads(self.command("osd dump"))
        return any("full" in one["state"] for one in dump["osds"])

    # -- how -----------------------------------------------------------------------------------

    def _as(self, name: str) -> list[str | Path]:
        number = name.partition(".")[2]
        return ["-i", number, "-c", self.conf_file, "--keyring", self.directory / "keyring"]

    def _make_osd(self, name: str) -> None:
        identity = str(uuid.uuid4())
        self.command("osd new", uuid=identity, id=int(name.partition(".")[2]))
        (self.directory / name).mkdir()
        self._run(["ceph-osd", *self._as(name), "--mkfs", "--osd-uuid", identity])

    def _run(self, command: list[str | Path]) -> None:
        done = subprocess.run(
            command,
            capture_output=True,
            check=False,
            timeout=READY_SECONDS,
            cwd=self.directory,
            env=_environment(),
        )
        assert done.returncode == 0, f"{command} failed: {done.stderr.decode(errors='replace')}"

    def _connect(self) -> None:
        import rados

        self._admin = rados.Rados(
            conffile=str(self.conf_file),
            name="client.admin",
            conf={
                "keyring": str(self.directory / "keyring"),
                "client_mount_timeout": str(int(READY_SECONDS)),
                # As bockd's own: it learns of an OSD that has died just before in no other way.
                "objecter_timeout": "1",
                "objecter_tick_interval": "1",
                "rados_osd_op_timeout": str(int(READY_SECONDS)),
                "rados_mon_op_timeout": str(int(READY_SECONDS)),
            },
        )
        self._admin.connect()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            raise AssertionError(f"Ceph did not start: {error}\n{self.logs()}") from error


def _monitor(address: str) -> str:
    return f"[v2:{address}:3300,v1:{address}:6789]"


def _free_address() -> str:
    """Choose a loopback address on which nobody listens at the monitor's ports."""
    chosen = random.Random()
    while True:
        address = (
            f"127.{chosen.randrange(16, 250)}.{chosen.randrange(250)}.{chosen.randrange(1, 250)}"
        )
        try:
            for port in (3300, 6789):
                with socket.socket() as one:
                    one.bind((address, port))
        except OSError:
            continue
        return address


def _keyring(entity: str, **caps: str) -> str:
    """Return an entry of a keyring with a new key."""
    key = struct.pack("<HIIH", 1, int(time.time()), 0, 16) + secrets.token_bytes(16)
    lines = [f"[{entity}]", f"key = {base64.b64encode(key).decode()}"]
    lines += [f'caps {service} = "{cap}"' for service, cap in caps.items()]
    return "\n".join(lines) + "\n"
