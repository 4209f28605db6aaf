"""Ray Serve without SwiftClaw: the no-op agent behind an ingress deployment and a DeploymentHandle, two replicas of it.

Runs in a Ray cluster of its own, started like SwiftClaw's, until its standard input is closed. The environment alone
selects Serve's mode. Started by `contenders.py`.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request

from comparison import HOST, READY
from deployments.instance.hosted_agent import Turn
from examples.noop import agent
from swiftclaw.cli.ray_cluster import driver, local_cluster

UNLIMITED = 1000  # the default of 5 requests per replica would make 64 connections wait in Serve's queues


class Noop:
    """The agent that all contenders run; its response has the shape and size of SwiftClaw's."""

    async def __call__(self, message: object) -> dict[str, Any]:
        session = secrets.token_hex(16)
        return {"reply": await agent.answer(Turn(message, session, None)), "session_id": session}


class Ingress:
    """An ingress that composes deployments as Serve's documentation shows."""

    def __init__(self, noop: Any) -> None:
        self._noop = noop

    async def __call__(self, request: Request) -> Any:
        body = await request.json()
        return await self._noop.remote(body["message"])


def application() -> serve.Application:
    few_cpus = {"num_cpus": 0.1}
    noop = serve.deployment(Noop).options(num_replicas=2, max_ongoing_requests=UNLIMITED, ray_actor_options=few_cpus)
    ingress = serve.deployment(Ingress).options(max_ongoing_requests=UNLIMITED, ray_actor_options=few_cpus)
    return ingress.bind(noop.bind())


def main() -> None:
    port, folder = int(sys.argv[1]), Path.cwd()
    cluster = None
    try:
        cluster = local_cluster.start(["here"], folder, {port}, lambda _: None)
        said = sys.stdout
        with driver.connected(cluster.address, cluster.auth_mode):
            serve.start(http_options=HTTPOptions(host=HOST, port=port))
            serve.run(application(), route_prefix="/")
            print(READY, file=said, flush=True)
            sys.stdin.read()
            with contextlib.suppress(Exception):
                serve.shutdown()
    finally:
        if cluster is not None:
            local_cluster.stop(cluster, folder)
