"""The paths of the dashboard that need no session."""

from __future__ import annotations

ENTRY_PATH = "/enter"
FIRST_PAGE_PATH = "/"
STATIC_PATH = "/static/"
