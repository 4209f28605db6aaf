"""Which gateways are there, what has each seen, and when does one that asks for news get an answer?

A gateway always has one request for news open (a long poll): it is answered when the snapshot differs from the one that the
gateway has, or after a while without news, which shows that both are alive. One that neither asks nor tells is gone. What a
snapshot holds is for the Controller to say; here it is only a version, which rises with every change.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from cluster.fleet.event_recorder import EventRecorder
from cluster.messages import GatewayHello, Peer
from cluster.telemetry.totals import MetricTotals

POLL_S = 10.0  # a gateway's request for news is answered after this long even without any
GATEWAY_GONE_S = 12.0  # it asks for news every 10 s, and tells what it has seen every second
ASK_AGAIN_S = 0.5  # while the Controller itself finds out


class Gateways:
    """`changed` is called when one has come or gone: the others hear of it."""

    def __init__(self, witness: EventRecorder, ledger: MetricTotals, changed: Callable[[], None]) -> None:
        self._witness, self._ledger, self._changed = witness, ledger, changed
        self.present: dict[str, tuple[GatewayHello, float, str | None]] = {}  # heard when, having seen which version
        self._epoch = secrets.token_hex(4)
        self._revision = 0
        self._news = asyncio.Condition()

    @property
    def version(self) -> str:
        """Of the newest snapshot; that of another Controller process never is the same."""
        return f"{self._epoch}.{self._revision}"

    def is_current(self, gateway: str) -> bool:
        """Whether it has the newest snapshot: then it acts on all that is known here."""
        return self.present[gateway][2] == self.version

    def peers(self) -> tuple[Peer, ...]:
        """Where they listen for each other."""
        hellos = [hello for hello, _, _ in self.present.values()]
        return tuple(Peer(hello.gateway, hello.host, hello.port) for hello in hellos if hello.port)

    def told_last(self) -> Mapping[str, Any] | None:
        """What was desired, as the newest snapshot that any of them has seen says (of an earlier Controller, perhaps)."""
        told = [(seen or "", hello.desired) for hello, _, seen in self.present.values() if hello.desired]
        return max(told, key=lambda one: _revision(one[0]))[1] if told else None

    def hear(self, hello: GatewayHello, seen: str | None) -> None:
        """One asks for news, and has seen that version."""
        new = hello.gateway not in self.present
        self.present[hello.gateway] = (hello, time.monotonic(), seen)
        if new:
            self._witness.gateway(hello)
            self._changed()

    def told(self, gateway: str) -> None:
        """One has told what it saw."""
        known = self.present.get(gateway)
        if known is not None:
            self.present[gateway] = (known[0], time.monotonic(), known[2])

    async def wait_for_news(self, seen: str | None, knows: Callable[[], bool]) -> bool:
        """Whether there is another version than `seen`. `knows`: whether what would be told is right; until then it waits."""
        deadline = time.monotonic() + POLL_S
        async with self._news:
            while not knows() or seen == self.version:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                try:
                    await asyncio.wait_for(self._news.wait(), left if knows() else min(left, ASK_AGAIN_S))
                except asyncio.TimeoutError:
                    continue
        return True

    def count_change(self) -> None:
        """What snapshots say has changed; to be followed by `announce`."""
        self._revision += 1

    async def announce(self) -> None:
        async with self._news:
            self._news.notify_all()

    def forget_silent(self) -> None:
        for gateway, (_, heard, _) in list(self.present.items()):
            if time.monotonic() - heard > GATEWAY_GONE_S:
                self.forget(gateway, f"nothing was heard of it for {GATEWAY_GONE_S:g} s")

    def forget(self, gateway: str, why: str) -> None:
        known = self.present.pop(gateway, None)
        if known is not None:
            self._witness.gateway(known[0], gone=why)
            self._changed()
        self._ledger.forget_gateway(gateway)


def _revision(version: str) -> int:
    return int(version.rpartition(".")[2] or 0)
