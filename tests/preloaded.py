"""What `bock` and `bockd` import by the time that they have done their work, imported.

Only the process imports this that programs of tests are forked from (`tests/forked.py`).
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

from bockd.cli.bock import COMMANDS
from bockd.errors import NotSupportedError

BY_NAME = [
    *(place.partition(":")[0] for place in COMMANDS.values()),
    *("bockd.cli.bockd", "bockd.cli.http", "bockd.cli.storage", "httpx", "rich.table"),
    *("bockd.daemon.kinds", "bockd.daemon.lifecycle", "bockd.daemon.localbackend"),
    "bockd.daemon.httpfrontends",
    *("encodings.idna", "pydantic.dataclasses", "pydantic.v1"),
]
"""Of commands, of daemons, and of the libraries that they import where they use them."""

for _module in BY_NAME:
    import_module(_module)
with suppress(NotSupportedError):  # without Ceph on this machine
    import_module("bockd.daemon.rbdbackend")

# The collector writes to what it looks at, and the kernel copies what a forked process writes to.
gc.collect()
gc.freeze()
