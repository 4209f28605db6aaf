"""The progress line on stderr: a spinner on a terminal; elsewhere a new line whenever the text changes."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.text import Text


class ProgressReporter:
    """A context manager around the work."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._spinner = console.status("") if console.is_terminal else None
        self._last = ""

    def __enter__(self) -> ProgressReporter:
        if self._spinner:
            self._spinner.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        if self._spinner:
            self._spinner.stop()

    def report(self, text: str) -> None:
        """Show what the command is doing now."""
        if text == self._last:
            return
        self._last = text
        if self._spinner:
            self._spinner.update(Text(text))
        else:
            self._console.print(Text(text), soft_wrap=True)

    def note(self, text: str, style: str = "yellow") -> None:
        """Print a line that stays on the screen."""
        self._console.print(Text(text, style=style), soft_wrap=True)
