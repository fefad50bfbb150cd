"""Ceph's errors in our terms; and connecting to what is not there."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from .ceph import need_modules

need_modules()

from bockd.config.rbd import RbdSettings  # noqa: E402
from bockd.drivers.rbd.binding import rados, rbd  # noqa: E402
from bockd.drivers.rbd.connection import connect  # noqa: E402
from bockd.drivers.rbd.errors import (  # noqa: E402
    ShutOutError,
    from_ceph_error,
    from_volume_error,
    named,
)
from bockd.drivers.rbd.settings import index_options  # noqa: E402
from bockd.errors import (  # noqa: E402
    BockdError,
    ClusterUnavailableError,
    DeniedError,
    DeviceError,
    NoSpaceError,
    NotFoundError,
    UnavailableError,
    VolumeTakenError,
)


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, NoSpaceError, "is full"),
        (errno.EDQUOT, NoSpaceError, "quota"),
        (errno.EPERM, DeniedError, "profile rbd"),
        (errno.EACCES, DeniedError, "profile rbd"),
        (errno.ENOENT, NotFoundError, "no such thing"),
        (errno.ETIMEDOUT, ClusterUnavailableError, "does not answer"),
        (errno.ENOTCONN, ClusterUnavailableError, "does not answer"),
        (errno.ESHUTDOWN, ShutOutError, "blocklist"),
        (errno.EIO, DeviceError, "Input/output error"),
        (errno.EROFS, DeviceError, "Read-only file system"),
    ],
)
@pytest.mark.parametrize("family", [rados.OSError, rbd.OSError])
def test_each_error_has_a_kind_and_says_what_was_done(
    family: Callable[..., Exception], number: int, kind: type[BockdError], words: str
) -> None:
    error = from_ceph_error(family("it failed", errno=number), "reading the index")
    assert type(error) is kind
    assert str(error).startswith("reading the index: ")
    assert words in str(error)
    assert error.public_text is not None
    assert "reading the index" not in error.public_text
    assert "Ceph" not in error.public_text


@pytest.mark.parametrize("error", [rados.Error("no number"), rbd.Error("no number")])
def test_an_error_without_a_number_is_of_the_device(error: Exception) -> None:
    assert type(from_ceph_error(error, "closing")) is DeviceError


@pytest.mark.parametrize("number", [errno.ESHUTDOWN, errno.EROFS])
def test_an_image_that_another_gateway_has_taken_is_told_apart(number: int) -> None:
    error = from_volume_error(rbd.OSError("it failed", errno=number), "writing")
    assert type(error) is VolumeTakenError
    error = from_volume_error(rbd.OSError("it failed", errno=errno.ENOSPC), "writing")
    assert type(error) is NoSpaceError


def test_only_errors_of_ceph_are_translated() -> None:
    with pytest.raises(NoSpaceError), named("writing"):
        raise rados.NoSpace("it failed", errno=errno.ENOSPC)
    with pytest.raises(ZeroDivisionError), named("writing"):
        raise ZeroDivisionError


def connecting(settings: RbdSettings) -> None:
    connect(settings, index_options(settings))


def test_missing_files_are_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    with pytest.raises(UnavailableError, match=r"missing, rbd.conf_file, cannot be read"):
        connecting(RbdSettings(conf_file=missing))
    conf = tmp_path / "ceph.conf"
    conf.write_text("[global]\n")
    with pytest.raises(UnavailableError, match=r"missing, rbd.keyring_file, cannot be read"):
        connecting(RbdSettings(conf_file=conf, keyring_file=missing))


def test_monitors_that_do_not_answer_are_waited_for_no_longer_than_configured(
    tmp_path: Path,
) -> None:
    conf = tmp_path / "ceph.conf"
    conf.write_text(
        "[global]\nmon_host = v2:127.0.0.1:1\nauth_client_required = none\n"
        "auth_cluster_required = none\nauth_service_required = none\n"
    )
    with pytest.raises(UnavailableError, match=r"has answered within 1 s"):
        connecting(RbdSettings(conf_file=conf, connect_seconds=1))
