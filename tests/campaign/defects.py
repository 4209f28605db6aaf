"""Defects of the product, each a small patch, to show that the campaign bites: it must find every one of them (bite.py)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Defect:
    """`old` stands in `file` exactly once. `faults`: what the campaign needs to meet it; `rules`: one of them finds it."""

    name: str
    what: str
    file: str
    old: str
    new: str
    rules: tuple[str, ...]
    faults: str = "kill_instance"
    minutes: float = 0.6

    def apply(self, tree: Path) -> None:
        """Put it into a copy of the tree. Raises ValueError if `old` does not stand there exactly once."""
        path = tree / self.file
        text = path.read_text("utf-8")
        if text.count(self.old) != 1:
            raise ValueError(f"{self.name}: {self.old!r} stands {text.count(self.old)} times in {self.file}, not once")
        path.write_text(text.replace(self.old, self.new), "utf-8")


DEFECTS = (
    Defect(
        "count-kept",
        "A request whose client leaves stays in flight for ever.",
        "deployments/balancing/backend.py",
        "        self.backend.tally.active -= 1\n",
        "        self.backend.tally.active -= status != 499\n",
        ("settled", "zero"),
    ),
    Defect(
        "post-repeated",
        "A request that may have begun is sent again, whether it may be repeated or not.",
        "deployments/upstream/attempts.py",
        'body_is_kept and retry.repeatable(record.method, record.header(b"idempotency-key") is not None)',
        "body_is_kept",
        ("once",),
    ),
    Defect(
        "session-moved",
        "A session's request sometimes ignores its home.",
        "deployments/balancing/session_placement.py",
        "return replace(request, pin=backend.member.id)",
        "return replace(request, pin=backend.member.id if int(now) % 5 else None)",
        ("home",),
    ),
    Defect(
        "counts-lost",
        "What a gateway that is killed had counted is lost.",
        "deployments/gateway/counts_file.py",
        "return [_observation(words, gateway, batch) for batch in range(words[2] + 1, words[1] + 1)]",
        "return [_observation(words, gateway, batch) for batch in range(words[2] + 1, words[2] + 1)]",
        ("counts",),
    ),
    Defect(
        "error-swallowed",
        "An error is an empty answer with status 200.",
        "deployments/gateway/edge.py",
        "request.answer(error.status, request.error(error), headers)",
        'request.answer(200, "", headers)',
        ("right-answer",),
    ),
    Defect(
        "connection-dropped",
        "When an instance breaks off, the client's connection is closed without an answer.",
        "deployments/gateway/edge.py",
        "        headers = retry_after(error)\n",
        '        if error.type == "instance_failed":\n            request.break_off(error)\n            return\n'
        "        headers = retry_after(error)\n",
        ("named", "may-fail"),
    ),
    Defect(
        "snapshot-stale",
        "A gateway ignores most snapshots after its first one.",
        "deployments/gateway/gateway.py",
        "            if snapshot is not None:\n",
        "            if snapshot is not None and self._informed.is_set() and time.monotonic() % 40 < 30:\n"
        "                await asyncio.sleep(0.5)\n"
        "            elif snapshot is not None:\n",
        ("in-rotation", "may-fail", "home"),
        faults="sick,kill_instance",
    ),
    Defect(
        "process-leaked",
        "`down` stops the first Ray node only.",
        "swiftclaw/cli/ray_cluster/local_cluster.py",
        "    _end(cluster, cluster.nodes)\n",
        "    _end(cluster, cluster.nodes[:1])\n",
        ("orphans", "down"),
    ),
    Defect(
        "file-left",
        "`down` leaves the temporary folder.",
        "swiftclaw/cli/ray_cluster/local_cluster.py",
        "            shutil.rmtree(cluster.temp_dir, ignore_errors=True)\n",
        "            problem = problem or ''\n",
        ("files",),
    ),
    Defect(
        "breaker-stays-open",
        "A probe that succeeds does not close the breaker.",
        "policies/breaker.py",
        "        if ok:\n            self._close()\n",
        "        if ok and self.generation < 0:\n            self._close()\n",
        ("settled", "healthy"),
        faults="freeze_instance",
    ),
    Defect(
        "checks-end",
        "An instance that was unhealthy once is checked no more.",
        "cluster/fleet/health_checks.py",
        "            elif threshold.healthy is not True:\n                threshold = HealthThreshold(True)\n",
        "                if threshold.healthy is False:\n                    return\n"
        "            elif threshold.healthy is not True:\n                threshold = HealthThreshold(True)\n",
        ("healthy", "settled"),
        faults="sick",
    ),
    Defect(
        "deadline-ignored",
        "A request's time is over, and nothing ends it for half a minute.",
        "deployments/proxy/deadlines.py",
        "if limited.ends_at <= now]",
        "if limited.ends_at <= now - 30]",
        ("in-time",),
        faults="freeze_instance",
    ),
    Defect(
        "traceback-logged",
        "A client that leaves is a traceback in the log.",
        "deployments/proxy/proxied_request.py",
        "        self.failure = CLIENT_DISCONNECTED\n",
        "        self.failure = CLIENT_DISCONNECTED\n"
        "        try:\n            raise ConnectionResetError\n        except ConnectionResetError:\n"
        '            log.exception("request %s", self.request_id)\n',
        ("logs",),
    ),
    Defect(
        "scale-ignored",
        "`scale` reports a change that is not made.",
        "cluster/desired/autoscaling.py",
        "        self._histories.pop((name, region), None)  # proposals from before no longer apply\n",
        "        self._counts.clear()\n        self._counts.update(counts)\n",
        ("effect",),
        faults="scale",
    ),
    Defect(
        "memory-leaked",
        "Every request leaves 96 kB.",
        "deployments/proxy/deadlines.py",
        "        self._limited[limited] = None\n",
        '        self._limited[limited] = None\n        self.__dict__.setdefault("kept", []).append(b"x" * 96_000)\n',
        ("flat",),
        minutes=1.3,
    ),
    Defect(
        "answers-mixed",
        "A connection to an instance serves another request although it still owes the answer to the one before.",
        "deployments/upstream/connection.py",
        "    def abort(self) -> None:\n"
        '        """Close at once. A response that is being received is dropped without a failure."""\n'
        "        self._receiver = None\n",
        "    def abort(self) -> None:\n"
        "        if self._receiver is not None and self._in_head and self.usable:\n"
        "            self._receiver = None\n"
        "            self._idle(self)\n"
        "            return\n"
        "        self._receiver = None\n",
        ("right-answer", "who-ran", "may-fail"),
        faults="freeze_instance",
    ),
    Defect(
        "status-lies",
        "The admin port shows no active connections.",
        "cluster/admin/views.py",
        '"active_connections": self._view.totals.active(record.key),',
        '"active_connections": 0,',
        ("in-flight",),
    ),
    Defect(
        "illness-hidden",
        "The admin port shows unhealthy instances as healthy.",
        "cluster/admin/views.py",
        '            "state": record.state,\n            "health": {\n',
        '            "state": HEALTHY if record.state == UNHEALTHY else record.state,\n            "health": {\n',
        ("noticed",),
        faults="sick",
    ),
)


def find(name: str) -> Defect:
    """Raises ValueError for a name that no defect has."""
    by_name = {defect.name: defect for defect in DEFECTS}
    if name not in by_name:
        raise ValueError(f"there is no defect {name!r}; there are {', '.join(by_name)}")
    return by_name[name]
