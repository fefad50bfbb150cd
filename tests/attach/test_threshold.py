"""A client that is being let in while its volume is detached stays outside, and holds nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from bockd.blockstorage.attachments import Attachments
from bockd.daemon.attached import AttachedExports
from bockd.drivers.local.opening import OpenVolume
from bockd.errors import DeviceError, NotFoundError
from bockd.model import VolumeId
from bockd.nbd.server.exports import ExportKey
from bockd.pool.records import VolumeRecord
from bockd.runtime.steprunner import StepRunner
from tests.blockstorage.store import Store, running


def test_detached_while_the_volume_was_being_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as store:
        tenant = store.tenant("acme")
        volume = store.volume(tenant)
        attachment = store.run(lambda s: s.attach(tenant, "1", volume.id, None))
        idle: list[ExportKey] = []
        table = AttachedExports(store.pool, StepRunner(), idle.append)
        hold = trio.run(table.open, attachment.export_name)
        assert hold.info.name == attachment.export_name
        assert store.pool.registry.volumes[volume.id].users == 1
        trio.run(hold.close)
        monkeypatch.setattr(store.pool.registry, "use_volume", _detached_meanwhile(store, tenant))
        with pytest.raises(NotFoundError) as refusal:
            trio.run(table.open, attachment.export_name)
        assert attachment.export_name not in str(refusal.value)
        assert store.pool.registry.volumes[volume.id].users == 0
        assert len(idle) == 2
        with pytest.raises(NotFoundError):
            trio.run(table.describe, attachment.export_name)


def test_the_index_fails_after_the_volume_was_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as store:
        tenant = store.tenant("acme")
        volume = store.volume(tenant)
        attachment = store.run(lambda s: s.attach(tenant, "1", volume.id, None))
        idle: list[ExportKey] = []
        table = AttachedExports(store.pool, StepRunner(), idle.append)
        real, looks = table.find, []

        def find(name: str) -> VolumeRecord | None:
            looks.append(name)
            if len(looks) == 2:
                raise DeviceError("the copy of the index could not be written")
            return real(name)

        monkeypatch.setattr(table, "find", find)
        with pytest.raises(DeviceError):
            trio.run(table.open, attachment.export_name)
        assert store.pool.registry.volumes[volume.id].users == 0
        assert len(idle) == 1


def _detached_meanwhile(store: Store, tenant: object) -> object:
    real = store.pool.registry.use_volume

    async def use_volume(volume: VolumeId) -> OpenVolume:
        opened = await real(volume)
        await Attachments(store.context).detach(tenant, "1", volume)  # type: ignore[arg-type]
        return opened

    return use_volume
