"""The user's agent: what handles a message, what says whether it is well, which app it brings along.

The file a user writes decorates functions with an `Agent`; the process that hosts an instance then calls
`start`, `answer`, `check` and `stop`. A handler names what it wants by its parameters' names (`message`,
`session_id`, `user_id`, `request`). It is sync (run in a thread, so that it blocks nobody), async, or a
generator of either kind, which streams.
"""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.instance.hosted_agent import RequestInfo, Turn
from policies.rate_limit import LIMITERS, RateRule
from swiftclaw.models import model_for

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["Agent", "RequestInfo", "Turn"]

F = TypeVar("F", bound=Callable[..., object])

_HANDLER_TAKES = ("message", "session_id", "user_id", "request")
_THREADS = 100  # sync handlers at once: limits.maxConnectionsPerInstance's default
_END = object()


class Agent:
    """An agent. `model`: "echo", "openai:<model>", or an async callable that gets the message.

    `base_url` and `api_key` are for "openai:…"; by default OPENAI_BASE_URL and OPENAI_API_KEY at use.
    """

    def __init__(
        self,
        name: str,
        *,
        model: str | Callable[..., Any] = "echo",
        session_affinity: bool = False,
        base_url: str | None = None,
        api_key: str | None = None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: {name!r} is not an agent's name")
        self.name = name
        self.session_affinity = session_affinity
        self.app: ASGIApp | None = None
        self.rate_limits: tuple[RateRule, ...] = ()
        self._model = model_for(model, base_url=base_url, api_key=api_key)
        self._handler: _Function | None = None
        self._limited: _Function | None = None
        self._health: _Function | None = None
        self._on_start: list[_Function] = []
        self._on_stop: list[_Function] = []
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix=f"agent-{name}")  # started as needed

    def __repr__(self) -> str:
        handler = self._handler or self._limited
        return f"<Agent {self.name!r}, handled by {handler.name if handler else 'its model'}>"

    # What the user's file says.

    def on_message(self, function: F) -> F:
        """The function that answers messages: there is one. Its answer is JSON-able, or text in pieces."""
        handler = _Function(function, takes=_HANDLER_TAKES)
        if self._handler is not None:
            raise TypeError(f"{self._about('on_message')}: {self._handler.name} already, then {handler.name}")
        self._handler = handler
        return function

    def rate_limit(
        self,
        *,
        requests: int,
        window: str | float = "1m",
        key: str | None = None,
        strategy: str = "sliding-window",
    ) -> Callable[[F], F]:
        """A limit over all instances. The function is the handler if no on_message is given."""
        rule = _rule(requests, window, key, strategy)

        def limit(function: F) -> F:
            limited = _Function(function, takes=_HANDLER_TAKES)
            if self._limited is not None and self._limited.function != limited.function:
                raise TypeError(
                    f"{self._about('rate_limit')}: {self._limited.name} already, then {limited.name}; "
                    "an agent has one handler (its limits may be stacked on it)"
                )
            self._limited = limited
            self.rate_limits = (*self.rate_limits, rule)
            return function

        return limit

    def health_check(self, function: F) -> F:
        """Is the instance well? {"status": "healthy" or "unhealthy", "reason": …}, a bool, or None: it is."""
        if self._health is not None:
            raise TypeError(f"{self._about('health_check')}: {self._health.name} already")
        self._health = _Function(function)
        return function

    def on_start(self, function: F) -> F:
        """Run once per instance, before its first message."""
        self._on_start.append(_Function(function))
        return function

    def on_stop(self, function: F) -> F:
        """Run once per instance, after its last message."""
        self._on_stop.append(_Function(function))
        return function

    def mount(self, asgi_app: ASGIApp) -> None:
        """Every path of the agent that is not SwiftClaw's own goes to this app, WebSockets included."""
        if not callable(asgi_app):
            raise TypeError(f"{self._about('mount')}: {asgi_app!r} is not an ASGI app")
        if self.app is not None:
            raise TypeError(f"{self._about('mount')}: an app is mounted already")
        self.app = asgi_app

    async def generate(self, message: object, **options: Any) -> str:
        """The model's answer. Raises swiftclaw.models.ModelError."""
        return await self._model.generate(message, **options)

    def stream(self, message: object, **options: Any) -> AsyncGenerator[str, None]:
        """The model's answer as it comes. Raises swiftclaw.models.ModelError."""
        return self._model.stream(message, **options)

    # What the process that hosts an instance calls.

    async def start(self) -> None:
        for hook in self._on_start:
            await hook.call()

    async def stop(self) -> None:
        """Runs every hook and closes the model, then raises what was raised first."""
        failures: list[Exception] = []
        steps: list[Callable[[], Awaitable[object]]] = [hook.call for hook in self._on_stop]
        for step in (*steps, self._model.close):
            try:
                await step()
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]

    async def answer(self, turn: Turn) -> object | AsyncIterator[str]:
        """What the handler answers: a plain value, or an async generator of text, to be closed."""
        handler = self._handler or self._limited
        if handler is None:
            return await self.generate(turn.message)
        result = await handler.call(turn, self._threads)
        if hasattr(result, "__aiter__"):
            return _text(result, handler.name)
        if isinstance(result, Iterator):
            return _text(_from_thread(result, self._threads), handler.name)
        return result

    async def check(self) -> tuple[bool, str]:
        """Whether this instance is well, and what is wrong. Raises nothing; the caller limits its time."""
        if self._health is None:
            return True, ""
        try:
            verdict = await self._health.call()
        except Exception as error:
            return False, f"health check raised {type(error).__name__}: {error}"
        return _health(verdict)

    def _about(self, decorator: str) -> str:
        return f"agent {self.name!r}, {decorator}"


class _Function:
    """A function of the user's: what it takes, where it runs."""

    def __init__(self, function: Callable[..., object], takes: tuple[str, ...] = ()) -> None:
        if not callable(function):
            raise TypeError(f"a function is needed, not {function!r}")
        self.name = _name(function)
        self.function = function
        self._is_async = _is_async(function)
        self._positional: list[tuple[str | None, Any]] = []  # the value's name, or None; the parameter's default
        self._named: list[tuple[str, Any]] = []
        self._read_signature(takes)

    async def call(self, turn: object = None, threads: Executor | None = None) -> object:
        """Its result; a generator has not begun yet."""
        call = partial(
            self.function,
            *[_value(turn, name, default) for name, default in self._positional],
            **{name: _value(turn, name, default) for name, default in self._named},
        )
        result = call() if self._is_async else await _in_thread(call, threads)
        return await result if isinstance(result, Awaitable) else result

    def _read_signature(self, takes: tuple[str, ...]) -> None:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError as error:
            raise TypeError(f"{self.name} does not say which parameters it takes") from error
        bound = self.function.keywords if isinstance(self.function, partial) else {}
        for parameter in parameters:
            name, default = parameter.name, parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            known = name in takes and name not in bound
            if not known and default is parameter.empty:
                raise TypeError(f"{self.name} wants {name!r}, but {_may_take(takes)}")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.append((name if known else None, default))
            elif known:
                self._named.append((name, default))
        names_nothing = not self._positional and not self._named
        if takes and names_nothing and any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(f"{self.name} names no parameter (*args and **kwargs get nothing), and {_may_take(takes)}")


def _may_take(takes: tuple[str, ...]) -> str:
    return f"it may take {', '.join(takes)}" if takes else "it is called without arguments"


def _value(turn: object, name: str | None, default: Any) -> Any:
    """The turn's value; where it has none, the parameter's default."""
    value = None if name is None else getattr(turn, name)
    return default if value is None and default is not inspect.Parameter.empty else value


def _name(function: Callable[..., object]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _is_async(function: Callable[..., object]) -> bool:
    while isinstance(function, partial):
        function = function.func
    forms = (function, type(function).__call__)
    return any(inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form) for form in forms)


async def _in_thread(call: Callable[[], object], threads: Executor | None) -> object:
    """`call()` in a thread that sees the caller's context variables."""
    context = copy_context()

    def run() -> object:
        try:
            return context.run(call)
        except StopIteration as error:  # a future cannot carry one: its await would never end
            raise RuntimeError("StopIteration was raised") from error

    return await asyncio.get_running_loop().run_in_executor(threads, run)


async def _from_thread(items: Iterator[object], threads: Executor) -> AsyncGenerator[object, None]:
    """A sync iterator's items, each made in a thread, all in one context."""
    loop, context, turn = asyncio.get_running_loop(), copy_context(), threading.Lock()

    def step() -> object:
        with turn:
            return context.run(next, items, _END)

    def close() -> None:
        with turn:  # a generator cannot be closed while it runs
            if isinstance(items, Generator):
                context.run(items.close)

    try:
        while (item := await loop.run_in_executor(threads, step)) is not _END:
            yield item
    finally:
        await asyncio.shield(loop.run_in_executor(threads, close))


async def _text(items: Any, name: str) -> AsyncGenerator[str, None]:
    """The items, which must be text. Closing this closes them."""
    try:
        async for item in items:
            if not isinstance(item, str):
                raise TypeError(f"{name} yielded {type(item).__name__}: a stream is made of text")
            yield item
    finally:
        if hasattr(items, "aclose"):
            await items.aclose()


def _rule(requests: int, window: str | float, key: str | None, strategy: str) -> RateRule:
    from cluster.config import duration

    if isinstance(requests, bool) or not isinstance(requests, int) or requests < 1:
        raise ValueError(f"rate_limit: requests: {requests!r} is not a whole number of at least 1")
    if key is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise ValueError(f"rate_limit: key: {key!r} is not the name of a field or header")
    if strategy not in LIMITERS:
        raise ValueError(f"rate_limit: strategy: {strategy!r} is not one of {', '.join(LIMITERS)}")
    try:
        window_s = duration(window)
    except ValueError as error:
        raise ValueError(f"rate_limit: window: {error}") from error
    if window_s == 0:
        raise ValueError("rate_limit: window: must be longer than nothing")
    return RateRule(requests, window_s, key, strategy)


def _health(verdict: object) -> tuple[bool, str]:
    if verdict is None or isinstance(verdict, bool):
        return (False, "health check returned False") if verdict is False else (True, "")
    status = verdict.get("status") if isinstance(verdict, Mapping) else None
    if not isinstance(verdict, Mapping) or status not in ("healthy", "unhealthy"):
        return False, f"health check returned {verdict!r}, not a status healthy or unhealthy"
    healthy = status == "healthy"
    return healthy, str(verdict.get("reason") or ("" if healthy else "health check said unhealthy"))
