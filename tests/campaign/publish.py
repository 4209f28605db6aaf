"""The results that the repository shows: a table of campaigns, and the trends of a long run, each with its raw figures."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.campaign import report
from tests.campaign.record import Record
from tests.campaign.trends import Trend, trends

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COLUMNS = (
    "seed", "faults", "requests", "answered", "failed, excused", "ran twice", "sessions moved without cause", "settled after",
    "violations",
)  # fmt: skip
Figures = dict[str, Any]


def publish(folders: Sequence[Path], results: Path = RESULTS) -> list[Path]:
    """Write campaign.md and campaign.json of the runs in these folders; the files."""
    runs = sorted((json.loads((folder / report.JSON).read_text()) for folder in folders), key=lambda run: str(run["date"]))
    return _write(results, "campaign", campaign_page(runs), runs)


def publish_soak(folder: Path, results: Path = RESULTS) -> list[Path]:
    """Write soak.md and soak.json of the run in this folder; the files."""
    run, lines = json.loads((folder / report.JSON).read_text()), trends(Record.from_folder(folder))
    return _write(results, "soak", soak_page(run, lines), {**run, "trends": [asdict(one) for one in lines]})


def _write(results: Path, name: str, page: str, raw: object) -> list[Path]:
    files = [results / f"{name}.md", results / f"{name}.json"]
    files[0].write_text(page)
    files[1].write_text(json.dumps(raw, indent=1) + "\n")
    return files


def campaign_page(runs: Sequence[Figures]) -> str:
    """A line per seed and one for all of them; then what the faults were and what excused a failure."""
    rows = [_row(str(run["seed"]), [run]) for run in runs]
    broken = [
        f"- seed {run['seed']}, {violation['at']} s: {violation['rule']}: {violation['text']}"
        for run in runs
        for violation in run["violations"]
    ]
    return "\n".join(
        [
            "# Campaigns of random faults",
            "",
            _made(runs, "scripts/campaign --seed SEED"),
            "What the columns and rules mean: [docs/reliability.md](../../docs/reliability.md).",
            "",
            f"| {' | '.join(COLUMNS)} |",
            f"| --- |{' ---: |' * (len(COLUMNS) - 1)}",
            *rows,
            _row("**all**", runs),
            "",
            "## Faults that took effect",
            "",
            *_counts(runs, "faults_by_kind"),
            "",
            "## What excused a failed request",
            "",
            *_counts(runs, "excused"),
            "",
            "## Violations",
            "",
            *(broken or ["None."]),
            "",
        ]
    )


def soak_page(run: Figures, lines: Sequence[Trend]) -> str:
    rows = [
        f"| {one.what} | {one.start:.4g} {one.unit} | {one.slope:+.3g} ± {2 * one.error:.2g} | {one.watched_s / 60:.0f} min | "
        f"{'**grows**' if one.grows else 'flat'} |"
        for one in lines
    ]
    growing = sum(one.grows for one in lines)
    return "\n".join(
        [
            "# A long run under load and faults",
            "",
            _made([run], "scripts/campaign --soak"),
            f"{run['requests']:,} requests, {run['answered']:,} answered; {run['faults']} faults took effect "
            f"({_words(run['faults_by_kind'])}); {run['sessions']:,} sessions; {len(run['violations'])} violations of the "
            "rules in [docs/reliability.md](../../docs/reliability.md).",
            "",
            "The slope of each line is given per hour with two standard errors. It grows if it rises by more than that, and by",
            "more than a hundredth of its value in the time that was watched (tests/campaign/trends.py). No fault kills the",
            "gateways and the Controller in this run, so that they grow old; a process's first ten minutes are not counted.",
            "",
            f"{growing} of {len(lines)} grow." if growing else f"None of the {len(lines)} lines grows.",
            "",
            "| | at first | slope per hour | watched | |",
            "| --- | ---: | ---: | ---: | --- |",
            *rows,
            "",
        ]
    )


def _made(runs: Sequence[Figures], command: str) -> str:
    days = sorted({str(run["date"])[:10] for run in runs})
    commits, machines = (sorted({str(run[name]) for run in runs}) for name in ("commit", "machine"))
    loads = " or ".join(sorted({f"{run['rate']:g} requests per second with a slack of {run['slack']:g} s" for run in runs}))
    minutes = sorted({f"{run['seconds'] / 60:g}" for run in runs})
    return (
        f"{' to '.join(days[:: max(1, len(days) - 1)])}; {'; '.join(machines)}; commit {', '.join(commits)}; "
        f"{' or '.join(minutes)} minutes of faults each, {loads}. Made by `{command}`."
    )


def _row(name: str, runs: Sequence[Figures]) -> str:
    def total(of: str) -> int:
        return sum(int(run[of]) for run in runs)

    requests, answered = total("requests"), total("answered")
    excused = sum(sum(run["excused"].values()) for run in runs)
    settled = [run["settled_after_s"] for run in runs]
    after = "not" if None in settled else f"{max(settled):g} s"
    cells = [
        name, f"{total('faults')}", f"{requests:,}", f"{answered:,}", f"{excused:,}", f"{total('double_executions')}",
        f"{total('sessions_moved_without_cause')}", after, f"{sum(len(run['violations']) for run in runs)}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _counts(runs: Iterable[Figures], name: str) -> list[str]:
    totals: Counter[str] = Counter()
    for run in runs:
        totals.update(run[name])
    return [f"- {count:,} {what}" for what, count in totals.most_common()] or ["None."]


def _words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items())
