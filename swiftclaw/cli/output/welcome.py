"""What `up` prints when it is done: the instances, the addresses, and a request to try."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click
from rich.text import Text

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.errors import AdminUnreachable
from swiftclaw.cli.output import show, tables
from swiftclaw.cli.program import program

if TYPE_CHECKING:
    from cluster.config import Settings
    from swiftclaw.cli.ray_cluster.cluster_record import ClusterRecord


Answer = TypeVar("Answer")

PATIENCE_S = 20.0  # a Controller that dies at this moment is back sooner
AGAIN_S = 0.5


def patiently(read: Callable[[], Answer], seconds: float = PATIENCE_S) -> Answer:
    """Everything has been started: a Controller that is away for a moment is no failure. Raises AdminUnreachable."""
    ends = time.monotonic() + seconds
    while True:
        try:
            return read()
        except AdminUnreachable:
            if time.monotonic() >= ends:
                raise
            time.sleep(min(AGAIN_S, seconds / 10))


def welcome(settings: Settings, cluster: ClusterRecord, api: AdminApi) -> None:
    out = show.out()
    for name in settings.agents:
        out.print(Text(name, style="bold"))
        out.print(tables.instances(patiently(partial(api.instances, name))))
        out.print()
    for label, address in addresses(settings, cluster, api.url):
        click.echo(f"{label:<14} {address}")
    for warning in patiently(api.status)["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if settings.agents:
        click.echo(f"\nTry it:\n  {curl(settings)}")
    click.echo(f"\nStop it:\n  {program()} down")


def addresses(settings: Settings, cluster: ClusterRecord, admin: str) -> list[tuple[str, str]]:
    gateways = [(gateway.region, _gateway(settings, i)) for i, gateway in enumerate(settings.gateways)]
    lines = [("Gateway", f"{address}  ({region})") for region, address in gateways]
    lines.append(("Admin", admin))
    if cluster.dashboard:
        lines.append(("Ray dashboard", f"http://{cluster.dashboard}"))
    return lines


def curl(settings: Settings) -> str:
    """A curl command that sends a message to the first agent through the first gateway."""
    agent = next(iter(settings.agents))
    insecure = "k" if _tls(settings, 0) else ""
    return (
        f"curl -s{insecure} {_gateway(settings, 0)}/agents/{agent}/messages "
        """-H 'content-type: application/json' -d '{"message": "hello"}'"""
    )


def _gateway(settings: Settings, index: int) -> str:
    gateway = settings.gateways[index]
    address = files.url(gateway.host, gateway.port)
    return address.replace("http://", "https://", 1) if _tls(settings, index) else address


def _tls(settings: Settings, index: int) -> bool:
    return settings.gateways[index].tls is not None
