"""`swiftclaw dashboard AGENT`: print the address of the live page; on a terminal, also open it in a graphical browser."""

from __future__ import annotations

import sys
import urllib.parse
import webbrowser

import click

from swiftclaw.cli import admin_api

VIEWS = ("load", "health", "latency", "rollout", "limits")


@click.command()
@click.argument("agent")
@click.option("--view", type=click.Choice(VIEWS), default="load", show_default=True, help="The view to open.")
@click.option("--admin", metavar="URL", help="The admin port. Default: the one in ./cluster.yaml.")
def dashboard(agent: str, view: str, admin: str | None) -> None:
    """Print the address of AGENT's live dashboard and open it."""
    api = admin_api.admin_port(admin)
    api.load(agent)  # raises for an unknown agent or an unreachable admin port
    address = f"{api.url}/dashboard?{urllib.parse.urlencode({'agent': agent, 'view': view})}"
    click.echo(address)
    if sys.stdout.isatty():
        open_in_window(address)


def open_in_window(address: str) -> None:
    """Open a graphical browser, never one that would take over the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    text_only = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(browser, webbrowser.BackgroundBrowser)
    if not text_only:
        browser.open(address)
