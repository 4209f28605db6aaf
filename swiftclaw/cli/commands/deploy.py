"""`swiftclaw deploy`: an agent's code as it is now becomes a version, beside the old one or in its place."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swiftclaw.cli import files
from swiftclaw.cli.admin_api import AdminApi
from swiftclaw.cli.errors import CommandFailed, Misconfigured
from swiftclaw.cli.output import follow, show
from swiftclaw.cli.output.reporter import ProgressReporter

if TYPE_CHECKING:
    from cluster.config import Settings

WAIT = click.option("--no-wait", is_flag=True, help="Only ask for it; `swiftclaw status AGENT` shows how it goes on.")
TIMEOUT = click.option("--timeout", default=180.0, show_default=True, metavar="SECONDS", help="How long to wait for it.")
FILE = click.argument("file", default=files.DEFAULT_FILE, type=click.Path(path_type=Path))


@click.command()
@click.argument("agent")
@FILE
@click.option("--canary", type=click.FloatRange(0, 100, min_open=True), metavar="N", help="Give it N percent of the traffic.")
@click.option("--regions", metavar="A,B,C", help="The regions that the agent runs in, from now on.")
@click.option("--version", metavar="V", help="Its name. Default: the next vN.")
@click.option("--config", type=click.Path(path_type=Path), help="The agent's settings; they win over those in FILE.")
@click.option("--deadline", default=120.0, show_default=True, metavar="SECONDS", help="How long it may take to be healthy.")
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
    no_wait: bool,
    timeout: float,
) -> None:
    """Make AGENT's code, as it is now, its new version.

    The code is the folder of FILE (cluster.yaml unless given), without what .gitignore and .swiftclawignore name. With
    --canary the version runs beside the old one; without, it takes over when its instances are healthy, and then the old
    one drains. An agent that does not run yet is started. Where nothing has changed, nothing is done.
    """
    from cluster.config import ConfigError
    from cluster.desired.packages import CannotPack, pack
    from swiftclaw.cli import ray_driver

    settings = files.load(file)
    try:
        block = block_of(settings, agent, config)
        package = pack(Path(settings.folder), skip=[Path(settings.state_dir)])
    except ConfigError as error:
        raise Misconfigured(error.mistakes) from None
    except CannotPack as error:
        raise CommandFailed(str(error)) from None
    wanted = regions_in(regions)
    with ProgressReporter(show.err()) as reporter:
        with ray_driver.of(file):
            from cluster.desired.rollout_manager import DeployRequest  # imports Ray, which has to be told of its token first

            if not ray_driver.has_package(package.digest):
                reporter.say(f"sending the code ({len(package.content) / 2**20:.1f} MiB)")
                ray_driver.take_package(package.digest, package.content)
            wish = DeployRequest(block, package.digest, 100.0 if canary is None else canary, version, wanted, deadline)
            done, name = ray_driver.deploy_version(agent, wish)
        if done == "nothing":
            line = f"nothing to do: {agent} runs this code with these settings as {name}"
        elif no_wait:
            line = f"{agent}: {name} is asked for"
        else:
            look = partial(follow.coming, agent=agent, version=name, percent=wish.percent)
            if done in ("started", "settings"):
                look = partial(follow.starting, agent=agent)
            api = AdminApi(files.url(settings.admin.host, settings.admin.port))
            line = follow.follow(api, look, reporter, max(timeout, deadline + 10))
    click.echo(line)


def block_of(settings: Settings, agent: str, config: Path | None) -> dict[str, Any]:
    """The agent's block: the file's, under what `config` says. Raises ConfigError."""
    from cluster.config import ConfigError, agent_from_block
    from cluster.config.documents import merged, read_document

    known = settings.agents.get(agent)
    block = dict(known.to_block()) if known else {}
    if config is not None:
        document = read_document(config)
        if not isinstance(document.content, dict) or document.complaints:
            raise ConfigError(f"{config}: must hold an agent's blocks, each once")
        said = {"agent": block.get("agent"), **document.content}
        block = merged(agent_from_block(agent, said, config.absolute().parent).to_block(), block)
    if not block:
        names = ", ".join(settings.agents) or "none"
        raise ConfigError(f"agents.{agent}: {settings.folder} has no such agent (known: {names}); or give its --config")
    return dict(agent_from_block(agent, block, Path(settings.folder)).to_block())


def regions_in(said: str | None) -> tuple[str, ...]:
    names = tuple(name.strip() for name in (said or "").split(",") if name.strip())
    if said is not None and (not names or len(set(names)) < len(names)):
        wrong = f"{said!r} is not a list of regions, each once (like us-east-1,eu-west-1)"
        raise click.BadParameter(wrong, param_hint="--regions")
    return names
