"""`[write_back]` of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.config.schema import READ, section_fields
from bockd.config.writeback import WriteBackSettings


def test_without_a_directory_nothing_is_written_back() -> None:
    assert WriteBackSettings().directory is None


def test_nobody_may_choose_it_until_a_tenant_is_named() -> None:
    assert WriteBackSettings().tenants == ()
    read = section_fields(WriteBackSettings)["tenants"].metadata[READ]
    assert (read([]), read(["one", "two"])) == ((), ("one", "two"))
    with pytest.raises(TypeError, match="an array of strings"):
        read("one")


def test_a_volume_takes_no_more_than_all() -> None:
    assert WriteBackSettings(size_gib=8).volume_bytes == 4 << 30
    assert WriteBackSettings(size_gib=2).volume_bytes == 2 << 30


def test_a_good_value_is_read() -> None:
    fields = section_fields(WriteBackSettings)
    assert fields["directory"].metadata[READ]("/var/lib/logs") == Path("/var/lib/logs")
    settings = WriteBackSettings(size_gib=fields["size_gib"].metadata[READ](4096))
    assert settings.size_bytes == 4096 << 30
    with pytest.raises(ValueError, match="between 1 and 4096"):
        fields["size_gib"].metadata[READ](0)
