"""The admin port: what the Controller knows, as JSON and as Prometheus text. Read-only."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.registry import Record
from policies.weighted import weights_of

if TYPE_CHECKING:
    from cluster.controller import Controller


HEALTH_OF = {
    "starting": "unknown",
    "healthy": "healthy",
    "unhealthy": "unhealthy",
    "ejected": "unhealthy",
    "draining": "healthy",
    "stopped": "unknown",
}


class Admin:
    """Views over one Controller."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/metrics", self.metrics),
                Route("/api/status", self.status),
                Route("/api/agents", self.agents),
                Route("/api/agents/{agent}", self.agent),
                Route("/api/agents/{agent}/instances", self.instances),
                Route("/api/agents/{agent}/load", self.load),
            ]
        )

    async def metrics(self, _: Request) -> Response:
        controller = self._controller
        return Response(controller.ledger.exposition(controller), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(self, _: Request) -> Response:
        """The cluster at a glance: what `swiftclaw up` waits for."""
        controller = self._controller
        return JSONResponse(
            {
                "agents": [self._agent(name) for name in controller.settings.agents],
                "gateways": [
                    {
                        "id": hello.gateway,
                        "region": hello.settings.region,
                        "host": hello.settings.host,
                        "port": hello.settings.port,
                        "node": hello.node,
                        "pid": hello.pid,
                        "current": controller.is_current(hello.gateway),
                    }
                    for hello, _, _ in controller.gateways.values()
                ],
                "desired_gateways": sum(gateway.replicas for gateway in controller.settings.gateways),
                "apps": {name: vars(app) for name, app in sorted(controller.observed.items())},
                "problems": controller.problems,
                "warnings": controller.warnings,
            }
        )

    async def agents(self, _: Request) -> Response:
        return JSONResponse([self._agent(name) for name in self._controller.settings.agents])

    async def agent(self, request: Request) -> Response:
        name = request.path_params["agent"]
        return JSONResponse(self._agent(name)) if self._known(name) else _unknown(name)

    async def instances(self, request: Request) -> Response:
        name = request.path_params["agent"]
        if not self._known(name):
            return _unknown(name)
        return JSONResponse([self._instance(record) for record in self._controller.registry.of(name)])

    async def load(self, request: Request) -> Response:
        name = request.path_params["agent"]
        return JSONResponse(self._load(name)) if self._known(name) else _unknown(name)

    def _known(self, agent: str) -> bool:
        return agent in self._controller.settings.agents

    def _agent(self, name: str) -> dict[str, Any]:
        controller = self._controller
        settings = controller.settings.agents[name]
        records = controller.registry.of(name)
        versions = sorted({settings.version, *(record.registration.version for record in records)})
        counts = [controller.ledger.requests(record.key) for record in records]
        affinity = settings.load_balancing.session_affinity.enabled
        return {
            "name": name,
            "strategy": settings.load_balancing.strategy,
            "session_affinity": any(record.registration.session_affinity for record in records)
            if affinity is None
            else affinity,
            "versions": [
                {
                    "version": version,
                    "role": "stable" if version == settings.version else "canary",
                    "weight": 100 if version == settings.version else 0,
                    "instances": len(controller.registry.of(name, version)),
                }
                for version in versions
            ],
            "regions": {
                region: {
                    "instances": wanted.instances,
                    "healthy": sum(record.state == "healthy" for record in controller.registry.of(name, region=region)),
                    "priority": wanted.priority,
                }
                for region, wanted in settings.regions.items()
            },
            "requests": sum(requests for requests, _ in counts) + controller.ledger.refused(name),
            "errors": sum(errors for _, errors in counts) + controller.ledger.refused(name),
        }

    def _instance(self, record: Record) -> dict[str, Any]:
        controller = self._controller
        known = record.registration
        requests, errors = controller.ledger.requests(record.key)
        recent = controller.ledger.recent(record.key, time.monotonic())
        return {
            "id": record.id,
            "version": known.version,
            "region": known.region,
            "node": known.node,
            "state": record.state,
            "health": {
                "status": HEALTH_OF[record.state],
                "reason": record.reason,
                "checked_at": record.checked_at,
            },
            "circuit": None,  # no breaker acts yet, so there is no state to tell
            "weight": self._weights(known.agent)[record.id],
            "connections": record.in_flight,
            "active_connections": controller.ledger.active(record.key),
            "requests": requests,
            "errors": errors,
            "error_rate": round(100 * recent.errors / recent.requests, 3) if recent.requests else 0.0,
            "mean_ms": recent.mean_ms,
            "p50_ms": recent.p50_ms,
            "p95_ms": recent.p95_ms,
            "cpu": record.cpu_percent,
            "uptime_s": round(time.time() - known.started_at, 1),
            "pid": known.pid,
        }

    def _weights(self, agent: str) -> dict[str, float]:
        named = self._controller.settings.agents[agent].load_balancing.weighted
        return weights_of(named, (record.id for record in self._controller.registry.of(agent)))

    def _load(self, agent: str) -> dict[str, Any]:
        controller = self._controller
        rows = []
        for record in controller.registry.of(agent):
            recent = controller.ledger.recent(record.key, time.monotonic())
            rows.append((record, recent))
        total = sum(recent.requests for _, recent in rows)
        return {
            "agent": agent,
            "window_s": 60,
            "total": total,
            "instances": [
                {
                    "id": record.id,
                    "version": record.registration.version,
                    "region": record.registration.region,
                    "requests": recent.requests,
                    "share": round(100 * recent.requests / total, 2) if total else 0.0,
                    "connections": record.in_flight,
                    "mean_ms": recent.mean_ms,
                    "error_rate": round(100 * recent.errors / recent.requests, 3) if recent.requests else 0.0,
                }
                for record, recent in rows
            ],
        }


def _unknown(agent: str) -> Response:
    return JSONResponse({"error": {"type": "unknown_agent", "message": f"there is no agent {agent!r}", "agent": agent}}, 404)
