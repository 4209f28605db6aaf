"""`scripts/campaign`: random faults under load on a cluster of its own, and whether the rules held.

Exit status: 0 no violation, 1 violations, 2 the run itself failed, or the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

from tests.campaign import record
from tests.campaign.checker import Verdict, judge
from tests.campaign.cluster import Settings
from tests.campaign.faults import FAULTS, Kind
from tests.campaign.plan import Plan, draw_up
from tests.campaign.publish import publish, publish_soak
from tests.campaign.record import DamagedRecord, Record
from tests.campaign.report import write_report
from tests.campaign.run import CampaignError, Run
from tests.campaign.shrink import shrink
from tests.campaign.trends import trends

SOAK_MINUTES, SOAK_GAP_S = 45.0, (50.0, 70.0)
SOAK_TTL_S = 300.0  # a gateway remembers a session for that long: its table is full before the time that is judged
# Gateways and Controller live through it, and grow old. No rollouts: each adds series to the Controller's history, which keeps
# 200 of them (22 MB), and would pass for a leak.
SOAK = (
    "kill_instance", "freeze_instance", "freeze_gateway", "freeze_controller", "freeze_node", "freeze_gcs",
    "kill_serve_controller", "unwritable_state", "slow_state", "scale", "retune", "sick", "rotate_key",
)  # fmt: skip
LONGEST_FOLDER = 24  # characters: Ray's sockets are far below it, and a socket's path is at most 107


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def select(names: str, network: bool) -> dict[str, Kind]:
    """The kinds with these names; a family (processes, operators, disk …) stands for all its kinds. "": all that can happen."""
    if not names:
        return {name: kind for name, kind in FAULTS.items() if network or kind.family != "network"}
    found: dict[str, Kind] = {}
    for name in names.split(","):
        family = {kind: one for kind, one in FAULTS.items() if one.family == name}
        chosen = {name: FAULTS[name]} if name in FAULTS else family
        if not chosen:
            families = sorted({one.family for one in FAULTS.values()})
            raise CampaignError(
                f"--faults: {name!r} is neither a kind ({', '.join(FAULTS)}) nor a family ({', '.join(families)})"
            )
        found |= chosen
    return found


def gap_s(text: str) -> tuple[float, float]:
    try:
        least, most = (float(number) for number in text.split(","))
    except ValueError:
        raise CampaignError(f"--gap: {text!r} is not two numbers of seconds with a comma between them") from None
    return least, most


def new_folder(name: str) -> Path:
    if not name:
        return Path(tempfile.mkdtemp(prefix="c-", dir="/tmp")) / "r"
    folder = Path(name).absolute()
    if folder.exists():
        raise CampaignError(f"--folder: {folder} exists; name one that does not")
    if len(str(folder)) > LONGEST_FOLDER:
        raise CampaignError(f"--folder: {folder} has more than {LONGEST_FOLDER} characters, too many for Ray's sockets")
    return folder


def perform(plan: Plan, settings: Settings, folder: Path) -> Verdict:
    """A run and its verdict, with a report of it."""
    say(f"seed {plan.seed}, {plan.seconds:g} s of faults: {folder}")
    with alone():
        Run(folder, plan, settings, say)()
    return report(folder)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Two campaigns at once would judge each other. Raises CampaignError."""
    with (Path(tempfile.gettempdir()) / f"swiftclaw-campaign-{os.getuid()}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CampaignError("another campaign runs on this machine, and each needs it for itself") from None
        yield


def report(folder: Path) -> Verdict:
    recorded = Record.from_folder(folder)
    verdict = judge(recorded)
    print(write_report(folder, recorded, verdict))
    return verdict


def soak(plan: Plan, settings: Settings, folder: Path) -> int:
    """A long run; whether a rule was broken or something grows."""
    violations = perform(plan, settings, folder).violations
    lines = trends(Record.from_folder(folder))
    print(*lines, *publish_soak(folder), sep="\n")
    return bool(violations or any(line.grows for line in lines))


def find_smallest(folder: Path, plan: Plan, settings: Settings, rule: str, runs: int) -> int:
    """Run parts of a plan for as long as a violation of the rule stays."""
    if not rule:
        violations = judge(Record.from_folder(folder)).violations
        if not violations:
            raise CampaignError(f"--shrink: the run in {folder} has no violation; name a rule")
        rule = violations[0].rule
    say(f"looking for the faults that a violation of {rule!r} needs, in at most {runs} runs")

    def still_fails(candidate: Plan) -> bool:
        verdict = perform(candidate, settings, new_folder(""))
        stays = any(violation.rule == rule for violation in verdict.violations)
        say(f"{len(candidate.faults)} faults: the violation {'stays' if stays else 'is gone'}")
        return stays

    smallest = shrink(plan, still_fails, runs)
    smallest.plan.write(folder / "smallest.json")
    limits = "" if smallest.minimal else f" (the {runs} runs are used up; there may be a smaller one)"
    print(f"the smallest plan that broke {rule!r}, {folder / 'smallest.json'}{limits}:")
    for fault in smallest.plan.faults:
        print(f"  {fault.at_s:6.1f} s  {fault.kind}")
    return 1


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/campaign", description="Random faults under load, and whether the rules held."
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the plan and the load (default: random)")
    parser.add_argument("--minutes", type=float, default=5.0, help="of faults (default: 5)")
    parser.add_argument("--faults", default="", metavar="KINDS", help="kinds or families of faults, with commas (default: all)")
    parser.add_argument("--gap", default="5,8", metavar="A,B", help="seconds from one fault to the next (default: 5,8)")
    parser.add_argument(
        "--pairs", type=float, default=0.3, metavar="P", help="share of faults that come in twos (default: 0.3)"
    )
    parser.add_argument("--network", action="store_true", help="a host per region, as network namespaces: needs root")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="of each gateway (default: 0)")
    parser.add_argument("--rate", type=float, default=80.0, help="requests per second (default: 80)")
    parser.add_argument(
        "--slack", type=float, default=1.0, metavar="S", help="seconds the machine may add to a time (default: 1)"
    )
    parser.add_argument("--folder", default="", help="of the run; must not exist, and have a short path (default: below /tmp)")
    parser.add_argument(
        "--replay", type=Path, metavar="FOLDER", help="run the plan of that run again (its smallest, if it has one)"
    )
    parser.add_argument(
        "--shrink", nargs="?", const="", metavar="RULE", help="with --replay: find the faults that a violation needs"
    )
    parser.add_argument("--runs", type=int, default=12, help="with --shrink: at most so many (default: 12)")
    parser.add_argument(
        "--soak",
        action="store_true",
        help=f"{SOAK_MINUTES:g} minutes with about a fault a minute; shows whether anything grows, and writes "
        "benchmarks/results/soak.md",
    )
    parser.add_argument(
        "--publish", type=Path, nargs="+", metavar="FOLDER", help="write benchmarks/results/campaign.md of these runs"
    )
    parser.add_argument("--check", type=Path, metavar="FOLDER", help="judge a record again, without a run")
    return parser.parse_args(words)


def _wrong(words: argparse.Namespace) -> str:
    """What makes no sense, before anything starts; "": nothing."""
    try:
        least, most = (float(number) for number in words.gap.split(","))
    except ValueError:
        return f"--gap: {words.gap!r} is not two numbers with a comma, such as 5,8"
    senses = {
        "--minutes: must be above 0": 0 < words.minutes < inf,
        "--rate: must be above 0": 0 < words.rate < inf,
        "--slack: must be 0 or more": 0 <= words.slack < inf,
        "--pairs: must be from 0 to 1": 0 <= words.pairs <= 1,
        "--workers: must be 0 or more": words.workers >= 0,
        "--runs: must be 1 or more": words.runs >= 1,
        "--gap: must be two numbers above 0, the smaller first": 0 < least <= most < inf,
        "--shrink: needs --replay FOLDER": words.shrink is None or words.replay is not None,
        "--soak, --replay, --check and --publish: only one of them": sum(
            map(bool, (words.soak, words.replay, words.check, words.publish))
        ) <= 1,
    }  # fmt: skip
    return next((problem for problem, sensible in senses.items() if not sensible), "")


def campaign(words: argparse.Namespace) -> int:
    if wrong := _wrong(words):
        raise CampaignError(wrong)
    if words.check:
        return bool(report(words.check).violations)
    if words.publish:
        print(*publish(words.publish), sep="\n")
        return 0
    settings = Settings(
        rate=words.rate, slack=words.slack, breaker=2 * words.slack, network=words.network, workers=words.workers
    )
    if words.soak:
        settings = replace(settings, ttl=SOAK_TTL_S)
        return soak(draw_up(words.seed, 60 * SOAK_MINUTES, select(",".join(SOAK), False), gap_s=SOAK_GAP_S, pairs=0), settings,
                    new_folder(words.folder))  # fmt: skip
    if words.replay:
        facts = Record.from_folder(words.replay).facts
        settings = Settings.from_facts(facts.settings)
        plan = Plan.read(next(one for name in ("smallest.json", record.PLAN) if (one := words.replay / name).exists()))
        if words.shrink is not None:
            return find_smallest(words.replay, plan, settings, words.shrink, words.runs)
    else:
        kinds = select(words.faults, words.network)
        plan = draw_up(words.seed, 60 * words.minutes, kinds, gap_s=gap_s(words.gap), pairs=words.pairs)
    return bool(perform(plan, settings, new_folder(words.folder)).violations)


def main(words: list[str] | None = None) -> int:
    try:
        return campaign(parse(words))
    except (CampaignError, DamagedRecord, OSError) as error:
        print(f"the campaign failed: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("the campaign was interrupted", file=sys.stderr)
    except Exception:  # else Python's exit status would be that of violations
        traceback.print_exc()
    return 2


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cluster is taken down then, too
    sys.exit(main())
