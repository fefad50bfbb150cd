"""Certificates, right ones and wrong ones, made once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from bockd.drivers.memory.device import MemoryDevice
from bockd.model import MIB
from tests.nbd.server.serving import FixedExports
from tests.tls.authority import Authority, Pair


@dataclass(frozen=True)
class Pki:
    """What the tests' daemons and clients have. Directories are as libnbd and QEMU want them."""

    ours: Authority
    server: Pair
    client: Path
    """A certificate of ours."""
    nobody: Path
    """No certificate."""
    stranger: Path
    """A certificate of another CA."""
    expired: Path
    misled: Path
    """Trusts the other CA only."""
    elsewhere: Pair
    """A server's certificate for another host."""
    outdated: Pair
    """A server's certificate that has expired."""


def make_pki(directory: Path) -> Pki:
    directory.mkdir()
    ours, others = Authority(directory / "ours"), Authority(directory / "others", "another CA")
    return Pki(
        ours=ours,
        server=ours.issue("server"),
        client=ours.client_directory("client", ours.issue("alice")),
        nobody=ours.client_directory("nobody", None),
        stranger=ours.client_directory("stranger", others.issue("mallory")),
        expired=ours.client_directory("expired", ours.issue("late", days=-1)),
        misled=ours.client_directory("misled", None, others.ca),
        elsewhere=ours.issue("elsewhere", names=("elsewhere.example.org",)),
        outdated=ours.issue("outdated", days=-1),
    )


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return make_pki(tmp_path_factory.mktemp("certificates") / "all")


@pytest.fixture
def device() -> MemoryDevice:
    return MemoryDevice(200 * MIB)


@pytest.fixture
def exports(device: MemoryDevice) -> FixedExports:
    return FixedExports({"disk": device, "other": MemoryDevice(MIB)})
