"""Rate limits as the clients of one gateway see them: who is let through, and what every answer says. Time is given."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request as AppRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from cluster.config import parse
from cluster.messages import AgentView, Snapshot
from deployments.balancing.agents import AgentTable
from deployments.gateway.admission import RateLimits, in_chat, in_message
from deployments.proxy.in_process import InProcessClient
from deployments.request.record import READ_AHEAD, RequestRecord
from policies.errors import RateLimited
from policies.rate_limit import RateRule
from swiftclaw import Agent
from tests.deployments.conftest import DataPlane

STRATEGIES = ("sliding-window", "fixed-window", "token-bucket")


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0  # a whole number of every window that is used here

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(plane: DataPlane) -> Clock:
    plane.edge.rate_limits.clock = clock = Clock()
    return clock


def block(requests: int, window: str = "1m", strategy: str = "sliding-window") -> dict[str, Any]:
    return {"rateLimit": {"enabled": True, "requests": requests, "window": window, "strategy": strategy}}


def limited(*rules: dict[str, Any], name: str = "bot", seen: list[str | None] | None = None) -> Agent:
    """An agent with these rules, that answers whom it takes the user for."""
    agent = Agent(name)

    async def handle(message: str, user_id: str | None = None) -> str:
        if seen is not None:
            seen.append(user_id)
        return f"{user_id}"

    for rule in rules:
        agent.rate_limit(**rule)(handle)
    agent.on_message(handle)
    return agent


Answer = tuple[int, dict[str, str], Any]


async def ask(plane: DataPlane, agent: str = "bot", *, headers: dict[str, str] | None = None, **body: Any) -> Answer:
    async with plane.client.post(f"/agents/{agent}/messages", json={"message": "hi", **body}, headers=headers) as answer:
        text = await answer.text()
        shown = json.loads(text) if answer.content_type == "application/json" else text
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, shown


async def chat(plane: DataPlane, **body: Any) -> int:
    asked = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], **body}
    async with plane.client.post("/v1/chat/completions", json=asked) as answer:
        return answer.status


async def let_through(plane: DataPlane, times: int, **asked: Any) -> int:
    answers = [await ask(plane, **asked) for _ in range(times)]
    assert {status for status, _, _ in answers} <= {200, 429}
    return sum(status == 200 for status, _, _ in answers)


# --- the agent's own block ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
async def test_exactly_the_limit_is_let_through_however_many_come_at_once(
    plane: DataPlane, clock: Clock, strategy: str
) -> None:
    plane.blocks["bot"] = block(7, strategy=strategy)
    await plane.add(limited(), 2)
    statuses = Counter([status for status, _, _ in await asyncio.gather(*(ask(plane) for _ in range(40)))])
    assert statuses == {200: 7, 429: 33}
    clock.now += 59.9 if strategy != "token-bucket" else 60 / 7 - 0.1
    assert await let_through(plane, 3) == 0
    clock.now += 0.1
    assert await let_through(plane, 9) == (7 if strategy != "token-bucket" else 1)


async def test_answers_say_what_remains_and_a_refusal_when_to_come_back(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(2)
    await plane.add(limited())
    _, first, _ = await ask(plane)
    clock.now += 20
    _, second, _ = await ask(plane)
    clock.now += 10.5
    status, third, body = await ask(plane, headers={"x-request-id": "r-1"})
    assert (first["ratelimit"], second["ratelimit"]) == ('"default";r=1;t=60', '"default";r=0;t=40')
    assert (status, third["ratelimit"], third["retry-after"]) == (429, '"default";r=0;t=30', "30")
    assert {head["ratelimit-policy"] for head in (first, second, third)} == {'"default";q=2;w=60'}
    assert "retry-after" not in first
    message = "rate limit exceeded: 2 requests per 60 s"
    assert body == {"error": {"type": "rate_limited", "message": message, "agent": "bot", "request_id": "r-1"}}


async def test_a_refusal_reaches_no_instance_and_costs_nothing(plane: DataPlane, clock: Clock) -> None:
    seen: list[str | None] = []
    plane.blocks["bot"] = block(3)
    await plane.add(limited(seen=seen))
    for _ in range(30):  # two a second, twenty-seven of them refused
        await ask(plane)
        clock.now += 0.5
    assert len(seen) == 3
    clock.now += 45.0  # a minute after the first
    assert await let_through(plane, 1) == 1


async def test_every_path_counts_and_every_answer_tells(plane: DataPlane, clock: Clock) -> None:
    async def echo(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text("hello")
        await socket.close()

    async def page(request: AppRequest) -> PlainTextResponse:
        return PlainTextResponse("page", status_code=418)

    agent = Agent("bot")

    @agent.on_message
    async def handle(message: str) -> AsyncIterator[str]:
        if message == "fail":
            raise ValueError
        yield "a"
        yield "b"

    agent.mount(Starlette(routes=[WebSocketRoute("/ws", echo), Route("/page", page, methods=["GET", "POST"])]))
    plane.blocks["bot"] = block(9)
    await plane.add(agent)
    left = []
    for body in ({}, {"stream": True}, {"message": "fail"}, {"message": 5, "user_id": 5}):
        left.append((await ask(plane, **body))[1]["ratelimit"])
    for method, path in (("GET", "/page"), ("POST", "/page"), ("GET", "/nothing"), ("GET", "")):
        async with plane.client.request(method, f"/agents/bot{path}") as answer:
            left.append(answer.headers["ratelimit"])
    async with plane.client.ws_connect("/agents/bot/ws") as socket:
        assert await socket.receive_str() == "hello"
        left.append(socket._response.headers["ratelimit"])
    assert left == [f'"default";r={number};t=60' for number in range(8, -1, -1)]
    async with plane.client.get("/agents/bot/page") as answer:
        assert (answer.status, answer.headers["retry-after"]) == (429, "60")
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await plane.client.ws_connect("/agents/bot/ws")
    assert (refused.value.status, refused.value.headers["retry-after"]) == (429, "60")  # type: ignore[index]
    assert refused.value.headers["ratelimit"] == '"default";r=0;t=60'  # type: ignore[index]


async def test_what_the_gateway_itself_refuses_is_not_counted_and_tells_all_the_same(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(2)
    plane.http["maxBodyBytes"] = 1000
    await plane.add(limited())
    async with plane.client.get("/agents/bot/messages") as answer:
        assert (answer.status, answer.headers["ratelimit"]) == (405, '"default";r=2;t=60')
    status, head, _ = await ask(plane, message="x" * 2000)
    assert (status, head["ratelimit"]) == (413, '"default";r=2;t=60')
    plane.mark("bot", "instance-1", "unhealthy")
    status, head, _ = await ask(plane)
    assert (status, head["ratelimit"]) == (503, '"default";r=1;t=60')


async def test_agents_share_nothing_and_one_without_a_limit_says_nothing_of_any(plane: DataPlane, clock: Clock) -> None:
    plane.blocks.update({"bot": block(1), "other": block(1), "free": {"rateLimit": {"requests": 1}}})
    for name in ("bot", "other", "free"):
        await plane.add(limited(name=name))
    assert await let_through(plane, 5, agent="bot") == 1
    assert await let_through(plane, 5, agent="other") == 1
    answers = [await ask(plane, "free") for _ in range(5)]
    assert {status for status, _, _ in answers} == {200}
    assert not any(name.startswith("ratelimit") for _, head, _ in answers for name in head)


# --- rules of the agent's code ------------------------------------------------------------------------------------------


async def test_each_user_has_a_limit_of_ones_own(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 3, "key": "user_id"}), 2)
    assert await let_through(plane, 50, user_id="noisy") == 3
    assert [await let_through(plane, 5, user_id=name) for name in ("a", "b")] == [3, 3]
    message = (await ask(plane, user_id="noisy"))[2]["error"]["message"]
    assert message == "rate limit exceeded: 3 requests per 60 s for each user_id"


async def test_the_key_may_come_in_a_header_and_is_the_same_user_as_in_the_body(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 2, "key": "user_id"}))
    assert await let_through(plane, 5, headers={"X-User-Id": "anna"}) == 2
    assert await let_through(plane, 5, user_id="anna") == 0
    assert await let_through(plane, 5, headers={"X-User-Id": "\u00e9"}) == 2
    assert await let_through(plane, 5, user_id="\u00e9") == 0


async def test_naming_another_user_in_the_header_or_the_body_is_no_way_round_the_limit(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 2, "key": "user_id"}))
    changing = [await ask(plane, user_id="anna", headers={"x-user-id": f"u{number}"}) for number in range(5)]
    assert [status for status, _, _ in changing] == [200, 200, 429, 429, 429]
    changing = [await ask(plane, user_id=f"v{number}", headers={"x-user-id": "ben"}) for number in range(5)]
    assert [status for status, _, _ in changing] == [200, 200, 429, 429, 429]
    assert await let_through(plane, 5, user_id="v4") == 2, "a refusal counts with nobody"


async def test_of_a_user_named_twice_the_one_whom_the_handler_sees_counts(plane: DataPlane, clock: Clock) -> None:
    seen: list[str | None] = []
    await plane.add(limited({"requests": 2, "key": "user_id"}, seen=seen))
    statuses = []
    for number in range(5):
        body = f'{{"user_id": "u{number}", "message": "hi", "user_id": "anna"}}'
        async with plane.client.post("/agents/bot/messages", data=body) as answer:
            statuses.append(answer.status)
    assert (statuses, seen) == ([200, 200, 429, 429, 429], ["anna", "anna"])


async def test_requests_that_name_nobody_share_one_counter(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 4, "key": "team"}))
    given: list[dict[str, Any]] = [{}, {"team": None}, {"team": ""}, {"team": ["a"]}, {"headers": {"x-team": ""}}, {}]
    assert [(await ask(plane, **each))[0] for each in given] == [200, 200, 200, 200, 429, 429]
    assert await let_through(plane, 9, team="a") == 4
    assert await let_through(plane, 9, team=7) == 4
    assert await let_through(plane, 9, headers={"x-team": "7"}) == 0


async def test_the_key_of_a_large_message_is_found_in_its_first_64_kib(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 1, "key": "user_id"}))
    large = "x" * (2 * READ_AHEAD)
    for body, status in (
        ({"user_id": "anna", "message": large}, 200),
        ({"user_id": "anna", "message": large}, 429),
        ({"user_id": "ben", "message": large}, 200),
        ({"message": large, "user_id": "carl"}, 200),  # too late: one of those who name nobody
        ({"message": large, "user_id": "dora"}, 429),
    ):
        async with plane.client.post("/agents/bot/messages", json=body) as answer:
            assert answer.status == status, body["user_id"]


async def test_the_chat_api_names_the_user_as_its_handler_sees_it(plane: DataPlane, clock: Clock) -> None:
    seen: list[str | None] = []
    await plane.add(limited({"requests": 2, "key": "user_id"}, seen=seen))
    assert [await chat(plane, user="anna") for _ in range(3)] == [200, 200, 429]
    assert await chat(plane, user="other", metadata={"user_id": "anna"}) == 429
    assert await chat(plane, user="anna", metadata={"user_id": "other"}) == 200
    assert await let_through(plane, 5, user_id="anna") == 0, "messages and chat requests are counted together"
    assert seen == ["anna", "anna", "other"]


async def test_other_keys_of_a_chat_request_stand_in_its_metadata_or_beside_it(plane: DataPlane, clock: Clock) -> None:
    await plane.add(limited({"requests": 1, "key": "team"}))
    given: list[dict[str, Any]] = [{"metadata": {"team": "a"}}, {"team": "a"}, {"team": "b"}]
    assert [await chat(plane, **each) for each in given] == [200, 429, 200]


async def test_rules_hold_for_messages_not_for_the_mounted_app(plane: DataPlane, clock: Clock) -> None:
    agent = limited({"requests": 1})
    agent.mount(PlainTextResponse("page"))
    await plane.add(agent)
    assert await let_through(plane, 3) == 1
    for _ in range(3):
        async with plane.client.get("/agents/bot/page") as answer:
            assert answer.status == 200 and "ratelimit" not in answer.headers


async def test_several_limits_hold_together_and_the_tightest_is_told(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(6)
    rules = [{"requests": 2, "window": "10s", "key": "user_id"}, {"requests": 3, "window": "1h", "key": "user_id"}]
    await plane.add(limited(*rules))
    told = [(await ask(plane, user_id="a"))[1]["ratelimit-policy"] for _ in range(3)]
    assert told == ['"default";q=2;w=10'] * 3
    clock.now += 10
    status, head, _ = await ask(plane, user_id="a")
    assert (status, head["ratelimit-policy"], head["ratelimit"]) == (200, '"default";q=3;w=3600', '"default";r=0;t=3590')
    status, head, _ = await ask(plane, user_id="a")
    assert (status, head["retry-after"]) == (429, "3590")
    assert [await let_through(plane, 9, user_id=name) for name in ("b", "c")] == [2, 1], "six a minute in all"
    clock.now += 60
    assert await let_through(plane, 9, user_id="c") == 2, "what one limit refused counted with none"


async def test_calls_from_inside_count_like_any_other(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(2)
    await plane.add(limited())
    statuses = []
    for _ in range(3):
        call = InProcessClient("bot", {"message": "hi"}, {})
        call.send(plane.edge.receive)
        content = await call.whole()
        statuses.append(call.status)
    assert statuses == [200, 200, 429]
    assert json.loads(content)["error"]["type"] == "rate_limited"
    assert await let_through(plane, 1) == 0


# --- settings that change -----------------------------------------------------------------------------------------------


async def test_new_settings_hold_at_once_and_what_was_let_through_stays_counted(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(5)
    await plane.add(limited())
    assert await let_through(plane, 3) == 3
    plane.announce()  # a snapshot that changes nothing
    plane.blocks["bot"] = block(4)
    plane.announce()
    assert await let_through(plane, 3) == 1
    plane.blocks["bot"] = block(8, "2m")
    plane.announce()
    assert await let_through(plane, 9) == 4
    plane.blocks["bot"] = block(8, "2m", "token-bucket")
    plane.announce()
    assert await let_through(plane, 20) == 8, "another way of counting begins anew"
    plane.blocks["bot"] = {}
    plane.announce()
    assert await let_through(plane, 20) == 20


async def test_rules_that_change_go_on_with_the_counts_of_their_key(plane: DataPlane, clock: Clock) -> None:
    minute, hour = RateRule(3, 60.0, "user_id"), RateRule(5, 3600.0, "user_id")
    await plane.add(limited())
    plane.rules["bot"] = (minute, hour)
    plane.announce()
    assert await let_through(plane, 9, user_id="a") == 3
    plane.rules["bot"] = (hour,)
    plane.announce()
    assert await let_through(plane, 9, user_id="a") == 2, "the hour's count is the hour's"
    plane.rules["bot"] = (RateRule(9, 7200.0, "user_id"), RateRule(1, 60.0, "team"), RateRule(2, 60.0, "team"))
    plane.announce()
    assert await let_through(plane, 9, user_id="a", team="x") == 1, "of two that differ in the number only, the smaller"
    assert await let_through(plane, 2, user_id="a", team="y") == 1
    assert await let_through(plane, 9, user_id="a", team="z") == 1
    assert await let_through(plane, 9, user_id="a", team="q") == 1
    assert await let_through(plane, 9, user_id="a", team="r") == 0, "nine in two hours, five of them before the change"


async def test_limits_change_while_requests_run_and_nobody_sees_anything_but_200_and_429(plane: DataPlane) -> None:
    await plane.add(limited(), 2)
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        for _ in range(25):
            statuses[(await ask(plane, user_id=str(number)))[0]] += 1

    async def operator() -> None:
        for number in range(12):
            plane.blocks["bot"] = block(10 + number, strategy=STRATEGIES[number % 3])
            plane.rules["bot"] = (RateRule(2 + number, 60.0, "user_id"),)
            plane.announce()
            await asyncio.sleep(0.01)

    await asyncio.gather(operator(), *(client(number) for number in range(8)))
    assert set(statuses) == {200, 429} and sum(statuses.values()) == 200
    assert plane.active() == 0


async def test_refusals_are_counted_by_agent_and_are_no_errors(plane: DataPlane, clock: Clock) -> None:
    plane.blocks["bot"] = block(1)
    await plane.add(limited())
    await let_through(plane, 4)
    seen = plane.reporter.observation()
    assert seen.refusals == {("bot", 429): 3}
    assert [counts.codes for counts in seen.instances.values()] == [{200: 1}]


# --- without HTTP: the limits themselves --------------------------------------------------------------------------------


def limits_of(*rules: RateRule, clock: Clock) -> RateLimits:
    agents = AgentTable()
    settings = parse({"agents": {"bot": {"agent": "m:x"}}}, Path("/"))
    view = AgentView(settings.agents["bot"], False, (), rate_rules=rules)
    agents.apply(Snapshot("1", "key", settings.http, {"bot": view}, ()))
    return RateLimits(agents, clock)


def admits(limits: RateLimits, user: str) -> bool:
    body = json.dumps({"message": "hi", "user_id": user}).encode()
    record = RequestRecord("POST", b"/", b"", [])
    try:
        limits.admit(record, "bot", lambda wanted: in_message(body, wanted))
    except RateLimited:
        return False
    finally:
        assert dict(record.response_headers)[b"ratelimit-policy"] == b'"default";q=10;w=60'
    return True


def run(noisy: int) -> tuple[dict[str, list[float]], dict[str, int]]:
    """100 users at 20 requests a minute for five minutes, user 0 at `noisy` times that: who was let through when."""
    clock = Clock()
    limits = limits_of(RateRule(10, 60.0, "user_id"), clock=clock)
    arrivals = [
        (3.0 * tick / each + user / 128, f"user-{user}")
        for user in range(100)
        for each in (noisy if user == 0 else 1,)
        for tick in range(100 * each)
    ]
    begun, log = clock.now, dict[str, list[float]]()
    for at, user in sorted(arrivals):
        clock.now = begun + at
        if admits(limits, user):
            log.setdefault(user, []).append(at)
    return log, {user: len(times) for user, times in log.items()}


def test_a_hundred_users_at_twice_their_limit_get_exactly_ten_each_in_any_minute() -> None:
    log, counts = run(noisy=1)
    assert len(log) == 100 and set(counts.values()) == {50}
    for times in log.values():
        for start in times[:-9]:
            assert sum(start <= at < start + 60 for at in times) == 10


def test_one_noisy_user_changes_nobody_elses_result() -> None:
    quiet, noisy = run(noisy=1)[0], run(noisy=50)[0]
    assert len(noisy["user-0"]) == 50
    assert {user: times for user, times in noisy.items() if user != "user-0"} == {
        user: times for user, times in quiet.items() if user != "user-0"
    }


def test_idle_users_are_forgotten_by_and_by() -> None:
    clock = Clock()
    limits = limits_of(RateRule(10, 60.0, "user_id"), clock=clock)
    for number in range(5000):
        assert admits(limits, f"user-{number}")
    (limiter,) = (limit.limiter for limit in limits._limits["bot"].all)
    assert len(limiter) == 5000
    for _ in range(30):
        clock.now += 30
        limits.sweep()
    assert len(limiter) == 0


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"user_id": "a"}', "a"),
        (b'{"user_id": "a", "user_id": "b"}', "b"),
        (b'["user_id"]', None),
        (b"not json", None),
        (b"", None),
        (b'{"user_id": "a", "message": ' + b"[" * 60_000, "a"),
        (b'{"user_id": "a", "n": ' + b"9" * 10_000 + b"}", "a"),
        (b'{"n": ' + b"9" * 10_000 + b', "user_id": "a"', None),
        (b'{"user_id": "a", "message": "' + b"x" * READ_AHEAD, "a"),
    ],
)
def test_a_body_says_what_can_be_read_of_it(body: bytes, found: str | None) -> None:
    value = in_message(body, {"user_id"}).get("user_id")
    assert value == found or (found is None and b"999" in body)  # how many digits are too many depends on the Python


def test_in_a_chat_request_metadata_speaks_before_user() -> None:
    wanted = ("user_id", "session_id", "team")
    assert in_chat({"user": "u", "team": "t", "metadata": "none"}, wanted) == {"user_id": "u", "session_id": "u", "team": "t"}
    assert in_chat({"user": "u", "metadata": {"user_id": "m"}}, ("user_id",)) == {"user_id": "m"}
