"""The attempts of one request: which instances it has tried, and whether another attempt is allowed.

The rules are in policies/retry.py. An instance that refused the connection, or the request ("not executed"), has done
nothing: the next one is tried at once, at no cost. One that may have started is an attempt: another is made only for
requests that may be repeated, within `retry.attempts` and the retry budget, after a backoff. All sync.
"""

from __future__ import annotations

import asyncio
import time

from cluster.messages import FULL
from deployments.balancing.backend import Lease
from deployments.balancing.pool import Pool
from deployments.balancing.wait_queue import WaitingRequest
from deployments.request.record import RequestRecord
from deployments.upstream.headers import Head
from policies import retry
from policies.base import Request

GATEWAY_ERRORS = frozenset((502, 503, 504))  # an app may answer with these when it has not executed the request
ATTEMPTS_HEADER = b"x-swiftclaw-attempts"
LEEWAY_S = 1.0  # beyond the wait queue's own timeout


class Attempts:
    """`end` it: the retry budget counts the requests that are active."""

    __slots__ = ("_attempts", "_pool", "_record", "_repeatable", "_request", "_retries", "_spending", "_started_at", "_tried",
                 "_waiting")  # fmt: skip

    def __init__(self, record: RequestRecord, pool: Pool, request: Request, *, body_is_kept: bool) -> None:
        self._record, self._pool, self._request = record, pool, request
        self._tried: set[str] = set()
        self._attempts = 0
        self._started_at = time.monotonic()
        self._retries = 0
        self._waiting: WaitingRequest | None = None
        self._spending = pool.budget.begin()
        self._repeatable = body_is_kept and retry.repeatable(record.method, record.header(b"idempotency-key") is not None)

    def end(self) -> None:
        self._spending.end()

    # --- an instance ------------------------------------------------------------------------------------------------

    def take(self) -> Lease | None:
        """A lease on an instance that was not tried yet, or None: the request has to wait. Raises SwiftClawError."""
        if self._waiting is not None:  # the instance that it was granted refused it as full
            return None
        lease = self._pool.wait_queue.take(self._request, self._tried, time.monotonic())
        if lease is not None:
            self.granted(lease)
        return lease

    @property
    def wait_timeout_s(self) -> float:
        return self._pool.wait_timeout_s

    def enqueue(self) -> asyncio.Future[Lease]:
        """Enter the wait queue; the lease is the future's result. Raises Overloaded."""
        for observer in self._record.observers:
            observer.queued(time.monotonic())
        self._waiting = self._pool.wait_queue.enter(self._request, self._tried, self.wait_timeout_s, self._waiting)
        return self._waiting.future

    def leave_queue(self) -> None:
        """The request no longer waits; a lease that it was granted in this moment is given back."""
        if self._waiting is not None:
            self._pool.wait_queue.leave(self._waiting)
            self._waiting = None

    def granted(self, lease: Lease) -> None:
        self._attempts += 1
        if self._attempts == 1:
            lease.backend.tally.routed(time.monotonic() - self._started_at)
        else:
            headers = self._record.response_headers
            headers[:] = [header for header in headers if header[0] != ATTEMPTS_HEADER]
            headers.append((ATTEMPTS_HEADER, str(self._attempts).encode()))

    # --- another one --------------------------------------------------------------------------------------------------

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
        """The instance may have started. Returns True when another instance may be tried, after `backoff_s`."""
        if not self._repeatable or self._record.started or self._retries >= self._pool.settings.retry.attempts:
            return False
        if self._pool.is_last(lease.backend, self._tried) or not self._spending.retry():
            return False
        self._waiting = None
        self._retries += 1
        self._pool.retries += 1
        self._tried.add(lease.backend.member.id)
        return True

    def answered(self) -> None:
        self._spending.answered()

    @property
    def backoff_s(self) -> float:
        return retry.backoff_s(self._retries, self._pool.rng)
