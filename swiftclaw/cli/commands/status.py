"""`swiftclaw status`: what runs, at a glance; of one agent, its versions side by side."""

from __future__ import annotations

import click

from swiftclaw.cli import admin_api
from swiftclaw.cli.output import show, tables


@click.command()
@click.argument("agent", required=False)
@show.reading
def status(agent: str | None, admin: str | None, as_json: bool, watch: bool) -> None:
    """Show agents, versions, regions and gateways.

    Of one AGENT its versions, side by side.
    """
    found = admin_api.find(admin)
    if agent is None:
        show.present(found.status, tables.status, as_json=as_json, watch=watch)
        return
    name = agent
    show.present(lambda: found.agent(name), tables.versions, as_json=as_json, watch=watch)
