"""What is counted is what a client counts, to the request: over gateways, and when one of them or the Controller is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.conftest import Cluster, get, until
from tests.integration.load import NO_ANSWER, Load, Sent, note

pytestmark = pytest.mark.cluster

AGENT = {
    "agent": "examples.support:agent",
    "regions": {"us-east-1": {"instances": 2, "priority": 1}, "eu-west-1": {"instances": 2, "priority": 1}},
}
KEPT, FRESH, WRONG = 90.0, 80.0, 30.0  # requests a second: on kept connections, on new ones, to an agent that is not there
SETTLED_S = 4.0  # counts that come twice would have come


@pytest.fixture(scope="module")
def counting(shared: Cluster) -> Cluster:
    shared.write({"my-agent": AGENT})
    shared.up()
    return shared


def scraped(cluster: Cluster) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every counter and every bucket."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(get(f"{cluster.admin}/metrics"))
        if family.name.startswith("swiftclaw_") and family.type in ("counter", "histogram")
        for sample in family.samples
    }


def totals(cluster: Cluster) -> Counter[str]:
    """`swiftclaw_requests_total` by code, over everything else."""
    found: Counter[str] = Counter()
    for (name, labels), value in scraped(cluster).items():
        if name == "swiftclaw_requests_total":
            found[dict(labels)["code"]] += int(value)
    return found


@dataclass
class Scraper:
    """Scrapes all the time and looks for steps back. `lives`: 1 more for each Controller."""

    cluster: Cluster
    lives: int = 1
    scrapes: int = 0
    back: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        before: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        controller = self.cluster.controller_pid()
        while not self.ended.wait(0.2):
            try:
                now = scraped(self.cluster)
                pid = self.cluster.controller_pid()
            except (OSError, ValueError, IndexError):
                continue  # the Controller is away
            if pid != controller:
                controller, before = pid, {}
                self.lives += 1
                continue  # who answered is not certain
            self.scrapes += 1
            self.back += [f"{key}: {value} -> {now.get(key)}" for key, value in before.items() if now.get(key, -1) < value]
            before = now


@pytest.fixture
def scraper(counting: Cluster) -> Iterator[Scraper]:
    scraper = Scraper(counting)
    thread = threading.Thread(target=scraper.run)
    thread.start()
    try:
        yield scraper
    finally:
        scraper.ended.set()
        thread.join(30)


async def offered(cluster: Cluster, seconds: float, pid: int | None = None) -> tuple[list[Sent], float]:
    """Answers that are kept, broken connections and refusals; in the middle of it a process is killed, and when."""
    killed_at = 0.0
    loads = [
        Load(cluster.url, rate=KEPT),
        Load(cluster.url, rate=FRESH, headers={"connection": "close"}),
        Load(cluster.url, rate=WRONG, agent="nobody", headers={"connection": "close"}),
    ]

    async def kill() -> None:
        nonlocal killed_at
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            killed_at = time.monotonic()

    await asyncio.gather(loads[0].run(seconds, then=kill, at=seconds / 2), *(load.run(seconds) for load in loads[1:]))
    return [sent for load in loads for sent in load.sent], killed_at


def answered(sent: list[Sent]) -> Counter[str]:
    return Counter(str(one.status) for one in sent if one.kind != NO_ANSWER)


def no_less(found: Counter[str], counted: Counter[str]) -> bool:
    return all(found[code] >= count for code, count in counted.items())


async def test_over_two_gateways_and_two_regions_it_is_the_clients_count(counting: Cluster, scraper: Scraper) -> None:
    before = totals(counting)
    counted = answered((await offered(counting, 6.0))[0])
    assert counted["200"] > 500 and counted["404"] > 100 and len(counted) == 2
    until(lambda: no_less(totals(counting) - before, counted), "all to be told", 30)
    await asyncio.sleep(SETTLED_S)
    assert totals(counting) - before == counted
    regions = {
        dict(labels)["region"] for (name, labels), n in scraped(counting).items() if n and name.endswith("requests_total")
    }
    assert regions == {"us-east-1", "eu-west-1", ""}
    assert scraper.scrapes > 10 and not scraper.back


async def test_a_gateway_that_is_killed_takes_no_count_along_and_none_goes_back(counting: Cluster, scraper: Scraper) -> None:
    before = totals(counting)
    known = {gateway["pid"] for gateway in counting.gateways()}
    assert len(known) == 2
    sent, _ = await offered(counting, 8.0, pid=min(known))
    counted, lost = answered(sent), sum(one.kind == NO_ANSWER for one in sent)
    until(lambda: no_less(totals(counting) - before, counted), f"all of {counted} to be told", 30)
    until(lambda: len({gateway["pid"] for gateway in counting.gateways()} - {min(known)}) == 2, "another gateway")
    await asyncio.sleep(SETTLED_S)
    found = totals(counting) - before
    note(f"a gateway was killed: {counted.total()} answered, {lost} not, {found.total()} counted")
    assert set(found) == set(counted)
    assert counted.total() <= found.total() <= counted.total() + lost
    assert no_less(found, counted), "each code for itself"
    assert scraper.lives == 1 and scraper.scrapes > 10 and not scraper.back


async def test_a_new_controller_starts_at_nothing_and_counts_what_was_not_told(counting: Cluster, scraper: Scraper) -> None:
    before = totals(counting).total()
    sent, killed_at = await offered(counting, 8.0, pid=counting.controller_pid())
    counted = answered(sent)
    assert counted.total() == len(sent), "no request notices"
    after = Counter(str(one.status) for one in sent if one.ended > killed_at + 0.2)  # told to nobody before
    until(lambda: scraper.lives == 2 and no_less(totals(counting), after), "the new Controller to know of what came since", 60)
    await asyncio.sleep(SETTLED_S)
    found = totals(counting)
    note(f"the Controller was killed: {before} before, {counted.total()} sent meanwhile, the new one counts {found.total()}")
    assert before > counted.total() >= found.total(), "nothing of what the old one had counted"
    assert not scraper.back
