"""What the comparison's report says of given runs; nothing is started here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from comparison import report
from comparison.figures import Run, summarize

MACHINE: dict[str, Any] = {
    "cpu": "a CPU", "cores": 2, "memory_gb": 4, "system": "Linux", "load_before": 0.1, "versions": {"ray": "2.60.0"},
}  # fmt: skip
SETTINGS: dict[str, Any] = {"rounds": 3, "seconds": 5, "warm_up_s": 2}
REFERENCES = ("serve", "serve-haproxy", "haproxy")


def run(contender: str, requests: int, *, number: int = 1, connections: int = 64, **more: Any) -> Run:
    given = {"seconds": 2.0, "p50_ms": 1.0, "p99_ms": 4.0, "refused": 0, "broken": 0, **more}
    return Run(contender, connections, number, requests=requests, **given)


def test_a_row_has_the_median_and_the_range_over_the_rounds() -> None:
    speeds = [run("swiftclaw", requests, number=n) for n, requests in enumerate((200, 2000, 220))]
    (row,) = summarize(speeds, REFERENCES)
    assert (row.rounds, row.per_second, row.lowest, row.highest) == (3, 110, 100, 1000)


def test_percentiles_are_medians_of_the_rounds_percentiles() -> None:
    rounds = [run("serve", 10, number=n, p50_ms=n, p99_ms=10 * n) for n in (1, 9, 2)]
    (row,) = summarize(rounds, ())
    assert (row.p50_ms, row.p99_ms) == (2, 20)


def test_refused_requests_are_not_counted_as_speed() -> None:
    (row,) = summarize([run("serve", 100, refused=40, broken=3)], ())
    assert row.per_second == 30
    assert row.errors == 43


def test_errors_are_added_up_over_the_rounds() -> None:
    (row,) = summarize([run("serve", 10, number=n, broken=n) for n in (1, 2, 3)], ())
    assert row.errors == 6


def test_ratios_are_between_medians_at_the_same_number_of_connections() -> None:
    runs = [run("serve", 10, connections=c) for c in (1, 64)]
    runs += [run("swiftclaw", 40, connections=1), run("swiftclaw", 100, connections=64)]
    ratios = {(row.contender, row.connections): row.ratios for row in summarize(runs, ("serve",))}
    assert ratios["swiftclaw", 1] == {"serve": 4}
    assert ratios["swiftclaw", 64] == {"serve": 10}
    assert ratios["serve", 64] == {"serve": 1}


def test_a_reference_that_did_not_run_or_answered_nothing_has_no_ratio() -> None:
    rows = summarize([run("serve", 0), run("swiftclaw", 100)], REFERENCES)
    assert all(row.ratios == {} for row in rows)
    assert report.table(rows)[-1].endswith("| - | - | - |")


def test_rows_are_sorted_by_connections_then_in_the_order_of_the_contest() -> None:
    names = ("serve", "serve-haproxy", "haproxy", "swiftclaw")
    runs = [run(name, 10, connections=c, number=n) for n in (1, 2) for name in names for c in (64, 1)]
    rows = summarize(runs, REFERENCES)
    assert [(row.connections, row.contender) for row in rows] == [(c, name) for c in (1, 64) for name in names]


def test_a_measurement_that_took_no_time_has_no_speed() -> None:
    assert run("serve", 10, seconds=0.0).per_second == 0


def test_the_json_has_every_run_and_the_page_the_machine() -> None:
    runs = [run("serve", 10), run("swiftclaw", 105)]
    rows = summarize(runs, REFERENCES)
    document = json.loads(report.as_json("today", MACHINE, SETTINGS, runs, rows))
    assert [one["requests"] for one in document["runs"]] == [10, 105]
    assert document["table"][1]["ratios"] == {"serve": pytest.approx(10.5)}
    page = report.as_markdown("today", MACHINE, SETTINGS, rows)
    assert "a CPU, 2 cores" in page and "ray 2.60.0" in page and "| 10.5 : 1 |" in page
