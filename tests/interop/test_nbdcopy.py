"""libnbd's nbdcopy over four connections: every byte arrives, and holes stay holes."""

from __future__ import annotations

from pathlib import Path

from ..daemon.process import Bockd, data_bytes
from .images import MIB, same_bytes, write_sparse_image

SIZE_BYTES = 48 * MIB
CONNECTIONS = "--connections=4"


def new_layer(daemon: Bockd, *arguments: str) -> str:
    """Create a volume; the name of the layer file that it writes to."""
    before = set(daemon.layer_files())
    daemon.bock("volume", "create", *arguments)
    (layer,) = set(daemon.layer_files()) - before
    return layer


def test_copies_in_and_out_keep_bytes_and_holes(daemon: Bockd, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    written = write_sparse_image(source, SIZE_BYTES, seed=20)
    layer = new_layer(daemon, "copied", "--size", str(SIZE_BYTES))

    daemon.tool("nbdcopy", CONNECTIONS, "--flush", source, daemon.uri("copied"))
    assert daemon.layer_files()[layer] == written

    daemon.tool("nbdcopy", CONNECTIONS, daemon.uri("copied"), target)
    assert same_bytes(source, target)
    assert data_bytes(target) == written
    space = daemon.bock("volume", "show", "copied")["space"]
    assert space == {"exclusive_bytes": written, "shared_bytes": 0}


def test_a_copy_between_two_volumes(daemon: Bockd, tmp_path: Path) -> None:
    """Both ends of one nbdcopy are exports of this daemon; the source is a snapshot."""
    source, target = tmp_path / "source", tmp_path / "target"
    written = write_sparse_image(source, SIZE_BYTES, seed=21)
    daemon.bock("volume", "create", "from", "--size", str(SIZE_BYTES))
    daemon.tool("nbdcopy", CONNECTIONS, source, daemon.uri("from"))
    daemon.bock("snapshot", "create", "from", "from-1")
    layer = new_layer(daemon, "to", "--size", str(SIZE_BYTES))

    daemon.tool("nbdcopy", CONNECTIONS, daemon.uri("snapshot/from-1"), daemon.uri("to"))
    assert daemon.layer_files()[layer] == written
    daemon.tool("nbdcopy", CONNECTIONS, daemon.uri("to"), target)
    assert same_bytes(source, target)


def test_copying_over_old_data_leaves_none_of_it(daemon: Bockd, tmp_path: Path) -> None:
    """A sparse image over a full volume: what is hole in the image reads as zeros afterwards, and
    its space is given back."""
    full, sparse, target = tmp_path / "full", tmp_path / "sparse", tmp_path / "target"
    full.write_bytes(b"\xa5" * (32 * MIB))
    written = write_sparse_image(sparse, 32 * MIB, seed=22)
    layer = new_layer(daemon, "reused", "--size", "32M")
    daemon.tool("nbdcopy", CONNECTIONS, full, daemon.uri("reused"))
    assert daemon.layer_files()[layer] == 32 * MIB

    daemon.tool("nbdcopy", CONNECTIONS, "--flush", sparse, daemon.uri("reused"))
    daemon.tool("nbdcopy", CONNECTIONS, daemon.uri("reused"), target)
    assert same_bytes(sparse, target)
    daemon.wait_until_unused("reused")
    daemon.restart()  # which ends what is punched in the background
    assert daemon.layer_files()[layer] == written
