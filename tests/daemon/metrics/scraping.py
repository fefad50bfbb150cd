"""Scraping a daemon's metrics, and looking things up in them."""

from __future__ import annotations

import httpx
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.daemon.process import Bockd

FRESH_SECONDS = 1.0
"""What `api.metrics.app` keeps of a scrape."""


def get(daemon: Bockd, path: str) -> httpx.Response:
    """Ask on the control API's socket."""
    transport = httpx.HTTPTransport(uds=str(daemon.data_dir / "api.sock"))
    with httpx.Client(transport=transport) as client:
        return client.get(f"http://bockd{path}", timeout=60)


class Scrape:
    """The metrics of one moment."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    @classmethod
    def fresh(cls, daemon: Bockd) -> Scrape:
        """One that was begun after the call."""
        old = get(daemon, "/metrics").text
        while (text := get(daemon, "/metrics").text) == old:
            pass  # its own requests are in it, so that no two are the same
        return cls(text)

    def values(self, sample: str, **labels: str) -> list[float]:
        """Of all samples of a name that have these labels."""
        return [
            one.value
            for family in self.families.values()
            for one in family.samples
            if one.name == sample and labels.items() <= one.labels.items()
        ]

    def value(self, sample: str, **labels: str) -> float:
        """Of the only one."""
        (found,) = self.values(sample, **labels)
        return found

    def label(self, sample: str, label: str) -> set[str]:
        """The values of a label."""
        return {
            one.labels[label]
            for family in self.families.values()
            for one in family.samples
            if one.name == sample
        }


def names_of(family: Metric) -> set[str]:
    """Return the names of a family's samples."""
    return {sample.name for sample in family.samples}
