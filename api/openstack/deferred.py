"""What a reply is checked against, made when the first such reply is: all of them together would be
a third of what the daemon does at its start."""

from __future__ import annotations

from pydantic import ConfigDict, with_config

reply = with_config(ConfigDict(defer_build=True))
"""Decorates the TypedDict that a route returns."""
