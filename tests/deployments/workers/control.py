"""A Controller's control port, for workers without Ray."""

from __future__ import annotations

import asyncio

from cluster.controller_api import ControlApi, method_names
from cluster.messages import GatewayHello, Observation, Snapshot
from cluster.transport.rpc import RpcAddress, RpcServer
from tests.deployments.conftest import DataPlane


class Control:
    """What gateways call, with the snapshot of a data plane."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane
        self.hellos: dict[str, GatewayHello] = {}
        self.observations: list[Observation] = []
        self.left: list[str] = []
        self.server = RpcServer({name: getattr(self, name, self.other) for name in method_names(ControlApi)}, "key")

    async def next_snapshot(self, hello: GatewayHello, version: str | None) -> Snapshot | None:
        self.hellos[hello.gateway] = hello
        for _ in range(100):
            snapshot = self._plane.agents.snapshot
            if snapshot is not None and snapshot.version != version:
                return snapshot
            await asyncio.sleep(0.05)
        return None

    async def observe(self, observation: Observation) -> None:
        self.observations.append(observation)

    async def deregister_gateway(self, gateway: str) -> None:
        self.left.append(gateway)

    async def other(self, *args: object) -> None:
        return None

    def answered(self, gateways: set[str]) -> int:
        """Requests that these have reported."""
        counted = {(one.gateway, one.batch): one for one in self.observations if one.gateway in gateways}
        return sum(sum(counts.codes.values()) for one in counted.values() for counts in one.instances.values())

    async def find(self) -> RpcAddress:
        return self.server.address
