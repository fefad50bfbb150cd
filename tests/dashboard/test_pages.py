"""The pages in a real browser: by mouse, by keyboard, on a phone, for screen readers."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bockd.drivers.local.backuplog import note_backup
from bockd.pool.reports import BackupRecord
from tests.daemon.process import Bockd, program, serving
from tests.dashboard.browser import WAIT_MS, Screen, chromium, operating

MIB = 1 << 20

SCREENSHOT_VARIABLE = "BOCKD_SCREENSHOT"
"""Where the picture of docs/dashboard.md is to be written: `make screenshot`."""

expect.set_options(timeout=WAIT_MS)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def fill(page: Page, title: str, button: str, **fields: str) -> Locator:
    """Fill a dialog and press its button; returns the dialog, which closes when it is done."""
    dialog = page.get_by_role("dialog", name=title)
    for label, text in fields.items():
        dialog.get_by_label(label.replace("_", " ")).fill(text)
    dialog.get_by_role("button", name=button).click()
    return dialog


@contextmanager
def busy(daemon: Bockd, volume: str, size: str = "4m", where: str = "random") -> Iterator[None]:
    """Within, fio reads and writes the first `size` bytes of a volume without end."""
    job = f"--bs=4k --iodepth=2 --size={size} --random_distribution={where} --thinktime=2ms"
    arguments = (
        *("--name=busy", "--ioengine=nbd", f"--uri={daemon.uri(volume)}", "--rw=randrw"),
        *(*job.split(), "--time_based", "--runtime=600"),
    )
    with subprocess.Popen([program("fio"), *arguments], stdout=subprocess.DEVNULL) as fio:
        try:
            yield
        finally:
            fio.terminate()


def test_a_volumes_life_by_clicks(browser: Browser, daemon: Bockd) -> None:
    with operating(browser, daemon) as screen:
        page = screen.page
        page.get_by_role("button", name="New volume").click()
        dialog = fill(page, "New volume", "Create", Name="web", Size="much")
        expect(dialog.get_by_role("alert")).to_contain_text("much is no size")
        fill(page, "New volume", "Create", Size="8 MiB")
        expect(page.get_by_role("status").first).to_have_text("The volume is there.")
        row = page.get_by_role("row").filter(has_text="web")
        expect(row).to_contain_text("8 MiB")

        with daemon.connected("web") as client:
            client.pwrite(b"x" * MIB, 0)
        daemon.wait_until_unused("web")
        page.get_by_role("link", name="web").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("web")
        page.get_by_role("button", name="Snapshot", exact=True).click()
        fill(page, "Snapshot of web", "Take snapshot", Name="then")
        tree = page.get_by_role("region", name="Snapshots and clones")
        expect(tree.get_by_role("listitem").filter(has_text="then").last).to_contain_text(
            "0 B alone, 1 MiB shared"
        )
        page.get_by_role("button", name="Clone").click()
        fill(page, "Clone of web", "Clone", Name_of_the_new_volume="copy")
        expect(tree.get_by_role("link", name="copy")).to_be_visible()
        page.get_by_role("button", name="Extend").click()
        fill(page, "Extend web", "Extend", New_size="16 MiB")
        expect(page.locator("dl").first).to_contain_text("16 MiB")

        page.get_by_role("button", name="Attach").click()
        fill(page, "Attach web", "Attach", Server="web1")
        expect(page.locator("dl").first).to_contain_text("web1, /dev/vdb")
        expect(page.get_by_role("button", name="Delete", exact=True)).to_be_hidden()
        page.get_by_role("button", name="Detach").click()
        fill(page, "Detach web from web1", "Detach")
        expect(page.locator("dl").first).to_contain_text("nothing")

        with daemon.connected("web") as client:
            client.pwrite(b"y" * MIB, 0)
        daemon.wait_until_unused("web")
        revert = page.get_by_role("button", name="Revert web to then")
        revert.click()
        fill(page, "Revert web to then", "Revert", Type_web_to_confirm="web")
        expect(page.get_by_role("status").first).to_have_text("The volume is reverted.")
        with daemon.connected("web") as client:
            assert client.pread(MIB, 0) == b"x" * MIB
        daemon.wait_until_unused("web")

        page.get_by_role("button", name="Delete snapshot then").click()
        dialog = page.get_by_role("dialog", name="Delete snapshot then")
        expect(dialog).to_contain_text("It holds 0 B that nothing else shows")
        fill(page, "Delete snapshot then", "Delete", Type_then_to_confirm="Then")
        expect(dialog.get_by_role("alert")).to_have_text("Type then to go on.")
        fill(page, "Delete snapshot then", "Delete", Type_then_to_confirm="then")
        expect(page.get_by_role("button", name="Delete snapshot then")).to_have_count(0)
        page.get_by_role("button", name="Delete", exact=True).first.click()
        fill(page, "Delete volume web", "Delete", Type_web_to_confirm="web")
        expect(page.get_by_role("heading", level=1)).to_have_text("Volumes")
        expect(page.get_by_role("link", name="web", exact=True)).to_have_count(0)
    daemon.bock("volume", "delete", "copy")
    for snapshot in daemon.bock("snapshot", "list"):
        daemon.bock("snapshot", "delete", snapshot["name"])


def test_what_is_not_in_the_cluster_is_shown(browser: Browser, daemon: Bockd) -> None:
    """What a gateway answers of such a volume, tests/daemon/test_write_back.py holds."""
    daemon.bock("volume", "create", "logged", "--size", "1M")
    cache = {
        "mode": "write-back",
        "dirty_at": "gw1",
        "dirty_since": 1_790_000_000.0,
        "dirty_bytes": 3 * MIB,
        "trouble": "the pool does not answer",
        "discarded_at": None,
    }

    with operating(browser, daemon) as screen:
        page = screen.page
        facts = page.locator("dl").first
        page.get_by_role("link", name="logged").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("logged")
        expect(facts).not_to_contain_text("Cache")
        expect(facts).not_to_contain_text("cluster")
        lists = page.evaluate("fetch('/data/overview').then((answer) => answer.json())")
        (volume,) = (one for one in lists["volumes"] if one["name"] == "logged")
        assert volume["cache"] is None
        volume["cache"] = cache
        page.route("**/data/overview*", lambda route: route.fulfill(json=lists))
        expect(facts).to_contain_text("3 MiB at gateway gw1 since 2026-09-21 14:13 UTC")
        expect(facts).to_contain_text("write-back")
        expect(page.get_by_role("alert").first).to_contain_text("the pool does not answer")
        page.unroute_all()
    daemon.bock("volume", "delete", "logged")


def test_a_deletion_is_undone_by_a_click_and_later_on_the_page_of_the_trash(
    browser: Browser, tmp_path: Path
) -> None:
    config = tmp_path / "bockd.toml"
    config.write_text("[trash]\nkeep_hours = 48\n")
    with (
        serving(tmp_path / "pool", config=config) as keeping,
        operating(browser, keeping) as screen,
    ):
        keeping.bock("volume", "create", "web", "--size", "8M")
        with keeping.connected("web") as client:
            client.pwrite(b"x" * MIB, 0)
        keeping.wait_until_unused("web")
        keeping.bock("snapshot", "create", "web", "then")
        page = screen.page
        said = page.get_by_role("status").first
        page.get_by_role("link", name="web", exact=True).click()

        page.get_by_role("button", name="Delete", exact=True).first.click()
        dialog = page.get_by_role("dialog", name="Delete volume web")
        expect(dialog).to_contain_text("It is kept in the trash for 2 days.")
        fill(page, "Delete volume web", "Delete", Type_web_to_confirm="web")
        expect(said).to_contain_text("The volume is deleted.")
        expect(page.get_by_role("heading", level=1)).to_have_text("Volumes")
        expect(page.get_by_role("link", name="web", exact=True)).to_have_count(0)
        page.get_by_role("button", name="Undo").click()
        expect(said).to_have_text("web is back.")
        page.get_by_role("link", name="web", exact=True).click()
        with keeping.connected("web") as client:
            assert client.pread(MIB, 0) == b"x" * MIB
        keeping.wait_until_unused("web")

        page.get_by_role("button", name="Delete snapshot then").click()
        fill(page, "Delete snapshot then", "Delete", Type_then_to_confirm="then")
        expect(page.get_by_role("button", name="Delete snapshot then")).to_have_count(0)
        page.get_by_role("button", name="Undo").click()
        expect(page.get_by_role("button", name="Delete snapshot then")).to_be_visible()

        for kind, name in (("volume", "web"), ("snapshot", "then")):
            keeping.bock(kind, "delete", name)
        page.get_by_role("link", name="Trash").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Trash")
        row = page.get_by_role("row").filter(has_text="web")
        expect(row).to_contain_text("8 MiB")
        expect(row).to_contain_text("0 B")  # the snapshot has it all, too
        page.get_by_role("button", name="Restore web").click()
        expect(said).to_have_text("web is back.")
        expect(row).to_have_count(0)
        page.get_by_role("button", name="Delete then for good").click()
        fill(page, "Delete snapshot then for good", "Delete", Type_then_to_confirm="then")
        expect(said).to_have_text("then is gone for good.")
        expect(page.get_by_text("There is nothing in the trash.")).to_be_visible()
        assert keeping.bock("trash", "list") == []
        assert [one["name"] for one in keeping.bock("volume", "list")] == ["web"]


def test_the_charts_move_while_fio_runs(browser: Browser, daemon: Bockd, tmp_path: Path) -> None:
    daemon.bock("volume", "create", "busy", "--size", "512M")
    with busy(daemon, "busy", "400m", "normal:12"), operating(browser, daemon) as screen:
        daemon.bock("snapshot", "create", "busy", "before-upgrade")
        daemon.bock("volume", "create", "busy-test", "--from-snapshot", "before-upgrade")
        page = screen.page
        reads = page.get_by_role("img", name=re.compile("^Requests per second: reads [1-9]"))
        expect(reads).to_be_visible()
        row = page.get_by_role("row", name=re.compile("^busy demo"))
        expect(row).to_contain_text(re.compile("iB/s"))
        page.get_by_role("link", name="busy", exact=True).click()
        chart = page.get_by_role("img", name=re.compile("^Latency: p50 .*[µm]?s, p99 .*, p99.9 "))
        expect(chart).to_be_visible()
        line = page.locator("polyline.first").first
        drawn = line.get_attribute("points")
        expect(line).not_to_have_attribute("points", drawn or "")
        # Its line leaves the bottom.
        expect(line).to_have_attribute("points", re.compile(r",(?!118\.0)[\d.]+"))
        picture = os.environ.get(SCREENSHOT_VARIABLE) or tmp_path / "dashboard.png"
        if SCREENSHOT_VARIABLE in os.environ:
            # Half a minute of lines.
            points = r"^(\S+ ){30,}"
            expect(line).to_have_attribute("points", re.compile(points))
        # Where this pool lies is nobody's business.
        rule = "dl div:has(code) { display: none }"
        page.evaluate("rule => document.styleSheets[0].insertRule(rule)", rule)
        page.screenshot(path=picture, full_page=True)
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    daemon.wait_until_unused("busy")
    daemon.bock("volume", "delete", "busy-test")
    daemon.bock("snapshot", "delete", "before-upgrade")
    daemon.bock("volume", "delete", "busy")


def test_what_a_screen_reader_says(browser: Browser, daemon: Bockd) -> None:
    daemon.bock("volume", "create", "read aloud", "--size", "1M")
    with operating(browser, daemon) as screen:
        page = screen.page
        expect(page.get_by_role("link", name="read aloud")).to_be_visible()
        expect(page.locator("body")).to_match_aria_snapshot("""
          - link "To the content"
          - banner:
            - link "bockd"
            - navigation "Pages":
              - link "Volumes"
              - link "Pool"
            - button "Leave"
          - status
          - main:
            - heading "Volumes" [level=1]
            - button "New volume"
            - figure:
              - img /Throughput/
            - figure:
              - img /Requests per second/
            - table "Volumes":
              - rowgroup:
                - row /Volume Tenant Size Status/
              - rowgroup:
                - row /read aloud demo 1 MiB available/:
                  - rowheader "read aloud"
        """)
        assert page.title() == "Volumes - bockd"
        page.get_by_role("link", name="read aloud").click()
        toolbar = page.get_by_role("toolbar", name="What to do")
        expect(toolbar.get_by_role("button")).to_have_text(
            ["Snapshot", "Clone", "Extend", "Attach", "Limits", "Profile", "Delete"]
        )
        expect(page).to_have_title("read aloud - bockd")
        toolbar.get_by_role("button", name="Attach").click()
        field = page.get_by_role("textbox", name="Device")
        expect(field).to_have_accessible_description("As /dev/vdc; empty: the next free one")
        page.get_by_role("button", name="Cancel").click()
        screen.at("#/pool")
        for name in ("Space", "Health"):
            expect(page.get_by_role("region", name=name)).to_be_visible()
        expect(page.get_by_role("meter", name="Used of the file system")).to_be_visible()
        page.get_by_role("button", name="Check now").click()
        expect(page.get_by_text("The pool is whole")).to_be_visible()
    daemon.bock("volume", "delete", "read aloud")


def test_by_keyboard_alone(browser: Browser, daemon: Bockd) -> None:
    with operating(browser, daemon) as screen:
        page = screen.page
        keys = page.keyboard

        def tab_to(target: Locator) -> None:
            for _ in range(40):
                keys.press("Tab")
                if target.evaluate("one => one === document.activeElement"):
                    return
            raise AssertionError(f"{target} is not reached by Tab")

        tab_to(page.get_by_role("link", name="To the content"))
        expect(page.get_by_role("link", name="To the content")).to_be_in_viewport()
        tab_to(page.get_by_role("button", name="New volume"))
        keys.press("Enter")
        dialog = page.get_by_role("dialog", name="New volume")
        expect(dialog.get_by_label("Tenant")).to_be_focused()
        keys.press("Escape")
        expect(dialog).to_have_count(0)
        # The focus is where it was.
        expect(page.get_by_role("button", name="New volume")).to_be_focused()
        keys.press("Enter")
        expect(dialog.get_by_label("Tenant")).to_be_focused()
        keys.press("Tab")
        keys.type("typed")
        keys.press("Tab")
        keys.type("1 MiB")
        keys.press("Enter")
        link = page.get_by_role("link", name="typed")
        expect(link).to_be_visible()
        tab_to(link)
        with page.expect_response(re.compile("/data/activity")):
            pass
        # What is drawn each second leaves the focus alone.
        expect(link).to_be_focused()
        keys.press("Enter")
        expect(page.get_by_role("main")).to_be_focused()
        tab_to(page.get_by_role("button", name="Delete", exact=True))
        keys.press("Enter")
        expect(page.get_by_label("Type typed to confirm")).to_be_focused()
        keys.type("typed")
        keys.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Volumes")
        expect(link).to_have_count(0)


def test_on_a_phone_in_the_dark(browser: Browser, daemon: Bockd) -> None:
    name = "a-volume-with-a-name-that-is-as-long-as-nobody-would-write-it-on-a-phone"
    daemon.bock("volume", "create", name, "--size", "1M")
    daemon.bock("snapshot", "create", name, f"{name}-then")
    volume = daemon.bock("volume", "show", name)["id"]
    with operating(browser, daemon, width=390, dark=True) as screen:
        page = screen.page
        for path, shown in (("#/", name), (f"#/volume/{volume}", "alone"), ("#/pool", "Free")):
            screen.at(path)
            expect(page.get_by_text(shown).first).to_be_visible()
            wide = page.evaluate("document.documentElement.scrollWidth")
            assert wide <= 390, (path, wide)
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 19, 23)"
        screen.at("#/")
        page.get_by_role("button", name="New volume").click()
        fits_a_phone(page.get_by_role("dialog"))
        page.keyboard.press("Escape")
        screen.at(f"#/volume/{volume}")
        page.get_by_role("button", name="Limits").click()
        fits_a_phone(page.get_by_role("dialog"))
        last = page.get_by_role("group", name="Bytes written").get_by_label("Seconds")
        last.scroll_into_view_if_needed()
        fits_a_phone(last)
        page.keyboard.press("Escape")
        small = [
            one.inner_text()
            for one in page.get_by_role("button").all()
            if (size := one.bounding_box()) and size["height"] < 24
        ]
        assert small == []
    daemon.bock("snapshot", "delete", f"{name}-then")
    daemon.bock("volume", "delete", name)


def fits_a_phone(shown: Locator) -> None:
    """It lies within the screen's width."""
    box = shown.bounding_box()
    assert box is not None
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 390


def refused(screen: Screen, times: int) -> None:
    """The browser complains of so many answers with 400, and of nothing else."""
    assert ["400" in one for one in screen.complaints] == [True] * times
    screen.complaints.clear()


def test_limits_are_set_by_a_form_and_shown(browser: Browser, daemon: Bockd) -> None:
    daemon.bock("volume", "create", "limited", "--size", "1M")
    with operating(browser, daemon) as screen:
        page = screen.page
        facts = page.locator("dl").first
        page.get_by_role("link", name="limited").click()
        expect(facts).to_contain_text("Limitsnone")

        def set_limits(which: str = "Those below", **fields: str) -> Locator:
            """Fill the form, with "Group__Field" as names."""
            page.get_by_role("button", name="Limits").click()
            dialog = page.get_by_role("dialog", name="Limits of limited")
            dialog.get_by_label("Limits", exact=True).select_option(which)
            for name, text in fields.items():
                group, field = name.split("__")
                row = dialog.get_by_role("group", name=group.replace("_", " "), exact=True)
                row.get_by_label(field.replace("_", " ")).fill(text)
            dialog.get_by_role("button", name="Set limits").click()
            return dialog

        wrong = {
            "Operations__In_a_second": ("many", "many is no number"),
            "Bytes__In_a_second": ("50", "50 is no number of bytes: write 50 MiB"),
            "Reads__Burst": ("7", "Reads: a burst needs the limit, too"),
        }
        for field, (text, said) in wrong.items():
            dialog = set_limits(**{field: text})
            expect(dialog.get_by_role("alert")).to_contain_text(said)
            page.keyboard.press("Escape")
        dialog = set_limits(Operations__In_a_second="500", Operations__Burst="400")
        expect(dialog.get_by_role("alert")).to_contain_text("the burst of iops is 400")
        page.keyboard.press("Escape")
        refused(screen, 1)
        set_limits(
            Operations__In_a_second="500",
            Operations__Burst="2000",
            Operations__Seconds="30",
            Bytes_written__In_a_second="1.5 MiB",
        )
        expect(page.get_by_role("status").first).to_have_text("The volume has these limits.")
        text = "500 operations/s, bursts of 2000/s for 30 s; 1.5 MiB/s written"
        expect(facts).to_contain_text(text)
        limits = daemon.bock("volume", "profile", "limited")["limits"]
        assert limits["iops"] == {"per_second": 500, "burst": 2000, "burst_seconds": 30}
        assert limits["write_bps"]["per_second"] == 3 * MIB // 2

        # What stands there is what holds: one is changed, the others stay.
        set_limits(Operations__In_a_second="600")
        expect(facts).to_contain_text(text.replace("500", "600"))
        screen.at("#/")
        expect(page.get_by_role("row").filter(has_text="limited")).to_contain_text(
            "600 operations/s"
        )
        page.get_by_role("link", name="limited").click()
        set_limits("None")
        expect(facts).to_contain_text("Limitsnone")

        screen.at("#/pool")
        page.get_by_role("button", name="Limits of tenant demo").click()
        dialog = page.get_by_role("dialog", name="Limits of tenant demo")
        dialog.get_by_role("group", name="Bytes", exact=True).get_by_label("In a second").fill("1g")
        dialog.get_by_role("button", name="Set limits").click()
        row = page.get_by_role("row").filter(has_text="demo")
        expect(row).to_contain_text("1 GiB/s")
        # The form has what was set since the row was drawn.
        page.get_by_role("button", name="Limits of tenant demo").click()
        expect(dialog).to_contain_text("Now: 1 GiB/s.")
        dialog.get_by_label("Limits", exact=True).select_option("Those of the configuration")
        dialog.get_by_role("button", name="Set limits").click()
        expect(row).not_to_contain_text("1 GiB/s")
    daemon.bock("volume", "delete", "limited")


def test_a_profile_is_switched_on_and_off(browser: Browser, daemon: Bockd) -> None:
    daemon.bock("volume", "create", "slowed", "--size", "1M")
    with operating(browser, daemon) as screen:
        page = screen.page
        facts = page.locator("dl").first
        page.get_by_role("link", name="slowed").click()
        expect(facts).to_contain_text("Made to look likeitself")

        def set_profile(device: str, seed: str = "", document: str | None = None) -> Locator:
            page.get_by_role("button", name="Profile").click()
            dialog = page.get_by_role("dialog", name="Device profile of slowed")
            dialog.get_by_label("Device").select_option(device)
            dialog.get_by_label("Seed").fill(seed)
            if document is not None:
                dialog.get_by_label("A profile of your own, as JSON").fill(document)
            dialog.get_by_role("button", name="Set profile").click()
            return dialog

        set_profile("ssd-sata", "7")
        expect(facts).to_contain_text("Made to look likessd-sata")
        assert daemon.bock("volume", "profile", "slowed")["profile"]["seed"] == 7
        dialog = set_profile("The one below", document="{")
        expect(dialog.get_by_role("alert")).to_contain_text("What stands there is no JSON")
        page.keyboard.press("Escape")
        dialog = set_profile("The one below", document='{"name": "mine", "reed_us": 1}')
        expect(dialog.get_by_role("alert")).to_contain_text("there is no field reed_us")
        page.keyboard.press("Escape")
        refused(screen, 1)
        set_profile("The one below", document='{"name": "mine", "read_us": 300}')
        expect(facts).to_contain_text("Made to look likemine")
        screen.at("#/")
        expect(page.get_by_role("row").filter(has_text="slowed")).to_contain_text("as mine")
        page.get_by_role("link", name="slowed").click()
        # The form is filled with it.
        page.get_by_role("button", name="Profile").click()
        expect(page.get_by_label("A profile of your own, as JSON")).to_have_value(
            re.compile('"read_us": 300')
        )
        page.keyboard.press("Escape")
        set_profile("Itself: no profile")
        expect(facts).to_contain_text("Made to look likeitself")
        assert daemon.bock("volume", "profile", "slowed")["profile"] is None
    daemon.bock("volume", "delete", "slowed")


def test_backups_are_listed(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "pool") as daemon, operating(browser, daemon) as screen:
        page = screen.at("#/pool")
        expect(page.get_by_text("none known")).to_be_visible()
        expect(page.get_by_role("table", name="Backups")).to_be_hidden()
        for directory in ("first", "second"):
            daemon.run(program("bockd"), "backup", daemon.data_dir, tmp_path / directory)
        unfinished = BackupRecord(f"{tmp_path / 'first'}", time.time())
        note_backup(daemon.data_dir, unfinished)
        rows = page.get_by_role("table", name="Backups").get_by_role("row")
        expect(rows).to_contain_text(
            [
                "Directory",
                re.compile(r"/first.*not finished"),
                re.compile(r"/second.*whole since"),
            ]
        )
        expect(page.get_by_text(re.compile(", in .*/second$"))).to_be_visible()


def test_names_are_text_and_never_markup(browser: Browser, daemon: Bockd) -> None:
    name = "<img src=x onerror=alert(1)>"
    daemon.bock("volume", "create", name, "--size", "1M")
    with operating(browser, daemon) as screen:
        page = screen.page
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(name)
        assert page.locator("img, script:not([src])").count() == 0
    daemon.bock("volume", "delete", name)


def test_what_nobody_sees_of_a_name_is_shown(browser: Browser, daemon: Bockd) -> None:
    name, shown = "a\u202egpj.\x07b", r"a\u202egpj.\u0007b"
    with daemon.storage() as storage:
        storage.post("os-volumes", {"volume": {"display_name": name, "size": 1}})
    with operating(browser, daemon) as screen:
        page = screen.page
        page.get_by_role("link", name=shown).click()
        expect(page.get_by_role("heading", level=1)).to_have_text(shown)
        expect(page).to_have_title(f"{shown} - bockd")
        page.get_by_role("button", name="Delete", exact=True).click()
        field = page.get_by_label(f"Type {shown} to confirm")
        field.fill(shown)
        field.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Volumes")
        assert "\u202e" not in page.content()
    assert daemon.bock("volume", "list") == []


def test_a_used_link_and_an_ended_session_are_told(browser: Browser, daemon: Bockd) -> None:
    with operating(browser, daemon) as screen:
        page = screen.page
        page.get_by_role("button", name="Leave").click()
        expect(page.get_by_role("status")).to_contain_text("run 'bock dashboard'")
        screen.at("#/")
        expect(page.get_by_role("status").first).to_contain_text("run 'bock dashboard'")
        # What the browser says of the answers with 401.
        assert all("401" in one for one in screen.complaints)
        screen.complaints.clear()


def test_the_apis_own_page_works_without_internet(browser: Browser, tmp_path: Path) -> None:
    with serving(tmp_path / "pool", api_listen="127.0.0.1:0") as daemon:
        page = browser.new_page()
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{daemon.api_url}/docs")
        expect(page.get_by_role("heading", name="HP Block Storage API")).to_be_visible()
        expect(page.get_by_role("button", name=re.compile("v2.0.tokens")).first).to_be_visible()
        assert [url for url in asked if not url.startswith((daemon.api_url, "data:"))] == []
        page.close()


def test_the_heat_map_shows_what_is_used(browser: Browser, daemon: Bockd) -> None:
    daemon.bock("volume", "create", "warm", "--size", "8M")
    volume = daemon.bock("volume", "show", "warm")["id"]
    with busy(daemon, "warm"), operating(browser, daemon) as screen:
        page = screen.at(f"#/volume/{volume}")
        picture = page.get_by_role("region", name="Heat map").get_by_role("img")
        # fio uses the first 4 MiB.
        expect(picture).to_have_accessible_name(
            re.compile("^Reads: [1-4] of 8 regions of 1 MiB, most from [0-3]")
        )
        page.get_by_label("Show").select_option("Last used")
        expect(picture).to_have_accessible_name(re.compile("^Last used: 4 of 8 regions"))
        painted = picture.evaluate(
            """one => [...one.getContext("2d").getImageData(0, 0, one.width, 1).data]
                .filter((_, at) => at % 4 === 3).map((alpha) => alpha > 0)"""
        )
        assert painted == [True] * 4 + [False] * 4
    daemon.wait_until_unused("warm")
    daemon.bock("volume", "delete", "warm")
