"""`swiftclaw rotate-key`: sign session cookies with a new key; the previous key stays valid."""

from __future__ import annotations

from pathlib import Path

import click

from swiftclaw.cli import files


@click.command("rotate-key")
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@files.ADDRESS
def rotate_key(file: Path, address: str | None) -> None:
    """Sign session cookies with a new key.

    FILE defaults to cluster.yaml. Cookies signed with the previous key stay valid; older ones are ignored, so a second
    rotation within a session's ttl ends sessions.
    """
    from swiftclaw.cli.ray_cluster import controller, driver

    with driver.connected_to(file, address):
        controller.rotate_session_key()
    click.echo("session cookies are now signed with a new key; the previous key is still accepted")
