"""`bock volume` and `bock snapshot` against a running daemon."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .daemon import Daemon, Terminal

MOST_TRIES = 20


def test_life_of_a_volume(daemon: Daemon) -> None:
    out = daemon.bock("volume", "create", "life", "--size", "10GiB")
    assert re.fullmatch(
        r"created volume \d+ \(life\), 10 GiB\nconnect to it at nbd\+unix://\S+\n", out
    )
    shown = daemon.bock_json("volume", "show", "life")
    assert shown["size_bytes"] == 10 << 30
    assert shown["space"] == {"exclusive_bytes": 0, "shared_bytes": 0}
    by_id = daemon.bock("volume", "show", str(shown["id"]))
    assert re.search(r"^size +10 GiB \(10737418240 bytes\)$", by_id, re.MULTILINE)
    assert daemon.bock("volume", "extend", "life", "--size", "11G").endswith("now has 11 GiB\n")
    assert re.search(r"life +11 GiB +available", daemon.bock("volume", "list"))
    assert daemon.bock("volume", "delete", "life").startswith("deleted volume")
    assert "life" not in daemon.names()


def test_life_of_a_snapshot(daemon: Daemon) -> None:
    origin = daemon.bock_json("volume", "create", "origin", "--size", "1M")
    taken = daemon.bock_json("snapshot", "create", "origin", "first")
    assert taken["volume"] == origin["id"]
    unnamed = {daemon.bock_json("snapshot", "create", "origin")["name"] for _ in range(3)}
    assert len(unnamed) == 3
    assert all(re.fullmatch(r"origin-\d{8}-\d{6}(-\d)?", name) for name in unnamed)
    listed = daemon.bock_json("snapshot", "list", "--volume", "origin")
    assert {snapshot["name"] for snapshot in listed} == {"first", *unnamed}
    assert re.search(r"first +1 MiB +origin +available ", daemon.bock("snapshot", "list"))
    assert "uri" in daemon.bock("snapshot", "show", str(taken["id"]))
    clone = daemon.bock_json("volume", "create", "of-first", "--from-snapshot", "first")
    assert (clone["from_snapshot"], clone["size_bytes"]) == (taken["id"], 1 << 20)
    assert "(origin) holds what" in daemon.bock("snapshot", "revert", "first")
    daemon.bock("volume", "delete", "origin")
    assert f"{origin['id']} (deleted)" in daemon.bock("snapshot", "list")
    daemon.bock("snapshot", "delete", "first")
    assert "no snapshot 'first'" in daemon.refusal("snapshot", "show", "first")


def test_a_clone_of_a_volume_leaves_no_snapshot(daemon: Daemon) -> None:
    origin = daemon.bock_json("volume", "create", "seed-disk", "--size", "1M")
    with daemon.connected(origin["uri"], "seed-disk"):
        told = daemon.bock("volume", "clone", "seed-disk", "seed-copy")
    assert re.match(
        rf"cloned volume {origin['id']} \(seed-disk\) as volume \d+ \(seed-copy\), 1 MiB\n"
        r"connect to it at nbd\+unix://",
        told,
    )
    assert daemon.bock_json("snapshot", "list", "--volume", "seed-disk") == []
    shown = daemon.bock("volume", "show", "seed-copy")
    assert re.search(rf"^clone of +volume {origin['id']}$", shown, re.MULTILINE)
    assert "'seed-copy' exists" in daemon.refusal("volume", "clone", "seed-disk", "seed-copy")
    larger = daemon.bock_json("volume", "clone", "seed-disk", "seed-large", "--size", "2M")
    assert (larger["size_bytes"], larger["from_volume"]) == (2 << 20, origin["id"])
    told = daemon.refusal("volume", "clone", "seed-large", "seed-less", "--size", "1M")
    assert "cannot be smaller" in told
    for name in ("seed-disk", "seed-copy", "seed-large"):
        daemon.bock("volume", "delete", name)


@pytest.mark.parametrize("name", ["[bold]markup[/bold]", "a/b c", "..", ":smile:", "größe %41"])
def test_awkward_names(daemon: Daemon, name: str) -> None:
    daemon.bock("volume", "create", name, "--size", "1M")
    assert name in daemon.bock("volume", "list")
    assert daemon.bock_json("volume", "show", name)["name"] == name
    assert daemon.bock_json("snapshot", "list", "--volume", name) == []
    daemon.bock("volume", "delete", name)


def test_a_name_that_fits_several(daemon: Daemon) -> None:
    """The API lets names repeat; bock makes no second one, and refuses to guess."""
    with daemon.storage() as storage:
        # As another client of the API would.
        body = {"volume": {"display_name": "twin", "size": 1}}
        twins = [storage.post("os-volumes", body)["volume"]["id"] for _ in range(2)]
    told = daemon.refusal("volume", "delete", "twin")
    assert told == f"bock: 2 volumes are named 'twin': give an id ({twins[0]}, {twins[1]})"
    assert "exists already" in daemon.refusal("volume", "create", "twin", "--size", "1M")
    uris = [daemon.bock_json("volume", "show", str(id_))["uri"] for id_ in twins]
    assert [uri.partition("?")[0] for uri in uris] == [
        "nbd+unix:///twin",
        f"nbd+unix:///twin-{twins[1]}",
    ]
    daemon.bock("volume", "delete", str(twins[0]))
    assert daemon.bock_json("volume", "show", "twin")["id"] == twins[1]
    daemon.bock("volume", "delete", "twin")


def test_a_volume_without_a_display_name(daemon: Daemon) -> None:
    with daemon.storage() as storage:
        volume = storage.post("os-volumes", {"volume": {"size": 1}})["volume"]["id"]
    name = f"volume-{volume}"
    assert name in daemon.names()
    assert daemon.bock_json("volume", "show", name)["id"] == volume
    daemon.bock("volume", "delete", name)


def test_a_list_goes_on_beyond_a_page(daemon: Daemon) -> None:
    """Lists go on where the API's page ends."""
    with daemon.storage() as storage:
        storage.page = 2
        made = [storage.create_volume(f"page-{number}", 1 << 20).id for number in range(5)]
        listed = [volume.id for volume in storage.list_volumes()]
        assert [id_ for id_ in listed if id_ in made] == made
        for id_ in made:
            storage.delete_volume(id_)


def test_attachments(daemon: Daemon) -> None:
    volume = daemon.bock_json("volume", "create", "moved", "--size", "1M")["id"]
    assert "is not attached" in daemon.refusal("attachment", "show", "moved")
    assert "is not attached" in daemon.refusal("attachment", "delete", "moved")
    made = daemon.bock("attachment", "create", "moved", "vm-7").splitlines()
    assert made[0] == f"attached volume {volume} to vm-7 as /dev/vdb"
    title, way_in = made[1].rsplit(" ", 1)
    assert title.strip() == "unix uri"  # this daemon does not listen on TCP
    at = {"volume": volume, "server": "vm-7", "device": "/dev/vdb"}
    extra: dict[str, object] = {
        "kind": "plain",
        "uri": None,
        "uris": [],
        "unix_uri": way_in,
        "connections": 0,
    }
    assert daemon.bock_json("attachment", "show", "moved") == at | extra
    shown = daemon.bock("attachment", "show", "moved")
    assert f"unix uri  {way_in}\n" in shown
    with daemon.connected(way_in, "moved"):
        assert daemon.bock_json("attachment", "show", "moved")["connections"] == 1
    unasked: dict[str, object] = {
        "kind": None,
        "uri": None,
        "uris": [],
        "unix_uri": None,
        "connections": 0,
    }
    assert daemon.bock_json("attachment", "list") == [at | unasked]
    assert daemon.bock_json("attachment", "list", "vm-8") == []
    assert re.search(r"moved +vm-7 +/dev/vdb", daemon.bock("attachment", "list", "vm-7"))
    assert re.search(r"attached to +vm-7 as /dev/vdb", daemon.bock("volume", "show", "moved"))
    daemon.bock("snapshot", "create", "moved", "moved-then")
    for refused in (
        ("attachment", "create", "moved", "vm-8"),
        ("volume", "delete", "moved"),
        ("snapshot", "revert", "moved-then"),
    ):
        told = daemon.refusal(*refused)
        assert f"volume {volume} (moved) is in-use, attached to vm-7 as /dev/vdb" in told
        assert f"'bock attachment delete {volume}'" in told
        assert "Invalid" not in told
    assert "detached volume" in daemon.bock("attachment", "delete", "moved")
    taken = daemon.bock_json("attachment", "create", "moved", "vm-8", "--device", "/dev/vdf")
    assert taken["device"] == "/dev/vdf"
    with daemon.connected(taken["unix_uri"], "moved"):
        daemon.bock("attachment", "delete", "moved", "--force")
    for bad in ("vm 7", "a/b", "v" * 256):
        assert "is no server" in daemon.misuse("attachment", "create", "moved", bad)
    daemon.bock("snapshot", "delete", "moved-then")
    daemon.bock("volume", "delete", "moved")


def test_refusals_say_what_to_do(daemon: Daemon) -> None:
    created = daemon.bock_json("volume", "create", "busy", "--size", "2M")
    assert "'busy' exists" in daemon.refusal("volume", "create", "busy", "--size", "1M")
    assert "only grow" in daemon.refusal("volume", "extend", "busy", "--size", "1M")
    assert "no volume 'nobody'" in daemon.refusal("volume", "delete", "nobody")
    assert "no volume '99999'; 'bock volume list'" in daemon.refusal("volume", "delete", "99999")
    assert "no snapshot '99999'; 'bock snapshot list'" in daemon.refusal(
        "snapshot", "show", "99999"
    )
    with daemon.connected(created["uri"], "busy"):
        told = daemon.refusal("volume", "delete", "busy")
        assert f"volume {created['id']} (busy) is used by 1 client" in told
        assert f"'bock stat {created['id']}'" in told
        shown = daemon.bock_json("volume", "show", "busy")
        assert (shown["status"], shown["connections"]) == ("available", 1)
    daemon.bock("volume", "delete", "busy")


def test_without_a_daemon_the_error_names_its_socket(daemon: Daemon, tmp_path: Path) -> None:
    result = daemon.run("bock", "volume", "list", BOCKD_DATA=str(tmp_path))
    assert result.status == 1
    assert str(tmp_path / "api.sock") in result.err
    assert "bockd serve" in result.err
    assert result.err.count("\n") == 1


def test_deleting_asks_at_a_terminal(daemon: Daemon) -> None:
    daemon.bock("volume", "create", "asked", "--size", "1M")
    refused = Terminal(daemon, "bock", "volume", "delete", "asked")
    refused.wait_for("(asked, 1 MiB) and its data? [y/N]: ")
    refused.type("n\n")
    assert refused.end() == 1
    assert "asked" in daemon.names()
    agreed = Terminal(daemon, "bock", "volume", "delete", "asked")
    agreed.wait_for("[y/N]: ")
    agreed.type("y\n")
    assert agreed.end() == 0
    assert "asked" not in daemon.names()
    daemon.bock("volume", "create", "asked", "--size", "1M")
    assert Terminal(daemon, "bock", "volume", "delete", "asked", "--yes").end() == 0


@pytest.mark.parametrize("hold", ["a move", None])
def test_a_release_leaves_a_hold_that_was_not_asked_about(daemon: Daemon, hold: str | None) -> None:
    """The volume is held for another reason while the question waits for its answer."""
    volume = daemon.bock_json("volume", "create", f"asked-{hold}", "--size", "1M")["id"]
    with daemon.storage() as storage:
        if hold is not None:
            storage.hold_volume(volume, hold)
        agreed = Terminal(daemon, "bock", "volume", "release", str(volume))
        agreed.wait_for("[y/N]: ")
        storage.hold_volume(volume, "another one", instead_of=hold)
        agreed.type("y\n")
        assert agreed.end() == 1
        assert "held for another reason now (another one)" in agreed.seen
        assert storage.show_volume(volume).hold == "another one"


def test_info_names_the_data_directory(daemon: Daemon) -> None:
    assert daemon.bock_json("info")["data_dir"] == str(daemon.data_dir)
    assert re.search(rf"^data directory +{daemon.data_dir}$", daemon.bock("info"), re.MULTILINE)
    assert daemon.bock("--version").startswith("bock, version ")


def test_completion(daemon: Daemon, tmp_path: Path) -> None:
    daemon.bock("volume", "create", "completed", "--size", "1M")
    daemon.bock("snapshot", "create", "completed", "complete-too")

    def complete(words: str, **more: str) -> str:
        last = str(len(words.split(" ")) - 1)
        result = daemon.run(
            "bock", _BOCK_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=last, **more
        )
        assert result.err == ""
        return result.out

    def complete_in_time(words: str) -> str:
        """What is offered once the daemon answers fast enough, which a busy machine's may not."""
        tries = (complete(words) for _ in range(MOST_TRIES))
        return next((offered for offered in tries if offered != "\n"), "")

    assert complete_in_time("bock volume show comp") == "plain,completed\n"
    assert complete_in_time("bock snapshot delete comp") == "plain,complete-too\n"
    assert complete("bock volume ex") == "plain,export\nplain,extend\n"
    assert complete("bock volume show comp", BOCKD_DATA=str(tmp_path)) == "\n"
    for shell in ("bash", "zsh", "fish"):
        assert "_BOCK_COMPLETE" in daemon.bock("completion", shell)
    daemon.bock("volume", "delete", "completed")


def test_help_needs_neither_daemon_nor_heavy_modules(daemon: Daemon) -> None:
    code = (
        "import sys, bockd.cli.bock, bockd.cli.bockd\n"
        "print(sorted({'fastapi', 'httpx', 'rich', 'trio', 'lmdb'} & sys.modules.keys()))"
    )
    assert daemon.run("python", "-c", code).out == "[]\n"
    out = daemon.bock("--help")
    commands = {"adopt", "attachment", "completion", "credentials", "info", "limits", "snapshot"}
    for command in (*commands, "stat", "volume"):
        assert command in out
