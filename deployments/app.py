"""The only wiring: `serve run cluster.yaml` imports `build` from here and gets the Controller, which starts the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import serve

from cluster.config import parse
from cluster.controller import Controller
from cluster.placement.serve import QUIET, Placement
from deployments.gateway.gateway import Gateway
from deployments.instance.instance import InstanceReplica

HEAD_NODE = "node:__internal_head__"


class ServedController(Controller):
    """The Controller with the data plane's classes, in the shape that Serve starts."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any], folder: str, instance_host: str
    ) -> None:
        super().__init__(args, folder, Placement(instance=InstanceReplica, gateway=Gateway), instance_host)
        await self.start()

    async def __del__(self) -> None:
        await self.stop()


def build(args: dict[str, Any]) -> serve.Application:
    """The application of cluster.yaml, made of its `args`. Raises ConfigError.

    `swiftclaw up` adds two keys: `folder`, which relative paths are relative to (default: the folder that `serve run`
    was started in), and `instanceHost`, the loopback address when all Ray nodes are on this machine.
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
