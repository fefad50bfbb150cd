"""`[cache]` of the configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.config.cache import CacheSettings
from bockd.config.schema import READ, section_fields
from bockd.drivers.cache.blockmap import LEAF_BYTES
from bockd.drivers.cache.space import MAX_LEAVES


def test_without_a_directory_there_is_no_cache() -> None:
    assert CacheSettings().directory is None


def test_a_good_value_is_read() -> None:
    fields = section_fields(CacheSettings)
    assert fields["directory"].metadata[READ]("/var/cache/bockd") == Path("/var/cache/bockd")
    settings = CacheSettings(size_gib=fields["size_gib"].metadata[READ](256))
    assert settings.size_bytes == 256 << 30
    with pytest.raises(ValueError, match="between 1 and 256"):
        fields["size_gib"].metadata[READ](257)


def test_the_largest_cache_can_be_full() -> None:
    assert CacheSettings(size_gib=256).size_bytes == MAX_LEAVES * LEAF_BYTES
