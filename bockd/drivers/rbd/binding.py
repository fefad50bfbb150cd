"""Ceph's own Python modules, `rados` and `rbd`: the one place that imports them.

They are no packages of PyPI. The distribution has them for its own Python, each as one extension
file, which `.setup/ceph` links into our environment. Without them this module cannot be imported,
and the error says what to install; so only code that was asked for a pool in Ceph imports it.
"""

from __future__ import annotations

from bockd.errors import NotSupportedError

try:
    import rados
    import rbd
except ImportError as error:
    raise NotSupportedError(
        f"a pool in Ceph needs the Python modules rados and rbd, and {error.name or error} cannot "
        "be imported: install the packages python3-rados and python3-rbd (Debian, Ubuntu), and "
        "link rados.cpython-*.so and rbd.cpython-*.so from /usr/lib/python3/dist-packages into "
        "the site-packages of bockd's environment, which must have the same version of Python"
    ) from error

__all__ = ["rados", "rbd"]
