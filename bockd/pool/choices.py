"""What every kind of pool decides alike about a new volume or snapshot."""

from __future__ import annotations

from bockd.errors import InvalidRequestError
from bockd.model import format_size
from bockd.pool.nodes import Nodes
from bockd.pool.pool import Naming
from bockd.pool.records import SnapshotRecord
from bockd.validation import check_name, check_volume_size


def check_new_volume(name: str | Naming, size_bytes: int | None, *, is_clone: bool) -> None:
    """Check what is asked of a new volume. Raises InvalidRequestError."""
    if isinstance(name, str):
        check_name(name)
    if size_bytes is not None:
        check_volume_size(size_bytes)
    elif not is_clone:
        raise InvalidRequestError("a blank volume needs a size")


def name_of(naming: str | Naming, nodes: Nodes, node: int) -> str:
    """Return the name that a node is to have. Raises InvalidRequestError."""
    return naming if isinstance(naming, str) else check_name(naming(nodes, node))


def size_of(source: SnapshotRecord | None, size_bytes: int | None) -> int:
    """Return the size of a clone, or of a blank volume. Raises InvalidRequestError for a clone that
    would be smaller than its snapshot."""
    if source is None:
        assert size_bytes is not None
        return size_bytes
    if size_bytes is not None and size_bytes < source.size_bytes:
        raise InvalidRequestError(
            f"snapshot {source.id} has {format_size(source.size_bytes)}; a volume made from it "
            "cannot be smaller"
        )
    return size_bytes or source.size_bytes


def content_of(source: SnapshotRecord, size_bytes: int) -> int | None:
    """Return the `content_bytes` of a volume of `size_bytes` that shows a snapshot. None if the
    volume is larger than the snapshot: then it was made for more than the image."""
    return source.content_bytes if source.size_bytes == size_bytes else None
