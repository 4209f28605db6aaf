"""Trials from public bug reports about systems of this kind, all on one running cluster: right answers, and nobody is blamed.

The agents are in field_agents.py. Sessions at several gateways: test_sessions.py; `serve run`: test_serve_run.py.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import psutil
import pytest
import websockets
from aiohttp import web

from tests.integration.conftest import Cluster, free_port, get, until
from tests.integration.load import Load

pytestmark = pytest.mark.cluster

REGION = "us-east-1"
STRANGER, PROXY = "127.0.0.1", "127.0.0.9"  # the second is a trusted proxy
MODEL = "/v1/chat/completions"
COOKIE = {"sessionAffinity": {"enabled": True}}
BY_ADDRESS = {"sessionAffinity": {"enabled": True, "type": "client-ip"}}


def agents() -> dict[str, Any]:
    def agent(name: str, instances: int = 1, **blocks: Any) -> dict[str, Any]:
        where = {REGION: {} if "scaling" in blocks else {"instances": instances}}
        return {"agent": f"field_agents:{name}", "regions": where, "resources": {"cpus": 0.01}, **blocks}

    quick = {"interval": "1s", "timeout": "1s", "unhealthyThreshold": 2, "healthyThreshold": 1}
    return {
        "echo": agent("echo", 3, loadBalancing=COOKIE),
        "other": agent("other", loadBalancing=COOKIE),
        "addressed": agent("addressed", 3, loadBalancing=BY_ADDRESS),
        "plain": agent("plain", 2),
        "values": agent("values", circuitBreaker={"enabled": False}),  # its errors are its own
        "threaded": agent("threaded", limits={"maxConnectionsPerInstance": 2}),
        "checked": agent("checked", healthCheck={"enabled": True, **quick}),
        "mounted": agent("mounted", timeouts={"idle": "3s"}),
        "zero": agent("zero", scaling={"minInstances": 0, "maxInstances": 2, "targetConnections": 2, "downscaleDelay": "1s"}),
    }


class Model:
    """A model server: refuses what the last message names, or answers with the whole request."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{free_port()}/v1"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True).start()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", int(self.url.split(":")[2].split("/")[0])).start()
        await asyncio.Event().wait()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        last = str(body["messages"][-1].get("content"))
        if refused := re.fullmatch(r"refuse (\d+)", last):
            error = {"message": "no", "type": "invalid_request_error", "code": "context_length_exceeded"}
            return web.json_response({"error": error}, status=int(refused[1]), headers={"retry-after": "7"})
        head = {"id": "c-1", "object": "chat.completion", "created": 1, "model": "m"}
        if not body.get("stream"):
            message = {"role": "assistant", "content": json.dumps(body)}
            if last == "call a tool":
                call = {"id": "t", "type": "function", "function": {"name": "look", "arguments": "{}"}}
                message = {"role": "assistant", "content": None, "tool_calls": [call]}  # type: ignore[dict-item]
            return web.json_response({**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for text in ("one ", "two"):
            chunk = {**head, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]}
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
            await asyncio.sleep(0.7)
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture(scope="module")
def cases(shared: Cluster) -> Iterator[Cluster]:
    source = (Path(__file__).parent / "field_agents.py").read_text()
    (shared.folder / "field_agents.py").write_text(source.replace("http://127.0.0.1:9/v1", Model().url))
    shared.write(agents(), trustedProxies=[f"{PROXY}/32"])
    shared.up()
    yield shared


@dataclass
class Answer:
    status: int
    headers: dict[str, list[str]]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    def header(self, name: str) -> str:
        return ", ".join(self.headers.get(name, []))


def ask(
    cluster: Cluster, path: str, body: Any = None, headers: dict[str, str] | None = None, *, sender: str = STRANGER
) -> Answer:
    """A request on a connection of its own; a body that is no bytes is sent as JSON."""

    async def once() -> Answer:
        content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connector = aiohttp.TCPConnector(local_addr=(sender, 0), force_close=True)
        sent = {**({"content-type": "application/json"} if content is not None else {}), **(headers or {})}
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.request(
                "GET" if content is None else "POST", cluster.url + path, data=content, headers=sent, allow_redirects=False
            ) as response,
        ):
            received: dict[str, list[str]] = {}
            for name, value in response.headers.items():
                received.setdefault(name.lower(), []).append(value)
            return Answer(response.status, received, await response.text())

    return asyncio.run(once())


def message(cluster: Cluster, agent: str, text: Any, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    return ask(cluster, f"/agents/{agent}/messages", {"message": text}, headers, **more)


def blamed(cluster: Cluster) -> list[str]:
    """Instances that are not healthy or whose breaker is not closed."""
    rows = [row for agent in agents() for row in cluster.instances(agent)]
    states = [(row["id"], row["state"], row["circuit"]) for row in rows]
    return [f"{name}: {state}, {circuit}" for name, state, circuit in states if (state, circuit) != ("healthy", "closed")]


# --- one request, one answer --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """`status` and `text` (a pattern that the body contains) are what is right."""

    path: str
    body: Any
    status: int = 200
    text: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    answer: dict[str, str] = field(default_factory=dict)  # patterns of the response's headers
    sender: str = STRANGER


def deep(depth: int, route: str) -> bytes:
    nested = b"[" * depth + b"]" * depth
    chat = b'"model": "echo", "messages": [{"role": "user", "content": "x"}], '
    return b"{" + (chat if route == MODEL else b"") + b'"message": ' + nested + b"}"


def chat(*messages: dict[str, Any], model: str = "plain", **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": list(messages), **options}


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def user(content: Any) -> dict[str, Any]:
    return said("user", content)


ECHO, VALUES, PLAIN = "/agents/echo/messages", "/agents/values/messages", "/agents/plain/messages"
THINGS = "/agents/mounted/things/"
BAD = r'"type": ?"bad_request"'
HTTPS = {"x-forwarded-proto": "https"}
EVIL = {"x-forwarded-prefix": "//evil.example", "forwarded": "host=evil", "x-real-ip": "6.6.6.6", "x-forwarded-port": "66"}
IMAGE = user([{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "data:,x"}}])
TRIALS = {
    **{f"F19 {n} {route}": Trial(route, deep(n, route), 400, BAD) for n in (985, 5000, 100_000) for route in (ECHO, MODEL)},
    "F18 byte order mark": Trial(ECHO, b'\xef\xbb\xbf{"session_id": "s-bom", "message": "x"}', 200, r'"session": ?"s-bom"'),
    "F18 UTF-16": Trial(ECHO, '{"message": "x"}'.encode("utf-16"), 400, BAD),
    "F26 NaN in": Trial(ECHO, b'{"message": NaN}', 400, BAD),
    "F26 NaN out": Trial(VALUES, {"message": "nan"}, 200, r'"reply": ?null'),
    "F26 -Infinity out": Trial(VALUES, {"message": "score"}, 200, r'"score": ?null'),
    "F26 pydantic": Trial(VALUES, {"message": "pydantic"}, 200, r'"order_id": ?1, ?"name": ?"ada"'),
    "F26 dataclass": Trial(VALUES, {"message": "dataclass"}, 200, r'\{"x": ?1.5\}'),
    "F26 bytes": Trial(VALUES, {"message": "bytes"}, 200, r'"reply": ?"b"'),
    "F26 set": Trial(VALUES, {"message": "set"}, 200, r"\[1\]"),
    "F26 datetime": Trial(VALUES, {"message": "datetime"}, 200, "2025-01-02T03:04:00"),
    "F26 Response": Trial(VALUES, {"message": "response"}, 200, r'\{"own": ?true\}'),
    "F26 pydantic, chat": Trial(MODEL, chat(user("pydantic"), model="values"), 200, r'order_id\\": ?1'),
    **{
        f"F39 {what} {route}": Trial(
            route,
            {"message": what} if route == VALUES else chat(user(what), model="values"),
            500,
            '"agent_error"',
            answer={"content-type": "application/json"},
        )
        for what in ("cancelled", "exit", "base")
        for route in (VALUES, MODEL)
    },
    "F15 stream false": Trial(
        ECHO,
        {"message": "x", "stream": False},
        headers={"accept": "application/json, text/event-stream"},
        answer={"content-type": "application/json"},
    ),
    "F15 q=0": Trial(
        ECHO, {"message": "x"}, headers={"accept": "text/event-stream;q=0"}, answer={"content-type": "application/json"}
    ),
    "F15 upper case": Trial(
        ECHO, {"message": "x"}, headers={"accept": "TEXT/EVENT-STREAM"}, answer={"content-type": "text/event-stream"}
    ),
    "F15 stream null": Trial(ECHO, {"message": "x", "stream": None}, answer={"content-type": "application/json"}),
    **{
        f"F20 the model's {status}": Trial(
            MODEL, chat(user(f"refuse {status}")), status, "context_length_exceeded", answer={"retry-after": "7"}
        )
        for status in (400, 401, 403, 404, 413, 422, 429)
    },
    "F20 on /messages": Trial(PLAIN, {"message": "refuse 429"}, 429, "model_refused", answer={"retry-after": "7"}),
    "F20 tool calls": Trial(MODEL, chat(user("call a tool")), 200, r'"tool_calls"'),
    **{f"F24 {role} alone": Trial(MODEL, chat(said(role, "x"))) for role in ("system", "developer", "assistant")},
    "F22 the whole conversation": Trial(
        MODEL,
        chat(said("system", "brief"), user("I am Ada"), said("assistant", "Hi"), IMAGE, temperature=0.5),
        200,
        r'temperature\\": ?0.5.*brief.*I am Ada.*Hi.*image_url',
    ),
    "F1 lifespan": Trial("/agents/mounted/state", None, 200, r'"db":"ready","pool":"open"'),
    "F2 redirect": Trial("/agents/mounted/things", None, 307, answer={"location": r"^(http://[^/]+)?/agents/mounted/things/$"}),
    "F2 docs": Trial("/agents/mounted/docs", None, 200, "/agents/mounted/openapi.json"),
    "F2 openapi.json": Trial("/agents/mounted/openapi.json", None, 200, '"/things/"'),
    "F2 url_for": Trial(THINGS, None, 200, r'"url":"http://[^/]+/agents/mounted/things/"'),
    "F2 behind TLS": Trial(THINGS, None, 200, r'"url":"https://[^/]+/agents/mounted/things/"', headers=HTTPS, sender=PROXY),
    "F3 a stranger's headers": Trial(THINGS, None, 200, r"^(?!.*(evil|6\.6\.6\.6|66))", headers=EVIL),
    "F3 the proxy's client": Trial(
        THINGS, None, 200, r'"client":"203.0.113.7"', headers={"x-forwarded-for": "203.0.113.7:4711"}, sender=PROXY
    ),
    "F13 Secure": Trial(ECHO, {"message": "x"}, headers=HTTPS, answer={"set-cookie": "; Secure"}, sender=PROXY),
    "F13 no Secure for a stranger": Trial(ECHO, {"message": "x"}, headers=HTTPS, answer={"set-cookie": "^(?!.*Secure)"}),
}


@pytest.mark.parametrize("trial", TRIALS.values(), ids=TRIALS.keys())
def test_the_answer_is_right(cases: Cluster, trial: Trial) -> None:
    answer = ask(cases, trial.path, trial.body, trial.headers, sender=trial.sender)
    assert answer.status == trial.status, answer.text[:500]
    assert re.search(trial.text, answer.text, re.DOTALL), answer.text[:500]
    for name, pattern in trial.answer.items():
        assert re.search(pattern, answer.header(name)), (name, answer.headers)


def test_f19_f20_f39_no_instance_is_blamed_for_any_of_it(cases: Cluster) -> None:
    """Each of them more often than the breaker's threshold (5), on both routes."""
    bodies = [deep(5000, ECHO), b"{", b'{"message": NaN}']
    answers = [ask(cases, ECHO, body).status for body in bodies for _ in range(8)]
    answers += [ask(cases, MODEL, chat(user("refuse 429"))).status for _ in range(12)]
    assert Counter(answers) == {400: 24, 429: 12}
    assert message(cases, "echo", "x").status == 200 and ask(cases, MODEL, chat(user("x"))).status == 200
    assert blamed(cases) == []
    assert get(f"{cases.url}/-/healthz") == "success"


def test_f11_the_target_names_the_host(cases: Cluster) -> None:
    for name, host in (("example.com:80", "example.com"), ("example.com", "example.com:80")):
        with socket.create_connection(("127.0.0.1", cases.port), 10) as connection:
            connection.sendall(f"GET http://{name}/-/healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            assert b" 200 " in connection.makefile("rb").readline()


def test_f23_a_stream_arrives_as_the_model_sends_it(cases: Cluster) -> None:
    client = openai.OpenAI(base_url=f"{cases.url}/v1", api_key="none")
    times = [
        (time.monotonic(), chunk.choices[0].delta.content)
        for chunk in client.chat.completions.create(model="plain", messages=[{"role": "user", "content": "x"}], stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert [text for _, text in times] == ["one ", "two"] and times[1][0] - times[0][0] > 0.4


def test_f25_the_openai_client_reads_errors_within_streams(cases: Cluster) -> None:
    client = openai.OpenAI(base_url=f"{cases.url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(model="values", messages=[{"role": "user", "content": "exit"}], stream=True))
    assert raised.value.code == "agent_error"


# --- sessions -----------------------------------------------------------------------------------------------------------


def test_f12_addresses_with_ports_are_addresses(cases: Cluster) -> None:
    for shape in ("203.0.113.{}:4711", "[2001:db8::{}]:4711", "[2001:db8::{}]", "203.0.113.{}"):
        met = Counter(
            message(cases, "addressed", "x", {"x-forwarded-for": shape.format(n)}, sender=PROXY).header("x-swiftclaw-instance")
            for n in range(1, 31)
        )
        assert len(met) == 3, (shape, met)


def test_f14_the_valid_cookie_among_several_counts(cases: Cluster) -> None:
    first = message(cases, "echo", "x")
    name, _, value = first.header("set-cookie").partition(";")[0].partition("=")
    valid, foreign, older = f"{name}={value}", f"{name}=foreign", "swiftclaw_session=x"
    for cookie in (f"{valid}; {foreign}", f"{foreign}; {valid}", f"{older}; {valid}"):
        again = message(cases, "echo", "x", {"cookie": cookie})
        assert again.json["reply"]["session"] == first.json["reply"]["session"]


async def test_s2_two_agents_in_one_browser_keep_their_sessions(cases: Cluster) -> None:
    met: dict[str, set[str]] = {"echo": set(), "other": set()}
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        for _ in range(5):
            for agent, sessions in met.items():
                async with browser.post(f"{cases.url}/agents/{agent}/messages", json={"message": "x"}) as response:
                    sessions.add((await response.json())["reply"]["session"])
    assert [len(sessions) for sessions in met.values()] == [1, 1]


# --- WebSockets ---------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def websocket(cluster: Cluster, path: str = "ws") -> AsyncIterator[websockets.ClientConnection]:
    async with websockets.connect(f"ws://127.0.0.1:{cluster.port}/agents/mounted/{path}") as connection:
        yield connection


async def test_f4_close_codes_and_reasons_pass_both_ways(cases: Cluster) -> None:
    async with websocket(cases) as socket_:
        await socket_.send("close")
        with pytest.raises(websockets.ConnectionClosed):
            await socket_.recv()
        assert (socket_.close_code, socket_.close_reason) == (4403, "not allowed")
    async with websocket(cases) as socket_:
        await socket_.close(4001, "bye")
    last = await asyncio.to_thread(until, lambda: get(f"{cases.url}/agents/mounted/closed"), "the app sees the close", 10)
    assert last == {"code": 4001, "reason": "bye"}


async def test_f5_a_client_that_only_pings_is_alive(cases: Cluster) -> None:
    """Longer than `timeouts.idle`, which is 3 s."""
    async with websocket(cases) as socket_:
        for _ in range(5):
            await (await socket_.ping())
            await asyncio.sleep(1)
        await socket_.send("still there")
        assert await socket_.recv() == "still there"


async def test_f6_the_apps_own_handshake_headers_and_denials_arrive(cases: Cluster) -> None:
    async with websocket(cases) as socket_:
        assert socket_.response is not None
        headers = socket_.response.headers
        assert (headers["x-app"], headers["set-cookie"]) == ("accepted", "a=b") and headers["x-request-id"]
    with pytest.raises(websockets.InvalidStatus) as refused:
        async with websocket(cases, "denied"):
            pass
    response = refused.value.response
    assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
    assert json.loads(response.body) == {"why": "key"} and response.headers["x-swiftclaw-instance"]


# --- threads --------------------------------------------------------------------------------------------------------------


async def test_f28_threads_of_clients_that_left_hold_their_places(cases: Cluster) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=0.3)) as client:
        asked = [client.post(f"{cases.url}/agents/threaded/messages", json={"message": "2"}) for _ in range(10)]
        await asyncio.gather(*asked, return_exceptions=True)
    answer = await asyncio.to_thread(message, cases, "threaded", "0")
    assert answer.json["reply"] == 2, "at most two at once"


async def test_s3_connections_are_shown_as_they_are(cases: Cluster) -> None:
    """Of the requests to an agent with two places, two run, and the others wait. One more may be on its way to be refused."""
    async with aiohttp.ClientSession() as client:
        asked = [client.post(f"{cases.url}/agents/threaded/messages", json={"message": "1"}) for _ in range(6)]
        running = asyncio.gather(*asked)
        shown = set()
        while not running.done():
            (row,) = await asyncio.to_thread(cases.instances, "threaded")
            shown.add((row["connections"], row["active_connections"]))
            await asyncio.sleep(0.1)
    assert (2, 2) in shown and all(connections == active for connections, active in shown), shown


async def test_f27_a_health_check_does_not_wait_for_the_agents_threads(cases: Cluster) -> None:
    async with aiohttp.ClientSession() as client:
        asked = [client.post(f"{cases.url}/agents/checked/messages", json={"message": "2"}) for _ in range(24)]
        running = asyncio.gather(*asked)
        states = set()
        while not running.done():
            (row,) = await asyncio.to_thread(cases.instances, "checked")
            states.add(row["state"])
            await asyncio.sleep(0.2)
    assert states == {"healthy"} and {response.status for response in await running} == {200}


# --- operators ------------------------------------------------------------------------------------------------------------


def test_f33_an_idle_agent_reaches_zero_and_its_next_request_waits(cases: Cluster) -> None:
    until(lambda: not cases.instances("zero"), "no instance while nobody asks", 30)
    assert get(f"{cases.url}/-/healthz") == "success"
    answer = message(cases, "zero", "x")
    assert answer.status == 200, answer.text


CHECKED = [
    ("F32", {"policies.py": "RULES = 1"}, {}, r"policies\.py"),
    ("S5 rateLimit", {}, {"rateLimit": {"requests": 5}}, r"rateLimit.*enabled"),
    ("S5 sessionAffinity", {}, {"loadBalancing": {"sessionAffinity": {"type": "header"}}}, r"sessionAffinity.*enabled"),
]


@pytest.mark.parametrize(("files", "blocks", "text"), [case[1:] for case in CHECKED], ids=[case[0] for case in CHECKED])
def test_check_says_what_has_no_effect_or_cannot_work(
    cases: Cluster, tmp_path: Path, files: dict[str, str], blocks: dict[str, Any], text: str
) -> None:
    own = Cluster(tmp_path)
    (tmp_path / "shop.py").write_text("from swiftclaw import Agent\n\nagent = Agent('shop')\nagent.on_message(str)\n")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    own.write({"shop": {"agent": "shop:agent", **blocks}})
    done = own.run("check")
    assert re.search(text, (done.stdout + done.stderr).replace("\n", " ")), done.stdout + done.stderr


def test_f36b_a_command_that_cannot_be_remembered_is_refused_and_changes_nothing(cases: Cluster) -> None:
    before, controller = cases.healthy("other"), psutil.Process(cases.controller_pid())
    limits = controller.rlimit(psutil.RLIMIT_FSIZE)
    controller.rlimit(psutil.RLIMIT_FSIZE, (0, limits[1]))  # every write to a file fails, as on a full disk
    try:
        done = cases.run("scale", "other", "--region", REGION, "--instances", "2")
    finally:
        controller.rlimit(psutil.RLIMIT_FSIZE, limits)
    assert done.returncode == 1 and "Controller" in done.stderr, done.stdout + done.stderr
    status = json.loads(cases.run("status", "--json").stdout)
    assert "operator" not in json.dumps(status) and cases.healthy("other") == before


async def test_f34_fewer_gateways_refuse_no_connection_and_replace_none(cases: Cluster) -> None:
    before = {row["pid"] for row in cases.gateways()}
    cases.write(agents(), replicas=1, trustedProxies=[f"{PROXY}/32"])
    load = Load(cases.url, rate=50, agent="echo")
    await load.run(2, lambda: asyncio.to_thread(cases.up))
    assert load.failed() == []
    rows = await asyncio.to_thread(until, lambda: len(rows := cases.gateways()) == 1 and rows, "one gateway", 60)
    assert {row["pid"] for row in rows} < before


def test_nobody_was_blamed_in_the_end(cases: Cluster) -> None:
    assert blamed(cases) == []
