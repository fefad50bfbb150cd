"""`bock dashboard`: the way into the daemon's pages, for a browser."""

from __future__ import annotations

import os
import tempfile
import webbrowser
from html import escape
from pathlib import Path

import click

from bockd.cli.client import connect
from bockd.cli.output import json_option, print_json, say
from bockd.errors import from_os_error

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
"""Variables of which one is set where a browser can be opened beside the terminal."""

PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={url}">
<title>bockd</title>
<a href="{url}">bockd's dashboard</a>
"""


@click.command()
@click.option("--no-open", is_flag=True, help="Only print the link.")
@json_option
def dashboard(no_open: bool, as_json: bool) -> None:
    """Open the dashboard of the daemon on this machine in a browser.

    Prints a link that lets one browser in, once, within two minutes, and opens it if there is a
    screen. The browser's session lasts for twelve hours, or until the daemon ends. Whoever opens
    the link can do all that the operator can.

    Without a listener in the configuration ([dashboard] listen) the daemon opens a port on the
    loopback interface, for as long as somebody uses it. From another machine: forward that port
    with 'ssh -L PORT:127.0.0.1:PORT', and open the link there.
    """
    link = connect().make_dashboard_link()
    if as_json:
        print_json(link)
        return
    say(link.url)
    if not no_open and any(os.environ.get(name) for name in SCREENS):
        webbrowser.open(page_that_leads_to(link.url).as_uri())


def page_that_leads_to(url: str) -> Path:
    """Write a page that only this user can read. A link in a browser's arguments could be read by
    every user of the machine."""
    directory = Path(os.environ.get("XDG_RUNTIME_DIR") or Path.home() / ".cache")
    target = directory / "bockd-dashboard.html"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=directory)
        with open(descriptor, "w") as file:
            file.write(PAGE.format(url=escape(url, quote=True)))
        os.replace(name, target)
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from error
    return target
