"""Editing names and metadata while other things go on with the volume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bockd.blockstorage.contract import Attachment, Edit, NewSnapshot, NewVolume, Status, TenantId
from bockd.blockstorage.editing import edit_volume
from bockd.blockstorage.running import NoPublisher
from bockd.runtime.steps import Steps

from .store import Store, running


class Interrupting(NoPublisher):
    """Something else happens while an attachment is on its way in, and out."""

    happening: Callable[[str], None]

    def publish(self, attachment: Attachment) -> Steps[None]:
        self.happening("attaching")
        return super().publish(attachment)

    def withdraw(self, attachment: Attachment, *, force: bool) -> Steps[str | None]:
        self.happening("detaching")
        return super().withdraw(attachment, force=force)


def test_edits_and_attachments_do_not_undo_each_other(tmp_path: Path) -> None:
    exports = Interrupting()
    with running(tmp_path, exports) as store:
        tenant = store.tenant("acme")
        volume = store.volume(tenant, name="old")

        def edit(moment: str) -> None:
            wanted = Edit(moment, None, {moment: "1"}, keeps_other_metadata=True)
            store.pool.index.update(edit_volume(tenant, volume.id, wanted))

        exports.happening = edit
        store.run(lambda s: s.attach(tenant, "1", volume.id, None))
        attached = store.look(tenant, volume)
        assert (attached.status, attached.display_name) == (Status.IN_USE, "attaching")
        store.run(lambda s: s.detach(tenant, "1", volume.id))
        found = store.look(tenant, volume)
        assert (found.status, found.display_name) == (Status.AVAILABLE, "detaching")
        assert found.metadata == {"attaching": "1", "detaching": "1"}


def test_edits_survive_a_kill_and_leave_the_pools_names(store: Store, tenant: TenantId) -> None:
    volume = store.run(lambda s: s.create_volume(tenant, NewVolume(1, "web", metadata={"a": "b"})))
    taken = store.run(lambda s: s.create_snapshot(tenant, NewSnapshot(volume.id, "then")))
    store.run(lambda s: s.edit_volume(tenant, volume.id, Edit("shop", "ours", {"c": "d"})))
    store.run(lambda s: s.edit_snapshot(tenant, taken.id, Edit("before")))
    store.restart()
    found = store.look(tenant, volume)
    assert (found.display_name, found.display_description) == ("shop", "ours")
    assert found.metadata == {"c": "d"}
    assert found.backing is not None
    assert (found.backing.name, found.backing.export) == ("web", "web")
    snapshot = store.run(lambda s: s.show_snapshot(tenant, taken.id))
    assert snapshot.display_name == "before"
    assert snapshot.backing is not None
    assert snapshot.backing.name == "then"
