"""The admin port, read over HTTP. Replies are passed on unchanged; every failure becomes a sentence."""

from __future__ import annotations

import difflib
import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import click

from swiftclaw.cli import files
from swiftclaw.cli.errors import AdminUnreachable, CommandFailed

TIMEOUT_S = 5.0
OTHER_SERVER = "this is not SwiftClaw's admin port; pass the right one with --admin URL"


class AdminApi:
    """A client for one admin port. Every method raises AdminUnreachable, or CommandFailed for an unusable reply."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Never through a proxy from the environment: the admin port is on this machine or in this network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def status(self) -> dict[str, Any]:
        """Agents, gateways, Serve apps, problems and warnings."""
        reply: dict[str, Any] = self._get("/api/status")
        return reply

    def agent(self, agent: str) -> dict[str, Any]:
        """One agent with its versions. Raises CommandFailed for an unknown agent, naming the known ones."""
        reply: dict[str, Any] = self._get_agent(agent, "")
        return reply

    def instances(self, agent: str) -> list[dict[str, Any]]:
        """The agent's instances. Raises CommandFailed for an unknown agent, naming the known ones."""
        reply: list[dict[str, Any]] = self._get_agent(agent, "/instances")
        return reply

    def load(self, agent: str) -> dict[str, Any]:
        """How the agent's load is shared. Raises CommandFailed for an unknown agent, naming the known ones."""
        reply: dict[str, Any] = self._get_agent(agent, "/load")
        return reply

    def events(self, *, agent: str | None, kind: str | None, limit: int, after: int | None = None) -> list[dict[str, Any]]:
        """The newest `limit` events that match, oldest first. `after`: only events with a higher id."""
        filters = {"agent": agent, "kind": kind, "limit": limit, "after": after}
        query = urllib.parse.urlencode({name: value for name, value in filters.items() if value is not None})
        reply: list[dict[str, Any]] = self._get(f"/api/events?{query}")
        return reply

    def _get_agent(self, agent: str, path: str) -> Any:
        try:
            return self._get(f"/api/agents/{urllib.parse.quote(agent, safe='')}{path}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise CommandFailed(f"{error.url} returned {error.code} {error.reason}") from None
            raise CommandFailed(self._unknown_agent(agent)) from None

    def _unknown_agent(self, agent: str) -> str:
        names = [entry["name"] for entry in self._get("/api/agents")]
        similar = difflib.get_close_matches(agent, names, 1)
        sentence = f"there is no agent {agent!r} (known: {', '.join(names) or 'none'})"
        return f"{sentence}; did you mean {similar[0]}?" if similar else sentence

    def _get(self, path: str) -> Any:
        try:
            with self._opener.open(self.url + path, timeout=TIMEOUT_S) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if path == "/api/status":
                raise CommandFailed(f"{self.url} returned {error.code} {error.reason}: {OTHER_SERVER}") from None
            raise
        except (OSError, http.client.HTTPException) as error:
            raise AdminUnreachable(
                f"cannot connect to the admin port at {self.url} ({_reason(error)}); "
                "start SwiftClaw with `swiftclaw up`, or pass another port with --admin URL"
            ) from None
        except ValueError:
            raise CommandFailed(f"{self.url} did not return JSON: {OTHER_SERVER}") from None


def _reason(error: Exception) -> str:
    cause = getattr(error, "reason", None) or error
    return str(getattr(cause, "strerror", None) or str(cause) or type(cause).__name__).lower()


def admin_port(url: str | None) -> AdminApi:
    """The admin port that `--admin` names; without it, the one in ./cluster.yaml, else the default port."""
    if url is None:
        return AdminApi(files.admin_url(Path(files.DEFAULT_FILE)))
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise click.BadParameter(f"{url!r} is not a URL (for example http://127.0.0.1:8001)", param_hint="--admin")
    return AdminApi(full)
