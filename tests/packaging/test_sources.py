"""What can be judged of the packages without building one: manual pages, what is said twice."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.daemon.process import program
from tests.service.confined import REPOSITORY

PACKAGING = REPOSITORY / ".packaging"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The manual pages, as they are packed."""
    directory = tmp_path_factory.mktemp("man")
    command: list[str | Path] = [sys.executable, PACKAGING / "manpages", directory]
    subprocess.run(command, check=True)
    return sorted(directory.iterdir())


def formatted(*pages: Path) -> tuple[str, str]:
    """What groff makes of pages, and its warnings."""
    options = ("-man", "-Tascii", "-P-cbou", "-ww")
    command: list[str | Path] = [program("groff"), *options, *pages]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout, done.stderr


def test_manual_pages_are_formatted_without_a_warning(pages: list[Path], tmp_path: Path) -> None:
    assert formatted(*pages)[1] == ""
    wrong = tmp_path / "wrong.1"
    wrong.write_text(".TH WRONG 1\n.SH NAME\nwrong \\- \\[nonsense]\n.nothing\n")
    assert "nonsense" in formatted(wrong)[1]


def test_each_command_has_a_page(pages: list[Path]) -> None:
    names = {page.name for page in pages}
    assert {"bock.1", "bock-volume-create.1", "bockd.8", "bockd-check.8"} <= names
    # Also those that are imported when they are asked for; and no page names one that is not there.
    named = {
        f"{name}.{section}".replace("\\", "")
        for page in pages
        for name, section in re.findall(r"^\.BR (\S+) \((\d)\)", page.read_text(), re.MULTILINE)
    }
    assert named == names


def test_a_page_says_what_help_says(pages: list[Path]) -> None:
    (page,) = [page for page in pages if page.name == "bock-volume-create.1"]
    text, _ = formatted(page)
    assert re.search(
        r"^ +bock-volume-create +- +Create +the +volume +NAME, +blank,", text, re.MULTILINE
    )
    # The lines of an example stay lines, and a hyphen is one that can be copied.
    example = [line.strip() for line in text.splitlines() if "bock volume create web" in line]
    assert example[0] == "bock volume create web --size 10GiB"
    assert re.search(r"^ +-h, --help\n +Show this message and exit\.$", text, re.MULTILINE)


def test_the_package_has_the_version_of_the_program() -> None:
    command: list[str | Path] = [PACKAGING / "version", "debian13"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told == f"{version('bockd')}~debian13\n"


def test_the_package_is_built_with_what_set_up_installs() -> None:
    """A new system package in one place is not forgotten in the other."""
    control = (PACKAGING / "debian" / "control").read_text()
    fields = {
        name: set(re.findall(r"^ ([a-z0-9-]+)", text, re.MULTILINE))
        for name, text in re.findall(r"^([\w-]+):\n((?: .*\n)+)", control, re.MULTILINE)
    }
    listed = (REPOSITORY / ".setup" / "packages-run").read_text().splitlines()
    installed = {line for line in listed if line and not line.startswith("#")}
    named = fields["Build-Depends"] | fields["Depends"] | fields["Recommends"]
    # The build brings a compiler, and python3 by the version that it was made with; e2fsprogs is
    # for README's walk.
    assert installed - named == {"gcc", "python3", "e2fsprogs"}
    assert named - installed == {"debhelper-compat"}
