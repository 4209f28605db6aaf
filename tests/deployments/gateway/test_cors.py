"""What a browser sees of `http.cors`, over real sockets: preflights, responses, errors and streams."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse

from swiftclaw import Agent
from tests.deployments.conftest import DataPlane
from tests.deployments.helpers import own_app, post, streaming

PAGE = "https://app.example.com"
OTHER = "https://evil.example.org"
ALLOWED = "access-control-allow-origin"


def echo() -> Agent:
    agent = Agent("echo")

    @agent.on_message
    async def handle(message: str) -> str:
        return message

    return agent


def cors(plane: DataPlane, **settings: Any) -> None:
    plane.http["cors"] = {"origins": [PAGE], **settings}
    plane.announce()


async def preflight(
    plane: DataPlane, path: str = "/agents/echo/messages", origin: str = PAGE, method: str = "POST", **names: str
) -> tuple[int, Any, Any]:
    headers = {"origin": origin, "access-control-request-method": method}
    headers |= {name.replace("_", "-"): value for name, value in names.items()}
    async with plane.client.options(path, headers=headers) as response:
        return response.status, await response.text(), response.headers


def words(value: str) -> set[str]:
    return {word.strip().lower() for word in value.split(",")}


class TestWithoutTheBlock:
    async def test_nothing_is_allowed_and_nothing_is_added(self, plane: DataPlane) -> None:
        await plane.add(echo())
        _, _, headers = await post(plane, "echo", {"message": "hi"}, headers={"origin": PAGE})
        assert not [name for name in headers if name.lower().startswith(("access-control-", "vary"))]

    async def test_a_preflight_reaches_the_mounted_app_and_its_headers_return(self, plane: DataPlane) -> None:
        await plane.add(with_cors_of_its_own())
        status, _, headers = await preflight(plane, "/agents/own/hello", origin="https://partner.example")
        assert (status, headers[ALLOWED]) == (200, "https://partner.example")


class TestPreflight:
    async def test_it_is_answered_without_an_instance(self, plane: DataPlane) -> None:
        await plane.add(echo())
        await plane.end("echo-instance-1")
        cors(plane)
        status, _, headers = await preflight(plane, access_control_request_headers="Authorization,X-Stainless-Lang")
        assert (status, headers[ALLOWED], headers["access-control-max-age"]) == (200, PAGE, "600")
        assert "POST" in headers["access-control-allow-methods"]
        assert words(headers["access-control-allow-headers"]) == {"authorization", "x-stainless-lang"}
        assert {"origin", "access-control-request-method"} <= words(headers["vary"])
        assert "access-control-allow-credentials" not in headers

    async def test_it_is_answered_on_every_path_and_counts_with_no_rate_limit(self, plane: DataPlane) -> None:
        plane.blocks["echo"] = {"rateLimit": {"enabled": True, "requests": 1}}
        await plane.add(echo())
        cors(plane)
        for path in ("/v1/chat/completions", "/agents/nobody/x", "/agents/echo/messages", "/-/healthz"):
            assert (await preflight(plane, path))[0] == 200
        assert (await post(plane, "echo", {"message": "hi"}))[0] == 200

    @pytest.mark.parametrize(
        ("settings", "asked", "refused"),
        [
            ({}, {"origin": OTHER}, "origin"),
            ({"methods": ["GET"]}, {"method": "DELETE"}, "method"),
            ({"methods": ["PATCH"]}, {"method": "patch"}, "method"),
            ({"headers": ["X-Team"]}, {"access_control_request_headers": "content-type, x-team, x-other"}, "header x-other"),
        ],
    )
    async def test_what_is_not_allowed_is_named(
        self, plane: DataPlane, settings: dict[str, Any], asked: dict[str, str], refused: str
    ) -> None:
        cors(plane, **settings)
        status, text, headers = await preflight(plane, **asked)
        assert status == 400
        assert f"CORS: the {refused}" in text
        assert (ALLOWED in headers) is (refused != "origin")

    async def test_the_headers_that_every_page_may_set_need_no_permission(self, plane: DataPlane) -> None:
        cors(plane, headers=["X-Team"])
        assert (await preflight(plane, access_control_request_headers="accept,content-type,X-TEAM"))[0] == 200

    async def test_a_private_network_is_open_to_public_pages_only_if_the_file_says_so(self, plane: DataPlane) -> None:
        name = "access-control-allow-private-network"
        cors(plane)
        assert name not in (await preflight(plane, access_control_request_private_network="true"))[2]
        cors(plane, privateNetwork=True)
        assert (await preflight(plane, access_control_request_private_network="true"))[2][name] == "true"
        assert name not in (await preflight(plane))[2]

    async def test_options_without_the_question_is_a_request_like_others(self, plane: DataPlane) -> None:
        await plane.add(with_cors_of_its_own())
        cors(plane)
        async with plane.client.options("/agents/own/hello", headers={"origin": PAGE}) as response:
            assert response.headers["x-swiftclaw-instance"] == "instance-1"
            assert response.headers[ALLOWED] == PAGE


class TestResponses:
    async def test_an_allowed_page_may_read_the_reply_and_our_headers(self, plane: DataPlane) -> None:
        await plane.add(echo())
        cors(plane, exposeHeaders=["Mcp-Session-Id"])
        status, _, headers = await post(plane, "echo", {"message": "hi"}, headers={"origin": PAGE})
        assert (status, headers[ALLOWED], headers["vary"]) == (200, PAGE, "Origin")
        exposed = words(headers["access-control-expose-headers"])
        assert {"x-request-id", "x-swiftclaw-instance", "x-swiftclaw-session-token", "ratelimit", "mcp-session-id"} <= exposed

    async def test_another_page_is_served_but_may_not_read(self, plane: DataPlane) -> None:
        await plane.add(echo())
        cors(plane, credentials=True)
        for headers in ({"origin": OTHER}, {}, {"origin": "null"}, {"origin": f"{PAGE}.evil.org"}):
            status, _, got = await post(plane, "echo", {"message": "hi"}, headers=headers)
            assert status == 200
            assert not [name for name in got if name.lower().startswith("access-control-")]
            assert got["vary"] == "Origin", "or a cache would give this response to the page that may read it"

    async def test_any_origin_is_one_answer_for_all(self, plane: DataPlane) -> None:
        await plane.add(echo())
        cors(plane, origins=["*"])
        for page in ({"origin": OTHER, "cookie": "a=b"}, {"origin": "null"}, {}):
            _, _, headers = await post(plane, "echo", {"message": "hi"}, headers=page)
            assert headers[ALLOWED] == "*", "also without an origin: a cache may keep the response for a page"
            assert "vary" not in headers
            assert "access-control-allow-credentials" not in headers

    async def test_credentials_name_the_origin(self, plane: DataPlane) -> None:
        await plane.add(echo())
        cors(plane, credentials=True)
        for headers in (
            (await preflight(plane))[2],
            (await post(plane, "echo", {"message": "hi"}, headers={"origin": PAGE}))[2],
        ):
            assert (headers[ALLOWED], headers["access-control-allow-credentials"]) == (PAGE, "true")

    async def test_errors_of_the_gateway_can_be_read_too(self, plane: DataPlane) -> None:
        plane.blocks["echo"] = {"rateLimit": {"enabled": True, "requests": 1}}
        await plane.add(echo())
        plane.http["maxBodyBytes"] = 1000
        cors(plane)
        page = {"origin": PAGE}
        assert (await post(plane, "echo", {"message": "hi"}, headers=page))[0] == 200
        limited = await post(plane, "echo", {"message": "hi"}, headers=page)
        unknown = await post(plane, "nobody", {"message": "hi"}, headers=page)
        large = await post(plane, "echo", {"message": "x" * 2000}, headers=page)
        assert [answer[0] for answer in (limited, unknown, large)] == [429, 404, 413]
        assert {answer[2][ALLOWED] for answer in (limited, unknown, large)} == {PAGE}
        assert "retry-after" in words(limited[2]["access-control-expose-headers"])
        async with plane.client.get("/agents/echo/x", headers={**page, "x-big": "y" * 70_000}) as response:
            assert (response.status, response.headers[ALLOWED]) == (431, PAGE)
        async with plane.client.get("/nothing", headers=page) as response:
            assert (response.status, response.headers[ALLOWED]) == (404, PAGE)

    async def test_an_agents_own_error_and_a_dead_instance_can_be_read(self, plane: DataPlane) -> None:
        await plane.add(failing())
        cors(plane)
        status, _, headers = await post(plane, "failing", {"message": "hi"}, headers={"origin": PAGE})
        assert (status, headers[ALLOWED]) == (500, PAGE)
        await plane.end("failing-instance-1")
        status, _, headers = await post(plane, "failing", {"message": "hi"}, headers={"origin": PAGE})
        assert (status, headers[ALLOWED]) == (503, PAGE)

    async def test_a_stream_can_be_read(self, plane: DataPlane) -> None:
        await plane.add(streaming(["a", "b"]))
        cors(plane)
        body = {"message": "hi", "stream": True}
        async with plane.client.post("/agents/streamer/messages", json=body, headers={"origin": PAGE}) as response:
            assert response.headers[ALLOWED] == PAGE
            assert (await response.read()).endswith(b"data: [DONE]\n\n")

    async def test_a_change_of_the_block_holds_at_once(self, plane: DataPlane) -> None:
        await plane.add(echo())
        cors(plane)
        cors(plane, origins=[OTHER])
        assert (await preflight(plane))[0] == 400
        assert (await preflight(plane, origin=OTHER))[0] == 200
        del plane.http["cors"]
        plane.announce()
        assert (await preflight(plane, origin=OTHER))[0] == 405


class TestOrigins:
    @pytest.mark.parametrize(
        ("settings", "allowed", "refused"),
        [
            (
                {"origins": ["https://*.example.com"]},
                ["https://a.example.com", "https://a.b-c.example.com"],
                ["https://example.com", "http://a.example.com", "https://aexample.com", "https://a.example.com.evil.org",
                 "https://a.exampleXcom", "https://a.example.com:8443", "https://evil.org/.example.com"],
            ),
            (
                {"origins": ["http://localhost:*"]},
                ["http://localhost:3000", "http://localhost"],
                ["http://localhost:3000.evil.org", "https://localhost:3000", "http://localhost:"],
            ),
            (
                {"origins": [], "originRegex": r"https://pr-\d+\.example\.com"},
                ["https://pr-12.example.com"],
                ["https://pr-12.example.com.evil.org", "https://evil.org?https://pr-12.example.com"],
            ),
            ({"origins": ["HTTPS://App.Example.com:443"]}, [PAGE], ["https://app.example.com:443"]),
            ({"origins": ["null"]}, ["null"], [PAGE]),
            ({"origins": ["http://[::1]:3000"]}, ["http://[::1]:3000"], [PAGE]),
            (
                {"origins": ["chrome-extension://abc", "app://obsidian.md", "capacitor://localhost"]},
                ["chrome-extension://abc", "app://obsidian.md", "capacitor://localhost"],
                [PAGE],
            ),
        ],
    )  # fmt: skip
    async def test_which_origins_match(
        self, plane: DataPlane, settings: dict[str, Any], allowed: list[str], refused: list[str]
    ) -> None:
        cors(plane, **settings)
        seen = {origin: (await preflight(plane, origin=origin))[2].get(ALLOWED) for origin in (*allowed, *refused)}
        assert seen == {origin: origin for origin in allowed} | dict.fromkeys(refused)


class TestMountedApps:
    @pytest.mark.parametrize("origin", [PAGE, "https://partner.example", None])
    async def test_their_own_cors_headers_are_replaced(self, plane: DataPlane, origin: str | None) -> None:
        await plane.add(with_cors_of_its_own())
        cors(plane)
        async with plane.client.get("/agents/own/hello", headers={"origin": origin} if origin else {}) as response:
            assert response.headers.getall(ALLOWED, []) == ([PAGE] if origin == PAGE else [])
            assert response.headers.getall("vary") == ["Accept-Encoding, Origin"]
            assert "access-control-allow-credentials" not in response.headers

    async def test_a_preflight_does_not_reach_them(self, plane: DataPlane) -> None:
        await plane.add(with_cors_of_its_own())
        cors(plane)
        status, _, headers = await preflight(plane, "/agents/own/hello", origin="https://partner.example")
        assert status == 400
        assert "x-swiftclaw-instance" not in headers

    async def test_a_websocket_is_no_matter_of_cors(self, plane: DataPlane) -> None:
        agent = Agent("own")
        agent.mount(own_app())
        await plane.add(agent)
        cors(plane)
        async with plane.client.ws_connect("/agents/own/ws", headers={"origin": OTHER}) as socket:
            await socket.send_str("hi")
            assert await socket.receive_str() == "echo hi"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await plane.client.ws_connect("/agents/nobody/ws", headers={"origin": PAGE})
        assert refused.value.status == 404


def failing() -> Agent:
    agent = Agent("failing")

    @agent.on_message
    async def handle(message: str) -> str:
        raise RuntimeError("a secret detail")

    return agent


def with_cors_of_its_own() -> Agent:
    app = FastAPI()
    app.add_middleware(
        CORSMiddleware, allow_origins=[PAGE, "https://partner.example"], allow_credentials=True, allow_methods=["*"]
    )

    @app.api_route("/hello", methods=["GET", "POST", "OPTIONS"])
    async def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello", headers={"vary": "Accept-Encoding"})

    agent = Agent("own")
    agent.mount(app)
    return agent
