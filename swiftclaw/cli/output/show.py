"""How every reading command answers: once, as JSON, or again every second.

Colour, spinners and redrawing only where stdout is a terminal; elsewhere plain lines.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
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
    """The options that every reading command has."""
    for option in (
        click.option("--admin", metavar="URL", help="The admin port. Default: that of ./cluster.yaml."),
        click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C."),
        click.option("--json", "as_json", is_flag=True, help="What the admin port answers, unchanged."),
    ):
        command = option(command)
    return command


def present(fetch: Callable[[], Any], render: Callable[[Any], RenderableType], *, as_json: bool, watch: bool) -> None:
    """Show what `fetch` gives, by `render` or as JSON (with --watch one line each time)."""
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
        latest, lost = _again(fetch)
        if lost:
            click.echo(lost, err=True)


def _redraw(first: Any, fetch: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    shown = render(first)
    with Live(shown, console=out(), auto_refresh=False) as live:
        while True:
            time.sleep(EVERY_S)
            latest, lost = _again(fetch)
            shown = shown if latest is None else render(latest)
            live.update(Group(shown, Text(lost, style="yellow")) if lost else shown, refresh=True)


def _repeat(first: Any, fetch: Callable[[], Any], render: Callable[[Any], RenderableType]) -> None:
    latest: Any = first
    while True:
        if latest is not None:
            out().print(render(latest))
            out().print()
        time.sleep(EVERY_S)
        latest, lost = _again(fetch)
        if lost:
            out().print(lost)


def _again(fetch: Callable[[], Any]) -> tuple[Any, str]:
    """What is new, or why there is nothing: a Controller that restarts is gone for some seconds."""
    try:
        return fetch(), ""
    except AdminUnreachable as gone:
        return None, f"reconnecting … ({gone.message.split(';')[0]})"


def program() -> str:
    """How this program can be called again from here: its name, or its path where it is not on the PATH."""
    import shutil

    called = Path(sys.argv[0])
    if shutil.which(called.name) or not called.is_file():
        return "swiftclaw"
    try:
        return str(called.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(called.absolute())
