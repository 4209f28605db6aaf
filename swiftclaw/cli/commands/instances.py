"""`swiftclaw instances AGENT`: each instance with its figures, or with --health why it does or does not receive requests."""

from __future__ import annotations

import click

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables


@click.command()
@click.argument("agent")
@click.option("--health", is_flag=True, help="Show the last health check, its reason, and the circuit breaker.")
@show.reading
def instances(agent: str, health: bool, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show the instances of AGENT."""
    api = admin_api.admin_port(admin)
    render = tables.health if health else tables.instances
    show.present(lambda: api.instances(agent), render, as_json=as_json, watch=watch)
