"""Where a model server is and what it is sent: read from the environment at each call, as the `openai` package reads it.

OPENAI_BASE_URL, OPENAI_API_KEY, OPENAI_ORG_ID, OPENAI_PROJECT_ID, OPENAI_CUSTOM_HEADERS; HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and
NO_PROXY. What the Agent was given wins.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from swiftclaw.models.base import ModelError

OPENAI_URL = "https://api.openai.com/v1"
_LOOKS_SECRET = re.compile(r"\b(?:sk|pk|rk)-[\w*.-]{6,}|\borg-\w{16,}|\bproj_\w{16,}|\S*\*{3,}\S*")


@dataclass(frozen=True)
class Endpoint:
    """One server's chat API. `secrets` are never repeated to a client."""

    url: str
    headers: dict[str, str]
    proxy: str | None
    secrets: tuple[str, ...]

    @classmethod
    def resolve(cls, base_url: str | None, api_key: str | None) -> Endpoint:
        """Raises ModelError when OpenAI's own server is meant and there is no key, or the proxy is of an unknown kind."""
        base_url = base_url or _variable("OPENAI_BASE_URL") or OPENAI_URL
        key = (api_key or _variable("OPENAI_API_KEY") or "").strip()
        organization, project = _variable("OPENAI_ORG_ID"), _variable("OPENAI_PROJECT_ID")
        headers = _custom_headers()
        if organization:
            headers["OpenAI-Organization"] = organization
        if project:
            headers["OpenAI-Project"] = project
        if key:
            headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
            headers["Authorization"] = f"Bearer {key}"
        elif base_url.startswith(OPENAI_URL) and not any(name.lower() == "authorization" for name in headers):
            raise ModelError(
                "no API key: set OPENAI_API_KEY, or pass api_key to the Agent", public="the agent has no API key for its model"
            )
        url = base_url.rstrip("/") + "/chat/completions"
        secrets = tuple(secret for secret in (key, organization, project) if secret)
        return cls(url, headers, _proxy(url), secrets)

    def masked(self, text: str) -> str:
        """A server's words without the secrets, whole or abbreviated (`sk-ab***yz`)."""
        for secret in self.secrets:
            text = text.replace(secret, "***")
        return _LOOKS_SECRET.sub(_mask, text)


def _mask(match: re.Match[str]) -> str:
    """Punctuation that ends the sentence is kept."""
    return "***" + re.sub(r".*[\w*]", "", match[0], flags=re.DOTALL)


def _variable(name: str) -> str | None:
    return os.environ.get(name, "").strip() or None


def _custom_headers() -> dict[str, str]:
    """OPENAI_CUSTOM_HEADERS: lines of `name: value`."""
    lines = (line.partition(":") for line in os.environ.get("OPENAI_CUSTOM_HEADERS", "").splitlines())
    return {name.strip(): value.strip() for name, colon, value in lines if colon and name.strip()}


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or not parts.hostname or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    kind = proxy.partition("://")[0]
    if kind not in ("http", "https"):
        raise ModelError(
            f"the environment configures a {kind} proxy; only http and https proxies are supported",
            public="the agent cannot reach its model",
        )
    return proxy
