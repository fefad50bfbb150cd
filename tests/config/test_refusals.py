"""What is wrong with a file is said with its line, its key and the reason; all of it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from bockd.config.decode import decode
from bockd.config.load import MAX_FILE_BYTES, load
from bockd.config.problems import ConfigurationError

REFUSED: dict[str, tuple[str, str]] = {
    "no TOML": ("a = 1\nb = \n", "f:2: this is not TOML: Invalid value (column 5)"),
    "no TOML at the end": ('a = 1\nb = """\n', "f:3: this is not TOML: Unterminated string"),
    "twice": ('log_level = "info"\nlog_level = "info"', "f:2: this is not TOML: Cannot overwrite"),
    "a table twice": (
        "[trash]\nkeep_hours = 0\n[trash]\nkeep_hours = 168\n",
        "f:3: this is not TOML: Cannot declare ('trash',) twice; that table begins above already",
    ),
    "deep": ("a = " + "[" * 100_000, "f:1: brackets are nested too deeply"),
    "a byte order mark": (
        "\ufefflog_level = 'info'",
        "f:1: the file begins with a byte order mark",
    ),
    "unknown key": ("\nlog_levl = 1", "f:2: log_levl: unknown key; did you mean log_level?"),
    "unknown section": ("[volumes]\nx = 1", "f:1: volumes: unknown key; here may stand: data_dir,"),
    "unknown key in a section": (
        "[nbd]\n\nport = 1",
        "f:3: nbd.port: unknown key; here may stand:",
    ),
    "an awkward key": ('"a\\nb" = 1', 'f:1: "a\\nb": unknown key'),
    "section in one piece": ("nbd.listen = 1", "f:1: nbd.listen: expected a string, found an int"),
    "section is a value": ("nbd = 1", "f:1: nbd: expected a table, found an integer"),
    "section is many": ("[[nbd]]", "f:1: nbd: expected a table, found an array"),
    "no path": ("data_dir = 'pool'", "f:1: data_dir: 'pool' is not an absolute path"),
    "home": ("data_dir = '~/pool'", "f:1: data_dir: '~/pool' is not an absolute path"),
    "NUL": ('data_dir = "/a\\u0000"', "f:1: data_dir: '/a\\x00' holds a NUL character"),
    "path is a number": ("data_dir = 7", "f:1: data_dir: expected a string, found an integer"),
    "log level": ("log_level = 'loud'", "f:1: log_level: 'loud' is none of debug, info, warning"),
    "log level is a date": ("log_level = 2012-01-01", "expected a string, found a date or time"),
    "no port": ("[nbd]\nlisten = '::1'", "f:2: nbd.listen: '::1' is ambiguous: write an IPv6"),
    "port too large": (
        "[api]\nlisten = 'h:65536'",
        "'h:65536' is not HOST:PORT, nor the word none",
    ),
    "dashboard without TLS": (
        "[dashboard]\nlisten = '192.0.2.1:80'",
        "f:2: dashboard.listen: whoever listens could do all that the operator can: set tls =",
    ),
    "dashboard everywhere": (
        "[dashboard]\ntls = 'require'\nlisten = '[::]:443'\n"
        "[tls]\ncertificate_file = '/c'\nkey_file = '/k'",
        "f:3: dashboard.listen: is all addresses: public_url must say which one browsers use",
    ),
    "dashboard in the clear": (
        "[dashboard]\nlisten = '127.0.0.1:80'\npublic_url = 'http://pool.example.org'",
        "f:3: dashboard.public_url: must be https, unless browsers are on this machine",
    ),
    "dashboard nearly here": (
        "[dashboard]\npublic_url = 'http://xlocalhost'",
        "f:2: dashboard.public_url: must be https",
    ),
    "port in other digits": ("[api]\nlisten = 'h:٣'", "'h:٣' is not HOST:PORT"),
    "seconds": ("[identity]\ntoken_seconds = 59", "f:2: identity.token_seconds: 59 is not between"),
    "true is no number": (
        "[identity]\ntoken_seconds = true",
        "expected an integer, found a Boolean",
    ),
    "float": ("[quota]\nvolumes = 1.0", "f:2: quota.volumes: expected an integer, found a float"),
    "quota": ("[quota]\nvolumes = -2", "f:2: quota.volumes: -2 is not between -1 and"),
    "huge": (f"[quota]\nvolumes = {'9' * 4000}", "999... is not between -1 and"),
    "tenant's quota": (
        "[quota.tenants]\na.volumes = 'x'",
        "f:2: quota.tenants.a.volumes: expected",
    ),
    "tenant's unknown": ('[quota.tenants."a b"]\nx = 1', 'f:2: quota.tenants."a b".x: unknown key'),
    "tenant is a number": ("[quota.tenants]\na = 1", "f:2: quota.tenants.a: expected a table"),
    "tenant without a name": ("[quota.tenants.'']", "'' is not 1 to 255 printable characters"),
    "no URL": ("[keystone]\nurl = 'keystone:5000'", "f:2: keystone.url: 'keystone:5000' is not a"),
    "URL with a password": ("[keystone]\nurl = 'http://u:p@h'", "must not hold a user name or"),
    "URL with a port": ("[keystone]\nurl = 'http://h:x'", "'http://h:x' is not a URL: Port could"),
    "URL with a bracket": ("[keystone]\nurl = 'http://[h'", "'http://[h' is not a URL: Invalid"),
    "URL with a query": ("[keystone]\nurl = 'http://h?x'", "must end before any ? or #"),
    "URL with a path": ("[catalog]\npublic_url = 'http://h/v1'", "must be scheme and host only"),
    "a zone's URL": ("[catalog.zones]\nx = 'h'", "f:2: catalog.zones.x: 'h' is not a URL"),
    "own zone": (
        "[catalog]\nregion = 'r'\n[catalog.zones]\nr = 'http://h'",
        "f:3: catalog.zones: 'r' is this daemon's own region",
    ),
    "server of no kind": ("[servers.web1]\ntenant = 'x'", "f:1: servers.web1.kind: is missing"),
    "server's kind": ("[servers.a]\nkind = 'x'", "f:2: servers.a.kind: 'x' is none of host, vm,"),
    "vm without its socket": ("[servers.a]\nkind = 'vm'", "f:2: servers.a.kind: a vm needs the"),
    "host with a socket": (
        "[servers.a]\nkind = 'host'\nqmp = '/q'",
        "f:3: servers.a.qmp: a host has no QMP socket",
    ),
    "server's name": ("[servers.'a b']\nkind = 'host'", "f:1: servers: 'a b' is not 1 to 255"),
    "flag": ("[keystone]\nlocal = 1", "f:2: keystone.local: expected true or false, found an int"),
    "no service user": ("[keystone]\nurl = 'http://h'", "f:2: keystone.url: keystone.username is"),
    "no Keystone": ("[keystone]\nusername = 'u'", "f:2: keystone.username: means nothing without"),
    "nobody": ("[keystone]\nlocal = false", "f:2: keystone.local: nobody could get in"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_line_and_reason(name: str) -> None:
    text, expected = REFUSED[name]
    with pytest.raises(ConfigurationError) as caught:
        decode(text.encode(), "f")
    (problem,) = caught.value.problems
    assert expected in str(problem)
    assert "\n" not in str(problem)
    assert len(str(problem)) < 300


def test_not_utf_8() -> None:
    with pytest.raises(ConfigurationError, match=r"^f:2: this is not UTF-8 text"):
        decode(b"# a\n# \xff\n", "f")


def test_all_problems_in_the_order_of_the_file() -> None:
    text = "x = 1\n[quota]\nvolumes = 'a'\nsnapshots = 'b'\n[nbd]\ny = 1\n[api]\nlisten = 1\n"
    with pytest.raises(ConfigurationError) as caught:
        decode(text.encode(), "f")
    assert [problem.source for problem in caught.value.problems] == [
        "f:1", "f:3", "f:4", "f:6", "f:8",
    ]  # fmt: skip
    assert str(caught.value).startswith("f:1: x: unknown key")
    assert str(caught.value).endswith("(and 4 more: see `bockd config check`)")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, reason in {
        tmp_path / "none": "No such file or directory",
        tmp_path: "Is a directory",
    }.items():
        with pytest.raises(ConfigurationError) as caught:
            load(path, {})
        assert str(caught.value) == f"{path}: cannot read the configuration: {reason}"
    with pytest.raises(ConfigurationError, match="larger than 1 MiB"):
        load(Path("/dev/zero"), {})
    large = tmp_path / "large"
    large.write_bytes(b"#" * MAX_FILE_BYTES)
    load(large, {})
