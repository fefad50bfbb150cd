"""docs/metrics.md, the alerts and the board name what there is, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bockd.drivers.cache.directory import MIN_LIMIT_BYTES, CacheDirectory
from bockd.drivers.writeback.binding import LoggedPool
from bockd.drivers.writeback.directory import MIN_SEGMENTS, WriteBackDirectory
from bockd.drivers.writeback.segment import SEGMENT_BYTES
from bockd.pool.figures import Figure
from tests.daemon.metrics.scraping import Scrape
from tests.daemon.process import Bockd

ROOT = Path(__file__).parents[3]
DOC = ROOT / "docs" / "metrics.md"
RULES = ROOT / "contrib" / "prometheus" / "bockd.rules.yml"
BOARD = ROOT / "contrib" / "grafana" / "bockd.json"

OF_PROMETHEUS = "process_"
"""What begins so is of Prometheus's client: it says of each what it is."""

OF_GATEWAYS = ("bockd_cache_", "bockd_write_back_")
"""What only those have that are configured so."""

OF_CEPH = ("bockd_rbd_", *OF_GATEWAYS)
OF_LOCAL = ("bockd_local_",)
"""What only one kind of pool has."""

ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (?P<type>\w+) \| (?P<labels>.*?) \| (?P<about>.*) \|$", re.M
)
NAME = re.compile(r"\b(?:bockd|process)_[a-z0-9_]+")
SUFFIX = re.compile(r"_(?:bucket|sum|count)$")

Row = tuple[str, str, str]


def documented() -> dict[str, Row]:
    """Type, labels and sentence of each metric in the table."""
    return {
        found["name"]: (found["type"], found["labels"], found["about"])
        for found in ROW.finditer(DOC.read_text())
    }


def row_of(scrape: Scrape, family: str) -> tuple[str, Row]:
    """Return what the table is to say of a family."""
    found = scrape.families[family]
    name = f"{family}_total" if found.type == "counter" else family
    labels = sorted({label for one in found.samples for label in one.labels} - {"le"})
    return name, (found.type, ", ".join(f"`{label}`" for label in labels), found.documentation)


@pytest.fixture
def scrape(daemon: Bockd) -> Scrape:
    """Of a daemon that has done something of each kind."""
    daemon.bock("volume", "create", "one", "--size", "1M")
    limits = ("--iops", "100000", "--bps", "1GiB")
    daemon.bock("volume", "limit", "one", *limits)
    daemon.bock("tenant", "limit", "demo", *limits)
    daemon.bock("volume", "profile", "one", "ssd-sata")
    with daemon.connected("one") as client:
        client.pwrite(b"x" * 4096, 0)
        return Scrape.fresh(daemon)


def of_the_other_kind(scrape: Scrape) -> tuple[str, ...]:
    """Return how metrics begin that the daemon's kind of pool does not have."""
    local = scrape.values("bockd_build_info", driver="local")
    return OF_CEPH if local else (*OF_LOCAL, *OF_GATEWAYS)


def test_the_table_is_what_there_is(scrape: Scrape) -> None:
    rows = dict(
        row_of(scrape, family) for family in scrape.families if not family.startswith(OF_PROMETHEUS)
    )
    others = of_the_other_kind(scrape)
    of_this_kind = {n: row for n, row in documented().items() if not n.startswith(others)}
    assert of_this_kind == rows


def test_the_table_has_what_the_cache_measures(tmp_path: Path) -> None:
    directory = CacheDirectory.open(tmp_path / "cache", MIN_LIMIT_BYTES, lambda _steps: None)
    try:
        expected = dict(map(row_of_figure, directory.figures()))
    finally:
        directory.release()
    assert expected
    rows = {name: row for name, row in documented().items() if name.startswith("bockd_cache_")}
    assert rows == expected


def test_the_table_has_what_write_back_measures(tmp_path: Path) -> None:
    directory = WriteBackDirectory.open_directory(
        tmp_path / "logs",
        MIN_SEGMENTS * SEGMENT_BYTES,
        lambda _steps: None,
        LoggedPool("one", "a pool", lambda _directory: 0),
    )
    try:
        expected = dict(map(row_of_figure, directory.figures()))
    finally:
        directory.release()
    assert expected
    rows = {name: row for name, row in documented().items() if name.startswith("bockd_write_back")}
    assert rows == expected


def row_of_figure(figure: Figure) -> tuple[str, Row]:
    kind = "counter" if figure.name.endswith("_total") else "gauge"
    return f"bockd_{figure.name}", (kind, "", figure.about)


def known(scrape: Scrape) -> set[str]:
    """The names of all samples, and of those that only the other kind of pool has."""
    found = {sample.name for family in scrape.families.values() for sample in family.samples}
    return found | set(documented())


def expressions() -> list[str]:
    """All of the board's queries and of the rules."""
    board = json.loads(BOARD.read_text())
    queries = [target["expr"] for one in board["panels"] for target in one.get("targets", ())]
    chosen = [one["query"]["query"] for one in board["templating"]["list"] if "datasource" in one]
    rules = re.findall(r"^ +expr: (.*)$", RULES.read_text(), re.M)
    assert len(rules) == RULES.read_text().count("alert:") > 10
    assert len(queries) > 20
    return [*queries, *chosen, *rules]


def test_rules_and_board_name_only_metrics_that_there_are(scrape: Scrape) -> None:
    named = {name for one in expressions() for name in NAME.findall(one)}
    assert len(named) > 30
    assert named - known(scrape) == set()


def test_each_alert_is_in_the_docs_and_tested() -> None:
    alerts = re.findall(r"alert: (\w+)", RULES.read_text())
    section = DOC.read_text().split("## Alerts")[1].split("## ")[0]
    assert set(re.findall(r"Bockd\w+", section)) == set(alerts)
    tests = RULES.with_name("bockd.rules.test.yml").read_text()
    for alert in alerts:
        fires = re.search(rf"alertname: {alert}\n +exp_alerts:\n +- exp_labels", tests)
        assert fires, alert
        assert re.search(rf"alertname: {alert}, exp_alerts: \[\]", tests), alert
