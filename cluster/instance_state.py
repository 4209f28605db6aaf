"""The states of an instance: each has its name here, and the same name in the admin API, the metrics and the events."""

from __future__ import annotations

from typing import Final, Literal, get_args

InstanceState = Literal["starting", "healthy", "unhealthy", "ejected", "draining", "stopped"]

STARTING: Final = "starting"  # registered; no health check has passed yet
HEALTHY: Final = "healthy"  # receives requests
UNHEALTHY: Final = "unhealthy"  # responds, but its health checks fail
EJECTED: Final = "ejected"  # unresponsive
DRAINING: Final = "draining"  # receives requests of its sessions only
STOPPED: Final = "stopped"  # receives nothing and finishes its requests

CRASH_LOOP: Final = "crash-loop"  # of no record: the instance has no process that runs, and its next start waits

STATES: tuple[InstanceState, ...] = get_args(InstanceState)
