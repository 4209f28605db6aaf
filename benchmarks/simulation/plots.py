"""Two figures of the comparison, from the same results as the tables."""

from __future__ import annotations

from pathlib import Path
from textwrap import fill

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from simulation import scenarios as s
from simulation.experiments import Results, summary
from simulation.scenarios import Case

SHOWN = (
    (s.RANDOM, "#b0b0b0"),
    (s.ROUND_ROBIN, "#8c8c8c"),
    (s.P2C_EXCHANGE, "#d98c5f"),
    (s.LEAST_IN_FULL, "#9ecae1"),
    (s.LEAST_REPORTS, "#6baed6"),
    (s.LEAST_EXCHANGE, "#3182bd"),
    (s.RESPONSE_EXCHANGE, "#2ca25f"),
    (s.JSQ, "#404040"),
)
HIGHEST = 5.0  # random choice is off the scale where speeds differ; its number stands on the bar


def draw_comparison(path: Path, results: Results) -> None:
    """Bars: mean time over the central queue's, per scenario and contender."""
    figure, axes = plt.subplots(figsize=(13, 4.8))
    width = 0.85 / len(SHOWN)
    for number, (contender, colour) in enumerate(SHOWN):
        values = [summary(results, Case(scenario, contender).key, "mean_ratio") for scenario in s.SCENARIOS]
        places = [place + number * width for place in range(len(values))]
        axes.bar(
            places,
            [min(value.mean, HIGHEST) for value in values],
            width,
            yerr=[value.half if value.mean < HIGHEST else 0.0 for value in values],
            color=colour,
            ecolor="#202020",
            label=contender.name,
        )
        for place, value in zip(places, values, strict=True):
            if value.mean > HIGHEST:
                axes.text(place, HIGHEST, f"{value.mean:.0f}", ha="center", va="bottom", fontsize=7)
    axes.axhline(1.0, color="#202020", linewidth=0.8)
    axes.set_ylim(0.8, HIGHEST * 1.05)
    axes.set_xticks([place + 0.425 - width / 2 for place in range(len(s.SCENARIOS))])
    axes.set_xticklabels([_folded(scenario.title) for scenario in s.SCENARIOS], fontsize=8)
    axes.set_ylabel("mean time / central queue's")
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.02), frameon=False)
    _save(figure, path)


def draw_sweeps(path: Path, results: Results) -> None:
    """Lines: what the number of gateways and the age of their knowledge cost."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    for panel, cases, across in (
        (left, s.sweep_of_gateways(), "gateways"),
        (right, s.sweep_of_exchanges(), "exchange"),
    ):
        lines: dict[str, list[tuple[float, Case]]] = {}
        for case in cases:
            knowledge = case.contender.knowledge
            if across == "gateways":
                name, at = case.contender.name, float(case.gateways)
            else:
                name, at = case.contender.rule + ("" if knowledge.reports else ", no reports"), knowledge.exchange_s or 0.0
            lines.setdefault(f"{name}, {case.scenario.name}", []).append((at, case))
        for name, points in lines.items():
            values = [summary(results, case.key, "mean_ratio") for _, case in points]
            panel.errorbar(
                [at for at, _ in points],
                [value.mean for value in values],
                yerr=[value.half for value in values],
                marker="o",
                markersize=3,
                linewidth=1.2,
                linestyle="-" if points[0][1].contender.knowledge.reports and "in full" not in name else "--",
                label=name,
            )
        panel.set_xscale("log")
        ticks = s.GATEWAY_COUNTS if across == "gateways" else s.EXCHANGES_S
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.legend(fontsize=7)
    left.set_xlabel("gateways")
    right.set_xlabel(f"service times between exchanges ({s.GATEWAYS} gateways)")
    left.set_ylabel("mean time / central queue's")
    _save(figure, path)


def _folded(title: str) -> str:
    return fill(title, 18)


def _save(figure: Figure, path: Path) -> None:
    plt.rcParams["svg.hashsalt"] = "simulation"  # the same drawing gives the same file
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
