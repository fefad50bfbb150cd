"""`bock du` against a running daemon: a tree whose sums are the pool's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest

from .daemon import Daemon, running_daemon

KIB = 1024


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose pool holds nothing else."""
    with running_daemon(tmp_path_factory.mktemp("usage") / "pool") as daemon:
        yield daemon


def write(uri: str, pattern: int, offset_kib: int, length_kib: int) -> None:
    command = f"write -P {pattern} {offset_kib}k {length_kib}k"
    subprocess.run(["qemu-io", "-f", "raw", "-c", command, uri], check=True, capture_output=True)


def figures(daemon: Daemon, *arguments: str) -> dict[str, tuple[int, int, int]]:
    """Exclusive, shared, and with all below, in KiB, by name; and the total."""
    families = daemon.bock_json("du", *arguments)
    found = {
        node["name"]: (
            node["space"]["exclusive_bytes"] // KIB,
            node["space"]["shared_bytes"] // KIB,
            node["with_below_bytes"] // KIB,
        )
        for family in families
        for node in family["nodes"]
    }
    return {**found, "total": (0, 0, sum(one["total_bytes"] for one in families) // KIB)}


def pool_kib(daemon: Daemon) -> int:
    """What `bock pool show` says that the pool's data takes."""
    found = daemon.bock_json("pool", "show")
    parts = ("volumes_bytes", "snapshots_bytes", "images_bytes")
    return sum(int(found[part]) for part in parts) // KIB


@pytest.mark.needs("files")  # blocks that are shared
def test_a_tree_of_volumes_snapshots_and_clones(own: Daemon) -> None:
    web = own.bock_json("volume", "create", "web", "--size", "4M")["uri"]
    write(web, 1, 0, 1024)
    own.bock("snapshot", "create", "web", "then")
    write(web, 2, 0, 64)  # of which the snapshot keeps the old content
    copy = own.bock_json("volume", "create", "copy", "--from-snapshot", "then")["uri"]
    write(copy, 3, 512, 128)
    own.bock("volume", "clone", "web", "twin")
    alone = own.bock_json("volume", "create", "alone", "--size", "1M")["uri"]
    write(alone, 4, 0, 256)
    found = figures(own)
    assert found == {
        "web": (0, 1024, 1024 + 64 + 128),  # all that was made of it
        "then": (0, 1024, 64 + 128),  # what the volume has overwritten, and what its copy wrote
        "copy": (128, 896, 128),
        "twin": (0, 1024, 0),
        "alone": (256, 0, 256),
        "total": (0, 0, 1024 + 64 + 128 + 256),
    }
    assert found["total"][2] == pool_kib(own)
    assert set(figures(own, "copy")) == {"web", "then", "copy", "twin", "total"}
    lines = [re.split(" {2,}(?=[0-9S])", line)[0] for line in own.bock("du").splitlines()]
    assert lines == [
        "NAME",
        "web",
        "\u251c\u2500 snapshot/then",
        "\u2502  \u2514\u2500 copy",
        "\u2514\u2500 twin",
        "alone",
        "total",
    ]
    plain = own.run("bock", "du", PYTHONIOENCODING="ascii").out
    assert "|  `- copy" in plain
    # What one line promises returns.
    own.bock("volume", "delete", "copy")
    assert pool_kib(own) == found["total"][2] - found["copy"][0]
    own.bock("volume", "delete", "web")
    own.bock("snapshot", "delete", "then")
    assert figures(own) == {
        "twin": (1024, 0, 1024),
        "alone": (256, 0, 256),
        "total": (0, 0, 1280),
    }
    assert pool_kib(own) == 1280
    # Two that share what is deleted have no common root.
    own.bock("volume", "clone", "twin", "second")
    own.bock("volume", "clone", "twin", "third")
    own.bock("volume", "delete", "twin")
    found = figures(own, "third")
    assert found == {"second": (0, 1024, 0), "third": (0, 1024, 0), "total": (0, 0, 1024)}
    out = own.bock("du", "second")
    assert out.splitlines()[1].startswith("(made of what is deleted)")
    assert out.splitlines()[-1].endswith("1 MiB")
    for name in ("second", "third", "alone"):
        own.bock("volume", "delete", name)


@pytest.mark.needs("cluster")
def test_a_pool_in_ceph_says_what_a_deletion_frees(own: Daemon) -> None:
    mib = 1024
    web = own.bock_json("volume", "create", "web", "--size", "8M")["uri"]
    write(web, 1, 0, 8192)
    own.bock("snapshot", "create", "web", "then")
    write(web, 2, 0, 64)
    own.bock("volume", "create", "copy", "--from-snapshot", "then")
    assert figures(own) == {
        "web": (4 * mib, 4 * mib, 12 * mib),
        "then": (0, 8 * mib, 4 * mib),
        "copy": (0, 8 * mib, 0),
        "total": (0, 0, 12 * mib),
    }
    (family,) = own.bock_json("du", "copy")
    # The image of a volume stays for its snapshots, and a snap for its clones.
    assert [node["freed_bytes"] for node in family["nodes"]] == [0, 0, 0]
    lines = [re.split(" {2,}", line) for line in own.bock("du").splitlines()]
    assert lines[0] == ["NAME", "SIZE", "EXCLUSIVE", "SHARED", "FREED", "WITH ALL BELOW"]
    assert lines[1] == ["web", "8 MiB", "4 MiB", "4 MiB", "0 B", "12 MiB"]
    own.bock("snapshot", "delete", "then")
    assert own.bock("du").splitlines()[-1].startswith("1 deleted snapshot(s) stay in Ceph")
