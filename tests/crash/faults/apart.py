"""One run of the scenario in a process of its own, forked from this one: what it leaves open, and
what LMDB thinks of its files, ends with it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from multiprocessing.connection import Connection

from tests.crash.faults.mounted import Fault, FaultyDisk
from tests.crash.faults.scenario import Play
from tests.crash.faults.subject import Outcome

HANG_SECONDS = 120.0
"""A run takes less than a second; the machine may be busy."""

_context = multiprocessing.get_context("fork")


class FaultNotMasteredError(AssertionError):
    """A promise was broken, or an error had no name; the text is the run's own traceback."""


def play(disk: FaultyDisk, fault: Fault | None) -> Outcome:
    """Run the scenario with a fault. FaultNotMasteredError."""
    receiving, sending = _context.Pipe(duplex=False)
    life = disk.new()
    process = _context.Process(target=_play, args=(disk, life, fault, sending), daemon=True)
    process.start()
    sending.close()
    try:
        if not receiving.poll(HANG_SECONDS):
            raise FaultNotMasteredError(f"{fault}: it hangs")
        end: Outcome | str = receiving.recv()
    except EOFError:
        process.join()
        raise FaultNotMasteredError(f"{fault}: it died, status {process.exitcode}") from None
    finally:
        receiving.close()
        process.kill()
        process.join()
        disk.drop(life)
    if isinstance(end, str):
        raise FaultNotMasteredError(end)
    return end


def _play(disk: FaultyDisk, life: str, fault: Fault | None, sending: Connection) -> None:
    logging.disable()
    try:
        sending.send(Play(disk, life, fault).run())
    except BaseException:  # noqa: BLE001 - whatever it is, the run has failed
        sending.send(traceback.format_exc())
    os._exit(0)
