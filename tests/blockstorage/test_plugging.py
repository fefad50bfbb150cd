"""The seam to virtual machines: what is called when, and what is left when a call fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from bockd import publictexts
from bockd.blockstorage.attachments import Attachments
from bockd.blockstorage.contract import Attachment, Status, TenantId, Volume
from bockd.blockstorage.interrupted import detaching, finish_detaching
from bockd.blockstorage.records import Ledger
from bockd.blockstorage.running import NoPublisher
from bockd.blockstorage.servers import Servers
from bockd.errors import (
    BockdError,
    ClusterUnavailableError,
    DamagedError,
    DeviceError,
    InvalidStateError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
)
from bockd.model import GIB, Server, ServerKind
from bockd.publictexts import (
    CLUSTER_REFUSES,
    CLUSTER_SILENT,
    OWN_TROUBLE,
    SERVER_ERROR,
    for_operator,
)
from bockd.runtime.steps import Blocking, Steps, run_inline
from tests.blockstorage.store import Store, running


class Journal(NoPublisher):
    """Exports and devices that write down what is asked of them, and fail when told to."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.error: BockdError | None = None
        """What is raised instead of an UnavailableError that says who does not answer."""
        self.store: Store

    async def publish(self, attachment: Attachment) -> None:
        await self._do("publish", attachment)

    async def withdraw(self, attachment: Attachment, *, force: bool) -> str | None:
        await self._do("cut" if force else "withdraw", attachment)
        return "syncing failed" if "flush" in self.failing else None

    async def plug(
        self, server: Server, attachment: Attachment, size_bytes: int
    ) -> Mapping[str, str]:
        assert size_bytes == GIB
        assert server.kind is attachment.server_kind
        await self._do("plug", attachment)
        return {"serial": "bock-1"}

    async def resize(self, server: Server, attachment: Attachment, size_bytes: int) -> None:
        assert server.kind is attachment.server_kind
        await self._do(f"resize to {size_bytes // GIB} GiB", attachment)

    async def unplug(self, server: Server, attachment: Attachment, *, force: bool) -> None:
        assert server.name == attachment.server_id
        await self._do("pull" if force else "unplug", attachment)

    async def _do(self, call: str, attachment: Attachment) -> None:
        with self.store.pool.index.reading() as txn:
            found = Ledger(txn).exported(attachment.export_name)
        assert found is not None
        self.calls.append(f"{call} while {found.volume.status}")
        if call in self.failing:
            raise self.error or UnavailableError(f"{call}: nobody answers")


@pytest.fixture
def journal() -> Journal:
    return Journal()


@pytest.fixture
def store(tmp_path: Path, journal: Journal) -> Iterator[Store]:
    with running(tmp_path, journal, devices=journal) as store:
        journal.store = store
        run_inline(Servers(store.context).add(Server("vm1", ServerKind.VM, "/run/vm1.qmp")))
        yield store


def attach(store: Store, tenant: TenantId, volume: Volume) -> Attachment:
    return store.run(lambda s: s.attach(tenant, "vm1", volume.id, None))


def detach(store: Store, tenant: TenantId, volume: Volume, *, force: bool = False) -> None:
    store.run(lambda s: s.detach(tenant, "vm1", volume.id, force=force))


def test_the_export_is_there_before_the_device_and_longer(
    store: Store, tenant: TenantId, journal: Journal
) -> None:
    volume = store.volume(tenant)
    made = attach(store, tenant, volume)
    assert made.server_kind is ServerKind.VM
    assert made.device_info == {"serial": "bock-1"}
    assert store.look(tenant, volume).attachment == made
    assert store.run(lambda s: s.show_attachment(tenant, "vm1", volume.id)) == made
    detach(store, tenant, volume)
    assert journal.calls == [
        "publish while attaching",
        "plug while attaching",
        "unplug while detaching",
        "withdraw while detaching",
    ]
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment, seen.last_error) == (Status.AVAILABLE, None, None)


def test_a_device_that_cannot_be_plugged_in(
    store: Store, tenant: TenantId, journal: Journal
) -> None:
    volume = store.volume(tenant)
    journal.failing = {"plug"}
    with pytest.raises(UnavailableError):
        attach(store, tenant, volume)
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.AVAILABLE, None)
    assert seen.last_error == "attaching to server vm1 failed: plug: nobody answers"
    # No new connection comes while the old ones are cut.
    assert journal.calls[-1] == "cut while detaching"
    journal.failing = set()
    attach(store, tenant, volume)
    assert store.look(tenant, volume).last_error is None


SECRET = "image pool7/space8/img at 10.1.2.3; /var/lib/bockd/replica"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ClusterUnavailableError(SECRET), CLUSTER_SILENT),
        (for_operator(DeviceError(SECRET)), CLUSTER_REFUSES),
        (for_operator(NotFoundError(SECRET)), CLUSTER_REFUSES),
        (for_operator(NoSpaceError(SECRET)), OWN_TROUBLE[NoSpaceError]),
        (DeviceError(SECRET), SERVER_ERROR),
        (DamagedError(SECRET), SERVER_ERROR),
        (NoSpaceError(SECRET), OWN_TROUBLE[NoSpaceError]),
    ],
)
@pytest.mark.parametrize("step", ["publish", "withdraw", "pull", "resize to 2 GiB"])
def test_the_reason_that_a_volume_keeps_is_one_that_its_tenant_may_read(
    store: Store,
    tenant: TenantId,
    journal: Journal,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    error: BockdError,
    told: str,
) -> None:
    monkeypatch.setattr(publictexts.discretion, "_logged_at", {})
    volume = store.volume(tenant)
    journal.failing, journal.error = {step}, error
    with suppress(BockdError):
        attach(store, tenant, volume)
        if step == "resize to 2 GiB":
            store.run(lambda s: s.extend_volume(tenant, volume.id, 2 * GIB))
        else:
            detach(store, tenant, volume, force=step == "pull")
    kept = store.look(tenant, volume).last_error or ""
    assert kept.endswith(told)
    assert SECRET not in kept
    assert SECRET in caplog.text


def test_a_device_grows_with_its_volume(store: Store, tenant: TenantId, journal: Journal) -> None:
    """The volume has grown whatever the server says; nobody is asked about one that is free."""
    volume = store.volume(tenant)
    store.run(lambda s: s.extend_volume(tenant, volume.id, 2 * GIB))
    assert journal.calls == []
    volume = store.volume(tenant)
    attach(store, tenant, volume)
    journal.failing = {"resize to 2 GiB"}
    for size, trouble in (
        (2, "the disk in server vm1 was not enlarged at once: resize to 2 GiB: nobody answers"),
        (3, None),
    ):
        store.run(lambda s, size=size: s.extend_volume(tenant, volume.id, size * GIB))  # type: ignore[misc]
        seen = store.look(tenant, volume)
        assert (seen.size_gib, seen.status, seen.last_error) == (size, Status.IN_USE, trouble)
        assert journal.calls[-1] == f"resize to {size} GiB while in-use"


def test_a_device_whose_record_cannot_be_kept_is_pulled_out(
    store: Store, tenant: TenantId, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = store.volume(tenant)
    real = Ledger.put_volume

    def full(ledger: Ledger, owner: TenantId, changed: Volume) -> None:
        if changed.status is Status.IN_USE:
            raise NoSpaceError("the index is full")
        real(ledger, owner, changed)

    monkeypatch.setattr(Ledger, "put_volume", full)
    with pytest.raises(NoSpaceError):
        attach(store, tenant, volume)
    assert journal.calls[-2:] == ["cut while detaching", "pull while detaching"]
    assert store.look(tenant, volume).status is Status.AVAILABLE


def test_a_device_that_is_not_given_up(store: Store, tenant: TenantId, journal: Journal) -> None:
    volume = store.volume(tenant)
    made = attach(store, tenant, volume)
    journal.failing = {"unplug"}
    with pytest.raises(UnavailableError):
        detach(store, tenant, volume)
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.IN_USE, made)
    assert seen.last_error == "detaching from server vm1 failed: unplug: nobody answers"
    assert "withdraw while detaching" not in journal.calls
    journal.failing |= {"pull"}
    detach(store, tenant, volume, force=True)
    assert journal.calls[-2:] == ["cut while detaching", "pull while detaching"]
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.AVAILABLE, None)
    assert seen.last_error is not None
    assert "may still be in server vm1" in seen.last_error


@pytest.mark.parametrize("force", [False, True])
def test_a_detach_whose_flush_fails_leaves_the_volume_in_error(
    store: Store, tenant: TenantId, journal: Journal, force: bool
) -> None:
    volume = store.volume(tenant)
    attach(store, tenant, volume)
    journal.failing = {"flush"}
    detach(store, tenant, volume, force=force)
    for _ in range(2):
        seen = store.look(tenant, volume)
        assert (seen.status, seen.attachment) == (Status.ERROR, None)
        assert seen.backing is not None
        assert "syncing failed" in (seen.backing.error or "")
        with pytest.raises(InvalidStateError):
            attach(store, tenant, volume)
        store.restart()
    run_inline(store.pool.reopen_volume(volume.id))
    assert store.look(tenant, volume).status is Status.AVAILABLE


def test_a_plain_servers_volume_is_not_unplugged_when_it_becomes_a_machine(
    store: Store, tenant: TenantId, journal: Journal
) -> None:
    volume = store.volume(tenant)
    made = store.run(lambda s: s.attach(tenant, "vm2", volume.id, None))
    assert made.server_kind is ServerKind.PLAIN
    run_inline(Servers(store.context).add(Server("vm2", ServerKind.VM, "/run/vm2.qmp")))

    async def kind_of(server: Server, attachment: Attachment, *, force: bool) -> None:
        assert server.kind is ServerKind.PLAIN

    journal.unplug = kind_of  # type: ignore[method-assign]
    store.run(lambda s: s.detach(tenant, "vm2", volume.id))


@pytest.mark.parametrize("status", [Status.ATTACHING, Status.DETACHING])
@pytest.mark.parametrize("answers", [True, False])
def test_what_a_crash_left_in_a_machine_is_pulled_out_after_the_start(
    store: Store, tenant: TenantId, journal: Journal, status: Status, answers: bool
) -> None:
    volume = store.volume(tenant)
    steps: Steps[object] = Attachments(store.context).attach(tenant, "vm1", volume.id, None)
    if status is Status.DETACHING:
        run_inline(steps)
        steps = Attachments(store.context).detach(tenant, "vm1", volume.id)
    begun = steps.send(None)
    assert isinstance(begun, Blocking)
    begun.call()
    assert store.look(tenant, volume).status is status
    steps.close()
    store.restart()
    # The frontends open now: nobody else takes it, and its export is closed.
    assert store.look(tenant, volume).status is Status.DETACHING
    journal.calls.clear()
    journal.failing = set() if answers else {"pull"}
    (owned,) = detaching(store.context)
    run_inline(finish_detaching(store.context, owned))
    assert journal.calls == ["cut while detaching", "pull while detaching"]
    seen = store.look(tenant, volume)
    assert (seen.status, seen.attachment) == (Status.AVAILABLE, None)
    assert seen.last_error is not None
    assert ("may still be in server vm1" in seen.last_error) != answers
    assert detaching(store.context) == []


def test_a_failure_that_is_no_errors_of_ours_is_not_swallowed(
    store: Store, tenant: TenantId, journal: Journal
) -> None:
    volume = store.volume(tenant)
    journal.failing = {"publish"}
    with pytest.raises(BockdError, match="publish"):
        attach(store, tenant, volume)
    assert "plug while attaching" not in journal.calls
    assert store.look(tenant, volume).status is Status.AVAILABLE
