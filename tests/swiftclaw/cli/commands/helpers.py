"""A fake admin port with the replies of a Controller, served by a thread."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def instance(number: int, region: str = "us-east-1", **changes: Any) -> dict[str, Any]:
    return {
        "id": f"instance-{number}", "version": "v1", "region": region, "node": "ab12", "state": "healthy",
        "health": {"status": "healthy", "reason": "", "checked_at": time.time() - 3}, "circuit": "closed", "weight": 1,
        "connections": 2, "active_connections": 2, "requests": 123_456, "errors": 7, "error_rate": 0.006, "mean_ms": 12.3,
        "p50_ms": 11.0, "p95_ms": 1234.5, "cpu": 3.0, "uptime_s": 7_300.0, "pid": 4242, **changes,
    }  # fmt: skip


def agent(name: str, *regions: tuple[str, int, int]) -> dict[str, Any]:
    """`regions`: (name, desired, healthy)."""
    return {
        "name": name, "strategy": "least-connections", "session_affinity": False,
        "versions": [{"version": "v1", "role": "stable", "weight": 100, "instances": 7}],
        "regions": {region: {"instances": desired, "healthy": healthy, "priority": 1} for region, desired, healthy in regions},
        "requests": 1_234_567, "errors": 12,
    }  # fmt: skip


def status() -> dict[str, Any]:
    edge = {"region": "us-east-1", "host": "127.0.0.1", "port": 8000, "node": "ab12"}
    return {
        "agents": [agent("my-agent", ("us-east-1", 3, 3), ("eu-west-1", 2, 2), ("ap-southeast-1", 2, 1))],
        "gateways": [{"id": "g1", "pid": 31234, **edge}, {"id": "g2", "pid": 31235, **edge}],
        "desired_gateways": 2,
        "apps": {"swiftclaw": {"status": "RUNNING", "message": ""}},
        "problems": {},
        "warnings": [],
    }


class FakeAdmin:
    """`answers`: path -> JSON, or text sent unchanged; every other path is 404."""

    def __init__(self) -> None:
        regions = ["us-east-1"] * 3 + ["eu-west-1"] * 2 + ["ap-southeast-1"] * 2
        answers: dict[str, Any] = {
            "/api/status": status(),
            "/api/agents": status()["agents"],
            "/api/agents/my-agent/instances": [instance(n, region) for n, region in enumerate(regions, 1)],
        }

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = answers.get(self.path, {"error": {"type": "unknown_agent"}})
                self.send_response(200 if self.path in answers else 404)
                self.end_headers()
                self.wfile.write((answer if isinstance(answer, str) else json.dumps(answer)).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.answers = answers
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Stop:
    """Replaces `time.sleep`: each call runs the next step of `then`; after the last one it raises KeyboardInterrupt."""

    def __init__(self, *then: Any) -> None:
        self.then = list(then)

    def __call__(self, _: float) -> None:
        if not self.then:
            raise KeyboardInterrupt
        self.then.pop(0)()
