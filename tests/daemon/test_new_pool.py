"""Where a pool is made by itself, where on purpose only, and where not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from bockd.drivers.local import newpool
from bockd.drivers.local.newpool import check_start, make_pool
from bockd.errors import ConflictError, DamagedError, InvalidRequestError

from .process import Bockd, program, serving

DIRECTORIES = ("absent", "empty", "new file system", "begun", "foreign", "pool")


def directory(tmp_path: Path, kind: str) -> Path:
    """A data directory as somebody may have it."""
    root = tmp_path / "data"
    if kind != "absent":
        root.mkdir()
    match kind:
        case "new file system":
            (root / "lost+found").mkdir()
        case "begun":
            (root / "locks").mkdir()
            (root / "index").mkdir()
        case "foreign":
            (root / "thesis.txt").write_text("x")
        case "pool":
            make_pool(root)
    return root


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_default_directory_becomes_a_pool(tmp_path: Path, kind: str) -> None:
    check_start(directory(tmp_path, kind), is_default=True)


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_directory_that_was_named_becomes_one_if_it_is_new(tmp_path: Path, kind: str) -> None:
    """What is there may be a mount point without its file system."""
    root = directory(tmp_path, kind)
    if kind in ("absent", "begun", "pool"):
        check_start(root, is_default=False)
        return
    with pytest.raises(InvalidRequestError, match="mount it first") as refused:
        check_start(root, is_default=False)
    assert (f"'bockd init {root}' makes a new pool" in str(refused.value)) == (kind != "foreign")


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_a_pool_is_made_on_purpose_where_nothing_is(tmp_path: Path, kind: str) -> None:
    root = directory(tmp_path, kind)
    if kind in ("foreign", "pool"):
        expected = InvalidRequestError if kind == "foreign" else ConflictError
        with pytest.raises(expected, match=r"thesis\.txt|has a pool already"):
            make_pool(root)
        return
    make_pool(root)
    check_start(root, is_default=False)


@pytest.mark.parametrize("left", ["layers", "journal", "ballast", "credentials.json"])
@pytest.mark.parametrize("how", ["index gone", "index empty"])
def test_what_is_left_of_a_pool_is_not_overwritten(tmp_path: Path, left: str, how: str) -> None:
    """Whichever part: a new index would be the end of the old pool's data and credentials."""
    root = directory(tmp_path, "pool")
    (root / "credentials.json").write_text("{}")
    for entry in root.iterdir():
        if entry.name not in (left, "index", "locks"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    if how == "index gone":
        shutil.rmtree(root / "index")
    else:
        (root / "index" / "data.mdb").write_bytes(b"")
    for is_default in (False, True):
        with pytest.raises(DamagedError, match=f"'{left}' is left of.*restore the index"):
            check_start(root, is_default=is_default)
    with pytest.raises(DamagedError):
        make_pool(root)


@pytest.mark.parametrize("below", [".", "pool"])
@pytest.mark.parametrize("is_default", [True, False])
def test_nothing_is_made_below_a_mount_point_of_fstab(
    tmp_path: Path, below: str, is_default: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is mounted. One that is mounted is no hindrance, nor is one elsewhere."""
    mount_point = tmp_path / "big disk"
    mount_point.mkdir()
    fstab = tmp_path / "fstab"
    escaped = str(mount_point).replace(" ", "\\040")
    fstab.write_text(
        f"# {tmp_path} in a comment\n/dev/x / ext4 defaults 0 1\nUUID=1 none swap sw 0 0\n"
        f"UUID=2 {tmp_path}/other ext4 defaults 0 2\n\nUUID=3 {escaped} xfs defaults 0 2\n"
    )
    monkeypatch.setattr(newpool, "FSTAB", fstab)
    with pytest.raises(InvalidRequestError, match=f"nothing is mounted at {mount_point}"):
        check_start(mount_point / below, is_default=is_default)
    check_start(tmp_path / "big disk and more", is_default=is_default)
    make_pool(mount_point / below)
    check_start(mount_point / below, is_default=is_default)


def test_a_daemon_on_an_unmounted_mount_point(tmp_path: Path) -> None:
    """It is refused, and nothing is made; `bockd init` makes the pool that it then serves."""
    root = tmp_path / "data"
    root.mkdir()
    daemon = Bockd(root, tmp_path / "log")
    refusal = daemon.refusal_to_start()
    assert f"the data directory {root} is empty" in refusal
    assert list(root.iterdir()) == []
    result = daemon.run(program("bockd"), "init")
    assert (result.status, result.out) == (0, f"made a pool in {root}\nNext: bockd serve\n")
    assert "has a pool already" in daemon.run(program("bockd"), "init").err
    elsewhere = tmp_path / "elsewhere"
    said = daemon.run(program("bockd"), "init", elsewhere).out
    assert said.endswith(f"Next: BOCKD_DATA={elsewhere} bockd serve\n")
    with serving(root) as running:
        running.bock("volume", "create", "v", "--size", "1M")
        running.check()
