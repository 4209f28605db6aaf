"""The wiring of the three processes: `serve run cluster.yaml` imports `build`, which starts the Controller; it starts the rest.

Read from top to bottom: `build` (the Serve application), then the Controller, a gateway, an instance. Each class here is what
Serve starts: it reads what Serve and Ray know about its replica, makes the parts and connects them. What the parts do, and
everything that can be tested without Ray, is elsewhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import ray
from ray import serve

from cluster.config import GatewaySettings, parse
from cluster.controller import Controller
from cluster.controller_api import ControlApi
from cluster.messages import InstanceSpec
from cluster.placement.serve import CHECKED_WITHIN_S, QUIET, Placement
from cluster.placement.serve_internals import logs_folder
from cluster.transport.listener import PortInUse, bind
from cluster.transport.rpc import RpcAddress, RpcClient
from cluster.transport.tls import BadCertificate, Certificate
from deployments.garbage import keep_what_is_here
from deployments.gateway.assembly import assemble
from deployments.gateway.place import GatewayPlace
from deployments.instance.instance import InstanceReplica
from deployments.serve_series import GatewaySeries, InstanceSeries
from deployments.workers.supervisor import Workers, worker_count

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
        keep_what_is_here()


class ServedGateway(Served):
    """A gateway process, the router actor. With `workers`, they listen on the public port, and it serves calls by handle.

    `host`: where it listens for other gateways; "": on its node's address.
    """

    async def __init__(self, settings: GatewaySettings, app: str, host: str = "") -> None:  # type: ignore[misc]
        name, controller = _replica(), _controller()
        count = worker_count(settings.workers)
        try:
            certificate = Certificate(settings.tls.cert, settings.tls.key) if settings.tls else None
            listening = [bind(settings.host, settings.port, shared=True) for _ in range(count or 1)]
        except (PortInUse, BadCertificate) as error:
            await controller.call(ControlApi.cannot_start, app, name, str(error))
            raise
        address = ray.util.get_node_ip_address()
        cluster = ray.get_runtime_context().get_session_name()
        place = GatewayPlace(name, app, settings, cluster, _node(), host or address, logs_folder())
        series = GatewaySeries(app, name, (_node(), address))
        self._gateway = await assemble(place, controller, None if count else listening[0], certificate, series.report)

        async def ended(worker: str) -> None:
            series.forget(worker)
            await controller.call(ControlApi.gateway_ended, worker)

        self._workers = Workers(place, listening, _locate, series.report, ended) if count else None
        self.wired = True
        await self._gateway.start()
        if self._workers is not None:
            await self._workers.start()
        keep_what_is_here()

    async def ask(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, Any]:
        return await self._gateway.ask(agent, body, headers)

    async def stream(self, agent: str, body: dict[str, Any], headers: dict[str, str]) -> AsyncIterator[tuple[str, Any]]:
        async for event in self._gateway.stream(agent, body, headers):
            yield event

    async def stop(self) -> None:
        if self._workers is not None:
            await self._workers.stop()
        await self._gateway.stop()


class ServedInstance(InstanceReplica, Served):
    """An instance process. Its server is made once the Controller has named the instance."""

    async def __init__(self, spec: InstanceSpec, app: str) -> None:  # type: ignore[misc]
        host = spec.host or ray.util.get_node_ip_address()
        super().__init__(
            spec, app, _controller(), replica=_replica(), node=_node(), host=host, export=InstanceSeries(spec.agent).report
        )
        self.wired = True
        await self.start()
        keep_what_is_here()


def _controller() -> RpcClient:
    return RpcClient(_locate)


def _locate() -> Awaitable[RpcAddress]:
    """Where the Controller listens; fails while it is away."""
    located: Awaitable[RpcAddress] = serve.get_deployment_handle("Controller", "swiftclaw").control.remote()
    return located


def _replica() -> str:
    """Serve's unique id of this process: a restarted one has another."""
    return str(serve.get_replica_context().replica_id.unique_id)


def _node() -> str:
    return str(ray.get_runtime_context().get_node_id())
