"""The attempts of one request: which instances it has tried, and whether another attempt is allowed.

The rules are in policies/retry.py. An instance that refused the connection, or the request ("not executed"), has done
nothing: the next one is tried at once, at no cost. One that may have started is an attempt: another is made only for
requests that may be repeated, within `retry.attempts` and the retry budget, after a backoff.
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

GATEWAY_ERRORS = frozenset((502, 503, 504))  # an app may answer with these when it has not executed the request
ATTEMPTS_HEADER = b"x-swiftclaw-attempts"
LEEWAY_S = 1.0  # beyond the wait queue's own timeout


class Attempts:
    """A context manager: the retry budget counts the requests that are active."""

    def __init__(self, exchange: Exchange, pool: Pool, request: Request, *, body_is_kept: bool) -> None:
        self._exchange, self._pool, self._request = exchange, pool, request
        self._tried: set[str] = set()
        self._attempts = 0
        self._started_at = time.monotonic()
        self._retries = 0
        self._waiting: WaitingRequest | None = None
        self._spending = pool.budget.begin()
        self._repeatable = body_is_kept and retry.repeatable(exchange.method, exchange.header(b"idempotency-key") is not None)

    def __enter__(self) -> Attempts:
        return self

    def __exit__(self, *_: object) -> None:
        self._spending.end()

    async def place(self) -> Lease:
        """A lease on an instance that was not tried yet, at once or after waiting. Raises SwiftClawError."""
        pool = self._pool
        lease = None if self._waiting else pool.wait_queue.take(self._request, self._tried, time.monotonic())
        if lease is None:
            timeout_s = pool.wait_timeout_s
            self._exchange.deadline(timeout_s + LEEWAY_S)
            for observer in self._exchange.observers:
                observer.queued(time.monotonic())
            self._waiting = await pool.wait_queue.wait(self._request, self._tried, timeout_s, self._waiting)
            lease = self._waiting.future.result()
            self._exchange.deadline(pool.settings.request_timeout_s)
        self._attempts += 1
        if self._attempts == 1:
            lease.backend.tally.routed(time.monotonic() - self._started_at)
        else:
            headers = self._exchange.response_headers
            headers[:] = [header for header in headers if header[0] != ATTEMPTS_HEADER]
            headers.append((ATTEMPTS_HEADER, str(self._attempts).encode()))
        return lease

    def skip(self, lease: Lease) -> None:
        """The instance has certainly not started the request, and will not."""
        self._waiting = None
        self._tried.add(lease.backend.member.id)

    def refused(self, lease: Lease, head: Head) -> None:
        """The instance refused the request as not executed. A full one may be tried again later, a stopping one may not."""
        if head.refused == FULL:
            lease.refused_full(time.monotonic(), head.report)
        else:
            self._pool.mark_stopping(lease.backend, time.monotonic())
            self.skip(lease)

    def repeats(self, lease: Lease) -> bool:
        """The attempt failed, but may have started. Returns True when another instance may be tried, after `pause`."""
        if not self._repeatable or self._exchange.started or self._retries >= self._pool.settings.retry.attempts:
            return False
        if self._pool.is_last(lease.backend, self._tried) or not self._spending.retry():
            return False
        self._waiting = None
        self._retries += 1
        self._pool.retries += 1
        self._tried.add(lease.backend.member.id)
        return True

    def moves(self, lease: Lease) -> bool:
        """The instance was given up while the request waits for it. Returns True when the attempt is cancelled for another."""
        if not self.repeats(lease):
            return False
        self._exchange.move()
        return True

    def answered(self) -> None:
        self._spending.answered()

    async def pause(self) -> None:
        await asyncio.sleep(retry.backoff_s(self._retries, self._pool.rng))
