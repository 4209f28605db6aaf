"""`swiftclaw dashboard AGENT`: the address of the live page; opened where there is a terminal and a browser with a window."""

from __future__ import annotations

import sys
import urllib.parse
import webbrowser

import click

from swiftclaw.cli import admin_api

VIEWS = ("load", "health", "latency", "rollout", "limits")


@click.command()
@click.argument("agent")
@click.option("--view", type=click.Choice(VIEWS), default="load", show_default=True, help="What to look at first.")
@click.option("--admin", metavar="URL", help="The admin port. Default: that of ./cluster.yaml.")
def dashboard(agent: str, view: str, admin: str | None) -> None:
    """Open the live dashboard of AGENT, or print its address."""
    server = admin_api.find(admin)
    server.load(agent)  # an agent that is none is told so, and a port where nobody answers
    address = f"{server.url}/dashboard?{urllib.parse.urlencode({'agent': agent, 'view': view})}"
    click.echo(address)
    if sys.stdout.isatty():
        open_in_a_window(address)


def open_in_a_window(address: str) -> None:
    """Not in a browser that would take over the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    text_only = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(browser, webbrowser.BackgroundBrowser)
    if not text_only:
        browser.open(address)
