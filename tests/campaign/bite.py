"""`python -m tests.campaign.bite [NAME…]`: does the campaign find the defects that are put into the product on purpose?

For each: a copy of the tree with the defect, and short runs of the campaign there, until a violation is found or the seeds are
used up. The table in benchmarks/results/campaign-defects.md keeps the rows of defects that were not tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.campaign.checker import check
from tests.campaign.defects import DEFECTS, Defect, find
from tests.campaign.record import Record
from tests.campaign.report import group

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "benchmarks/results/campaign-defects.md"
SEEDS = (1, 2, 3)
RUN_S = 1800.0  # of a run, and of the wait for the lock
_START, _END = "<!-- results: ", " -->"


@dataclass(frozen=True)
class Result:
    """What the runs with one defect found: violations by rule, of the last run. `failed`: why a run said nothing."""

    defect: str
    seeds: int
    violations: dict[str, int]
    seconds: float
    failed: str = ""

    @property
    def found(self) -> bool:
        return bool(set(self.violations) & set(find(self.defect).rules))


def copy_tree(source: Path, target: Path) -> None:
    """What git has or would take, without the rest of the folder."""
    git = ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(git, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def attempt(defect: Defect, seeds: Iterable[int], lock: Sequence[str]) -> Result:
    """Runs with the defect until one of its rules is broken."""
    began, result = time.monotonic(), Result(defect.name, 0, {}, 0.0)
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as folder:
        tree = Path(folder) / "tree"
        copy_tree(ROOT, tree)
        defect.apply(tree)
        for number, seed in enumerate(seeds, start=1):
            run = Path(folder) / str(seed)
            violations, failed = _run(defect, tree, run, seed, lock)
            result = Result(defect.name, number, violations, round(time.monotonic() - began), failed)
            shutil.rmtree(run, ignore_errors=True)
            if result.found:
                break
    return result


def _run(defect: Defect, tree: Path, run: Path, seed: int, lock: Sequence[str]) -> tuple[dict[str, int], str]:
    """Violations by rule of one run in the copy; and, if it failed, the end of its output."""
    options = ["--seed", str(seed), "--minutes", str(defect.minutes), "--faults", defect.faults, "--folder", str(run)]
    command = [*lock, sys.executable, "-m", "tests.campaign", *options, "--gap", "3,5"]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # it takes its cluster down
        output, _ = process.communicate()
    if process.returncode not in (0, 1):
        return {}, output[-500:]
    violations = check(Record.from_folder(run))
    for alike in group([one for one in violations if one.rule not in defect.rules]):
        sys.stdout.write(f"  also [{alike[0].rule}] {len(alike)} times: {alike[0].text}; {alike[0].client}\n")
    return dict(Counter(violation.rule for violation in violations)), ""


# --- the table ---------------------------------------------------------------------------------------------------------


def read_table(path: Path) -> list[Result]:
    """The results that the table was made from."""
    text = path.read_text("utf-8") if path.exists() else ""
    _, mark, rest = text.partition(_START)
    return [Result(**one) for one in json.loads(rest.partition(_END)[0])] if mark else []


def table(results: Sequence[Result], about: str) -> str:
    by_name = {result.defect: result for result in results}
    tried = [by_name[defect.name] for defect in DEFECTS if defect.name in by_name]
    found = sum(result.found for result in tried)
    lines = [
        "# Seeded defects that the campaign must find",
        "",
        f"Made by `python -m tests.campaign.bite` ({about}). Each defect of `tests/campaign/defects.py` is put, alone, into a",
        f"copy of the tree; a short campaign runs there, with up to {len(SEEDS)} seeds.",
        f"{found} of the {len(tried)} that were tried are found ({len(DEFECTS)} in all).",
        "",
        "| defect | what is wrong | found by | seeds needed |",
        "|---|---|---|---|",
        *(_row(defect, by_name.get(defect.name)) for defect in DEFECTS),
        "",
        f"{_START}{json.dumps([asdict(result) for result in tried])}{_END}",
    ]
    return "\n".join(lines) + "\n"


def _row(defect: Defect, result: Result | None) -> str:
    if result is None:
        return f"| {defect.name} | {defect.what} | not tried yet | |"
    rules = ", ".join(f"`{rule}` ({times})" for rule, times in result.violations.items())
    by = rules if result.found else f"NOT FOUND ({rules or 'no violation'})"
    return f"| {defect.name} | {defect.what} | {by} | {result.seeds if result.found else ''} |"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.bite", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a defect (default: all)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="how many to try at most (default: 3)")
    parser.add_argument("--lock", default="", metavar="FILE", help="hold this file's lock during each run")
    parser.add_argument(
        "--about", default=time.strftime("%Y-%m-%d"), help="date and machine, for the table (default: the date)"
    )
    chosen = parser.parse_args(words)
    lock = ["flock", chosen.lock] if chosen.lock else []
    results = {result.defect: result for result in read_table(TABLE)}
    for defect in [find(name) for name in chosen.names] or DEFECTS:
        result = attempt(defect, SEEDS[: chosen.seeds], lock)
        if result.failed:  # the table keeps what it had
            sys.stdout.write(f"{defect.name}: the run failed: {result.failed}\n")
            return 2
        results[defect.name] = result
        sys.stdout.write(f"{defect.name}: {'found' if result.found else 'NOT FOUND'} {result.violations}\n")
        sys.stdout.flush()
        TABLE.write_text(table(list(results.values()), chosen.about), "utf-8")
    return 0 if all(result.found for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
