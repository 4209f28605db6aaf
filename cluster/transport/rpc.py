"""How gateways and instances call the Controller: HTTP on a port of its own, each message signed with the cluster's key.

Not by Serve handles, which only tell where that port is: Ray 2.60 answers a handle's call only when the caller before it has
taken its answer, so one that is frozen or cut off would keep the Controller from all the others. What is signed is
unpickled, so the key is as good as the right to run code here; it is never sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import pickle
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple

import aiohttp

from cluster.transport.listener import Listener, bind, in_url

log = logging.getLogger("swiftclaw.controller")

METHODS = frozenset({"register", "leaving", "cannot_start", "news", "observe", "goodbye", "package", "take_package"})
SIGNATURE = b"x-swiftclaw-signature"
FIND_S = 10.0
CONNECT_S = 5.0


class RpcAddress(NamedTuple):
    """Where the Controller listens for its own."""

    host: str
    port: int
    key: str


class ControllerUnavailable(Exception):
    """The Controller cannot be reached, or could not do it; it may be another one by now."""


def sign(key: str, purpose: bytes, content: bytes) -> bytes:
    return hmac.new(key.encode(), purpose + b"\n" + content, hashlib.sha256).hexdigest().encode()


class RpcServer:
    """The Controller's side: an ASGI app that calls `METHODS` of `target`."""

    def __init__(self, target: Any, key: str) -> None:
        self._target, self._key = target, key
        self._listener: Listener | None = None
        self.address = RpcAddress("", 0, key)

    async def open(self, host: str) -> None:
        listening = bind(host, 0)
        self._listener = Listener(self, listening, grace_s=0)  # who waits for news asks again
        await self._listener.start()
        self.address = RpcAddress(host, self._listener.port, self._key)

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = await _body(receive)
        method = scope["path"].lstrip("/")
        said = next((value for name, value in scope["headers"] if name == SIGNATURE), b"")
        if method not in METHODS or not hmac.compare_digest(said, sign(self._key, method.encode(), content)):
            await _answer(send, 403, b"", b"")
            return
        try:
            result = await getattr(self._target, method)(*pickle.loads(content))
        except Exception:
            log.exception("%s failed", method)
            await _answer(send, 500, b"", b"")
            return
        answer = pickle.dumps(result)
        await _answer(send, 200, answer, sign(self._key, b"answer " + said, answer))


class RpcClient:
    """The other side. `find` asks for the address, when it is not known or nobody is there any more.

    A call whose connection breaks is made once more, to who is found then: every method may be called twice.
    """

    def __init__(self, find: Callable[[], Awaitable[RpcAddress]]) -> None:
        self._find = find
        self._address: RpcAddress | None = None
        self._session: aiohttp.ClientSession | None = None

    async def call(self, method: str, *args: Any, timeout_s: float = 20.0) -> Any:
        """What the Controller's method returns. Raises ControllerUnavailable."""
        content = pickle.dumps(args)
        try:
            if self._address is not None:
                try:
                    return await self._ask(self._address, method, content, timeout_s)
                except aiohttp.ClientConnectionError as error:
                    if isinstance(error, asyncio.TimeoutError):
                        raise
                self._address = None  # nobody is there any more: a Controller that was restarted has another port
            self._address = await asyncio.wait_for(self._find(), FIND_S)
            return await self._ask(self._address, method, content, timeout_s)
        except Exception as error:
            self._address = None
            raise (
                error if isinstance(error, ControllerUnavailable) else ControllerUnavailable(f"{type(error).__name__}: {error}")
            ) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _ask(self, to: RpcAddress, method: str, content: bytes, timeout_s: float) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        signature = sign(to.key, method.encode(), content)
        async with self._session.post(
            f"http://{in_url(to.host)}:{to.port}/{method}",
            data=content,
            headers={SIGNATURE.decode(): signature.decode()},
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
        ) as response:
            answer = await response.read()
            said = response.headers.get(SIGNATURE.decode(), "").encode()
        if response.status != 200:
            raise ControllerUnavailable(f"the Controller answered {method} with {response.status}")
        if not hmac.compare_digest(said, sign(to.key, b"answer " + signature, answer)):
            raise ControllerUnavailable(f"what answered {method} is not the Controller")
        return pickle.loads(answer)


async def _body(receive: Any) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


async def _answer(send: Any, status: int, content: bytes, signature: bytes) -> None:
    headers = [(b"content-length", str(len(content)).encode()), (SIGNATURE, signature)]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
