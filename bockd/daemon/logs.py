"""The daemon's log: lines on standard error, for people or as JSON, and how many there were."""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from prometheus_client.core import CounterMetricFamily, Metric

from bockd import logcontext
from bockd.config import Settings
from bockd.config.sections import LogFormat

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
    if settings.log.format is LogFormat.JSON:
        lines.setFormatter(JsonFormatter())
    else:
        lines.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    counts = LineCounts()
    logging.basicConfig(level=settings.log_level.upper(), handlers=[lines, counts])
    return counts
