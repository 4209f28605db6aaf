"""The wiring of the three processes: `serve run cluster.yaml` imports `build`, which starts the Controller; it starts the rest.

Read from top to bottom: `build` (the Serve application), then the Controller, a gateway, an instance. Each class here is what
Serve starts: it reads what Serve and Ray know about its replica, makes the parts and connects them. What the parts do, and
everything that can be tested without Ray, is elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.config import GatewaySettings, parse
from cluster.controller import Controller
from cluster.controller_api import ControlApi
from cluster.desired.apps import GATEWAY_DRAIN_S
from cluster.messages import GatewayHello, InstanceSpec
from cluster.placement.serve import CHECKED_WITHIN_S, QUIET, Placement
from cluster.placement.serve_internals import logs_folder
from cluster.transport.listener import Listener, PortInUse, bind
from cluster.transport.rpc import RpcClient
from cluster.transport.tls import BadCertificate, Certificate
from deployments.balancing.agents import AgentTable
from deployments.gateway.counts_file import open_counts_file
from deployments.gateway.edge import Edge
from deployments.gateway.gateway import Gateway
from deployments.gateway.homes_file import open_homes_file
from deployments.gateway.peers import Peers
from deployments.gateway.reporter import Reporter
from deployments.instance.instance import InstanceReplica
from deployments.proxy.client_connection import ClientConnection
from deployments.request import access_log
from deployments.serve_series import GatewaySeries, InstanceSeries
from deployments.upstream.connection_pool import ConnectionPool

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
        health_check_timeout_s=CHECKED_WITHIN_S,
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.1,
        logging_config=QUIET,
    )
    return controller.bind(args, folder, instance_host)


class Served:
    """What Serve starts and stops. Serve awaits `__del__` even when `__init__` failed; what was not wired is not stopped."""

    wired = False
    stop: Callable[[], Awaitable[None]]

    async def __del__(self) -> None:
        if self.wired:
            await self.stop()


class ServedController(Controller, Served):
    """The Controller process; it wires its own parts, none of which knows the data plane's classes."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, args: dict[str, Any], folder: str, instance_host: str
    ) -> None:
        super().__init__(args, folder, Placement(instance=ServedInstance, gateway=ServedGateway), instance_host)
        self.wired = True
        await self.start()


class ServedGateway(Gateway, Served):
    """A gateway process. `host`: where it listens for other gateways; "": on its node's address."""

    async def __init__(self, settings: GatewaySettings, app: str, host: str = "") -> None:  # type: ignore[misc]
        name, host, controller = _replica(), host or ray.util.get_node_ip_address(), _controller()
        try:
            certificate = Certificate(settings.tls.cert, settings.tls.key) if settings.tls else None
            listening = bind(settings.host, settings.port, shared=True)
        except (PortInUse, BadCertificate) as error:
            await controller.call(ControlApi.cannot_start, app, name, str(error))
            raise
        access_log.to_file(logs_folder() / f"access_{app}_{name}.log")
        cluster = ray.get_runtime_context().get_session_name()
        counts_file, homes_file = open_counts_file(cluster, name), open_homes_file(cluster, name)
        agents = AgentTable(gateway=name)
        reporter = Reporter(agents, counts_file)
        connections = ConnectionPool()
        edge = Edge(agents, reporter, connections, settings.region)
        tls = certificate.context if certificate else None
        listener = Listener(
            edge, listening, tls=tls, date=True, grace_s=GATEWAY_DRAIN_S, on_rejected=reporter.rejected,
            protocol=partial(ClientConnection, edge.receive),
        )  # fmt: skip
        peers = Peers(name, agents, edge.rate_limits, connections)
        edge.share_homes(peers)
        hello = GatewayHello(name, app, settings, _node(), os.getpid(), host, await peers.open(host))
        super().__init__(
            hello, controller, agents, reporter, edge, listener, peers, connections,
            counts_file=counts_file, homes_file=homes_file, certificate=certificate,
            export=GatewaySeries(app, name, (_node(), ray.util.get_node_ip_address())).report,
        )  # fmt: skip
        self.wired = True
        await self.start()


class ServedInstance(InstanceReplica, Served):
    """An instance process. Its server is made once the Controller has named the instance."""

    async def __init__(self, spec: InstanceSpec, app: str) -> None:  # type: ignore[misc]
        host = spec.host or ray.util.get_node_ip_address()
        super().__init__(
            spec, app, _controller(), replica=_replica(), node=_node(), host=host, export=InstanceSeries(spec.agent).report
        )
        self.wired = True
        await self.start()


def _controller() -> RpcClient:
    return RpcClient(serve.get_deployment_handle("Controller", "swiftclaw").control.remote)


def _replica() -> str:
    """Serve's unique id of this process: a restarted one has another."""
    return str(serve.get_replica_context().replica_id.unique_id)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
