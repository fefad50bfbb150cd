"""A cluster that falls silent in the middle of a call of librbd. Only where Ceph's modules are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bockd.drivers.rbd.binding import rbd

from .cluster import Cluster


@contextmanager
def silence_after_opening(ceph: Cluster, name: str = "osd.0") -> Iterator[None]:
    """Let a process of the cluster hang from when the next image is open to the end of the `with`
    block."""
    open_image = rbd.Image
    with ExitStack() as hanging, pytest.MonkeyPatch.context() as patch:

        @contextmanager
        def opened(*arguments: Any) -> Iterator[Any]:
            with open_image(*arguments) as image:
                hanging.enter_context(ceph.hanging(name))
                yield image

        patch.setattr(rbd, "Image", opened)
        yield
