"""`swiftclaw events`: what happened in the cluster, and with --follow what happens from now on."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.text import Text

from swiftclaw.cli import admin_api
from swiftclaw.cli.errors import AdminUnreachable
from swiftclaw.cli.output import show

KINDS = ("instance", "health", "breaker", "scale", "rollout", "region", "config", "limit", "gateway")
STYLES = {"health": "yellow", "breaker": "red", "limit": "red", "rollout": "magenta", "scale": "cyan", "region": "yellow"}


@click.command()
@click.option("--agent", metavar="AGENT", help="Only what concerns this agent.")
@click.option("--kind", type=click.Choice(KINDS), help="Only these.")
@click.option("--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="The newest of them.")
@click.option("--follow", is_flag=True, help="And every later one, until Ctrl-C (so does --watch).")
@show.reading
def events(
    agent: str | None, kind: str | None, limit: int, follow: bool, admin: str | None, as_json: bool, watch: bool
) -> None:
    """Show what happened, oldest first. The log begins anew when the Controller restarts."""
    server = admin_api.find(admin)
    if agent is not None:
        server.load(agent)  # an agent that is none is told so
    found = server.events(agent=agent, kind=kind, limit=limit)
    if not (follow or watch):
        if as_json:
            click.echo(json.dumps(found, indent=2))
        elif not found:
            click.echo("nothing has happened since the Controller started")
        else:
            for event in found:
                show.out().print(line(event), soft_wrap=True)
        return
    try:
        _follow(server, found, agent, kind, as_json)
    except KeyboardInterrupt:
        return


def _follow(
    server: admin_api.AdminApi, found: list[dict[str, Any]], agent: str | None, kind: str | None, as_json: bool
) -> None:
    """Asked once a second for what is newer: a Controller that restarts is waited for."""
    last, away = -1, False
    while True:
        for event in found:
            if as_json:
                click.echo(json.dumps(event))
            else:
                show.out().print(line(event), soft_wrap=True)
            last = event["id"]
        time.sleep(show.EVERY_S)
        try:
            found = server.events(agent=agent, kind=kind, limit=10_000, after=max(last, 0))
            away = False
        except AdminUnreachable as gone:
            found = []
            if not away:
                click.echo(f"reconnecting … ({gone.message.split(';')[0]})", err=True)
            away = True


def line(event: dict[str, Any]) -> Text:
    """`21:04:05 health   my-agent  instance-1 is unhealthy: database`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    shown = Text.assemble((clock, "dim"), " ", (f"{event['kind']:<8}", STYLES.get(event["kind"], "")), " ")
    if event["agent"] and not event["message"].startswith(f"{event['agent']}:"):
        shown.append(f"{event['agent']}: ")
    return shown.append(event["message"])
