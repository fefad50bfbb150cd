"""The objects of a log in RADOS: implements bockd.drivers.rbd.objects."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TypeVar

from bockd.drivers.rbd.binding import rados
from bockd.drivers.rbd.errors import CEPH_ERRORS, NO_ANSWER, errno_of, from_ceph_error
from bockd.drivers.rbd.objects import Change, NoAnswerError, NoIndexError, Seen
from bockd.errors import BockdError

T = TypeVar("T")

INDEX = "index"
"""The object whose keys are the log."""


class RadosObjects:
    """Objects of one namespace, through a connection that gives operations up after some time."""

    def __init__(self, ioctx: rados.Ioctx) -> None:
        self._ioctx = ioctx

    def create(self, values: Mapping[str, bytes]) -> bool:
        """See the contract."""
        with rados.WriteOpCtx() as op:
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            self._ioctx.set_omap(op, tuple(values), tuple(values.values()))
            return self._carry_out(op, errno.EEXIST, "making the index")

    def look(self, keys: tuple[str, ...], prefix: str, after: str, limit: int) -> Seen:
        """See the contract."""
        with rados.ReadOpCtx() as op:
            values, _ = self._ioctx.get_omap_vals_by_keys(op, keys)
            listed, _ = self._ioctx.get_omap_vals(op, after, prefix, limit)
            try:
                self._ioctx.operate_read_op(op, INDEX)
            except CEPH_ERRORS as error:
                raise _translate(error, "reading the index") from error
            # For a key that holds nothing the binding gives None.
            return Seen(
                {key: value or b"" for key, value in values},
                [(key, value or b"") for key, value in listed],
            )

    def change(self, change: Change) -> bool:
        """See the contract."""
        with rados.WriteOpCtx() as op:
            for key, value in change.compare.items():
                op.omap_cmp(key, value.decode("ascii"), rados.LIBRADOS_CMPXATTR_OP_EQ)
            if change.remove_range is not None:
                self._ioctx.remove_omap_range2(op, *change.remove_range)
            if change.remove:
                self._ioctx.remove_omap_keys(op, change.remove)
            if change.put:
                self._ioctx.set_omap(op, tuple(change.put), tuple(change.put.values()))
            return self._carry_out(op, errno.ECANCELED, "changing the index")

    def _carry_out(self, op: rados.WriteOp, refused: int, doing: str) -> bool:
        """False: the operation failed with `refused`."""
        try:
            self._ioctx.operate_write_op(op, INDEX)
        except CEPH_ERRORS as error:
            if errno_of(error) == refused:
                return False
            raise _translate(error, doing) from error
        return True

    def write(self, name: str, data: bytes) -> None:
        """See the contract."""
        self._on_bytes(f"writing {name}", lambda: self._ioctx.write_full(name, data))

    def read(self, name: str, limit: int) -> bytes | None:
        """See the contract."""
        data: bytes | None = self._on_bytes(
            f"reading {name}", lambda: self._ioctx.read(name, limit)
        )
        return data

    def exists(self, name: str) -> bool:
        """See the contract."""
        return self._on_bytes(f"looking for {name}", lambda: self._ioctx.stat(name)) is not None

    def remove(self, name: str) -> None:
        """See the contract."""
        self._on_bytes(f"removing {name}", lambda: self._ioctx.remove_object(name))

    def _on_bytes(self, doing: str, operation: Callable[[], T]) -> T | None:
        """What the operation returns; None where there is no such object."""
        try:
            return operation()
        except CEPH_ERRORS as error:
            if errno_of(error) == errno.ENOENT:
                return None
            raise _translate(error, doing) from error


def _translate(error: Exception, doing: str) -> BockdError:
    number = errno_of(error)
    if number == errno.ENOENT:
        return NoIndexError(
            "there is no pool of bockd's in this namespace of the Ceph pool (rbd.pool and "
            "rbd.namespace of the configuration)"
        )
    translated = from_ceph_error(error, doing)
    return NoAnswerError(str(translated)) if number in NO_ANSWER else translated
