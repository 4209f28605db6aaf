"""`swiftclaw deploy`: the agent's current code becomes a new version, beside the running one or in its place."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import filesize

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.errors import CommandFailed, Misconfigured
from swiftclaw.cli.output import show
from swiftclaw.cli.progress import rollout
from swiftclaw.cli.progress.reporter import ProgressReporter

if TYPE_CHECKING:
    from cluster.config import Settings

WAIT = click.option("--no-wait", is_flag=True, help="Return at once; `swiftclaw status AGENT` shows the progress.")
TIMEOUT = click.option(
    "--timeout", default=180.0, show_default=True, metavar="SECONDS", help="How long to wait for the rollout to finish."
)
FILE = click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))


@click.command()
@click.argument("agent")
@FILE
@click.option(
    "--canary",
    type=click.FloatRange(0, 100, min_open=True),
    metavar="N",
    help="Run beside the stable version with N percent of the traffic.",
)
@click.option("--regions", metavar="A,B,C", help="The regions that the agent runs in from now on.")
@click.option("--version", metavar="V", help="The new version's name. Default: the next vN.")
@click.option("--config", type=click.Path(path_type=Path), help="JSON or YAML file with the agent's settings; overrides FILE.")
@click.option(
    "--deadline",
    default=120.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the new version may take to become healthy.",
)
@files.ADDRESS
@WAIT
@TIMEOUT
def deploy(
    agent: str,
    file: Path,
    canary: float | None,
    regions: str | None,
    version: str | None,
    config: Path | None,
    deadline: float,
    address: str | None,
    no_wait: bool,
    timeout: float,
) -> None:
    """Deploy AGENT's current code as a new version.

    The code is the folder of FILE (default: cluster.yaml), except what .gitignore and .swiftclawignore exclude. With
    --canary the new version runs beside the stable one, also when the code is unchanged. Without it, the new version
    takes over when its instances are healthy, and the old one drains; if nothing has changed, nothing happens. An agent
    that is not running is started.
    """
    from cluster.config import ConfigError
    from cluster.desired.packages import CannotPack, pack
    from swiftclaw.cli.ray_cluster import controller, driver

    settings = files.load(file)
    try:
        block = block_of(settings, agent, config)
        package = pack(Path(settings.folder), skip=[Path(settings.state_dir)])
    except ConfigError as error:
        raise Misconfigured(error.mistakes) from None
    except CannotPack as error:
        raise CommandFailed(str(error)) from None
    region_names = split_regions(regions)
    with ProgressReporter(show.err()) as reporter:
        with driver.connected_to(file, address):
            from cluster.desired.rollout_manager import DeployRequest  # imports Ray, which reads the auth mode at import

            if not controller.has_package(package.digest):
                reporter.report(f"uploading the code ({filesize.decimal(len(package.content))})")
                controller.upload_package(package.digest, package.content)
            request = DeployRequest(block, package.digest, 100.0 if canary is None else canary, version, region_names, deadline)
            admin = controller.admin_url()
            outcome, name = controller.deploy(agent, request)
        if outcome == "nothing":
            line = f"nothing to deploy: {agent} already runs this code with these settings as {name}"
        elif no_wait:
            line = f"{agent}: started to roll out {name}"
        else:
            step_of = partial(rollout.gaining_traffic, agent=agent, version=name, percent=request.percent)
            if outcome in ("started", "settings"):
                step_of = partial(rollout.starting, agent=agent)
            line = rollout.wait(AdminApi(admin), step_of, reporter, max(timeout, deadline + 10))
    click.echo(line)


def block_of(settings: Settings, agent: str, config: Path | None) -> dict[str, Any]:
    """The agent's block from cluster.yaml, overridden by the file `config`. Raises ConfigError."""
    from cluster.config import ConfigError, agent_from_block
    from cluster.config.documents import merged, read_document

    configured = settings.agents.get(agent)
    block = dict(configured.to_block()) if configured else {}
    if config is not None:
        document = read_document(config)
        if not isinstance(document.content, dict) or document.complaints:
            raise ConfigError(f"{config}: expected one mapping with an agent's settings, each key at most once")
        carried = {key: block[key] for key in ("regions",) if key in block}  # loadBalancing.regions names some of them
        override = {"agent": block.get("agent"), **carried, **document.content}
        block = merged(agent_from_block(agent, override, config.absolute().parent).to_block(), block)
    if not block:
        names = ", ".join(settings.agents) or "none"
        raise ConfigError(
            f"agents.{agent}: no such agent in {settings.folder} (known: {names}); add it to cluster.yaml, or pass --config"
        )
    return dict(agent_from_block(agent, block, Path(settings.folder)).to_block())


def split_regions(option: str | None) -> tuple[str, ...]:
    """The names in `--regions`. Raises BadParameter for none or a repeated one."""
    names = tuple(name.strip() for name in (option or "").split(",") if name.strip())
    if option is not None and (not names or len(set(names)) < len(names)):
        raise click.BadParameter(
            f"{option!r} is not a list of distinct regions (for example us-east-1,eu-west-1)", param_hint="--regions"
        )
    return names
