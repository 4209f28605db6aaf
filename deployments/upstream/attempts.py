"""One request's way from instance to instance: where it has been, and whether it may go on.

`policies.retry` has the rules. An instance that refuses the connection, or the request ("not executed"), has done
nothing: the next one is asked at once and for nothing. One that may have begun is an attempt: another is made only for
what may be repeated, within `retry.attempts` and the budget, after a pause.
"""

from __future__ import annotations

import asyncio
import time

from cluster.messages import FULL
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from deployments.balancing.wait_queue import WaitingRequest
from deployments.request.exchange import Exchange
from deployments.upstream.headers import Head
from policies import retry
from policies.base import Request

GATEWAY_ERRORS = frozenset((502, 503, 504))  # an app's own way to say that it has not done it
ATTEMPTS_HEADER = b"x-swiftclaw-attempts"
LEEWAY_S = 1.0  # the line itself sends away whoever waits too long


class Attempts:
    """Use it in a `with`: the retry budget counts what is in hand."""

    def __init__(self, exchange: Exchange, pool: Pool, request: Request, *, body_is_kept: bool) -> None:
        self._exchange, self._pool, self._request = exchange, pool, request
        self._tried: set[str] = set()
        self._asked = 0
        self._began = time.monotonic()
        self._repeats = 0
        self._waiting: WaitingRequest | None = None
        self._spending = pool.budget.begin()
        self._repeatable = body_is_kept and retry.repeatable(exchange.method, exchange.header(b"idempotency-key") is not None)

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        self._spending.end()

    async def place(self) -> Lease:
        """A place on an instance that was not asked yet, at once or after waiting. Raises SwiftClawError."""
        pool = self._pool
        lease = None if self._waiting else pool.wait_queue.take(self._request, self._tried, time.monotonic())
        if lease is None:
            timeout_s = pool.settings.limits.connection_timeout_s
            self._exchange.deadline(timeout_s + LEEWAY_S)
            for observer in self._exchange.observers:
                observer.queued(time.monotonic())
            self._waiting = await pool.wait_queue.wait(self._request, self._tried, timeout_s, self._waiting)
            lease = self._waiting.future.result()
            self._exchange.deadline(pool.settings.request_timeout_s)
        self._asked += 1
        if self._asked == 1:
            lease.backend.tally.routed(time.monotonic() - self._began)
        else:
            headers = self._exchange.response_headers
            headers[:] = [header for header in headers if header[0] != ATTEMPTS_HEADER]
            headers.append((ATTEMPTS_HEADER, str(self._asked).encode()))
        return lease

    def skip(self, lease: Lease) -> None:
        """It has certainly not begun, and will not."""
        self._waiting = None
        self._tried.add(lease.backend.member.id)

    def refused(self, lease: Lease, head: Head) -> None:
        """It says that it has not begun. One that is full may have a place later, one that leaves will not."""
        if head.refused == FULL:
            lease.refused_full(time.monotonic(), head.report)
        else:
            self.skip(lease)

    def repeats(self, lease: Lease) -> bool:
        """It may have begun. True: try another one, after `pause`."""
        if not self._repeatable or self._exchange.started or self._repeats >= self._pool.settings.retry.attempts:
            return False
        if self._pool.is_last(lease.backend, self._tried) or not self._spending.retry():
            return False
        self._waiting = None
        self._repeats += 1
        self._pool.retries += 1
        self._tried.add(lease.backend.member.id)
        return True

    def moves(self, lease: Lease) -> bool:
        """It may have begun, and its instance has been given up meanwhile. True: it is asked no longer."""
        if not self.repeats(lease):
            return False
        self._exchange.move()
        return True

    def answered(self) -> None:
        self._spending.answered()

    async def pause(self) -> None:
        await asyncio.sleep(retry.backoff_s(self._repeats, self._pool.rng))
