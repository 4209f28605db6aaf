"""Sessions that stay: by cookie, by header, by address; forged ones count as absent."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from deployments.request.sessions import COOKIE as OLD_COOKIE
from deployments.request.sessions import TOKEN_HEADER, cookie_name
from swiftclaw import Agent
from tests.deployments.conftest import KEY, DataPlane
from tests.deployments.helpers import own_app

COOKIE = cookie_name(KEY, "a")


def agent() -> Agent:
    made = Agent("a")

    @made.on_message
    async def handle(message: str, session_id: str) -> AsyncIterator[str]:
        yield session_id

    made.mount(own_app())
    return made


@pytest.fixture
async def sticky(plane: DataPlane) -> DataPlane:
    return await affine(plane, "cookie")


async def affine(plane: DataPlane, kind: str, count: int = 5) -> DataPlane:
    plane.blocks["a"] = {"loadBalancing": {"sessionAffinity": {"enabled": True, "type": kind}}}
    await plane.add(agent(), count=count)
    return plane


async def send(client: aiohttp.ClientSession, body: dict[str, Any] | None = None, **options: Any) -> aiohttp.ClientResponse:
    async with client.post("/agents/a/messages", json={"message": "hi", **(body or {})}, **options) as response:
        await response.read()
    return response


def who(response: aiohttp.ClientResponse) -> str:
    assert response.status == 200
    return response.headers["x-swiftclaw-instance"]


async def test_a_cookie_is_set_once_and_keeps_the_session_and_its_instance(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client)
        cookie = first.headers["set-cookie"]
        for part in ("Max-Age=3600", "Path=/", "HttpOnly", "SameSite=Lax"):
            assert part in cookie
        assert "Secure" not in cookie
        session = (await first.json())["reply"]
        for _ in range(10):
            again = await send(client)
            assert who(again) == who(first)
            assert (await again.json())["reply"] == session
            assert "set-cookie" not in again.headers


async def test_two_clients_have_two_sessions(sticky: DataPlane) -> None:
    replies = []
    for _ in range(2):
        async with aiohttp.ClientSession(sticky.url) as client:
            replies.append((await (await send(client)).json())["reply"])
    assert replies[0] != replies[1]


async def test_clients_without_a_session_are_spread_by_the_strategy_and_then_stay(sticky: DataPlane) -> None:
    homes = []
    for _ in range(20):
        async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
            homes.append(who(await send(client)))
    assert {name: homes.count(name) for name in homes} == {f"instance-{n}": 4 for n in range(1, 6)}


async def test_a_cookie_survives_a_rotation_of_the_key_and_not_the_loss_of_both(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url) as client:
        first = await send(client)
        cookie = {"cookie": f"{COOKIE}={first.cookies[COOKIE].value}"}
    session = (await first.json())["reply"]
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        for keys, same in ((("22" * 32, "11" * 32), True), (("33" * 32, "22" * 32), False)):
            sticky.session_keys = keys
            sticky.announce()
            answer = await send(client, headers=cookie)
            assert ((await answer.json())["reply"] == session) is same


@pytest.mark.parametrize(
    "spoil", [lambda v: v[:-3], lambda v: v[::-1], lambda v: "", lambda v: "x" * 5000, lambda v: v.swapcase(), lambda v: '";'],
)  # fmt: skip
async def test_a_spoilt_cookie_counts_as_absent(sticky: DataPlane, spoil: Any) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        first = await send(client)
        value = first.cookies[COOKIE].value
        answer = await send(client, headers={"cookie": f"other=1; {COOKIE}={spoil(value)}"})
        assert answer.status == 200 and COOKIE in answer.cookies
        assert (await answer.json())["reply"] != (await first.json())["reply"]


@pytest.mark.parametrize("other", ['prefs={"a":1}', "x=a b", "a[0]=1", "foo", "u=\u00fc"])
async def test_other_cookies_do_not_hide_ours(sticky: DataPlane, other: str) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        first = await send(client)
        held = {"cookie": f"{other}; {COOKIE}={first.cookies[COOKIE].value}"}
        for _ in range(4):
            again = await send(client, headers=held)
            assert who(again) == who(first) and COOKIE not in again.cookies


async def test_another_agents_cookie_counts_as_absent(sticky: DataPlane) -> None:
    other = Agent("b")
    sticky.blocks["b"] = sticky.blocks["a"]
    await sticky.add(other)
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        await send(client)
        async with client.post("/agents/b/messages", json={"message": "hi"}) as response:
            assert response.status == 200 and cookie_name(KEY, "b") in response.cookies


@pytest.mark.parametrize("where", ["header", "vendor header", "body", "chat user", "chat metadata"])
async def test_a_named_session_stays_wherever_it_is_named(sticky: DataPlane, where: str) -> None:
    seen = set()
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        for _ in range(8):
            if where == "header":
                seen.add(who(await send(client, headers={"x-session-id": "s1"})))
            elif where == "vendor header":
                seen.add(who(await send(client, headers={"x-acme-session-id": "s1"})))
            elif where == "body":
                answer = await send(client, {"session_id": "s1"})
                assert (await answer.json())["session_id"] == "s1"
                seen.add(who(answer))
            else:
                chat: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "hi"}]}
                chat |= {"user": "s1"} if where == "chat user" else {"metadata": {"session_id": "s1"}}
                async with client.post("/v1/chat/completions", json=chat) as response:
                    assert (await response.json())["choices"][0]["message"]["content"] == "s1"
                    seen.add(response.headers["x-swiftclaw-instance"])
    assert len(seen) == 1


async def test_two_gateways_agree_on_a_named_session_they_have_never_seen(plane: DataPlane) -> None:
    await affine(plane, "header", count=8)
    other = DataPlane(blocks=plane.blocks, members=plane.members)
    await other.start()
    try:
        for number in range(50):
            named = {"x-session-id": f"s{number}"}
            assert who(await send(plane.client, headers=named)) == who(await send(other.client, headers=named))
    finally:
        await other.stop()


async def test_by_header_sets_no_cookie_and_by_address_needs_none(plane: DataPlane) -> None:
    await affine(plane, "header")
    plain = [await send(plane.client) for _ in range(10)]
    assert len({who(answer) for answer in plain}) == 5 and not any(answer.cookies for answer in plain)
    plane.blocks["a"]["loadBalancing"]["sessionAffinity"]["type"] = "client-ip"
    plane.announce()
    pinned = [await send(plane.client) for _ in range(10)]
    assert len({who(answer) for answer in pinned}) == 1 and not any(answer.cookies for answer in pinned)


async def test_by_address_believes_only_trusted_proxies(plane: DataPlane) -> None:
    plane.args["trustedProxies"] = ["127.0.0.0/8"]
    await affine(plane, "client-ip")
    clients = [f"192.0.2.{n}" for n in range(40)]
    homes = {ip: who(await send(plane.client, headers={"x-forwarded-for": ip})) for ip in clients}
    assert len(set(homes.values())) == 5
    for ip, home in homes.items():
        assert who(await send(plane.client, headers={"x-forwarded-for": f"203.0.113.9, {ip}"})) == home
    plane.args["trustedProxies"] = []
    plane.announce()
    assert len({who(await send(plane.client, headers={"x-forwarded-for": ip})) for ip in clients}) == 1


async def test_a_lost_instances_sessions_move_once_and_get_a_new_token(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client)
        sticky.mark("a", who(first), "unhealthy")
        moved = await send(client)
        assert who(moved) != who(first) and COOKIE in moved.cookies
        assert (await moved.json())["reply"] == (await first.json())["reply"], "the session is the same"
        sticky.mark("a", who(first), "healthy")
        for _ in range(5):
            stays = await send(client)
            assert who(stays) == who(moved) and COOKIE not in stays.cookies


async def test_a_draining_instance_keeps_its_sessions_and_gets_no_new_ones(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client)
        sticky.mark("a", who(first), "draining")
        assert who(await send(client)) == who(first)
        async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as stranger:
            assert who(first) not in {who(await send(stranger)) for _ in range(20)}


async def test_streams_and_websockets_stay_too(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client, {"stream": True})
        for _ in range(5):
            assert who(await send(client, {"stream": True})) == who(first)
            async with client.ws_connect("/agents/a/ws") as socket:
                assert socket._response.headers["x-swiftclaw-instance"] == who(first)


async def test_a_strategy_changed_under_way_keeps_sessions_and_instances(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client)
        for strategy in ("least-connections", "response-time", "geographic", "round-robin"):
            sticky.blocks["a"]["loadBalancing"]["strategy"] = strategy
            sticky.announce()
            assert who(await send(client)) == who(first)


@pytest.mark.parametrize("name", ["zoë", "日本", "jürgen.é"])
async def test_a_name_beyond_ascii_is_the_same_session_in_a_header_and_in_the_body(plane: DataPlane, name: str) -> None:
    await affine(plane, "header", count=9)
    bodies, homes = [], set()
    for body, headers in ({"session_id": name}, {}), ({}, {"x-session-id": name}):
        async with plane.client.post("/agents/a/messages", json={"message": "hi", **body}, headers=headers) as response:
            bodies.append((await response.json())["session_id"])
            homes.add(who(response))
    assert bodies == [name, name] and len(homes) == 1


async def test_a_session_name_cannot_smuggle_headers(sticky: DataPlane) -> None:
    evil = "a\r\nx-evil: 1\r\n\u2028ü\ud800"
    answer = await send(sticky.client, {"session_id": evil})
    kept = evil.replace("\ud800", "\ufffd")  # half of a surrogate pair is no character
    assert (await answer.json())["session_id"] == kept
    assert (await answer.json())["reply"] == kept


async def test_two_agents_on_one_host_keep_their_sessions_apart_in_one_cookie_jar(plane: DataPlane) -> None:
    for name in ("one", "two"):
        plane.blocks[name] = {"loadBalancing": {"sessionAffinity": {"enabled": True}}}
        made = Agent(name)
        made.on_message(lambda message, session_id: session_id)
        await plane.add(made, count=3)
    met: dict[str, set[tuple[str, str]]] = {"one": set(), "two": set()}
    async with aiohttp.ClientSession(plane.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        for _ in range(5):
            for name, seen in met.items():
                async with client.post(f"/agents/{name}/messages", json={"message": "hi"}) as response:
                    seen.add((who(response), (await response.json())["reply"]))
    assert all(len(seen) == 1 for seen in met.values())
    assert cookie_name(KEY, "one") != cookie_name("another cluster", "one") and cookie_name(KEY, "one").startswith(OLD_COOKIE)


@pytest.mark.parametrize("name", [COOKIE, OLD_COOKIE])
@pytest.mark.parametrize("order", [1, -1])
async def test_the_valid_cookie_among_several_of_one_name_counts(sticky: DataPlane, name: str, order: int) -> None:
    async with aiohttp.ClientSession(sticky.url) as client:
        first = await send(client)
        token = first.cookies[COOKIE].value
    for _ in range(5):
        pairs = [f"{name}={token}", f"{name}=foreign", f"{COOKIE}={token[::-1]}"][::order]
        async with aiohttp.ClientSession(sticky.url) as client:
            again = await send(client, headers={"cookie": "; ".join(pairs)})
        assert who(again) == who(first) and (await again.json())["reply"] == (await first.json())["reply"]


async def test_a_client_without_cookies_keeps_the_token_itself(sticky: DataPlane) -> None:
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        first = await send(client)
        header = TOKEN_HEADER.decode()
        kept = {header: first.headers[header]}
        for _ in range(5):
            again = await send(client, headers=kept)
            assert who(again) == who(first) and header not in again.headers


@pytest.mark.parametrize(("trusted", "secure"), [(["127.0.0.0/8"], True), ([], False)])
async def test_the_cookie_is_secure_when_the_client_uses_tls(plane: DataPlane, trusted: list[str], secure: bool) -> None:
    plane.args["trustedProxies"] = trusted
    sticky = await affine(plane, "cookie")
    async with aiohttp.ClientSession(sticky.url) as client:
        response = await send(client, headers={"x-forwarded-proto": "https"})
    assert ("; Secure" in response.headers["set-cookie"]) is secure


@pytest.mark.parametrize("where", ["header", "cookie"])
async def test_a_session_that_the_app_creates_stays_with_its_instance(plane: DataPlane, where: str) -> None:
    """As MCP servers do it: the answer to the first request names the session, and only that instance knows it."""
    learn = {"header": "Mcp-Session-Id"} if where == "header" else {"cookie": "appsession"}
    plane.blocks["a"] = {"loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header", "learn": learn}}}
    for number in range(4):
        known: set[str] = set()

        async def app(scope: Any, receive: Any, send: Any, known: set[str] = known, number: int = number) -> None:
            headers = dict(scope["headers"])
            sent = headers.get(b"mcp-session-id") or headers.get(b"cookie", b"").removeprefix(b"appsession=")
            status, extra = 200 if sent.decode() in known else 404, []
            if not sent:
                name = f"{number}-{len(known)}"
                known.add(name)
                value = (
                    (b"mcp-session-id", name.encode())
                    if where == "header"
                    else (b"set-cookie", f"appsession={name}; Path=/".encode())
                )
                status, extra = 200, [value]
            await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0"), *extra]})
            await send({"type": "http.response.body", "body": b""})

        made = Agent("a", model="echo")
        made.mount(app)
        await plane.add(made)
    async with aiohttp.ClientSession(plane.url, cookie_jar=aiohttp.DummyCookieJar()) as client:
        for _ in range(20):
            async with client.post("/agents/a/mcp") as response:
                home = who(response)
                named = response.headers.get("mcp-session-id") or response.cookies["appsession"].value
            sent = {"mcp-session-id": named} if where == "header" else {"cookie": f"appsession={named}"}
            for _ in range(4):
                async with client.post("/agents/a/mcp", headers=sent) as response:
                    assert (response.status, who(response)) == (200, home)


async def test_the_handler_learns_that_a_session_has_moved(plane: DataPlane) -> None:
    plane.blocks["a"] = {"loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
    made = Agent("a")
    made.on_message(lambda message, request: str(request.session_moved))
    await plane.add(made, count=3)
    headers = {"x-session-id": "ada", "x-swiftclaw-session-moved": "1"}  # a client cannot say so
    first = await send(plane.client, headers=headers)
    again = await send(plane.client, headers=headers)
    plane.mark("a", who(first), "unhealthy")
    moved = await send(plane.client, headers=headers)
    after = await send(plane.client, headers=headers)
    said = [(await response.json())["reply"] for response in (first, again, moved, after)]
    assert said == ["False", "False", "True", "False"] and who(moved) == who(after) != who(first)


async def test_a_mounted_app_learns_it_from_a_header_over_http_and_websockets_alike(plane: DataPlane) -> None:
    async def report(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.headers.get("x-swiftclaw-session-moved")))

    async def report_by_websocket(socket: WebSocket) -> None:
        await socket.accept()
        await socket.send_text(str(socket.headers.get("x-swiftclaw-session-moved")))

    plane.blocks["a"] = {"loadBalancing": {"sessionAffinity": {"enabled": True, "type": "header"}}}
    made = Agent("a")
    made.mount(Starlette(routes=[Route("/http", report), WebSocketRoute("/ws", report_by_websocket)]))
    await plane.add(made, count=3)

    async def over_http(session: str) -> tuple[str, str]:
        headers = {"x-session-id": session, "x-swiftclaw-session-moved": "1"}  # a client cannot say so
        async with plane.client.get("/agents/a/http", headers=headers) as response:
            return who(response), await response.text()

    async def over_websocket(session: str) -> tuple[str, str]:
        headers = {"x-session-id": session, "x-swiftclaw-session-moved": "1"}
        async with plane.client.ws_connect("/agents/a/ws", headers=headers) as socket:
            return socket._response.headers["x-swiftclaw-instance"], str(await socket.receive_str())

    for ask, session in ((over_http, "ada"), (over_websocket, "bob")):
        home, first = await ask(session)
        again = await ask(session)
        plane.mark("a", home, "unhealthy")
        new_home, moved = await ask(session)
        after = await ask(session)
        plane.mark("a", home, "healthy")
        assert (first, again, moved, after) == ("None", (home, "None"), "1", (new_home, "None")) and new_home != home


@pytest.mark.parametrize("step_s", [7200.0, -7200.0])
async def test_a_clock_that_is_set_ends_no_session_that_is_in_use(
    sticky: DataPlane, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    clock = [time.time()]
    monkeypatch.setattr("deployments.request.sessions.time", SimpleNamespace(time=lambda: clock[0]))
    async with aiohttp.ClientSession(sticky.url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        first = await send(client)
        clock[0] += step_s
        second = await send(client)
        assert who(second) == who(first)
        assert await second.json() == await first.json(), "the same session"
        assert "set-cookie" in second.headers, "with a cookie that lasts as long as the session does"
        assert "set-cookie" not in (await send(client)).headers
