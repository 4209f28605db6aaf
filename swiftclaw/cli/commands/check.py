"""`swiftclaw check`: is cluster.yaml right? Starts nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import Misconfigured

if TYPE_CHECKING:
    from cluster.config import Settings


@click.command()
@click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One object: valid, mistakes, warnings.")
def check(file: Path, as_json: bool) -> None:
    """Validate cluster.yaml; start nothing.

    FILE is cluster.yaml unless given. Mistakes are listed one per line; the exit status is then 2.
    """
    try:
        settings = files.load(file)
    except Misconfigured as error:
        if as_json:
            click.echo(_report(file, error.message.splitlines(), []))
            raise click.exceptions.Exit(error.exit_code) from None
        raise
    warnings = absent_files(settings)
    if as_json:
        click.echo(_report(file, [], warnings))
        return
    click.echo(f"{file} is valid: {summary(settings)}")
    warn(warnings)


def warn(warnings: list[str]) -> None:
    for sentence in warnings:
        click.echo(f"warning: {sentence}", err=True)


def absent_files(settings: Settings) -> list[str]:
    """Certificates and keys that are not here; no mistake, for the gateway may run on another machine."""
    named = [
        (f"gateways[{i}].tls.{what}", Path(path))
        for i, gateway in enumerate(settings.gateways)
        if gateway.tls is not None
        for what, path in (("cert", gateway.tls.cert), ("key", gateway.tls.key))
    ]
    return [f"{setting}: there is no file {path} on this machine" for setting, path in named if not path.is_file()]


def summary(settings: Settings) -> str:
    """`2 agents, 9 instances in 3 regions, 1 gateway`."""
    instances = sum(region.instances for agent in settings.agents.values() for region in agent.regions.values())
    return (
        f"{_count(len(settings.agents), 'agent')}, {_count(instances, 'instance')} in "
        f"{_count(len(settings.regions), 'region')}, {_count(len(settings.gateways), 'gateway')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _report(file: Path, mistakes: list[str], warnings: list[str]) -> str:
    return json.dumps({"file": str(file), "valid": not mistakes, "mistakes": mistakes, "warnings": warnings}, indent=2)
