"""The specification's rules as tables: statuses, sizes, devices, texts, pages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest

from bockd.blockstorage import rules
from bockd.blockstorage.contract import Page, Status
from bockd.errors import (
    BockdError,
    ConflictError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    OverLimitError,
)
from bockd.model import GIB, NodeKind

ALLOWED = {
    ("creating", "available"),
    ("creating", "error"),
    ("available", "attaching"),
    ("attaching", "in-use"),
    ("attaching", "available"),
    ("in-use", "detaching"),
    ("detaching", "available"),
    ("detaching", "in-use"),
    ("available", "deleting"),
    ("error", "deleting"),
    ("error_deleting", "deleting"),
    ("deleting", "available"),
    ("deleting", "error"),
    ("deleting", "error_deleting"),
    ("available", "maintenance"),
    ("maintenance", "available"),
    ("maintenance", "deleting"),
    ("deleting", "maintenance"),
}
SNAPSHOTS_NEVER = {"attaching", "in-use", "detaching", "maintenance"}


@pytest.mark.parametrize(("old", "new"), list(product(Status, Status)))
@pytest.mark.parametrize("kind", NodeKind)
def test_a_status_changes_only_as_its_lifecycle_says(
    kind: NodeKind, old: Status, new: Status
) -> None:
    allowed = (old.value, new.value) in ALLOWED
    if kind is NodeKind.SNAPSHOT:
        allowed = allowed and not SNAPSHOTS_NEVER & {old.value, new.value}
    if allowed:
        rules.check_move(kind, 5, old, new)
    else:
        with pytest.raises(InvalidStateError, match=f"^Invalid {kind}: {kind} 5: .*{old}$"):
            rules.check_move(kind, 5, old, new)


@pytest.mark.parametrize(("status", "force"), list(product(Status, (False, True))))
def test_what_may_be_snapshotted(status: Status, force: bool) -> None:
    allowed = (Status.AVAILABLE, Status.MAINTENANCE)
    if status in allowed or (status is Status.IN_USE and force):
        rules.check_can_be_snapshotted(5, status, force=force)
    else:
        with pytest.raises(InvalidStateError, match=r"^Invalid volume: "):
            rules.check_can_be_snapshotted(5, status, force=force)


@pytest.mark.parametrize("size", [1, 2, 16383, 16384])
def test_sizes_that_are_kept(size: int) -> None:
    assert rules.check_size(size) == size


@pytest.mark.parametrize("size", [0, -1, 16385, pytest.param(10**5000, id="huge")])
def test_sizes_that_are_refused(size: int) -> None:
    with pytest.raises(InvalidRequestError, match="out of range"):
        rules.check_size(size)


@pytest.mark.parametrize(
    ("size_bytes", "size_gib"), [(1, 1), (GIB, 1), (GIB + 4096, 2), (16384 * GIB, 16384)]
)
def test_the_size_recorded_for_a_volume_of_the_pool(size_bytes: int, size_gib: int) -> None:
    assert rules.size_in_gib(size_bytes) == size_gib


@pytest.mark.parametrize(
    ("wanted", "taken", "expected"),
    [
        (None, [], "/dev/vdb"),
        (None, ["/dev/vdb", "/dev/sdc"], "/dev/vdd"),
        (None, ["/dev/vdc"], "/dev/vdb"),
        (None, [f"/dev/vd{c}" for c in "bcdefghijklmnopqrstuvwxyz"], "/dev/vdaa"),
        ("/dev/sdf", [], "/dev/sdf"),
        ("/dev/vda", ["/dev/vdb"], "/dev/vda"),
        ("/dev/xvdab", ["/dev/vda"], "/dev/xvdab"),
        ("/dev/hdc", [], "/dev/hdc"),
        ("/dev/vdf", ["/dev/vdf"], ConflictError),
        ("/dev/sdf", ["/dev/vdf"], ConflictError),
        ("vdf", [], InvalidRequestError),
        ("/dev/", [], InvalidRequestError),
        ("/dev/vdF", [], InvalidRequestError),
        ("/dev/vdf1", [], InvalidRequestError),
        ("/dev/vdabc", [], InvalidRequestError),
        ("/dev/../etc", [], InvalidRequestError),
        ("/dev/vdf\n", [], InvalidRequestError),
        ("", [], InvalidRequestError),
        ("\ud800" * 1000, [], InvalidRequestError),
        (None, [f"/dev/vd{c}" for c in rules._places()], OverLimitError),
    ],
)
def test_a_device_is_chosen_kept_or_refused(
    wanted: str | None, taken: list[str], expected: str | type[BockdError]
) -> None:
    if isinstance(expected, str):
        assert rules.choose_device(wanted, taken) == expected
    else:
        with pytest.raises(expected):
            rules.choose_device(wanted, taken)


@pytest.mark.parametrize("server", ["1", "258315", "a-B_c.9", "x" * 255])
def test_server_ids(server: str) -> None:
    assert rules.check_server(server) == server


@pytest.mark.parametrize("server", ["", "a/b", "x" * 256, "a b", "\0", "é", "1\n"])
def test_malformed_server_ids_are_not_found(server: str) -> None:
    with pytest.raises(NotFoundError):
        rules.check_server(server)


@pytest.mark.parametrize("text", [None, "", "x" * 255, "\n\t", "日本"])
def test_texts_that_are_kept(text: str | None) -> None:
    assert rules.check_text("display_name", text) == text


@pytest.mark.parametrize("text", ["x" * 256, "\ud800"])
def test_texts_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError, match="display_name"):
        rules.check_text("display_name", text)


@pytest.mark.parametrize(
    "metadata", [{"": "x"}, {"k": "v" * 256}, {"k" * 256: "v"}, {str(n): "" for n in range(129)}]
)
def test_metadata_that_is_refused(metadata: dict[str, str]) -> None:
    with pytest.raises(InvalidRequestError):
        rules.check_metadata(metadata)


@dataclass(frozen=True)
class Item:
    id: int
    display_name: str | None


ITEMS = [Item(n, "even" if n % 2 == 0 else None) for n in range(1, 11)]


@pytest.mark.parametrize(
    ("page", "ids"),
    [
        (Page(), [*range(1, 11)]),
        (Page(limit=3), [1, 2, 3]),
        (Page(limit=0), [*range(1, 11)]),
        (Page(limit=10**30), [*range(1, 11)]),
        (Page(limit=3, offset=2), [3, 4, 5]),
        (Page(offset=100), []),
        (Page(marker=8), [9, 10]),
        (Page(marker=10**30), []),
        (Page(limit=1, marker=3, offset=2), [6]),
        (Page(display_name="even"), [2, 4, 6, 8, 10]),
        (Page(display_name="even", limit=2, marker=4), [6, 8]),
        (Page(display_name=""), []),
    ],
)
def test_a_page_has_the_items_that_were_asked_for(page: Page, ids: list[int]) -> None:
    assert [item.id for item in rules.cut_page(ITEMS, rules.check_page(page))] == ids


def test_a_page_has_an_end() -> None:
    items = [Item(n, None) for n in range(2000)]
    for limit in (None, 0, 2000, 3000):
        assert len(rules.cut_page(items, Page(limit=limit))) == 2000
    assert len(rules.cut_page(items, Page(limit=1500))) == 1500


@pytest.mark.parametrize("page", [Page(limit=-1), Page(offset=-1), Page(marker=-1)])
def test_negative_pages_are_refused(page: Page) -> None:
    with pytest.raises(InvalidRequestError):
        rules.check_page(page)
