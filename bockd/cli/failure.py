"""How a command fails: one line on standard error that says what to do, or JSON, and a status.

Exit status 2: the command line itself is wrong, and nobody was asked. 1: it was refused or failed.
130: it was interrupted. With `--json` the error is `{"error": {"code", "message"}}`, on standard
error too; `code` is the error's stable word (bockd.errors), or "usage" or "interrupted".
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from bockd.cli.lazy import LazyGroup
from bockd.cli.output import never_fail_to_print, printable
from bockd.errors import BockdError, InvalidRequestError

REFUSED, USAGE, INTERRUPTED = 1, 2, 130

USAGE_CODE, INTERRUPTED_CODE = "usage", "interrupted"


class Program(LazyGroup):
    """The outermost group: the one place that turns an error into an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the chosen command and exit; without `standalone_mode` raise what it raises."""
        never_fail_to_print()
        given = sys.argv[1:] if args is None else list(args)
        if not standalone_mode:
            return super().main(given, prog_name, complete_var, False, **extra)
        try:
            self._run(given, prog_name, complete_var, extra)
        except KeyboardInterrupt:
            # It came while the end of the command was being told.
            sys.exit(INTERRUPTED)

    def _run(
        self,
        given: list[str],
        prog_name: str | None,
        complete_var: str | None,
        extra: Mapping[str, Any],
    ) -> NoReturn:
        # Looked for by hand: the line may be too wrong to be parsed.
        as_json = "--json" in given
        program = prog_name or self.name or "bockd"
        try:
            status = super().main(given, prog_name, complete_var, False, **extra)
        except click.Abort:
            end(program, INTERRUPTED_CODE, "interrupted", INTERRUPTED, as_json=as_json)
        except click.UsageError as error:
            if not as_json:
                error.show()
                sys.exit(USAGE)
            end(program, USAGE_CODE, error.format_message(), USAGE, as_json=True)
        except click.ClickException as error:
            end(program, "failed", error.format_message(), REFUSED, as_json=as_json)
        except BockdError as error:
            if was_interrupted(error):
                end(program, INTERRUPTED_CODE, str(error), INTERRUPTED, as_json=as_json)
            end(program, error.code, str(error), REFUSED, as_json=as_json)
        sys.exit(status if isinstance(status, int) else 0)


def end(program: str, code: str, message: str, status: int, *, as_json: bool) -> NoReturn:
    """Print an error and exit with `status`."""
    tell(program, code, message, as_json=as_json)
    sys.exit(status)


def tell(program: str, code: str, message: str, *, as_json: bool) -> None:
    """Print an error on standard error."""
    if as_json:
        import json

        click.echo(json.dumps({"error": {"code": code, "message": message}}), err=True)
    else:
        click.echo(f"{program}: {printable(' '.join(message.splitlines()))}", err=True)


def was_interrupted(error: BaseException) -> bool:
    """Return whether a signal is the first cause of an error, as for an import that was interrupted
    and undone."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return True
        cause = cause.__cause__
    return False


@contextmanager
def judging_arguments() -> Iterator[None]:
    """Turn an InvalidRequestError of the body into a usage error, because no daemon has been asked
    yet."""
    try:
        yield
    except InvalidRequestError as error:
        raise click.UsageError(str(error)) from error
