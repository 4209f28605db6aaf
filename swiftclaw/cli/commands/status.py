"""`swiftclaw status`: the whole cluster at a glance, or one agent's versions side by side."""

from __future__ import annotations

import click

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables


@click.command()
@click.argument("agent", required=False)
@show.reading
def status(agent: str | None, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show agents, versions, regions and gateways.

    With AGENT, show its versions side by side.
    """
    api = admin_api.admin_port(admin)
    if agent is None:
        show.present(api.status, tables.status, as_json=as_json, watch=watch)
        return
    name = agent
    show.present(lambda: api.agent(name), tables.versions, as_json=as_json, watch=watch)
