"""The wiring of the three processes: `serve run cluster.yaml` imports `build`, which starts the Controller; it starts the rest.

Read from top to bottom: `build` (the Serve application), then the Controller, a gateway, an instance. Each class here is what
Serve starts: it reads what Serve and Ray know about its replica, makes the parts and connects them. What the parts do, and
everything that can be tested without Ray, is elsewhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.config import parse
from cluster.controller import Controller
from cluster.messages import InstanceSpec
from cluster.placement.serve import QUIET, Placement
from cluster.transport.rpc import RpcClient
from deployments.gateway.gateway import Gateway
from deployments.instance.instance import InstanceReplica

HEAD_NODE = "node:__internal_head__"


def build(args: dict[str, Any]) -> serve.Application:
    """The application of cluster.yaml, made of its `args`. Raises ConfigError.

    `swiftclaw up` adds two keys: `folder`, the base of relative paths (default: the folder that `serve run` was started in),
    and `instanceHost`, the loopback address when all Ray nodes are on this machine.
    """
    args = dict(args)
    instance_host = str(args.pop("instanceHost", ""))
    folder = str(args.pop("folder", None) or Path.cwd())
    parse(args, Path(folder))
    controller = serve.deployment(ServedController).options(
        name="Controller",
        num_replicas=1,
        max_ongoing_requests=10_000,
        ray_actor_options={"num_cpus": 0, "resources": {HEAD_NODE: 0.001}},
        health_check_period_s=2,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=QUIET,
    )
    return controller.bind(args, folder, instance_host)


class ServedController(Controller):
    """The Controller process; it wires its own parts, none of which knows the data plane's classes."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any], folder: str, instance_host: str
    ) -> None:
        super().__init__(args, folder, Placement(instance=ServedInstance, gateway=Gateway), instance_host)
        await self.start()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        await self.stop()


class ServedInstance(InstanceReplica):
    """An instance process. Its server is made once the Controller has named the instance."""

    async def __init__(self, spec: InstanceSpec, app: str) -> None:  # type: ignore[misc]
        host = spec.host or ray.util.get_node_ip_address()
        super().__init__(spec, app, _controller(), replica=_replica(), node=_node(), host=host)
        await self.start()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is to stop."""
        await self.stop()


def _controller() -> RpcClient:
    return RpcClient(serve.get_deployment_handle("Controller", "swiftclaw").control.remote)


def _replica() -> str:
    """Serve's unique id of this process: a restarted one has another."""
    return str(serve.get_replica_context().replica_id.unique_id)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
