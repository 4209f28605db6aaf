"""`swiftclaw test …`: tests of a running cluster, each a command of its own."""

from __future__ import annotations

import click

from swiftclaw.cli.failover.command import failover


@click.group(commands={"failover": failover})
def test() -> None:
    """Test the running cluster: failover."""
