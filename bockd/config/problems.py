"""What is wrong with a configuration: where, which key, and why."""

from __future__ import annotations

from dataclasses import dataclass

from bockd.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong."""

    source: str
    """"FILE:LINE", the file alone where there is no line, or the environment variable."""
    key: str
    """The key as it would be written in one piece ("nbd.listen"); empty for the file as a whole."""
    reason: str

    def __str__(self) -> str:
        return ": ".join(part for part in (self.source, self.key, self.reason) if part)


class ConfigurationError(InvalidRequestError):
    """The configuration is refused; `problems` holds all that is wrong with it, in its order."""

    code = "configuration"

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        more = len(problems) - 1
        note = f" (and {more} more: see `bockd config check`)" if more else ""
        super().__init__(f"{problems[0]}{note}")
        self.problems = problems
