"""The pages that show results add up, and hide no violation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.campaign.publish import campaign_page, publish, soak_page
from tests.campaign.trends import Trend


def figures(**changes: Any) -> dict[str, Any]:
    return {
        "seed": 7, "seconds": 300.0, "rate": 80.0, "slack": 1.0,
        "date": "2026-01-02T03:04:05+00:00", "machine": "Linux", "commit": "abc", "requests": 1000,
        "answered": 990, "excused": {"instance_failed: its instance was killed": 10}, "faults": 50, "sessions": 40,
        "faults_by_kind": {"kill_instance": 50}, "double_executions": 0, "sessions_moved_without_cause": 0,
        "settled_after_s": 1.5, "violations": [], **changes,
    }  # fmt: skip


def test_the_last_line_is_the_sum_of_the_seeds() -> None:
    page = campaign_page([figures(), figures(seed=8, requests=500, answered=499, settled_after_s=4.0)])
    assert "| 7 | 50 | 1,000 | 990 | 10 | 0 | 0 | 1.5 s | 0 |" in page
    assert "| **all** | 100 | 1,500 | 1,489 | 20 | 0 | 0 | 4 s | 0 |" in page
    assert "- 100 kill_instance" in page and page.rstrip().endswith("None.")


def test_a_violation_and_a_run_that_did_not_settle_are_shown() -> None:
    violation = {"rule": "once", "text": "r1 ran twice", "at": 12.0}
    page = campaign_page([figures(), figures(seed=8, violations=[violation], double_executions=1, settled_after_s=None)])
    assert "| 8 | 50 | 1,000 | 990 | 10 | 1 | 0 | not | 1 |" in page
    assert "| not | 1 |" in page and "- seed 8, 12.0 s: once: r1 ran twice" in page


def test_the_raw_figures_are_kept(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b")]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(figures(seed=number)))
    page, raw = publish(folders, tmp_path)
    assert page.read_text() == campaign_page(json.loads(raw.read_text()))
    assert [run["seed"] for run in json.loads(raw.read_text())] == [0, 1]


def test_what_grows_is_named() -> None:
    lines = [Trend("gateway 1: memory", "MiB", 2400, 160, 20, 2), Trend("gateway 1: threads", "threads", 2400, 30, 0.1, 0.2)]
    page = soak_page(figures(), lines)
    assert "1 of 2 grow." in page and "| gateway 1: memory | 160 MiB | +20 ± 4 | 40 min | **grows** |" in page
    assert "None of the 1 lines grows." in soak_page(figures(), lines[1:])
