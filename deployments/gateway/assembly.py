"""The parts of one gateway process, connected: in the Serve replica, and in each of its workers."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial

from cluster.desired.apps import GATEWAY_DRAIN_S
from cluster.messages import GatewayHello, Observation
from cluster.transport.listener import Listener
from cluster.transport.rpc import RpcClient
from cluster.transport.tls import Certificate
from deployments.balancing.agents import AgentTable
from deployments.gateway.counts_file import open_counts_file
from deployments.gateway.edge import Edge
from deployments.gateway.gateway import Gateway
from deployments.gateway.homes_file import open_homes_file
from deployments.gateway.peers import Peers
from deployments.gateway.place import GatewayPlace
from deployments.gateway.reporter import Reporter
from deployments.proxy.client_connection import ClientConnection
from deployments.request import access_log
from deployments.upstream.connection_pool import ConnectionPool


async def assemble(
    place: GatewayPlace,
    controller: RpcClient,
    listening: socket.socket | None,
    certificate: Certificate | None,
    export: Callable[[Observation], None],
) -> Gateway:
    """A gateway that `start` opens. `listening`: bound to the public port; None: only its workers listen there."""
    name, settings = place.name, place.settings
    access_log.to_file(place.logs / f"access_{place.app}_{name}.log")
    counts_file, homes_file = open_counts_file(place.cluster, name), open_homes_file(place.cluster, name)
    agents = AgentTable(gateway=name)
    reporter = Reporter(agents, counts_file)
    connections = ConnectionPool()
    edge = Edge(agents, reporter, connections, settings.region)
    listener: Listener | None = None
    if listening is not None:
        listener = Listener(
            edge,
            listening,
            tls=certificate.context if certificate else None,
            date=True,
            grace_s=GATEWAY_DRAIN_S,
            on_rejected=reporter.rejected,
            protocol=partial(ClientConnection, edge.receive),
        )
    peers = Peers(name, agents, edge.rate_limits, connections)
    edge.share_homes(peers)
    port = await peers.open(place.host)
    hello = GatewayHello(name, place.app, settings, place.node, os.getpid(), place.host, port, worker_of=place.worker_of)
    return Gateway(
        hello, controller, agents, reporter, edge, listener, peers, connections,
        counts_file=counts_file, homes_file=homes_file, certificate=certificate, export=export,
    )  # fmt: skip
