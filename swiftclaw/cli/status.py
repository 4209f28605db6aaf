"""`swiftclaw status`: what runs, at a glance."""

from __future__ import annotations

import click

from swiftclaw.cli import api, show, tables


@click.command()
@show.reading
def status(admin: str | None, as_json: bool, watch: bool) -> None:
    """Show agents, versions, regions and gateways."""
    show.present(api.find(admin).status, tables.status, as_json=as_json, watch=watch)
