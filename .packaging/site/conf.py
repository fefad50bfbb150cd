"""How Sphinx makes the site of the pages in docs/ and of those beside README.md: `make docs`.

The pages are Markdown as it is read in a checkout, and stay where they are: so their links are held
here as they stand, to each other, to headings, pictures, and files of the source. One that leads
nowhere is an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[2]

project = "bockd"
version = release = re.search(  # type: ignore[union-attr]
    r'^__version__ = "(.*)"$', (ROOT / "bockd" / "__init__.py").read_text(), re.MULTILINE
)[1]
copyright = "the bockd developers"  # noqa: A001 - Sphinx's name

extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md"]
exclude_patterns = [".*"]

# The anchors of headings are GitHub's, since the pages are read there, too.
myst_heading_anchors = 4

html_theme = "furo"
html_title = f"bockd {version}"
html_copy_source = False
html_extra_path = ["extra"]

CHAPTERS = {
    "Use it": (
        "install service configuration cli dashboard hosts vms fuse nbdkit attachments tls limits "
        "profiles traces trash metrics backup moving checksums damage"
    ),
    "A pool in Ceph": "ceph cache write-back",
    "How it works": (
        "architecture durability nbd-protocol packed-heads lane-threads api-conformance "
        "performance discoveries glossary"
    ),
}
"""The pages of docs/ in the order of the side bar. Sphinx names one that is in none of them."""


def add_contents(_app: Sphinx, page: str, source: list[str]) -> None:
    """Give the first page the table of contents that the side bar shows."""
    if page != root_doc:
        return
    for chapter, pages in CHAPTERS.items():
        entries = "\n".join(f"docs/{name}" for name in pages.split())
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {chapter}\n\n{entries}\n```\n"
    entries = "CHANGELOG\nCONTRIBUTING\nSECURITY"
    source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: The project\n\n{entries}\n```\n"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
