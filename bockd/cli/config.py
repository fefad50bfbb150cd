"""`bockd config`: is the configuration right, what is in force, and what could be said."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import click

from bockd.cli.lazy import LazyGroup
from bockd.cli.output import json_option, print_json, print_table, say
from bockd.config.load import Loaded, load, walk
from bockd.config.problems import ConfigurationError, Problem
from bockd.tls.certificates import CertificateError, Certificates, wanted

EXAMPLE = "bockd.example.toml"

config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="The configuration, instead of $BOCKD_CONFIG or the usual file.",
)


def load_all(file: Path | None) -> Loaded:
    """Load the configuration, and check the certificates that it names. Raises
    ConfigurationError."""
    loaded = load(file)
    kinds = wanted(loaded.settings)
    try:
        if kinds:
            Certificates(loaded.settings.tls, kinds)
    except CertificateError as error:
        problem = Problem(loaded.source(error.key), error.key, error.reason)
        raise ConfigurationError((problem,)) from error
    return loaded


@click.group(cls=LazyGroup)
def config() -> None:
    """Check and show the configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@json_option
def check(file: Path | None, as_json: bool) -> None:
    """Say what is wrong with FILE, each problem with its line.

    Without FILE, the configuration that the daemon would use. Exit status 0: right, 1: problems.
    """
    try:
        loaded = load_all(file)
    except ConfigurationError as error:
        if as_json:
            print_json({"valid": False, "problems": error.problems})
        else:
            for problem in error.problems:
                say(str(problem))
        sys.exit(1)
    if as_json:
        print_json({"valid": True, "problems": []})
    else:
        say(f"{loaded.file or 'no configuration file'}: right")


@config.command()
@config_option
@json_option
def show(config_file: Path | None, as_json: bool) -> None:
    """Show every key, its value in force and where it comes from."""
    loaded = load(config_file)
    if as_json:
        print_json({"file": loaded.file and str(loaded.file), "settings": _as_records(loaded)})
        return
    print_table(
        ("KEY", "VALUE", "FROM"),
        [(key, _written(value), loaded.source(key)) for key, value in walk(loaded.settings)],
    )


@config.command()
def example() -> None:
    """Print an example: every key with its default and what it means."""
    click.echo(files("bockd.config").joinpath(EXAMPLE).read_text(encoding="utf-8"), nl=False)


def _as_records(loaded: Loaded) -> dict[str, dict[str, object]]:
    return {
        key: {"value": value, "source": loaded.source(key)} for key, value in walk(loaded.settings)
    }


def _written(value: object) -> str:
    """A value as the file would have it; "-" for a key that is not set."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
