"""Connections to instances: one kept-alive pool, requests and WebSockets, and which failure means what.

The narrow seam of the data plane: everything above it speaks of `Answer`, `NotConnected` and `BrokeOff` only, so that the
HTTP client can be exchanged. aiohttp, because it streams both ways with back-pressure and does WebSockets.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from functools import lru_cache
from typing import Any

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from cluster.listener import in_url

Headers = Sequence[tuple[bytes, bytes]]

_IDLE_CONNECTION_S = 30  # below the instances' own keep-alive time, or a request may meet a connection being closed
_HEADER_LIMIT = 1024 * 1024


class NotConnected(Exception):
    """No connection was made: the instance has certainly not seen the request."""


class BrokeOff(Exception):
    """The connection ended after the request may have been seen."""


class Answer:
    """The head of an instance's response; the body follows in pieces. Close it, whatever happens."""

    __slots__ = ("_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status: int = response.status
        self.headers: Headers = response.raw_headers

    async def pieces(self) -> AsyncIterator[bytes]:
        """Body as it arrives. Raises BrokeOff when it ends early."""
        try:
            async for piece in self._response.content.iter_any():
                yield piece
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BrokeOff(str(error)) from error

    def whole(self) -> bytes | None:
        """The body if all of it has arrived already, else None: most answers are one packet."""
        content = self._response.content
        if not content.is_eof() or content.exception() is not None:
            return None
        return content.read_nowait()

    def close(self) -> None:
        """Back to the pool when it was read to its end, else the connection is closed: the instance sees a departure."""
        self._response.close()


class Upstream:
    """The pool. Made inside a running event loop."""

    def __init__(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_CONNECTION_S, use_dns_cache=False),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=10.0),  # WebSockets; requests bring their own
            auto_decompress=False,
            raise_for_status=False,
            max_line_size=_HEADER_LIMIT,
            max_field_size=_HEADER_LIMIT,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        )
        # aiohttp sends GET, PUT and DELETE again by itself when the connection breaks; whether to is ours to say.
        self._session._retry_connection = False

    async def request(
        self,
        method: str,
        host: str,
        port: int,
        path: str,
        headers: Iterable[tuple[str, str]],
        body: bytes | AsyncIterator[bytes] | None,
        connect_s: float = 10.0,
    ) -> Answer:
        """The answer's head. `path` is sent as it is, query included. Raises NotConnected or BrokeOff."""
        try:
            response = await self._session.request(
                method,
                _url(host, port, path),
                headers=CIMultiDict(headers),
                data=body,
                allow_redirects=False,
                timeout=_timeout(connect_s),
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(str(error)) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BrokeOff(str(error) or type(error).__name__) from error
        return Answer(response)

    async def websocket(
        self, host: str, port: int, path: str, headers: Iterable[tuple[str, str]], protocols: Sequence[str]
    ) -> aiohttp.ClientWebSocketResponse[Any]:
        """An open WebSocket. Raises NotConnected, BrokeOff, or aiohttp.WSServerHandshakeError when it was declined."""
        try:
            return await self._session.ws_connect(
                _url(host, port, path),
                headers=CIMultiDict(headers),
                protocols=protocols,
                autoping=True,
                max_msg_size=0,
                compress=0,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(str(error)) from error
        except aiohttp.WSServerHandshakeError:
            raise
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BrokeOff(str(error) or type(error).__name__) from error

    async def close(self) -> None:
        await self._session.close()


@lru_cache(64)
def _timeout(connect_s: float) -> aiohttp.ClientTimeout:
    """Only for the connection: how long an answer may take is the caller's to say."""
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_s)


def _url(host: str, port: int, path: str) -> URL:
    return URL(f"http://{in_url(host)}:{port}{path}", encoded=True)
