"""`swiftclaw test …`: does it hold what it promises? Each test is a command of its own."""

from __future__ import annotations

import click

from swiftclaw.cli.failover.command import failover


@click.group(commands={"failover": failover})
def test() -> None:
    """Test what runs: failover."""
