"""docs/install.md's installation by pip, with the Python of each release: 3.11 to 3.14. `make
test-python` runs this."""

from __future__ import annotations

import os
import re
import subprocess
from functools import partial

import pytest

from tests.packaging.machine import clean_machine
from tests.packaging.smoke import use
from tests.service.confined import REPOSITORY

PYTHONS = {"bookworm": "3.11", "noble": "3.12", "trixie": "3.13", "forky": "3.14"}

PAGE = REPOSITORY / "docs" / "install.md"


def commands() -> list[str]:
    """What the page says under pip."""
    section = PAGE.read_text().partition("\n## pip\n")[2].partition("\n## ")[0]
    found = re.findall(r"^    (.*)$", section, re.MULTILINE)
    assert len(found) == 3, found
    return found


@pytest.mark.packages
@pytest.mark.parametrize("suite", os.environ.get("SUITES", " ".join(PYTHONS)).split())
def test_pip_as_the_page_says(suite: str) -> None:
    with clean_machine(suite, f"pip-{suite}", "ca-certificates") as on:
        subprocess.run([REPOSITORY / ".setup" / "tree-to", on.root / "src"], check=True)
        packages, *steps = commands()
        on.install(*packages.removeprefix("apt-get install ").split())
        on.shell("\n".join(["cd /src", *steps]))
        version = on.run(
            "/opt/bockd/bin/python", "-c", "import sys; print(*sys.version_info[:2], sep='.')"
        )
        assert version.strip() == PYTHONS[suite]
        serve = ["/opt/bockd/bin/bockd", "serve"]
        use(on, partial(on.daemon, serve, user="root", environment=()), "/opt/bockd/bin")
