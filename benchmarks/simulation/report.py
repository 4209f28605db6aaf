"""Writes the results as a JSON file and a page of Markdown tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from simulation import scenarios as s
from simulation.bounds import Bound
from simulation.experiments import Key, Results, summary
from simulation.scenarios import Case, Scenario
from simulation.stats import Interval, Metrics


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that determine the numbers."""

    seeds: int
    requests: int
    load: float = s.LOAD
    instances: int = 8
    gateways: int = s.GATEWAYS
    exchange_s: float = s.EXCHANGE_S


def write_json(path: Path, settings: Settings, results: Results, bounds: Sequence[Bound]) -> None:
    document = {
        "settings": asdict(settings),
        "bounds": [asdict(bound) | {"holds": bound.holds, "verdict": bound.verdict} for bound in bounds],
        "results": [_row(results, key) for key in results],
    }
    path.write_text(json.dumps(_rounded(document), indent=1) + "\n")


def write_markdown(path: Path, settings: Settings, results: Results, bounds: Sequence[Bound], note: str) -> None:
    path.write_text("\n".join(_page(settings, results, bounds, note)) + "\n")


def bounds_table(bounds: Iterable[Bound]) -> list[str]:
    rows = [
        [
            bound.claim,
            bound.where,
            f"{'≥' if bound.at_least else '≤'} {bound.limit:.3g}",
            _number(bound.measured, 4 if bound.at_least else 3),
            bound.verdict if bound.required else f"({bound.verdict})",
        ]
        for bound in bounds
    ]
    return _table(["claim", "scenario", "bound", "measured", "verdict"], rows)


def _row(results: Results, key: Key) -> dict[str, object]:
    names = [metric.name for metric in fields(Metrics)]
    return {
        "scenario": key[0],
        "contender": key[1],
        "gateways": key[2],
        **{name: [getattr(metrics, name) for metrics in results[key]] for name in names},
        "interval_95": {name: asdict(summary(results, key, name)) for name in names},
    }


def _rounded(value: object) -> object:
    """Round to six digits: more than the seeds can distinguish; more would make every run a diff of every line."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value


def _page(settings: Settings, results: Results, bounds: Sequence[Bound], note: str) -> Iterable[str]:
    required = [bound for bound in bounds if bound.required]
    held = sum(bound.holds for bound in required)
    yield "# Fleet simulation"
    yield ""
    yield (
        f"{settings.instances} instances, {settings.gateways} gateways, load {settings.load:g}, {settings.seeds} seeds, "
        f"{settings.requests} requests each (the first tenth is not counted); mean ± 95 % confidence interval. "
        "Times relative to a central queue that gets the same requests. One service time = one second. In brackets: what "
        f"the gateways know. Made by `python benchmarks/simulate.py --seeds {settings.seeds} --requests {settings.requests}`; "
        "the same seeds give the same numbers."
    )
    yield from ("", f"## Bounds: {held} of {len(required)} hold", "")
    yield "In parentheses: not required, shown for the reader."
    yield from ("", *bounds_table(bounds), "", note.strip())
    for metric, title in (("mean_ratio", "Mean time"), ("p50_ratio", "Median"), ("p99_ratio", "p99")):
        yield from ("", f"## {title} over the central queue's", "", *_comparison(results, metric))
    yield from ("", "## One bad instance", "", *_bad_instance(results))
    yield from ("", "## Number of gateways: mean time over the central queue's", "", *_gateways(results))
    yield from ("", "## Period of the exchange: mean time over the central queue's", "", *_exchanges(results))


def _comparison(results: Results, metric: str) -> list[str]:
    rows = [
        [contender.name, *(_cell(results, Case(scenario, contender), metric) for scenario in s.SCENARIOS)]
        for contender in s.OURS + s.PEERS
    ]
    return _table(["", *(scenario.title for scenario in s.SCENARIOS)], rows)


def _bad_instance(results: Results) -> list[str]:
    def cells(scenario: Scenario, contender: s.Contender) -> Iterable[str]:
        case = Case(scenario, contender)
        yield _number(summary(results, case.key, "success"), 4)
        yield _number(summary(results, case.key, "bad_share"), 4)

    header = [f"{scenario.title}: {what}" for scenario in s.BAD_INSTANCE for what in ("success", "its share")]
    rows = [
        [contender.name, *(cell for scenario in s.BAD_INSTANCE for cell in cells(scenario, contender))]
        for contender in s.OURS + s.PEERS_OF_THE_BAD
    ]
    return _table(["", *header], rows)


def _gateways(results: Results) -> list[str]:
    rows: dict[tuple[str, str], list[str]] = {}
    for case in s.sweep_of_gateways():
        rows.setdefault((case.contender.name, case.scenario.title), []).append(_cell(results, case, "mean_ratio"))
    return _table(["", "scenario", *map(str, s.GATEWAY_COUNTS)], [[*names, *cells] for names, cells in rows.items()])


def _exchanges(results: Results) -> list[str]:
    rows: dict[tuple[str, str], list[str]] = {}
    for case in s.sweep_of_exchanges():
        name = case.contender.rule + ("" if case.contender.knowledge.reports else ", no reports")
        rows.setdefault((name, case.scenario.title), []).append(_cell(results, case, "mean_ratio"))
    header = ["", "scenario", *(f"every {every_s:g}" for every_s in s.EXCHANGES_S)]
    return _table(header, [[*names, *cells] for names, cells in rows.items()])


def _cell(results: Results, case: Case, metric: str) -> str:
    return _number(summary(results, case.key, metric))


def _number(interval: Interval, digits: int = 2) -> str:
    return f"{interval.mean:.{digits}f} ± {interval.half:.{digits}f}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
