"""One line of JSON per request, for agents that want it (`accessLog`).

An `AccessLine` rides on the exchange from the moment its agent is known; it is told of each instance that is asked, and written
once, in whatever way the exchange ends. Never in it: bodies, headers, queries, names of users and sessions. Not for counting:
that is what metrics are for, which see every request and cost less.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.telemetry.tally import is_error
from deployments.balancing.backend import CLIENT_CLOSED_REQUEST, Lease
from deployments.request.exchange import CLIENT_DISCONNECTED, Exchange
from deployments.request.tracing import trace_id_of

if TYPE_CHECKING:
    from deployments.balancing.pool import Pool

log = logging.getLogger("swiftclaw.access")

FILE_BYTES, FILES = 64 * 2**20, 4  # the file's size before another is begun, and how many old ones are kept
LONGEST_PATH = 2000


def to_file(path: Path) -> None:
    """From now on the lines of this process go there; the file is made with the first one."""
    handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class AccessLine:
    """What the line of one request will say."""

    __slots__ = ("_attempts", "_lease", "_name", "_queued_s", "_rng", "_settings", "_strategy", "_waits_since")

    def __init__(self, pool: Pool) -> None:
        self._name, self._rng = pool.name, pool.rng
        self._settings = pool.settings.access_log
        self._strategy = pool.settings.load_balancing.strategy
        self._lease: Lease | None = None  # the last that was taken
        self._attempts = 0
        self._queued_s = 0.0
        self._waits_since: float | None = None

    def waits(self, now: float) -> None:
        """It stands in the line."""
        self._waits_since = now

    def asks(self, lease: Lease) -> None:
        """It has a place, and is sent."""
        self._lease = lease
        self._attempts += 1
        self._leave_line(lease.started_at)

    def end(self, exchange: Exchange) -> None:
        """Nothing more happens. Writes the line, if it is wanted."""
        settings, status = self._settings, exchange.status or CLIENT_CLOSED_REQUEST
        failed = is_error(status) or exchange.failure not in (None, CLIENT_DISCONNECTED)
        if not failed and (settings.errors_only or self._rng.random() * 100 >= settings.sample_percent):
            return
        now = time.monotonic()
        self._leave_line(now)
        log.info(json.dumps(self._line(exchange, status, now)))

    def _leave_line(self, now: float) -> None:
        if self._waits_since is not None:
            self._queued_s += now - self._waits_since
            self._waits_since = None

    def _line(self, exchange: Exchange, status: int, now: float) -> dict[str, object]:
        total_s, lease = now - exchange.started_at, self._lease
        member = lease.backend.member if lease is not None else None
        first_byte_at = lease.first_byte_at if lease is not None else None
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(time.time() - total_s, timezone.utc).isoformat(timespec="milliseconds"),
            "agent": self._name,
            "instance": member and member.id,
            "version": member and member.version,
            "region": member and member.region,
            "strategy": self._strategy,
            "attempts": self._attempts,
            "queue_ms": _ms(self._queued_s),
            "first_byte_ms": None if first_byte_at is None else _ms(first_byte_at - exchange.started_at),
            "total_ms": _ms(total_s),
            "status": status,
            "error": exchange.failure,
            "method": exchange.method,
            "path": exchange.path.decode("latin-1")[:LONGEST_PATH],
            "request_id": exchange.request_id,
        }
        trace_id = exchange.span.trace_id if exchange.span is not None else trace_id_of(exchange)
        if trace_id is not None:
            line["trace_id"] = trace_id
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
