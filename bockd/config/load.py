"""Finding the configuration: the file, the environment above it, the defaults below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

from bockd.config.address import Address, parse_address
from bockd.config.decode import Decoded, decode, dotted
from bockd.config.problems import ConfigurationError, Problem
from bockd.config.schema import READ, Section, section_fields
from bockd.config.sections import DEFAULT_DATA_DIR, Settings
from bockd.model import PoolDriver

DATA_VARIABLE = "BOCKD_DATA"
NBD_LISTEN_VARIABLE = "BOCKD_NBD_LISTEN"
API_LISTEN_VARIABLE = "BOCKD_API_LISTEN"
METRICS_LISTEN_VARIABLE = "BOCKD_METRICS_LISTEN"
POOL_DRIVER_VARIABLE = "BOCKD_POOL_DRIVER"
RBD_GATEWAY_VARIABLE = "BOCKD_RBD_GATEWAY"
CONFIG_VARIABLE = "BOCKD_CONFIG"

MAX_FILE_BYTES = 1 << 20
"""Ten thousand tenants fit; a device file or a disk image named by mistake does not."""

S = TypeVar("S", bound=Section)

DEFAULT = "default"
"""The source of a value that nobody gave."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings in force, and where each comes from."""

    settings: Settings
    file: Path | None
    """None: there is none, which is no error unless one was named."""
    sources: Mapping[str, str]
    """"FILE:LINE" or a variable's name for each key that was given, by its dotted name."""

    def source(self, key: str) -> str:
        """Return where a key's value comes from: an entry of `sources`, or DEFAULT."""
        return self.sources.get(key, DEFAULT)


def load(file: Path | None = None, environ: Mapping[str, str] | None = None) -> Loaded:
    """Load the settings from `file`, or else from the file that `find_file` finds. Environment
    variables override the file.

    Raises ConfigurationError for whatever is wrong with either.
    """
    env = os.environ if environ is None else environ
    chosen = file or find_file(env)
    found = decode(_read(chosen), str(chosen)) if chosen else Decoded(Settings(), {})
    settings, sources = found.settings, dict(found.sources)
    if "data_dir" not in sources:
        settings = replace(settings, data_dir=default_data_dir(env, as_root=os.geteuid() == 0))
    settings = _overridden(settings, sources, env)
    _check_gateway(settings, sources)
    return Loaded(settings, chosen, sources)


def _overridden(settings: Settings, sources: dict[str, str], env: Mapping[str, str]) -> Settings:
    """The settings with what environment variables say in their place, which is noted."""
    if given := env.get(DATA_VARIABLE):
        settings = replace(settings, data_dir=_data_dir_from(given))
        sources["data_dir"] = DATA_VARIABLE
    if NBD_LISTEN_VARIABLE in env:
        nbd = replace(settings.nbd, listen=_listen_from(env, NBD_LISTEN_VARIABLE))
        settings = replace(settings, nbd=nbd)
        sources["nbd.listen"] = NBD_LISTEN_VARIABLE
    if API_LISTEN_VARIABLE in env:
        api = replace(settings.api, listen=_listen_from(env, API_LISTEN_VARIABLE))
        settings = replace(settings, api=api)
        sources["api.listen"] = API_LISTEN_VARIABLE
    if METRICS_LISTEN_VARIABLE in env:
        metrics = replace(settings.metrics, listen=_listen_from(env, METRICS_LISTEN_VARIABLE))
        settings = replace(settings, metrics=metrics)
        sources["metrics.listen"] = METRICS_LISTEN_VARIABLE
    if POOL_DRIVER_VARIABLE in env:
        settings = replace(
            settings, pool=_given(settings.pool, "driver", env, POOL_DRIVER_VARIABLE)
        )
        sources["pool.driver"] = POOL_DRIVER_VARIABLE
    if RBD_GATEWAY_VARIABLE in env:
        settings = replace(settings, rbd=_given(settings.rbd, "gateway", env, RBD_GATEWAY_VARIABLE))
        sources["rbd.gateway"] = RBD_GATEWAY_VARIABLE
    return settings


def _check_gateway(settings: Settings, sources: Mapping[str, str]) -> None:
    """Raise ConfigurationError if a gateway of a pool in Ceph has no name. Nobody else needs
    one."""
    if settings.pool.driver is not PoolDriver.RBD:
        return
    try:
        settings.rbd.gateway_name  # noqa: B018 - raises for a host whose name is none
    except ValueError as error:
        problem = Problem(sources["pool.driver"], "rbd.gateway", str(error))
        raise ConfigurationError((problem,)) from None


def load_settings() -> Settings:
    """Load the settings in force, for callers that do not need to know where they come from."""
    return load().settings


def find_file(environ: Mapping[str, str]) -> Path | None:
    """Find the configuration file: $BOCKD_CONFIG if it is set (the file must exist then), else the
    default file if it exists, else None."""
    if chosen := environ.get(CONFIG_VARIABLE):
        return Path(chosen).absolute()
    usual = default_file(environ, as_root=os.geteuid() == 0)
    # Not `exists`: of a file that may not be looked at, its reader is told.
    return usual if os.path.lexists(usual) else None


def default_file(environ: Mapping[str, str], *, as_root: bool) -> Path:
    """Return /etc/bockd/bockd.toml for root, else $XDG_CONFIG_HOME/bockd/bockd.toml (~/.config)."""
    if as_root:
        return Path("/etc/bockd/bockd.toml")
    return _xdg(environ, "XDG_CONFIG_HOME", ".config") / "bockd" / "bockd.toml"


def default_data_dir(environ: Mapping[str, str], *, as_root: bool) -> Path:
    """Return /var/lib/bockd for root, else $XDG_DATA_HOME/bockd (~/.local/share/bockd)."""
    if as_root:
        return DEFAULT_DATA_DIR
    return _xdg(environ, "XDG_DATA_HOME", ".local/share") / "bockd"


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    if given := environ.get(variable):
        return Path(given).absolute()
    return Path(environ.get("HOME", "/")) / default


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        reason = f"cannot read the configuration: {error.strerror}"
        raise ConfigurationError((Problem(str(path), "", reason),)) from error
    if len(content) > MAX_FILE_BYTES:
        reason = f"this is no configuration: it is larger than {MAX_FILE_BYTES >> 20} MiB"
        raise ConfigurationError((Problem(str(path), "", reason),))
    return content


def _data_dir_from(given: str) -> Path:
    path = Path(given).absolute()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        reason = f"{str(path)!a} is not UTF-8, which a path in a URI must be"
        raise ConfigurationError((Problem(DATA_VARIABLE, "", reason),)) from None
    return path


def _listen_from(environ: Mapping[str, str], variable: str) -> Address | None:
    try:
        return parse_address(environ[variable])
    except ValueError as error:
        raise ConfigurationError((Problem(variable, "", str(error)),)) from None


def _given(section: S, name: str, environ: Mapping[str, str], variable: str) -> S:
    """A section with one key from a variable, which is read as the file's text would be."""
    read = section_fields(type(section))[name].metadata[READ]
    try:
        return replace(section, **{name: read(environ[variable])})
    except ValueError as error:
        raise ConfigurationError((Problem(variable, "", str(error)),)) from None


# -- looking at settings ---------------------------------------------------------------------------


def walk(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[str, object]]:
    """Yield every key by its dotted name, with its value as the file would have it (None:
    unset)."""
    for one in fields(section):
        value = getattr(section, one.name)
        here = (*path, one.name)
        if isinstance(value, Section):
            yield from walk(value, here)
        elif isinstance(value, Mapping):
            for name, entry in value.items():
                if isinstance(entry, Section):
                    yield from walk(entry, (*here, name))
                else:
                    yield dotted((*here, name)), entry
        else:
            yield dotted(here), plain(here, value)


def plain(path: tuple[str, ...], value: object) -> object:
    """Convert a value to a type of TOML. A listener that is None is written as the word "none"."""
    if value is None and path[-1] == "listen":
        return "none"
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Address | Path) else value
