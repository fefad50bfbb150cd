"""A history played in a process of its own, forked from this one.

Operations that a death cut off are kept, with all they refer to, for as long as their process lives
(tests/drivers/local/schedule.py): tens of MiB for each history. So each has a process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bockd.errors import BockdError
from tests.crash.powercut.mounted import PowerCutDisk
from tests.crash.powercut.scenario import Counts, Run

_context = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class End:
    """How a history ended."""

    counts: Counts
    values: int
    """Writes that were begun."""
    now: int
    contents: dict[str, bytes]
    """Of all volumes and snapshots."""


class HistoryFailedError(AssertionError):
    """A promise was broken; the text is the history's own traceback."""


def play(disk: PowerCutDisk, seed: int, cuts: int) -> End:
    """Play the history of a seed until the power has failed so many times. HistoryFailedError;
    RuntimeError for the laboratory's own trouble, which says nothing about the promises."""
    receiving, sending = _context.Pipe(duplex=False)
    process = _context.Process(target=_play, args=(disk, seed, cuts, sending))
    process.start()
    sending.close()
    try:
        end: End | Exception = receiving.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"seed {seed}: its process ended with {process.exitcode}") from None
    finally:
        receiving.close()
        process.join()
    if isinstance(end, Exception):
        raise end
    return end


def _play(disk: PowerCutDisk, seed: int, cuts: int, sending: Connection) -> None:
    logging.disable()  # recovery says what it discards
    run = Run(disk, seed)
    try:
        counts = run.play(cuts)
        sending.send(End(counts, run.draw.values, run.now, run.contents))
    except (AssertionError, BockdError):
        sending.send(HistoryFailedError(traceback.format_exc()))
    except Exception:  # noqa: BLE001 - the laboratory's own trouble, which proves nothing
        sending.send(RuntimeError(traceback.format_exc()))
    # Not through the interpreter's end: it would close what a death has cut off.
    os._exit(0)
