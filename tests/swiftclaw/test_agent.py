from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial, wraps

import pytest

from deployments.instance.hosted_agent import HostedAgent
from policies.rate_limit import RateRule
from swiftclaw import Agent
from swiftclaw.agent import RequestInfo, Turn

INFO = RequestInfo(headers={"a": "b"}, body={"k": 1}, instance="instance-1", region="local", version="v1")
TURN = Turn("hi", "s1", "u1", INFO)


def handled(function):
    agent = Agent("a")
    agent.on_message(function)
    return agent


async def collect(pieces):
    return [piece async for piece in pieces]


class TestHandlers:
    async def test_without_a_handler_the_model_answers(self):
        assert await Agent("a").answer(TURN) == "hi"

    async def test_a_handler_gets_what_it_names_in_any_order(self):
        async def handle(user_id: str, request, message, session_id):
            return [user_id, request.instance, message, session_id]

        assert await handled(handle).answer(TURN) == ["u1", "instance-1", "hi", "s1"]

    async def test_a_handler_that_names_nothing_is_called_without_arguments(self):
        assert await handled(lambda: "ok").answer(TURN) == "ok"

    async def test_positional_only_and_keyword_only_parameters_are_filled(self):
        async def handle(session_id, other=7, message="", /, *, user_id):
            return [session_id, other, message, user_id]

        assert await handled(handle).answer(TURN) == ["s1", 7, "hi", "u1"]

    async def test_parameters_of_other_names_keep_their_defaults(self):
        async def handle(message, top_k=3, *rest, flag=True, **more):
            return [message, top_k, rest, flag, more]

        assert await handled(handle).answer(TURN) == ["hi", 3, (), True, {}]

    async def test_a_value_that_the_turn_lacks_takes_the_default_else_none(self):
        async def handle(message, session_id, user_id="guest"):
            return [message, session_id, user_id]

        assert await handled(handle).answer(Turn("hi", None, None)) == ["hi", None, "guest"]

    @pytest.mark.parametrize(
        ("function", "problem"),
        [
            (
                lambda massage: None,
                "parameter 'massage' cannot be filled; a handler may take message, messages, session_id, user_id, request; ",
            ),
            (lambda massage, /: None, "parameter 'massage' cannot be filled"),
            (lambda *args: None, r"\*args and \*\*kwargs receive nothing; a handler may take message"),
            (lambda **kwargs: None, r"\*args and \*\*kwargs receive nothing; a handler may take message"),
            ("handle", "'handle' is not a function"),
        ],
    )
    def test_a_handler_that_cannot_be_called_is_refused_when_decorated(self, function, problem):
        with pytest.raises(TypeError, match=problem):
            Agent("a").on_message(function)

    def test_the_error_names_the_function(self):
        def answer_it(text): ...

        with pytest.raises(TypeError, match="answer_it: parameter 'text'"):
            Agent("a").on_message(answer_it)

    def test_a_second_handler_is_refused(self):
        agent = Agent("a")

        @agent.on_message
        def first(message): ...

        with pytest.raises(
            TypeError, match=r"agent 'a', on_message: .*second cannot be the handler, because .*first already is"
        ):

            @agent.on_message
            def second(message): ...

    async def test_partials_bound_methods_and_callable_objects_are_handlers(self):
        class Desk:
            async def method(self, message):
                return f"method {message}"

            async def __call__(self, message):
                return f"object {message}"

        async def handle(prefix, message, session_id):
            return f"{prefix} {message} {session_id}"

        assert await handled(partial(handle, "partial")).answer(TURN) == "partial hi s1"
        assert await handled(partial(handle, "p", session_id="own")).answer(TURN) == "p hi own"
        assert await handled(Desk().method).answer(TURN) == "method hi"
        assert await handled(Desk()).answer(TURN) == "object hi"

    async def test_a_lambda_may_return_a_coroutine_or_a_stream(self):
        agent = Agent("a")
        agent.on_message(lambda message: agent.generate(message))
        assert await agent.answer(TURN) == "hi"
        streaming = Agent("b")
        streaming.on_message(lambda message: streaming.stream(message))
        assert await collect(await streaming.answer(TURN)) == ["hi"]

    async def test_a_wrapped_handler_shows_its_own_parameters(self):
        async def handle(message, user_id): ...

        @wraps(handle)
        async def wrapper(*args, **kwargs):
            return kwargs

        assert await handled(wrapper).answer(TURN) == {"message": "hi", "user_id": "u1"}

    async def test_an_exception_of_the_handler_is_passed_on(self):
        async def handle(message):
            raise LookupError(message)

        with pytest.raises(LookupError, match="hi"):
            await handled(handle).answer(TURN)


class TestSyncHandlers:
    async def test_they_run_in_a_thread_with_the_callers_context(self):
        value: contextvars.ContextVar[str] = contextvars.ContextVar("value")
        value.set("from outside")

        def handle(message):
            return [threading.current_thread() is threading.main_thread(), value.get()]

        assert await handled(handle).answer(TURN) == [False, "from outside"]

    async def test_many_run_at_the_same_time(self):
        together = threading.Barrier(50, timeout=10)
        agent = handled(lambda message: together.wait() >= 0)
        assert all(await asyncio.gather(*(agent.answer(TURN) for _ in range(50))))

    async def test_no_call_waits_for_another_however_many_there_are(self):
        together = threading.Barrier(150, timeout=20)
        agent = handled(lambda message: together.wait() >= 0)
        assert all(await asyncio.gather(*(agent.answer(TURN) for _ in range(150))))

    async def test_threads_are_used_again(self):
        agent = handled(lambda message: threading.current_thread().name)  # numbered as they start
        assert len({await agent.answer(TURN) for _ in range(50)}) < 25

    async def test_a_cancelled_call_returns_at_once_and_its_thread_runs_on(self):
        began, release, ended = threading.Event(), threading.Event(), threading.Event()

        def handle(message):
            began.set()
            release.wait(10)
            ended.set()

        asked = asyncio.create_task(handled(handle).answer(TURN))
        await asyncio.to_thread(began.wait, 10)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asked, 5)
        assert not ended.is_set()
        release.set()
        assert await asyncio.to_thread(ended.wait, 10)

    async def test_a_stop_iteration_does_not_hang(self):
        with pytest.raises(RuntimeError, match="StopIteration"):
            await asyncio.wait_for(handled(lambda message: next(iter([]))).answer(TURN), 5)

    async def test_a_full_default_executor_holds_up_neither_health_check_nor_hooks(self):
        agent, release, ran = Agent("a"), threading.Event(), []
        agent.health_check(lambda: True)
        agent.on_start(lambda: ran.append("start"))
        agent.on_stop(lambda: ran.append("stop"))
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = [asyncio.create_task(asyncio.to_thread(release.wait, 10)) for _ in range(3)]
        await asyncio.sleep(0)
        try:
            await asyncio.wait_for(agent.start(), 5)
            assert await asyncio.wait_for(agent.check(), 5) == (True, "")
            await asyncio.wait_for(agent.stop(), 5)
        finally:
            release.set()
            await asyncio.gather(*busy)
        assert ran == ["start", "stop"]

    async def test_a_health_check_that_hangs_holds_up_neither_the_next_one_nor_the_stop_hooks(self):
        agent, release, calls = Agent("a"), threading.Event(), []

        def check():
            calls.append(1)
            return release.wait(10) if len(calls) == 1 else True

        agent.health_check(check)
        agent.on_stop(lambda: None)
        try:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(agent.check(), 0.2)
            assert await asyncio.wait_for(agent.check(), 5) == (True, "")
            await asyncio.wait_for(agent.stop(), 5)
        finally:
            release.set()

    async def test_a_busy_pool_does_not_hold_up_the_health_check(self):
        agent, release = Agent("a"), threading.Event()
        agent.on_message(lambda message: release.wait(10))
        agent.health_check(lambda: True)
        busy = [asyncio.create_task(agent.answer(TURN)) for _ in range(120)]
        await asyncio.sleep(0.05)
        try:
            assert await asyncio.wait_for(agent.check(), 5) == (True, "")
        finally:
            release.set()
            await asyncio.gather(*busy)


class TestStreams:
    async def test_generators_of_both_kinds_stream_in_order(self):
        async def slowly(message):
            for letter in message:
                yield letter

        def blocking(message):
            yield from message

        for function in (slowly, blocking):
            assert await collect(await handled(function).answer(TURN)) == ["h", "i"]

    async def test_the_first_piece_comes_before_the_second_is_made(self):
        made = []

        def handle(message):
            for number in "123":
                made.append(number)
                yield number

        pieces = await handled(handle).answer(TURN)
        assert made == []
        assert await anext(pieces) == "1"
        assert made == ["1"]
        await pieces.aclose()

    async def test_a_sync_generator_keeps_its_context_from_item_to_item(self):
        name = contextvars.ContextVar("name", default="nobody")

        def handle(message):
            name.set(message)
            yield "set"
            yield name.get()

        assert await collect(await handled(handle).answer(TURN)) == ["set", "hi"]
        assert name.get() == "nobody"

    async def test_pieces_that_are_not_text_are_passed_on_for_the_instance_to_encode(self):
        async def handle(message):
            yield {"a": 1}
            yield b"b"

        assert await collect(await handled(handle).answer(TURN)) == [{"a": 1}, b"b"]

    async def test_closing_the_stream_closes_the_users_generator(self):
        closed = []

        async def slowly(message):
            try:
                yield "a"
                yield "b"
            finally:
                await asyncio.sleep(0)
                closed.append("async")

        def blocking(message):
            try:
                yield "a"
                yield "b"
            finally:
                closed.append("sync")

        for function in (slowly, blocking):
            pieces = await handled(function).answer(TURN)
            assert await anext(pieces) == "a"
            await pieces.aclose()
        assert closed == ["async", "sync"]

    async def test_cancelling_the_reader_closes_the_users_generator(self):
        closed, started = [], asyncio.Event()

        async def handle(message):
            try:
                yield "a"
                started.set()
                await asyncio.sleep(60)
            finally:
                closed.append(True)

        reader = asyncio.create_task(collect(await handled(handle).answer(TURN)))
        await started.wait()
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        assert closed == [True]

    async def test_cancelling_while_a_sync_generator_works_ends_the_reader_and_closes_the_generator_in_its_thread(self):
        working, release, done = threading.Event(), threading.Event(), threading.Event()
        worker: list[int] = []
        closed: list[int] = []

        def handle(message):
            try:
                working.set()
                worker.append(threading.get_ident())
                release.wait(10)
                yield "a"
            finally:
                closed.append(threading.get_ident())
                done.set()

        reader = asyncio.create_task(collect(await handled(handle).answer(TURN)))
        await asyncio.to_thread(working.wait, 10)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(reader, 5)
        assert closed == []
        release.set()
        assert await asyncio.to_thread(done.wait, 10)
        assert closed == worker

    async def test_closing_a_relayed_model_stream_closes_the_model(self):
        closed = []

        async def model(message):
            try:
                yield "a"
                yield "b"
            finally:
                closed.append(True)

        agent = Agent("a", model=model)
        pieces = agent.stream("hi")
        assert await anext(pieces) == "a"
        await pieces.aclose()
        assert closed == [True]


class TestRateLimits:
    def test_a_limit_is_kept_as_a_rule_in_seconds(self):
        agent = Agent("a")
        agent.rate_limit(requests=10, window="1m", key="user_id")(lambda message: None)
        assert agent.rate_limits == (RateRule(10, 60.0, "user_id", "sliding-window"),)

    async def test_a_limited_function_is_the_handler_when_there_is_no_other(self):
        agent = Agent("a")

        @agent.rate_limit(requests=1)
        async def handle(message):
            return "limited"

        assert await agent.answer(TURN) == "limited"

    async def test_limits_stack_on_the_handler_in_any_order(self):
        agent = Agent("a")

        @agent.rate_limit(requests=1, window=5)
        @agent.on_message
        @agent.rate_limit(requests=100, window="1h")
        async def handle(message):
            return "handled"

        assert await agent.answer(TURN) == "handled"
        assert {(rule.requests, rule.window_s) for rule in agent.rate_limits} == {(1, 5.0), (100, 3600.0)}

    @pytest.mark.parametrize("limit_first", [True, False])
    def test_a_limited_function_beside_the_handler_is_refused_and_one_function_may_have_both(self, limit_first: bool) -> None:
        def handle(message: object) -> None: ...

        def limited(message: object) -> None: ...

        agent = Agent("a")
        decorators = [(agent.rate_limit(requests=1), limited), (agent.on_message, handle)]
        (one, first), (other, second) = decorators if limit_first else decorators[::-1]
        one(first)
        with pytest.raises(TypeError, match=r"limited would never be called, because .*handle is the handler"):
            other(second)
        both = Agent("b")
        both.on_message(both.rate_limit(requests=1)(both.rate_limit(requests=2)(handle)))
        assert len(both.rate_limits) == 2

    def test_two_limited_functions_are_refused(self):
        agent = Agent("a")
        agent.rate_limit(requests=1)(lambda message: None)
        with pytest.raises(TypeError, match="only one handler"):
            agent.rate_limit(requests=2)(lambda message: None)
        assert len(agent.rate_limits) == 1

    @pytest.mark.parametrize(
        ("wrong", "problem"),
        [
            ({"requests": 0}, "requests: 0"),
            ({"requests": True}, "requests: True"),
            ({"requests": 1.5}, "requests: 1.5"),
            ({"requests": 1, "window": "soon"}, "window: .*soon"),
            ({"requests": 1, "window": 0}, "window: "),
            ({"requests": 1, "window": -1}, "window: "),
            ({"requests": 1, "key": "user id"}, "key: 'user id'"),
            ({"requests": 1, "strategy": "leaky"}, "strategy: 'leaky' is not one of sliding-window"),
        ],
    )
    def test_an_invalid_limit_is_refused_with_its_value(self, wrong, problem):
        with pytest.raises(ValueError, match=problem):
            Agent("a").rate_limit(**wrong)


class TestHealth:
    @pytest.mark.parametrize(
        ("result", "healthy", "reason"),
        [
            (None, True, ""),
            (True, True, ""),
            (False, False, "health check returned False"),
            ({"status": "healthy"}, True, ""),
            ({"status": "healthy", "reason": "warm"}, True, "warm"),
            ({"status": "unhealthy", "reason": "database"}, False, "database"),
            ({"status": "unhealthy"}, False, "health check returned unhealthy"),
            ({"status": "fine"}, False, "health check returned {'status': 'fine'}; allowed: a status"),
            ({"status": ["healthy"]}, False, "health check returned"),
            (42, False, "health check returned 42; allowed: a status"),
        ],
    )
    async def test_every_form_of_result_is_understood(self, result, healthy, reason):
        agent = Agent("a")
        agent.health_check(lambda: result)
        is_healthy, text = await agent.check()
        assert is_healthy is healthy
        assert text.startswith(reason) and bool(text) == bool(reason)

    async def test_without_a_check_an_agent_is_healthy(self):
        assert await Agent("a").check() == (True, "")

    async def test_a_check_that_raises_is_unhealthy(self):
        agent = Agent("a")

        @agent.health_check
        async def check():
            raise ValueError("no database")

        assert await agent.check() == (False, "health check raised ValueError: no database")

    async def test_a_cancelled_check_is_cancelled(self):
        agent = Agent("a")
        agent.health_check(partial(asyncio.sleep, 60))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(agent.check(), 0.01)

    def test_a_check_takes_no_arguments_and_there_is_one(self):
        agent = Agent("a")
        with pytest.raises(TypeError, match="parameter 'message' cannot be filled; it is called without arguments"):
            agent.health_check(lambda message: True)
        agent.health_check(lambda: True)
        with pytest.raises(TypeError, match=r"agent 'a', health_check: .* is already the health check"):
            agent.health_check(lambda: True)


class TestLifecycle:
    async def test_hooks_run_in_order_sync_and_async(self):
        agent, calls = Agent("a"), []

        @agent.on_start
        def first():
            calls.append("first")

        @agent.on_start
        async def second():
            calls.append("second")

        await agent.start()
        assert calls == ["first", "second"]

    async def test_a_start_hook_that_raises_stops_the_start(self):
        agent, calls = Agent("a"), []
        agent.on_start(lambda: 1 / 0)
        agent.on_start(lambda: calls.append("second"))
        with pytest.raises(ZeroDivisionError):
            await agent.start()
        assert calls == []

    async def test_every_stop_hook_runs_and_the_first_failure_is_raised(self):
        agent, calls = Agent("a"), []

        @agent.on_stop
        def one():
            raise LookupError("one")

        @agent.on_stop
        async def two():
            raise ValueError("two")

        agent.on_stop(lambda: calls.append("three"))
        with pytest.raises(LookupError, match="one"):
            await agent.stop()
        assert calls == ["three"]


class TestAgent:
    def test_an_instance_can_host_it(self):
        assert isinstance(Agent("a"), HostedAgent)

    def test_an_app_is_mounted_once(self):
        async def app(scope, receive, send): ...

        agent = Agent("a")
        assert agent.app is None
        agent.mount(app)
        assert agent.app is app
        with pytest.raises(TypeError, match="an app is already mounted"):
            agent.mount(app)
        with pytest.raises(TypeError, match="is not an ASGI app"):
            Agent("b").mount("app")

    def test_decorators_leave_the_functions_as_they_are(self):
        agent = Agent("a")

        def function(): ...

        for decorator in (agent.on_message, agent.rate_limit(requests=1), agent.health_check):
            assert decorator(function) is function
        assert agent.on_start(function) is agent.on_stop(function) is function

    def test_its_repr_names_the_handler(self):
        assert repr(Agent("a")) == "<Agent 'a', handled by its model>"
        assert "handled by" in repr(handled(lambda message: None)) and "lambda" in repr(handled(lambda: None))

    @pytest.mark.parametrize("name", ["", None, 3])
    def test_a_name_is_required(self, name):
        with pytest.raises(ValueError, match="is not a non-empty string"):
            Agent(name)

    def test_affinity_is_off_unless_asked_for(self):
        assert not Agent("a").session_affinity
        assert Agent("a", session_affinity=True).session_affinity
