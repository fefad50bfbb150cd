"""The daemon's log: lines on standard error, for people or as JSON, and how many there were."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, Metric

from bockd import logcontext
from bockd.config import Settings
from bockd.config.sections import LogFormat
from bockd.oneline import one_line

log = logging.getLogger(__name__)

LEVELS: Final = ("debug", "info", "warning", "error", "critical")


class JsonFormatter(logging.Formatter):
    """Writes a line as one JSON object: time, level, logger, message, the fields of
    `bockd.logcontext` that are known, and of an exception its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **logcontext.noted(),
        }
        for field in logcontext.FIELDS:
            if (value := getattr(record, field, None)) is not None:
                line[field] = str(value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """Writes a line for people: level, logger, message. Of an exception the traceback follows. What
    a terminal would obey, or would take for another line, is escaped."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line of a record."""
        return one_line(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """Return the lines of a traceback."""
        return "\n".join(map(one_line, super().formatException(ei).split("\n")))


class LineCounts(logging.Handler):
    """Counts lines by their level."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        """Count a line."""
        self._counts[record.levelname.lower()] += 1

    def families(self) -> Iterator[Metric]:
        """Yield what was counted until now."""
        family = CounterMetricFamily(
            "bockd_log_lines", "Lines that the daemon has logged.", labels=["level"]
        )
        for level in LEVELS:
            family.add_metric([level], self._counts[level])
        yield family


def begin(settings: Settings) -> LineCounts:
    """Begin to log as the settings say. Return what counts the lines."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(
        JsonFormatter() if settings.log.format is LogFormat.JSON else TextFormatter()
    )
    counts = LineCounts()
    logging.basicConfig(level=settings.log_level.upper(), handlers=[lines, counts])
    take_over()
    return counts


def take_over() -> None:
    """Have what Python would write to standard error by itself logged: warnings, and errors that
    nobody has caught, in the main thread, in others, and in finalizers."""
    logging.captureWarnings(True)
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda found: _log_uncaught(
        found.exc_type, found.exc_value, found.exc_traceback
    )
    sys.unraisablehook = lambda found: _log_uncaught(
        found.exc_type, found.exc_value, found.exc_traceback, f"ignored in {found.object!r}"
    )


def _log_uncaught(
    kind: type[BaseException],
    error: BaseException | None,
    trace: TracebackType | None,
    what: str = "nobody has caught this",
) -> None:
    if issubclass(kind, SystemExit):
        return  # as in Python's own hook for threads
    log.critical("%s: %s", what, kind.__name__, exc_info=(kind, error or kind(), trace))
