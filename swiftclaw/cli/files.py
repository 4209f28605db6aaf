"""cluster.yaml as the commands read it: strictly, or only the two settings that say where SwiftClaw runs.

`down` and the reading commands must work with a file that has a mistake in it, or without one, so they read leniently.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swiftclaw.cli.errors import Misconfigured
from swiftclaw.cli.module_names import conflicts

if TYPE_CHECKING:
    from cluster.config import Settings

DEFAULT_FILE = "cluster.yaml"
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8001
DEFAULT_STATE_DIR = ".swiftclaw"
ADDRESS = click.option(
    "--address", metavar="HOST:PORT",
    help="The Ray cluster. Default: the one that `up` started for FILE, RAY_ADDRESS, or the one on this machine.",
)  # fmt: skip


def load(file: Path) -> Settings:
    """Raises Misconfigured with every mistake."""

    from cluster import config

    if not file.exists():
        raise Misconfigured([f"{file}: no such file; run the command in the folder of cluster.yaml, or give its path"])
    try:
        settings = config.load(file)
    except config.ConfigError as error:
        raise Misconfigured(error.mistakes) from None
    except OSError as error:
        raise Misconfigured([f"{file}: cannot be read ({error.strerror})"]) from None
    targets = [agent.agent for agent in settings.agents.values()]
    if mistakes := conflicts((Path(settings.folder), Path.cwd()), targets):
        raise Misconfigured(mistakes)
    return settings


def admin_url(file: Path) -> str:
    """The URL of the admin port, as seen from this machine. Lenient."""
    block = _args(file).get("admin")
    host, port = DEFAULT_HOST, DEFAULT_PORT
    if isinstance(block, dict):
        host, port = block.get("host", host), block.get("port", port)
    return url(str(host), port)


def state_dir(file: Path) -> Path:
    """The state folder, where `up` keeps its record. Lenient."""
    folder = _args(file).get("stateDir")
    return file.absolute().parent / (folder if isinstance(folder, str) and folder else DEFAULT_STATE_DIR)


def url(host: str, port: int) -> str:
    """An http URL; a wildcard address becomes the loopback address."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _args(file: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text("utf-8"))
        applications = content["applications"]
        ours = [entry for entry in applications if entry.get("name") == "swiftclaw"] or applications
        args = ours[0].get("args")
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, yaml.YAMLError):
        return {}
    return args if isinstance(args, dict) else {}
