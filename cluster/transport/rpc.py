"""How gateways and instances call the Controller: HTTP on a port of its own, each message signed with the cluster's key.

Not by Serve handles, which only ask where that port is: Ray 2.60 completes a handle's call only after the previous caller
has read its answer, so one frozen or disconnected caller would block the Controller for all others. A signed message is
unpickled, so the key is equivalent to the right to run code here; it is never sent. The methods: cluster/controller_api.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import pickle
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import aiohttp

from cluster.transport.listener import Listener, bind, in_url

if TYPE_CHECKING:  # Python 3.10 has no TypeVarTuple
    from typing_extensions import TypeVarTuple, Unpack

    Arguments = TypeVarTuple("Arguments")

Result = TypeVar("Result")
Methods = Mapping[str, Callable[..., Awaitable[Any]]]

log = logging.getLogger("swiftclaw.controller")

SIGNATURE = b"x-swiftclaw-signature"
FIND_S = 10.0
CONNECT_S = 5.0


class RpcAddress(NamedTuple):
    """Where the Controller listens for instances and gateways."""

    host: str
    port: int
    key: str


class ControllerUnavailable(Exception):
    """The Controller cannot be reached or failed; a call may reach another Controller process later."""


class CallerLeft(Exception):
    """The caller disconnected before its call was answered."""


class UnknownMethod(ControllerUnavailable):
    """The Controller has no such method: it runs another release."""


def sign(key: str, purpose: bytes, content: bytes) -> bytes:
    return hmac.new(key.encode(), purpose + b"\n" + content, hashlib.sha256).hexdigest().encode()


class RpcServer:
    """The Controller's side: an ASGI app that calls `methods` and nothing else."""

    def __init__(self, methods: Methods, key: str, interrupted: Collection[str] = ()) -> None:
        """`interrupted`: the methods that are cancelled when their caller disconnects; the others run to their end."""
        self._methods, self._key, self._interrupted = dict(methods), key, frozenset(interrupted)
        self._listener: Listener | None = None
        self.address = RpcAddress("", 0, key)

    def __repr__(self) -> str:
        return f"<RpcServer on {self.address.host}:{self.address.port}: {', '.join(sorted(self._methods))}>"

    async def open(self, host: str) -> None:
        listening = bind(host, 0)
        self._listener = Listener(self, listening, grace_s=0)  # gateways repeat their request for a snapshot
        await self._listener.start()
        self.address = RpcAddress(host, self._listener.port, self._key)

    async def close(self) -> None:
        if self._listener is not None:
            await self._listener.close()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        content = await _body(receive)
        name = scope["path"].lstrip("/")
        signature = next((value for header, value in scope["headers"] if header == SIGNATURE), b"")
        if not hmac.compare_digest(signature, sign(self._key, name.encode(), content)):
            await _answer(send, 403, b"", b"")
            return
        method = self._methods.get(name)
        if method is None:
            await _answer(send, 404, b"", b"")
            return
        try:
            called = method(*pickle.loads(content))
            result = await (_while_connected(receive, called) if name in self._interrupted else called)
        except CallerLeft:
            return
        except Exception:
            log.exception("call of %s failed", name)
            await _answer(send, 500, b"", b"")
            return
        answer = pickle.dumps(result)
        await _answer(send, 200, answer, sign(self._key, b"answer " + signature, answer))


class RpcClient:
    """The caller's side. `find` looks the address up: at first, and when nothing listens at the last one any more.

    A call whose connection breaks is made once more, to the address found then: every method may be called twice.
    """

    def __init__(self, find: Callable[[], Awaitable[RpcAddress]]) -> None:
        self._find = find
        self._address: RpcAddress | None = None
        self._session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: Callable[[Any, Unpack[Arguments]], Awaitable[Result]],
        *args: Unpack[Arguments],
        timeout_s: float = 20.0,
    ) -> Result:
        """The result of the Controller's method of that name. Raises ControllerUnavailable.

        `method`: a function of the protocol that both sides share, such as `ControlApi.observe`.
        """
        name, content = method.__name__, pickle.dumps(args)
        try:
            result: Result = await self._call(name, content, timeout_s)
        except ControllerUnavailable:
            self._address = None
            raise
        except Exception as error:
            self._address = None
            raise ControllerUnavailable(f"{name}: {type(error).__name__}: {error}") from error
        return result

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _call(self, name: str, content: bytes, timeout_s: float) -> Any:
        if self._address is not None:
            try:
                return await self._send(self._address, name, content, timeout_s)
            except aiohttp.ClientConnectionError as error:
                if isinstance(error, asyncio.TimeoutError):
                    raise
            self._address = None  # nothing listens there any more: a restarted Controller has another port
        self._address = await asyncio.wait_for(self._find(), FIND_S)
        return await self._send(self._address, name, content, timeout_s)

    async def _send(self, to: RpcAddress, name: str, content: bytes, timeout_s: float) -> Any:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        signature = sign(to.key, name.encode(), content)
        async with self._session.post(
            f"http://{in_url(to.host)}:{to.port}/{name}",
            data=content,
            headers={SIGNATURE.decode(): signature.decode()},
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S),
        ) as response:
            answer = await response.read()
            answer_signature = response.headers.get(SIGNATURE.decode(), "").encode()
        if response.status == 404:
            raise UnknownMethod(f"the Controller has no method {name!r}: it runs another release of SwiftClaw")
        if response.status != 200:
            raise ControllerUnavailable(f"the Controller answered {name} with status {response.status}")
        if not hmac.compare_digest(answer_signature, sign(to.key, b"answer " + signature, answer)):
            raise ControllerUnavailable(f"the answer to {name} is not signed by the Controller")
        return pickle.loads(answer)


async def _while_connected(receive: Any, called: Awaitable[Result]) -> Result:
    """The result of a call, which is cancelled when its caller disconnects. Raises CallerLeft."""
    call, disconnected = asyncio.ensure_future(called), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({call, disconnected}, return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError:
        call.cancel()
        raise
    finally:
        disconnected.cancel()
    if call.done():
        return call.result()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    raise CallerLeft


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


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
