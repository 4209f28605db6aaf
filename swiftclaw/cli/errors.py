"""Why a command gives up. Each is shown as it is; nothing else ends a command."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click


class CommandFailed(click.ClickException):
    """It did not work; `message` says why in a sentence. Exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.format_message(), file=file, err=file is None)


class AdminUnreachable(CommandFailed):
    """Nobody answers on the admin port."""


class Misconfigured(CommandFailed):
    """The mistakes in cluster.yaml, one per line. Exit status 2."""

    exit_code = 2

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))
