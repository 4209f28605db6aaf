"""Which gateways exist, which snapshot has each, and when does its request for the next one get an answer?

A gateway always has one request for a snapshot open (a long poll). It is answered when the newest snapshot differs from the
gateway's own, or empty after a while, which shows that both are alive. A gateway that neither asks nor reports is removed,
sooner if the connection of its request broke.
What a snapshot contains: cluster/snapshot.py. Here it is only a version, which rises with every change.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.fleet.event_recorder import EventRecorder
from cluster.messages import GatewayHello, Peer
from cluster.telemetry.totals import MetricTotals

POLL_S = 10.0  # a request for a snapshot is answered after this long even when there is no other
GATEWAY_GONE_S = 12.0  # a gateway asks every 10 s, and reports what it counted every second
BROKEN_S = 3.0  # one whose connection broke, and which neither asks nor reports again, has ended
RECHECK_S = 0.5  # while the Controller itself recovers


class Gateways:
    """`changed` is called when a gateway was added or removed: the others learn it from their next snapshot."""

    def __init__(
        self,
        recorder: EventRecorder,
        totals: MetricTotals,
        changed: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock`: one that stands still while this process is paused (cluster/transport/running_clock.py)."""
        self._recorder, self._totals, self._changed, self._clock = recorder, totals, changed, clock
        # By id: the gateway, the time of its last call, and the version of its snapshot.
        self.present: dict[str, tuple[GatewayHello, float, str | None]] = {}
        self._epoch = secrets.token_hex(4)
        self._revision = 0
        self._change = asyncio.Event()  # the next one; not a Condition, whose lock a cancelled wait may leave locked

    @property
    def version(self) -> str:
        """Version of the newest snapshot; unique per Controller process."""
        return f"{self._epoch}.{self._revision}"

    def is_current(self, gateway: str) -> bool:
        """Whether the gateway has the newest snapshot."""
        return self.present[gateway][2] == self.version

    def peers(self) -> tuple[Peer, ...]:
        """Where the gateways listen for each other."""
        hellos = [hello for hello, _, _ in self.present.values()]
        return tuple(Peer(hello.gateway, hello.host, hello.port) for hello in hellos if hello.port)

    def newest_desired(self) -> Mapping[str, Any] | None:
        """The desired state in the newest snapshot that any gateway has (perhaps from an earlier Controller process)."""
        kept = [(version or "", hello.desired) for hello, _, version in self.present.values() if hello.desired]
        return max(kept, key=lambda one: _revision(one[0]))[1] if kept else None

    def observe(self, hello: GatewayHello, version: str | None) -> None:
        """A gateway asks for a snapshot, and has that version."""
        new = hello.gateway not in self.present
        self.present[hello.gateway] = (hello, self._clock(), version)
        if new:
            self._recorder.gateway(hello)
            self._changed()

    def acknowledge(self, gateway: str) -> None:
        """A gateway has reported its counts."""
        if gateway in self.present:
            hello, _, version = self.present[gateway]
            self.present[gateway] = (hello, self._clock(), version)

    def suspect(self, gateway: str) -> None:
        """The gateway's connection broke while it waited for a snapshot: it has ended, or it asks again at once."""
        if gateway in self.present:
            hello, last_call, version = self.present[gateway]
            self.present[gateway] = (hello, min(last_call, self._clock() - GATEWAY_GONE_S + BROKEN_S), version)

    async def wait_for_change(self, version: str | None, ready: Callable[[], bool]) -> bool:
        """Whether the newest snapshot is another than `version`. It waits while `ready` says that none would be right yet."""
        deadline = self._clock() + POLL_S
        while not ready() or version == self.version:
            left = deadline - self._clock()
            if left <= 0:
                return False
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._change.wait(), left if ready() else min(left, RECHECK_S))
        return True

    def count_change(self) -> None:
        """The content of snapshots has changed; to be followed by `announce`."""
        self._revision += 1

    def announce(self) -> None:
        """Wake every request that waits for a change."""
        change, self._change = self._change, asyncio.Event()
        change.set()

    def forget_silent(self) -> None:
        now = self._clock()
        for gateway, (_, last_call, _) in list(self.present.items()):
            if now - last_call > GATEWAY_GONE_S:
                self.forget(gateway, "is no longer available: it neither asks for snapshots nor reports")

    def forget(self, gateway: str, change: str) -> None:
        """Remove a gateway; `change` completes the event's sentence."""
        if gateway in self.present:
            hello, _, _ = self.present.pop(gateway)
            self._recorder.gateway(hello, change)
            self._changed()
        self._totals.forget_gateway(gateway)


def _revision(version: str) -> int:
    return int(version.rpartition(".")[2] or 0)
