"""The lifespan of the mounted app: its startup before the first request, its shutdown after the last one.

ASGI's lifespan protocol, as uvicorn with `--lifespan auto` runs it: one task from startup to shutdown (task groups and cancel
scopes of the app stay in it), and an app that raises on the protocol itself is served without it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from deployments.types import Message, Scope

log = logging.getLogger("swiftclaw.instance")


class StartupFailed(Exception):
    """The mounted app did not start. The text is the reason, for the operator."""


class Lifespan:
    """The lifespan of one app. `state`: what the app puts there at startup; every request gets a copy."""

    def __init__(self, app: Any) -> None:
        """`app` None: nothing to start or to stop."""
        self._app = app
        self.state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._answered = asyncio.Event()  # the newest event
        self._failure: str | None = None  # the app's own words

    async def startup(self) -> None:
        """Return when the app is ready for requests. Raises StartupFailed."""
        if self._app is None:
            return
        self._task = asyncio.create_task(self._run(), name="lifespan of the mounted app")
        await self._announce("lifespan.startup")
        if self._failure is not None:
            await asyncio.wait({self._task}, timeout=1)  # it may raise what it has reported already
            log.error("the mounted app failed to start:\n%s", self._failure)
            raise StartupFailed(f"the mounted app failed to start: {_last_line(self._failure)}")

    async def shutdown(self, within_s: float) -> None:
        """Let the app release what it holds. Raises nothing: the process ends in any case."""
        if self._task is None or self._task.done():
            return
        try:
            await asyncio.wait_for(self._announce("lifespan.shutdown"), within_s)
            await asyncio.wait({self._task}, timeout=1)
        except asyncio.TimeoutError:
            log.error("the mounted app did not shut down within %g s; ending the process", within_s)
        if self._failure is not None:
            log.error("the mounted app failed to shut down:\n%s", self._failure)
        self._task.cancel()

    async def _announce(self, event: str) -> None:
        self._answered.clear()
        self._events.put_nowait({"type": event})
        await self._answered.wait()

    async def _run(self) -> None:
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        try:
            await self._app(scope, self._events.get, self._send)
        except BaseException as error:  # also SystemExit of an app: only this task ends
            if isinstance(error, asyncio.CancelledError):
                raise
            if self._failure is None:
                log.info("the mounted app does not support the lifespan protocol: %r", error)
        finally:
            self._answered.set()

    async def _send(self, message: Message) -> None:
        event, _, outcome = message["type"].rpartition(".")
        if event not in ("lifespan.startup", "lifespan.shutdown") or outcome not in ("complete", "failed"):
            raise ValueError(f"{message['type']!r} is not a message of the lifespan protocol")
        if outcome == "failed":
            self._failure = message.get("message") or "it gave no reason"
        self._answered.set()


def _last_line(text: str) -> str:
    """Of a traceback, the line that names the error."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), text)
