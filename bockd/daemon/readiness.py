"""Telling whoever started the daemon that it is ready, and that it stops (sd_notify(3)).

A service manager that wants to know gives the daemon a datagram socket in $NOTIFY_SOCKET: a path,
or an abstract name behind an "@". What waits for the daemon can then begin when volumes can be
reached, and not before.
"""

from __future__ import annotations

import logging
import os
import socket

NOTIFY_VARIABLE = "NOTIFY_SOCKET"

READY = "READY=1"
STOPPING = "STOPPING=1"

log = logging.getLogger(__name__)


def has_manager() -> bool:
    """Return whether a service manager has started the daemon."""
    return bool(os.environ.get(NOTIFY_VARIABLE))


def notify(state: str) -> None:
    """Send the state to the service manager, if there is one. If it does not listen, go on
    serving."""
    name = os.environ.get(NOTIFY_VARIABLE)
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(state.encode(), address)
    except OSError as error:
        log.warning("%s did not reach %s: %s", state, NOTIFY_VARIABLE, error)
