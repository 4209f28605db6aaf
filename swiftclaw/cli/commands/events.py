"""`swiftclaw events`: recent events of the cluster, and with --follow new ones as they occur."""

from __future__ import annotations

import json
import time
from typing import Any

import click
from rich.text import Text

from cluster.telemetry.events import KINDS
from swiftclaw.cli import admin_api
from swiftclaw.cli.errors import AdminUnreachable
from swiftclaw.cli.output import show

FETCH_LIMIT = 10_000  # events to fetch at once while following
STYLES = {"health": "yellow", "breaker": "red", "limit": "red", "rollout": "magenta", "scale": "cyan", "region": "yellow"}


@click.command()
@click.option("--agent", metavar="AGENT", help="Show only events of this agent.")
@click.option("--kind", type=click.Choice(KINDS), help="Show only events of this kind.")
@click.option(
    "--limit",
    type=click.IntRange(0, FETCH_LIMIT),
    default=20,
    show_default=True,
    help="Show only this many of the newest events.",
)
@click.option("--follow", is_flag=True, help="Keep printing new events until Ctrl-C. Same as --watch.")
@show.reading
def events(
    agent: str | None, kind: str | None, limit: int, follow: bool, admin: str | None, as_json: bool, watch: bool
) -> None:
    """Show recent events, oldest first.

    The Controller keeps events in memory: after it restarts, the list starts empty.
    """
    api = admin_api.admin_port(admin)
    if agent is not None:
        api.load(agent)  # raises for an unknown agent
    recent = api.events(agent=agent, kind=kind, limit=limit)
    if not (follow or watch):
        if as_json:
            click.echo(json.dumps(recent, indent=2))
        elif not recent:
            click.echo("no events since the Controller started")
        else:
            for event in recent:
                show.out().print(line(event), soft_wrap=True)
        return
    try:
        _follow(api, recent, agent, kind, as_json)
    except KeyboardInterrupt:
        return


def _follow(api: admin_api.AdminApi, recent: list[dict[str, Any]], agent: str | None, kind: str | None, as_json: bool) -> None:
    """Poll once a second for newer events. While the Controller restarts, keep trying."""
    last, unreachable = -1, False
    while True:
        for event in recent:
            if as_json:
                click.echo(json.dumps(event))
            else:
                show.out().print(line(event), soft_wrap=True)
            last = event["id"]
        time.sleep(show.EVERY_S)
        try:
            recent = api.events(agent=agent, kind=kind, limit=FETCH_LIMIT, after=max(last, 0))
            unreachable = False
        except AdminUnreachable as error:
            recent = []
            if not unreachable:
                click.echo(show.reconnecting(error), err=True)
            unreachable = True


def line(event: dict[str, Any]) -> Text:
    """`21:04:05 health   my-agent  instance-1 is unhealthy: database`."""
    clock = time.strftime("%H:%M:%S", time.localtime(event["at"]))
    shown = Text.assemble((clock, "dim"), " ", (f"{event['kind']:<8}", STYLES.get(event["kind"], "")), " ")
    if event["agent"] and not event["message"].startswith(f"{event['agent']}:"):
        shown.append(f"{event['agent']}: ")
    return shown.append(event["message"])
