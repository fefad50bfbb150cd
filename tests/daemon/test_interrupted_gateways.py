"""Daemons of one pool, each with a name of its own, that die in the middle of something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from bockd.config.rbd import RbdSettings
from bockd.failpoints import Failpoint
from tests.daemon.process import Bockd, program
from tests.drivers.rbd.running import configuration

ROOM_UNKNOWN = "the room of the Ceph cluster is not known"
"""The tests' cluster has no manager, which would say."""

Make = Callable[[str], Bockd]


@pytest.fixture
def gateway(rbd_namespace: RbdSettings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Makes a gateway of one pool, by its name; it is not started. `NAME@POINT` dies there."""
    made: list[Bockd] = []

    def make(name: str) -> Bockd:
        name, _, point = name.partition("@")
        directory = tmp_path_factory.mktemp(name)
        config = directory / "bockd.toml"
        settings = replace(rbd_namespace, gateway=name)
        config.write_text(configuration(settings, directory / "data"))
        one = Bockd(
            directory / "data",
            directory / "log",
            api_listen="127.0.0.1:0",
            config=config,
        )
        one.dies_at(point or None)
        one.expect_in_log(ROOM_UNKNOWN)
        if made:
            one.data_dir.mkdir(mode=0o700, exist_ok=True)
            given = (made[0].data_dir / "credentials.json").read_text()
            (one.data_dir / "credentials.json").write_text(given)
        made.append(one)
        return one

    yield make
    for one in made:
        one.end()


def names(daemon: Bockd) -> list[str]:
    return [one["name"] for one in daemon.bock("gateway", "list")]


def status(daemon: Bockd, volume: str) -> str:
    """As the tenant sees it."""
    found: str = daemon.bock("volume", "show", volume)["status"]
    return found


def test_two_daemons_must_not_have_one_name(gateway: Make) -> None:
    first = gateway("gw1").start()
    second = gateway("gw1")
    assert "a gateway named 'gw1' serves this pool already" in second.refusal_to_start()
    assert names(first) == ["gw1"]
    first.kill()
    second.start()
    assert names(second) == ["gw1"]
    second.stop()


@pytest.mark.parametrize(
    ("point", "command", "between", "after"),
    [
        (
            Failpoint.API_ATTACHING,
            ("attachment", "create", "disk", "web1"),
            "attaching",
            "available",
        ),
        (Failpoint.API_DELETING_VOLUME, ("volume", "delete", "disk"), "deleting", None),
    ],
)
def test_a_daemon_that_dies_in_the_middle_resolves_it_itself(
    gateway: Make, point: Failpoint, command: tuple[str, ...], between: str, after: str | None
) -> None:
    """At its next start; the start of another one leaves it alone."""
    other = gateway("gw2").start()
    other.bock("volume", "create", "disk", "--size", "8MiB")
    dying = gateway(f"gw1@{point}").start()
    assert dying.run(program("bock"), *command).status != 0
    dying.kill()
    other.restart()
    assert status(other, "disk") == between
    assert names(other) == ["gw1", "gw2"]
    again = gateway("gw1").start()
    if after is None:
        assert other.bock("volume", "list") == []
    else:
        assert status(other, "disk") == after
    again.stop()
    other.stop()
