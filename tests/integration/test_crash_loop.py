"""An instance that crashes soon after its start, again and again: its starts are delayed and shown, the others go on."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import pytest

from tests.integration.conftest import Cluster, get, until

pytestmark = pytest.mark.cluster

CRASHING = """
import os, pathlib, threading, time
from swiftclaw import Agent

agent = Agent("crashing", model="echo")
here = pathlib.Path("FOLDER")


def crash():
    time.sleep(1)
    os._exit(3)


if (here / "crash").exists():
    with (here / "starts").open("a") as starts:
        print(time.time(), file=starts)
    threading.Thread(target=crash, daemon=True).start()
"""


def test_starts_are_delayed_more_each_time_until_up_and_the_others_are_left_alone(shared: Cluster) -> None:
    shared.clear()
    folder = shared.folder
    (folder / "crashing.py").write_text(CRASHING.replace("FOLDER", str(folder)))
    (folder / "fine.py").write_text('from swiftclaw import Agent\n\nagent = Agent("fine", model="echo")\n')
    regions = {"us-east-1": {"instances": 2}}
    agents: dict[str, Any] = {name: {"agent": f"{name}:agent", "regions": regions} for name in ("crashing", "fine")}
    shared.write(agents)
    shared.up()
    before, fine = shared.healthy("crashing"), shared.healthy("fine")
    (folder / "crash").touch()
    os.kill(before["instance-1"], signal.SIGKILL)

    def loop() -> list[dict[str, Any]]:
        return [row for row in shared.instances("crashing") if row["state"] == "crash-loop" and row["crashes"] >= 3]

    (row,) = until(loop, "three crashes in a row", 60)
    assert row["id"] == "instance-1" and row["starts_in_s"] <= 20
    assert shared.healthy("crashing") == {"instance-2": before["instance-2"]}
    assert [one["id"] for one in get(f"{shared.admin}/api/status")["crash_loops"]] == ["instance-1"]

    def warned() -> bool:
        return any("instance-1 of crashing" in warning for warning in get(f"{shared.admin}/api/status")["warnings"])

    until(warned, "the warning of the next round", 15)
    assert 'swiftclaw_instances{agent="crashing",region="us-east-1",state="crash-loop",version="v1"} 1.0' in get(
        f"{shared.admin}/metrics"
    )
    messages = [event["message"] for event in get(f"{shared.admin}/api/events?agent=crashing")]
    assert any("crashed 3 times in a row" in message for message in messages), messages
    starts = [float(line) for line in (folder / "starts").read_text().split()]
    assert len(starts) <= 5, "Serve alone would have started it every few seconds"
    (folder / "crash").unlink()
    asked = time.monotonic()
    shared.up()
    assert set(shared.healthy("crashing")) == {"instance-1", "instance-2"} and time.monotonic() - asked < 15
    assert shared.healthy("fine") == fine
