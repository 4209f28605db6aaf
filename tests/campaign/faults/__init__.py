"""Every kind of fault and of operation that a campaign may draw. A further kind: a function, and one line here.

A fault function acts on the stage, fills in the fault's record, and returns when the fault is over. It raises Skipped, or the
error of what it tried, if the fault cannot happen.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.campaign.faults import clock, disk, network, operators, processes
from tests.campaign.record import Fault
from tests.campaign.stage import Stage

FaultFunction = Callable[[Stage, random.Random, Fault], None]


@dataclass(frozen=True)
class Kind:
    """`cards`: how often it is in the deck that a plan is dealt from. `apart_s`: from one to the next, at least."""

    strike: FaultFunction
    cards: int = 1
    apart_s: float = 0.0

    @property
    def family(self) -> str:
        """The module of its function: processes, operators …"""
        return self.strike.__module__.rpartition(".")[2]


FAULTS: dict[str, Kind] = {
    "kill_instance": Kind(processes.kill_instance, cards=2),
    "freeze_instance": Kind(processes.freeze_instance, cards=2),
    "kill_gateway": Kind(processes.kill_gateway),
    "freeze_gateway": Kind(processes.freeze_gateway),
    "kill_controller": Kind(processes.kill_controller),
    "freeze_controller": Kind(processes.freeze_controller),
    "kill_controller_and_instance": Kind(processes.kill_controller_and_instance),
    "kill_gateway_and_instance": Kind(processes.kill_gateway_and_instance),
    "kill_node": Kind(processes.kill_node, apart_s=70),
    "freeze_node": Kind(processes.freeze_node),
    "kill_serve_controller": Kind(processes.kill_serve_controller, apart_s=30),
    "freeze_serve_controller": Kind(processes.freeze_serve_controller),
    "freeze_gcs": Kind(processes.freeze_gcs, apart_s=20),
    "unwritable_state": Kind(disk.unwritable_state, apart_s=20),
    "hanging_state": Kind(disk.hanging_state, apart_s=20),
    "slow_state": Kind(disk.slow_state, apart_s=20),
    "cut_region": Kind(network.cut_region, apart_s=15),
    "one_way": Kind(network.one_way, apart_s=15),
    "delay_region": Kind(network.delay_region),
    "clock_step": Kind(clock.clock_step, apart_s=25),
    "scale": Kind(operators.scale, cards=2),
    "retune": Kind(operators.retune),
    "rollout": Kind(operators.rollout, cards=5),
    "sick": Kind(operators.sick),
    "rotate_key": Kind(operators.rotate_key, apart_s=40),
    "failover": Kind(operators.failover, apart_s=30),
}
