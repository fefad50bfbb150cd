"""What becomes of a damaged copy, found out in a process of its own: it may die.

A copy is checked, opened as the daemon opens it, read, asked everything a tenant asks, written to,
reclaimed, closed, and then all of it once more: damage that harms what was right is damage too.
"""

from __future__ import annotations

import logging
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import trio

from bockd.blockstorage.contract import Status, TenantId
from bockd.blockstorage.images import Images
from bockd.blockstorage.records import Ledger
from bockd.cli.checking import check_pool
from bockd.drivers.local.maintenance.reclaim import Reclaimer
from bockd.errors import BockdError, DamagedError, PoolFormatError, VolumeFailedError
from bockd.model import BLOCK_SIZE, NodeKind, VolumeId
from bockd.runtime.steps import run_inline
from tests.blockstorage.store import Store
from tests.corruption.damages import Damage
from tests.corruption.specimen import SERVER, Node, Truth, identity_of, log_in, read_node
from tests.drivers.local.named import volume_named
from tests.forked import CONTEXT, fork, status_of

PATIENCE_SECONDS = 120.0
"""A judgement takes a tenth of a second; the machine may be busy with other tests."""


@dataclass
class Verdict:
    """What was found. Each refusal is an error's sentence."""

    check: str = "not run"
    """"clean", or what it said."""
    pool: str = "opened"
    refused: dict[str, str] = field(default_factory=dict)
    """What was refused, by name, in either round."""
    right: list[str] = field(default_factory=list)
    """Nodes whose bytes were all right, in both rounds."""
    wrong: list[str] = field(default_factory=list)
    """What should never be: other bytes, other answers, tracebacks, the process's death."""


T = TypeVar("T")


def with_answers(truth: Truth, scratch: Path) -> Truth:
    """The truth, with the answers that an undamaged copy gives."""
    copy_pool(truth.root, scratch)
    store = Store(scratch)
    answers = {name: ask(store) for name, ask in questions(truth).items()}
    store.die()
    shutil.rmtree(scratch)
    return replace(truth, answers=answers)


def judge_all(
    truth: Truth, damages: Iterable[Damage], scratch: Path, *, repair: bool = False
) -> Iterator[tuple[Damage, Verdict]]:
    """Judge each, or its repair, as many at once as there are processors."""
    at_once = os.cpu_count() or 1

    def one(numbered: tuple[int, Damage]) -> tuple[Damage, Verdict]:
        number, damage = numbered
        return damage, judge(truth, damage, scratch / f"copy-{number}", repair=repair)

    with ThreadPoolExecutor(at_once) as threads:
        yield from threads.map(one, enumerate(damages))


def judge(truth: Truth, damage: Damage, scratch: Path, *, repair: bool = False) -> Verdict:
    """Damage a copy in `scratch`, and see. With `repair`, see what is there after `check --repair`
    when the index has become as it was."""
    copy_pool(truth.root, scratch)
    damage.apply(scratch)
    receiving, sending = CONTEXT.Pipe(duplex=False)
    process = fork(_judge, truth, scratch, sending, repair)
    sending.close()
    try:
        if not receiving.poll(PATIENCE_SECONDS):
            process.kill()
            return Verdict(wrong=["it hangs"])
        verdict: Verdict = receiving.recv()
    except EOFError:
        return Verdict(wrong=[f"the process died, status {status_of(process)}"])
    finally:
        status_of(process)
        process.close()
        receiving.close()
        shutil.rmtree(scratch)
    return verdict


def copy_pool(source: Path, target: Path) -> None:
    """Copy a pool, holes left out: pages of zeros take no room."""
    for directory, _, names in os.walk(source):
        place = target / Path(directory).relative_to(source)
        place.mkdir(parents=True)
        for name in names:
            _copy_sparse(Path(directory, name), place / name)


def _copy_sparse(source: Path, target: Path) -> None:
    zeros = bytes(4096)
    with source.open("rb") as old, target.open("wb") as new:
        size = os.fstat(old.fileno()).st_size
        new.truncate(size)
        at = 0
        while at < size:
            try:
                at = os.lseek(old.fileno(), at, os.SEEK_DATA)
            except OSError:
                return
            end = os.lseek(old.fileno(), at, os.SEEK_HOLE)
            while at < end:
                data = os.pread(old.fileno(), min(4096, end - at), at)
                if data != zeros[: len(data)] or target.parent.name == "layers":
                    os.pwrite(new.fileno(), data, at)
                at += len(data)


def _judge(truth: Truth, root: Path, out: Connection, repair: bool) -> None:
    logging.disable()
    verdict = Verdict()
    judge = _Judge(truth, root, verdict)
    try:
        judge.run_repair() if repair else judge.run()
    except BaseException:  # noqa: BLE001 - it is what is looked for
        verdict.wrong.append(traceback.format_exc())
    out.send(verdict)


class _Judge:
    def __init__(self, truth: Truth, root: Path, verdict: Verdict) -> None:
        self.truth = truth
        self.root = root
        self.verdict = verdict
        self.content = dict(truth.content)
        self.known = truth.answers

    def run(self) -> None:
        self._check()
        if not self._round(write=True):
            return
        self._round(write=False)
        if self.verdict.check == "clean" and self.verdict.refused:
            self.verdict.wrong.append("check found nothing wrong")

    def run_repair(self) -> None:
        self._check(repair=True)
        shutil.copyfile(self.truth.root / "index" / "data.mdb", self.root / "index" / "data.mdb")
        store = Store(self.root)
        right = [node for node in self.content if self._content_is_right(store, node)]
        self.verdict.right = [f"{kind} {number}" for kind, number in right]

    def _check(self, *, repair: bool = False) -> None:
        try:
            report = check_pool(self.root, repair=repair)
        except BockdError as error:
            self.verdict.check = self._sentence(error)
        else:
            self.verdict.check = "clean" if report.clean else "; ".join(report.problems)

    def _round(self, *, write: bool) -> bool:
        """One life of the daemon; False when it does not begin."""
        try:
            store = Store(self.root)
        except BockdError as error:
            self.verdict.pool = self._sentence(error)
            self.verdict.refused["the pool"] = self.verdict.pool
            self.verdict.right.clear()
            return False
        right = [node for node in self.content if self._content_is_right(store, node)]
        self._ask(store)
        if write:
            self._try("the password", lambda: trio.run(log_in, store))
            for node in right:
                self._write(store, node)
        self._try("reclaim", lambda: run_inline(Reclaimer(store.pool.registry).run()))
        right = [node for node in right if self._content_is_right(store, node)]
        self._try("closing", lambda: run_inline(store.pool.close_all()))
        store.pool.release()
        self.verdict.right = [f"{kind} {number}" for kind, number in right]
        return True

    def _content_is_right(self, store: Store, node: Node) -> bool:
        name = f"{node[0]} {node[1]}"
        found = self._try(name, lambda: read_node(store, node))
        if found is None:
            return False
        if found != self.content[node]:
            blocks = len(found) // BLOCK_SIZE
            differ = [
                block
                for block in range(blocks)
                if found[block * BLOCK_SIZE :][:BLOCK_SIZE]
                != self.content[node][block * BLOCK_SIZE :][:BLOCK_SIZE]
            ]
            self.verdict.wrong.append(f"{name} has other bytes in blocks {differ[:20]}")
        return True

    def _write(self, store: Store, node: Node) -> None:
        """A few blocks, held by other layers, by the head, by none; and a trim."""
        kind, number = node
        if kind is not NodeKind.VOLUME:
            return

        def change() -> None:
            opened = run_inline(store.pool.registry.use_volume(VolumeId(number))).volume
            try:
                for block in (0, 33, 299, 500):
                    data = bytes([block % 251]) * BLOCK_SIZE
                    run_inline(opened.write(block * BLOCK_SIZE, memoryview(data)))
                    self._remember(node, block, data)
                run_inline(opened.trim(100 * BLOCK_SIZE, BLOCK_SIZE))
                self._remember(node, 100, bytes(BLOCK_SIZE))
                run_inline(opened.flush())
            finally:
                store.pool.registry.leave_volume(VolumeId(number))

        self._try(f"writing to volume {number}", change)

    def _remember(self, node: Node, block: int, data: bytes) -> None:
        old = self.content[node]
        self.content[node] = old[: block * BLOCK_SIZE] + data + old[(block + 1) * BLOCK_SIZE :]

    def _ask(self, store: Store) -> None:
        """What tenants and their clients ask; the answers of an undamaged pool are known."""
        for name, ask in questions(self.truth).items():
            found = self._try(name, partial(ask, store))
            if name in self.verdict.refused or not self.known:
                continue
            if found != self.known[name]:
                self.verdict.wrong.append(f"{name}: {found!r}, not {self.known[name]!r}")

    def _try(self, name: str, call: Callable[[], T]) -> T | None:
        """The result, or None where it was refused by name. Anything else is wrong."""
        try:
            return call()
        except (DamagedError, PoolFormatError, VolumeFailedError) as error:
            self.verdict.refused[name] = self._sentence(error)
        except Exception:  # noqa: BLE001 - it is what is looked for
            self.verdict.wrong.append(f"{name}: {traceback.format_exc()}")
        return None

    def _sentence(self, error: BockdError) -> str:
        """What it says; a word is not enough, and neither is another error's representation."""
        text = str(error)
        if len(text.split()) < 4 or text.startswith("{"):
            self.verdict.wrong.append(f"{type(error).__name__} says only {text!r}")
        return text


Answer = object
Question = Callable[[Store], Answer]


def questions(truth: Truth) -> dict[str, Question]:
    """What tenants, their clients and the operator ask, by name."""
    first, second = truth.tenants
    asked: dict[str, Question] = {
        "the token": lambda store: trio.run(identity_of(store).validate_token, truth.token),
        "the export": lambda store: _exported(store, truth.export),
        "the images": lambda store: store.run(lambda s: s.list_images()),
        "the image's snapshot": lambda store: [r.snapshot for r in Images(store.context).all()],
        "the server": lambda store: store.run(lambda s: s.show_server(first, SERVER)),
        "the attachments": lambda store: store.run(lambda s: s.list_attachments(first, SERVER)),
        "the names": _names,
    }
    for tenant, which in ((first, "first"), (second, "second")):
        asked |= _questions_of(tenant, which)
    return asked


def _questions_of(tenant: TenantId, which: str) -> dict[str, Question]:
    return {
        f"the {which} tenant's volumes": lambda store: [
            # A volume that is refused has the status "error", as it should.
            replace(volume, status=Status.AVAILABLE, backing=None)
            for volume in store.run(lambda s: s.list_volumes(tenant))
        ],
        f"the {which} tenant's snapshots": lambda store: store.run(
            lambda s: s.list_snapshots(tenant)
        ),
        f"the {which} tenant's limits": lambda store: store.run(lambda s: s.limits(tenant)),
    }


def _exported(store: Store, name: str) -> int | None:
    with store.pool.index.reading() as txn:
        owned = Ledger(txn).exported(name)
    return None if owned is None else owned.volume.id


def _names(store: Store) -> dict[str, int]:
    """What an operator or a client on the Unix socket finds by name."""
    with store.pool.registry.catalogue() as catalogue:
        names = [volume.name for volume in catalogue.volumes()]
    return {name: volume_named(store.pool, name) for name in names}
