"""Two daemons, of pools of any kind, and a volume that moves from one to the other."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bockd.cli.elsewhere import Elsewhere
from bockd.cli.migration import Migration
from bockd.cli.records import Volume
from bockd.model import MIB
from tests.daemon.process import Bockd

SIZE = 9 * MIB
DATA = {0: 1 * MIB, 3 * MIB: 2 * MIB + 4096, SIZE - 8192: 4096}
"""Offset and length of what is no hole."""


@dataclass
class Two:
    """A daemon, another one, and how to move a volume from the first to the second."""

    here: Bockd
    there: Bockd
    place: str

    def migrate(
        self,
        name: str,
        *,
        live: bool = False,
        verify: bool = True,
        tell: Callable[[str], object] = lambda _text: None,
    ) -> Volume:
        with self.move(name, tell) as move:
            return move.run(live=live, verify=verify)

    def cancel(self, name: str) -> None:
        with self.move(name) as move:
            move.cancel()

    @contextmanager
    def move(
        self, name: str, tell: Callable[[str], object] = lambda _text: None
    ) -> Iterator[Migration]:
        there = Elsewhere(self.place)
        with self.here.storage() as here, there.client:
            yield Migration(here, there, name, lambda _title, _bytes: nullcontext(), tell)

    def fill(self, name: str) -> bytes:
        """Make a volume here with data and holes; returns what it holds."""
        with self.here.storage() as storage:
            storage.create_volume(name, SIZE, description="what for", metadata={"a": "b"})
        content = bytearray(SIZE)
        chosen = random.Random(name)
        with self.here.connected(name) as client:
            for offset, length in DATA.items():
                content[offset : offset + length] = chosen.randbytes(length)
                client.pwrite(bytes(content[offset : offset + length]), offset)
        self.here.wait_until_unused(name)
        return bytes(content)

    def assert_moved(self, name: str, content: bytes) -> None:
        """The volume is there, complete and like others; here it is held, and nothing else left."""
        target, source = show(self.there, name), show(self.here, name)
        assert (target.status, target.attachment) == ("available", None)
        assert (target.description, target.metadata) == ("what for", {"a": "b"})
        assert target.size_bytes == len(content)
        assert source.status == "maintenance"
        assert (source.hold or "").startswith(f"migrated to volume {target.id} at ")
        assert read(self.there, name) == content
        assert snapshots(self.here) == []

    def forget(self, name: str) -> None:
        """Remove the volume, wherever it is."""
        for one in (self.here, self.there):
            with one.storage() as storage:
                for found in storage.list_volumes(name):
                    one.wait_until_unused(name)
                    storage.delete_volume(found.id)


def show(daemon: Bockd, name: str) -> Volume:
    with daemon.storage() as storage:
        return storage.find_volume(name)


def volumes(daemon: Bockd) -> list[Volume]:
    with daemon.storage() as storage:
        return storage.list_volumes()


def snapshots(daemon: Bockd) -> list[str]:
    with daemon.storage() as storage:
        return [one.name for one in storage.list_snapshots()]


def read(daemon: Bockd, export: str) -> bytes:
    with daemon.connected(export) as client:
        return bytes(client.pread(client.get_size(), 0))


def killed(step: Callable[[], object], wanted: Any, name: str, number: int, when: str) -> bool:
    """Run `step` in a process that kills itself before or after the `number`th call of a method.
    Return whether it came to that; otherwise it has succeeded."""
    child = os.fork()
    if child == 0:
        calls = 0
        call = getattr(wanted, name)

        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if (calls, when) == (number, "before"):
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments, **more)
            if (calls, when) == (number, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        try:
            setattr(wanted, name, counted)
            step()
        except BaseException as error:  # noqa: BLE001 - of another process
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status != 0
