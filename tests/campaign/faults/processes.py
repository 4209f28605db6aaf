"""Processes that are killed (SIGKILL) or frozen (SIGSTOP, later SIGCONT): SwiftClaw's, Serve's and Ray's.

A kill of Ray's GCS is not among them: without an external Redis, Ray itself does not survive it. Serve's proxy actors are not
either: the cluster runs none (`proxy_location: Disabled`), its gateways listen themselves.
"""

from __future__ import annotations

import contextlib
import random
import time
from typing import Any

import psutil

from tests.campaign.cluster import REGIONS
from tests.campaign.record import Fault
from tests.campaign.stage import Skipped, Stage

SERVE_CONTROLLER = "ray::ServeController"


def kill_instance(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.kill(fault, _instance(stage, chance, fault))


def freeze_instance(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.freeze(_instance(stage, chance, fault), chance.uniform(6, 9), fault)


def kill_gateway(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.kill(fault, _gateway(stage, chance, fault))


def freeze_gateway(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.freeze(_gateway(stage, chance, fault), chance.uniform(3, 6), fault)


def kill_controller(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.kill(fault, _controller(stage, fault))


def freeze_controller(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.freeze(stage.controller(), chance.uniform(2, 7), fault)


def kill_controller_and_instance(stage: Stage, chance: random.Random, fault: Fault) -> None:
    instance = _instance(stage, chance, fault)
    stage.kill(fault, _controller(stage, fault), instance)


def kill_gateway_and_instance(stage: Stage, chance: random.Random, fault: Fault) -> None:
    instance = _instance(stage, chance, fault)
    stage.kill(fault, _gateway(stage, chance, fault), instance)


def kill_node(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """A region's raylet, with which all its workers end. Only `swiftclaw up` brings a node back."""
    raylet = _raylet(stage, chance, fault)
    fault.pids = [raylet, *stage.children(raylet)]  # the admin port may not show all of them
    stage.kill(fault, raylet)
    stage.over.wait(chance.uniform(4, 8))
    stage.cluster.start_lost_nodes()
    with stage.turn(fault, packing=True):
        stage.command(fault, "up", "--timeout", "60", timeout=75)


def freeze_node(stage: Stage, chance: random.Random, fault: Fault) -> None:
    """The raylet alone: shorter than Ray waits before it counts the node as lost."""
    stage.freeze(_raylet(stage, chance, fault), chance.uniform(2, 6), fault)


def kill_serve_controller(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.kill(fault, stage.process(SERVE_CONTROLLER))


def freeze_serve_controller(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.freeze(stage.process(SERVE_CONTROLLER), chance.uniform(2, 7), fault)


def freeze_gcs(stage: Stage, chance: random.Random, fault: Fault) -> None:
    stage.freeze(stage.process("gcs_server"), chance.uniform(2, 5), fault)


def _instance(stage: Stage, chance: random.Random, fault: Fault) -> int:
    row: dict[str, Any] = stage.instance(chance)
    fault.instance, fault.region = row["id"], row["region"]
    return int(row["pid"])


def _gateway(stage: Stage, chance: random.Random, fault: Fault) -> int:
    pid = stage.gateway(chance)
    fault.client_ports, fault.detail["ports_read"] = stage.clients_of([pid]), time.monotonic()
    return pid


def _controller(stage: Stage, fault: Fault) -> int:
    """Its counts are read last: they are what it knew when it was killed."""
    pid = stage.controller()
    with contextlib.suppress(OSError, ValueError):
        fault.counted = stage.cluster.counted()
    return pid


def _raylet(stage: Stage, chance: random.Random, fault: Fault) -> int:
    """Not the head's: with it the gateways and the GCS would end."""
    nodes = stage.cluster.nodes()
    regions = [region for region in REGIONS[1:] if region in nodes]
    if not regions:
        raise Skipped("no node runs but the head")
    fault.region = chance.choice(regions)
    children = psutil.Process(nodes[fault.region]).children(recursive=True)
    return next(child.pid for child in children if child.name() == "raylet")
