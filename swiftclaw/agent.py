"""The user's agent: its message handler, health check, rate limits, lifecycle hooks and mounted ASGI app.

Users decorate functions with an `Agent`; the process that hosts an instance then calls `start`, `answer`, `check` and
`stop`. A handler declares what it receives by its parameters' names: `message`, `session_id`, `user_id`, `request`. It may
be async, sync (then it runs in a thread, so that it does not block the event loop), or a generator of either kind, which
streams.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from deployments.instance.hosted_agent import RequestInfo, Turn
from deployments.instance.named_errors import current_task, ends_task
from deployments.instance.threads import Threads
from deployments.request.openai import Completion, check_one_answer
from policies.rate_limit import LIMITERS, RateRule
from swiftclaw.annotations import Check, check_of
from swiftclaw.models import model_for
from swiftclaw.models.base import Messages
from swiftclaw.models.default_handler import NOT_GIVEN, answer, complete, question
from swiftclaw.threads import from_thread, in_thread

if TYPE_CHECKING:
    from starlette.types import ASGIApp

__all__ = ["Agent", "RequestInfo", "Turn"]

F = TypeVar("F", bound=Callable[..., object])

_HEALTH_THREADS = 4  # one check runs at a time; the others may hang
_HANDLER_PARAMETERS = ("message", "messages", "session_id", "user_id", "request")


class Agent:
    """An agent. `name`: its default name; in a cluster it runs under its key in cluster.yaml.

    `model`: "echo" (default), "openai:<model>", or an async callable that receives the message and returns text or is an
    async generator of text. `base_url` and `api_key` apply to "openai:<model>"; default: OPENAI_BASE_URL and OPENAI_API_KEY,
    read on each call. `session_affinity`: keep a session on one instance, unless cluster.yaml says otherwise.
    Raises ValueError or TypeError for a name or model that is none.
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
            raise ValueError(f"Agent: name: {name!r} is not a non-empty string")
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
        self._threads = Threads(f"agent-{name}")
        # Of their own, so that neither handlers nor asyncio.to_thread can keep them waiting.
        self._health_threads = Threads(f"health-{name}", _HEALTH_THREADS)
        self._hook_threads = Threads(f"hooks-{name}")

    def __repr__(self) -> str:
        handler = self._handler or self._limited
        return f"<Agent {self.name!r}, handled by {handler.name if handler else 'its model'}>"

    # --- for the user's file ---

    def on_message(self, function: F) -> F:
        """Make the function the handler. It returns text or anything that FastAPI could encode, or streams by yielding it.

        Annotations hold as in FastAPI: `message: str`, or a pydantic model, and a client that sends something else gets 400.
        An HTTPException that the handler raises is the response, with its status, detail and headers.
        Raises TypeError for a second handler, or for a parameter that cannot be filled.
        """
        handler = _Function(function, parameters=_HANDLER_PARAMETERS)
        if self._handler is not None:
            raise TypeError(
                f"{self._about('on_message')}: {handler.name} cannot be the handler, because {self._handler.name} already is; "
                "an agent has only one"
            )
        self._refuse_two_handlers(handler, self._limited, "on_message")
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
        """Limit the agent to `requests` per `window` (seconds, or a duration such as "1m"), over all instances.

        `key`: a field of the JSON body, or a header (x-<key>); each of its values has a limit of its own. Default: one limit
        for all requests. `strategy`: sliding-window (default), fixed-window or token-bucket. The function is the handler;
        it may have `on_message` too. Raises ValueError for an invalid argument, TypeError for a second handler.
        """
        rule = _rule(requests, window, key, strategy)

        def limit(function: F) -> F:
            limited = _Function(function, parameters=_HANDLER_PARAMETERS)
            if self._limited is not None and self._limited.function != limited.function:
                raise TypeError(
                    f"{self._about('rate_limit')}: {limited.name} cannot be limited, because {self._limited.name} already is; "
                    "an agent has only one handler (several limits may be stacked on it)"
                )
            self._refuse_two_handlers(self._handler, limited, "rate_limit")
            self._limited = limited
            self.rate_limits = (*self.rate_limits, rule)
            return function

        return limit

    def health_check(self, function: F) -> F:
        """Make the function the health check. It takes no arguments, and may be sync or async.

        It returns {"status": "healthy" | "unhealthy", "reason": str}, a bool, or None for healthy. Raising counts as
        unhealthy. Raises TypeError for a second health check.
        """
        if self._health is not None:
            raise TypeError(
                f"{self._about('health_check')}: {self._health.name} is already the health check; an agent has only one"
            )
        self._health = _Function(function)
        return function

    def on_start(self, function: F) -> F:
        """Run the function once per instance, before its first message."""
        self._on_start.append(_Function(function))
        return function

    def on_stop(self, function: F) -> F:
        """Run the function once per instance, after its last message."""
        self._on_stop.append(_Function(function))
        return function

    def mount(self, asgi_app: ASGIApp) -> None:
        """Serve every path of the agent that is not SwiftClaw's own with this ASGI app, WebSockets included.

        The app runs as under uvicorn: its lifespan starts after the `on_start` functions and before the first request, and
        ends before the `on_stop` functions; `root_path` is /agents/NAME; `client` and `scheme` are those of the client.
        Raises TypeError for a second app.
        """
        if not callable(asgi_app):
            raise TypeError(f"{self._about('mount')}: {asgi_app!r} is not an ASGI app (it cannot be called)")
        if self.app is not None:
            raise TypeError(f"{self._about('mount')}: an app is already mounted; an agent has only one")
        self.app = asgi_app

    async def generate(self, message: object = NOT_GIVEN, *, messages: Messages | None = None, **options: Any) -> str:
        """The model's reply as text, to one message or to a conversation; `options` go to the model.

        Text is all that it returns: `complete` has tool calls and usage too. Raises swiftclaw.models.ModelError.
        """
        return await self._model.generate(question(message, messages), **options)

    def stream(
        self, message: object = NOT_GIVEN, *, messages: Messages | None = None, **options: Any
    ) -> AsyncGenerator[str, None]:
        """The reply of `generate`, piece by piece as it arrives. Raises swiftclaw.models.ModelError."""
        return self._model.stream(question(message, messages), **options)

    async def complete(self, message: object = NOT_GIVEN, *, messages: Messages | None = None, **options: Any) -> Completion:
        """The model's whole `chat.completion`: choices, tool calls, usage. A handler may return it.

        Raises swiftclaw.models.ModelError.
        """
        return await complete(self._model, question(message, messages), options)

    # --- for the process that hosts an instance ---

    async def start(self) -> None:
        """Run the start hooks, in order. Raises what a hook raises."""
        for hook in self._on_start:
            await hook.call(self._hook_threads)

    async def stop(self) -> None:
        """Run every stop hook and close the model, even after an error; then raise the first error."""
        failures: list[BaseException] = []
        steps: list[Callable[[], Awaitable[object]]] = [partial(hook.call, self._hook_threads) for hook in self._on_stop]
        for step in (*steps, self._model.close):
            try:
                await step()
            except BaseException as error:
                if ends_task(error, current_task()):
                    raise
                failures.append(error)
        if failures:
            raise failures[0]

    async def answer(self, turn: Turn) -> object | AsyncIterator[Any]:
        """The handler's reply: a value, or an async generator of pieces that the caller must close."""
        handler = self._handler or self._limited
        if handler is None:
            return await answer(self._model, turn)
        if turn.options:
            check_one_answer(turn.options)
        result = await handler.call(self._threads, turn)
        if hasattr(result, "__aiter__"):
            return _pieces(result)
        if isinstance(result, Iterator):
            return _pieces(from_thread(result, self._threads))
        return result

    async def check(self) -> tuple[bool, str]:
        """(healthy, reason). Raises nothing; the caller limits the time."""
        if self._health is None:
            return True, ""
        try:
            verdict = await self._health.call(self._health_threads)
        except BaseException as error:
            if ends_task(error, current_task()):
                raise
            return False, f"health check raised {type(error).__name__}: {error}"
        return _health(verdict)

    def _refuse_two_handlers(self, handler: _Function | None, limited: _Function | None, decorator: str) -> None:
        if handler is not None and limited is not None and handler.function != limited.function:
            raise TypeError(
                f"{self._about(decorator)}: {limited.name} would never be called, because {handler.name} is the handler; "
                f"put the rate_limit on {handler.name}, which may have both decorators"
            )

    def _about(self, decorator: str) -> str:
        return f"agent {self.name!r}, {decorator}"


class _Function:
    """One of the user's functions: the parameters it has, and whether it runs in a thread."""

    def __init__(self, function: Callable[..., object], parameters: tuple[str, ...] = ()) -> None:
        if not callable(function):
            raise TypeError(f"{function!r} is not a function")
        self.name = _name(function)
        self.function = function
        self._is_async = _is_async(function)
        self._positional: list[_Parameter] = []
        self._named: list[_Parameter] = []
        self._read_signature(parameters)

    async def call(self, threads: Executor, turn: object = None) -> object:
        """The function's result. A generator is returned before its first step. Raises BadField for a value of a wrong type."""
        call = partial(
            self.function,
            *[parameter.value(turn) for parameter in self._positional],
            **{str(parameter.name): parameter.value(turn) for parameter in self._named},
        )
        result = call() if self._is_async else await in_thread(call, threads)
        return await result if isinstance(result, Awaitable) else result

    def _read_signature(self, allowed: tuple[str, ...]) -> None:
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except ValueError as error:
            raise TypeError(f"{self.name}: its parameters cannot be inspected; wrap it in a Python function") from error
        bound = self.function.keywords if isinstance(self.function, partial) else {}
        for parameter in parameters:
            name, default = parameter.name, parameter.default
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            provided = name in allowed and name not in bound
            if not provided and default is parameter.empty:
                raise TypeError(f"{self.name}: parameter {name!r} cannot be filled; {_allowed_parameters(allowed)}")
            if parameter.kind is parameter.POSITIONAL_ONLY:
                self._positional.append(_Parameter(name if provided else None, default, check_of(self.function, parameter)))
            elif provided:
                self._named.append(_Parameter(name, default, check_of(self.function, parameter)))
        has_no_name = not self._positional and not self._named
        if allowed and has_no_name and any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(f"{self.name}: *args and **kwargs receive nothing; {_allowed_parameters(allowed)}")


def _allowed_parameters(allowed: tuple[str, ...]) -> str:
    if not allowed:
        return "it is called without arguments, so every parameter needs a default"
    return f"a handler may take {', '.join(allowed)}; any other parameter needs a default"


@dataclass(frozen=True)
class _Parameter:
    """`name`: of the turn's value that it gets; None: it always has its default."""

    name: str | None
    default: Any
    check: Check | None

    def value(self, turn: object) -> Any:
        """The turn's value in the parameter's type; if the turn has none, the default."""
        value = None if self.name is None else getattr(turn, self.name)
        if value is None and self.default is not inspect.Parameter.empty:
            return self.default
        if self.check is None or (value is None and self.name != "message"):  # a client need not say who it is
            return value
        return self.check(value)


def _name(function: Callable[..., object]) -> str:
    while isinstance(function, partial):
        function = function.func
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)


def _is_async(function: Callable[..., object]) -> bool:
    while isinstance(function, partial):
        function = function.func
    forms = (function, type(function).__call__)
    return any(inspect.iscoroutinefunction(form) or inspect.isasyncgenfunction(form) for form in forms)


async def _pieces(items: Any) -> AsyncGenerator[object, None]:
    """Pass on the items. Closing this generator closes them."""
    try:
        async for item in items:
            yield item
    finally:
        if hasattr(items, "aclose"):
            await items.aclose()


def _rule(requests: int, window: str | float, key: str | None, strategy: str) -> RateRule:
    from cluster.config import duration

    if isinstance(requests, bool) or not isinstance(requests, int) or requests < 1:
        raise ValueError(f"rate_limit: requests: {requests!r} is not a whole number of at least 1")
    if key is not None and not re.fullmatch(r"[A-Za-z0-9_-]+", key):
        raise ValueError(f"rate_limit: key: {key!r} is not the name of a field or header (letters, digits, _ and -)")
    if strategy not in LIMITERS:
        raise ValueError(f"rate_limit: strategy: {strategy!r} is not one of {', '.join(LIMITERS)}")
    try:
        window_s = duration(window)
    except ValueError as error:
        raise ValueError(f"rate_limit: window: {error}") from error
    if window_s == 0:
        raise ValueError("rate_limit: window: must be longer than 0 s")
    return RateRule(requests, window_s, key, strategy)


def _health(verdict: object) -> tuple[bool, str]:
    """(healthy, reason) from what a health check returned."""
    if verdict is None or isinstance(verdict, bool):
        return (False, "health check returned False") if verdict is False else (True, "")
    status = verdict.get("status") if isinstance(verdict, Mapping) else None
    if not isinstance(verdict, Mapping) or status not in ("healthy", "unhealthy"):
        return False, f"health check returned {verdict!r}; allowed: a status of healthy or unhealthy, a bool, or None"
    healthy = status == "healthy"
    return healthy, str(verdict.get("reason") or ("" if healthy else "health check returned unhealthy"))
