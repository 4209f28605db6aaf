"""The command line: one file per command, one line each in `COMMANDS`.

Exit status: 0 done, 1 refused or failed (one sentence on stderr), 2 wrong usage or configuration. Users see no traceback
unless they set SWIFTCLAW_DEBUG=1. Ray is imported only when a command needs it, so that `swiftclaw status` starts fast.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import click

from swiftclaw.cli.commands.check import check
from swiftclaw.cli.commands.dashboard import dashboard
from swiftclaw.cli.commands.deploy import deploy
from swiftclaw.cli.commands.down import down
from swiftclaw.cli.commands.events import events
from swiftclaw.cli.commands.instances import instances
from swiftclaw.cli.commands.metrics import metrics
from swiftclaw.cli.commands.promote import promote
from swiftclaw.cli.commands.rollback import rollback
from swiftclaw.cli.commands.rotate_key import rotate_key
from swiftclaw.cli.commands.scale import scale
from swiftclaw.cli.commands.schema import schema
from swiftclaw.cli.commands.status import status
from swiftclaw.cli.commands.test import test
from swiftclaw.cli.commands.up import up
from swiftclaw.cli.ray_cluster import driver

COMMANDS: dict[str, click.Command] = {
    "up": up,
    "down": down,
    "check": check,
    "status": status,
    "deploy": deploy,
    "promote": promote,
    "rollback": rollback,
    "instances": instances,
    "metrics": metrics,
    "events": events,
    "dashboard": dashboard,
    "scale": scale,
    "test": test,
    "rotate-key": rotate_key,
    "schema": schema,
}


class _Ordered(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _version() -> str:
    try:
        return version("swiftclaw")
    except PackageNotFoundError:
        return "unknown (not installed)"


@click.group(
    cls=_Ordered,
    commands=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(_version(), prog_name="swiftclaw")
def cli() -> None:
    """A load balancer for AI agents on Ray Serve."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. Every failure is shown as a sentence."""
    try:
        result = cli.main(args=list(arguments) if arguments is not None else None, prog_name="swiftclaw", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 1
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _unexpected(error)
    return result if isinstance(result, int) else 0


def _unexpected(error: Exception) -> int:
    if os.environ.get("SWIFTCLAW_DEBUG"):
        traceback.print_exception(error)
        return 1
    lines = str(error).strip().splitlines()
    detail = f": {lines[0]}" if lines else ""
    click.echo(f"unexpected {type(error).__name__}{detail} (set SWIFTCLAW_DEBUG=1 to see the traceback)", err=True)
    return 1


def main() -> None:
    status = run()
    if "ray" in sys.modules and driver.is_leaving():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
