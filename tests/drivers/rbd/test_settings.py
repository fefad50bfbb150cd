"""The options of connections: what promises D1 and D6 need is not left to ceph.conf."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.config.rbd import RbdSettings
from bockd.drivers.rbd.settings import Override, index_options, refuse_overrides, volume_options
from bockd.errors import DeviceError
from bockd.publictexts import CLUSTER_REFUSES


def test_the_index_connection_gives_up_after_ten_seconds() -> None:
    options = index_options(RbdSettings(connect_seconds=7))
    assert options["rados_osd_op_timeout"] == options["rados_mon_op_timeout"] == "10"
    assert options["client_mount_timeout"] == "7"


def test_a_volume_connection_never_gives_up_and_caches_nothing() -> None:
    options = volume_options(RbdSettings())
    assert options["rados_osd_op_timeout"] == options["rados_mon_op_timeout"] == "0"
    assert options["rbd_cache"] == "false"
    assert options["rbd_discard_granularity_bytes"] == "4096"


def test_whose_lock_is_broken_is_shut_out_for_as_long_as_the_monitors_say() -> None:
    for options in (volume_options(RbdSettings()), index_options(RbdSettings())):
        assert options["rbd_blocklist_on_break_lock"] == "true"
        assert options["rbd_blocklist_expire_seconds"] == "0"


def test_the_keyring_is_named_only_if_it_is_configured() -> None:
    assert "keyring" not in index_options(RbdSettings())
    settings = RbdSettings(keyring_file=Path("/root/keyring"))
    assert index_options(settings)["keyring"] == "/root/keyring"
    assert volume_options(settings)["keyring"] == "/root/keyring"


def test_a_request_neither_holds_up_the_loop_nor_outlives_its_gateway() -> None:
    options = volume_options(RbdSettings())
    assert options["rbd_non_blocking_aio"] == "true"
    assert options["rbd_disable_zero_copy_writes"] == "true"


def test_what_an_image_or_its_pool_overrides_is_refused() -> None:
    settings = RbdSettings(pool="pool", namespace="space")
    options = volume_options(settings)

    def refuse(name: str, value: str, source: int) -> None:
        refuse_overrides(
            settings, options, "img", [Override(name=name, value=value, source=source)]
        )

    refuse("rbd_cache", "true", 0)  # the connection's own
    refuse("rbd_cache", "false", 2)
    refuse("rbd_qos_iops_limit", "7", 2)  # bockd says nothing about it
    with pytest.raises(
        DeviceError, match="rbd config image remove pool/space/img rbd_cache'"
    ) as refused:
        refuse("rbd_cache", "true", 2)
    assert refused.value.public_text == CLUSTER_REFUSES
    with pytest.raises(DeviceError, match="rbd config pool remove pool rbd_plugins'"):
        refuse("rbd_plugins", "pwl_cache", 1)
