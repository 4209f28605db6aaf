"""Simulates a fleet: SwiftClaw's strategies against other strategies and against theory, without Ray.

    python benchmarks/simulate.py            # everything, about 8 minutes on one idle core
    python benchmarks/simulate.py --jobs 4   # the same numbers, sooner
    python benchmarks/simulate.py --quick    # seconds; shows that it runs, the numbers mean little

Writes simulation.json, simulation.md and two drawings to benchmarks/results/ (--quick: only to the --output folder). Exit
status 1 if a required bound is missed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from simulation import report
from simulation.bounds import Bound, evaluate
from simulation.experiments import Results, run_plan
from simulation.report import Settings
from simulation.scenarios import plan

HERE = Path(__file__).parent
FULL = Settings(seeds=10, requests=3_000)
QUICK = Settings(seeds=2, requests=400)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = QUICK if options.quick else FULL
    settings = replace(settings, seeds=options.seeds or settings.seeds, requests=options.requests or settings.requests)
    output = options.output or (None if options.quick else HERE / "results")
    results = _run(settings, options.jobs)
    bounds = evaluate(results)
    if output is not None:
        _write(output, settings, results, bounds)
    print("\n".join(report.bounds_table(bounds)))
    return 0 if options.quick or all(bound.holds for bound in bounds if bound.required) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 seeds, 400 requests")
    parser.add_argument("--seeds", type=int, help=f"default {FULL.seeds}")
    parser.add_argument("--requests", type=int, help=f"per run, default {FULL.requests}")
    parser.add_argument("--jobs", type=int, default=1, help="processes, default 1")
    parser.add_argument("--output", type=Path, help="folder, default benchmarks/results")
    return parser


def _run(settings: Settings, jobs: int) -> Results:
    began = time.monotonic()

    def progress(line: str) -> None:
        print(f"\r{time.monotonic() - began:5.0f} s  {line:<40}", end="", file=sys.stderr)

    results = run_plan(plan(), seeds=settings.seeds, requests=settings.requests, jobs=jobs, progress=progress)
    print(file=sys.stderr)
    return results


def _write(output: Path, settings: Settings, results: Results, bounds: Sequence[Bound]) -> None:
    from simulation import plots  # matplotlib is needed only here

    output.mkdir(parents=True, exist_ok=True)
    note = (HERE / "simulation" / "note.md").read_text()
    report.write_json(output / "simulation.json", settings, results, bounds)
    report.write_markdown(output / "simulation.md", settings, results, bounds, note)
    plots.draw_comparison(output / "simulation-scenarios.svg", results)
    plots.draw_sweeps(output / "simulation-sweeps.svg", results)


if __name__ == "__main__":
    sys.exit(main())
