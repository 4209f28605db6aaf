"""`swiftclaw rotate-key`: session cookies are signed with a new key; those of the one before stay valid."""

from __future__ import annotations

from pathlib import Path

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import CommandFailed
from swiftclaw.cli.output import show


@click.command("rotate-key")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
def rotate_key(file: Path) -> None:
    """Sign session cookies with a new key.

    FILE is cluster.yaml unless given. Cookies signed with the key before this one stay valid; older ones count as
    absent, so a second rotation within a session's ttl ends sessions.
    """
    from swiftclaw.cli import ray_driver
    from swiftclaw.cli.local import cluster_record

    made = cluster_record.load(files.state_dir(file))
    if made is None:
        raise CommandFailed(f"SwiftClaw was not started from {file.absolute().parent}; `{show.program()} up` does that")
    with ray_driver.connected(made.address, made.auth_mode):
        ray_driver.rotate_session_key()
    click.echo("session cookies are signed with a new key; the one before is still accepted")
