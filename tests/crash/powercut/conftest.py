"""The disk whose power is cut, and the engine as the laboratory runs it, for a module of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash.powercut.engine import laboratory
from tests.crash.powercut.mounted import PowerCutDisk, power_cut_disk


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowerCutDisk]:
    with laboratory(), power_cut_disk(tmp_path_factory.mktemp("powercut")) as mounted:
        yield mounted
