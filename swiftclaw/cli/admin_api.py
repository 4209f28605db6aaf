"""The admin port, read over HTTP. What it answers is shown as it is; what can go wrong becomes a sentence."""

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


class AdminApi:
    """One admin port."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # Never through a proxy from the environment: the admin port is on this machine or in this network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self._get("/api/status")
        return answer

    def agent(self, agent: str) -> dict[str, Any]:
        """Raises CommandFailed for an unknown agent, with the known ones."""
        answer: dict[str, Any] = self._of(agent, "")
        return answer

    def instances(self, agent: str) -> list[dict[str, Any]]:
        """Raises CommandFailed for an unknown agent, with the known ones."""
        answer: list[dict[str, Any]] = self._of(agent, "/instances")
        return answer

    def load(self, agent: str) -> dict[str, Any]:
        """Raises CommandFailed for an unknown agent, with the known ones."""
        answer: dict[str, Any] = self._of(agent, "/load")
        return answer

    def events(self, *, agent: str | None, kind: str | None, limit: int, after: int | None = None) -> list[dict[str, Any]]:
        """Oldest first."""
        asked = {"agent": agent, "kind": kind, "limit": limit, "after": after}
        query = urllib.parse.urlencode({name: value for name, value in asked.items() if value is not None})
        answer: list[dict[str, Any]] = self._get(f"/api/events?{query}")
        return answer

    def _of(self, agent: str, rest: str) -> Any:
        try:
            answer = self._get(f"/api/agents/{urllib.parse.quote(agent, safe='')}{rest}")
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise CommandFailed(f"{error.url} answered {error.code} {error.reason}") from None
            raise CommandFailed(self._unknown(agent)) from None
        return answer

    def _unknown(self, agent: str) -> str:
        known = [entry["name"] for entry in self._get("/api/agents")]
        close = difflib.get_close_matches(agent, known, 1)
        said = f"there is no agent {agent!r} (known: {', '.join(known) or 'none'})"
        return f"{said}; did you mean {close[0]}?" if close else said

    def _get(self, path: str) -> Any:
        try:
            with self._opener.open(self.url + path, timeout=TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if path == "/api/status":
                raise CommandFailed(f"{self.url} answered {error.code}: that is not SwiftClaw's admin port") from None
            raise
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            why = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
            raise AdminUnreachable(
                f"nobody answers on the admin port {self.url} ({str(why).lower()}); "
                "`swiftclaw up` starts SwiftClaw, `--admin URL` names another port"
            ) from None
        except ValueError:
            raise CommandFailed(f"{self.url} did not answer in JSON: that is not SwiftClaw's admin port") from None


def find(url: str | None) -> AdminApi:
    """The port that `--admin` names, else that of ./cluster.yaml, else the default one."""
    if url is None:
        return AdminApi(files.admin_url(Path(files.DEFAULT_FILE)))
    full = url if "://" in url else f"http://{url}"
    try:
        parts = urllib.parse.urlsplit(full)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise click.BadParameter(f"{url!r} is not a URL such as http://127.0.0.1:8001", param_hint="--admin")
    return AdminApi(full)
