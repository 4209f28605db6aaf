"""One line of JSON per request, for agents whose `accessLog` is enabled.

An `AccessLine` observes the record from the moment the agent is known and is written once, however the record ends.
It never contains bodies, headers, queries, user names or session names. Not for counting: metrics see every request and cost
less.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from random import Random

from cluster.config import AccessLog
from cluster.messages import Member
from cluster.telemetry.tally import is_error
from deployments.request.record import CLIENT_DISCONNECTED, RequestRecord
from deployments.request.tracing import trace_id_of
from deployments.types import SentHeaders
from policies.errors import CLIENT_CLOSED_REQUEST

log = logging.getLogger("swiftclaw.access")

FILE_BYTES, FILES = 64 * 2**20, 4  # a file's size before it is rotated, and how many rotated files are kept
LONGEST_PATH = 2000


def to_file(path: Path) -> None:
    """Write the lines of this process to `path`; the first line creates the file."""
    handler = RotatingFileHandler(path, maxBytes=FILE_BYTES, backupCount=FILES, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


class AccessLine:
    """The log line of one request: a `RequestObserver`."""

    __slots__ = ("_agent", "_attempts", "_first_byte_at", "_instance", "_queued_s", "_queued_since", "_rng", "_settings",
                 "_strategy")  # fmt: skip

    def __init__(self, agent: str, settings: AccessLog, strategy: str, rng: Random) -> None:
        self._agent, self._settings, self._strategy, self._rng = agent, settings, strategy, rng
        self._instance: Member | None = None  # of the last attempt
        self._first_byte_at: float | None = None
        self._attempts = 0
        self._queued_s = 0.0
        self._queued_since: float | None = None

    def queued(self, now: float) -> None:
        self._queued_since = now

    def attempt_started(self, record: RequestRecord, instance: Member, now: float, headers: SentHeaders) -> SentHeaders:
        self._instance, self._first_byte_at = instance, None
        self._attempts += 1
        self._end_wait(now)
        return headers

    def attempt_ended(self, status: int | None, ok: bool | None, first_byte_at: float | None) -> None:
        self._first_byte_at = first_byte_at

    def ended(self, record: RequestRecord) -> None:
        """Write the line, if the settings ask for it."""
        settings, status = self._settings, record.status or CLIENT_CLOSED_REQUEST
        failed = is_error(status) or record.failure not in (None, CLIENT_DISCONNECTED)
        if not failed and (settings.errors_only or self._rng.random() * 100 >= settings.sample_percent):
            return
        now = time.monotonic()
        self._end_wait(now)
        log.info(json.dumps(self._line(record, status, now)))

    def _end_wait(self, now: float) -> None:
        if self._queued_since is not None:
            self._queued_s += now - self._queued_since
            self._queued_since = None

    def _line(self, record: RequestRecord, status: int, now: float) -> dict[str, object]:
        total_s, instance, first_byte_at = now - record.started_at, self._instance, self._first_byte_at
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(time.time() - total_s, timezone.utc).isoformat(timespec="milliseconds"),
            "agent": self._agent,
            "instance": instance and instance.id,
            "version": instance and instance.version,
            "region": instance and instance.region,
            "strategy": self._strategy,
            "attempts": self._attempts,
            "queue_ms": _ms(self._queued_s),
            "first_byte_ms": None if first_byte_at is None else _ms(first_byte_at - record.started_at),
            "total_ms": _ms(total_s),
            "status": status,
            "error": record.failure,
            "method": record.method,
            "path": record.path.decode("latin-1")[:LONGEST_PATH],
            "request_id": record.request_id,
        }
        trace_id = record.trace_id or trace_id_of(record)
        if trace_id is not None:
            line["trace_id"] = trace_id
        return line


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
