"""Drop-ins of the unit, and lines of /etc/fstab, as the documentation prints them."""

from __future__ import annotations

import re

from tests.service.confined import REPOSITORY


def view_dropin() -> str:
    """Return the drop-in for the file view that docs/service.md has."""
    page = (REPOSITORY / "docs" / "service.md").read_text()
    found = re.search(r"    # bockd\.service\.d/view\.conf\n((?:    .*\n|\n)+)", page)
    assert found is not None
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)


def fstab_line(page: str, directory: str) -> str:
    """Return what a page of docs/ has in /etc/fstab for a directory."""
    text = (REPOSITORY / "docs" / page).read_text()
    found = re.search(rf"^    (UUID=\S+ {re.escape(directory)} .*)$", text, re.MULTILINE)
    assert found is not None
    return found[1]
