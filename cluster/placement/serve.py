"""Ray Serve as the Controller uses it: start, scale and delete apps, and read what runs and what is free.

Which apps should run is decided in cluster/desired/apps.py. Calls into Serve block and must not run on the event loop that
answers registering replicas, so they run in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from cluster.desired.apps import REGION_LABEL, AppSpec, AppStatus, labelled_regions
from cluster.placement.serve_internals import end_unstarted, free_per_node, replicas_of, scale

INSTANCE_DEPLOYMENT = "Instance"
GATEWAY_DEPLOYMENT = "Gateway"
ENDING_S = 45.0  # after a drain's deadline: to answer the requests that it cut off, and for the agent's stop hooks
# Serve's check of a replica runs on its event loop: three without an answer in time, and the replica is restarted. A death that
# Ray has not reported, as while its GCS was away, is found by the next check.
CHECKED_WITHIN_S = 10.0
QUIET = {"enable_access_log": False}  # Serve would log a line for each call of a gateway to the Controller


@dataclass(frozen=True)
class NodeResources:
    """One living Ray node."""

    region: str | None  # None: it carries no label
    total: Mapping[str, float]
    free: Mapping[str, float]


class Placement:
    """`instance`, `gateway`: the classes that replicas run; this package does not import them."""

    def __init__(self, instance: type, gateway: type) -> None:
        self._instance, self._gateway = instance, gateway

    async def labelled(self) -> set[str]:
        return labelled_regions(await asyncio.to_thread(ray.nodes))

    async def nodes(self) -> list[NodeResources]:
        """The living Ray nodes with their free resources."""
        return await asyncio.to_thread(_nodes)

    async def running(self) -> dict[str, AppStatus]:
        status = await asyncio.to_thread(serve.status)
        return {
            name: AppStatus(
                app.status.value,
                " ".join([app.message, *(one.message for one in app.deployments.values() if one.message)]).strip(),
            )
            for name, app in status.applications.items()
        }

    async def start(self, specs: list[AppSpec]) -> None:
        """Returns when Serve has accepted the apps, not when they run."""
        targets = [
            serve.RunTarget(self._bound(spec), name=spec.name, route_prefix=None, external_scaler_enabled=True)
            for spec in specs
        ]
        await asyncio.to_thread(
            serve.run_many,
            targets,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    async def scale(self, spec: AppSpec) -> None:
        deployment = INSTANCE_DEPLOYMENT if spec.kind == "instance" else GATEWAY_DEPLOYMENT
        await asyncio.to_thread(scale, spec.name, deployment, spec.replicas)

    async def replicas(self, app: str) -> set[str]:
        """Unique ids of the app's replicas that exist, running or not."""
        return set(await asyncio.to_thread(replicas_of, app))

    async def delete(self, app: str, present: Collection[str]) -> None:
        """Returns when Serve has started to delete. `present` (registered) replicas drain first, others are killed."""
        await asyncio.to_thread(serve.delete, app, _blocking=False)
        await asyncio.to_thread(end_unstarted, app, present)

    def _bound(self, spec: AppSpec) -> Any:
        actor_options: dict[str, Any] = {"num_cpus": spec.cpus, "num_gpus": spec.gpus}
        if spec.placed:
            actor_options["label_selector"] = {REGION_LABEL: spec.region}
        if spec.runtime_env:
            actor_options["runtime_env"] = spec.runtime_env
        instance = spec.kind == "instance"
        deployment = serve.deployment(self._instance if instance else self._gateway).options(
            name=INSTANCE_DEPLOYMENT if instance else GATEWAY_DEPLOYMENT,
            num_replicas=spec.replicas,
            ray_actor_options=actor_options,
            max_ongoing_requests=10_000,
            health_check_period_s=2,
            health_check_timeout_s=CHECKED_WITHIN_S,
            graceful_shutdown_timeout_s=spec.drain_s + ENDING_S,
            graceful_shutdown_wait_loop_s=0.1,
            logging_config=QUIET,
        )
        return deployment.bind(spec.start, spec.name) if instance else deployment.bind(spec.start, spec.name, spec.host)


def _nodes() -> list[NodeResources]:
    free = free_per_node()
    return [
        NodeResources((node.get("Labels") or {}).get(REGION_LABEL), node["Resources"], free.get(node["NodeID"], {}))
        for node in ray.nodes()
        if node["Alive"]
    ]
