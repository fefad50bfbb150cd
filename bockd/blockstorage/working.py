"""Whose work a transient status is, in a pool of several gateways.

Whoever gives a volume or snapshot a transient status is its *worker*: a gateway and its run. It
ends the status by another commit. A worker that dies leaves the status behind; one that hangs may
come back after anybody's patience is over. So:

* A gateway resolves at its start what its own earlier runs have left, and nothing else: what others
  have begun may be under way.
* What is left by a run that does not answer any more, any gateway resolves (bockd.daemon.stranded).
  It makes itself the worker by the first commit of that. A gateway that lives resolves what it has
  begun itself and has had to give up, since the cluster did not answer to the last commit, either.
* Every commit that ends a status judges again whether the author is the worker still, and whether
  it is the same attachment. One that comes back too late changes nothing.

Where one daemon has the index there are no workers, and all of this is true at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bockd.blockstorage.contract import Status, Volume
from bockd.blockstorage.records import Ledger, OwnedSnapshot, OwnedVolume
from bockd.blockstorage.rules import TRANSIENT
from bockd.model import NodeKind
from bockd.pool.index import Transaction

Key = tuple[NodeKind, int]
"""A volume or a snapshot."""

Whose = Callable[[str | None, Key], bool]
"""Whether what a worker has begun with something is to be resolved. None: there is one daemon."""


def anybody(_worker: str | None, _key: Key) -> bool:
    """Choose everything: this is the one daemon, at its start."""
    return True


def earlier_runs_of(author: str) -> Whose:
    """Choose what earlier runs of a gateway have begun; `author` is its name and present run."""
    name = gateway_of(author)

    def choose(worker: str | None, _key: Key) -> bool:
        return worker is not None and worker != author and gateway_of(worker) == name

    return choose


def is_ours(txn: Transaction, owned: OwnedVolume | OwnedSnapshot, status: Status) -> bool:
    """Return whether the author may end this status: the node is in it, and nobody has taken it
    over."""
    node = owned.volume if isinstance(owned, OwnedVolume) else owned.snapshot
    return node.status is status and owned.worker == txn.author


def gateway_of(author: str) -> str:
    """Return the name of an author's gateway."""
    return author.rpartition("/")[0]


def take_over(txn: Transaction, owned: OwnedVolume | OwnedSnapshot) -> None:
    """Make the author end what another one has begun and cannot end. Do nothing where there is one
    daemon."""
    if txn.author is not None:
        Ledger(txn).put_owned(replace(owned, worker=txn.author))


def is_same_attachment(found: Volume, attached: Volume) -> bool:
    """Return whether a volume has the attachment that it had before. An export's name is unique for
    ever."""
    return (
        found.attachment is not None
        and attached.attachment is not None
        and found.attachment.export_name == attached.attachment.export_name
    )


def begun(txn: Transaction) -> dict[Key, str | None]:
    """Return what is in a transient status, with who has begun that."""
    ledger = Ledger(txn)
    found: dict[Key, str | None] = {
        (NodeKind.VOLUME, owned.volume.id): owned.worker
        for owned in ledger.sound_volumes()
        if owned.volume.status in TRANSIENT
    }
    for owned in ledger.sound_snapshots():
        if owned.snapshot.status in TRANSIENT:
            found[NodeKind.SNAPSHOT, owned.snapshot.id] = owned.worker
    return found


def workers(txn: Transaction) -> set[str]:
    """Return who has begun what is not ended."""
    found = {*begun(txn).values(), *(filling.worker for filling in Ledger(txn).imports())}
    return {worker for worker in found if worker is not None}
