"""`swiftclaw instances AGENT`: each instance, what it did, and with --health why it is in or out."""

from __future__ import annotations

import click

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables


@click.command()
@click.argument("agent")
@click.option("--health", is_flag=True, help="The last health check, its reason, and the circuit breaker.")
@show.reading
def instances(agent: str, health: bool, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show the instances of AGENT."""
    server = admin_api.find(admin)
    render = tables.health if health else tables.instances
    show.present(lambda: server.instances(agent), render, as_json=as_json, watch=watch)
