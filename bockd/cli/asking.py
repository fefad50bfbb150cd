"""Questions to a person at a terminal."""

from __future__ import annotations

import os
import select
import signal
import sys

import click

from bockd.cli.output import printable, say
from bockd.errors import ConflictError


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone. Raises ConflictError unless the answer is yes,
    click.Abort when there is none.

    Only a person at a terminal is asked: a script has decided already.
    """
    if yes or not sys.stdin.isatty():
        return
    while True:
        click.echo(f"{printable(question)} [y/N]: ", nl=False, err=True)
        _wait_for_line()
        answer = sys.stdin.readline()
        if not answer:
            say(err=True)
            raise click.Abort
        match answer.strip().lower():
            case "y" | "yes":
                return
            case "" | "n" | "no":
                raise ConflictError("not confirmed; nothing was done")
        say("Please answer y or n.", err=True)


def _wait_for_line() -> None:
    """Return when a line has been typed. Raises KeyboardInterrupt.

    A signal that comes just before a blocking read is noticed only when the read ends, which would
    take another key; a wait for the signal's own descriptor, too, loses none.
    """
    noticed, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(wake)
    try:
        select.select([sys.stdin, noticed], [], [])
    finally:
        signal.set_wakeup_fd(before)
        os.close(noticed)
        os.close(wake)
