"""What operators do while everything else happens: real commands, whose exit status and output are recorded.

Versions that are deployed have a temper (agent_code.py): most are well, others cannot be imported, never become healthy, answer
errors, are slow, or die after a while.
"""

from __future__ import annotations

import contextlib
import json
import random
import time

from tests.campaign.cluster import AGENT, REGIONS
from tests.campaign.record import Fault
from tests.campaign.stage import Stage

STRATEGIES = ("round-robin", "least-connections", "response-time", "geographic")
DEPLOYS = {"canary": 36, "replace": 18, "import": 8, "unwell": 10, "fails": 10, "slow": 8, "dies": 10}  # what, and how often
STEPS = {"promote": 40, "promote all": 25, "rollback": 35}


def scale(stage: Stage, chance: random.Random, fault: Fault) -> None:
    fault.region, count = chance.choice(REGIONS), chance.choice((1, 2, 3))
    fault.detail["instances"] = count
    with stage.turn(fault):
        stage.command(fault, "scale", AGENT, "--region", fault.region, "--instances", str(count), timeout=45)


def retune(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """Another strategy, and other weights, by the file and `up`."""
    balancing: dict[str, object] = {"strategy": chance.choice(STRATEGIES)}
    if chance.random() < 0.5:
        balancing["weighted"] = {f"instance-{number}": chance.choice((1, 2, 5)) for number in range(1, 5)}
    fault.what, fault.detail["balancing"] = str(balancing["strategy"]), balancing
    with stage.turn(fault, packing=True):
        stage.cluster.write_config(**balancing)
        stage.command(fault, "up", "--timeout", "60", timeout=75)


def rollout(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """A deploy; or, while a canary runs, its promotion or rollback. A version that is not well is not promoted."""
    with stage.turn(fault, packing=True):
        status = stage.cluster.rollout()
        if status["canary"] is None:
            _deploy(stage, chance, fault)
            return
        fault.what = chance.choices(list(STEPS), list(STEPS.values()))[0] if stage.cluster.temper == "well" else "rollback"
        fault.detail |= {"canary": status["canary"], "percent": status["percent"]}
        if fault.what == "rollback":
            stage.command(fault, "rollback", AGENT, "--timeout", "60", timeout=80)
            return
        percent = 100 if fault.what == "promote all" else min(99, int(status["percent"]) + 25)
        stage.command(fault, "promote", AGENT, "--canary", str(percent), "--timeout", "60", timeout=80)


def _deploy(stage: Stage, chance: random.Random, fault: Fault) -> None:
    temper = chance.choices(list(DEPLOYS), list(DEPLOYS.values()))[0]
    percent = chance.choice((10, 20, 50))
    fault.what = f"deploy {temper}"
    share = [] if temper in ("replace", "import") else ["--canary", str(percent)]
    fault.code = stage.cluster.write_agent("well" if temper in ("canary", "replace") else temper)
    deadline = f"{stage.cluster.settings.deadline:g}"
    stage.command(fault, "deploy", AGENT, *share, "--deadline", deadline, "--timeout", "60", timeout=90)


def sick(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """The agent's own health check reports unhealthy for some seconds."""
    row = stage.instance(chance)
    fault.instance, fault.region, fault.pids = row["id"], row["region"], [row["pid"]]
    flag = stage.cluster.flags / f"sick-{row['pid']}"
    flag.touch()
    fault.struck = time.monotonic()
    stage.over.wait(chance.uniform(5, 8))
    flag.unlink()


def rotate_key(stage: Stage, chance: random.Random, fault: Fault) -> None:
    with stage.turn(fault):
        stage.command(fault, "rotate-key", timeout=45)


def failover(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """`swiftclaw test failover`; its verdict and figures are in the fault's detail."""
    fault.what = chance.choice(("kill", "drain", "unhealthy"))
    with stage.turn(fault):
        row = stage.instance(chance)
        fault.instance, fault.region, fault.pids = row["id"], row["region"], [row["pid"]]
        where = ("--instance", row["id"], "--mode", fault.what)
        output = stage.command(
            fault, "test", "failover", AGENT, *where, "--duration", "5s", "--rate", "10", "--json", timeout=100
        )
    with contextlib.suppress(ValueError, KeyError):
        report = json.loads(output[output.index("{") :])
        fault.detail |= {name: report[name] for name in ("verdict", "requests", "errors")}
        fault.output = ""
