"""May the page that made a request read the response? `http.cors`, at the gateway, for every response including errors.

A preflight request (OPTIONS with `Access-Control-Request-Method`) is answered here, without an instance. Of a mounted app's
own CORS headers none is returned: two `Access-Control-Allow-Origin` headers are refused by browsers, and one policy is easier
to judge. A request from an origin that is not allowed is served like any other; the browser does not show its response to the
page. WebSockets are not subject to CORS: an app that cares reads `Origin` itself.

Source: https://fetch.spec.whatwg.org/#http-cors-protocol; what is allowed by default is as in Starlette's CORSMiddleware.
"""

from __future__ import annotations

import re

from cluster.config import CorsSettings
from deployments.request.record import RequestRecord
from deployments.request.sessions import TOKEN_HEADER
from deployments.types import Headers, SentHeaders
from policies.errors import BadRequest

ANY = "*"
_ORIGIN, _VARY, _CORS = b"origin", b"vary", b"access-control-"
_METHOD, _HEADERS = b"access-control-request-method", b"access-control-request-headers"
_PRIVATE_NETWORK = b"access-control-request-private-network"
_ALWAYS_ALLOWED = frozenset(("accept", "accept-language", "content-language", "content-type"))
_EXPOSED = ("x-request-id", "x-swiftclaw-instance", "x-swiftclaw-version", "x-swiftclaw-region", TOKEN_HEADER.decode(),
            "ratelimit", "ratelimit-policy", "retry-after")  # fmt: skip


class CorsPolicy:
    """The settings of `http.cors`, ready to judge requests."""

    def __init__(self, settings: CorsSettings) -> None:
        self._settings = settings
        self._any_origin = ANY in settings.origins
        self._origins = frozenset(origin.encode() for origin in settings.origins if ANY not in origin)
        self._patterns = [_pattern(origin) for origin in settings.origins if ANY in origin and origin != ANY]
        if settings.origin_regex is not None:
            self._patterns.append(re.compile(settings.origin_regex))
        self._headers = frozenset(name.lower() for name in settings.headers) | _ALWAYS_ALLOWED
        exposed = [ANY] if ANY in settings.expose_headers else dict.fromkeys((*_EXPOSED, *settings.expose_headers))
        self._on_response = [(b"access-control-expose-headers", ", ".join(exposed).encode())]
        if settings.credentials:
            self._on_response.append((b"access-control-allow-credentials", b"true"))

    def allows_origin(self, origin: bytes) -> bool:
        if self._any_origin or origin in self._origins:
            return True
        text = origin.decode("latin-1")
        return any(pattern.fullmatch(text) for pattern in self._patterns)

    def headers(self, record: RequestRecord, headers: Headers) -> SentHeaders:
        """A response's headers with those of this policy, and no other CORS headers.

        When every origin is allowed, also a response to a request without one: a cache may give it to a page.
        """
        origin = record.header(_ORIGIN)
        added: SentHeaders = []
        if self._any_origin or (origin is not None and self.allows_origin(origin)):
            allowed = ANY.encode() if self._any_origin or origin is None else origin
            added = [(b"access-control-allow-origin", allowed), *self._on_response]
        own = self.is_preflight(record)  # then no app answers
        kept = [header for header in headers if own or not header[0].startswith(_CORS)]
        return [*(kept if self._any_origin else _varying(kept)), *added]

    @staticmethod
    def is_preflight(record: RequestRecord) -> bool:
        return record.method == "OPTIONS" and record.header(_ORIGIN) is not None and record.header(_METHOD) is not None

    def preflight(self, record: RequestRecord) -> SentHeaders:
        """The headers of the answer, beside those of every response. Raises BadRequest for a request that is not allowed."""
        origin, method, names = (record.header(name) or b"" for name in (_ORIGIN, _METHOD, _HEADERS))
        if not self.allows_origin(origin):
            raise BadRequest(f"CORS: the origin {origin.decode('latin-1')} is not allowed")
        if not self._allows_method(method.decode("latin-1")):
            raise BadRequest(f"CORS: the method {method.decode('latin-1')} is not allowed")
        if refused := self._refused(names):
            raise BadRequest(f"CORS: the header {refused} is not allowed")
        allowed = [
            (b"access-control-allow-methods", self._methods(method)),
            (b"access-control-max-age", str(int(self._settings.max_age_s)).encode()),
            (_VARY, b"Access-Control-Request-Method, Access-Control-Request-Headers"),
        ]
        if names:
            allowed.append((b"access-control-allow-headers", names))
        if self._settings.private_network and record.header(_PRIVATE_NETWORK) == b"true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        return allowed

    def _allows_method(self, method: str) -> bool:
        return ANY in self._settings.methods or method in self._settings.methods

    def _methods(self, asked: bytes) -> bytes:
        """`*` is spelled as the method that was asked for: together with credentials it would be a name like others."""
        named = [method.encode() for method in self._settings.methods if method != ANY]
        return b", ".join(dict.fromkeys(named if ANY not in self._settings.methods else [*named, asked]))

    def _refused(self, names: bytes) -> str:
        """The first header that is not allowed."""
        if ANY in self._headers:
            return ""
        wanted = (name.strip().lower() for name in names.decode("latin-1").split(","))
        return next((name for name in wanted if name and name not in self._headers), "")


def _varying(headers: SentHeaders) -> SentHeaders:
    """With `Vary: Origin`, also for a request without an origin: a cache must not give its response to pages."""
    named = [part.strip() for name, value in headers if name == _VARY for part in value.split(b",")]
    if any(part == b"*" or part.lower() == _ORIGIN for part in named):
        return headers
    return [*(header for header in headers if header[0] != _VARY), (_VARY, b", ".join([*named, b"Origin"]))]


def _pattern(origin: str) -> re.Pattern[str]:
    """Of `https://*.example.com` (subdomains of any depth) or `http://localhost:*` (any port, or none)."""
    subdomains = re.escape(origin).replace(r"\*\.", r"[a-z0-9_.-]+\.")
    return re.compile(subdomains.replace(r":\*", "(?::[0-9]+)?"))
