"""`bock server`: what the operator registers, and what the API then says of it."""

from __future__ import annotations

import re

from tests.cli.daemon import Daemon


def test_added_listed_shown_removed(daemon: Daemon) -> None:
    assert daemon.bock("server", "add", "host1", "--kind", "host") == "server host1 is a host\n"
    vm = daemon.bock_json("server", "add", "vm1", "--kind", "vm", "--qmp", "/run/vm1.sock")
    assert (vm["kind"], vm["qmp_socket"], vm["tenant"]) == ("vm", "/run/vm1.sock", None)
    mine = daemon.bock_json("server", "add", "mine", "--kind", "plain", "--tenant", "demo")
    assert [one["name"] for one in daemon.bock_json("server", "list")] == ["host1", "mine", "vm1"]
    assert re.search(r"mine +plain +" + mine["tenant"], daemon.bock("server", "list"))
    assert daemon.bock_json("server", "show", "vm1") == vm
    assert re.search(r"QMP socket +/run/vm1.sock\n", daemon.bock("server", "show", "vm1"))
    for name in ("host1", "mine", "vm1"):
        assert daemon.bock("server", "remove", name) == f"removed server {name}\n"
    assert daemon.bock_json("server", "list") == []


def test_refusals(daemon: Daemon) -> None:
    daemon.bock("server", "add", "one", "--kind", "host")
    assert "already" in daemon.refusal("server", "add", "one", "--kind", "plain")
    assert "needs the path" in daemon.misuse("server", "add", "two", "--kind", "vm")
    assert "has no QMP" in daemon.misuse("server", "add", "t", "--kind", "host", "--qmp", "/q")
    assert "is no server" in daemon.misuse("server", "add", "a b", "--kind", "host")
    assert "no tenant" in daemon.refusal("server", "add", "t", "--kind", "host", "--tenant", "x")
    assert "no server" in daemon.refusal("server", "show", "three")
    daemon.bock("volume", "create", "held", "--size", "1M")
    daemon.bock("attachment", "create", "held", "one")
    assert "is attached to server one" in daemon.refusal("server", "remove", "one")
    assert daemon.bock_json("attachment", "show", "held")["kind"] == "host"
    daemon.bock("attachment", "delete", "held")
    daemon.bock("server", "remove", "one")
    daemon.bock("volume", "delete", "held")
