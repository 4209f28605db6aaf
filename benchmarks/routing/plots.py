"""One figure of the comparison, from the same rows as the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from routing.report import TITLES

PANELS = (  # title, measure, figure, format; longer is better only in the first
    ("requests per second, 64 connections", "requests-64", "per_second", ",.0f"),
    ("p99 ms at 200 requests per second", "paced", "p99_ms", ".2f"),
    ("CPU s of the router per 1,000 requests", "requests-16", "cpu_s_per_1000", ".3f"),
    ("CPU s of the router per 1,000 streams", "streams-20", "cpu_s_per_1000", ".2f"),
    ("first chunk, p50 ms, 20 streams", "streams-20", "first_p50_ms", ".2f"),
    ("RSS of the router in MB", "standing", "end_mb", ".0f"),
)
COLOURS = {"swiftclaw": "#3182bd", "direct": "#d0d0d0", "instance": "#d0d0d0"}  # by the first word of the name
OTHERS = "#8c8c8c"
BASES = ("direct", "instance")  # no routers: shown where they are a base, not where they would be a limit


def draw(path: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Bars per contender, and the range of the rounds on each."""
    rows = {(row["contender"], row["measure"]): row for row in table}
    figure, panels = plt.subplots(2, 3, figsize=(13, 5.6))
    for axes, (title, measure, name, spec) in zip(panels.flat, PANELS, strict=True):
        shown = [
            contender
            for contender in TITLES
            if name in rows.get((contender, measure), {}).get("figures", {})
            and not (contender in BASES and name == "per_second")
        ]
        values = [rows[contender, measure]["figures"][name] for contender in shown]
        lows = [value - rows[contender, measure]["lowest"][name] for contender, value in zip(shown, values, strict=True)]
        highs = [rows[contender, measure]["highest"][name] - value for contender, value in zip(shown, values, strict=True)]
        colours = [COLOURS.get(contender.partition("-")[0], OTHERS) for contender in shown]
        axes.barh(range(len(shown)), values, xerr=[lows, highs], color=colours, ecolor="#404040", height=0.7)
        for place, (value, high) in enumerate(zip(values, highs, strict=True)):
            axes.text(value + high, place, f" {value:{spec}}", va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [TITLES[contender] for contender in shown], fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlim(left=0)
        axes.set_title(title, fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "routers"  # the same drawing gives the same file
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
