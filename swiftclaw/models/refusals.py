"""The errors of model servers: {"error": {"message": …}}, {"error": …}, {"message": …} and {"detail": …} are all in use.

A server's words reach the client without keys. Those of a 401 never do: they are about the operator's key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from deployments.request.openai import text_of
from deployments.request.responses import parse_retry_after
from swiftclaw.models.base import ModelError
from swiftclaw.models.endpoint import Endpoint

_ERROR_LIMIT = 64 * 1024  # bytes of an error's body; the rest is not read
_PLAIN_ERROR_LIMIT = 300  # characters of an error that is not JSON
_LONGEST = 4000  # characters of a server's words
_OF_THE_KEY = {
    401: "the model server does not accept the agent's credentials",
    402: "the model server requires payment from the agent's operator",
}


async def model_error(response: aiohttp.ClientResponse, endpoint: Endpoint) -> ModelError:
    """The error of a response whose status is not 2xx."""
    body = b""
    async for piece in response.content.iter_any():
        body += piece
        if len(body) > _ERROR_LIMIT:
            break
    retry_after_s = parse_retry_after(response.headers)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = endpoint.masked(body.decode(errors="replace").strip()[:_PLAIN_ERROR_LIMIT])
        shown = text if response.content_type == "text/plain" and not text.startswith("<") else ""
        return _error(response.status, text or response.reason or "no reason given", shown, None, retry_after_s)
    return _named(value, endpoint, response.status, retry_after_s)


def error_within(body: Mapping[str, Any], endpoint: Endpoint) -> ModelError:
    """The error that a server reports with status 200, or within a stream. Its `code` may be the HTTP status."""
    inner = body.get("error")
    code = (inner if isinstance(inner, dict) else body).get("code")
    status = int(code) if isinstance(code, (int, str)) and str(code).isdigit() and 400 <= int(code) < 600 else None
    return _named(body, endpoint, status, None)


def _named(value: object, endpoint: Endpoint, status: int | None, retry_after_s: float | None) -> ModelError:
    text = endpoint.masked(_text(value))[:_LONGEST]
    fields = next((v for v in (value.get("error"), value) if isinstance(v, dict)), None) if isinstance(value, dict) else None
    return _error(status, text or "no reason given", text, fields, retry_after_s)


def _error(
    status: int | None, text: str, shown: str, fields: Mapping[str, Any] | None, retry_after_s: float | None
) -> ModelError:
    """`shown`: the server's words, if a client may read them."""
    if status is not None and 400 <= status < 500:
        public = _OF_THE_KEY.get(status) or shown or f"the model server refused the request with status {status}"
    else:
        public = "the model server failed" + (f" with status {status}" if status else "") + (f": {shown}" if shown else "")
    return ModelError(text, status=status, public=public, fields=fields, retry_after_s=retry_after_s)


def _text(body: object) -> str:
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    return text_of(body) if body else ""
