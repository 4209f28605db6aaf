"""Compares SwiftClaw with the routers that one would take instead, in front of the same stub agent on this machine.

    python benchmarks/routers.py                                # 3 rounds, about 25 minutes
    python benchmarks/routers.py --quick --output FOLDER        # 1 short round; shows that it runs, the numbers mean little
    python benchmarks/routers.py --only direct,haproxy,swiftclaw

nginx, HAProxy, vllm-router, sglang-router, and SwiftClaw in a running cluster with all of its rules, against calling the agent
directly. The same chat request and the same 20-chunk stream through each: rate and latency at 1, 16 and 64 connections and at
200 requests per second, 20 and 500 streams at a time, the router's CPU time and memory, and what clients notice of `kill -9`.

Needs `wrk`. What else is missing is fetched into .routers, or left out with a sentence
(benchmarks/routing/installed.py). The rounds are interleaved (A B C A B C …); each contender is started for its turn and
stopped after it. Writes routers.md, routers.json and routers.svg to benchmarks/results/ (--quick and --only: only
to the --output folder). Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from comparison import machine
from comparison.processes import CannotStart
from comparison.wrk import NoWrk, WrongAnswer, find_wrk
from routing import figures, installed, measures, report
from routing.figures import Run
from routing.installed import NotInstalled
from routing.measures import QUICK, Plan
from routing.routers import TURNS, fielded

RESULTS = Path(__file__).parent / "results"
SETTLE_S = 3  # after a start
FAILURES = (CannotStart, WrongAnswer, OSError, psutil.Error, subprocess.TimeoutExpired)  # of one turn, in one round
NAMES = tuple(name for turn in TURNS for name in turn)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _leave)
    _allow_many_files()
    try:
        wrk = find_wrk()
    except NoWrk as error:
        print(f"routers: {error}", file=sys.stderr)
        return 1
    described = machine.describe(installed.haproxy(), wrk)
    plan = QUICK if options.quick else Plan()
    is_whole = not options.quick and options.only == NAMES
    output = options.output or (RESULTS if is_whole else None)
    runs: list[Run] = []
    left_out: list[str] = []
    absent: set[str] = set()
    began = time.monotonic()
    for number in range(1, options.rounds + 1):
        for turn in TURNS:
            asked = tuple(name for name in turn if name in options.only)
            if not asked or turn[0] in absent:
                continue
            _say(began, f"round {number}: starting {' and '.join(asked)}")
            try:
                runs += _turn(turn, asked, plan, wrk, number, options.threads, began)
            except NotInstalled as error:
                absent.add(turn[0])
                left_out.append(str(error))
                _say(began, f"left out: {error}")
            except FAILURES as error:
                left_out.append(f"{' and '.join(asked)} in round {number}: {error}")
                _say(began, f"left out: {left_out[-1]}")
        document = _document(options, plan, described, left_out, runs)
        if output is not None:
            report.write(output, document)
    print("\n".join(report.tables(document)))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round of short measurements")
    parser.add_argument("--rounds", type=_positive, help="default 3")
    parser.add_argument("--only", type=_names, default=NAMES, metavar="NAMES", help=f"some of {','.join(NAMES)}")
    parser.add_argument("--threads", type=_positive, default=1, help="of HAProxy and of nginx, default 1")
    parser.add_argument("--output", type=Path, help="folder, default benchmarks/results")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := set(names).difference(NAMES):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: not one of {', '.join(NAMES)}")
    return names


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)  # through every `finally`


def _allow_many_files() -> None:
    """500 streams are 1000 connections of a router, and its limit of open files is ours."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536) if most > 0 else 65536, most))


def _turn(
    turn: Sequence[str], asked: Sequence[str], plan: Plan, wrk: str, number: int, threads: int, began: float
) -> list[Run]:
    """All measures of the contenders of one turn; failover is the last, since it ends instances."""
    runs = []

    def take(run: Run) -> None:
        runs.append(run)
        _say(began, str(run))

    with fielded(turn, threads) as running:
        routers = [router for router in running if router.name in asked]
        time.sleep(SETTLE_S)
        for router in routers:
            for run in measures.measure(router, plan, wrk, number):
                take(run)
        for router in routers:
            if router.kill is not None:
                take(measures.fail_over(router, plan, number))
    return runs


def _document(
    options: argparse.Namespace, plan: Plan, described: dict[str, Any], left_out: list[str], runs: Sequence[Run]
) -> dict[str, Any]:
    versions = {**described["versions"], "nginx": _nginx_version()}
    versions |= {package: installed.version(package) for package in ("vllm-router", "sglang-router")}
    return {
        "made": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": {**described, "versions": versions},
        "settings": {"rounds": options.rounds, "threads": options.threads, **asdict(plan)},
        "left_out": left_out,
        "table": [asdict(row) for row in figures.summarize(runs)],
        "runs": [asdict(run) for run in runs],
    }


def _nginx_version() -> str:
    try:
        return installed.nginx_version(installed.nginx())
    except NotInstalled:
        return "absent"


def _say(began: float, line: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
