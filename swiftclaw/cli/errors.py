"""The errors that end a command. Each is printed as it is, without a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click


class CommandFailed(click.ClickException):
    """The command was refused or failed; `message` says why, in a sentence. Exit status 1."""

    exit_code = 1

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(self.format_message(), file=file, err=file is None)


class AdminUnreachable(CommandFailed):
    """Nothing listens on the admin port, or it does not reply in time."""


class Misconfigured(CommandFailed):
    """The mistakes in cluster.yaml, one per line. Exit status 2."""

    exit_code = 2

    def __init__(self, mistakes: Sequence[str]) -> None:
        super().__init__("\n".join(mistakes))


def first_line(error: BaseException) -> str:
    """The first line of the error's text; its type's name if there is no text."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
