"""`swiftclaw check`: validate cluster.yaml without starting anything."""

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
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object: file, valid, mistakes, warnings.")
def check(file: Path, as_json: bool) -> None:
    """Validate cluster.yaml without starting anything.

    FILE defaults to cluster.yaml. Mistakes are printed one per line; the exit status is then 2.
    """
    try:
        settings = files.load(file)
    except Misconfigured as error:
        if as_json:
            click.echo(_report(file, error.message.splitlines(), []))
            raise click.exceptions.Exit(error.exit_code) from None
        raise
    warnings = warnings_of(settings, file)
    if as_json:
        click.echo(_report(file, [], warnings))
        return
    click.echo(f"{file} is valid: {summary(settings)}")
    note(settings)
    warn(warnings)


def warn(warnings: list[str]) -> None:
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)


def warnings_of(settings: Settings, file: Path) -> list[str]:
    """What is valid, but may not be what was meant."""
    from cluster.config.documents import doubtful
    from cluster.config.effects import without_effect

    return [*(f"{file}: {doubt}" for doubt in doubtful(file)), *absent_files(settings), *without_effect(settings)]


def note(settings: Settings) -> None:
    from cluster.config.effects import scaling_notes

    for line in scaling_notes(settings):
        click.echo(f"note: {line}", err=True)


def absent_files(settings: Settings) -> list[str]:
    """A warning for each certificate or key that is not on this machine. Not a mistake: the gateway may run elsewhere."""
    paths = [
        (f"gateways[{i}].tls.{name}", Path(path))
        for i, gateway in enumerate(settings.gateways)
        if gateway.tls is not None
        for name, path in (("cert", gateway.tls.cert), ("key", gateway.tls.key))
    ]
    return [f"{setting}: there is no file {path} on this machine" for setting, path in paths if not path.is_file()]


def summary(settings: Settings) -> str:
    """`2 agents, 9 instances in 3 regions, 1 gateway`."""
    instances = sum(region.instances for agent in settings.agents.values() for region in agent.regions.values())
    return (
        f"{_count(len(settings.agents), 'agent')}, {_count(instances, 'instance')} in "
        f"{_count(len(settings.regions), 'region')}, {_count(len(settings.gateways), 'gateway')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _report(file: Path, mistakes: list[str], warnings: list[str]) -> str:
    return json.dumps({"file": str(file), "valid": not mistakes, "mistakes": mistakes, "warnings": warnings}, indent=2)
