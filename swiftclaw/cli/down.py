"""`swiftclaw down`: drain and stop what `up` started, and nothing else.

It goes by the record that `up` left in the state folder; the file is only asked where that folder is, so that `down` works
with a file that has become wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftclaw.cli import files, show
from swiftclaw.cli.errors import Refused
from swiftclaw.cli.reporter import Reporter

if TYPE_CHECKING:
    from swiftclaw.cli.record import Record


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--timeout", default=60.0, show_default=True, metavar="SECONDS", help="How long requests may take to finish.")
def down(file: Path, timeout: float) -> None:
    """Stop what `up` started; requests finish first.

    FILE is cluster.yaml unless given.
    """
    from swiftclaw.cli import record

    folder = files.state_dir(file)
    if not (folder / record.FILE).exists():
        click.echo(f"nothing to stop: `{show.program()} up` has started nothing from {file.absolute().parent}")
        return
    with record.alone(folder), Reporter(show.err()) as reporter:
        made = record.load(folder)
        if made is not None:
            _stop(made, folder, timeout, reporter)
    click.echo("stopped")


def _stop(made: Record, folder: Path, timeout_s: float, reporter: Reporter) -> None:
    from swiftclaw.cli import local, record

    if made.started_ray:
        if local.running(made):
            _drain(made, folder, timeout_s, reporter)
        reporter.say("stopping Ray")
        local.stop(made, folder)
        return
    _drain(made, folder, timeout_s, reporter)
    record.remove(folder)


def _drain(made: Record, folder: Path, timeout_s: float, reporter: Reporter) -> None:
    """Without an error when the cluster is gone: then there is nothing to drain."""
    from swiftclaw.cli import driver

    reporter.say(f"draining: requests may take up to {timeout_s:g} s to finish")
    try:
        with driver.connected(made.address, made.auth_mode):
            shut_down = made.started_serve and not made.started_ray
            left = driver.remove(driver.remembered(folder), timeout_s, shut_down, reporter.say)
    except Refused as gone:
        reporter.note(gone.message)
        return
    if left:
        reporter.note(f"after {timeout_s:g} s these had not finished: {', '.join(left)}")
