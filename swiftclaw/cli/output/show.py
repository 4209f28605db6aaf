"""The output of a reading command: once or every second, as a table or as JSON.

Colour and redrawing only on a terminal; elsewhere plain lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from swiftclaw.cli.errors import AdminUnreachable

EVERY_S = 1.0
Command = TypeVar("Command", bound=Callable[..., Any])


def out() -> Console:
    return Console(highlight=False)


def err() -> Console:
    return Console(stderr=True, highlight=False)


def reading(command: Command) -> Command:
    """Add the options that every reading command has."""
    for option in (
        click.option("--admin", metavar="URL", help="The admin port. Default: the one in ./cluster.yaml."),
        click.option("--watch", is_flag=True, help="Refresh every second until Ctrl-C."),
        click.option("--json", "as_json", is_flag=True, help="Print the admin port's reply, unchanged."),
    ):
        command = option(command)
    return command


def present(fetch: Callable[[], Any], render: Callable[[Any], RenderableType], *, as_json: bool, watch: bool) -> None:
    """Print what `fetch` returns: rendered, or as JSON (with --watch one line per reply)."""
    first = fetch()
    if not watch:
        if as_json:
            click.echo(json.dumps(first, indent=2))
        else:
            out().print(render(first))
        return
    try:
        if as_json:
            _stream(first, fetch)
        elif sys.stdout.isatty():
            _redraw(first, fetch, render)
        else:
            _repeat(first, fetch, render)
    except KeyboardInterrupt:
        return


def _stream(first: Any, fetch: Callable[[], Any]) -> None:
    latest: Any = first
    while True:
        if latest is not None:
            click.echo(json.dumps(latest))
        time.sleep(EVERY_S)
        latest, problem = _retry(fetch)
        if problem:
            click.echo(problem, err=True)


def _redraw(first: Any, fetch: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    shown = render(first)
    with Live(shown, console=out(), auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            latest, problem = _retry(fetch)
            shown = shown if latest is None else render(latest)
            live.update(Group(shown, Text(problem, style="yellow")) if problem else shown, refresh=True)


def _repeat(first: Any, fetch: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    latest: Any = first
    while True:
        if latest is not None:
            out().print(render(latest))
            out().print()
        time.sleep(EVERY_S)
        latest, problem = _retry(fetch)
        if problem:
            out().print(problem)


def _retry(fetch: Callable[[], Any]) -> tuple[Any, str]:
    """The new reply, or why there is none: a Controller that restarts is unreachable for some seconds."""
    try:
        return fetch(), ""
    except AdminUnreachable as error:
        return None, reconnecting(error)


def reconnecting(error: AdminUnreachable) -> str:
    """A line without the hint of the error."""
    return f"reconnecting … ({error.message.split(';')[0]})"
