"""A minute of random faults with a fixed seed: the rules of reliability hold. `scripts/campaign` runs other and longer ones."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.campaign.checker import Tolerances, judge
from tests.campaign.cluster import Settings
from tests.campaign.faults import FAULTS
from tests.campaign.plan import draw_up
from tests.campaign.record import Record
from tests.campaign.report import write_report
from tests.campaign.run import Run

SEED, SECONDS, RATE = 14, 60.0, 25.0
NOISE = 3.0  # the machine may do other work meanwhile: every slack is that many times as wide
SECONDS_WIDE = {name: NOISE * value for name, value in asdict(Tolerances()).items() if name.endswith("_s")}
TOLERANCES = replace(Tolerances(), **SECONDS_WIDE)

pytestmark = pytest.mark.cluster


@pytest.fixture
def run_folder(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """For the record, which is kept if the test fails. `folder`: this module has a cluster of its own."""
    path = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp"))  # short, as Ray's sockets are below it
    failed = request.session.testsfailed
    yield path / "r"
    if request.session.testsfailed == failed:
        shutil.rmtree(path)


def test_a_minute_of_random_faults_breaks_no_rule(run_folder: Path) -> None:
    kinds = {name: kind for name, kind in FAULTS.items() if kind.family != "network"}
    settings = Settings(rate=RATE, slack=NOISE, breaker=2 * NOISE)  # a starved instance is no failure
    Run(run_folder, draw_up(SEED, SECONDS, kinds), settings)()
    record = Record.from_folder(run_folder)
    verdict = judge(record, TOLERANCES)
    print(write_report(run_folder, record, verdict))
    assert verdict.violations == [], f"the record is in {run_folder}"
