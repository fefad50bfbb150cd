"""Drop-ins of the unit, as the documentation prints them."""

from __future__ import annotations

import re

from tests.service.confined import REPOSITORY


def view_dropin() -> str:
    """Return the drop-in for the file view that docs/service.md has."""
    page = (REPOSITORY / "docs" / "service.md").read_text()
    found = re.search(r"    # bockd\.service\.d/view\.conf\n((?:    .*\n|\n)+)", page)
    assert found is not None
    return re.sub(r"^    ", "", found[1], flags=re.MULTILINE)
